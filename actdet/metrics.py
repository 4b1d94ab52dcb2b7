"""The report's metrics (eq. 16 to 18, tables 1 and 2) and average precision, from predictions and targets alone."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from actdet_kernels import SetLoss, Targets, match, set_loss
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from actdet.config import NO_ACTION, LossConfig
from actdet.models.decision import Decision, action_scores, decide
from actdet.models.detector import Predictions


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class over `support` clips; a quotient without a denominator is 0."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Metrics:
    """What `measure` finds over a set of clips."""

    video_accuracy: float
    """Share of clips whose class is right (eq. 16)."""
    detection_accuracy: float
    """Share of clips whose class is right and, where there is an action, whose box overlaps an annotated box of
    that class by IoU >= 0.5 (eq. 17)."""
    mean_iou: float
    """Mean IoU of the queries that Hungarian matching gives to the annotated boxes (eq. 18)."""
    clips: int
    average_precision: float
    """AP averaged over IoU 0.50 to 0.95 and over the classes, all queries counting as detections."""
    average_precision_50: float
    """The same at IoU 0.5."""
    loss: dict[str, float]
    """total (weighted), cls, l1 and giou of eq. 12."""
    classes: dict[str, ClassMetrics]
    """Per class, "no action" last."""
    confusion: list[list[int]]
    """Rows: true class; columns: predicted class; "no action" last."""


def measure(predictions: Predictions, targets: Targets, class_names: tuple[str, ...], loss: LossConfig) -> Metrics:
    """All metrics of n clips: predictions `logits (L, n, N, C)`, of which the last layer counts, and their targets.

    A clip's true class is that of its first target. Works on the CPU in float32.
    """
    # It takes half a second to import, and who only predicts measures nothing.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    predictions = Predictions(*(field.detach().to("cpu", torch.float32) for field in predictions))
    targets = targets.to("cpu")
    logits, boxes = predictions.final()
    decision = decide(logits, boxes, no_object_weight=loss.no_object_weight)
    truth = true_labels(targets, len(class_names))
    overlap = decided_iou(decision, targets)
    right = decision.label == truth
    located = right & ((truth == len(class_names)) | (overlap >= 0.5))

    weights = loss.match_weights
    matched = match(logits, boxes, targets, weights=weights)
    losses = set_loss(logits, boxes, targets, matched, weights=weights, no_object_weight=loss.no_object_weight)
    ap = _average_precision(logits, boxes, targets)
    labels = list(range(len(class_names) + 1))
    per_class: Any = precision_recall_fscore_support(
        truth,
        decision.label,
        labels=labels,
        zero_division=0,  # pyright: ignore[reportArgumentType] (its hint knows the default alone)
    )
    return Metrics(
        video_accuracy=right.float().mean().item(),
        detection_accuracy=located.float().mean().item(),
        mean_iou=_matched_iou(boxes, targets, matched),
        clips=len(truth),
        average_precision=ap["map"],
        average_precision_50=ap["map_50"],
        loss={name: getattr(losses, name).item() for name in SetLoss._fields},
        classes={
            name: ClassMetrics(float(precision), float(recall), float(f1), int(support))
            for name, precision, recall, f1, support in zip((*class_names, NO_ACTION), *per_class, strict=True)
        },
        confusion=confusion_matrix(truth, decision.label, labels=labels).tolist(),
    )


def true_labels(targets: Targets, no_action: int) -> Tensor:
    """(n,) int64: the class of each clip's first target, `no_action` where it has none."""
    return torch.where(targets.counts > 0, targets.labels[:, 0], no_action)


def decided_iou(decision: Decision, targets: Targets) -> Tensor:
    """(n,): the decided box's best IoU with a target of the decided class, 0 where there is none."""
    decided = box_convert(decision.box, "cxcywh", "xyxy")
    result = torch.zeros(len(decided))
    for clip, count in enumerate(targets.counts.tolist()):
        same = targets.labels[clip, :count] == decision.label[clip]
        if same.any():
            wanted = box_convert(targets.boxes[clip, :count][same], "cxcywh", "xyxy")
            result[clip] = box_iou(decided[clip : clip + 1], wanted).max()
    return result


def _matched_iou(boxes: Tensor, targets: Targets, matched: Tensor) -> float:
    pairs = matched >= 0
    if not pairs.any():
        return 0.0
    clip, _ = pairs.nonzero(as_tuple=True)
    predicted = box_convert(boxes[clip, matched[pairs]], "cxcywh", "xyxy")
    wanted = box_convert(targets.boxes[pairs], "cxcywh", "xyxy")
    return box_iou(predicted, wanted).diagonal().mean().item()


def _average_precision(logits: Tensor, boxes: Tensor, targets: Targets) -> dict[str, float]:
    # It takes a second to import, and brings in transformers where that is installed.
    from torchmetrics.detection import MeanAveragePrecision

    score, label = action_scores(logits)
    corners = box_convert(boxes, "cxcywh", "xyxy")
    wanted = box_convert(targets.boxes, "cxcywh", "xyxy")
    counts = targets.counts.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own dependencies
        logging.getLogger("faster_coco_eval").setLevel(logging.ERROR)
        metric = MeanAveragePrecision(sync_on_compute=False, backend="faster_coco_eval")
        metric.update(
            [{"boxes": b, "scores": s, "labels": c} for b, s, c in zip(corners, score, label, strict=True)],
            [{"boxes": wanted[i, :n], "labels": targets.labels[i, :n]} for i, n in enumerate(counts)],
        )
        result = metric.compute()
    return {name: max(result[name].item(), 0.0) for name in ("map", "map_50")}  # -1: no clip has an action

"""The report's metrics (eq. 16 to 18, tables 1 and 2) and what else tells how far a detector can be trusted.

They come from predictions and targets alone, and none depends on the order of a clip's annotations. A quotient without
a denominator is None: "n/a" where a person reads it (`format_figure`), null in JSON.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from actdet_kernels import MatchWeights, SetLoss, Targets, match, set_loss
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from actdet.data.classes import NO_ACTION
from actdet.models.detr.config import LossConfig
from actdet.models.detr.decision import Action, Decision, action_scores, actions, decide
from actdet.models.detr.detector import Predictions

NORMAL_95 = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations
BINS = 10  # of equal width, in which scores are compared with what they promise


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class over the clips; None where a quotient has no denominator.

    A class is said of a clip if it is in the clip's set of actions, and true of it if it is annotated there; "no
    action" is said and true of the clips whose set is empty.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    """The clips of which it is true."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The clips whose scores lie between two tenths, the upper one included in the last bin alone."""

    count: int
    score: float | None
    """Their mean score, None where there are none."""
    accuracy: float | None
    """The share of them that do hold the class that the score is of."""


@dataclass(frozen=True)
class Metrics:
    """What `measure` finds over a set of clips; a figure is None where it is a quotient without a denominator."""

    video_accuracy: float | None
    """Share of clips that are right (eq. 16): the surest answer is one of the classes annotated in the clip, or "no
    action" where none is."""
    detection_accuracy: float | None
    """Share of clips that are right and, where there is an action, whose box overlaps an annotated box of that class by
    IoU >= 0.5 (eq. 17)."""
    mean_iou: float | None
    """Mean IoU of the queries that Hungarian matching gives to the annotated boxes (eq. 18), whatever the detector
    decides: comparable with the report's, but above 0 for a detector that finds nothing. `located_iou` is not."""
    clips: int
    average_precision: float | None
    """AP averaged over IoU 0.50 to 0.95 and over the classes, all queries counting as detections."""
    average_precision_50: float | None
    """The same at IoU 0.5."""
    loss: dict[str, float]
    """total and its terms of eq. 12, not weighted: total is the sum of cls, l1 and giou, each by its weight below."""
    classes: dict[str, ClassMetrics]
    """Per class, "no action" last."""
    confusion: list[list[int]]
    """Rows: true class; columns: decided class; "no action" last. Each clip counts once: under the decided class if it
    is annotated there, else under its lowest."""
    located_iou: float | None
    """Mean over the annotated boxes of the IoU with what was found there: an action of the clip's set, of the same
    class, one action for one box; 0 for a box for which there is none."""
    video_accuracy_interval: tuple[float, float] | None
    """95 % confidence interval of the video accuracy (Wilson's), were the clips drawn at random."""
    detection_accuracy_interval: tuple[float, float] | None
    """The same of the detection accuracy."""
    majority_class: str | None
    """The class, or "no action", that is true of most clips; of several the first."""
    majority_accuracy: float | None
    """The video accuracy of always saying that."""
    loss_weights: dict[str, float]
    """The weights of cls, l1 and giou in the total loss."""
    calibration_error: float | None
    """Expected calibration error: how far score and accuracy of a clip's reliability bin are apart, in the mean."""
    reliability: list[ReliabilityBin]
    """Ten bins of equal width over the scores from 0 to 1: whether a score is the probability that it claims to be."""

    def describe(self) -> list[str]:
        """What a person reads of them, in lines."""
        accuracies = [
            f"{name} {format_figure(value)}{_format_interval(interval)}"
            for name, value, interval in (
                ("video accuracy", self.video_accuracy, self.video_accuracy_interval),
                ("detection accuracy at IoU 0.5", self.detection_accuracy, self.detection_accuracy_interval),
            )
        ]
        return [
            f"{self.clips} clips: {', '.join(accuracies)}",
            f"always saying {self.majority_class}: video accuracy {format_figure(self.majority_accuracy)}",
            f"boxes: mean IoU {format_figure(self.mean_iou)} if matched to the annotated ones, "
            f"{format_figure(self.located_iou)} if found; AP {format_figure(self.average_precision)}",
            f"scores: expected calibration error {format_figure(self.calibration_error)}",
            f"loss: {self.describe_loss()}",
        ]

    def describe_loss(self) -> str:
        """The loss as the sum of its weighted terms, which add up as they are printed."""
        names = {"cls": "class", "l1": "L1", "giou": "GIoU"}
        terms = {name: round(self.loss_weights[name] * self.loss[name], 3) for name in names}
        parts = (f"{names[name]} {term:.3f} (weight {self.loss_weights[name]:g})" for name, term in terms.items())
        return f"{sum(terms.values()):.3f} = {' + '.join(parts)}"


def format_figure(value: float | None, form: str = ".3f") -> str:
    """A figure as a person reads it: in the format `form`, or "n/a" where it is None."""
    return "n/a" if value is None else format(value, form)


def _format_interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})"


def measure(predictions: Predictions, targets: Targets, class_names: tuple[str, ...], loss: LossConfig) -> Metrics:
    """All metrics of n clips: predictions `logits (L, n, N, C)`, of which the last layer counts, and their targets.

    Works on the CPU in float32.
    """
    # It takes half a second to import, and who only predicts measures nothing.

    predictions = Predictions(*(field.detach().to("cpu", torch.float32) for field in predictions))
    targets = targets.to("cpu")
    logits, boxes = predictions.final()
    names = (*class_names, NO_ACTION)
    clips = len(logits)

    decision = decide(logits, boxes, no_object_weight=loss.no_object_weight)
    annotated = _annotated(targets, len(class_names))
    right = _holds(annotated, decision.label)
    located = right & ((decision.label == len(class_names)) | (decided_iou(decision, targets) >= 0.5))
    frequent = annotated.sum(0).tolist()
    most = max(range(len(names)), key=frequent.__getitem__)

    # The score is that of the likeliest class, whether it passed the threshold or not.
    likeliest = decide(logits, boxes, no_object_weight=loss.no_object_weight, threshold=0.0)
    reliability = reliability_bins(likeliest.score, _holds(annotated, likeliest.label))

    found = actions(logits, boxes, no_object_weight=loss.no_object_weight)
    said = torch.zeros_like(annotated)
    for clip, actions_of_clip in enumerate(found):
        said[clip, [action.label for action in actions_of_clip] or [len(class_names)]] = True

    weights = loss.match_weights
    matched = match(logits, boxes, targets, weights=weights)
    losses = set_loss(logits, boxes, targets, matched, weights=weights, no_object_weight=loss.no_object_weight)
    ap = _average_precision(logits, boxes, targets)
    truth = true_labels(targets, len(class_names), decision.label)
    pairs = truth * len(names) + decision.label
    return Metrics(
        video_accuracy=_quotient(int(right.sum()), clips),
        detection_accuracy=_quotient(int(located.sum()), clips),
        mean_iou=_matched_iou(boxes, targets, matched),
        clips=clips,
        average_precision=ap["map"],
        average_precision_50=ap["map_50"],
        loss={name: getattr(losses, name).item() for name in SetLoss._fields},
        classes={name: _class_metrics(said[:, label], annotated[:, label]) for label, name in enumerate(names)},
        confusion=pairs.bincount(minlength=len(names) ** 2).view(len(names), len(names)).tolist(),
        located_iou=_located_iou(found, targets),
        video_accuracy_interval=wilson_interval(int(right.sum()), clips),
        detection_accuracy_interval=wilson_interval(int(located.sum()), clips),
        majority_class=names[most] if clips else None,
        majority_accuracy=_quotient(frequent[most], clips),
        loss_weights={name: getattr(weights, name) for name in MatchWeights._fields},
        calibration_error=calibration_error(reliability),
        reliability=reliability,
    )


def true_labels(targets: Targets, no_action: int, decided: Tensor | None = None) -> Tensor:
    """(n,) int64: one true class of each clip, `no_action` where it has none.

    Of several annotated classes it is the decided one, where it is among them, else the lowest.

    Args:
        targets: Of n clips.
        no_action: The number of action classes.
        decided: (n,) int64, what was decided; without it, the lowest class counts.
    """
    lowest = torch.where(targets.valid, targets.labels, no_action).amin(1)
    if decided is None:
        return lowest
    return torch.where(_holds(_annotated(targets, no_action), decided), decided, lowest)


def _annotated(targets: Targets, no_action: int) -> Tensor:
    """(n, no_action + 1) bool: the classes that are annotated in each clip; the last one where none is."""
    labels = torch.where(targets.valid, targets.labels, no_action)
    annotated = torch.zeros(len(labels), no_action + 1, dtype=torch.bool).scatter_(1, labels, True)
    annotated[:, no_action] = targets.counts == 0
    return annotated


def _holds(annotated: Tensor, label: Tensor) -> Tensor:
    """(n,) bool: whether each clip's `label` is among those that are `annotated` in it."""
    return annotated.gather(1, label[:, None])[:, 0]


def _class_metrics(said: Tensor, true: Tensor) -> ClassMetrics:
    """Of one class: (n,) bool each, of which clips it is said and of which it is true."""
    hits = int((said & true).sum())
    claims = int(said.sum())
    support = int(true.sum())
    return ClassMetrics(
        precision=_quotient(hits, claims),
        recall=_quotient(hits, support),
        f1=_quotient(2 * hits, claims + support),
        support=support,
    )


def _quotient(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def wilson_interval(hits: int, clips: int) -> tuple[float, float] | None:
    """95 % confidence interval of a share of which `hits` of `clips` were seen (Wilson 1927); None of no clips."""
    if not clips:
        return None
    share = hits / clips
    spread = NORMAL_95**2 / clips
    center = share + spread / 2
    reach = math.sqrt(spread * share * (1 - share) + spread**2 / 4)
    # Rounding must not put a share of 0 or 1 outside.
    return max((center - reach) / (1 + spread), 0.0), min((center + reach) / (1 + spread), 1.0)


def reliability_bins(score: Tensor, right: Tensor) -> list[ReliabilityBin]:
    """Ten bins of equal width over the scores.

    Args:
        score: (n,) in [0, 1].
        right: (n,) bool, whether that came true of which each score is the probability.
    """
    place = (score.double() * BINS).long().clamp(0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside = place == number
        count = int(inside.sum())
        bins.append(
            ReliabilityBin(
                count=count,
                score=_quotient(score[inside].double().sum().item(), count),
                accuracy=_quotient(int(right[inside].sum()), count),
            )
        )
    return bins


def calibration_error(bins: Sequence[ReliabilityBin]) -> float | None:
    """The mean distance of score and accuracy, each bin counting by its clips; None of no clips."""
    distances = [
        part.count * abs(part.score - part.accuracy)
        for part in bins
        if part.score is not None and part.accuracy is not None
    ]
    return _quotient(math.fsum(distances), sum(part.count for part in bins))


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


def _matched_iou(boxes: Tensor, targets: Targets, matched: Tensor) -> float | None:
    pairs = matched >= 0
    if not pairs.any():
        return None
    clip, _ = pairs.nonzero(as_tuple=True)
    predicted = box_convert(boxes[clip, matched[pairs]], "cxcywh", "xyxy")
    wanted = box_convert(targets.boxes[pairs], "cxcywh", "xyxy")
    return box_iou(predicted, wanted).diagonal().mean().item()


def _located_iou(found: Sequence[tuple[Action, ...]], targets: Targets) -> float | None:
    """See `Metrics.located_iou`; which action stands for which box is chosen so that the sum is largest."""
    from scipy.optimize import linear_sum_assignment

    total = 0.0
    for clip, count in enumerate(targets.counts.tolist()):
        if not found[clip]:
            continue
        labels = torch.tensor([action.label for action in found[clip]])
        corners = torch.tensor([action.box for action in found[clip]])
        overlap = box_iou(corners, box_convert(targets.boxes[clip, :count], "cxcywh", "xyxy"))
        # Boxes without an area have no overlap, not one of 0/0.
        overlap = torch.where(labels[:, None] == targets.labels[clip, :count], overlap, 0.0).nan_to_num(0.0)
        total += overlap[linear_sum_assignment(overlap, maximize=True)].sum().item()
    return _quotient(total, int(targets.counts.sum()))


def _average_precision(logits: Tensor, boxes: Tensor, targets: Targets) -> dict[str, float | None]:
    # It takes a second to import, and brings in transformers where that is installed.
    from torchmetrics.detection import MeanAveragePrecision

    score, label = action_scores(logits)
    corners = box_convert(boxes, "cxcywh", "xyxy")
    wanted = box_convert(targets.boxes, "cxcywh", "xyxy")
    counts = targets.counts.tolist()
    if not any(counts):
        return {"map": None, "map_50": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own dependencies
        logging.getLogger("faster_coco_eval").setLevel(logging.ERROR)
        metric = MeanAveragePrecision(sync_on_compute=False, backend="faster_coco_eval")
        metric.update(
            [{"boxes": b, "scores": s, "labels": c} for b, s, c in zip(corners, score, label, strict=True)],
            [{"boxes": wanted[i, :n], "labels": targets.labels[i, :n]} for i, n in enumerate(counts)],
        )
        result = metric.compute()
    return {name: result[name].item() for name in ("map", "map_50")}

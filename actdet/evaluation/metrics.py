"""The report's metrics (eq. 16 to 18, tables 1 and 2), and what else tells how far a detector can be trusted.

They are computed from what a network's outputs come to (`Assessment`) and from targets, and none depends on the order
of a clip's annotations. A quotient whose denominator is 0 is None: "n/a" for people (`format_figure`), null in JSON.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from actdet_kernels import Targets
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from actdet.data.classes import NO_ACTION
from actdet.detections import Action
from actdet.evaluation.tube_metrics import TubeMetrics
from actdet.models.family import Assessment, Candidates, Decision

# 95 % of a normal distribution lie within so many standard deviations of its mean.
NORMAL_95 = 1.959963984540054

# What people read of the terms of a loss, where that differs from the term's name.
READABLE_TERMS = {"cls": "class", "l1": "L1", "giou": "GIoU"}

# The number of bins of equal width in which scores are compared with how often they come true.
BINS = 10


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class over the clips; None for a quotient whose denominator is 0.

    A class is predicted for a clip if it is in the clip's set of actions, and true of it if it is annotated there. "No
    action" is predicted for, and true of, the clips whose set is empty.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    """The number of clips of which the class is true."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The clips whose scores lie between two tenths; the upper one belongs to the next bin, except in the last bin."""

    count: int
    """The number of clips."""
    score: float | None
    """Their mean score; None if there are none."""
    accuracy: float | None
    """The share of them that do have the class that the score is of; None if there are none."""


@dataclass(frozen=True)
class Metrics:
    """What `measure` finds over a set of clips; a figure is None if it is a quotient whose denominator is 0."""

    video_accuracy: float | None
    """Share of clips that are right (eq. 16): the surest answer is one of the classes annotated in the clip, or "no
    action" if none is."""
    detection_accuracy: float | None
    """Share of clips that are right and, if there is an action, whose box overlaps an annotated box of that class by
    IoU >= 0.5 (eq. 17)."""
    mean_iou: float | None
    """Mean IoU of the annotated boxes with the candidates that training would match with them (eq. 18; for `detr` the
    queries of the Hungarian matching), whatever the detector decides. It compares with the report's figure, but is
    above 0 even for a detector that finds nothing; `located_iou` is not."""
    clips: int
    """The number of clips."""
    average_precision: float | None
    """AP averaged over IoU 0.50 to 0.95 and over the classes; all candidates count as detections, for `detr`
    all queries."""
    average_precision_50: float | None
    """The same at IoU 0.5."""
    loss: dict[str, float]
    """The total loss and its terms; for `detr` those of eq. 12, cls, l1 and giou. The terms are not weighted; the total
    is the sum of the terms times their weights in `loss_weights`."""
    classes: dict[str, ClassMetrics]
    """Figures of each class, "no action" last."""
    confusion: list[list[int]]
    """Numbers of clips by true class (rows) and decided class (columns), "no action" last. Each clip counts once: its
    true class is the decided one if that is annotated, else the lowest annotated one."""
    located_iou: float | None
    """Mean over the annotated boxes of the IoU with what was found there: an action of the same class from the clip's
    set, each for one box at most. It is 0 for a box for which there is none."""
    video_accuracy_interval: tuple[float, float] | None
    """95 % confidence interval of the video accuracy (Wilson's), as if the clips were drawn at random."""
    detection_accuracy_interval: tuple[float, float] | None
    """95 % confidence interval of the detection accuracy."""
    majority_class: str | None
    """The class, or "no action", that is true of the most clips; the first of several."""
    majority_accuracy: float | None
    """The video accuracy of a detector that always answers `majority_class`."""
    loss_weights: dict[str, float]
    """The weight of each term in the total loss."""
    calibration_error: float | None
    """Expected calibration error: the distance of score and accuracy of a clip's reliability bin, averaged over the
    clips."""
    reliability: list[ReliabilityBin]
    """Ten bins of equal width over the scores from 0 to 1, which show whether a score is the probability it claims."""
    tubes: TubeMetrics | None = None
    """What a detector that follows actors finds in every frame; None for other detectors."""

    def describe(self) -> list[str]:
        """The most important figures as lines for people."""
        video = format_figure(self.video_accuracy) + _format_interval(self.video_accuracy_interval)
        detection = format_figure(self.detection_accuracy) + _format_interval(self.detection_accuracy_interval)
        matched = format_figure(self.mean_iou)
        found = format_figure(self.located_iou)
        precision = format_figure(self.average_precision)
        return [
            f"{self.clips} clips: video accuracy {video}, detection accuracy at IoU 0.5 {detection}",
            f"always answering {self.majority_class}: video accuracy {format_figure(self.majority_accuracy)}",
            f"boxes: mean IoU {matched} for matched candidates, {found} for found actions; AP {precision}",
            f"scores: expected calibration error {format_figure(self.calibration_error)}",
            *(self.tubes.describe() if self.tubes else []),
            f"loss: {self.describe_loss()}",
        ]

    def describe_loss(self) -> str:
        """The loss as the sum of its weighted terms, rounded so that the printed terms add up to the printed sum."""
        terms = {name: round(weight * self.loss[name], 3) for name, weight in self.loss_weights.items()}
        parts = (
            f"{READABLE_TERMS.get(name, name)} {term:.3f} (weight {self.loss_weights[name]:g})"
            for name, term in terms.items()
        )
        return f"{sum(terms.values()):.3f} = {' + '.join(parts)}"


def format_figure(value: float | None, form: str = ".3f") -> str:
    """A figure as text: in the format `form`, or "n/a" if it is None."""
    return "n/a" if value is None else format(value, form)


def _format_interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})"


def measure(assessment: Assessment, class_names: tuple[str, ...], loss_weights: Mapping[str, float]) -> Metrics:
    """All metrics of n clips. Everything is computed on the CPU.

    Args:
        assessment: What a network's outputs for the n clips come to, as its `assess` returns it.
        class_names: The action classes, in the order of their numbers.
        loss_weights: The weight of each term in the total loss, as the settings of the losses give them.
    """
    targets = assessment.targets.to("cpu")
    decision, found, _ = assessment.detections
    names = (*class_names, NO_ACTION)
    no_action = len(class_names)
    clips = len(decision.label)

    annotated = _annotated(targets, no_action)
    right = _holds(annotated, decision.label)
    located = right & ((decision.label == no_action) | (decided_iou(decision, targets) >= 0.5))
    truth = true_labels(targets, no_action, decision.label)
    pairs = truth * len(names) + decision.label

    clips_of_class = annotated.sum(0).tolist()
    majority = max(range(len(names)), key=clips_of_class.__getitem__)
    reliability = reliability_bins(decision.score, _holds(annotated, decision.likeliest))

    predicted = torch.zeros_like(annotated)
    for clip, actions_of_clip in enumerate(found):
        predicted[clip, [action.label for action in actions_of_clip] or [no_action]] = True

    precision = _average_precision(assessment.candidates, targets)
    return Metrics(
        video_accuracy=_quotient(int(right.sum()), clips),
        detection_accuracy=_quotient(int(located.sum()), clips),
        mean_iou=_matched_iou(assessment.candidates.box, targets, assessment.matched),
        clips=clips,
        average_precision=precision["map"],
        average_precision_50=precision["map_50"],
        loss=assessment.losses,
        classes={name: _class_metrics(predicted[:, label], annotated[:, label]) for label, name in enumerate(names)},
        confusion=pairs.bincount(minlength=len(names) ** 2).view(len(names), len(names)).tolist(),
        located_iou=_located_iou(found, targets),
        video_accuracy_interval=wilson_interval(int(right.sum()), clips),
        detection_accuracy_interval=wilson_interval(int(located.sum()), clips),
        majority_class=names[majority] if clips else None,
        majority_accuracy=_quotient(clips_of_class[majority], clips),
        loss_weights=dict(loss_weights),
        calibration_error=calibration_error(reliability),
        reliability=reliability,
    )


def true_labels(targets: Targets, no_action: int, decided: Tensor | None = None) -> Tensor:
    """One true class of each of n clips, (n,) int64; `no_action` for a clip without annotations.

    Of several annotated classes it is the decided one if that is among them, else the lowest.

    Args:
        targets: The annotations of the n clips.
        no_action: The number of action classes, which stands for no action.
        decided: (n,) int64, what was decided. Without it, the lowest class is always taken.
    """
    lowest = torch.where(targets.valid, targets.labels, no_action).amin(1)
    if decided is None:
        return lowest
    return torch.where(_holds(_annotated(targets, no_action), decided), decided, lowest)


def _annotated(targets: Targets, no_action: int) -> Tensor:
    """Which classes are annotated in each clip, (n, no_action + 1) bool; the last is true if no class is."""
    labels = torch.where(targets.valid, targets.labels, no_action)
    annotated = torch.zeros(len(labels), no_action + 1, dtype=torch.bool).scatter_(1, labels, True)

    # Padding rows have set the last column even for clips with annotations.
    annotated[:, no_action] = targets.counts == 0
    return annotated


def _holds(annotated: Tensor, label: Tensor) -> Tensor:
    """Whether `label`, (n,) int64, is among the classes `annotated`, (n, C) bool, in each clip: (n,) bool."""
    return annotated.gather(1, label[:, None])[:, 0]


def _class_metrics(predicted: Tensor, true: Tensor) -> ClassMetrics:
    """Figures of one class, from (n,) bool each: for which clips it is predicted, and of which it is true."""
    hits = int((predicted & true).sum())
    claims = int(predicted.sum())
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
    """The 95 % confidence interval of a share that `hits` of `clips` show (Wilson 1927); None if `clips` is 0."""
    if not clips:
        return None
    share = hits / clips
    spread = NORMAL_95**2 / clips
    center = share + spread / 2
    reach = math.sqrt(spread * share * (1 - share) + spread**2 / 4)

    # Without the limits, rounding could put a share of 0 or 1 outside its interval.
    low = max((center - reach) / (1 + spread), 0.0)
    high = min((center + reach) / (1 + spread), 1.0)
    return low, high


def reliability_bins(score: Tensor, right: Tensor) -> list[ReliabilityBin]:
    """Ten bins of equal width over the scores.

    Args:
        score: (n,), probabilities in [0, 1].
        right: (n,) bool, whether what each score is the probability of came true.
    """
    number_of = (score.double() * BINS).long().clamp(0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside = number_of == number
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
    """The distance of score and accuracy, averaged over the clips of all bins; None if there are no clips."""
    distances = [
        part.count * abs(part.score - part.accuracy)
        for part in bins
        if part.score is not None and part.accuracy is not None
    ]
    return _quotient(math.fsum(distances), sum(part.count for part in bins))


def decided_iou(decision: Decision, targets: Targets) -> Tensor:
    """The best IoU of each decided box with an annotated box of the decided class, (n,); 0 if there is none."""
    decided = box_convert(decision.box, "cxcywh", "xyxy")
    result = torch.zeros(len(decided))
    for clip, count in enumerate(targets.counts.tolist()):
        same = targets.labels[clip, :count] == decision.label[clip]
        if same.any():
            wanted = box_convert(targets.boxes[clip, :count][same], "cxcywh", "xyxy")
            result[clip] = box_iou(decided[clip : clip + 1], wanted).max()
    return result


def _matched_iou(boxes: Tensor, targets: Targets, matched: Tensor) -> float | None:
    """Mean IoU of annotated boxes and the candidates matched to them; see `Metrics.mean_iou`.

    Args:
        boxes: (n, N, 4) cxcywh, of all candidates.
        targets: The annotations of the n clips.
        matched: (n, M), the candidate of each annotation; negative for none.
    """
    pairs = matched >= 0
    if not pairs.any():
        return None
    clip, _ = pairs.nonzero(as_tuple=True)
    predicted = box_convert(boxes[clip, matched[pairs]], "cxcywh", "xyxy")
    wanted = box_convert(targets.boxes[pairs], "cxcywh", "xyxy")
    return box_iou(predicted, wanted).diagonal().mean().item()


def _located_iou(found: Sequence[tuple[Action, ...]], targets: Targets) -> float | None:
    """See `Metrics.located_iou`; actions are assigned to boxes so that the sum of their IoU is largest."""
    # This import takes a while, and prediction does not need it.
    from scipy.optimize import linear_sum_assignment

    total = 0.0
    for clip, count in enumerate(targets.counts.tolist()):
        if not found[clip]:
            continue
        labels = torch.tensor([action.label for action in found[clip]])
        corners = torch.tensor([action.box for action in found[clip]])
        overlap = box_iou(corners, box_convert(targets.boxes[clip, :count], "cxcywh", "xyxy"))
        overlap = torch.where(labels[:, None] == targets.labels[clip, :count], overlap, 0.0)

        # The IoU of two boxes without an area is 0/0, but they do not overlap.
        overlap = overlap.nan_to_num(0.0)
        total += overlap[linear_sum_assignment(overlap, maximize=True)].sum().item()
    return _quotient(total, int(targets.counts.sum()))


def _average_precision(candidates: Candidates, targets: Targets) -> dict[str, float | None]:
    """AP over IoU 0.50 to 0.95 ("map") and at 0.5 ("map_50"), as COCO defines it, of all candidates."""
    # This import takes a second, and brings in transformers if that is installed; prediction needs neither.
    from torchmetrics.detection import MeanAveragePrecision

    counts = targets.counts.tolist()
    if not any(counts):
        return {"map": None, "map_50": None}

    labels, scores, boxes = candidates
    corners = box_convert(boxes, "cxcywh", "xyxy")
    wanted = box_convert(targets.boxes, "cxcywh", "xyxy")
    detections = [
        {"boxes": corners[clip], "scores": scores[clip], "labels": labels[clip]} for clip in range(len(counts))
    ]
    annotations = [
        {"boxes": wanted[clip, :count], "labels": targets.labels[clip, :count]} for clip, count in enumerate(counts)
    ]
    with warnings.catch_warnings():
        # torchmetrics and its backend warn of and report on their own dependencies.
        warnings.simplefilter("ignore")
        logging.getLogger("faster_coco_eval").setLevel(logging.ERROR)

        metric = MeanAveragePrecision(sync_on_compute=False, backend="faster_coco_eval")
        metric.update(detections, annotations)
        result = metric.compute()
    return {name: result[name].item() for name in ("map", "map_50")}

"""Frame-mAP: the average precision of boxes in single frames, at any IoU, and what kind of error costs how much of it.

A detection is right if it is matched with a truth of its class in its frame (`frameAP`). The error split is that of
`frameAP_error` in MOC's `src/ACT.py`, after Kalogeiton et al., ICCV 2017. A detection that is not right is an error of

    localization     the frame has truth of its class (and its box misses it, or a better detection took it)
    classification   the frame has truth of other classes alone, and the box overlaps one of those well enough
    time             the frame has no truth, and the video has truth of its class elsewhere
    other            anything else

The share of each kind among the first i detections is integrated over recall as precision is, and what is never found
is "missed", so that a class's AP and its errors add up to 1 (with the raw curve, whichever curve the AP is of).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actdet.evaluation.arrays import FrameBoxes, TubeletBoxes, class_keys, frame_keys, to_offsets
from actdet.evaluation.average_precision import (
    ClassPrecision,
    Ranking,
    class_precision,
    precision_and_recall,
    raw_area,
)
from actdet.evaluation.boxes import box_iou
from actdet.evaluation.matching import (
    MatchRule,
    Pairs,
    in_chunks,
    is_among,
    join_pairs,
    match,
    pairs_of_equal_keys,
)
from actdet.evaluation.protocols import Frames, Protocol, Suppression
from actdet.evaluation.suppression import soften, suppress

# What became of a detection. RIGHT comes first, and the others are the kinds of errors.
OUTCOMES = ("right", "localization", "classification", "time", "other")
RIGHT, LOCALIZATION, CLASSIFICATION, TIME, OTHER = range(5)

# How many detections are looked at at once, unless a single video has more.
_MOST_BOXES = 2**20


@dataclass(frozen=True)
class ErrorSplit:
    """What each class loses to each kind of error; shares that add up to 1 with the AP by the raw curve.

    Every array is (C,) float64, NaN for a class without truth.
    """

    right: np.ndarray
    """The AP by the raw curve."""
    localization: np.ndarray
    classification: np.ndarray
    time: np.ndarray
    other: np.ndarray
    missed: np.ndarray
    """1 - the recall of all detections together."""

    def means(self) -> dict[str, float | None]:
        """The mean of each part over the classes with truth; None if there are none."""
        return {name: _mean(values) for name, values in vars(self).items()}


class FrameMap:
    """Collects what detections are worth, some videos at a time; only their scores and outcomes are kept.

    Args:
        classes: How many classes there are.
        protocol: By which rules.
        iou: The least IoU of a match.
    """

    def __init__(self, classes: int, protocol: Protocol, iou: float = 0.5) -> None:
        self._protocol = protocol
        self._iou = iou
        self._truths = np.zeros(classes, dtype=np.int64)
        self._ranking: Ranking | None = None
        # Labels, scores, outcomes, and whether the frame has truth, of the detections of some videos each.
        self._parts = [tuple(np.zeros(0, dtype=kind) for kind in (np.int16, np.float32, np.int8, np.bool_))]

    def add(self, truth: FrameBoxes, detections: FrameBoxes) -> None:
        """Add some videos.

        Args:
            truth: All truth of these videos.
            detections: All detections in these videos.
        """
        self._ranking = None
        self._truths = self._truths + np.bincount(truth.labels, minlength=len(self._truths))
        if not len(detections):
            return

        outcomes = frame_outcomes(
            truth, detections, iou=self._iou, rule=self._protocol.rule, inclusive=self._protocol.inclusive
        )
        annotated = is_among(frame_keys(detections.videos, detections.frames), frame_keys(truth.videos, truth.frames))
        self._parts.append((detections.labels.astype(np.int16), detections.scores, outcomes, annotated))

    def precision(self, frames: Frames) -> ClassPrecision:
        """Compute the average precision of each class.

        Args:
            frames: Whether detections count in all frames, or only in those with truth of any class.
        """
        ranking, outcomes = self._collect(frames)
        return class_precision(ranking, outcomes == RIGHT, self._truths, self._protocol.curve)

    def errors(self, frames: Frames) -> ErrorSplit:
        """Compute what each class loses to each kind of error; `frames` as in `precision`."""
        return split_errors(*self._collect(frames), self._truths)

    def _collect(self, frames: Frames) -> tuple[Ranking, np.ndarray]:
        """The ranking of the detections in such frames, and the outcomes of all detections."""
        if self._ranking is None:
            # What is joined and ranked once need not be joined and ranked again.
            self._parts = [tuple(np.concatenate(column) for column in zip(*self._parts, strict=True))]
            labels, scores, _, _ = self._parts[0]
            self._ranking = Ranking.of(labels, scores, len(self._truths))

        _, _, outcomes, annotated = self._parts[0]
        if frames == "all":
            return self._ranking, outcomes
        return self._ranking.within(annotated), outcomes


def pool_tubelets(tubelets: TubeletBoxes, suppression: Suppression | None, *, inclusive: bool = True) -> FrameBoxes:
    """Collect the boxes that all tubelets have in each frame, and suppress those of a class that overlap.

    Args:
        tubelets: All tubelets of some videos.
        suppression: How; None: every box stays.
        inclusive: See `box_iou`.
    """
    pooled = tubelets.as_frames()
    if suppression is None:
        return pooled

    def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return box_iou(pooled.boxes[first], pooled.boxes[second], inclusive=inclusive)

    groups = class_keys(frame_keys(pooled.videos, pooled.frames), pooled.labels)
    keep, overlaps = suppress(groups, pooled.scores, overlap, suppression.threshold)
    if not suppression.soft:
        return pooled.take(keep)
    scores = soften(pooled.scores, overlaps)
    return FrameBoxes(pooled.videos, pooled.frames, pooled.labels, pooled.boxes, scores)


def frame_outcomes(
    truth: FrameBoxes, detections: FrameBoxes, *, iou: float, rule: MatchRule, inclusive: bool
) -> np.ndarray:
    """Find out what becomes of each detection.

    Args:
        truth: All truth of some videos.
        detections: All detections in them.
        iou: The least IoU of a match.
        rule: What a detection may take when its best truth is taken.
        inclusive: See `box_iou`.

    Returns:
        (n,) int8, numbers of `OUTCOMES`.
    """
    order = np.argsort(detections.videos, kind="stable")
    videos, counts = np.unique(detections.videos, return_counts=True)
    offsets = to_offsets(counts)

    outcomes = np.empty(len(detections), dtype=np.int8)
    for chunk in in_chunks(counts, _MOST_BOXES):
        rows = order[offsets[chunk.start] : offsets[chunk.stop]]
        within = (truth.videos >= videos[chunk.start]) & (truth.videos <= videos[chunk.stop - 1])
        outcomes[rows] = _outcomes(truth.take(within), detections.take(rows), iou, rule, inclusive)
    return outcomes


def _outcomes(truth: FrameBoxes, detections: FrameBoxes, iou: float, rule: MatchRule, inclusive: bool) -> np.ndarray:
    """As `frame_outcomes`, for as many videos as fit into memory."""
    truth_frames = frame_keys(truth.videos, truth.frames)
    frames = frame_keys(detections.videos, detections.frames)
    truth_groups = class_keys(truth_frames, truth.labels)
    groups = class_keys(frames, detections.labels)

    pairs = _good_pairs(truth, detections, truth_groups, groups, iou, inclusive)
    right, _ = match(pairs, detections.scores, rule)

    in_frame = is_among(frames, truth_frames)
    own_in_frame = is_among(groups, truth_groups)
    own_in_video = is_among(class_keys(detections.videos, detections.labels), class_keys(truth.videos, truth.labels))
    outcomes = np.full(len(detections), OTHER, dtype=np.int8)
    outcomes[own_in_video & ~in_frame] = TIME
    outcomes[own_in_frame] = LOCALIZATION
    outcomes[right] = RIGHT

    # Where the class has no truth in the frame, any pair with truth is one with another class.
    misplaced = np.flatnonzero(in_frame & ~own_in_frame)
    confused = _good_pairs(truth, detections.take(misplaced), truth_frames, frames[misplaced], iou, inclusive)
    outcomes[misplaced[confused.left]] = CLASSIFICATION
    return outcomes


def _good_pairs(
    truth: FrameBoxes,
    detections: FrameBoxes,
    truth_keys: np.ndarray,
    keys: np.ndarray,
    iou: float,
    inclusive: bool,
) -> Pairs:
    """The pairs of a detection with a truth of an equal key whose IoU is good enough."""
    parts = []
    for left, right in pairs_of_equal_keys(keys, truth_keys):
        values = box_iou(detections.boxes[left], truth.boxes[right], inclusive=inclusive)
        parts.append(Pairs(left, right, values).take(values >= iou))
    return join_pairs(parts)


def split_errors(ranking: Ranking, outcomes: np.ndarray, truths: np.ndarray) -> ErrorSplit:
    """Integrate the share of each outcome over recall.

    Args:
        ranking: Of n detections, or of some of them.
        outcomes: (n,) int8, numbers of `OUTCOMES`.
        truths: (C,) int64, how many truths each class has.
    """
    areas = np.full((len(OUTCOMES), len(truths)), np.nan)
    missed = np.full(len(truths), np.nan)
    for label in np.flatnonzero(truths).tolist():
        of_class = outcomes[ranking.of_class(label)]
        _, recall = precision_and_recall(of_class == RIGHT, truths[label])
        missed[label] = 1.0 - (recall[-1] if len(recall) else 0.0)

        for outcome in range(len(OUTCOMES)):
            share, _ = precision_and_recall(of_class == outcome, truths[label])
            areas[outcome, label] = raw_area(share, recall, start=1.0 if outcome == RIGHT else 0.0)
    return ErrorSplit(*areas, missed=missed)


def _mean(values: np.ndarray) -> float | None:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else None

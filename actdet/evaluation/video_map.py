"""Video-mAP: the average precision of tubes at several thresholds of the tube IoU, and what errors cost.

A tube is right if it is matched with a true tube of its class in its video (`videoAP`): by falling score, each takes
the best of those that are still free. The error split is ours, by the model of the one for frames (`frame_map.py`). A
tube that is not right is an error of

    localization     it has frames in common with truth of its class, and lies elsewhere (or a better tube took that)
    classification   it has no such frames, and overlaps truth of another class well enough
    time             truth of its class is where it is, but begins or ends at other times, or is in other frames
    other            anything else
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actdet.evaluation.arrays import TubeBoxes, class_keys
from actdet.evaluation.average_precision import ClassPrecision, Ranking, class_precision
from actdet.evaluation.frame_map import (
    CLASSIFICATION,
    LOCALIZATION,
    OTHER,
    RIGHT,
    TIME,
    ErrorSplit,
    split_errors,
)
from actdet.evaluation.matching import Pairs, is_among, match, pairs_of_equal_keys
from actdet.evaluation.protocols import Protocol
from actdet.evaluation.tubes import TubeOverlap, overlap_tubes


class VideoMap:
    """Compares tubes with truth once, and answers for every threshold.

    Args:
        truth: Every true tube.
        tubes: The tubes of a detector, after their suppression.
        classes: How many classes there are.
        protocol: By which rules.
    """

    def __init__(self, truth: TubeBoxes, tubes: TubeBoxes, classes: int, protocol: Protocol) -> None:
        self._truths = np.bincount(truth.labels, minlength=classes)
        self._truth = truth
        self._tubes = tubes
        self._protocol = protocol

        keys = class_keys(tubes.videos, tubes.labels)
        truth_keys = class_keys(truth.videos, truth.labels)
        self._pairs, self._overlap = self._compare(keys, truth_keys)
        self._own_in_video = is_among(keys, truth_keys)
        self._ranking = Ranking.of(tubes.labels, tubes.scores, classes)

    def precision(self, threshold: float) -> ClassPrecision:
        """Compute the average precision of each class; a match needs a tube IoU of at least `threshold`."""
        return class_precision(self._ranking, self._right(threshold), self._truths, self._protocol.curve)

    def mean_precision(self, thresholds: Sequence[float]) -> ClassPrecision:
        """Compute the mean over several thresholds of each class's average precision, such as 0.5:0.95."""
        results = [self.precision(threshold) for threshold in thresholds]
        mean = np.mean([result.ap for result in results], axis=0)
        return ClassPrecision(mean, results[0].truths, results[0].detections)

    def errors(self, threshold: float) -> ErrorSplit:
        """Compute what each class loses to each kind of error at a threshold."""
        return split_errors(self._ranking, self.outcomes(threshold), self._truths)

    def outcomes(self, threshold: float) -> np.ndarray:
        """(n,) int8: what becomes of each tube at a threshold, as a number of `frame_map.OUTCOMES`."""
        left = self._pairs.left
        shares_frames = self._any(left[self._overlap.common > 0])
        overlaps = self._any(left[self._overlap.tube_iou >= threshold])
        in_place = self._any(left[self._overlap.spatial >= threshold])

        outcomes = np.full(len(self._tubes), OTHER, dtype=np.int8)
        outcomes[self._own_in_video] = TIME
        outcomes[self._confused(~shares_frames, threshold)] = CLASSIFICATION
        outcomes[shares_frames] = LOCALIZATION
        outcomes[in_place & ~overlaps] = TIME
        outcomes[self._right(threshold)] = RIGHT
        return outcomes

    def _right(self, threshold: float) -> np.ndarray:
        good = self._pairs.take(self._pairs.values >= threshold)
        rows, _ = match(good, self._tubes.scores, "best unmatched")
        return self._any(rows)

    def _confused(self, candidates: np.ndarray, threshold: float) -> np.ndarray:
        """Which tubes of the mask `candidates` overlap truth of another class in their video."""
        rows = np.flatnonzero(candidates)
        pairs, _ = self._compare(self._tubes.videos[rows], self._truth.videos, rows)
        left = pairs.left[pairs.values >= threshold]
        other = self._tubes.labels[left] != self._truth.labels[pairs.right[pairs.values >= threshold]]
        return self._any(left[other])

    def _compare(
        self, keys: np.ndarray, truth_keys: np.ndarray, rows: np.ndarray | None = None
    ) -> tuple[Pairs, TubeOverlap]:
        """Compare tubes with the truth of equal keys; `rows`: which tubes the keys are of, if not of all."""
        found = list(pairs_of_equal_keys(keys, truth_keys, most=len(keys) * max(len(truth_keys), 1) + 1))
        none = np.zeros(0, dtype=np.int64)
        left = np.concatenate([none, *(part[0] for part in found)])
        right = np.concatenate([none, *(part[1] for part in found)])
        if rows is not None:
            left = rows[left]

        overlap = overlap_tubes(
            self._tubes,
            self._truth,
            left,
            right,
            inclusive=self._protocol.inclusive,
            least_common=self._protocol.least_common,
        )
        return Pairs(left, right, overlap.tube_iou), overlap

    def _any(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool, true for `rows`, which may repeat."""
        mask = np.zeros(len(self._tubes), dtype=bool)
        mask[rows] = True
        return mask

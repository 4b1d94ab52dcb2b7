"""Average precision (AP): the area under the curve of precision over recall of a ranked list of detections.

Two areas are in use, and they differ:

    raw        ACT's scripts (`pr_to_ap`): the curve begins at precision 1, recall 0; straight lines between its points
                   AP = sum_i (r_i - r_(i-1)) * (p_i + p_(i-1)) / 2
    envelope   VOC since 2010, AVA, YOWO: each precision is raised to the best one at an equal or higher recall
                   AP = sum_i (r_i - r_(i-1)) * max(p_i, p_(i+1), ...)

Neither interpolates beyond the last point: recall that is never reached counts 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actdet.evaluation.arrays import to_offsets

Curve = Literal["raw", "envelope"]


@dataclass(frozen=True)
class ClassPrecision:
    """The average precision of each class."""

    ap: np.ndarray
    """(C,) float64 in [0, 1]; NaN for a class that is not counted because it has no truth."""
    truths: np.ndarray
    """(C,) int64, how many truths each class has."""
    detections: np.ndarray
    """(C,) int64, how many detections of each class were ranked."""

    @property
    def mean(self) -> float | None:
        """Mean average precision (mAP): the plain mean over the classes that count; None if none does."""
        counted = self.ap[~np.isnan(self.ap)]
        return float(counted.mean()) if len(counted) else None


def precision_and_recall(correct: np.ndarray, truths: int) -> tuple[np.ndarray, np.ndarray]:
    """Follow a ranked list.

    Args:
        correct: (n,) bool, which detections are right, from the highest score to the lowest.
        truths: How many there are to be found, at least 1.

    Returns:
        precision: (n,) float64, the share that is right of the first i.
        recall: (n,) float64, the share that is found by the first i.
    """
    found = np.cumsum(correct, dtype=np.int64)
    return found / np.arange(1, len(correct) + 1), found / truths


def raw_area(precision: np.ndarray, recall: np.ndarray, start: float = 1.0) -> float:
    """The area under the curve as it is, by trapezoids.

    Args:
        precision: (n,) float64, or another share of the first i detections, such as that of a kind of error.
        recall: (n,) float64.
        start: The value at recall 0.
    """
    heights = np.concatenate([[start], precision])
    widths = np.diff(recall, prepend=0.0)
    return float(np.sum(widths * (heights[1:] + heights[:-1])) * 0.5)


def envelope_area(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area under the curve's envelope, by rectangles."""
    best_to_come = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best_to_come))


_AREAS: dict[Curve, Callable[[np.ndarray, np.ndarray], float]] = {"raw": raw_area, "envelope": envelope_area}


@dataclass(frozen=True)
class Ranking:
    """The detections of each class by falling score. Among equal scores the earlier row comes first."""

    rows: np.ndarray
    """(n,) int64, the rows of class 0, then those of class 1, and so on."""
    offsets: np.ndarray
    """(C + 1,) int64, where each class begins in `rows`, and where the last one ends."""

    @classmethod
    def of(cls, labels: np.ndarray, scores: np.ndarray, classes: int) -> Ranking:
        """Rank detections.

        Args:
            labels: (n,) int, the class of each detection.
            scores: (n,) float.
            classes: C, how many classes there are.
        """
        parts = [np.zeros(0, dtype=np.int64)]
        for label in range(classes):
            rows = np.flatnonzero(labels == label)
            parts.append(rows[np.argsort(-scores[rows], kind="stable")])
        return cls(np.concatenate(parts), to_offsets(np.bincount(labels, minlength=classes)))

    def of_class(self, label: int) -> np.ndarray:
        """The rows of one class."""
        return self.rows[self.offsets[label] : self.offsets[label + 1]]

    def within(self, mask: np.ndarray) -> Ranking:
        """Leave out the rows that a mask, (n,) bool, does not have; those that are left keep their numbers."""
        chosen = mask[self.rows]
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(chosen)])
        return Ranking(self.rows[chosen], before[self.offsets])


def class_precision(ranking: Ranking, correct: np.ndarray, truths: np.ndarray, curve: Curve) -> ClassPrecision:
    """Compute the average precision of each class.

    Args:
        ranking: Of n detections, or of some of them.
        correct: (n,) bool, which detections were matched with a truth.
        truths: (C,) int64, how many truths each class has.
        curve: Which area is taken.
    """
    ap = np.full(len(truths), np.nan)
    for label in np.flatnonzero(truths).tolist():
        points = precision_and_recall(correct[ranking.of_class(label)], truths[label])
        ap[label] = _AREAS[curve](*points)
    return ClassPrecision(ap, truths, np.diff(ranking.offsets))

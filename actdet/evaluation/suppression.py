"""Non-maximum suppression (NMS) of boxes, tubelets and tubes, in all frames or videos at once.

Within each group, the one of the highest score suppresses those that overlap it by more than a threshold; the next one
of those that are left does the same, and so on. Soft suppression, as MOC does it, keeps the suppressed ones with the
score times (1 - overlap), and they suppress nothing. One round here is one step of this in every group.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# overlap(first, second) compares rows pair by pair.
Overlap = Callable[[np.ndarray, np.ndarray], np.ndarray]

# How many pairs are compared at once.
_MOST_PAIRS = 2**18


def suppress(
    groups: np.ndarray, scores: np.ndarray, overlap: Overlap, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find out who suppresses whom.

    Args:
        groups: (n,) int64; only rows of one group suppress each other.
        scores: (n,) float. Among equal scores the earlier row comes first.
        overlap: How much rows overlap; called with two arrays of row numbers, of one length.
        threshold: Who overlaps by more than this is suppressed.

    Returns:
        keep: (n,) bool, who is not suppressed.
        overlaps: (n,) float64, by how much each row overlaps the one that suppressed it; 0 for those kept.
    """
    keep = np.ones(len(groups), dtype=bool)
    overlaps = np.zeros(len(groups))

    left = _of_several(groups)
    left = left[np.lexsort((-scores[left], groups[left]))]
    while len(left):
        begins = np.ones(len(left), dtype=bool)
        begins[1:] = groups[left[1:]] != groups[left[:-1]]
        leaders = left[begins]

        others = left[~begins]
        leader = leaders[np.cumsum(begins) - 1][~begins]
        values = _in_pieces(overlap, leader, others)
        hit = values > threshold
        keep[others[hit]] = False
        overlaps[others[hit]] = values[hit]
        left = others[~hit]
    return keep, overlaps


def _of_several(groups: np.ndarray) -> np.ndarray:
    """The rows of groups that have more than one row."""
    order = np.argsort(groups, kind="stable")
    same = groups[order[1:]] == groups[order[:-1]]
    several = np.zeros(len(groups), dtype=bool)
    several[:-1] |= same
    several[1:] |= same
    return order[several]


def soften(scores: np.ndarray, overlaps: np.ndarray) -> np.ndarray:
    """Lower the scores of those suppressed, as MOC does: score * (1 - overlap).

    MOC takes for the overlap of tubelets the *sum* of the IoUs of their K boxes, so that the weight can be negative.

    Args:
        scores: (n,) float.
        overlaps: (n,) float64, what `suppress` returns.

    Returns:
        (n,) of the dtype of `scores`.
    """
    return (scores * (1.0 - overlaps)).astype(scores.dtype)


def _in_pieces(overlap: Overlap, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    pieces = range(0, len(first), _MOST_PAIRS)
    values = [overlap(first[i : i + _MOST_PAIRS], second[i : i + _MOST_PAIRS]) for i in pieces]
    return np.concatenate([np.zeros(0), *values])

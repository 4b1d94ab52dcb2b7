"""Greedy matching of detections with truth, for all videos at once.

The scripts of the field walk over detections by falling score and match one at a time:

    best unmatched (ACT's scripts)   a detection takes the best truth that is still free, if that is good enough
    best only (AVA, VOC, YOWO)       a detection takes its best truth if that is free and good enough, else nothing

Here that walk is replaced by rounds. In each round, every detection that nobody before it can rob of its best free
truth takes it. That gives the result of the walk, and no group needs more rounds than it has truths. Linking uses the
same rule: open tubes take candidates in place of detections that take truths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actdet.evaluation.arrays import spans, to_offsets

MatchRule = Literal["best unmatched", "best only"]

# How many pairs are compared at once. More would need more memory and would not be faster.
_MOST_PAIRS = 2**18


@dataclass(frozen=True)
class Pairs:
    """Pairs of a row on the left (a detection) with a row on the right (a truth)."""

    left: np.ndarray
    """(p,) int64."""
    right: np.ndarray
    """(p,) int64."""
    values: np.ndarray
    """(p,) float64, how good each pair is."""

    def take(self, rows: np.ndarray) -> Pairs:
        """Select pairs, by index or by mask."""
        return Pairs(self.left[rows], self.right[rows], self.values[rows])


def pairs_of_equal_keys(
    left: np.ndarray, right: np.ndarray, most: int = _MOST_PAIRS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """List the pairs of rows that belong together.

    Args:
        left: (n,) int64 keys, not negative.
        right: (m,) int64 keys, not negative.
        most: How many pairs come at once, unless a single row of `left` has more.

    Yields:
        Indices into `left` and into `right` with equal keys: all pairs of a row of `left` are together, and in the
        order of the rows of `right`.
    """
    order = np.argsort(right, kind="stable")
    begins, counts = _find_keys(left, right[order])

    rows = np.flatnonzero(counts)
    begins = begins[rows]
    counts = counts[rows]
    for chunk in in_chunks(counts, most):
        yield np.repeat(rows[chunk], counts[chunk]), order[spans(begins[chunk], counts[chunk])]


def _find_keys(keys: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each of `keys` begins among those in order, and how often it is there."""
    largest = int(max(keys.max(initial=0), ordered.max(initial=0)))
    if largest < 8 * (len(keys) + len(ordered)):
        # Small keys are looked up in a table, which is quicker than a search.
        table = np.bincount(ordered, minlength=largest + 1)
        return to_offsets(table)[keys], table[keys]

    begins = np.searchsorted(ordered, keys, side="left")
    return begins, np.searchsorted(ordered, keys, side="right") - begins


def is_among(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) bool, which of `keys` are among `wanted`."""
    ordered = np.unique(wanted)
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return ordered[places] == keys


def join_pairs(parts: list[Pairs]) -> Pairs:
    """Append lists of pairs to each other."""
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Pairs(none, none, np.zeros(0))
    return Pairs(
        np.concatenate([part.left for part in parts]),
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def match(pairs: Pairs, scores: np.ndarray, rule: MatchRule) -> tuple[np.ndarray, np.ndarray]:
    """Match each left row with at most one right row, and each right row with at most one left row.

    Args:
        pairs: All pairs that are good enough to be matched. Among a left row's pairs of equal value, the one with the
            lower right row is preferred.
        scores: (n,) float, of each left row; the highest score chooses first. Among equal scores the lower row does.
        rule: What a left row may take when its best right row is taken.

    Returns:
        The left rows that are matched, and the right row of each.
    """
    order = np.lexsort((pairs.right, -pairs.values, pairs.left, -scores[pairs.left]))
    left = pairs.left[order]
    right = pairs.right[order]
    if rule == "best only":
        return _match_best(left, right)

    taken_left = []
    taken_right = []
    while len(left):
        # The pairs are sorted by the left row's turn, then from its best pair to its worst.
        best = _firsts(left)
        first_wanted = _first_of_each(right)
        # A left row takes its best right row if no left row before it has any pair with that right row.
        sure = best[left[first_wanted[right[best]]] == left[best]]
        taken_left.append(left[sure])
        taken_right.append(right[sure])

        free = ~(_is_in(left, left[sure]) | _is_in(right, right[sure]))
        left = left[free]
        right = right[free]
    return _join(taken_left), _join(taken_right)


def _match_best(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    best = _firsts(left)
    _, winners = np.unique(right[best], return_index=True)
    sure = best[winners]
    return left[sure], right[sure]


def _firsts(groups: np.ndarray) -> np.ndarray:
    """Where each group begins, if the rows of a group are neighbors."""
    begins = np.ones(len(groups), dtype=bool)
    begins[1:] = groups[1:] != groups[:-1]
    return np.flatnonzero(begins)


def _first_of_each(values: np.ndarray) -> np.ndarray:
    """The index at which each value appears first, as a table by value."""
    table = np.zeros(int(values.max()) + 1, dtype=np.int64)
    # If an index is assigned to several times the last assignment remains, so that the first row is assigned last.
    table[values[::-1]] = np.arange(len(values) - 1, -1, -1)
    return table


def _is_in(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of `values` are among `wanted`; neither is negative."""
    table = np.zeros(int(values.max()) + 1, dtype=bool)
    table[wanted] = True
    return table[values]


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def in_chunks(counts: np.ndarray, most: int = _MOST_PAIRS) -> Iterator[slice]:
    """Cut rows into pieces so that the counts of a piece add up to at most `most`, unless it is a single row."""
    offsets = to_offsets(counts)
    done = 0
    while done < len(counts):
        until = int(np.searchsorted(offsets, offsets[done] + most, side="right")) - 1
        until = max(until, done + 1)
        yield slice(done, until)
        done = until

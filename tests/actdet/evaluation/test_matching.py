"""Greedy matching in rounds gives what the walk by falling score gives."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.evaluation.matching import (
    Pairs,
    in_chunks,
    is_among,
    match,
    pairs_of_equal_keys,
)


def walk(values: np.ndarray, scores: np.ndarray, threshold: float, rule: str) -> dict[int, int]:
    """One left row after another, over a full matrix."""
    free = np.ones(values.shape[1], dtype=bool)
    result = {}
    for row in np.argsort(-scores, kind="stable").tolist():
        open_to_it = np.where(free, values[row], -1.0) if rule == "best unmatched" else values[row]
        if not len(open_to_it):
            continue
        best = int(np.argmax(open_to_it))
        if open_to_it[best] >= threshold and free[best]:
            free[best] = False
            result[row] = best
    return result


@pytest.mark.parametrize("rule", ["best unmatched", "best only"])
@pytest.mark.parametrize("seed", range(40))
def test_equals_the_walk(seed: int, rule: str) -> None:
    """Values come from few numbers, so that many are equal or lie on the threshold."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, (rng.integers(0, 30), rng.integers(0, 9))) / 5
    scores = rng.integers(0, 4, len(values)) / 4
    left, right = np.nonzero(values >= 0.6)
    order = rng.permutation(len(left))
    pairs = Pairs(left[order], right[order], values[left, right][order])

    rows, columns = match(pairs, scores, rule)  # type: ignore[arg-type]
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == walk(values, scores, 0.6, rule)


def test_only_the_first_rule_has_a_second_choice() -> None:
    """Both detections overlap truth 0 best; truth 1 is good enough for the second one."""
    pairs = Pairs(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([0.9, 0.8, 0.6]))
    scores = np.array([0.9, 0.8])
    assert sorted(match(pairs, scores, "best unmatched")[0].tolist()) == [0, 1]
    assert match(pairs, scores, "best only")[0].tolist() == [0]


def test_a_chain_of_robbery_is_resolved_in_order() -> None:
    """Each detection's best truth is taken by the one before it."""
    count = 6
    left = np.repeat(np.arange(count), 2)
    right = np.stack([np.maximum(np.arange(count) - 1, 0), np.arange(count)], axis=1).reshape(-1)
    values = np.tile([0.9, 0.8], count)
    rows, columns = match(Pairs(left, right, values), -np.arange(count), "best unmatched")
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {i: i for i in range(count)}


@pytest.mark.parametrize("unit", [1, 10**15])
@pytest.mark.parametrize("most", [1, 3, 1000])
def test_pairs_of_equal_keys(most: int, unit: int) -> None:
    """Small keys are looked up, large ones are searched."""
    rng = np.random.default_rng(0)
    left = rng.integers(0, 8, 30) * unit
    right = rng.integers(2, 11, 20) * unit
    chunks = list(pairs_of_equal_keys(left, right, most))
    expected = [(i, j) for i in range(30) for j in range(20) if left[i] == right[j]]
    assert [pair for a, b in chunks for pair in zip(a.tolist(), b.tolist(), strict=True)] == expected
    for rows, _ in chunks:
        assert len(rows) <= most or len(set(rows.tolist())) == 1


@pytest.mark.parametrize(("left", "right"), [([], []), ([1], []), ([], [1]), ([1], [2])])
def test_no_pairs(left: list[int], right: list[int]) -> None:
    assert list(pairs_of_equal_keys(np.array(left, dtype=np.int64), np.array(right, dtype=np.int64))) == []


def test_is_among() -> None:
    keys = np.array([5, 1, 9, 5, -3])
    assert is_among(keys, np.array([5, 5, 2])).tolist() == [True, False, False, True, False]
    assert not is_among(keys, np.zeros(0, dtype=np.int64)).any()


@pytest.mark.parametrize("most", [1, 4, 100])
def test_chunks_cover_all_rows_once(most: int) -> None:
    counts = np.array([0, 3, 5, 0, 0, 1, 2, 9, 0])
    chunks = list(in_chunks(counts, most))
    assert [i for chunk in chunks for i in range(chunk.start, chunk.stop)] == list(range(len(counts)))
    for chunk in chunks:
        assert counts[chunk].sum() <= most or chunk.stop - chunk.start == 1

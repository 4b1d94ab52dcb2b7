"""Top-k accuracy: values computed on paper, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.errors import ActdetError
from actdet.evaluation.classification import top_k_accuracy

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]])
LABELS = np.array([1, 2, 1, 1])


@pytest.mark.parametrize(("k", "expected"), [(1, 1 / 4), (2, 3 / 4), (3, 1.0), (5, 1.0)])
def test_known_values(k: int, expected: float) -> None:
    """In the last clip both classes have 0.4, and the first of them counts as the better one."""
    assert top_k_accuracy(SCORES, LABELS, k) == expected


@pytest.mark.parametrize("k", [1, 5])
def test_equals_a_loop(k: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, (200, 12))
    labels = rng.integers(0, 12, 200)
    hits = [
        label in sorted(range(12), key=lambda c, row=row: -row[c])[:k]
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
    assert top_k_accuracy(scores, labels, k) == sum(hits) / 200


def test_no_clips() -> None:
    assert top_k_accuracy(np.zeros((0, 3)), np.zeros(0, dtype=int), 1) is None


@pytest.mark.parametrize(
    ("scores", "labels", "k", "problem"),
    [
        (np.array([[np.nan, 1.0]]), [0], 1, "NaN"),
        (np.ones((2, 3)), [0], 1, "do not fit"),
        (np.ones((1, 3)), [3], 1, r"\[0, 3\)"),
        (np.ones((1, 3)), [-1], 1, r"\[0, 3\)"),
        (np.ones((1, 3)), [0], 0, "at least 1"),
    ],
)
def test_what_is_refused(scores: np.ndarray, labels: list[int], k: int, problem: str) -> None:
    with pytest.raises(ActdetError, match=problem):
        top_k_accuracy(scores, np.array(labels), k)

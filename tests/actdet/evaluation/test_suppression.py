"""Non-maximum suppression in rounds gives what the loop gives."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.evaluation.boxes import box_iou
from actdet.evaluation.suppression import soften, suppress
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.scenes import random_box


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_equals_the_loop(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    boxes = [random_box(rng, coarse=True) for _ in range(60)]
    table = np.array(boxes)
    scores = rng.integers(0, 6, 60) / 6
    groups = rng.integers(0, 3, 60)

    def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return box_iou(table[first], table[second], inclusive=True)

    keep, overlaps = suppress(groups, scores, overlap, threshold)
    for group in range(3):
        members = np.flatnonzero(groups == group).tolist()
        hit = loops.suppress(
            [float(scores[i]) for i in members],
            lambda a, b, m=members: loops.box_iou(boxes[m[a]], boxes[m[b]], inclusive=True),
            threshold,
        )
        assert [bool(keep[i]) for i in members] == [value is None for value in hit]
        assert [overlaps[i] for i in members] == [value or 0.0 for value in hit]


def test_who_is_suppressed_suppresses_nobody() -> None:
    """A chain: the middle one overlaps both ends, which do not overlap each other."""
    near = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=float)
    keep, _ = suppress(np.zeros(3, dtype=int), np.array([3.0, 2.0, 1.0]), lambda a, b: near[a, b], 0.5)
    assert keep.tolist() == [True, False, True]


def test_soft_suppression_keeps_the_dtype() -> None:
    scores = np.array([0.5, 0.4], dtype=np.float32)
    softened = soften(scores, np.array([0.0, 0.75]))
    assert softened.dtype == np.float32
    np.testing.assert_allclose(softened, [0.5, 0.1], rtol=1e-6)


def test_a_summed_overlap_makes_a_score_negative() -> None:
    """As in MOC, where three boxes of IoU 0.9 weigh 1 - 2.7."""
    assert soften(np.array([0.5]), np.array([2.7]))[0] == pytest.approx(-0.85)


def test_nothing_to_suppress() -> None:
    keep, overlaps = suppress(np.zeros(0, dtype=int), np.zeros(0), lambda a, b: np.zeros(len(a)), 0.5)
    assert len(keep) == len(overlaps) == 0

"""IoU of boxes: values computed on paper, and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.evaluation.boxes import box_iou
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.scenes import random_box


@pytest.mark.parametrize(
    ("first", "second", "inclusive", "expected"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), True, 1.0),
        # 10 x 10 pixels, of which 5 x 10 are common.
        ((0, 0, 9, 9), (5, 0, 14, 9), True, 50 / 150),
        ((0, 0, 10, 10), (5, 0, 15, 10), False, 50 / 150),
        # A pixel that touches is common if x2 lies inside the box, and an edge of no width if not.
        ((0, 0, 9, 9), (9, 0, 18, 9), True, 10 / 190),
        ((0, 0, 9, 9), (9, 0, 18, 9), False, 0.0),
        ((0, 0, 9, 9), (20, 20, 30, 30), True, 0.0),
        # One pixel, or nothing.
        ((3, 3, 3, 3), (3, 3, 3, 3), True, 1.0),
        ((3, 3, 3, 3), (3, 3, 3, 3), False, 0.0),
        # x2 < x1: no area.
        ((9, 0, 0, 9), (0, 0, 9, 9), False, 0.0),
        ((9, 0, 0, 9), (9, 0, 0, 9), True, 0.0),
    ],
)
def test_known_values(first: tuple[float, ...], second: tuple[float, ...], inclusive: bool, expected: float) -> None:
    assert box_iou(np.array(first), np.array(second), inclusive=inclusive) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("inclusive", [True, False])
def test_equals_the_loop(inclusive: bool) -> None:
    rng = np.random.default_rng(0)
    boxes = [random_box(rng, coarse=True) for _ in range(60)]
    table = np.array(boxes)
    expected = [[loops.box_iou(a, b, inclusive) for b in boxes] for a in boxes]
    np.testing.assert_array_equal(box_iou(table[:, None], table, inclusive=inclusive), expected)


def test_single_precision_is_not_rounded_further() -> None:
    first = np.array([[0.1, 0.2, 1e6, 1e6]], dtype=np.float32)
    second = np.array([[0.3, 0.2, 1e6, 1e6]], dtype=np.float32)
    exact = loops.box_iou(tuple(map(float, first[0])), tuple(map(float, second[0])), inclusive=True)  # type: ignore[arg-type]
    assert box_iou(first, second, inclusive=True)[0] == exact

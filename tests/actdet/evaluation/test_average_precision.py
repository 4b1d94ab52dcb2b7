"""Average precision: small lists worked out on paper, and plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.evaluation.average_precision import (
    Ranking,
    class_precision,
    envelope_area,
    precision_and_recall,
    raw_area,
)
from tests.actdet.evaluation import loops


@pytest.mark.parametrize(
    ("hits", "truths", "raw", "envelope"),
    [
        ([True], 1, 1.0, 1.0),
        ([False], 1, 0.0, 0.0),
        ([], 2, 0.0, 0.0),
        # Found second: the line from (recall 0, precision 0) to (1, 1/2) has 1/4 below it.
        ([False, True], 1, 0.25, 0.5),
        # Precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1.
        ([True, False, True], 2, 0.5 + 0.5 * (1 / 2 + 2 / 3) / 2, 0.5 + 0.5 * 2 / 3),
        # Half is never found.
        ([True, True], 4, 0.5, 0.5),
        # The envelope lifts 1/2 at recall 1/3 to the 3/4 that comes later.
        ([False, True, True, True], 3, (0.25 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3, 0.75),
    ],
)
def test_known_values(hits: list[bool], truths: int, raw: float, envelope: float) -> None:
    points = precision_and_recall(np.array(hits, dtype=bool), truths)
    assert raw_area(*points) == pytest.approx(raw, abs=1e-15)
    assert envelope_area(*points) == pytest.approx(envelope, abs=1e-15)


@pytest.mark.parametrize("seed", range(10))
def test_equals_the_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hits = rng.random(rng.integers(1, 80)) < 0.4
    truths = int(hits.sum()) + int(rng.integers(1, 9))
    points = precision_and_recall(hits, truths)
    assert raw_area(*points) == pytest.approx(loops.raw_ap(hits.tolist(), truths), abs=1e-12)
    assert envelope_area(*points) == pytest.approx(loops.envelope_ap(hits.tolist(), truths), abs=1e-12)


def test_the_envelope_is_never_below_rectangles_on_the_curve() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        precision, recall = precision_and_recall(rng.random(40) < 0.5, 30)
        assert envelope_area(precision, recall) >= float(np.sum(np.diff(recall, prepend=0.0) * precision)) - 1e-12


def test_among_equal_scores_the_earlier_row_comes_first() -> None:
    labels = np.array([1, 0, 1, 1, 1])
    scores = np.array([0.5, 0.9, 0.7, 0.5, 0.7], dtype=np.float32)
    ranking = Ranking.of(labels, scores, 3)
    assert ranking.of_class(1).tolist() == [2, 4, 0, 3]
    assert [ranking.of_class(label).tolist() for label in (0, 2)] == [[1], []]
    some = ranking.within(np.array([False, True, True, True, False]))
    assert [some.of_class(label).tolist() for label in range(3)] == [[1], [2, 3], []]


def test_a_class_without_truth_is_undefined_and_one_without_detections_is_zero() -> None:
    labels = np.array([0, 2])
    result = class_precision(Ranking.of(labels, np.ones(2), 3), np.array([True, False]), np.array([1, 3, 0]), "raw")
    assert result.ap[:2].tolist() == [1.0, 0.0]
    assert np.isnan(result.ap[2])
    assert result.mean == 0.5
    assert result.detections.tolist() == [1, 0, 1]


def test_no_class_with_truth_has_no_mean() -> None:
    none = np.zeros(0, dtype=np.int64)
    nothing = Ranking.of(none, np.zeros(0), 3)
    assert class_precision(nothing, none.astype(bool), np.zeros(3, dtype=np.int64), "raw").mean is None

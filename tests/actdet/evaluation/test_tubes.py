"""Overlap and suppression of tubes: values computed on paper, and plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from actdet.evaluation.tubes import overlap_tubes, suppress_tubes, tube_iou
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.loops import Boxes, Track
from tests.actdet.evaluation.scenes import moved, random_box, tracks_of, tube_table

BOX = (0.0, 0.0, 9.0, 9.0)
HALF = (0.0, 0.0, 4.0, 9.0)


def during(first: int, last: int, box: loops.Box = BOX) -> Boxes:
    return dict.fromkeys(range(first, last + 1), box)


def random_tracks(seed: int, count: int, *, gaps: bool) -> list[Track]:
    """Tubes of 1 to 12 frames in two videos and two classes."""
    rng = np.random.default_rng(seed)
    base = random_box(rng, coarse=True)
    tracks = []
    for _ in range(count):
        first = int(rng.integers(20))
        frames = list(range(first, first + int(rng.integers(1, 13))))
        if gaps:
            frames = [frame for frame in frames if rng.random() < 0.6] or [first]
        boxes = {frame: moved(rng, base, coarse=True) for frame in frames}
        tracks.append(Track(int(rng.integers(2)), int(rng.integers(2)), boxes, float(rng.integers(5) / 5)))
    return tracks


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (during(0, 9), during(0, 9), 1.0),
        # The same place, 5 of 15 frames.
        (during(0, 9), during(5, 14), 5 / 15),
        # Half the box, all frames.
        (during(0, 9), during(0, 9, HALF), 0.5),
        # Half the box, half the frames.
        (during(0, 9), during(0, 4, HALF), 0.25),
        # One frame of each, the same one and the next one.
        (during(3, 3), during(3, 3), 1.0),
        (during(3, 3), during(4, 4), 0.0),
        # Long tubes that meet in a single frame.
        (during(0, 9), during(9, 18), 1 / 19),
        (during(0, 9), during(50, 60), 0.0),
        # With gaps, frames are counted as sets: 2 are common, 4 belong to either.
        ({0: BOX, 2: BOX, 4: BOX}, {2: BOX, 3: BOX, 4: BOX}, 0.5),
    ],
)
def test_known_values(first: Boxes, second: Boxes, expected: float) -> None:
    arrays = [np.array(list(part)) for boxes in (first, second) for part in (boxes, boxes.values())]
    assert tube_iou(*arrays) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("least_common", [1, 2])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loop(seed: int, gaps: bool, least_common: int) -> None:
    first = random_tracks(seed, 12, gaps=gaps)
    second = random_tracks(seed + 100, 12, gaps=not gaps)
    pairs = np.array(list(itertools.product(range(12), range(12))))
    result = overlap_tubes(tube_table(first), tube_table(second), pairs[:, 0], pairs[:, 1], least_common=least_common)
    for i, (a, b) in enumerate(pairs.tolist()):
        boxes = first[a].boxes, second[b].boxes
        assert result.tube_iou[i] == loops.tube_iou(*boxes, least_common)
        assert result.spatial[i] == loops.spatial_iou(*boxes)
        assert result.common[i] == len(set(boxes[0]) & set(boxes[1]))


def test_the_overlap_is_symmetric() -> None:
    tubes = tube_table(random_tracks(0, 20, gaps=True))
    pairs = np.array(list(itertools.product(range(20), range(20))))
    there = overlap_tubes(tubes, tubes, pairs[:, 0], pairs[:, 1]).tube_iou
    back = overlap_tubes(tubes, tubes, pairs[:, 1], pairs[:, 0]).tube_iou
    np.testing.assert_allclose(there, back, atol=1e-15)


@pytest.mark.parametrize("least_common", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_suppression_equals_the_loop(seed: int, least_common: int) -> None:
    tracks = random_tracks(seed, 30, gaps=seed % 2 == 0)
    kept = suppress_tubes(tube_table(tracks), 0.3, least_common=least_common)
    assert tracks_of(kept) == loops.suppress_tracks(tracks, 0.3, least_common)

"""Tables refuse what no figure could be computed from."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.errors import ActdetError
from actdet.evaluation.arrays import (
    MOST_CLASSES,
    MOST_FRAMES,
    MOST_VIDEOS,
    FrameBoxes,
    TubeBoxes,
    TubeletBoxes,
    class_keys,
    frame_keys,
    join_tubes,
)
from tests.actdet.evaluation.loops import Track
from tests.actdet.evaluation.scenes import tracks_of, tube_table

INTS = np.array([0, 1])
BOXES = np.array([[0.0, 0.0, 5.0, 5.0]] * 2)
SCORES = np.array([0.5, 0.4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ActdetError, match="score is not finite"):
        FrameBoxes(INTS, INTS, INTS, BOXES, np.array([0.5, bad]))
    boxes = BOXES.copy()
    boxes[1, 2] = bad
    with pytest.raises(ActdetError, match="box is not finite"):
        FrameBoxes(INTS, INTS, INTS, boxes, SCORES)
    with pytest.raises(ActdetError, match="box is not finite"):
        TubeletBoxes(INTS, INTS, INTS, boxes[:, None], SCORES)
    with pytest.raises(ActdetError, match="box is not finite"):
        TubeBoxes(INTS[:1], INTS[:1], SCORES[:1], np.array([0, 2]), INTS, boxes)


@pytest.mark.parametrize(
    ("videos", "frames", "labels"),
    [
        ([0, MOST_VIDEOS], [0, 1], [0, 1]),
        ([0, 1], [0, MOST_FRAMES], [0, 1]),
        ([0, 1], [0, 1], [0, MOST_CLASSES]),
        ([0, -1], [0, 1], [0, 1]),
        ([0, 1], [0.0, 1.0], [0, 1]),
        ([0, 1, 2], [0, 1], [0, 1]),
    ],
)
def test_numbers_that_make_no_key_are_refused(videos: list[int], frames: list[float], labels: list[int]) -> None:
    with pytest.raises(ActdetError):
        FrameBoxes(np.array(videos), np.array(frames), np.array(labels), BOXES, SCORES)


@pytest.mark.parametrize(
    ("offsets", "frames", "problem"),
    [
        ([0, 2, 2], [0, 1], "at least one frame"),
        ([0, 1], [0, 1], "one offset more"),
        ([0, 1, 3], [0, 1], "end at"),
        ([1, 1, 2], [0, 1], "at least one frame"),
    ],
)
def test_tubes_that_do_not_add_up_are_refused(offsets: list[int], frames: list[int], problem: str) -> None:
    with pytest.raises(ActdetError, match=problem):
        TubeBoxes(INTS, INTS, SCORES, np.array(offsets), np.array(frames), BOXES)


def test_frames_of_a_tube_ascend_and_those_of_the_next_one_start_over() -> None:
    TubeBoxes(INTS, INTS, SCORES, np.array([0, 1, 2]), np.array([7, 3]), BOXES)
    with pytest.raises(ActdetError, match="ascend"):
        TubeBoxes(INTS[:1], INTS[:1], SCORES[:1], np.array([0, 2]), np.array([3, 3]), BOXES)


def test_the_largest_keys_are_told_apart() -> None:
    videos = np.array([MOST_VIDEOS - 1, MOST_VIDEOS - 1, MOST_VIDEOS - 2])
    frames = np.array([MOST_FRAMES - 1, MOST_FRAMES - 1, MOST_FRAMES - 1])
    keys = class_keys(frame_keys(videos, frames), np.array([MOST_CLASSES - 1, MOST_CLASSES - 2, MOST_CLASSES - 1]))
    assert keys[2] < keys[1] < keys[0]
    assert keys[2] > 0


def test_tubes_are_taken_and_joined() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    tracks = [Track(i, i % 2, dict.fromkeys(range(i + 1), box), i / 8) for i in range(5)]
    tubes = tube_table(tracks)
    assert tracks_of(tubes.take(np.array([3, 0, 3]))) == [tracks[3], tracks[0], tracks[3]]
    assert tracks_of(tubes.take(np.array([False, True, False, False, True]))) == [tracks[1], tracks[4]]
    assert tracks_of(join_tubes([tubes, tubes])) == tracks + tracks
    assert len(join_tubes([])) == len(tubes.take(np.zeros(5, dtype=bool))) == 0

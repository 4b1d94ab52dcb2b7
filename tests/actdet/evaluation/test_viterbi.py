"""Linking as YOWO does it: plain loops on random scenes, and small cases worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.errors import ActdetError
from actdet.evaluation import viterbi
from actdet.evaluation.viterbi import link_best_paths
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.loops import FrameBox
from tests.actdet.evaluation.scenes import FRAMES, frame_table, random_scene, tracks_of

BOX = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


@pytest.mark.parametrize("most", [1, 2**20])
@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loops(monkeypatch: pytest.MonkeyPatch, seed: int, coarse: bool, most: int) -> None:
    """However many videos are linked at once, and of different lengths."""
    monkeypatch.setattr(viterbi, "_MOST_WEIGHTS", most)
    scene = random_scene(seed, coarse=coarse, per_frame=6)
    lengths = [FRAMES, FRAMES + 3, 9, 1]
    boxes = [
        FrameBox(item.video, item.start, item.label, item.boxes[0], item.score)
        for item in scene.tubelets
        if item.start < lengths[item.video]
    ]
    found = tracks_of(link_best_paths(frame_table(boxes), np.array(lengths)))
    expected = loops.link_yowo(boxes, lengths)
    assert len(found) > 10
    assert found == expected


def test_tubes_span_the_video_and_bare_frames_borrow() -> None:
    """Frame 2 is as near to 1 as to 3, and takes the earlier one's box; frame 5 has only 3."""
    boxes = [FrameBox(0, 1, 0, BOX, 0.5), FrameBox(0, 3, 0, FAR, 0.7)]
    (track,) = tracks_of(link_best_paths(frame_table(boxes), np.array([6])))
    assert track.boxes == {0: BOX, 1: BOX, 2: BOX, 3: FAR, 4: FAR, 5: FAR}
    assert track.score == pytest.approx(0.6)


def test_the_best_path_is_weighed_by_overlap_and_scores() -> None:
    """To stay is worth an IoU of 1; to change is worth 0.8 more in scores, and 0.2 more in half their product."""
    boxes = [
        FrameBox(0, 0, 0, BOX, 0.5),
        FrameBox(0, 1, 0, BOX, 0.1),
        FrameBox(0, 1, 0, FAR, 0.9),
    ]
    (track,) = tracks_of(link_best_paths(frame_table(boxes), np.array([2])))
    stay = 1 + (0.5 + 0.1) + 0.5 * 0.5 * 0.1
    change = 0 + (0.5 + 0.9) + 0.5 * 0.5 * 0.9
    assert (track.boxes[1] == FAR) == (change > stay)
    assert track.boxes[1] == BOX


def test_three_tubes_at_most_and_none_without_boxes() -> None:
    places = [(20.0 * i, 0.0, 20.0 * i + 9, 9.0) for i in range(5)]
    boxes = [FrameBox(0, frame, 0, box, 0.1 * (i + 1)) for frame in (0, 1) for i, box in enumerate(places)]
    tracks = tracks_of(link_best_paths(frame_table(boxes), np.array([2, 7])))
    assert [round(track.score, 9) for track in tracks] == [0.5, 0.4, 0.3]
    assert len(link_best_paths(frame_table([]), np.array([2]))) == 0


def test_a_video_of_impossible_length_is_refused() -> None:
    with pytest.raises(ActdetError, match="a video has 2000000 frames"):
        link_best_paths(frame_table([FrameBox(0, 0, 0, BOX, 0.5)]), np.array([2_000_000]))

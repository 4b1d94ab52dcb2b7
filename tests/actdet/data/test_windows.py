"""Windows cover a video, and each holds the actions of which enough is in it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from actdet.data.annotations import Annotation
from actdet.data.clips import Clip, ClipIndex
from actdet.data.division import divide, divide_into_folds
from actdet.data.index import load_index
from actdet.data.windows import cut_windows
from actdet.detections import Tube
from actdet.errors import ActdetError
from actdet.video.info import VideoInfo
from tests.actdet.video.videos import write_video


def video(pts: list[int] | np.ndarray, end: int, name: str = "a") -> VideoInfo:
    """In ticks of 1/100 s; nothing here opens the file."""
    path = f"/set/videos/{name}.mp4"
    return VideoInfo(path, 64, 48, 0, Fraction(1, 100), np.array(pts, np.int64), end, "h264", True, 0)


def tube(label: int, begin: int, end: int, *, step: int = 1, boxes: bool = True) -> Tube:
    """In the frames from `begin` to before `end`; its box moves to the right by a pixel with each frame."""
    frames = np.arange(begin, end, step)
    moving = np.stack([frames, frames * 0, frames + 10, frames * 0 + 40], 1).astype(np.float32)
    return Tube(label, frames, moving if boxes else np.empty((0, 4), np.float32))


def index(*clips: Clip) -> ClipIndex:
    return ClipIndex(Path("/set"), ("fight", "collapse"), clips)


def clip(tubes: list[Tube] | None, frames: int = 40, name: str = "a") -> Clip:
    """Of 10 frames a second."""
    of_video = video(np.arange(frames) * 10, frames * 10, name)
    return Clip(name, of_video, (), table=None if tubes is None else tuple(tubes))


def test_without_windows_nothing_changes() -> None:
    whole = index(clip([tube(0, 3, 9)]))
    assert cut_windows(whole, 0) is whole


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.7, 1.0, 1.6, 2.9])
def test_windows_cover_the_video_once(seconds: float) -> None:
    cut = cut_windows(index(clip([], frames=37)), seconds).clips
    assert [frame for window in cut for frame in window.frames] == list(range(37))
    assert sum(window.seconds for window in cut) == pytest.approx(3.7)
    lengths = [window.seconds for window in cut]
    assert max(lengths) - min(lengths) <= 0.1 + 1e-9
    assert max(len(cut) * seconds / 3.7, 3.7 / len(cut) / seconds) < 1.5


@pytest.mark.parametrize(("seconds", "whole"), [(4.0, True), (2.7, True), (2.6, False), (100.0, True)])
def test_a_video_that_is_hardly_longer_stays_whole(seconds: float, whole: bool) -> None:
    cut = cut_windows(index(clip([])), seconds).clips
    assert (len(cut) == 1 and cut[0].span is None) == whole


def test_a_video_whose_annotations_do_not_say_when_stays_whole() -> None:
    lines = replace(clip(None), annotations=(Annotation(0, (1, 1, 9, 9)),))
    assert cut_windows(index(lines), 0.5).clips == (lines,)


def test_windows_are_called_by_the_second_in_which_they_begin() -> None:
    names = [window.name for window in cut_windows(index(clip([], name="b"), clip(None)), 1.0).clips]
    assert names == ["a", "b@0.00", "b@1.00", "b@2.00", "b@3.00"]


def test_a_window_holds_its_part_of_an_action() -> None:
    cut = cut_windows(index(clip([tube(1, 4, 24)])), 1.0).clips
    assert [window.annotations for window in cut] == [
        (Annotation(1, (4, 0, 19, 40)),),
        (Annotation(1, (10, 0, 29, 40)),),
        # Four of its ten frames are less than half of the window.
        (),
        (),
    ]
    assert [[part.frames.tolist() for part in window.tubes] for window in cut] == [
        [list(range(4, 10))],
        [list(range(10, 20))],
        # What a detector of tubelets learns has all frames.
        [list(range(20, 24))],
        [],
    ]


@pytest.mark.parametrize(
    ("action", "windows"),
    [
        (tube(0, 0, 1), [0]),
        (tube(0, 39, 40), [3]),
        (tube(0, 12, 15), [1]),
        (tube(0, 9, 12), [1]),
        (tube(0, 9, 11), [0, 1]),
        (tube(0, 6, 14), [0, 1]),
        (tube(0, 5, 15), [0, 1]),
        (tube(0, 7, 17), [1]),
        (tube(0, 0, 40), [0, 1, 2, 3]),
        (tube(0, 5, 35), [0, 1, 2, 3]),
        (tube(0, 6, 34), [1, 2]),
        # One annotated frame a second, as in AVA, and an actor who is out of sight for a while.
        (tube(0, 5, 36, step=10), [0, 1, 2, 3]),
        (Tube(0, np.array([11, 28]), np.ones((2, 4), np.float32)), [1, 2]),
    ],
)
def test_half_of_what_could_be_is_enough(action: Tube, windows: list[int]) -> None:
    cut = cut_windows(index(clip([action])), 1.0).clips
    assert [number for number, window in enumerate(cut) if window.annotations] == windows


def test_every_action_is_in_a_window() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        begin, end = sorted(rng.integers(0, 41, 2).tolist())
        if begin == end:
            continue
        cut = cut_windows(index(clip([tube(0, begin, end)])), float(rng.uniform(0.2, 3))).clips
        # A video that stays whole keeps its annotations as they are, which here are none.
        assert any(window.annotations or window.span is None for window in cut), (begin, end)
        assert sum(len(part.frames) for window in cut for part in window.tubes) == end - begin


def test_an_action_without_boxes_fills_the_picture() -> None:
    first, second = cut_windows(index(clip([tube(0, 0, 8, boxes=False)], frames=20)), 1.0).clips
    assert first.annotations == (Annotation(0, (0, 0, 64, 48)),)
    assert second.annotations == ()


def test_a_clock_that_jumps_makes_no_empty_windows() -> None:
    """Ten frames, a gap of ten days, ten frames."""
    jump = 86_400_00 * 10
    pts = [*range(0, 100, 10), *range(jump, jump + 100, 10)]
    whole = Clip("a", video(pts, jump + 100), (), table=(tube(0, 12, 20),))
    first, second = cut_windows(index(whole), 1.0).clips
    assert (first.frames, second.frames) == (range(10), range(10, 20))
    assert [window.annotations != () for window in (first, second)] == [False, True]


def test_windows_too_short_to_tell_apart_are_refused() -> None:
    fast = replace(video([0, 1, 2, 3], 4), time_base=Fraction(1, 1000))
    problem = r"^windows of 0\.001 seconds are too short: there would be two called a@0\.00$"
    with pytest.raises(ActdetError, match=problem):
        cut_windows(index(Clip("a", fast, (), table=())), 0.001)


def test_frames_are_chosen_within_a_window() -> None:
    window = cut_windows(index(clip([])), 1.0).clips[2]
    assert window.sample(5).tolist() == [21, 23, 25, 27, 29]
    rng = np.random.default_rng(0)
    seen = {frame for _ in range(50) for frame in window.sample(3, rng).tolist()}
    assert seen == set(range(20, 30))


def test_a_data_set_is_loaded_in_windows(root: Path) -> None:
    """Of its four videos one has a table; those with lines, or without annotations, stay whole."""
    write_video(root / "videos" / "d.mkv", frames=50)
    (root / "annotations" / "d.csv").write_text("second,track,class,interpolate\n1.1,1,fight,1\n1.9,1,fight,\n")
    found = load_index(root, window=1.0)
    assert [found_clip.name for found_clip in found.clips] == ["a", "b.x", "c", "d@0.00", "d@1.00"]
    assert found.labels.tolist() == [0, 1, 2, 2, 0]
    assert found.targets()[2].tolist() == [2, 1, 0, 0, 1]


def test_all_windows_of_a_video_are_on_one_side() -> None:
    whole = index(*(clip([tube(i % 2, 3, 30)], name=f"v{i}") for i in range(8)))
    cut = cut_windows(whole, 0.5)
    assert len(cut.clips) == 64
    splits = [*divide(cut, None, 0).splits, *divide_into_folds(cut, 4, 0).splits]
    assert len(splits) == 5
    for train, held_out in splits:
        sides = [{cut.clips[i].name.partition("@")[0] for i in side} for side in (train, held_out)]
        assert sides[0].isdisjoint(sides[1])
        assert sides[0] | sides[1] == {f"v{i}" for i in range(8)}
    assert divide(cut, None, 0).reason == "8 videos in windows, none of them on both sides"


def test_lists_and_groups_name_videos(tmp_path: Path) -> None:
    whole = replace(index(*(clip([tube(i % 2, 3, 30)], name=f"v{i}") for i in range(4))), root=tmp_path)
    cut = cut_windows(whole, 2.0)
    (tmp_path / "train.txt").write_text("v0\nv3\n")
    (tmp_path / "test.txt").write_text("v1\n")
    ((train, held_out),) = divide(cut, None, 0).splits
    assert [cut.clips[i].name for i in train] == ["v0@0.00", "v0@2.00", "v3@0.00", "v3@2.00"]
    assert [cut.clips[i].name for i in held_out] == ["v1@0.00", "v1@2.00"]

    (tmp_path / "train.txt").unlink()
    (tmp_path / "test.txt").unlink()
    (tmp_path / "groups.txt").write_text("v0 a\nv1 a\nv2 b\nv3 b\n")
    ((train, held_out),) = divide(cut, 0.5, 0).splits
    sides = [{cut.clips[i].name[:2] for i in side} for side in (train, held_out)]
    assert sorted(map(sorted, sides)) == [["v0", "v1"], ["v2", "v3"]]

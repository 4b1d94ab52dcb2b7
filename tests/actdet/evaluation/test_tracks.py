"""From a network's answers in some frames of each window to tubes: by loops, by NumPy's interpolation, and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch

from actdet.data.clips import Clip
from actdet.evaluation.tracks import (
    ActorTrack,
    TrackLinker,
    VideoTracks,
    _peaks,
    cut_tubes,
    fill_frames,
    frame_boxes,
    tracks_of_clip,
)
from actdet.models.family import Tracks
from actdet.video.info import VideoInfo
from tests.actdet.evaluation import loops

# Every frame of a window


def even(frames: int) -> np.ndarray:
    return np.arange(frames, dtype=np.int64) * 40


def uneven(frames: int) -> np.ndarray:
    """A clock that leaps, and frames that show for longer than others."""
    rng = np.random.default_rng(frames)
    return np.cumsum(rng.integers(1, 90, frames)) + 5000 * (np.arange(frames) > frames // 2)


FILLED = {
    "spread evenly": (range(30), [1, 5, 9, 13, 16, 20, 24, 28]),
    "every frame": (range(8), list(range(8))),
    "a window of a video": (range(12, 40), [13, 17, 20, 24, 27, 31, 34, 38]),
    "one frame that repeats": (range(1), [0] * 8),
    "three frames that repeat": (range(3), [0, 0, 0, 1, 1, 1, 2, 2]),
    "one frame of many": (range(4, 20), [11]),
    "two neighbors": (range(10), [4, 5]),
    "the ends": (range(10), [0, 9]),
}


@pytest.mark.parametrize("times", [even, uneven])
@pytest.mark.parametrize("name", FILLED)
def test_frames_between_are_interpolated_as_numpy_does_it(name: str, times: object) -> None:
    frames, seen = FILLED[name]
    pts = times(50)  # type: ignore[operator]
    rng = np.random.default_rng(3)
    scores = rng.random((4, len(seen), 3)).astype(np.float32)
    boxes = rng.random((4, len(seen), 4)).astype(np.float32)
    # What is said of a frame twice is what was said first.
    first = [seen.index(frame) for frame in sorted(set(seen))]
    got = fill_frames(frames, np.array(seen), scores, boxes, pts, (64, 48))

    np.testing.assert_array_equal(got.frames, list(frames))
    assert got.scores.shape == (4, len(frames), 3)
    assert got.boxes.shape == (4, len(frames), 4)
    where = pts[list(frames)].astype(float)
    known = pts[sorted(set(seen))].astype(float)
    for slot in range(4):
        for label in range(3):
            wanted = np.interp(where, known, scores[slot, first, label].astype(float))
            np.testing.assert_allclose(got.scores[slot, :, label], wanted, atol=1e-6)
        for edge, side in enumerate((64, 48, 64, 48)):
            wanted = np.interp(where, known, boxes[slot, first, edge].astype(float)) * side
            np.testing.assert_allclose(got.boxes[slot, :, edge], wanted, atol=1e-4)


def test_tracks_of_nobody_are_left_out() -> None:
    scores = np.full((4, 2, 2), 0.01, np.float32)
    scores[1, 1, 0] = 0.05
    scores[3, 0, 1] = 0.9
    boxes = np.arange(32, dtype=np.float32).reshape(4, 2, 4) / 32
    got = fill_frames(range(4), np.array([0, 3]), scores, boxes, even(4), (32, 32))
    np.testing.assert_allclose(got.scores[:, 0], scores[[1, 3], 0])
    np.testing.assert_allclose(got.boxes[:, 0], boxes[[1, 3], 0] * 32)
    none = fill_frames(range(4), np.array([0, 3]), scores * 0, boxes, even(4), (32, 32))
    assert none.scores.shape == (0, 4, 2)
    assert len(cut_tubes(0, none)) == 0
    assert len(frame_boxes(0, none)) == 0


@pytest.mark.parametrize("span", [None, (10, 37)])
def test_tracks_of_a_clip_are_those_of_its_unchanged_sample(span: tuple[int, int] | None) -> None:
    pts = np.arange(60, dtype=np.int64)
    clip = Clip("a", VideoInfo("a", 200, 100, 0, Fraction(1, 25), pts, 60, "h264", True, 0), (), span=span)
    rng = np.random.default_rng(0)
    scores = rng.random((2, 3, 8, 2)).astype(np.float32)
    boxes = rng.random((2, 3, 8, 4)).astype(np.float32)
    got = tracks_of_clip(clip, Tracks(torch.from_numpy(scores), torch.from_numpy(boxes)), 1)
    first, stop = span or (0, 60)
    length = stop - first
    # The middles of eighths.
    seen = [first + (2 * k + 1) * length // 16 for k in range(8)]
    np.testing.assert_array_equal(got.frames, np.arange(first, stop))
    inside = np.array(seen) - first
    np.testing.assert_allclose(got.scores[:, inside], scores[1], atol=1e-6)
    np.testing.assert_allclose(got.boxes[:, inside], boxes[1] * (200, 100, 200, 100), atol=1e-4)


# Linking windows


def actor(first: int, stop: int, x: float, *, speed: float = 0.0, score: float = 0.9) -> VideoTracks:
    """A track of one: a box of 20 x 40 pixels that is at `x` in frame 0 and moves to the right by `speed` a frame."""
    frames = np.arange(first, stop)
    left = x + speed * frames
    boxes = np.stack([left, left * 0 + 10, left + 20, left * 0 + 50], -1)[None].astype(np.float32)
    return VideoTracks(frames, np.full((1, len(frames), 1), score, np.float32), boxes)


def window(*tracks: VideoTracks) -> VideoTracks:
    return VideoTracks(
        tracks[0].frames,
        np.concatenate([track.scores for track in tracks]),
        np.concatenate([track.boxes for track in tracks]),
    )


def link(*windows: VideoTracks) -> list[ActorTrack]:
    """All actors, by their numbers."""
    linker = TrackLinker()
    closed = [each for of_window in windows for each in linker.add(of_window)]
    actors = sorted(closed + linker.finish(), key=lambda each: each.number)
    assert [each.number for each in actors] == list(range(len(actors)))
    assert linker.finish() == []
    return actors


@pytest.mark.parametrize("step", [5, 8, 10])
def test_windows_of_one_actor_are_one_track(step: int) -> None:
    """They overlap, or follow each other."""
    (only,) = link(*(window(actor(first, first + 10, 5.0, speed=2.0)) for first in range(0, 4 * step, step)))
    whole = actor(0, 3 * step + 10, 5.0, speed=2.0)
    np.testing.assert_array_equal(only.track.frames, whole.frames)
    np.testing.assert_allclose(only.track.boxes, whole.boxes, atol=1e-4)
    np.testing.assert_allclose(only.track.scores, whole.scores, atol=1e-6)


def test_in_common_frames_a_track_moves_from_the_one_to_the_other() -> None:
    """In three frames of both: by a quarter, a half and three quarters."""
    first = actor(0, 6, 0.0, score=0.2)
    second = actor(3, 9, 4.0, score=0.6)
    (only,) = link(window(first), window(second))
    np.testing.assert_array_equal(only.track.frames, np.arange(9))
    np.testing.assert_allclose(only.track.boxes[0, :, 0], [0, 0, 0, 1, 2, 3, 4, 4, 4], atol=1e-5)
    np.testing.assert_allclose(only.track.scores[0, :, 0], [0.2] * 3 + [0.3, 0.4, 0.5] + [0.6] * 3, atol=1e-6)


def test_after_a_gap_everybody_is_new() -> None:
    actors = link(window(actor(0, 10, 5.0)), window(actor(11, 20, 5.0)))
    assert [each.track.frames.tolist() for each in actors] == [list(range(10)), list(range(11, 20))]


def test_who_leaves_has_ended_and_who_comes_back_is_new() -> None:
    linker = TrackLinker()
    assert linker.add(window(actor(0, 10, 0.0), actor(0, 10, 100.0))) == []
    (left,) = linker.add(window(actor(5, 15, 100.0)))
    assert (left.number, left.track.frames.tolist()) == (0, list(range(10)))
    assert linker.add(window(actor(10, 20, 100.0), actor(10, 20, 0.0))) == []
    stayed, new = sorted(linker.finish(), key=lambda each: each.number)
    assert (stayed.number, stayed.track.frames.tolist()) == (1, list(range(20)))
    assert (new.number, new.track.frames.tolist()) == (2, list(range(10, 20)))


def test_a_window_without_anybody_ends_all_tracks() -> None:
    linker = TrackLinker()
    linker.add(window(actor(0, 10, 0.0)))
    nobody = actor(5, 15, 0.0).take([])
    assert [each.number for each in linker.add(nobody)] == [0]
    assert linker.add(nobody) == []
    assert linker.finish() == []


@pytest.mark.parametrize("swap", [False, True])
def test_two_who_cross_stay_who_they_are(swap: bool) -> None:
    """One walks to the right and one to the left; slots of the second window have another order."""
    meeting = [actor(0, 20, 0.0, speed=3.0), actor(0, 20, 100.0, speed=-2.0)]
    after = [actor(10, 30, 0.0, speed=3.0), actor(10, 30, 100.0, speed=-2.0)]
    first, second = link(window(*meeting), window(*(after[::-1] if swap else after)))
    np.testing.assert_allclose(first.track.boxes, actor(0, 30, 0.0, speed=3.0).boxes, atol=1e-4)
    np.testing.assert_allclose(second.track.boxes, actor(0, 30, 100.0, speed=-2.0).boxes, atol=1e-4)


@pytest.mark.parametrize(("x", "linked"), [(10.0, True), (12.0, False)])
def test_one_actor_must_overlap_himself_by_three_tenths(x: float, linked: bool) -> None:
    """Boxes of 20 pixels that are `x` apart overlap by (20 - x) / (20 + x): a third, or a quarter."""
    assert len(link(window(actor(0, 10, 0.0)), window(actor(5, 15, x)))) == (1 if linked else 2)
    assert len(link(window(actor(0, 10, 0.0)), window(actor(10, 20, x)))) == (1 if linked else 2)


def mean_overlap(old: VideoTracks, new: VideoTracks) -> float:
    """Over the frames of both, by loops."""
    places = {frame: number for number, frame in enumerate(old.frames.tolist())}
    ious = [
        loops.box_iou(tuple(old.boxes[0, places[frame]].tolist()), tuple(box), inclusive=False)
        for frame, box in zip(new.frames.tolist(), new.boxes[0].tolist(), strict=True)
        if frame in places
    ]
    return sum(ious) / len(ious)


@pytest.mark.parametrize(("before", "after"), [(3, 3), (4, 2), (2, 4), (1, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_the_sum_of_all_overlaps_is_the_largest_that_can_be(seed: int, before: int, after: int) -> None:
    """Among all ways to link pairs that overlap enough."""
    rng = np.random.default_rng(seed)
    old = [actor(0, 10, float(x), speed=float(v)) for x, v in rng.uniform((0, -1), (40, 1), (before, 2))]
    new = [actor(6, 16, float(x), speed=float(v)) for x, v in rng.uniform((0, -1), (40, 1), (after, 2))]
    overlap = [[mean_overlap(one, other) for other in new] for one in old]

    best = 0.0
    places: list[int | None] = [*range(after), *[None] * before]
    for chosen in set(permutations(places, before)):
        pairs = [(row, column) for row, column in enumerate(chosen) if column is not None]
        if all(overlap[row][column] >= 0.3 for row, column in pairs):
            best = max(best, sum(overlap[row][column] for row, column in pairs))

    total = 0.0
    for each in link(window(*old), window(*new)):
        if len(each.track.frames) == 16:
            (row,) = [n for n, one in enumerate(old) if np.array_equal(one.boxes[0, :6], each.track.boxes[0, :6])]
            (column,) = [n for n, one in enumerate(new) if np.array_equal(one.boxes[0, 4:], each.track.boxes[0, 10:])]
            total += overlap[row][column]
    assert total == pytest.approx(best)


def test_later_windows_change_nothing_that_has_ended() -> None:
    """Nor does it matter how many there will be: each window's answer is that of the windows so far."""
    rng = np.random.default_rng(5)
    windows = []
    for first in range(0, 60, 5):
        slots = [
            actor(first, first + 10, 30.0 * place + float(rng.uniform(-3, 3)))
            for place in rng.permutation(4)[: rng.integers(1, 5)]
        ]
        windows.append(window(*slots))

    linker = TrackLinker()
    answers = []
    kept = []
    for each in windows:
        closed = linker.add(each)
        answers.append([(one.number, one.track.frames.tolist()) for one in closed])
        kept += [(one, one.track.boxes.copy(), one.track.scores.copy()) for one in closed]
    assert len(kept) > 5
    for one, boxes, scores in kept:
        np.testing.assert_array_equal(one.track.boxes, boxes)
        np.testing.assert_array_equal(one.track.scores, scores)

    for count in (1, 4, 9):
        shorter = TrackLinker()
        found = [[(one.number, one.track.frames.tolist()) for one in shorter.add(each)] for each in windows[:count]]
        assert found == answers[:count]


# Cutting tracks into tubes


def peaks_by_loops(scores: Sequence[float]) -> list[tuple[int, int]]:
    """From the highest frame that is free, go left and right over frames of at least half of it, with gaps of five."""
    is_free = [True] * len(scores)
    found = []
    while True:
        free = [frame for frame in range(len(scores)) if is_free[frame] and scores[frame] >= np.float32(0.05)]
        if not free:
            return found
        peak = max(free, key=lambda frame: (scores[frame], -frame))
        ends = []
        for direction in (-1, 1):
            end = peak
            frame = peak + direction
            while 0 <= frame < len(scores) and is_free[frame] and abs(frame - end) <= 6:
                if scores[frame] >= scores[peak] / 2:
                    end = frame
                frame += direction
            ends.append(end)
        first, last = ends
        beside = [scores[frame] for frame in (first - 1, last + 1) if 0 <= frame < len(scores)]
        if all(other <= scores[peak] for other in beside):
            found.append((first, last + 1))
        for frame in range(first, last + 1):
            is_free[frame] = False


@pytest.mark.parametrize("kind", ["coarse", "fine", "smooth", "sparse"])
@pytest.mark.parametrize("frames", [1, 2, 9, 40])
@pytest.mark.parametrize("seed", range(4))
def test_peaks_are_those_of_loops(seed: int, frames: int, kind: str) -> None:
    rng = np.random.default_rng([seed, frames])
    scores = rng.random(frames)
    if kind == "coarse":
        scores = rng.integers(0, 9, frames) / 8
    elif kind == "smooth":
        scores = np.convolve(rng.random(frames + 6) ** 6, np.hanning(9)[1:-1], "valid") / 4
    elif kind == "sparse":
        scores = scores * (rng.random(frames) < 0.3)
    scores = scores.astype(np.float32)
    assert _peaks(scores) == peaks_by_loops(scores.tolist())


LOW = [0.01] * 6


@pytest.mark.parametrize(
    ("scores", "tubes"),
    [
        ([0.9], [(0, 1)]),
        ([0.04, 0.049], []),
        ([0.5, 0.5, 0.5], [(0, 3)]),
        ([0.01, 0.06, 0.01], [(1, 2)]),
        # Two actions, one after the other.
        ([0.8, 0.9, *LOW, 0.7, 0.6], [(0, 2), (8, 10)]),
        # One that is not seen for five frames.
        ([0.8, 0.9, *LOW[1:], 0.7, 0.6], [(0, 9)]),
        # Slopes are no actions: not on one side, not on the other, and not both together.
        ([0.1, 0.3, 0.4, 0.9, 0.8], [(3, 5)]),
        ([0.8, 0.9, 0.4, 0.3, 0.1], [(0, 2)]),
        ([0.1, 0.3, 0.4, 0.6, 1.0, 0.6, 0.4, 0.3, 0.1], [(3, 6)]),
        # A lower action beside a higher one, with a valley between them.
        ([0.9, 0.2, *LOW, 0.4, 0.4], [(0, 1), (8, 10)]),
        # A plateau of half the peak belongs to it.
        ([0.4, 0.4, 0.8, 0.4], [(0, 4)]),
    ],
)
def test_known_actions(scores: list[float], tubes: list[tuple[int, int]]) -> None:
    assert sorted(_peaks(np.array(scores, np.float32))) == tubes


def test_tubes_have_the_class_the_score_and_the_boxes_of_their_time() -> None:
    """Two actors: one fights, then collapses while he still fights a little; the other one collapses twice."""
    frames = np.arange(20, 40)
    scores = np.zeros((2, 20, 2), np.float32)
    scores[0, 2:8, 0] = 0.8
    scores[0, 8:12, 0] = 0.5
    scores[0, 9:15, 1] = 0.9
    scores[1, 0:3, 1] = 0.6
    scores[1, 15:20, 1] = [0.3, 0.7, 0.7, 0.7, 0.3]
    boxes = np.arange(2 * 20 * 4, dtype=np.float32).reshape(2, 20, 4)
    tubes = cut_tubes(7, VideoTracks(frames, scores, boxes))

    expected = {
        (0, 22, 32): (0, np.mean([0.8] * 6 + [0.5] * 4)),
        (1, 29, 35): (0, 0.9),
        (1, 20, 23): (1, 0.6),
        (1, 36, 39): (1, 0.7),
    }
    assert tubes.videos.tolist() == [7] * 4
    found = set()
    for row in range(4):
        inside = slice(tubes.offsets[row], tubes.offsets[row + 1])
        key = (int(tubes.labels[row]), int(tubes.first[row]), int(tubes.last[row]) + 1)
        slot, score = expected[key]
        found.add(key)
        np.testing.assert_array_equal(tubes.frames[inside], np.arange(*key[1:]))
        np.testing.assert_array_equal(tubes.boxes[inside], boxes[slot, key[1] - 20 : key[2] - 20])
        assert tubes.scores[row] == pytest.approx(score)
    assert found == set(expected)


def test_boxes_of_frames_are_all_that_are_probable_enough() -> None:
    rng = np.random.default_rng(1)
    scores = (rng.random((3, 5, 2)) ** 4).astype(np.float32)
    scores[0, 0, 0] = 0.01
    scores[0, 1, 0] = 0.0099
    boxes = rng.random((3, 5, 4)).astype(np.float32)
    table = frame_boxes(4, VideoTracks(np.arange(10, 15), scores, boxes))
    got = sorted(
        zip(table.frames.tolist(), table.labels.tolist(), table.scores.tolist(), table.boxes.tolist(), strict=True)
    )
    wanted = [
        (10 + frame, label, float(scores[slot, frame, label]), boxes[slot, frame].tolist())
        for slot, frame, label in np.ndindex(3, 5, 2)
        if scores[slot, frame, label] >= np.float32(0.01)
    ]
    assert got == sorted(wanted)
    assert table.videos.tolist() == [4] * len(wanted)
    assert len(wanted) < scores.size

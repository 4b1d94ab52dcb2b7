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
    ClipTracks,
    TrackLinker,
    VideoTracks,
    _peaks,
    cut_tubes,
    fill_frames,
    fill_window,
    frame_boxes,
    link_tracks,
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
    (got,) = tracks_of_clip(clip, [Tracks(torch.from_numpy(scores), torch.from_numpy(boxes))], 1, 8)
    first, stop = span or (0, 60)
    length = stop - first
    # The middles of eighths.
    seen = [first + (2 * k + 1) * length // 16 for k in range(8)]
    np.testing.assert_array_equal(got.frames, np.arange(first, stop))
    inside = np.array(seen) - first
    np.testing.assert_allclose(got.scores[:, inside], scores[1], atol=1e-6)
    np.testing.assert_allclose(got.boxes[:, inside], boxes[1] * (200, 100, 200, 100), atol=1e-4)


# Parts of a window

# All frames of a window, those that the network saw, the first one and the number of those of each part, and the first
# frame and the end of what the part is to say.
EIGHTHS = [1, 5, 9, 13, 16, 20, 24, 28]
PARTS = {
    "overlap": (range(30), EIGHTHS, [(0, 4), (2, 4), (4, 4)], [(0, 14), (9, 21), (16, 30)]),
    "one frame in common": (range(30), EIGHTHS, [(0, 5), (4, 4)], [(0, 17), (16, 30)]),
    "touch": (range(30), EIGHTHS, [(0, 4), (4, 4)], [(0, 16), (16, 30)]),
    "gaps": (range(30), EIGHTHS, [(0, 3), (5, 2)], [(0, 20), (20, 30)]),
    "begin late and end early": (range(30), EIGHTHS, [(1, 2), (4, 3)], [(0, 16), (16, 30)]),
    "one in the middle": (range(30), EIGHTHS, [(3, 2)], [(0, 30)]),
    "the whole": (range(30), EIGHTHS, [(0, 8)], [(0, 30)]),
    "of different lengths": (range(30), EIGHTHS, [(0, 1), (1, 5), (7, 1)], [(0, 5), (5, 28), (28, 30)]),
    "of one frame each": (
        range(10, 20),
        [11, 13, 16, 18],
        [(k, 1) for k in range(4)],
        [(10, 13), (13, 16), (16, 18), (18, 20)],
    ),
    "fewer frames than a part has": (range(10), [1, 5, 8], [(0, 3)], [(0, 10)]),
    "every frame": (range(5, 13), list(range(5, 13)), [(0, 5), (3, 5)], [(5, 10), (8, 13)]),
    "one frame that repeats": (range(7, 8), [7] * 8, [(0, 4), (2, 4), (4, 4)], [(7, 8)] * 3),
    "three frames that repeat": (
        range(3),
        [0, 0, 0, 1, 1, 1, 2, 2],
        [(0, 2), (2, 2), (4, 2), (6, 2)],
        [(0, 1), (0, 2), (1, 2), (2, 3)],
    ),
}


@pytest.mark.parametrize("times", [even, uneven])
@pytest.mark.parametrize("name", PARTS)
def test_parts_have_every_frame_of_a_window_together(name: str, times: object) -> None:
    frames, seen, parts, spans = PARTS[name]
    pts = times(50)  # type: ignore[operator]
    rng = np.random.default_rng(4)
    said = [
        ClipTracks(
            # Each part finds somebody else, and not as many.
            rng.uniform(0.1, 1, (number, length, 3)).astype(np.float32),
            rng.random((number, length, 4)).astype(np.float32),
            first,
        )
        for number, (first, length) in enumerate(parts, start=1)
    ]
    got = fill_window(frames, np.array(seen), said, pts, (64, 48))

    assert [(int(part.frames[0]), int(part.frames[-1]) + 1) for part in got] == spans
    assert set().union(*(part.frames.tolist() for part in got)) == set(frames)
    for part, of_clip, (first, length) in zip(got, said, parts, strict=True):
        assert len(part.scores) == len(part.boxes) == len(of_clip.scores)
        shown = seen[first : first + length]
        places = [shown.index(frame) for frame in sorted(set(shown))]
        known = pts[sorted(set(shown))].astype(float)
        where = pts[part.frames].astype(float)
        for slot, label in np.ndindex(len(of_clip.scores), 3):
            wanted = np.interp(where, known, of_clip.scores[slot, places, label].astype(float))
            np.testing.assert_allclose(part.scores[slot, :, label], wanted, atol=1e-6)
        for slot, edge in np.ndindex(len(of_clip.boxes), 4):
            wanted = np.interp(where, known, of_clip.boxes[slot, places, edge].astype(float)) * (64, 48)[edge % 2]
            np.testing.assert_allclose(part.boxes[slot, :, edge], wanted, atol=1e-4)


def test_parts_of_a_clip_are_those_of_its_unchanged_sample() -> None:
    """Though none of them has all of its frames."""
    pts = np.arange(80, dtype=np.int64)
    clip = Clip("a", VideoInfo("a", 200, 100, 0, Fraction(1, 25), pts, 80, "h264", True, 0), ())
    torch.manual_seed(0)
    parts = [
        Tracks(torch.rand(2, slots, 3, 2) + 0.1, torch.rand(2, slots, 3, 4), first) for slots, first in [(4, 1), (5, 3)]
    ]
    got = tracks_of_clip(clip, parts, 1, 8)
    for part, frames, seen, found in zip(parts, [(0, 36), (35, 80)], [(15, 25, 35), (35, 45, 55)], got, strict=True):
        np.testing.assert_array_equal(found.frames, np.arange(*frames))
        inside = np.array(seen) - frames[0]
        np.testing.assert_allclose(found.scores[:, inside], part.scores[1], atol=1e-6)
        np.testing.assert_allclose(
            found.boxes[:, inside], part.boxes[1] * torch.tensor([200, 100, 200, 100]), atol=1e-4
        )


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


# Linking parts of windows


def parts_of(first: int, stop: int, kind: str) -> list[tuple[int, int]]:
    """The first frame and the end of each part of a window."""
    length = stop - first
    steps, size = {"touch": (3, length // 3), "overlap": (5, length // 3), "whole": (1, length), "frames": (length, 1)}[
        kind
    ]
    starts = np.linspace(first, stop - size, steps).astype(int).tolist()
    return [
        (start, stop if start == starts[-1] else max(start + size, after))
        for start, after in zip(starts, [*starts[1:], stop], strict=True)
    ]


@pytest.mark.parametrize("kind", ["whole", "touch", "overlap", "frames"])
@pytest.mark.parametrize("step", [1, 3, 8, 13, 16, 20, 24])
def test_parts_of_windows_of_two_actors_are_two_tracks(step: int, kind: str) -> None:
    """One stands and one walks, in windows of 24 frames that overlap in any way, and each part has another order."""
    rng = np.random.default_rng(step)
    everybody = [actor(0, 24 + 4 * step, 0.0), actor(0, 24 + 4 * step, 50.0, speed=2.0, score=0.7)]
    parts = []
    for begin in range(0, 5 * step, step):
        for first, stop in parts_of(begin, begin + 24, kind):
            parts.append(window(*(everybody[row].between(first, stop) for row in rng.permutation(2))))
    found = sorted(link(*parts), key=lambda each: float(each.track.boxes[0, 0, 0]))
    assert len(found) == 2
    for one, other in zip(found, everybody, strict=True):
        np.testing.assert_array_equal(one.track.frames, other.frames)
        np.testing.assert_allclose(one.track.boxes, other.boxes, atol=1e-4)
        np.testing.assert_allclose(one.track.scores, other.scores, atol=1e-6)
    for one, other in zip(link_tracks(parts), sorted(found, key=lambda each: each.number), strict=True):
        np.testing.assert_array_equal(one.boxes, other.track.boxes)


@pytest.mark.parametrize(
    ("spans", "left"),
    [
        # Inside of the first one: up to a half, and back.
        ([(0, 7), (2, 5)], [0, 0, 1, 2, 1, 0, 0]),
        # About it: all that the first one says is taken over.
        ([(2, 5), (0, 7)], [4] * 7),
        # Before it, as a later window's part may be.
        ([(3, 9), (0, 6)], [4, 4, 4, 3, 2, 1, 0, 0, 0]),
        # With the same end, and with the same beginning.
        ([(0, 5), (2, 5)], [0, 0, 1, 2, 3]),
        ([(0, 5), (0, 3)], [1, 2, 1, 0, 0]),
        ([(0, 3), (0, 5)], [1, 2, 3, 4, 4]),
        ([(0, 3), (0, 3)], [1, 2, 3]),
        # Beside each other.
        ([(0, 3), (3, 6)], [0, 0, 0, 4, 4, 4]),
        ([(3, 6), (0, 3)], [4, 4, 4, 0, 0, 0]),
    ],
)
def test_common_frames_of_parts_in_any_place(spans: list[tuple[int, int]], left: list[int]) -> None:
    """The first one is at 0, and the second one four pixels away."""
    (only,) = link(window(actor(*spans[0], 0.0, score=0.4)), window(actor(*spans[1], 4.0, score=0.8)))
    np.testing.assert_array_equal(only.track.frames, np.arange(len(left)))
    np.testing.assert_allclose(only.track.boxes[0, :, 0], left, atol=1e-5)
    np.testing.assert_allclose(only.track.scores[0, :, 0], 0.4 + np.array(left) / 10, atol=1e-6)


@pytest.mark.parametrize("apart", [10.0, 12.0])
@pytest.mark.parametrize("spans", [[(0, 7), (2, 5)], [(2, 5), (0, 7)], [(3, 9), (0, 6)], [(3, 6), (0, 3)]])
def test_overlap_is_that_of_the_same_frames(spans: list[tuple[int, int]], apart: float) -> None:
    """Of two who walk so quickly that the boxes of neighboring frames do not overlap."""
    speed = 25.0 if spans != [(3, 6), (0, 3)] else 0.0
    one, other = (actor(*span, x, speed=speed) for span, x in zip(spans, (0.0, apart), strict=True))
    assert len(link(window(one), window(other))) == (1 if apart == 10 else 2)


def test_who_is_missed_inside_of_what_is_known_has_not_ended() -> None:
    """A later window's part that does not see him, and ends before what the window before it has said of him."""
    nobody = actor(5, 8, 0.0).take([])
    linker = TrackLinker()
    assert linker.add(window(actor(0, 10, 0.0))) == []
    assert linker.add(nobody) == []
    assert linker.add(window(actor(8, 15, 0.0))) == []
    (only,) = linker.finish()
    assert (only.number, only.track.frames.tolist()) == (0, list(range(15)))


@pytest.mark.parametrize("stop", [10, 11])
def test_who_is_missed_in_his_last_frame_has_ended(stop: int) -> None:
    linker = TrackLinker()
    linker.add(window(actor(0, 10, 0.0)))
    assert [each.number for each in linker.add(actor(9, stop, 0.0).take([]))] == [0]


def test_who_came_late_in_a_window_is_not_ended_by_the_next_ones_first_part() -> None:
    """Which is over before he comes. Who is seen in it is somebody else, as there are frames between them."""
    linker = TrackLinker()
    linker.add(window(actor(0, 10, 0.0)))
    assert [each.number for each in linker.add(window(actor(10, 20, 100.0)))] == [0]
    assert linker.add(window(actor(5, 8, 105.0))) == []
    (other,) = linker.add(window(actor(8, 20, 100.0)))
    assert (other.number, other.track.frames.tolist()) == (2, [5, 6, 7])
    (late,) = linker.finish()
    assert (late.number, late.track.frames.tolist()) == (1, list(range(8, 20)))


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

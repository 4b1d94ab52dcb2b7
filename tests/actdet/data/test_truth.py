"""What is true of the frames that a sample shows: tubes against plain loops, whatever their frames and their order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from actdet_kernels import Targets

from actdet.data.annotations import Annotation
from actdet.data.clips import Clip, ClipIndex
from actdet.data.truth import ClipTruth, TubeTargets, TubeTruth, actors_of, centered_targets, open_truth
from actdet.data.windows import cut_windows
from actdet.detections import Tube
from actdet.video.info import VideoInfo

WIDTH = 64
HEIGHT = 48
CPU = torch.device("cpu")


def video(pts: Sequence[int], last: int = 4) -> VideoInfo:
    """In ticks of 1/100 s; nothing here opens the file."""
    times = np.array(pts, np.int64)
    return VideoInfo("v.mp4", WIDTH, HEIGHT, 0, Fraction(1, 100), times, int(times[-1]) + last, "h264", True, 0)


def clip(
    tubes: Sequence[Tube] | None, frames: int = 30, pts: Sequence[int] | None = None, name: str = "a", **rest: object
) -> Clip:
    table = None if tubes is None else tuple(tubes)
    return Clip(name, video(range(0, 4 * frames, 4) if pts is None else pts), (), table=table, **rest)  # type: ignore[arg-type]


def index(*clips: Clip) -> ClipIndex:
    return ClipIndex(Path("/set"), ("fight", "collapse", "fall"), clips)


def tube(label: int, frames: Sequence[int], seed: int = 0, *, boxes: bool = True) -> Tube:
    """Has another box in every frame."""
    rng = np.random.default_rng([seed, label, len(frames)])
    low = rng.uniform(0, 30, (len(frames), 2))
    corners = np.concatenate([low, low + rng.uniform(1, 17, (len(frames), 2))], 1).astype(np.float32)
    return Tube(label, np.array(frames, np.int64), corners if boxes else np.empty((0, 4), np.float32))


class Row(NamedTuple):
    """What is true of one action: in each frame its box, as whole numbers of millionths, or None."""

    label: int
    boxes: tuple[tuple[int, ...] | None, ...]


def millionths(box: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(1e6 * value / 4) * 4 for value in box)


def centered(corners: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = map(float, corners)
    return [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]


def order(row: Row) -> str:
    return repr(row)


def by_loops(of_clip: Clip, shown: Sequence[int]) -> tuple[list[Row], list[bool]]:
    """The actions in the frames shown, and in which of these anything is known."""
    steps = [two - one for each in of_clip.video_tubes for one, two in itertools.pairwise(each.frames.tolist())]
    looked_up: list[int | None] = list(shown)
    if of_clip.video_tubes and 1 not in steps and len(of_clip.frames) > 1:
        looked_up = [None] * len(shown)
        away = np.full(len(shown), np.inf)
        for key in sorted({frame for each in of_clip.tubes for frame in each.frames.tolist()}):
            distances = [abs(int(of_clip.video.pts[frame]) - int(of_clip.video.pts[key])) for frame in shown]
            nearest = distances.index(min(distances))
            if distances[nearest] < away[nearest]:
                away[nearest] = distances[nearest]
                looked_up[nearest] = key

    rows = []
    for each in of_clip.tubes:
        found = []
        for frame in looked_up:
            if frame is None or frame not in each.frames.tolist():
                found.append(None)
            elif len(each.boxes):
                found.append(millionths(centered(each.boxes[each.frames.tolist().index(frame)].tolist())))
            else:
                found.append(millionths(centered([0, 0, WIDTH, HEIGHT])))
        if any(box is not None for box in found):
            rows.append(Row(each.label, tuple(found)))
    return sorted(rows, key=order), [frame is not None for frame in looked_up]


def read(targets: TubeTargets, sample: int) -> tuple[list[Row], list[bool]]:
    """The same of targets. What is padding, or not visible, must be zero."""
    count = int(targets.counts[sample])
    assert not targets.labels[sample, count:].any()
    assert not targets.visible[sample, count:].any()
    assert not targets.boxes[sample][~targets.visible[sample]].any()
    rows = []
    for row in range(count):
        frames = zip(targets.boxes[sample, row].tolist(), targets.visible[sample, row].tolist(), strict=True)
        rows.append(
            Row(int(targets.labels[sample, row]), tuple(millionths(box) if seen else None for box, seen in frames))
        )
    annotated = targets.annotated[sample].tolist() if targets.is_sparse else [True] * targets.visible.shape[2]
    return sorted(rows, key=order), annotated


def truth_of(of_index: ClipIndex, clips: Sequence[int], frames: Sequence[Sequence[int]]) -> TubeTargets:
    return TubeTruth(of_index).of(np.array(clips), np.array(frames, np.int64), torch.from_numpy)


DENSE = clip([tube(1, range(30)), tube(0, range(3, 20), 1), tube(1, range(25, 30), 2)])
GAPS = clip([tube(2, [*range(4), *range(9, 12), 29]), tube(0, [0, 1, 28, 29])])
ONE_FRAME = clip([tube(0, [7]), tube(2, range(5, 9))])
NONE = clip([])
ANYWHERE = clip([tube(1, range(4, 12), boxes=False), tube(1, range(10, 30), 3)])
LINES = replace(clip(None), annotations=(Annotation(2, (3.0, 4.0, 50.0, 40.0)), Annotation(0, (0.0, 0.0, 64.0, 48.0))))
SHORT = clip([tube(0, range(3))], frames=3)
STILL = clip([tube(2, [0])], frames=1)
KEY_FRAMES = clip([tube(0, [3, 13, 23]), tube(2, [13, 23], 1), tube(1, [28], 2)])
TWINS = clip([tube(1, range(30), 5), tube(1, range(30), 6), tube(1, range(12), 7)])
UNEVEN = clip([tube(0, [0, 9, 20]), tube(1, [9], 1)], pts=[4 * i + 90 * (i > 8) + 7 * (i % 3) for i in range(30)])
CLIPS = (DENSE, GAPS, ONE_FRAME, NONE, ANYWHERE, LINES, SHORT, STILL, KEY_FRAMES, TWINS, UNEVEN)

SAMPLES: dict[str, Callable[[int], list[int]]] = {
    "spread evenly": lambda frames: [(2 * k + 1) * frames // 16 for k in range(8)],
    "every frame": lambda frames: list(range(frames)),
    "the ends": lambda frames: [0, frames - 1],
    "one": lambda frames: [frames // 2],
    "repeated": lambda frames: [frames // 3] * 4 + [frames // 2] * 3 + [frames - 1],
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("number", range(len(CLIPS)))
def test_the_tubes_of_a_sample_are_those_of_loops(number: int, sample: str) -> None:
    shown = SAMPLES[sample](len(CLIPS[number].frames))
    targets = truth_of(index(*CLIPS), [number], [shown])
    assert read(targets, 0) == by_loops(CLIPS[number], shown)


def test_the_samples_of_a_batch_do_not_mix() -> None:
    """Clips come in any order, and one may come twice, in other frames."""
    rng = np.random.default_rng(4)
    numbers = [8, 0, 3, 9, 0, 10, 6, 7, 5]
    shown = [sorted(rng.integers(0, len(CLIPS[number].frames), 16).tolist()) for number in numbers]
    targets = truth_of(index(*CLIPS), numbers, shown)

    assert targets.labels.shape == (9, 3)
    assert targets.boxes.shape == (9, 3, 16, 4)
    assert targets.visible.shape == (9, 3, 16)
    assert targets.annotated.shape == (9, 16)
    kinds = (torch.int64, torch.float32, torch.int32, torch.bool, torch.bool)
    assert tuple(field.dtype for field in targets) == kinds
    for sample, number in enumerate(numbers):
        assert read(targets, sample) == by_loops(CLIPS[number], shown[sample])
    assert targets.valid.sum(1).tolist() == targets.counts.tolist() == [3, 3, 0, 3, 3, 2, 1, 1, 2]


def test_without_any_tube_there_is_a_row_of_padding() -> None:
    targets = truth_of(index(NONE, NONE), [1, 0], [[0, 5], [1, 1]])
    assert targets.boxes.shape == (2, 1, 2, 4)
    assert targets.counts.tolist() == [0, 0]
    assert targets.annotated.all()


def test_which_clips_have_an_action() -> None:
    positive = TubeTruth(index(*CLIPS)).positive
    assert positive.dtype == bool
    assert positive.tolist() == [clip is not NONE for clip in CLIPS]


@pytest.mark.parametrize("number", range(len(CLIPS)))
def test_the_order_of_the_tubes_changes_nothing(number: int) -> None:
    """A row stands for the same tube, so that training does not depend on how a file was written."""
    shown = SAMPLES["spread evenly"](len(CLIPS[number].frames))
    wanted = truth_of(index(CLIPS[number]), [0], [shown])
    labels = wanted.labels[0, : int(wanted.counts[0])].tolist()
    assert labels == sorted(labels)
    for shuffled in itertools.permutations(CLIPS[number].tubes):
        got = truth_of(index(replace(CLIPS[number], table=shuffled)), [0], [shown])
        assert all(map(torch.equal, got, wanted))


# Key frames alone


def test_a_key_frame_stands_for_the_nearest_frame_shown() -> None:
    """Frames of 40 ms. Of the frames shown 5 is nearest to 3, and 15 to 13; 23 lies just as near to 21 as to 25."""
    of_clip = clip([tube(0, [3, 13, 23])])
    targets = truth_of(index(of_clip), [0], [[5, 10, 15, 21, 25]])
    assert targets.annotated.tolist() == [[True, False, True, True, False]]
    assert targets.visible[0].tolist() == [[True, False, True, True, False]]
    wanted = [centered(box) for box in of_clip.tubes[0].boxes.tolist()]
    torch.testing.assert_close(targets.boxes[0, 0, [0, 2, 3]], torch.tensor(wanted))


def test_near_is_near_in_time() -> None:
    """The clock leaps behind frame 10, so that frame 11 is 5 s from it and frame 4 only 0.24 s."""
    of_clip = clip([tube(0, [10, 20])], pts=[4 * i + 500 * (i > 10) for i in range(30)])
    targets = truth_of(index(of_clip), [0], [[4, 11, 21]])
    assert targets.annotated.tolist() == [[True, False, True]]


def test_of_two_key_frames_the_nearer_one_counts() -> None:
    """And what it does not say of an actor is that he does nothing there, so that nothing is known of him here."""
    of_clip = clip([tube(0, [8, 12]), tube(1, [8], 1)])
    targets = truth_of(index(of_clip), [0], [[0, 11, 25]])
    assert targets.annotated.tolist() == [[False, True, False]]
    assert targets.visible[0].tolist() == [[False, True, False], [False, False, False]]
    assert targets.counts.tolist() == [1]


def test_two_neighboring_frames_of_any_tube_say_that_all_is_annotated() -> None:
    dense = clip([tube(0, [3, 13, 23]), tube(1, [6, 7])])
    assert truth_of(index(dense), [0], [[5, 10, 15, 20]]).annotated.all()


# Windows


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.3, 0.5])
def test_windows_together_have_the_truth_of_the_video(seconds: float) -> None:
    """Also the parts of tubes that are too short for the annotations of a window."""
    tubes = [tube(1, range(2, 30)), tube(0, range(3, 14), 1), tube(2, [*range(6), *range(20, 23)], 2)]
    windows = cut_windows(index(clip(tubes)), seconds).clips
    assert len(windows) > 1
    targets = TubeTruth(index(*windows))
    for number, window in enumerate(windows):
        shown = window.sample(8)
        found = targets.of(np.array([number]), shown[None], torch.from_numpy)
        inside = [each for each in tubes if np.isin(each.frames, window.frames).any()]
        assert read(found, 0) == by_loops(clip(inside), shown.tolist())


def test_a_window_with_one_frame_of_a_tube_is_annotated_as_its_video_is() -> None:
    """The action ends in the first frame of the second window. It is known that nothing happens in the others."""
    first, second = cut_windows(index(clip([tube(0, range(3, 16))])), 0.6).clips
    assert second.tubes[0].frames.tolist() == [15]
    targets = truth_of(index(first, second), [0, 1], [list(range(15)), list(range(15, 30))])
    assert targets.annotated.all()
    assert targets.visible[0, 0].tolist() == [frame >= 3 for frame in range(15)]
    assert targets.visible[1, 0].tolist() == [frame == 0 for frame in range(15)]


def test_a_window_of_a_video_with_key_frames_is_annotated_in_those() -> None:
    """There are key frames at 3, 13 and 23, and windows of 5 frames: nothing is known of every second one."""
    of_video = clip([tube(0, [3, 13]), tube(2, [13, 23], 1)])
    windows = cut_windows(index(of_video), 0.2).clips
    shown = [list(window.frames) for window in windows]
    targets = truth_of(index(*windows), range(6), shown)
    assert [row.nonzero().flatten().tolist() for row in targets.annotated] == [[3], [], [3], [], [3], []]
    assert targets.counts.tolist() == [1, 0, 2, 0, 1, 0]
    for number, window in enumerate(windows):
        assert read(targets, number) == by_loops(window, shown[number])


# What detectors of whole clips would learn from the same


@pytest.mark.parametrize("seed", range(3))
def test_the_box_of_a_clip_is_around_all_boxes_of_an_action(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (4, 3, 5, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 0.5, (4, 3, 5, 2))], -1)
    visible = rng.random((4, 3, 5)) < 0.4
    visible[0, 0] = False
    visible[1, 1] = True
    targets = TubeTargets(
        torch.arange(12).view(4, 3),
        torch.from_numpy(np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)),
        torch.tensor([3, 2, 0, 1], dtype=torch.int32),
        torch.from_numpy(visible),
        torch.ones(4, 5, dtype=torch.bool),
    )
    of_clips = targets.clip_boxes
    assert isinstance(of_clips, Targets)
    assert torch.equal(of_clips.labels, targets.labels)
    assert torch.equal(of_clips.counts, targets.counts)
    for sample, row in np.ndindex(4, 3):
        shown = boxes[sample, row][visible[sample, row]]
        x, y, width, height = of_clips.boxes[sample, row].tolist()
        if not len(shown):
            assert (width, height) == (0, 0)
            continue
        wanted = [*shown[:, :2].min(0), *shown[:, 2:].max(0)]
        assert [x - width / 2, y - height / 2, x + width / 2, y + height / 2] == pytest.approx(wanted)


def test_the_box_of_a_clip_of_lines_is_that_of_its_line() -> None:
    """Whole clips and every frame of them say the same, if all frames have the same box."""
    frames = np.array([SAMPLES["spread evenly"](30)])
    of_frames = TubeTruth(index(LINES)).of(np.array([0]), frames, torch.from_numpy)
    of_clip = open_truth("clip_box", index(LINES), CPU).of(np.array([0]), frames, torch.from_numpy)
    for got, wanted in zip(of_frames.clip_boxes, of_clip, strict=True):
        torch.testing.assert_close(got, wanted)


# Actors who do several things


def also(of: Tube, label: int, frames: Sequence[int]) -> Tube:
    """What the actor of another tube does, too, in frames that may lie outside of that one."""
    more = tube(label, frames, 9).boxes
    for place, frame in enumerate(frames):
        if frame in of.frames:
            more[place] = of.boxes[of.frames.tolist().index(frame)]
    return Tube(label, np.array(frames, np.int64), more)


WALKS = tube(1, range(20))
SITS = tube(2, range(5, 30), 1)
TALK = clip([WALKS, SITS, also(WALKS, 0, range(8, 14)), also(SITS, 0, range(3, 9))])
ALL_AT_ONCE = clip(
    [tube(1, [4, 14, 24], 3), also(tube(1, [4, 14, 24], 3), 0, [4]), also(tube(1, [4, 14, 24], 3), 2, [14])]
)
SPANS = clip([tube(0, range(4), boxes=False), tube(1, range(2, 9), boxes=False), tube(2, range(9), 1)])


def actors_truth(of_index: ClipIndex, clips: Sequence[int], frames: Sequence[Sequence[int]]) -> TubeTargets:
    truth = open_truth("actor", of_index, CPU)
    found = truth.of(np.array(clips), np.array(frames, np.int64), torch.from_numpy)
    assert isinstance(found, TubeTargets)
    return found


@pytest.mark.parametrize(
    ("of_clip", "labels"),
    [
        (TALK, [[0, 1], [0, 2]]),
        (ALL_AT_ONCE, [[0, 1, 2]]),
        # What is somewhere in the picture is of one actor; that has another box than the third.
        (SPANS, [[0, 1], [2]]),
        # Two people of the same class are two, even with the same box; so are those who part.
        (clip([WALKS, also(WALKS, 1, range(3))]), [[1], [1]]),
        (clip([WALKS, Tube(0, np.array([3, 4]), np.stack([WALKS.boxes[3], WALKS.boxes[5]]))]), [[0], [1]]),
        # Whoever is in no common frame may be anybody.
        (clip([tube(1, range(4)), tube(0, range(4, 9))]), [[0], [1]]),
        (NONE, []),
    ],
)
def test_tubes_with_the_same_boxes_are_of_one_actor(of_clip: Clip, labels: list[list[int]]) -> None:
    for order in itertools.permutations(of_clip.tubes):
        found = [[each.label for each in actor] for actor in actors_of(order)]
        assert sorted(found) == labels


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("number", range(3))
def test_the_actions_of_all_actors_are_those_of_the_tubes(number: int, sample: str) -> None:
    clips = (TALK, ALL_AT_ONCE, SPANS)
    shown = SAMPLES[sample](len(clips[number].frames))
    targets = actors_truth(index(*clips, NONE, *CLIPS), [number, 3], [shown, shown])
    assert targets.labels.shape == (2, 3, len(shown), 3)
    by_action, rows = targets.by_action()
    assert read(by_action, 0) == by_loops(clips[number], shown)
    assert read(by_action, 1)[0] == []

    # A row has the boxes of the actor that it is from, and an actor has all frames of his actions.
    for row, actor in enumerate(rows[0, : by_action.counts[0]].tolist()):
        seen = by_action.visible[0, row]
        assert torch.equal(by_action.boxes[0, row, seen], targets.boxes[0, actor, seen])
    for actor in range(int(targets.counts[0])):
        of_actor = by_action.visible[0, : by_action.counts[0]][rows[0, : by_action.counts[0]] == actor]
        assert torch.equal(of_actor.any(0), targets.visible[0, actor])
        first = int(targets.visible[0, actor].nonzero()[0])
        assert targets.first_labels[0, actor] == targets.labels[0, actor, first, 0] >= 0


def test_where_nobody_does_several_things_actors_are_actions() -> None:
    shown = [SAMPLES["spread evenly"](30)]
    targets = actors_truth(index(DENSE, GAPS), [0], shown)
    assert all(map(torch.equal, targets, truth_of(index(DENSE, GAPS), [0], shown)))
    by_action, rows = targets.by_action()
    assert all(map(torch.equal, by_action, targets))
    assert rows.tolist() == [[0, 1, 2]]
    assert torch.equal(targets.first_labels, targets.labels)


def test_each_kind_of_detector_gets_its_own_truth() -> None:
    assert isinstance(open_truth("tubelet", index(DENSE), CPU), TubeTruth)
    assert isinstance(open_truth("actor", index(DENSE), CPU), TubeTruth)
    assert isinstance(open_truth("clip_box", index(DENSE), CPU), ClipTruth)


@pytest.mark.parametrize(("clips", "frames"), [(1, 8), (3, 16), (2, 1)])
def test_targets_for_a_trial_have_the_shapes_of_true_ones(clips: int, frames: int) -> None:
    trial = centered_targets("tubelet", clips, frames)
    true = truth_of(index(SHORT), [0] * clips, [[0] * frames] * clips)
    assert isinstance(trial, TubeTargets)
    for one, other in zip(trial, true, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert torch.equal(trial.boxes, torch.full((clips, 1, frames, 4), 0.5))
    assert trial.visible.all()
    assert trial.annotated.all()
    assert trial.counts.tolist() == [1] * clips

    plain = centered_targets("clip_box", clips, frames)
    assert isinstance(plain, Targets)
    assert torch.equal(plain.boxes, torch.full((clips, 1, 4), 0.5))
    assert trial.clip_boxes.boxes.tolist() == plain.boxes.tolist()


def test_a_copy_to_a_device_has_all_fields() -> None:
    targets = truth_of(index(*CLIPS), [0, 4], [[1, 2], [7, 29]])
    copied = targets.to("cpu")
    assert isinstance(copied, TubeTargets)
    assert all(map(torch.equal, copied, targets))
    assert [field.device.type for field in targets.to("meta")] == ["meta"] * 5
    assert tuple(targets.tubelets) == (targets.labels, targets.boxes, targets.counts, targets.visible)

"""How well tubes are found: cases whose averages can be worked out on paper, and the loops on random ones."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from actdet.data.clips import Clip, ClipIndex
from actdet.data.windows import cut_windows
from actdet.detections import Tube
from actdet.evaluation.tracks import VideoTracks
from actdet.evaluation.tube_metrics import TubeMetrics, count_switches, measure_tubes
from actdet.evaluation.tubes import tubes_of
from actdet.models.family import Tracks
from actdet.video.info import VideoInfo
from tests.actdet.evaluation import loops

WIDTH = 400
HEIGHT = 200
CLASSES = ("fight", "collapse", "fall")


def video_clip(name: str, tubes: Sequence[Tube], frames: int = 8) -> Clip:
    """Of 25 frames a second."""
    pts = np.arange(frames, dtype=np.int64)
    video = VideoInfo(name, WIDTH, HEIGHT, 0, Fraction(1, 25), pts, frames, "h264", True, 0)
    return Clip(name, video, (), table=tuple(tubes))


def index_of(*clips: Clip) -> ClipIndex:
    return ClipIndex(Path("/set"), CLASSES, clips)


def place(x: float, width: float = 40.0) -> np.ndarray:
    """A box of 80 pixels in height."""
    return np.array([x, 50, x + width, 130], np.float32)


def tube(label: int, frames: Sequence[int], x: float = 100.0, *, speed: float = 0.0, boxes: bool = True) -> Tube:
    moving = np.stack([place(x + speed * frame) for frame in frames])
    return Tube(label, np.array(frames, np.int64), moving if boxes else np.zeros((0, 4), np.float32))


def answer(clip: Clip, slots: Sequence[Sequence[tuple[Tube, float]]], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """What a network says that finds these tubes with these scores, those of one slot one after the other."""
    seen = clip.sample(frames)
    scores = np.zeros((len(slots), frames, len(CLASSES)), np.float32)
    boxes = np.full((len(slots), frames, 4), 0.5, np.float32)
    for number, tubes in enumerate(slots):
        for found, score in tubes:
            for time, frame in enumerate(seen.tolist()):
                if frame in found.frames:
                    scores[number, time, found.label] = score
                    box = found.boxes[found.frames.tolist().index(frame)]
                    boxes[number, time] = box / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    return scores, boxes


def measure(index: ClipIndex, found: Sequence[Sequence[Sequence[tuple[Tube, float]]]], frames: int = 8) -> TubeMetrics:
    """Measure answers: for each clip, for each slot, tubes with their scores."""
    slots = max(1, *map(len, found))
    padded = [[*of_clip, *[[]] * (slots - len(of_clip))] for of_clip in found]
    answers = [answer(clip, of_clip, frames) for clip, of_clip in zip(index.clips, padded, strict=True)]
    scores, boxes = (torch.from_numpy(np.stack(each)) for each in zip(*answers, strict=True))
    return measure_tubes(index, range(len(index.clips)), [Tracks(scores, boxes)], frames)


ALL = range(8)


def test_perfect_tracks_are_perfect() -> None:
    """Actors who come and leave, move, and do one thing after the other; and a clip in which nothing happens."""
    first = [tube(0, ALL, 20, speed=3), tube(1, range(2, 6), 200), tube(1, range(5, 8), 300)]
    second = [tube(2, range(3, 8), 50, speed=-4), tube(0, range(3), 250)]
    index = index_of(video_clip("a", first), video_clip("b", second), video_clip("c", []))
    found = measure(index, [[[(each, 0.9)] for each in first], [[(second[1], 0.8)], [(second[0], 0.7)]], []])
    assert found.tubes == 5
    assert found.switches == 0
    assert found.frame_map == 1.0
    assert found.video_map == {"0.2": 1.0, "0.5": 1.0, "0.75": 1.0, "0.5:0.95": 1.0}
    assert found.classes == {name: {"frame": 1.0, "video": 1.0} for name in CLASSES}


def test_what_is_missing_costs_its_share() -> None:
    """One of two tubes of a class is found: precision is 1 up to a recall of a half."""
    index = index_of(video_clip("a", [tube(0, ALL)]), video_clip("b", [tube(0, ALL)]))
    found = measure(index, [[[(tube(0, ALL), 0.9)]], []])
    assert found.classes["fight"] == {"frame": 0.5, "video": 0.5}
    assert found.frame_map == found.video_map["0.5"] == found.video_map["0.2"] == 0.5


def test_a_surer_mistake_comes_first() -> None:
    """The second of two tubes is right. The curve goes from precision 1 to 0 at recall 0, and to 1/2 at recall 1."""
    index = index_of(video_clip("a", [tube(0, ALL)]))
    found = measure(index, [[[(tube(0, ALL, 300), 0.9)], [(tube(0, ALL), 0.6)]]])
    assert found.video_map["0.5"] == pytest.approx(0.25)

    # Of boxes 8 wrong ones come first, and then k of 8 + k are right.
    points = [(k / (8 + k), k / 8) for k in range(9)]
    area = sum((two[0] + one[0]) / 2 / 8 for one, two in pairwise(points))
    assert found.frame_map == pytest.approx(area)


@pytest.mark.parametrize(
    ("width", "frames", "passed"),
    [
        # The box is 25 of 40 pixels wide, an IoU of 0.625, which reaches 0.5, 0.55 and 0.6.
        (25.0, 8, 3),
        (40.0, 8, 10),
        # Found in 6 of 8 frames, 0.75, it reaches 0.5, 0.55, ..., 0.75.
        (40.0, 6, 6),
        # Both: 0.625 * 0.75.
        (25.0, 6, 0),
    ],
)
def test_a_tube_that_is_off_reaches_some_thresholds(width: float, frames: int, passed: int) -> None:
    boxes = np.stack([place(100, width)] * frames)
    index = index_of(video_clip("a", [tube(1, ALL)]))
    found = measure(index, [[[(Tube(1, np.arange(frames), boxes), 0.9)]]])
    assert found.video_map["0.5:0.95"] == pytest.approx(passed / 10)
    assert found.video_map["0.2"] == 1.0
    assert found.video_map["0.5"] == (passed > 0)
    assert found.video_map["0.75"] == (passed >= 6)
    assert found.frame_map == pytest.approx(frames / 8)


def test_a_class_without_truth_counts_for_nothing() -> None:
    index = index_of(video_clip("a", [tube(0, ALL)]))
    found = measure(index, [[[(tube(0, ALL), 0.9)], [(tube(1, ALL, 300), 0.9)]]])
    assert found.frame_map == found.video_map["0.5"] == 1.0
    assert found.classes["collapse"] == {"frame": None, "video": None}

    nothing = measure(index_of(video_clip("a", [])), [[[(tube(0, ALL), 0.9)]]])
    assert nothing.frame_map is None
    assert set(nothing.video_map.values()) == {None}
    assert (nothing.tubes, nothing.switches) == (0, 0)
    assert nothing.describe() == [
        "0 tubes: frame-mAP n/a at IoU 0.5; video-mAP n/a at 0.2, n/a at 0.5, n/a at 0.75, n/a at 0.5:0.95",
        "identities: 0 switches",
    ]


def test_an_action_without_boxes_is_somewhere_in_the_picture() -> None:
    whole = Tube(0, np.arange(2, 7), np.tile(np.array([0, 0, WIDTH, HEIGHT], np.float32), (5, 1)))
    index = index_of(video_clip("a", [tube(0, range(2, 7), boxes=False)]))
    found = measure(index, [[[(whole, 0.9)]]])
    assert found.frame_map == found.video_map["0.5:0.95"] == 1.0


@pytest.mark.parametrize("frames", [8, 16])
@pytest.mark.parametrize("length", [40, 23, 200])
def test_a_network_that_sees_some_frames_is_measured_in_all(length: int, frames: int) -> None:
    """An actor who walks evenly is found between the frames seen, too; up to half a frame's step at the ends."""
    walking = tube(0, range(length), 20, speed=200 / length)
    found = measure(index_of(video_clip("a", [walking], length)), [[[(walking, 0.9)]]], frames)
    assert found.frame_map == 1.0
    assert found.video_map["0.5"] == 1.0


# Random cases


@pytest.mark.parametrize("seed", range(4))
def test_averages_equal_the_loops(seed: int) -> None:
    """Of tracks that are somewhat off, in time, in place and in class. Places keep away from all thresholds."""
    rng = np.random.default_rng(seed)
    clips = []
    found = []
    truth: list[loops.Track] = []
    tracks: list[loops.Track] = []
    for video in range(4):
        tubes = []
        slots = []
        for x in rng.permutation([10, 110, 210, 310])[: rng.integers(1, 4)].tolist():
            # Tubes of one frame alone would mean that only key frames are annotated.
            first = int(rng.integers(0, 7))
            last = int(rng.integers(first + 1, 8))
            tubes.append(tube(int(rng.integers(3)), range(first, last + 1), x))
            if rng.random() < 0.8:
                begin = min(max(first + int(rng.integers(-1, 2)), 0), 7)
                label = tubes[-1].label if rng.random() < 0.8 else int(rng.integers(3))
                near = x + float(rng.choice([2, 5, 30]))
                slots.append([(tube(label, range(begin, max(last, begin) + 1), near), round(float(rng.random()), 3))])
        slots = [slot for slot in slots if slot[0][1] >= 0.05]
        clips.append(video_clip(f"v{video}", tubes))
        found.append(slots)

        def track_of(one: Tube, number: int = video, score: float = 1.0) -> loops.Track:
            boxes = {frame: tuple(box) for frame, box in zip(one.frames.tolist(), one.boxes.tolist(), strict=True)}
            return loops.Track(number, one.label, boxes, score)  # type: ignore[arg-type]

        truth += map(track_of, tubes)
        tracks += [track_of(one, score=score) for slot in slots for one, score in slot]

    metrics = measure(index_of(*clips), found)
    true_boxes = [loops.FrameBox(t.video, frame, t.label, box) for t in truth for frame, box in t.boxes.items()]
    boxes = [loops.FrameBox(t.video, frame, t.label, box, t.score) for t in tracks for frame, box in t.boxes.items()]
    counted = sorted({track.label for track in truth})
    for label in counted:
        of_class = metrics.classes[CLASSES[label]]
        wanted = loops.frame_ap(true_boxes, boxes, label, rule="best unmatched", which="raw", annotated_only=False)
        assert of_class["frame"] == pytest.approx(wanted, abs=1e-6)
        assert of_class["video"] == pytest.approx(loops.video_ap(truth, tracks, label, 0.5, "raw", 1), abs=1e-6)
    for threshold in (0.2, 0.5, 0.75):
        wanted = [loops.video_ap(truth, tracks, label, threshold, "raw", 1) for label in counted]
        assert metrics.video_map[f"{threshold:g}"] == pytest.approx(np.mean(wanted), abs=1e-6)  # type: ignore[arg-type]
    assert metrics.tubes == len(truth)


# Key frames alone


def test_what_is_found_between_key_frames_counts_for_nothing() -> None:
    """A track through all frames is right if it is in the three that are annotated; one beside it is wrong there."""
    everywhere = tube(0, range(32), 20, speed=2)
    annotated = Tube(0, np.array([3, 13, 23]), everywhere.boxes[[3, 13, 23]])
    index = index_of(video_clip("a", [annotated], 32))
    found = measure(index, [[[(everywhere, 0.9)]]], 32)
    assert found.frame_map == found.video_map["0.5:0.95"] == 1.0
    assert found.switches == 0

    # It is in frame 13 alone.
    short = tube(0, range(10, 18), 20, speed=2)
    found = measure(index, [[[(short, 0.9)]]], 32)
    assert found.frame_map == pytest.approx(1 / 3)
    assert (found.video_map["0.2"], found.video_map["0.5"]) == (1.0, 0.0)

    # It is in none.
    between = tube(0, range(14, 20), 20, speed=2)
    assert measure(index, [[[(between, 0.9)]]], 32).frame_map == 0.0
    beside = tube(0, range(32), 300)
    assert measure(index, [[[(beside, 0.9)], [(everywhere, 0.6)]]], 32).video_map["0.5"] == pytest.approx(0.25)


# Windows of a cut video


def test_the_windows_of_a_video_are_linked() -> None:
    """In another order of slots in each; the twelfth window comes before the third by its name."""
    tubes = [tube(0, range(200), 20, speed=1), tube(1, range(30, 170), 300), tube(2, range(90, 95), 350)]
    index = cut_windows(index_of(video_clip("a", tubes, 200)), 0.64)
    assert len(index.clips) == 12
    rng = np.random.default_rng(0)
    answers = []
    for window in index.clips:
        slots = [[(Tube(one.label, one.frames, one.boxes), 0.9)] for one in window.tubes]
        answers.append([slots[number] for number in rng.permutation(len(slots))])
    found = measure(index, answers, 16)
    assert found.tubes == 3
    assert found.switches == 0
    assert found.video_map["0.5"] == 1.0
    assert found.frame_map is not None
    assert found.frame_map > 0.98


@pytest.mark.parametrize("chosen", [[0], [1], [0, 2], [2, 0, 1]])
def test_windows_that_were_not_seen_count_for_nothing(chosen: list[int]) -> None:
    walking = tube(0, range(24), 20, speed=2)
    index = cut_windows(index_of(video_clip("a", [walking], 24)), 8 / 25)
    assert [list(window.frames) for window in index.clips] == [list(range(first, first + 8)) for first in (0, 8, 16)]
    answers = [answer(index.clips[number], [[(walking, 0.9)]], 8) for number in chosen]
    scores, boxes = (torch.from_numpy(np.stack(each)) for each in zip(*answers, strict=True))
    found = measure_tubes(index, chosen, [Tracks(scores, boxes)], 8)
    assert found.tubes == 1
    assert found.frame_map == pytest.approx(1.0)
    # Behind a window that is missing he is somebody else, so that his tube is found in two halves.
    assert found.video_map["0.75"] == (0.0 if chosen == [0, 2] else 1.0)
    assert found.switches == (1 if chosen == [0, 2] else 0)


# Parts of clips


PARTS = {
    "overlap": [(0, 5), (3, 5), (6, 5), (9, 5), (11, 5)],
    "touch": [(0, 4), (4, 4), (8, 4), (12, 4)],
    "gaps": [(1, 3), (5, 2), (8, 3), (13, 1)],
    "frames": [(time, 1) for time in range(16)],
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_windows_are_linked(name: str) -> None:
    """In another order of slots in each part, and of windows."""
    tubes = [tube(0, range(200), 20, speed=1), tube(1, range(200), 300, speed=-0.1)]
    index = cut_windows(index_of(video_clip("a", tubes, 200)), 1.28)
    answers = [answer(clip, [[(each, 0.9)] for each in tubes], 16) for clip in index.clips]
    scores, boxes = (torch.from_numpy(np.stack(each)) for each in zip(*answers, strict=True))
    rng = np.random.default_rng(0)
    parts = []
    for first, length in PARTS[name]:
        inside = slice(first, first + length)
        order = rng.permutation(2)
        parts.append(Tracks(scores[:, order, inside], boxes[:, order, inside], first))

    order = rng.permutation(len(index.clips))
    parts = [part._replace(scores=part.scores[order], boxes=part.boxes[order]) for part in parts]
    found = measure_tubes(index, order.tolist(), parts, 16)
    assert (found.tubes, found.switches) == (2, 0)
    assert found.video_map["0.5"] == found.video_map["0.2"] == 1.0
    assert found.frame_map == 1.0
    if name != "gaps":
        assert found.video_map["0.75"] == 1.0


@pytest.mark.parametrize("name", PARTS)
def test_frames_that_repeat_in_parts(name: str) -> None:
    """A clip of one frame, and one of three."""
    for frames in (1, 3):
        tubes = [tube(0, range(frames), 20), tube(1, range(frames), 300)]
        index = index_of(video_clip("a", tubes, frames))
        scores, boxes = map(torch.from_numpy, answer(index.clips[0], [[(each, 0.9)] for each in tubes], 16))
        parts = [
            Tracks(scores[None, :, first : first + length], boxes[None, :, first : first + length], first)
            for first, length in PARTS[name]
        ]
        found = measure_tubes(index, [0], parts, 16)
        assert (found.frame_map, found.video_map["0.5:0.95"], found.switches) == (1.0, pytest.approx(1.0), 0)


# Switches of identity


def track(boxes: Sequence[np.ndarray], first: int = 0, score: float = 0.9) -> VideoTracks:
    scores = np.full((1, len(boxes), 1), score, np.float32)
    return VideoTracks(np.arange(first, first + len(boxes)), scores, np.stack(boxes)[None])


def truth_of(*places: Sequence[np.ndarray]) -> object:
    tracks = [np.column_stack([np.arange(len(boxes)), np.stack(boxes)]) for boxes in places]
    return tubes_of([0] * len(tracks), [0] * len(tracks), [1.0] * len(tracks), tracks)


LEFT, RIGHT, FAR = place(0), place(100), place(300)


@pytest.mark.parametrize(
    ("tracks", "switches"),
    [
        ([track([LEFT] * 8), track([RIGHT] * 8)], 0),
        # Two tracks change their actors, once and twice.
        ([track([LEFT] * 4 + [RIGHT] * 4), track([RIGHT] * 4 + [LEFT] * 4)], 2),
        ([track([LEFT] * 3 + [RIGHT] * 2 + [LEFT] * 3), track([RIGHT] * 3 + [LEFT] * 2 + [RIGHT] * 3)], 4),
        # One is lost for a while and found again by the same track, or by another one.
        ([track([LEFT] * 3 + [FAR] * 2 + [LEFT] * 3), track([RIGHT] * 8)], 0),
        ([track([LEFT] * 3), track([RIGHT] * 8), track([LEFT] * 3, first=5)], 1),
        # A track takes over from the other one, who is then found by nobody.
        ([track([LEFT] * 4 + [RIGHT] * 4), track([RIGHT] * 4 + [FAR] * 4)], 1),
        # Nobody is found, or by a track that is hardly there.
        ([], 0),
        ([track([LEFT] * 4), track([LEFT] * 8, score=0.2)], 0),
    ],
)
def test_switches_of_two_who_stand_still(tracks: list[VideoTracks], switches: int) -> None:
    truth = truth_of([LEFT] * 8, [RIGHT] * 8)
    assert count_switches(truth, tracks) == switches  # type: ignore[arg-type]
    assert count_switches(truth, tracks[::-1]) == switches  # type: ignore[arg-type]


def test_two_tracks_of_one_actor_are_no_switches() -> None:
    """Whoever has followed him goes on to do so, even if in some frames the other one is a little nearer."""
    shaking = [place(2.0 * (frame % 2)) for frame in range(8)]
    other = [place(2.0 * ((frame + 1) % 2)) for frame in range(8)]
    assert count_switches(truth_of([LEFT] * 8), [track(shaking), track(other)]) == 0  # type: ignore[arg-type]


def test_swapped_identities_are_counted_and_cost_video_map_alone() -> None:
    """All boxes of three videos are right in every frame, and in the last video so is who is who."""
    left, right = tube(0, ALL, 20), tube(0, ALL, 200)
    swapped = [
        [(tube(0, range(4), 20), 0.9), (tube(0, range(4, 8), 200), 0.9)],
        [(tube(0, range(4), 200), 0.9), (tube(0, range(4, 8), 20), 0.9)],
    ]
    right_ones = [[(left, 0.5)], [(right, 0.5)]]
    index = index_of(*(video_clip(name, [left, right]) for name in "abc"))
    found = measure(index, [swapped, swapped, right_ones])
    assert found.switches == 4
    assert found.frame_map == pytest.approx(1.0)
    assert found.describe()[1] == "identities: 4 switches"
    # Four wrong tubes and then two right ones, of six.
    points = [(0.0, 0.0), (1 / 5, 1 / 6), (2 / 6, 2 / 6)]
    area = sum((one[0] + two[0]) / 2 / 6 for one, two in pairwise(points))
    assert found.video_map["0.5"] == pytest.approx(area)

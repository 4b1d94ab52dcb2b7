"""Who does what from when to when: tubes of actors with their times, and a detector that follows them over a video."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from actdet.evaluation.tracks import VideoTracks, fill_frames
from actdet.models.tubelet.config import TubeletConfig
from actdet.prediction.actors import ActorLinker, FoundTube
from actdet.prediction.predictor import Gap, Predictor, Window, annotate_prediction
from actdet.video.decoding import decode_frames
from actdet.video.info import VideoInfo, probe
from actdet.video.sampling import sample_frames
from tests.actdet.prediction.followers import LEFT, PARTS, RIGHT, answer_in_parts, save_follower
from tests.actdet.video.videos import corrupt, write_video

NAMES = ("fight", "collapse")


def video_of(pts: list[int], end: int) -> VideoInfo:
    """In ticks of 1/100 s."""
    times = np.array(pts, np.int64)
    return VideoInfo("v", 100, 80, 0, Fraction(1, 100), times, end, "h264", True, 0)


def window(first: int, scores: list[list[list[float]]], x: float = 10.0) -> VideoTracks:
    """Of scores (slots, frames, classes); a box moves to the right by a pixel in each frame, 50 pixels a slot apart."""
    values = np.array(scores, np.float32)
    frames = np.arange(first, first + values.shape[1])
    left = x + frames + 50.0 * np.arange(len(values))[:, None]
    boxes = np.stack([left, left * 0 + 20.04, left + 30, left * 0 + 70], -1)
    return VideoTracks(frames, values, boxes.astype(np.float32))


# Times and numbers


def test_times_are_those_of_the_frames_whatever_the_rate() -> None:
    """A tube ends when its last frame gives way to the next one, or the video ends."""
    video = video_of([500, 504, 508, 530, 533, 700, 704, 708], 720)
    linker = ActorLinker(video, NAMES, 0.5)
    scores = [[[0.0, 0.0]] * 8, [[0.0, 0.0]] * 8]
    scores[0] = [[0.9, 0.0] if 1 <= frame <= 3 else [0.0, 0.0] for frame in range(8)]
    scores[1] = [[0.0, 0.8] if frame >= 5 else [0.0, 0.0] for frame in range(8)]
    assert linker.add(window(0, scores)) == []
    fight, collapse = linker.finish()
    assert (fight.actor, fight.action, fight.first_frame, len(fight.boxes)) == (1, "fight", 1, 3)
    assert (fight.start, fight.end) == pytest.approx((0.04, 0.33))
    assert fight.score == pytest.approx(0.9)
    assert (collapse.actor, collapse.action, collapse.first_frame, len(collapse.boxes)) == (2, "collapse", 5, 3)
    assert (collapse.start, collapse.end) == pytest.approx((2.0, 2.2))
    np.testing.assert_allclose(fight.boxes[0], [11, 20.04, 41, 70], atol=1e-4)
    assert fight.boxes.dtype == np.float32


def test_actors_keep_their_numbers_over_windows_and_may_do_several_things() -> None:
    video = video_of(list(range(0, 120, 4)), 120)
    linker = ActorLinker(video, NAMES, 0.5)
    both = [[[0.9, 0.0]] * 10, [[0.0, 0.7]] * 10]
    assert linker.add(window(0, both)) == []
    # The second slot goes on with the first actor, who now collapses, and the other one has left.
    (left,) = linker.add(window(10, [[[0.0, 0.6]] * 10]))
    assert (left.actor, left.action, left.first_frame, len(left.boxes)) == (2, "collapse", 0, 10)
    assert left.end == pytest.approx(0.4)
    # A third one comes.
    linker.add(window(20, [[[0.0, 0.6]] * 10, [[0.8, 0.0]] * 10]))
    rest = sorted(linker.finish(), key=lambda tube: (tube.actor, tube.start))
    told = [(tube.actor, tube.action, tube.first_frame, len(tube.boxes)) for tube in rest]
    assert told == [(1, "fight", 0, 10), (1, "collapse", 10, 20), (3, "fight", 20, 10)]
    assert rest[-1].end == pytest.approx(1.2)


@pytest.mark.parametrize(("threshold", "actions"), [(0.0, 2), (0.3, 2), (0.5, 1), (0.95, 0)])
def test_only_sure_actions_count(threshold: float, actions: int) -> None:
    linker = ActorLinker(video_of(list(range(0, 40, 4)), 40), NAMES, threshold)
    linker.add(window(0, [[[0.9, 0.4]] * 10]))
    found = linker.finish()
    assert len(found) == actions
    assert all(tube.score >= threshold for tube in found)


def test_facts_are_json_with_tenths_of_a_pixel() -> None:
    boxes = np.array([[1.04, 2.06, 30.0, 40.25], [1.0, 2.0, 3.0, 4.0]], np.float32)
    tube = FoundTube(2, "fight", 0.75, 0.5, 0.75, 12, boxes)
    facts = json.loads(json.dumps(tube.facts()))
    assert facts == {
        "actor": 2,
        "action": "fight",
        "score": 0.75,
        "start": 0.5,
        "end": 0.75,
        "first_frame": 12,
        "boxes": [[1.0, 2.1, 30.0, 40.2], [1.0, 2.0, 3.0, 4.0]],
    }


# A detector that follows actors


@pytest.fixture
def follower(tiny_backbone: None, tmp_path: Path) -> Predictor:
    """Of windows of a second."""
    return Predictor(save_follower(tmp_path / "follower", 1.0), device="cpu", precision="fp32")


def follow(predictor: Predictor, video: VideoInfo) -> list[FoundTube]:
    linker = ActorLinker(video, predictor.class_names, predictor.threshold)
    found: list[FoundTube] = []
    for each in predictor.findings(video):
        if isinstance(each, Window):
            for part in each.tracks:
                found += linker.add(part)
    return sorted(found + linker.finish(), key=lambda tube: (tube.first_frame, tube.actor))


UNEVEN = [700 + 40 * i + 13 * (i % 3) + 900 * (i > 50) for i in range(80)]


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 100},
        {"frames": 9},
        {"frames": 1},
        {"frames": 80, "pts": UNEVEN},
        {"frames": 100, "pictures": np.full((100, 48, 64, 3), 96, np.uint8)},
    ],
    ids=["long", "short", "one frame", "uneven", "frozen"],
)
def test_every_frame_of_a_video_has_its_actors(follower: Predictor, tmp_path: Path, options: dict[str, object]) -> None:
    video = probe(write_video(tmp_path / "v.mkv", "mjpeg", size=(64, 48), **options))  # type: ignore[arg-type]
    windows = list(follower.windows(video))
    frames = len(video.pts)
    seen = [set(part.frames.tolist()) for window in windows for part in window.tracks]
    assert set().union(*seen) == set(range(frames))
    for each, after in pairwise(seen):
        assert min(after) <= max(each) + 1

    found = follow(follower, video)
    if "pts" not in options:
        assert [(tube.actor, tube.action) for tube in found] == [(1, "fight"), (2, "fight")]
    by_frame: dict[int, set[tuple[float, ...]]] = {}
    for tube in found:
        for frame, box in enumerate(tube.boxes.round(1).tolist(), start=tube.first_frame):
            by_frame.setdefault(frame, set()).add(tuple(box))
    expected = {
        tuple(np.round(np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * (64, 48, 64, 48), 1).tolist())
        for x, y, w, h in (LEFT, RIGHT)
    }
    assert by_frame == dict.fromkeys(range(frames), expected)
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(video.seconds)


@pytest.mark.parametrize("frames", [1, 9, 100])
@pytest.mark.parametrize("name", PARTS)
def test_actors_are_the_same_if_the_detector_answers_in_parts(
    follower: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, frames: int
) -> None:
    """Of one window, of one frame or more, and of windows that overlap by half."""
    video = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=frames, size=(64, 48)))
    whole = follow(follower, video)
    answer_in_parts(monkeypatch, PARTS[name])
    for found in follower.windows(video):
        assert len(found.tracks) == len(PARTS[name])
    parts = follow(follower, video)
    assert [(tube.action, tube.first_frame) for tube in parts] == [("fight", 0), ("fight", 0)]
    for one, other in zip(parts, whole, strict=True):
        assert (one.actor, one.start, one.end) == (other.actor, other.start, other.end)
        assert one.score == pytest.approx(other.score, abs=1e-6)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-4)


def test_a_windows_tracks_are_those_of_the_frames_that_the_network_saw(tiny_backbone: None, tmp_path: Path) -> None:
    """Of a detector whose answers differ from frame to frame, interpolated to all frames of the window."""
    checkpoint = save_follower(tmp_path / "follower", 1.0)
    predictor = Predictor(checkpoint, device="cpu", precision="fp32", threshold=0.0)
    detector = predictor.detector
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name in ("class_heads.0.2.weight", "box_heads.0.2.weight"):
            weight = detector.get_parameter(name)
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    video = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=60, size=(64, 48)))
    spans = predictor.spans(video)
    windows = list(predictor.windows(video))
    assert len(windows) == len(spans) > 2
    for (start, end), found in zip(spans, windows, strict=True):
        shown = sample_frames(video, 8, start=start, end=end)
        (answer,) = predictor._decide(decode_frames(video, shown, (32, 32))[None])
        (said,) = answer.tracks
        (tracks,) = found.tracks
        frames = [frame for frame, time in enumerate(video.pts.tolist()) if start <= time < end]
        wanted = fill_frames(range(frames[0], frames[-1] + 1), shown, said.scores, said.boxes, video.pts, (64, 48))
        np.testing.assert_array_equal(tracks.frames, wanted.frames)
        np.testing.assert_allclose(tracks.scores, wanted.scores, atol=1e-5)
        np.testing.assert_allclose(tracks.boxes, wanted.boxes, atol=1e-3)
        assert np.ptp(tracks.scores[0, :, 0]) > 1e-3


def test_a_window_tells_the_same_actions_as_its_tracks(follower: Predictor, tmp_path: Path) -> None:
    video = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=40, size=(64, 48)))
    for found in follower.windows(video):
        assert [action.action for action in found.actions] == ["fight", "fight"]
        (tracks,) = found.tracks
        for action in found.actions:
            assert action.score == pytest.approx(float(tracks.scores[:, :, 0].mean()), abs=1e-5)
        boxes = sorted(action.box for action in found.actions)
        np.testing.assert_allclose(boxes, sorted(tracks.boxes[:, 0].tolist()), atol=0.06)


def test_behind_damage_actors_are_new(follower: Predictor, tmp_path: Path) -> None:
    """Nobody has seen what happened there."""
    path = write_video(tmp_path / "v.mkv", "mjpeg", frames=150, size=(64, 48))
    video = probe(corrupt(path, range(60, 90)))
    gaps = [each for each in follower.findings(video) if isinstance(each, Gap)]
    assert len(gaps) == 1
    found = follow(follower, video)
    assert [tube.actor for tube in found] == [1, 2, 3, 4]
    for tube in found:
        last = tube.first_frame + len(tube.boxes) - 1
        assert (tube.start >= gaps[0].end - 0.05) == (tube.actor > 2)
        assert last < 60 or tube.first_frame >= 90


def test_the_annotated_video_shows_the_boxes_of_each_frame(tmp_path: Path) -> None:
    """On a gray video: a box that jumps, a frame without one, and a stretch that was not looked at."""
    gray = np.full((12, 480, 480, 3), 96, np.uint8)
    video = probe(write_video(tmp_path / "v.mp4", frames=12, size=(480, 480), pictures=gray))
    places = [(40.0, 120.0, 200.0, 400.0), (280.0, 120.0, 440.0, 400.0)]
    tube = FoundTube(1, "fight", 0.9, 0.08, 0.24, 2, np.array([places[frame % 2] for frame in range(4)], np.float32))
    nothing = Window(0.0, 0.48, None, 0.2, None)
    gap = Gap(0.4, 0.48, damaged=False)
    annotate_prediction(video, [nothing], NAMES, tmp_path / "o.mp4", tubes=[tube], gaps=[gap])
    pictures = decode_frames(probe(tmp_path / "o.mp4"), range(12)).astype(int)
    for frame, picture in enumerate(pictures):
        left, right = (np.abs(picture[300, x - 2 : x + 5] - 96).max() > 40 for x in (40, 437))
        assert (left, right) == (frame in (2, 4), frame in (3, 5)), frame
        # The note in the upper left corner.
        assert (picture[6, 6:90].max() > 150) == (frame >= 10), frame


def test_a_threshold_between_the_scores_leaves_nobody(follower: Predictor, tmp_path: Path) -> None:
    video = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=30, size=(64, 48)))
    (sure,) = {round(tube.score, 3) for tube in follow(follower, video)}
    assert isinstance(follower.detector.config, TubeletConfig)
    follower.threshold = sure + 0.01
    assert follow(follower, video) == []
    windows = list(follower.windows(video))
    assert all(window.action is None for window in windows)
    assert [window.score for window in windows] == pytest.approx([sure] * len(windows), abs=1e-2)

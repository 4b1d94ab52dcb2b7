"""A detector slides over a video: its windows, its memory, its boxes, and the same answers as in an evaluation."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Generator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from actdet.data.config import ClipSize
from actdet.data.index import load_index
from actdet.data.loader import ClipLoader
from actdet.errors import ActdetError, DataError
from actdet.evaluation.clips import evaluate
from actdet.models.checkpoints import CheckpointInfo, save_checkpoint
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.detr.detector import ActionDetector
from actdet.prediction import predictor as prediction
from actdet.prediction.predictor import FoundAction, Gap, Predictor, Window, annotate_prediction
from actdet.video.decoding import decode_frames
from actdet.video.info import VideoInfo, probe
from actdet.video.pyav import PyAVReader
from actdet.video.sampling import sample_frames
from tests.actdet.video.videos import corrupt, set_matrix, shown_number, write_video

pytestmark = pytest.mark.usefixtures("tiny_backbone")

MODEL = ModelConfig(image_size=32, frames=8, encoder_layers=0, decoder_layers=1)

# Center, width and height of a box whose corners are (0.25, 0.5625) and (0.75, 0.9375).
BOX = (0.5, 0.75, 0.5, 0.375)


def _checkpoint(path: Path, seconds: float, *, box: tuple[float, ...] | None = None) -> Path:
    """The checkpoint of a detector for clips of `seconds`; if there is a `box`, it gives that box for any video."""
    torch.manual_seed(3)
    detector = ActionDetector(MODEL)
    with torch.no_grad():
        # Keeps the expected numbers of actions below 1.
        detector.class_head[-1].get_parameter("bias")[-1] += 5
        if box:
            detector.box_head[-1].get_parameter("weight").zero_()
            detector.box_head[-1].get_parameter("bias").copy_(torch.logit(torch.tensor(box)))
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    save_checkpoint(path, tensors, CheckpointInfo(MODEL, "pyav", seconds, LossConfig()))
    return path


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor(_checkpoint(tmp_path / "m.safetensors", 2.0), threshold=0.0, device="cpu", precision="fp32")


def _video(frames: int, fps: int, start: int = 0, base: Fraction = Fraction(1, 90000)) -> VideoInfo:
    tick = int(1 / base) // fps
    pts = start + tick * np.arange(frames, dtype=np.int64)
    return VideoInfo("none", 64, 48, 0, base, pts, int(pts[-1]) + tick, "h264", True, 0)


@pytest.mark.parametrize("start", [0, 900, -4500])
@pytest.mark.parametrize("fps", [1, 8, 25, 30])
@pytest.mark.parametrize("seconds", [1, 2, 3, 4, 5, 7, 8, 61])
def test_windows_cover_the_video_and_overlap_by_half(predictor: Predictor, seconds: int, fps: int, start: int) -> None:
    video = _video(seconds * fps, fps, start)
    spans = predictor.spans(video)
    assert spans[0][0] == start
    assert spans[-1][1] == video.end == start + seconds * 90000

    # Up to one and a half windows of 2 s are one window.
    if seconds <= 3:
        assert spans == [(start, video.end)]
        return
    assert {b - a for a, b in spans} == {180000}
    steps = [b[0] - a[0] for a, b in itertools.pairwise(spans)]
    assert set(steps[:-1]) <= {90000}
    assert 0 < steps[-1] <= 90000
    assert len(spans) == seconds - 1


def test_the_last_window_ends_with_the_video(predictor: Predictor) -> None:
    """The video has 3.375 s."""
    seconds = [(start / 90000, end / 90000) for start, end in predictor.spans(_video(27, 8))]
    assert seconds == [(0, 2), (1, 3), (1.375, 3.375)]


@pytest.mark.parametrize("clip_seconds", [1e-9, 0.04, 1e6])
def test_windows_of_extreme_lengths(predictor: Predictor, clip_seconds: float) -> None:
    predictor.info = CheckpointInfo(MODEL, "pyav", clip_seconds, LossConfig())
    spans = predictor.spans(_video(5, 25, base=Fraction(1, 25)))
    assert spans[0][0] == 0
    assert spans[-1][1] == 5
    assert all(a < b for a, b in spans)


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 8.8 s."""
    return write_video(tmp_path_factory.mktemp("long") / "v.mp4", frames=220, options={"bf": "2"})


def test_windows_come_in_order_with_their_times(predictor: Predictor, long_video: Path) -> None:
    windows = list(predictor.windows(long_video))
    assert [window.start for window in windows] == pytest.approx([*range(7), 6.8])
    assert [window.end for window in windows] == pytest.approx([*range(2, 9), 8.8])
    for window in windows:
        assert window.action in MODEL.class_names
        assert 0 <= window.score <= 1


class Watched(np.ndarray):
    """A picture that can have weak references, which tell whether anybody still holds it."""


@pytest.mark.parametrize("frames", [220, 1500])
def test_frames_are_those_of_their_window_and_few_are_kept(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    references: list[weakref.ref[Any]] = []
    counts = []
    given = []
    real = prediction.stream_past_damage

    def spy(*arguments: Any, **options: Any) -> Generator[tuple[int, np.ndarray], None, None]:
        for index, picture in real(*arguments, **options):
            given.append(index)
            assert picture is not None
            watched = picture.copy().view(Watched)
            watched[0, 0, :2] = index // 256, index % 256
            counts.append(sum(reference() is not None for reference in references))
            references.append(weakref.ref(watched))
            yield index, watched
            del watched

    monkeypatch.setattr(prediction, "stream_past_damage", spy)

    # With this batch size 8 frames are decoded ahead.
    monkeypatch.setattr(prediction, "BATCH_SIZE", 1)
    video = probe(write_video(tmp_path / "v.mp4", frames=frames))
    spans = predictor.spans(video)
    numbers = []
    for clip in predictor._clips(video, spans, []):
        assert clip is not None
        assert clip.shape == (8, 32, 32, 3)
        numbers.append(clip[:, 0, 0, 0].astype(int) * 256 + clip[:, 0, 0, 1])

    # The middles of eighths of 2 s at 25 frames a second are 3.125, 9.375, ... frames after the window's first.
    for (start, _), found in zip(spans, numbers, strict=True):
        first = start * float(video.time_base) * 25
        middles = [first + (i + 0.5) * 50 / 8 for i in range(8)]
        assert np.abs(found - np.array(middles)).max() <= 1
    assert given == sorted(set(given))
    assert len(given) > 30

    # Those of two windows, and as many as the thread is ahead.
    assert 0 < max(counts) <= 2 * 8 + 8


def _prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("name", ["b-frames.mp4", "late and uneven.mkv", "rotated.mp4", "short.mp4", "one.mkv"])
@pytest.mark.parametrize("batch", [1, 4])
def test_windows_are_those_of_one_clip_after_the_other(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, batch: int
) -> None:
    """The answers are those of decoding each window by itself, without a thread, and running the network on it."""
    uneven = [700 + 40 * i + 13 * (i % 3) + 900 * (i > 50) for i in range(150)]
    settings: dict[str, dict[str, Any]] = {
        "b-frames.mp4": {"frames": 220, "options": {"bf": "3", "g": "30"}},
        "late and uneven.mkv": {"frames": 150, "pts": uneven},
        "rotated.mp4": {"frames": 130, "size": (96, 64), "rotation": 90},
        "short.mp4": {"frames": 7},
        "one.mkv": {"frames": 1},
    }
    video = probe(write_video(tmp_path / name, **settings[name]))
    spans = predictor.spans(video)
    clips = [decode_frames(video, sample_frames(video, 8, start=a, end=b), (32, 32)) for a, b in spans]
    for ours, clip in zip(predictor._clips(video, spans, []), clips, strict=True):
        np.testing.assert_array_equal(ours, clip)
    monkeypatch.setattr(prediction, "BATCH_SIZE", batch)
    expected = []
    for first in range(0, len(spans), batch):
        pixels = np.stack(clips[first : first + batch])
        answers = predictor._decide(pixels)
        expected += map(partial(predictor._window, video), spans[first : first + batch], answers)
    assert list(predictor.windows(video)) == expected
    assert _prefetch_threads() == []


@pytest.mark.parametrize("taken", [0, 1, 4])
@pytest.mark.parametrize("how", ["close", "drop", "network"])
def test_who_stops_early_leaves_no_thread(
    predictor: Predictor, long_video: Path, monkeypatch: pytest.MonkeyPatch, taken: int, how: str
) -> None:
    # With this batch size not everything is decoded ahead.
    monkeypatch.setattr(prediction, "BATCH_SIZE", 1)
    windows = predictor.windows(long_video)
    for _ in range(taken):
        next(windows)
    assert len(_prefetch_threads()) == (taken > 0)
    if how == "close":
        windows.close()
    elif how == "drop":
        del windows
    else:

        def fail(*arguments: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(prediction, "predict_batch", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(windows)
    assert _prefetch_threads() == []


def test_a_long_video_takes_no_more_memory_of_batches(
    predictor: Predictor, long_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = prediction.predict_batch

    def spy(detector: Any, clips: torch.Tensor, dtype: Any) -> Any:
        sizes.append(len(clips))
        return real(detector, clips, dtype)

    monkeypatch.setattr(prediction, "predict_batch", spy)
    windows = predictor.windows(long_video)
    next(windows)

    # The rest is not looked at before it is asked for.
    assert sizes == [4]
    list(windows)
    assert sizes == [4, 4]


def test_windows_in_a_batch_do_not_influence_each_other(
    predictor: Predictor, long_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = list(predictor.windows(long_video))
    monkeypatch.setattr(prediction, "BATCH_SIZE", 1)
    alone = list(predictor.windows(long_video))
    for one, other in zip(together, alone, strict=True):
        assert one.action == other.action
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.box == pytest.approx(other.box, abs=0.11)


def test_a_clip_gets_the_answer_that_evaluation_gives_it(rendered: Path, trained: Path) -> None:
    predictor = Predictor(trained / "model.safetensors", threshold=0.0, device="cpu", precision="fp32")
    # All of a clip is one window.
    predictor.info = CheckpointInfo(MODEL, "pyav", 1e3, LossConfig())
    with torch.no_grad():
        # Keeps the expected numbers of actions below 1.
        predictor.detector.get_parameter("class_head.2.bias")[-1] += 5
    index = load_index(rendered)
    size = ClipSize(MODEL.frames, MODEL.image_size)
    loader = ClipLoader(index, size, PyAVReader((32, 32), 0), torch.device("cpu"))
    evaluation = evaluate(predictor.detector, loader, list(range(12)), LossConfig(), torch.float32)
    scores = []
    labels = []
    boxes = []
    for clip in index.clips:
        (window,) = predictor.windows(clip.video.path)
        assert window.box is not None
        scores.append(window.score)
        boxes.append(window.box)
        labels.append(window.action)
    assert scores == pytest.approx(evaluation.decision.score.tolist(), abs=1e-5)
    assert len(set(scores)) == 12
    x, y, w, h = (evaluation.decision.box * 64).T
    expected = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1).clamp(0, 64)
    assert torch.tensor(boxes) == pytest.approx(expected, abs=0.06)
    # With threshold 0 the label differs from the evaluation's only if its score is below one half.
    for label, score, name in zip(evaluation.decision.label.tolist(), scores, labels, strict=True):
        assert score < 0.5 or MODEL.class_names[label] == name


@pytest.mark.parametrize(
    ("matrix", "size"),
    [(None, (96, 64)), ((0, 1, -1, 0), (64, 96)), ((-1, 0, 0, -1), (96, 64)), ((0, -1, 1, 0), (64, 96))],
    ids=["upright", "90", "180", "270"],
)
def test_boxes_are_pixels_of_the_video_as_displayed(
    tmp_path: Path, matrix: tuple[int, int, int, int] | None, size: tuple[int, int]
) -> None:
    path = write_video(tmp_path / "v.mp4", frames=10, size=(96, 64))
    if matrix:
        set_matrix(path, *matrix)
    predictor = Predictor(_checkpoint(tmp_path / "m", 2.0, box=BOX), threshold=0.0, device="cpu", precision="fp32")
    (window,) = predictor.windows(path)
    width, height = size
    assert window.box == pytest.approx((0.25 * width, 0.5625 * height, 0.75 * width, 0.9375 * height), abs=0.051)


def test_a_box_ends_at_the_picture(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=10, size=(96, 64))
    huge = _checkpoint(tmp_path / "m", 2.0, box=(0.9, 0.2, 0.99, 0.99))
    (window,) = Predictor(huge, threshold=0.0, device="cpu", precision="fp32").windows(path)
    assert window.box is not None
    assert window.box == pytest.approx((0.405 * 96, 0, 96, 0.695 * 64), abs=0.06)
    assert 0 <= window.box[0] < window.box[2] == 96


def test_below_the_threshold_there_is_no_action_and_no_box(tmp_path: Path, long_video: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "m", 100.0)
    (sure,) = Predictor(checkpoint, threshold=0.0, device="cpu", precision="fp32").windows(long_video)
    for threshold, passes in ((sure.score - 1e-4, True), (sure.score + 1e-4, False)):
        (window,) = Predictor(checkpoint, threshold=threshold, device="cpu", precision="fp32").windows(long_video)
        assert (window.action, window.box) == ((sure.action, sure.box) if passes else (None, None))
        assert window.score == sure.score


@pytest.mark.parametrize("threshold", [-0.01, 1.01, float("nan")])
def test_a_threshold_is_a_probability(tmp_path: Path, threshold: float) -> None:
    with pytest.raises(ActdetError, match="threshold"):
        Predictor(_checkpoint(tmp_path / "m", 2.0), threshold=threshold)


def test_a_video_of_variable_rate_has_windows_in_seconds(predictor: Predictor, tmp_path: Path) -> None:
    """Ten frames in the first second, then one a second: windows are stretches of time, not numbers of frames."""
    pts = [100 * i for i in range(10)] + [1000 * i for i in range(1, 8)]
    video = probe(write_video(tmp_path / "v.mkv", frames=len(pts), pts=pts))
    windows = list(predictor.windows(video))
    assert windows[0].start == 0
    assert all(w.end - w.start == pytest.approx(2, abs=0.002) for w in windows)
    assert windows[-1].end == pytest.approx(video.seconds)
    assert [w.start for w in windows[:-1]] == pytest.approx(list(range(len(windows) - 1)), abs=0.002)
    annotate_prediction(video, windows, MODEL.class_names, tmp_path / "o.mp4")
    drawn = probe(tmp_path / "o.mp4")
    times = (drawn.pts - drawn.pts[0]) * float(drawn.time_base)
    assert times.tolist() == pytest.approx([t / 1000 for t in pts], abs=0.002)


@pytest.mark.parametrize("places", [[60], [130], [216], [2], [20, 25, 130], [0]])
def test_windows_before_and_behind_damage_come_out(predictor: Predictor, tmp_path: Path, places: list[int]) -> None:
    """The windows are those of the undamaged file that look at no lost frame, and gaps name all the rest."""
    path = write_video(tmp_path / "v.mkv", "mjpeg", frames=220, size=(64, 64))
    video = probe(path)
    whole = list(predictor.windows(path))
    rows = [sample_frames(video, 8, start=start, end=end) for start, end in predictor.spans(video)]
    broken = {frame for place in places for frame in range(place, place + 4)}
    for place in places:
        corrupt(path, range(place, place + 4))

    windows: list[Window] = []
    with pytest.raises(DataError, match="damaged") as caught:
        list(map(windows.append, predictor.windows(path)))
    assert str(caught.value).startswith(f"{path}: ")
    assert _prefetch_threads() == []

    # Without the first frame nothing tells the size of the pictures.
    if 0 in broken:
        assert windows == []
        return
    sound = [window for window, row in zip(whole, rows, strict=True) if broken.isdisjoint(row.tolist())]
    assert 0 < len(sound) <= len(whole)
    assert [(w.start, w.end, w.action) for w in windows] == [(w.start, w.end, w.action) for w in sound]
    assert [w.score for w in windows] == pytest.approx([w.score for w in sound], abs=1e-5)

    findings = list(predictor.findings(video))
    gaps = [finding for finding in findings if isinstance(finding, Gap)]
    assert [finding for finding in findings if isinstance(finding, Window)] == windows
    assert all(gap.damaged for gap in gaps)
    for frame in range(220):
        said = any(gap.start <= frame / 25 + 1e-3 < gap.end for gap in gaps)
        covered = any(window.start <= frame / 25 + 1e-3 < window.end for window in windows)
        assert said == (frame in broken or not covered), frame


def test_a_video_that_is_lost_from_a_frame_on_says_so(predictor: Predictor, tmp_path: Path) -> None:
    """Without a second keyframe nothing after the damage can be decoded."""
    noise = np.random.default_rng(0).integers(0, 255, (220, 48, 64, 3), dtype=np.uint8)
    options = {"g": "300", "sc_threshold": "0"}
    path = corrupt(write_video(tmp_path / "v.mp4", frames=220, options=options, pictures=noise), range(110, 130))
    findings = list(predictor.findings(probe(path)))
    assert isinstance(findings[-1], Gap)
    assert findings[-1].damaged
    assert findings[-1].end == pytest.approx(8.8)
    assert 4 <= findings[-1].start <= 4.8
    assert [finding.end for finding in findings[:-1]] == pytest.approx([2, 3, 4])


def _jumping(path: Path, jumps: dict[int, int], frames: int = 100) -> VideoInfo:
    """A video of 25 frames a second. `jumps` has the seconds by which the clock leaps before a frame, by its number."""
    late = np.cumsum([jumps.get(frame, 0) for frame in range(frames)])
    return probe(write_video(path, frames=frames, pts=[40 * n + 1000 * int(late[n]) for n in range(frames)]))


@pytest.mark.parametrize(
    "jumps",
    [
        {50: 86_400},
        {1: 86_400 * 365},
        {99: 86_400},
        {25: 3_600, 75: 7_200},
        {50: 3},
        dict.fromkeys(range(1, 100), 3),
        {},
    ],
    ids=["a day", "a year after one frame", "before the last frame", "twice", "3 s", "every frame", "none"],
)
def test_windows_are_only_where_frames_are(predictor: Predictor, tmp_path: Path, jumps: dict[int, int]) -> None:
    """However far a clock leaps, the windows cover what lies between its leaps, and the leaps are gaps."""
    video = _jumping(tmp_path / "v.mkv", jumps)
    findings = list(predictor.findings(video))
    windows = [finding for finding in findings if isinstance(finding, Window)]
    gaps = [finding for finding in findings if isinstance(finding, Gap)]
    borders = [0, *jumps, 100]
    parts = list(itertools.pairwise(borders))
    assert len(windows) == sum(max(1, round((last - first) / 25) - 1) for first, last in parts)
    times = ((video.pts - video.pts[0]) * float(video.time_base)).tolist()
    for window in windows:
        assert window.end - window.start <= 3.001
        assert any(window.start - 1e-6 <= time < window.end for time in times)
    for time in times:
        assert any(window.start - 1e-6 <= time < window.end for window in windows)
    assert [gap.end for gap in gaps] == pytest.approx([times[frame] for frame in jumps])
    assert not any(gap.damaged for gap in gaps)


def test_a_clock_set_from_1970_to_2023_takes_neither_time_nor_memory(predictor: Predictor) -> None:
    pts = np.arange(100, dtype=np.int64) * 3600
    pts[3:] += 1_690_000_000 * 90_000
    video = replace(_video(100, 25), pts=pts, end=int(pts[-1]) + 3600)
    assert len(predictor.spans(video)) == 1 + 3
    assert predictor.spans(video)[-1][1] == video.end


@pytest.mark.parametrize("shown", [1.0, 100.0, 1e9])
def test_a_last_frame_that_shows_for_long_is_no_windows(predictor: Predictor, shown: float) -> None:
    video = _video(50, 25)
    video = replace(video, end=int(video.pts[-1]) + round(shown * 90_000))
    spans = predictor.spans(video)
    assert len(spans) == 1
    assert spans[0][1] == (video.end if shown <= 2 else int(video.pts[-1]) + 3600)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["frozen", "thaws", "moving"])
def test_what_looks_like_the_window_before_is_not_computed_again(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, batch: int
) -> None:
    """One camera froze, and another one shows motion again after a while."""
    pictures = np.full((150, 48, 64, 3), 96, np.uint8)
    if kind == "thaws":
        pictures[110:, :, 20:40] = 10
    video = probe(write_video(tmp_path / "v.mkv", "mjpeg", 150, pictures=None if kind == "moving" else pictures))
    spans = predictor.spans(video)
    clips = [decode_frames(video, sample_frames(video, 8, start=a, end=b), (32, 32)) for a, b in spans]
    alike = [np.array_equal(one, other) for one, other in itertools.pairwise(clips)]
    assert len(spans) == 5
    assert sum(alike) == {"frozen": 4, "thaws": 2, "moving": 0}[kind]

    monkeypatch.setattr(prediction, "BATCH_SIZE", batch)
    computed = []
    real = prediction.predict_batch

    def spy(detector: Any, clips: torch.Tensor, dtype: Any) -> Any:
        computed.append(len(clips))
        return real(detector, clips, dtype)

    monkeypatch.setattr(prediction, "predict_batch", spy)
    windows = list(predictor.windows(video))
    assert sum(computed) == 5 - sum(alike)
    assert [w.start for w in windows] == pytest.approx([0, 1, 2, 3, 4])
    for (one, other), same in zip(itertools.pairwise(windows), alike, strict=True):
        assert (one.actions == other.actions) == same


def test_a_window_gives_all_its_actions(tmp_path: Path, long_video: Path) -> None:
    """With a threshold of 0 every class is an action; with a higher one, only the classes that reach it."""
    checkpoint = _checkpoint(tmp_path / "m", 100.0, box=BOX)
    (everything,) = Predictor(checkpoint, threshold=0.0, device="cpu", precision="fp32").windows(long_video)
    assert {found.action for found in everything.actions} == set(MODEL.class_names)
    scores = [found.score for found in everything.actions]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]
    for found in everything.actions:
        assert found.box == pytest.approx((0.25 * 64, 0.5625 * 48, 0.75 * 64, 0.9375 * 48), abs=0.06)
    surest = everything.actions[0]
    assert (everything.action, everything.score, everything.box) == (surest.action, surest.score, surest.box)
    between = (scores[0] + scores[1]) / 2
    (one,) = Predictor(checkpoint, threshold=between, device="cpu", precision="fp32").windows(long_video)
    assert one.actions == everything.actions[:1]


def test_all_boxes_of_a_window_are_drawn(tmp_path: Path) -> None:
    gray = np.full((5, 480, 480, 3), 96, np.uint8)
    video = probe(write_video(tmp_path / "v.mp4", frames=5, size=(480, 480), pictures=gray))
    left, right = (40.0, 120.0, 200.0, 400.0), (280.0, 120.0, 440.0, 400.0)
    found = (FoundAction("fight", 0.9, left), FoundAction("collapse", 0.8, right))
    annotate_prediction(video, [Window(0.0, 0.2, "fight", 0.9, left, found)], MODEL.class_names, tmp_path / "o.mp4")
    for picture in decode_frames(probe(tmp_path / "o.mp4"), range(5)).astype(int):
        for x in (40, 199, 280, 439):
            assert np.abs(picture[300, x - 2 : x + 5] - 96).max() > 40, x


def test_an_annotated_video_has_room_for_a_clock_that_leaps(predictor: Predictor, tmp_path: Path) -> None:
    video = _jumping(tmp_path / "v.mkv", {50: 86_400 * 365 * 50})
    windows = list(predictor.windows(video))
    assert annotate_prediction(video, windows, MODEL.class_names, tmp_path / "o.mp4") == []
    drawn = probe(tmp_path / "o.mp4")
    assert len(drawn.pts) == 100
    steps = np.diff(drawn.pts) * float(drawn.time_base)
    assert steps.tolist() == pytest.approx([60 if n == 49 else 0.04 for n in range(99)], abs=0.002)


def test_frames_that_are_lost_are_still_pictures_in_the_annotated_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", "mjpeg", frames=60, size=(480, 480))
    video = probe(corrupt(corrupt(path, range(20, 24)), range(40, 41)))
    windows = [Window(0, 2.4, None, 0.1, None)]
    lost = annotate_prediction(video, windows, MODEL.class_names, tmp_path / "o.mp4")
    assert [gap.start for gap in lost] == pytest.approx([0.8, 1.6])
    assert [gap.end for gap in lost] == pytest.approx([0.96, 1.64])
    pictures = decode_frames(probe(tmp_path / "o.mp4"), range(60))
    shown = [*range(20), *[19] * 4, *range(24, 40), 39, *range(41, 60)]
    assert [shown_number(picture) for picture in pictures] == shown


def _window(start: float, end: float, found: FoundAction) -> Window:
    return Window(start, end, found.action, found.score, found.box, (found,))


def test_the_annotated_video_shows_the_nearest_window(tmp_path: Path) -> None:
    """On a gray video of 4.4 s, with windows whose boxes lie apart, pixels at the edges tell which box is drawn."""
    gray = np.full((110, 480, 480, 3), 96, np.uint8)
    video = probe(write_video(tmp_path / "v.mp4", frames=110, size=(480, 480), pictures=gray))
    windows = [
        _window(0.0, 2.0, FoundAction("fight", 0.9, (40.0, 120.0, 200.0, 400.0))),
        prediction.Window(1.0, 3.0, None, 0.2, None),
        _window(2.4, 4.4, FoundAction("collapse", 0.8, (280.0, 120.0, 440.0, 400.0))),
    ]
    annotate_prediction(video, windows, MODEL.class_names, tmp_path / "o" / "v.mp4")
    with av.open(str(tmp_path / "o" / "v.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(pictures) == 110
    for number, picture in enumerate(pictures):
        left, right = (np.abs(picture[300, x - 2 : x + 5] - 96).max() > 40 for x in (40, 439 - 2))

        # The middles of the windows are at 1, 2 and 3.4 s. Some frames are as near to one window as to another.
        time = number / 25
        if min(abs(time - 1.5), abs(time - 2.7)) < 0.03:
            continue
        assert (left, right) == (time < 1.5, time > 2.7), number

        # The note "no action" is in the upper left corner.
        assert (picture[6, 6:90].max() > 150) == (1.5 < time < 2.7), number
        assert np.abs(picture[300, 240] - 96).max() < 12


@pytest.mark.parametrize(("size", "frames"), [((97, 55), 7), ((64, 48), 1), ((33, 201), 5)])
def test_odd_sizes_and_single_frames(predictor: Predictor, tmp_path: Path, size: tuple[int, int], frames: int) -> None:
    video = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=frames, size=size))
    windows = list(predictor.windows(video))
    assert len(windows) == 1
    annotate_prediction(video, windows, MODEL.class_names, tmp_path / "o.mp4")
    assert len(probe(tmp_path / "o.mp4").pts) == frames

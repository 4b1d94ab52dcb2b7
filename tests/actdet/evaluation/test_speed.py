"""A whole evaluation of 900 videos of 175 frames: at least 50 times as fast as plain loops, in bounded memory.

The loops take half an hour for it, so they go through every 100th video, and their time is multiplied by 100. That is
in their favor: only sorting takes more than a hundred times as long for a hundred times as many detections.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from actdet.evaluation.arrays import Truth, TubeBoxes, TubeletBoxes, to_offsets
from actdet.evaluation.protocols import ACT, AVERAGED_THRESHOLDS
from actdet.evaluation.reading import Found
from actdet.evaluation.scoring import score_found
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.loops import FrameBox, Tubelet
from tests.actdet.evaluation.scenes import frames_of, tracks_of

VIDEOS = 900
FRAMES = 175
CLASSES = 24
BOXES = 6
SHARE = 100


def data_set(seed: int = 0) -> tuple[Truth, TubeletBoxes]:
    """One action of 100 frames in each video; in each frame six boxes, half of them near it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, VIDEOS)
    first = rng.integers(0, FRAMES - 100, VIDEOS)
    corners = rng.uniform(0, 150, (VIDEOS, 2))
    sizes = rng.uniform(40, 90, (VIDEOS, 2))
    boxes = np.concatenate([corners, corners + sizes], axis=1)

    tubes = TubeBoxes(
        np.arange(VIDEOS),
        labels,
        np.ones(VIDEOS),
        to_offsets(np.full(VIDEOS, 100)),
        (first[:, None] + np.arange(100)).reshape(-1),
        np.repeat(boxes, 100, axis=0) + rng.normal(0, 1, (VIDEOS * 100, 1)),
    )
    names = tuple(f"v{i}" for i in range(VIDEOS))
    classes = tuple(f"c{i}" for i in range(CLASSES))
    lengths = np.full(VIDEOS, FRAMES)
    truth = Truth(classes, names, lengths, tubes.as_frames(), tubes, closed=True, numbered=True)

    count = VIDEOS * FRAMES * BOXES
    videos = np.repeat(np.arange(VIDEOS), FRAMES * BOXES)
    near = np.tile(np.arange(BOXES) < BOXES // 2, VIDEOS * FRAMES)
    elsewhere = rng.uniform(0, 150, (count, 2))
    found = np.where(
        near[:, None],
        boxes[videos] + rng.normal(0, 8, (count, 4)),
        np.concatenate([elsewhere, elsewhere + rng.uniform(40, 90, (count, 2))], axis=1),
    )
    tubelets = TubeletBoxes(
        videos,
        np.tile(np.repeat(np.arange(FRAMES), BOXES), VIDEOS),
        np.where(near & (rng.random(count) < 0.8), labels[videos], rng.integers(0, CLASSES, count)),
        found[:, None],
        rng.random(count) * np.where(near, 1.0, 0.6),
    )
    return truth, tubelets


def by_video(tubelets: TubeletBoxes) -> Found:
    bounds = np.searchsorted(tubelets.videos, np.arange(VIDEOS + 1))
    tables = (tubelets.take(slice(bounds[i], bounds[i + 1])) for i in range(VIDEOS))
    return Found(tables, None, np.full(VIDEOS, FRAMES), [])


def evaluate_by_loops(truth: Truth, tubelets: TubeletBoxes, chosen: np.ndarray) -> list[float]:
    """The figures and the splits of errors that `score_found` gives, for some videos."""
    assert truth.tubes is not None
    tracks = tracks_of(truth.tubes.take(np.isin(truth.tubes.videos, chosen)))
    table = tubelets.take(np.isin(tubelets.videos, chosen))
    items = [
        Tubelet(video, start, label, (tuple(box[0]),), score)
        for video, start, label, box, score in zip(
            table.videos.tolist(),
            table.starts.tolist(),
            table.labels.tolist(),
            table.boxes.tolist(),
            table.scores.tolist(),
            strict=True,
        )
    ]
    present = sorted({track.label for track in tracks})

    def mean(ap: Callable[[int], float | None]) -> float:
        values = [value for label in present if (value := ap(label)) is not None]
        return sum(values) / len(values)

    boxes: list[FrameBox] = frames_of(tracks)
    pooled = loops.pool(items, 0.3, soft=False)
    figures = [
        mean(lambda label: loops.frame_ap(boxes, pooled, label)),
        mean(lambda label: loops.frame_ap(boxes, pooled, label, annotated_only=True)),
    ]
    for label in present:
        loops.frame_errors(boxes, pooled, label, 0.5)
        annotated = {(item.video, item.frame) for item in boxes}
        loops.frame_errors(boxes, [item for item in pooled if (item.video, item.frame) in annotated], label, 0.5)

    linked = loops.link_all(items, FRAMES, 0.01, threshold=0.3, soft=False, overlap=0.2, gap=5)
    linked = loops.suppress_tracks(linked, 0.3)
    for threshold in (0.2, 0.5, 0.75):
        figures.append(mean(lambda label, at=threshold: loops.video_ap(tracks, linked, label, at)))
        for label in present:
            loops.video_errors(tracks, linked, label, threshold)
    over_thresholds = [
        mean(lambda label, at=threshold: loops.video_ap(tracks, linked, label, at)) for threshold in AVERAGED_THRESHOLDS
    ]
    return [*figures, sum(over_thresholds) / len(over_thresholds)]


def _seconds_of_scoring(truth: Truth, tubelets: TubeletBoxes) -> float:
    began = time.process_time()
    score_found(truth, by_video(tubelets), ACT, ["all", "annotated"])
    return time.process_time() - began


@pytest.mark.slow
def test_fifty_times_as_fast_as_loops(capsys: pytest.CaptureFixture[str]) -> None:
    truth, tubelets = data_set()
    # The least of three: beside other work a processor's caches are not its own.
    seconds = min(_seconds_of_scoring(truth, tubelets) for _ in range(3))
    figures = score_found(truth, by_video(tubelets), ACT, ["all", "annotated"])
    assert all(figure.precision.mean is not None for figure in figures)

    chosen = np.arange(0, VIDEOS, SHARE)
    began = time.process_time()
    expected = evaluate_by_loops(truth, tubelets, chosen)
    loop_seconds = (time.process_time() - began) * SHARE
    with capsys.disabled():
        ratio = loop_seconds / seconds
        print(f"\n{seconds:.2f} s, loops {loop_seconds:.0f} s (every {SHARE}th video, scaled): {ratio:.0f} x")
    assert loop_seconds / seconds >= 50

    # The same figures for those videos.
    within = np.isin(truth.frames.videos, chosen)
    assert truth.tubes is not None
    tubes = truth.tubes.take(np.isin(truth.tubes.videos, chosen))
    some = Truth(
        truth.class_names, truth.videos, truth.lengths, truth.frames.take(within), tubes, closed=True, numbered=True
    )
    found = by_video(tubelets.take(np.isin(tubelets.videos, chosen)))
    found = found._replace(tubelets=[table for table in found.tubelets if len(table)])
    again = score_found(some, found, ACT, ["all", "annotated"])
    assert [figure.precision.mean for figure in again] == pytest.approx(expected, abs=1e-9)


def test_memory_stays_bounded() -> None:
    """945,000 boxes are 68 MB; a working set for a portion of the videos, and what is kept of the rest, come on top."""
    truth, tubelets = data_set()
    tracemalloc.start()
    score_found(truth, by_video(tubelets), ACT, ["all", "annotated"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 400e6

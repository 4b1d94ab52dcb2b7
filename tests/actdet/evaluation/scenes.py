"""Random truth and detections, as lists for the loops of `loops.py` and as tables for the program.

Coordinates and scores come from few values, so that overlaps and scores are often equal, and so that thresholds are
met exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from actdet.evaluation.arrays import FrameBoxes, TubeBoxes, TubeletBoxes
from actdet.evaluation.tubes import tubes_of
from tests.actdet.evaluation.loops import Box, FrameBox, Track, Tubelet

FRAMES = 24
CLASSES = 4


class Scene(NamedTuple):
    truth: list[Track]
    tubelets: list[Tubelet]
    videos: int


def random_scene(seed: int, length: int = 1, videos: int = 4, coarse: bool = True, per_frame: int = 3) -> Scene:
    """Make a few videos. Class 3 is never true, video 0 has no truth, and some frames have no detection.

    Args:
        seed: Of the random numbers.
        length: How many boxes a tubelet has.
        videos: How many videos.
        coarse: Whether numbers come from few values.
        per_frame: How many tubelets begin in a frame, on average.
    """
    rng = np.random.default_rng(seed)
    truth = []
    for video in range(1, videos):
        for _ in range(rng.integers(1, 4)):
            first = int(rng.integers(FRAMES))
            last = int(rng.integers(first, FRAMES))
            box = random_box(rng, coarse)
            frames = range(first, last + 1)
            truth.append(Track(video, int(rng.integers(CLASSES - 1)), {i: moved(rng, box, coarse) for i in frames}))

    tubelets = []
    for video in range(videos):
        near = [track for track in truth if track.video == video]
        for start in range(FRAMES - length + 1):
            for _ in range(rng.poisson(per_frame) if rng.random() < 0.8 else 0):
                label = int(rng.integers(CLASSES))
                boxes = tuple(random_box(rng, coarse) for _ in range(length))
                if near and rng.random() < 0.7:
                    track = near[rng.integers(len(near))]
                    label = track.label if rng.random() < 0.8 else label
                    some = next(iter(track.boxes.values()))
                    boxes = tuple(moved(rng, track.boxes.get(start + k, some), coarse) for k in range(length))
                score = float(rng.integers(1, 8) / 8 if coarse else rng.random())
                tubelets.append(Tubelet(video, start, label, boxes, score))
    return Scene(truth, tubelets, videos)


def random_box(rng: np.random.Generator, coarse: bool) -> Box:
    step = 4 if coarse else 1e-9
    x, y, width, height = (float(np.floor(value / step) * step) for value in rng.uniform(0, 1, 4) * (40, 40, 30, 30))
    return x, y, x + width, y + height


def moved(rng: np.random.Generator, box: Box, coarse: bool) -> Box:
    x, y = rng.choice([-4.0, 0.0, 0.0, 4.0], 2) if coarse else rng.normal(0, 3, 2)
    return box[0] + float(x), box[1] + float(y), box[2] + float(x), box[3] + float(y)


def frames_of(tracks: list[Track]) -> list[FrameBox]:
    return [FrameBox(track.video, frame, track.label, box) for track in tracks for frame, box in track.boxes.items()]


def frame_table(items: list[FrameBox]) -> FrameBoxes:
    return FrameBoxes(
        np.array([item.video for item in items], dtype=np.int64),
        np.array([item.frame for item in items], dtype=np.int64),
        np.array([item.label for item in items], dtype=np.int64),
        np.array([item.box for item in items], dtype=np.float64).reshape(-1, 4),
        np.array([item.score for item in items], dtype=np.float64),
    )


def tubelet_table(items: list[Tubelet], length: int) -> TubeletBoxes:
    return TubeletBoxes(
        np.array([item.video for item in items], dtype=np.int64),
        np.array([item.start for item in items], dtype=np.int64),
        np.array([item.label for item in items], dtype=np.int64),
        np.array([item.boxes for item in items], dtype=np.float64).reshape(-1, length, 4),
        np.array([item.score for item in items], dtype=np.float64),
    )


def tube_table(tracks: list[Track]) -> TubeBoxes:
    return tubes_of(
        [track.video for track in tracks],
        [track.label for track in tracks],
        [track.score for track in tracks],
        [np.array([(frame, *box) for frame, box in track.boxes.items()]) for track in tracks],
    )


def tracks_of(tubes: TubeBoxes) -> list[Track]:
    tracks = []
    for i in range(len(tubes)):
        rows = slice(tubes.offsets[i], tubes.offsets[i + 1])
        boxes = {
            int(frame): (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
            for frame, box in zip(tubes.frames[rows], tubes.boxes[rows], strict=True)
        }
        tracks.append(Track(int(tubes.videos[i]), int(tubes.labels[i]), boxes, float(tubes.scores[i])))
    return tracks

"""Boxes, tubelets and tubes of many videos, each kind as a few long arrays instead of millions of objects.

Row i of every array of a table is about the same thing. Videos and classes are numbers, counted from 0: positions in
`Truth.videos` and `Truth.class_names`. Frames count from 0, too, whatever the file counted from. Boxes are x1 y1 x2 y2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actdet.errors import ActdetError

# Up to these counts, a video, a frame and a class together fit into one int64, which is what things are grouped by. So
# many frames are four years of video.
MOST_VIDEOS = 10**6
MOST_FRAMES = 4 * 10**9
MOST_CLASSES = 2000


@dataclass(frozen=True)
class FrameBoxes:
    """Boxes in single frames: the answers of a detector, or the truth."""

    videos: np.ndarray
    """(n,) int64."""
    frames: np.ndarray
    """(n,) int64. AVA counts seconds instead."""
    labels: np.ndarray
    """(n,) int64, classes."""
    boxes: np.ndarray
    """(n, 4) float."""
    scores: np.ndarray
    """(n,) float, higher is surer; 1 for truth."""

    def __post_init__(self) -> None:
        _check(self, (4,), self.frames)

    def __len__(self) -> int:
        return len(self.videos)

    def take(self, rows: np.ndarray | slice) -> FrameBoxes:
        """Select rows, by index, mask or slice."""
        return FrameBoxes(self.videos[rows], self.frames[rows], self.labels[rows], self.boxes[rows], self.scores[rows])


@dataclass(frozen=True)
class TubeletBoxes:
    """Tubelets: K boxes in consecutive frames that share a class and a score. A box of a single frame has K = 1."""

    videos: np.ndarray
    """(n,) int64."""
    starts: np.ndarray
    """(n,) int64, the frame of the first box."""
    labels: np.ndarray
    """(n,) int64, classes."""
    boxes: np.ndarray
    """(n, K, 4) float, in the frames start, start + 1, ..., start + K - 1."""
    scores: np.ndarray
    """(n,) float, higher is surer."""

    def __post_init__(self) -> None:
        _check(self, (self.boxes.shape[1] if self.boxes.ndim > 1 else 0, 4), self.starts)

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def length(self) -> int:
        """K."""
        return self.boxes.shape[1]

    def take(self, rows: np.ndarray | slice) -> TubeletBoxes:
        """Select rows, by index, mask or slice."""
        return TubeletBoxes(
            self.videos[rows], self.starts[rows], self.labels[rows], self.boxes[rows], self.scores[rows]
        )

    def as_frames(self) -> FrameBoxes:
        """Return the n * K boxes of the tubelets, one after another, each with its tubelet's score."""
        length = self.length
        frames = self.starts[:, None] + np.arange(length)
        return FrameBoxes(
            np.repeat(self.videos, length),
            frames.reshape(-1),
            np.repeat(self.labels, length),
            self.boxes.reshape(-1, 4),
            np.repeat(self.scores, length),
        )


@dataclass(frozen=True)
class TubeBoxes:
    """Tubes: a class, a score, and a box in each of their frames. Tube i has the rows offsets[i] to offsets[i + 1]."""

    videos: np.ndarray
    """(n,) int64."""
    labels: np.ndarray
    """(n,) int64, classes."""
    scores: np.ndarray
    """(n,) float, higher is surer; 1 for truth."""
    offsets: np.ndarray
    """(n + 1,) int64, from 0 to m. No tube is empty."""
    frames: np.ndarray
    """(m,) int64, ascending within a tube. They may have gaps."""
    boxes: np.ndarray
    """(m, 4) float."""

    def __post_init__(self) -> None:
        _check_rows(self, (self.videos, self.labels, self.scores))
        _require(len(self.offsets) == len(self.videos) + 1, "tubes need one offset more than there are tubes")
        _require(bool((self.counts > 0).all()), "a tube needs at least one frame")
        _require(self.offsets[0] == 0, "the offsets of tubes start at 0")
        _require(self.boxes.shape == (len(self.frames), 4), "the boxes of tubes need the shape (frames, 4)")
        _require(self.offsets[-1] == len(self.frames), "the offsets of tubes end at the number of their frames")
        _check_values(self.videos, self.frames, self.labels, self.boxes, self.scores)

        same_tube = np.ones(max(len(self.frames) - 1, 0), dtype=bool)
        same_tube[self.offsets[1:-1] - 1] = False
        _require(bool((np.diff(self.frames)[same_tube] > 0).all()), "the frames of a tube must ascend")

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def counts(self) -> np.ndarray:
        """(n,) int64, how many frames each tube has."""
        return np.diff(self.offsets)

    @property
    def first(self) -> np.ndarray:
        """(n,) int64, the first frame of each tube."""
        return self.frames[self.offsets[:-1]]

    @property
    def last(self) -> np.ndarray:
        """(n,) int64, the last frame of each tube."""
        return self.frames[self.offsets[1:] - 1]

    def take(self, rows: np.ndarray) -> TubeBoxes:
        """Select tubes, by index or by mask."""
        rows = np.arange(len(self))[rows]
        counts = self.counts[rows]
        inside = spans(self.offsets[rows], counts)
        return TubeBoxes(
            self.videos[rows],
            self.labels[rows],
            self.scores[rows],
            to_offsets(counts),
            self.frames[inside],
            self.boxes[inside],
        )

    def as_frames(self) -> FrameBoxes:
        """Return the boxes of the tubes, one after another, each with its tube's score."""
        counts = self.counts
        return FrameBoxes(
            np.repeat(self.videos, counts),
            self.frames,
            np.repeat(self.labels, counts),
            self.boxes,
            np.repeat(self.scores, counts),
        )


@dataclass(frozen=True)
class Truth:
    """What is true of the videos that detections are compared with."""

    class_names: tuple[str, ...]
    videos: tuple[str, ...]
    """Names of the videos, with those in which nothing happens."""
    lengths: np.ndarray
    """(videos,) int64, how many frames each video has; 0 if the file does not say it."""
    frames: FrameBoxes
    """Every annotated box."""
    tubes: TubeBoxes | None
    """The same boxes as tubes; None if the file does not say which boxes belong together."""
    closed: bool
    """Whether these are all classes that there are, so that a detection of another one is a mistake."""
    numbered: bool
    """Whether a number means a class. If not, the order of the names is ours, and detections must name their class."""


def spans(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenate the ranges begins[i], ..., begins[i] + counts[i] - 1."""
    offsets = to_offsets(counts)
    return np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], counts)


def to_offsets(counts: np.ndarray) -> np.ndarray:
    """(n + 1,) int64, where each of n groups begins if they lie one after another, and where the last one ends."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def frame_keys(videos: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(n,) int64, equal exactly for equal pairs of a video and a frame, and ascending with both."""
    return videos.astype(np.int64) * MOST_FRAMES + frames


def class_keys(keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) int64, equal exactly for equal pairs of a key and a class. A key may be that of a frame, or a video."""
    return keys.astype(np.int64) * MOST_CLASSES + labels


def join_frames(tables: Sequence[FrameBoxes]) -> FrameBoxes:
    """Append tables to each other."""
    if not tables:
        return empty_frames()
    columns = ("videos", "frames", "labels", "boxes", "scores")
    return FrameBoxes(*(np.concatenate([getattr(table, name) for table in tables]) for name in columns))


def join_tubelets(tables: Sequence[TubeletBoxes]) -> TubeletBoxes:
    """Append tables, at least one, of the same K to each other."""
    columns = ("videos", "starts", "labels", "boxes", "scores")
    return TubeletBoxes(*(np.concatenate([getattr(table, name) for table in tables]) for name in columns))


def join_tubes(tables: Sequence[TubeBoxes]) -> TubeBoxes:
    """Append tables to each other."""
    if not tables:
        return empty_tubes()
    counts = np.concatenate([table.counts for table in tables])
    columns = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in ("videos", "labels", "scores", "frames", "boxes")
    }
    return TubeBoxes(offsets=to_offsets(counts), **columns)


def empty_frames() -> FrameBoxes:
    """A table without boxes."""
    none = np.zeros(0, dtype=np.int64)
    return FrameBoxes(none, none, none, np.zeros((0, 4)), np.zeros(0))


def empty_tubes() -> TubeBoxes:
    """A table without tubes."""
    none = np.zeros(0, dtype=np.int64)
    return TubeBoxes(none, none, np.zeros(0), np.zeros(1, dtype=np.int64), none, np.zeros((0, 4)))


def _check(table: FrameBoxes | TubeletBoxes, box_shape: tuple[int, ...], frames: np.ndarray) -> None:
    _check_rows(table, (table.videos, frames, table.labels, table.scores))
    if table.boxes.shape != (len(table.videos), *box_shape):
        problem = f"cannot have boxes of the shape {table.boxes.shape}"
        raise ActdetError(f"{type(table).__name__} of {len(table.videos)} rows {problem}")
    _check_values(table.videos, frames, table.labels, table.boxes, table.scores)


def _check_rows(table: object, columns: Sequence[np.ndarray]) -> None:
    shapes = {column.shape for column in columns}
    if len(shapes) > 1 or columns[0].ndim != 1:
        raise ActdetError(f"the columns of {type(table).__name__} need one length, got {sorted(shapes)}")


def _check_values(
    videos: np.ndarray, frames: np.ndarray, labels: np.ndarray, boxes: np.ndarray, scores: np.ndarray
) -> None:
    for name, column, most in (
        ("video", videos, MOST_VIDEOS),
        ("frame", frames, MOST_FRAMES),
        ("class", labels, MOST_CLASSES),
    ):
        if column.dtype.kind not in "iu":
            raise ActdetError(f"a {name} must be a whole number, got {column.dtype}")
        if len(column) and not 0 <= column.min() <= column.max() < most:
            raise ActdetError(f"a {name} must lie in [0, {most})")

    _require(bool(np.isfinite(boxes).all()), "a box is not finite (NaN or infinity)")
    _require(bool(np.isfinite(scores).all()), "a score is not finite (NaN or infinity)")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ActdetError(problem)

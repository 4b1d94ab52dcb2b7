"""The clips of a data set, checked, with the timestamps of all their frames: what training and evaluation work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actdet.data.annotations import Annotation
from actdet.data.boxes import to_centers
from actdet.data.tubes import tube_of_clip_line
from actdet.detections import Tube
from actdet.errors import DataError
from actdet.video.info import VideoInfo
from actdet.video.sampling import sample_frames


@dataclass(frozen=True, eq=False)
class Clip:
    """A video, or a part of it, and what happens in it."""

    name: str
    video: VideoInfo
    annotations: tuple[Annotation, ...]
    """What a detector of whole clips learns: of each action the box around it for as long as it lasts."""
    annotated: bool = True
    """Whether it has an annotation file, even if that is empty."""
    table: tuple[Tube, ...] | None = None
    """The tubes of its table; None for a clip with lines of actions, or without annotations."""
    span: tuple[int, int] | None = None
    """The first of its frames, and the one behind the last; None if it is the whole video."""
    cut_from: str | None = None
    """The name of the video if it is a part of it, which then has a name of its own."""
    whole_table: tuple[Tube, ...] | None = None
    """The tubes of the whole video if it is a part of it."""

    @property
    def video_name(self) -> str:
        """The name of its video, by which files of groups and lists of clips know it."""
        return self.cut_from or self.name

    @property
    def frames(self) -> range:
        """Which frames of the video it consists of."""
        return range(len(self.video.pts)) if self.span is None else range(*self.span)

    @property
    def ticks(self) -> tuple[int, int]:
        """When it begins and ends, in the video's ticks."""
        frames = self.frames
        is_last = frames.stop == len(self.video.pts)
        return int(self.video.pts[frames.start]), self.video.end if is_last else int(self.video.pts[frames.stop])

    @property
    def seconds(self) -> float:
        """How long it is."""
        start, end = self.ticks
        return float((end - start) * self.video.time_base)

    def sample(self, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Choose frames of it as `sample_frames` does: (count,) int64, ascending."""
        start, end = self.ticks
        return sample_frames(self.video, count, start=start, end=end, rng=rng)

    @property
    def tubes(self) -> tuple[Tube, ...]:
        """Its actions, frame by frame; one of a line `class x1 y1 x2 y2` has the same box in all frames."""
        if self.table is not None:
            return self.table
        return tuple(tube_of_clip_line(annotation, self.frames) for annotation in self.annotations)

    @property
    def video_tubes(self) -> tuple[Tube, ...]:
        """The actions of its whole video, frame by frame."""
        return self.tubes if self.whole_table is None else self.whole_table

    @property
    def has_key_frames_alone(self) -> bool:
        """Whether only some frames are annotated, as in AVA: no tube of its whole video has two neighboring frames."""
        tubes = self.video_tubes
        neighbors = any((np.diff(tube.frames) == 1).any() for tube in tubes)
        return bool(tubes) and not neighbors and len(self.frames) > 1


@dataclass(frozen=True, eq=False)
class ClipIndex:
    """The clips of a data set, sorted by name."""

    root: Path
    class_names: tuple[str, ...]
    clips: tuple[Clip, ...]
    left_out: tuple[DataError, ...] = ()
    """What is wrong with the files that were left out."""
    notes: tuple[str, ...] = ()
    """Lines `PATH: TEXT` about what is not an error, but may be unintended."""

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64 to stratify by: the lowest class id among a clip's actions, `len(class_names)` without any."""
        none = len(self.class_names)
        return np.array([min((a.label for a in clip.annotations), default=none) for clip in self.clips], np.int64)

    def median_seconds(self) -> float:
        """Return the length of a typical clip."""
        return float(np.median([clip.seconds for clip in self.clips]))

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the annotations of all clips as arrays.

        A clip's rows are sorted by class, then by box, so that the order of the lines in its annotation file changes
        nothing.

        Returns:
            The labels (n, M) int64, the boxes (n, M, 4) float32 as center x, center y, width and height in [0, 1] of
            the picture, and the counts (n,) int32. M is the largest number of annotations of any clip, at least 1; rows
            past a clip's count are zero.
        """
        counts = np.array([len(clip.annotations) for clip in self.clips], np.int32)
        padded = max(1, counts.max(initial=0))
        labels = np.zeros((len(counts), padded), np.int64)
        boxes = np.zeros((len(counts), padded, 4), np.float32)
        for i, clip in enumerate(self.clips):
            for j, (label, box) in enumerate(sorted(clip.annotations)):
                labels[i, j] = label
                boxes[i, j] = to_centers(np.array(box), clip.video.width, clip.video.height)
        return labels, boxes, counts

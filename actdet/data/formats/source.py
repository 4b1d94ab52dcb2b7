"""What every format tells of a data set, whatever its files look like, and what it had to leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actdet.data.boxes import SLACK
from actdet.detections import Tube
from actdet.wording import short_repr

# How the names of video files end.
VIDEO_ENDINGS = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")
)

# Names of videos are shown up to this length.
_MOST_CHARACTERS = 400


class Facts(NamedTuple):
    """What has to be known of a video to place boxes in it."""

    width: int
    """As displayed, in pixels."""
    height: int
    times: np.ndarray
    """(frames,) float64, when each frame begins to show, in seconds from the first one."""
    seconds: float
    """How long the video lasts."""


def facts_at_rate(width: int, height: int, frames: int, rate: Fraction) -> Facts:
    """Return the facts of a video whose frames are as far apart as `rate` a second says."""
    times = np.arange(frames) / float(rate)
    return Facts(width, height, times, frames / float(rate))


class UnusableError(Exception):
    """A video has to be left out. The text is the reason, in the plural, such as "videos that are damaged"."""


class LeftOut:
    """Counts what was left out of a data set, by the reason."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, reason: str, where: str, count: int = 1) -> None:
        """Count something.

        Args:
            reason: What was left out and why, in the plural, such as "boxes outside the picture".
            where: The video, for people who want to look at the first one.
            count: How many at once; nothing is noted for 0.
        """
        if count:
            self._counts[reason] = self._counts.get(reason, 0) + count
            self._first.setdefault(reason, where)

    def lines(self) -> list[str]:
        """Return a line for each reason, the most frequent first."""
        ordered = sorted(self._counts, key=lambda reason: (-self._counts[reason], reason))
        return [
            f"{reason}: {self._counts[reason]} (first in {self._first[reason][:_MOST_CHARACTERS]})"
            for reason in ordered
        ]


@dataclass(frozen=True, eq=False)
class SourceVideo:
    """A video of a data set, and how to learn what happens in it."""

    name: str
    """As the source names it: perhaps a path, whose last part is the name of a file or of a folder of pictures."""
    tubes: Callable[[Facts], Iterable[Tube]]
    """Tells what happens in it, or raises an UnusableError. Boxes may reach out of the picture, and frames may be past
    the end."""
    facts: Facts | None = None
    """What the source says of the video, if it says enough to do without the file."""
    other_names: tuple[str, ...] = ()
    """Under which the file may be found, too."""
    clip_name: str | None = None
    """What to call it here, if the last part of `name` does not tell it from others."""
    group: str | None = None
    """Videos of one group have something in common, such as the place, and belong on one side of a split."""
    rate: Fraction = Fraction(25)
    """Frames per second, if its pictures come as files."""


class Split(NamedTuple):
    """One division of the data set into videos to train and to test on, by `SourceVideo.name`."""

    train: Set[str]
    test: Set[str]


@dataclass
class Source:
    """A data set of another tool."""

    class_names: tuple[str, ...]
    """In the order of the labels of its tubes."""
    videos: list[SourceVideo]
    splits: list[Split] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


class ClassMap:
    """Gives the names of a source their class ids, and counts the names that are no class."""

    def __init__(self, class_names: Sequence[str], left_out: LeftOut) -> None:
        self._labels = {name: label for label, name in enumerate(class_names)}
        self._left_out = left_out

    def label(self, name: str, where: str) -> int | None:
        """Return the class id of a name; None, and count it, if it is not among the classes asked for."""
        label = self._labels.get(name)
        if label is None:
            self._left_out.add(f"actions of class {short_repr(name)}, which is not among the class names", where)
        return label


def fit_tube(tube: Tube, facts: Facts, where: str, left_out: LeftOut) -> Tube | None:
    """Cut a tube to the video: to its frames, and to its picture.

    Args:
        tube: With frames in any order and boxes of any size.
        facts: Of the video.
        where: Name of the video, for `left_out`.
        left_out: Counts the boxes that are dropped.

    Returns:
        A tube whose frames ascend and whose boxes are inside the picture; None if nothing is left.
    """
    frames, places = np.unique(tube.frames, return_index=True)
    left_out.add("frames that come twice in a track", where, len(tube.frames) - len(frames))
    has_boxes = len(tube.boxes) > 0
    boxes = tube.boxes[places] if has_boxes else tube.boxes

    inside = (frames >= 0) & (frames < len(facts.times))
    left_out.add("frames that the video does not have", where, int((~inside).sum()))
    frames = frames[inside]
    if not has_boxes:
        return Tube(tube.label, frames, tube.boxes) if len(frames) else None

    boxes = boxes[inside]
    finite = np.isfinite(boxes).all(1)
    left_out.add("boxes that are not finite numbers", where, int((~finite).sum()))
    frames = frames[finite]
    boxes = boxes[finite]

    most = np.array([facts.width, facts.height, facts.width, facts.height], np.float32)
    clipped = boxes.clip(0, most).astype(np.float32)

    # A box within the first pixel would be taken for fractions of the picture.
    large = (clipped[:, 2:] > clipped[:, :2]).all(1) & (clipped[:, 2:].max(1, initial=0) > 1)
    left_out.add("boxes outside the picture, or without an area", where, int((~large).sum()))
    frames = frames[large]
    beyond = np.abs(boxes[large] - clipped[large]).max(1, initial=0) > SLACK
    left_out.add("parts of boxes that reached out of the picture", where, int(beyond.sum()))
    return Tube(tube.label, frames, clipped[large]) if len(frames) else None


def last_part(name: str) -> str:
    """Return the last part of a path of any system, without the ending of a file."""
    part = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem = Path(part).stem
    return stem if Path(part).suffix.lower() in VIDEO_ENDINGS else part

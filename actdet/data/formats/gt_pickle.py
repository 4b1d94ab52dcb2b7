"""The ground truth that the ACT detector published for UCF101-24 and JHMDB (UCF101v2-GT.pkl, JHMDB-GT.pkl).

A dictionary: `labels`, a list of class names; `train_videos` and `test_videos`, a list of names for each split;
`nframes`, frames by name; `resolution`, (height, width) by name; `gttubes`, by name and class id from 0 a list of
tubes, (n, 5): the frame, counted from 1, and x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from actdet.data.formats.inert_pickle import array_of, read_inert_pickle
from actdet.data.formats.source import ClassMap, Facts, LeftOut, Source, SourceVideo, Split, facts_at_rate
from actdet.detections import Tube
from actdet.errors import DataError

_MOST_FRAMES = 10**7


class ActTube(NamedTuple):
    """One actor's action."""

    label: int
    """Class, counted from 0."""
    rows: np.ndarray
    """(n, 5) float64, n > 0: the frame, counted from 0 and ascending, and x1 y1 x2 y2 in pixels. All are finite."""


class ActVideo(NamedTuple):
    """What such a file says of a video."""

    width: int
    """In pixels."""
    height: int
    frames: int
    tubes: list[ActTube]


class ActSplit(NamedTuple):
    """Names of videos, each of which is in one of the two lists."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class ActTruth:
    """What such a file says."""

    class_names: tuple[str, ...]
    videos: dict[str, ActVideo]
    """By name, in the order of the file."""
    splits: list[ActSplit]


def read_act_truth(path: Path, expected: str) -> ActTruth:
    """Read such a file.

    Args:
        path: The file. Nothing that it names is run.
        expected: What it should be, for the error.

    Raises:
        DataError: If it is something else.
    """
    content = read_inert_pickle(path, expected)
    try:
        return _truth(content)
    except ValueError as error:
        raise DataError(path, f"does not have the values of such a file ({error}); expected {expected}") from None


def read_gt_pickle(
    path: Path,
    class_names: Sequence[str] | None,
    expected: str,
    rate: Fraction,
    group_of: Callable[[str], str | None],
) -> Source:
    """Read such a file as a data set.

    Args:
        path: The file. Nothing that it names is run.
        class_names: The classes to take, in the order of their ids; by default all, in the order of the file.
        expected: What it should be, for the error.
        rate: Frames per second of the videos.
        group_of: Gives the group of a video by its name.

    Raises:
        DataError: If it is something else.
    """
    truth = read_act_truth(path, expected)
    left_out = LeftOut()
    classes = ClassMap(class_names or truth.class_names, left_out)

    videos = []
    for name, video in truth.videos.items():
        tubes = [(truth.class_names[tube.label], tube.rows) for tube in video.tubes]
        facts = facts_at_rate(video.width, video.height, video.frames, rate)
        videos.append(_source_video(name, tubes, facts, classes, rate, group_of(name)))

    splits = [Split(train=frozenset(split.train), test=frozenset(split.test)) for split in truth.splits]
    return Source(tuple(class_names or truth.class_names), videos, splits, left_out)


def _source_video(
    name: str,
    tubes: list[tuple[str, np.ndarray]],
    facts: Facts,
    classes: ClassMap,
    rate: Fraction,
    group: str | None,
) -> SourceVideo:
    def read(_: Facts) -> Iterator[Tube]:
        for class_name, rows in tubes:
            label = classes.label(class_name, name)
            if label is not None:
                yield Tube(label, rows[:, 0].astype(np.int64), rows[:, 1:].astype(np.float32))

    return SourceVideo(name, read, facts, group=group, rate=rate)


# The functions below raise a ValueError that says what is wrong.


def _truth(content: object) -> ActTruth:
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not a dictionary")
    class_names = _names("labels", _member(content, "labels", list))
    if not class_names:
        raise ValueError("no class in labels")

    frames = _member(content, "nframes", dict)
    sizes = _member(content, "resolution", dict)
    tubes = _member(content, "gttubes", dict)
    videos = {}
    for name in _names("nframes", list(frames)):
        height, width = _size(name, sizes.get(name))
        count = _whole(f"the frames of video {name!r}", frames[name])
        if min(width, height, count) < 1 or max(width, height, count) > _MOST_FRAMES:
            raise ValueError(f"video {name!r} of {width}x{height} pixels and {count} frames")
        videos[name] = ActVideo(width, height, count, _tubes(name, tubes.get(name, {}), len(class_names)))

    trains = _member(content, "train_videos", list)
    tests = _member(content, "test_videos", list)
    if len(trains) != len(tests):
        raise ValueError(f"{len(trains)} lists in train_videos and {len(tests)} in test_videos")
    splits = [
        _split(number, train, test, videos)
        for number, (train, test) in enumerate(zip(trains, tests, strict=True), start=1)
    ]
    return ActTruth(class_names, videos, splits)


def _member(content: dict[Any, Any], name: str, kind: type) -> Any:
    if name not in content:
        raise ValueError(f"no {name!r}")
    if not isinstance(content[name], kind):
        raise ValueError(f"{name} is not a {kind.__name__}")
    return content[name]


def _names(where: str, value: object) -> tuple[str, ...]:
    """Return a list of names, none of which comes twice."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"no list of names in {where}")
    for name, count in Counter(value).items():
        if count > 1:
            raise ValueError(f"the name {name!r} twice in {where}")
    return tuple(value)


def _whole(what: str, value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"no whole number for {what}")
    return value


def _size(name: str, value: object) -> tuple[int, int]:
    """Return the height and the width of a video."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"no height and width for video {name!r}")
    height, width = value
    return _whole(f"the height of video {name!r}", height), _whole(f"the width of video {name!r}", width)


def _split(number: int, train: object, test: object, videos: dict[str, ActVideo]) -> ActSplit:
    split = ActSplit(_names(f"train_videos of split {number}", train), _names(f"test_videos of split {number}", test))
    in_both = set(split.train) & set(split.test)
    in_one_place = videos.keys() ^ {*split.train, *split.test}
    wrong = sorted(in_both | in_one_place)
    if wrong:
        raise ValueError(f"video {wrong[0]!r} is not once in nframes and once in split {number}")
    return split


def _tubes(name: str, content: object, classes: int) -> list[ActTube]:
    if not isinstance(content, dict):
        raise ValueError(f"no dictionary for the tubes of video {name!r}")
    tubes = []
    for value, arrays in content.items():
        label = _whole(f"a class id in video {name!r}", value)
        if not 0 <= label < classes:
            raise ValueError(f"a class id {label} of {classes} classes in video {name!r}")
        if not isinstance(arrays, list | tuple):
            raise ValueError(f"no list of tubes in video {name!r}")
        tubes += [ActTube(label, _rows(name, array_of(stored))) for stored in arrays]
    return tubes


def _rows(name: str, stored: np.ndarray) -> np.ndarray:
    if stored.ndim != 2 or stored.shape[1] != 5 or not len(stored):
        raise ValueError(f"a tube of the shape {stored.shape} in video {name!r}, not (n, 5)")
    rows = stored.astype(np.float64)
    if not np.isfinite(rows).all() or (np.abs(rows) > _MOST_FRAMES).any():
        raise ValueError(f"a tube whose values are not frames and pixels in video {name!r}")
    frames = rows[:, 0]
    if (frames != np.floor(frames)).any() or frames[0] < 1 or (np.diff(frames) <= 0).any():
        raise ValueError(f"a tube whose frames are not whole numbers from 1 that ascend in video {name!r}")
    frames -= 1.0
    return rows

"""UCF101-24: the 24 classes of UCF101 with boxes, in the corrected annotation. Reads its two files.

`finalAnnots.mat` of the correction itself, and `UCF101v2-GT.pkl`, which the ACT detector made of it. The frames come as
videos (v_Basketball_g01_c01.avi) or as folders of pictures. Groups 1 to 7 of each class are for testing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from actdet.data.formats.gt_pickle import read_gt_pickle
from actdet.data.formats.mat_file import read_mat
from actdet.data.formats.source import ClassMap, Facts, LeftOut, Source, SourceVideo, Split, facts_at_rate
from actdet.detections import Tube
from actdet.errors import DataError

_RATE = Fraction(25)
_WIDTH = 320
_HEIGHT = 240
_TEST_GROUPS = range(1, 8)

_EXPECTED = "UCF101v2-GT.pkl or finalAnnots.mat of UCF101-24"
_MOST_FRAMES = 10**7

# v_Basketball_g01_c01: the class, the group of videos that show the same people and places, and which of them.
_NAME = re.compile(r"v_(\w+)_g(\d+)_c\d+")


def read_ucf101_24(data: Path, class_names: Sequence[str] | None) -> Source:
    """Read the annotation of UCF101-24.

    Args:
        data: One of the two files, or a folder with one of them.
        class_names: The classes to take, in the order of their ids; by default all.

    Raises:
        DataError: If neither is there, or if it is something else.
    """
    path = annotation_file(data, ("*GT.pkl", "*finalAnnots.mat", "*.pkl", "*.mat"), _EXPECTED)
    if path.suffix == ".mat":
        return _read_mat(path, class_names)
    return read_gt_pickle(path, class_names, _EXPECTED, _RATE, _group_of)


def annotation_file(data: Path, patterns: Sequence[str], expected: str) -> Path:
    """Find the file of a data set's annotation: `data` itself, or the first in that folder that fits a pattern.

    Raises:
        DataError: If there is none.
    """
    if not data.is_dir():
        return data
    for pattern in patterns:
        found = sorted(data.glob(pattern))
        if found:
            return found[0]
    raise DataError(data, f"contains no annotation; expected {expected}")


def _read_mat(path: Path, class_names: Sequence[str] | None) -> Source:
    videos = read_mat(path, "annot", _EXPECTED)
    try:
        entries = [_entry(video) for video in videos]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise DataError(path, f"does not have the values of such a file ({error}); expected {_EXPECTED}") from None

    left_out = LeftOut()
    names = sorted({_class_of(entry.name) for entry in entries})
    classes = ClassMap(class_names or names, left_out)
    videos = [_video(entry, classes, left_out) for entry in entries]
    test = frozenset(entry.name for entry in entries if _is_test(entry.name))
    train = frozenset(entry.name for entry in entries) - test
    return Source(tuple(class_names or names), videos, [Split(train, test)], left_out)


class _MatTube(NamedTuple):
    first: int
    """Frame, counted from 1."""
    last: int
    boxes: np.ndarray
    """(n, 4) float64, x y width height."""


class _Entry(NamedTuple):
    name: str
    frames: int
    tubes: list[_MatTube]


def _entry(video: Any) -> _Entry:
    """Return what MATLAB's structure says of a video."""
    frames = _number(video["num_imgs"])
    if frames < 1:
        raise ValueError(f"a video of {frames} frames")
    tubes = []
    for tube in video["tubes"]:
        boxes = np.asarray(tube["boxes"], np.float64).reshape(-1, 4)
        if not np.isfinite(boxes).all() or (np.abs(boxes) > _MOST_FRAMES).any():
            raise ValueError("a box that is not of pixels")
        tubes.append(_MatTube(_number(tube["sf"]), _number(tube["ef"]), boxes))
    name = video["name"]
    if _NAME.fullmatch(name.rpartition("/")[2]) is None:
        raise ValueError(f"a video called {name!r}")
    return _Entry(name, frames, tubes)


def _number(value: np.ndarray) -> int:
    """Return the number in a matrix of one."""
    (number,) = np.asarray(value).ravel().tolist()
    if not -_MOST_FRAMES <= number <= _MOST_FRAMES:
        raise ValueError(f"a number {number} in place of a frame")
    return int(number)


def _video(entry: _Entry, classes: ClassMap, left_out: LeftOut) -> SourceVideo:
    def read(_: Facts) -> Iterator[Tube]:
        for first, last, boxes in entry.tubes:
            if last - first + 1 != len(boxes):
                left_out.add("tubes that have more boxes than frames, or fewer", entry.name)
                continue
            label = classes.label(_class_of(entry.name), entry.name)
            if label is not None:
                corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
                yield Tube(label, np.arange(first, last + 1) - 1, corners.astype(np.float32))

    facts = facts_at_rate(_WIDTH, _HEIGHT, entry.frames, _RATE)
    return SourceVideo(entry.name, read, facts, group=_group_of(entry.name), rate=_RATE)


def _class_of(name: str) -> str:
    """Return the class of a video; in this data set all actions of a video are of one class."""
    match = _NAME.fullmatch(name.rpartition("/")[2])
    assert match is not None
    return match[1]


def _group_of(name: str) -> str | None:
    """Return the group of a video, of all classes alike told apart."""
    match = _NAME.fullmatch(name.rpartition("/")[2])
    return f"{match[1]}_g{match[2]}" if match else None


def _is_test(name: str) -> bool:
    match = _NAME.fullmatch(name.rpartition("/")[2])
    return match is not None and int(match[2]) in _TEST_GROUPS

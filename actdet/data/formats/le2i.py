"""Le2i: falls in an office, a lecture room, a coffee room and at home. Reads its text files.

The first two lines of a file are the first and the last frame of the fall, counted from 1, or 0 if nobody falls. The
others are `frame,posture,x1,y1,x2,y2`, a box of the person in every frame, all 0 while there is none. Some files lack
the first two lines, and in some copies of the data set the last two numbers are width and height. Videos of one place
are a group, so that a detector can be tested in a place that it has not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actdet.data.boxes import parse_number
from actdet.data.formats.source import ClassMap, Facts, LeftOut, Source, SourceVideo
from actdet.data.reading import read_text_lines
from actdet.detections import Tube
from actdet.errors import DataError

_CLASS = "fall"
_EXPECTED = "a text file of Le2i: two frames, then lines frame,posture,x1,y1,x2,y2"
_MOST_BYTES = 2**22
_MOST_LINES = 10**5

# The data set itself spells it both ways.
_FOLDER = re.compile("annotations?[_ ]?files?", re.IGNORECASE)


def read_le2i(data: Path, class_names: Sequence[str] | None) -> Source:
    """Read the annotation of Le2i.

    Args:
        data: The folder of the data set, or of one of its places. The text files lie in folders that are called
            Annotation_files or Annotations_files.
        class_names: By default the only class, fall.

    Raises:
        DataError: If there is no text file, or a wrong line in one.
    """
    folders = [data, *sorted(path for path in data.rglob("*") if path.is_dir())] if data.is_dir() else []
    annotated = [folder for folder in folders if _FOLDER.fullmatch(folder.name)]
    paths = [path for folder in annotated for path in sorted(folder.glob("*.txt"))]
    if not paths:
        raise DataError(data, "contains no Annotation_files/*.txt; expected the folder of Le2i or of one of its places")

    left_out = LeftOut()
    class_names = class_names or [_CLASS]
    classes = ClassMap(class_names, left_out)
    videos = [_video(path, _read_file(path), classes) for path in paths]
    return Source(tuple(class_names), videos, left_out=left_out)


class _Fall(NamedTuple):
    """What a file says."""

    first: int
    """Frame, counted from 1; 0 if nobody falls."""
    last: int
    frames: np.ndarray
    """(n,) int64, counted from 1, those with a box."""
    boxes: np.ndarray
    """(n, 4) float32, the last four numbers of the lines."""


def _read_file(path: Path) -> _Fall:
    lines = read_text_lines(path, _MOST_BYTES, _MOST_LINES, _EXPECTED)
    limits: list[int] = []
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        fields = re.split(r"[,;\s]+", line.strip(" \t,;"))
        if fields == [""]:
            continue
        try:
            values = [parse_number(f"number {place}", field) for place, field in enumerate(fields, start=1)]
            if len(values) == 1 and not rows and len(limits) < 2:
                limits.append(_whole(values[0]))
            elif len(values) == 6:
                rows.append([_whole(values[0]), *values[2:]])
            else:
                raise ValueError(f"has {len(fields)} numbers")
        except ValueError as error:
            raise DataError(path, f"{error}; expected {_EXPECTED}", number) from None
    if len(limits) == 1:
        raise DataError(path, f"has one frame before the boxes; expected {_EXPECTED}", 1)

    first, last = limits if limits else (0, 0)
    if last < first:
        raise DataError(path, f"the fall ends in frame {last}, before it begins in frame {first}", 2)
    table = np.array(rows, np.float64).reshape(-1, 5)
    table = table[(table[:, 1:] != 0).any(1)]
    return _Fall(first, last, table[:, 0].astype(np.int64), table[:, 1:].astype(np.float32))


def _whole(value: float) -> int:
    if value != int(value) or not 0 <= value <= 10**7:
        raise ValueError(f"frame {value:g} is not a whole number from 0")
    return int(value)


def _video(path: Path, fall: _Fall, classes: ClassMap) -> SourceVideo:
    """Return the video of a text file, Home_01/Videos/video (1).avi of Home_01/Annotation_files/video (1).txt."""
    place = path.parent.parent.name
    name = f"{place}/{path.stem}"

    def tubes(facts: Facts) -> Iterator[Tube]:
        label = classes.label(_CLASS, name)
        if fall.first == 0 or label is None:
            return
        boxes = _corners(fall.boxes, facts)
        during = (fall.frames >= fall.first) & (fall.frames <= fall.last)
        if during.any():
            yield Tube(label, fall.frames[during] - 1, boxes[during])
        else:
            yield Tube(label, np.arange(fall.first, fall.last + 1) - 1, np.zeros((0, 4), np.float32))

    return SourceVideo(name, tubes, clip_name=f"{place}_{path.stem}", group=place)


def _corners(boxes: np.ndarray, facts: Facts) -> np.ndarray:
    """Return x1 y1 x2 y2 of boxes that are that already, or x y width height in all lines of the file."""
    is_corners = (boxes[:, 2:] > boxes[:, :2]).all(1)
    ends = boxes[:, :2] + boxes[:, 2:]
    is_size = (ends <= np.array([facts.width, facts.height]) + 1).all(1)
    if is_size.all() and not is_corners.all():
        return np.hstack([boxes[:, :2], ends])
    return boxes

"""Annotation files: a line `<class_id> <x1> <y1> <x2> <y2>` for each action, in pixels as displayed."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Sequence
from typing import NamedTuple

from actdet.errors import DataError

# Tools that round a box outward end up to one pixel beyond the picture: clipped. Further out is a mistake.
_SLACK = 1.0
_FORM = "<class_id> <x1> <y1> <x2> <y2>"

# A clip has a few actions: what is larger is another file, or has a line for each frame.
_MOST_BYTES = 2**20
_MOST_LINES = 1000
_MOST_CHARACTERS = 1000

# Other forms that the five numbers of a line may have, and how to make ours of them.
OTHER_FORMS = {
    "yolo": "YOLO, <class_id> <center x> <center y> <width> <height> as shares of the picture: "
    "x1 = (center x - width / 2) * width of the picture, and so on",
    "size": "<class_id> <x> <y> <width> <height>: x2 = x + width, y2 = y + height",
}
EVERY_FORM = frozenset((*OTHER_FORMS, "corners"))


class Annotation(NamedTuple):
    """One action: the index of its class and its box `(x1, y1, x2, y2)` in pixels, inside the picture."""

    label: int
    box: tuple[float, float, float, float]


def read_annotations(
    path: str | os.PathLike[str], width: int, height: int, class_names: Sequence[str]
) -> list[Annotation]:
    """The annotations in `path` for a video of `width` x `height`; raises the first problem found in it.

    No file and an empty file both mean a video without any action.
    """
    annotations, problems = check_annotations(path, width, height, class_names)
    if problems:
        raise problems[0]
    return annotations


def check_annotations(
    path: str | os.PathLike[str], width: int, height: int, class_names: Sequence[str]
) -> tuple[list[Annotation], list[DataError]]:
    """As `read_annotations`, but returns the good lines and a problem for each bad one."""
    annotations: list[Annotation] = []
    problems: list[DataError] = []
    try:
        lines = read_lines(path)
    except DataError as error:
        return [], [error]
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            if len(line) > _MOST_CHARACTERS:
                raise ValueError(f"{len(line)} characters where five numbers are expected: {_FORM}")
            annotations.append(_annotation(fields, width, height, class_names))
        except ValueError as error:
            problems.append(DataError(path, str(error), number))
    return annotations, problems


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a small text file, without their ends; none where there is no such file.

    Raises DataError, without reading on, for what is no file of text, or too large for one of annotations.
    """
    try:
        # Opening a FIFO would wait for who writes to it, a device never ends.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(path, "cannot be read: it is no regular file; expected is a file of text")
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise DataError(path, f"has more than {_MOST_BYTES} bytes; expected is a small file of text")

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, f"byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    filled = sum(not line.isspace() and line != "" for line in lines)
    if filled > _MOST_LINES:
        raise DataError(path, f"has {filled} lines, more than {_MOST_LINES}; expected is one for each action or class")
    return lines


def forms(path: str | os.PathLike[str], width: int, height: int) -> tuple[int, set[str]]:
    """How many lines `path` holds, and which forms all of them could have: of `EVERY_FORM`, "corners" being ours.

    None where a line has not five fields that end in four numbers, or where the file cannot be read.
    """
    try:
        rows = [line.split() for line in read_lines(path)]
    except DataError:
        return 0, set()
    rows = [row for row in rows if row]
    possible = set(EVERY_FORM)
    for row in rows:
        possible &= _forms(row, width, height)
    return len(rows), possible


def _forms(fields: list[str], width: int, height: int) -> set[str]:
    try:
        _, *numbers = fields
        x, y, across, down = (_number("", number) for number in numbers)
    except ValueError:
        return set()

    if max(x, y, across, down) <= 1:
        ends = (x - across / 2, y - down / 2, 1 - x - across / 2, 1 - y - down / 2)
        return {"yolo"} if min(across, down) > 0 and min(ends) >= -0.01 else set()
    possible = set()
    if across > x >= -_SLACK and down > y >= -_SLACK and across <= width + _SLACK and down <= height + _SLACK:
        possible.add("corners")
    positive = min(across, down) > 0 and min(x, y) >= -_SLACK
    if positive and x + across <= width + _SLACK and y + down <= height + _SLACK:
        possible.add("size")
    return possible


def _annotation(fields: list[str], width: int, height: int, class_names: Sequence[str]) -> Annotation:
    """The annotation that five fields spell, or a ValueError that says what is wrong with them."""
    if len(fields) != 5:
        raise ValueError(f"{len(fields)} fields where 5 are expected, separated by spaces: {_FORM}")
    label, box = _label(fields[0], class_names), " ".join(fields[1:])
    x1, y1, x2, y2 = (_number(*pair) for pair in zip(("x1", "y1", "x2", "y2"), fields[1:], strict=True))
    for low, high, first, second in ((x1, x2, "x1", "x2"), (y1, y2, "y1", "y2")):
        if high <= low:
            raise ValueError(f"{second} = {high:g} must be greater than {first} = {low:g}")
    if max(x2, y2) <= 1 and min(x1, y1) >= 0:
        raise ValueError(f"box {box} looks like fractions; expected are pixels of {width}x{height}")
    left, top = max(x1, 0.0), max(y1, 0.0)
    right, bottom = min(x2, float(width)), min(y2, float(height))
    beyond = max(left - x1, top - y1, x2 - right, y2 - bottom)
    if beyond > _SLACK or right <= left or bottom <= top:
        raise ValueError(f"box {box} is outside the picture of {width}x{height} pixels")
    return Annotation(label, (left, top, right, bottom))


def _label(field: str, class_names: Sequence[str]) -> int:
    if re.fullmatch("[0-9]{1,9}", field) and int(field) < len(class_names):
        return int(field)
    known = ", ".join(f"{index} = {name}" for index, name in enumerate(class_names))
    raise ValueError(f"class_id {field!r} is none of {known}")


def _number(name: str, field: str) -> float:
    try:
        # Python reads 1_0 as 10; in a data file it is a slip.
        value = math.nan if "_" in field else float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} = {field!r} is not a finite number")
    return value

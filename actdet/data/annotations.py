"""Annotation files: a line `<class_id> <x1> <y1> <x2> <y2>` for each action, in pixels as displayed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from actdet.errors import DataError

# Tools that round a box outward end up to one pixel beyond the picture: clipped. Further out is a mistake.
_SLACK = 1.0
_FORM = "<class_id> <x1> <y1> <x2> <y2>"


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
        with open(path, encoding="utf-8-sig") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return [], []
    except UnicodeDecodeError as error:
        return [], [DataError(path, f"byte {error.start} is not UTF-8 text; save the file as UTF-8")]
    except OSError as error:
        return [], [DataError(path, f"cannot be read: {error.strerror}")]
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            annotations.append(_annotation(fields, width, height, class_names))
        except ValueError as error:
            problems.append(DataError(path, str(error), number))
    return annotations, problems


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

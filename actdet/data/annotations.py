"""Annotation files: one line `<class_id> <x1> <y1> <x2> <y2>` per action, in pixels of the video as displayed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from actdet.data.boxes import SLACK, Box, parse_box, parse_number
from actdet.data.reading import read_text_lines
from actdet.errors import DataError
from actdet.wording import counted

_FORM = "<class_id> <x1> <y1> <x2> <y2>"

# A clip has a few actions. A larger file is not an annotation file, or it has a line for every frame.
_MOST_BYTES = 2**20
_MOST_LINES = 1000
_MOST_CHARACTERS = 1000

# Other forms that the five numbers of a line may have, and how to convert them to ours.
OTHER_FORMS = {
    "yolo": "YOLO, <class_id> <center x> <center y> <width> <height> as fractions of the picture: "
    "x1 = (center x - width / 2) * width of the picture, and so on",
    "size": "<class_id> <x> <y> <width> <height>: x2 = x + width, y2 = y + height",
}

# The names of all forms; "corners" is ours.
EVERY_FORM = frozenset((*OTHER_FORMS, "corners"))


class Annotation(NamedTuple):
    """One action: its class id and its box `(x1, y1, x2, y2)` in pixels, inside the picture."""

    label: int
    box: Box


def read_annotations(
    path: str | os.PathLike[str], width: int, height: int, class_names: Sequence[str]
) -> list[Annotation]:
    """Read the annotations of a video.

    Args:
        path: The annotation file. If it is missing or empty, the video has no action.
        width: Of the video as displayed, in pixels.
        height: Of the video as displayed, in pixels.
        class_names: Names of the classes, in the order of their ids.

    Raises:
        DataError: For the first problem in the file.
    """
    annotations, problems = check_annotations(path, width, height, class_names)
    if problems:
        raise problems[0]
    return annotations


def check_annotations(
    path: str | os.PathLike[str], width: int, height: int, class_names: Sequence[str]
) -> tuple[list[Annotation], list[DataError]]:
    """Do as `read_annotations`, but return the annotations of the good lines and a problem for each bad line."""
    try:
        lines = read_lines(path)
    except DataError as error:
        return [], [error]

    annotations: list[Annotation] = []
    problems: list[DataError] = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            if len(line) > _MOST_CHARACTERS:
                raise ValueError(f"has {len(line)} characters; expected five numbers: {_FORM}")
            annotations.append(_annotation(fields, width, height, class_names))
        except ValueError as error:
            problems.append(DataError(path, str(error), number))
    return annotations, problems


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Read a small text file.

    Returns:
        Its lines without their line ends; none if there is no such file.

    Raises:
        DataError: If it is not a text file or too large, without reading all of it.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        return []
    except OSError:
        # Reading the file says what is wrong with it.
        pass

    # Empty lines do not count, so only the bytes limit the number of all lines.
    lines = read_text_lines(path, _MOST_BYTES, _MOST_BYTES, "a small text file")
    filled = sum(not line.isspace() and line != "" for line in lines)
    if filled > _MOST_LINES:
        raise DataError(path, f"has {filled} lines, more than {_MOST_LINES}; expected one for each action or class")
    return lines


def forms(path: str | os.PathLike[str], width: int, height: int) -> tuple[int, set[str]]:
    """Find out which form the lines of an annotation file may have.

    Returns:
        The number of lines, and the names in `EVERY_FORM` of the forms that all of them fit. No form fits if a line
        does not have five fields, of which the last four are numbers. A file that cannot be read has no lines, which
        fit no form.
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
    """Return the forms that one line fits."""
    try:
        _, *numbers = fields
        x, y, across, down = (parse_number("", number) for number in numbers)
    except ValueError:
        return set()

    # Pixels are larger than 1, so these are fractions, which only YOLO uses.
    if max(x, y, across, down) <= 1:
        margins = (x - across / 2, y - down / 2, 1 - x - across / 2, 1 - y - down / 2)
        return {"yolo"} if min(across, down) > 0 and min(margins) >= -0.01 else set()

    possible = set()
    if across > x >= -SLACK and down > y >= -SLACK and across <= width + SLACK and down <= height + SLACK:
        possible.add("corners")
    positive = min(across, down) > 0 and min(x, y) >= -SLACK
    if positive and x + across <= width + SLACK and y + down <= height + SLACK:
        possible.add("size")
    return possible


def _annotation(fields: list[str], width: int, height: int, class_names: Sequence[str]) -> Annotation:
    """Return the annotation that the fields of a line spell; raise a ValueError that says what is wrong with them."""
    if len(fields) != 5:
        raise ValueError(f"has {counted(len(fields), 'field')}; expected 5, separated by spaces: {_FORM}")
    label = _label(fields[0], class_names)
    return Annotation(label, parse_box(fields[1:], width, height))


def _label(field: str, class_names: Sequence[str]) -> int:
    if re.fullmatch("[0-9]{1,9}", field) and int(field) < len(class_names):
        return int(field)
    known = ", ".join(f"{index} = {name}" for index, name in enumerate(class_names))
    raise ValueError(f"class_id {field!r} is unknown; known ids: {known}")

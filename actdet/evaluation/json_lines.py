"""Truth and detections as JSON lines: one object a line, of one of these forms.

    {"video": "a", "frame": 7, "class": "run", "score": 0.9, "box": [x1, y1, x2, y2]}           a box
    {"video": "a", "class": "run", "score": 0.9, "frames": [7, 8], "boxes": [[...], [...]]}     a tube
    {"video": "a", "length": 175}                                                               in truth alone

Frames count from 0 and boxes are in pixels. A class is a name or, if truth numbers its classes, a number from 0. Truth
needs no scores. Truth of tubes is needed for video-mAP; truth of boxes is enough for frame-mAP. The line with a length
says how many frames a video has, and that it counts even if nothing happens in it.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from actdet.data.reading import parse_integer
from actdet.errors import DataError
from actdet.evaluation.arrays import (
    MOST_CLASSES,
    MOST_FRAMES,
)
from actdet.evaluation.reading import read_lines

FORM = '{"video": ..., "frame": ..., "class": ..., "score": ..., "box": [x1, y1, x2, y2]}'


@dataclass
class Columns:
    """What the lines of a file say, one entry for each line, except where frames and boxes are said."""

    kind: Literal["box", "tube"] | None = None
    videos: dict[str, int] = field(default_factory=dict)
    """Numbers of the videos by their names, in the order of the file."""
    classes: dict[str | int, int] = field(default_factory=dict)
    """Numbers of the classes by what the file calls them, likewise."""
    class_lines: list[int] = field(default_factory=list)
    """The line in which each class appears first."""
    lengths: dict[str, int] = field(default_factory=dict)
    """How many frames videos have, as far as the file says it."""
    video: array[int] = field(default_factory=lambda: array("q"))
    label: array[int] = field(default_factory=lambda: array("q"))
    line: array[int] = field(default_factory=lambda: array("q"))
    score: array[float] = field(default_factory=lambda: array("d"))
    count: array[int] = field(default_factory=lambda: array("q"))
    """How many boxes each line has."""
    frames: array[int] = field(default_factory=lambda: array("q"))
    """The frame of each box of each line."""
    boxes: array[float] = field(default_factory=lambda: array("d"))
    """Four numbers for each box of each line."""


def parse_lines(path: Path, *, scored: bool) -> Columns:
    """Read all lines of a file.

    Args:
        path: The file.
        scored: Whether the lines are detections, which need scores and cannot say the length of a video.

    Raises:
        DataError: For the first line that is wrong. Whether numbers are finite is left to the caller.
    """
    columns = Columns()
    for number, line in read_lines(path, "JSON lines"):
        if line.isspace():
            continue
        try:
            item = _parse(line)
            if not isinstance(item, dict):
                raise ValueError(f"expected one object a line: {FORM}")
            _add(columns, item, number, scored)
        except RecursionError:
            raise DataError(path, "is nested too deeply", number) from None
        except json.JSONDecodeError as error:
            raise DataError(path, f"is not JSON ({error.msg}); expected one object a line: {FORM}", number) from None
        except (ValueError, OverflowError) as error:
            raise DataError(path, str(error), number) from None
    return columns


def _parse(line: str) -> Any:
    """Return what a line of JSON says. The quick way, in which Python reads integers, ends at thousands of digits."""
    try:
        return json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(line, parse_constant=_no_constant, parse_int=parse_integer)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _add(columns: Columns, item: dict[str, Any], line: int, scored: bool) -> None:
    """Add what one line says; raise a ValueError that says what is wrong with it."""
    name = item.get("video")
    if not isinstance(name, str):
        raise ValueError(f'"video" must be a name; expected {FORM}')
    if "length" in item and not scored:
        columns.lengths[name] = _whole(item, "length", 1, MOST_FRAMES)
        columns.videos.setdefault(name, len(columns.videos))
        return

    kind = "tube" if "frames" in item else "box"
    if columns.kind not in (None, kind):
        raise ValueError(f"is a {kind}, but earlier lines are of a {columns.kind}; a file holds one kind alone")
    columns.kind = kind

    columns.videos.setdefault(name, len(columns.videos))
    columns.video.append(columns.videos[name])
    columns.label.append(_class_number(columns, item, line))
    columns.line.append(line)
    columns.score.append(_score(item) if scored else 1.0)
    if kind == "tube":
        _add_tube(columns, item)
    else:
        columns.count.append(1)
        columns.frames.append(_whole(item, "frame", 0, MOST_FRAMES))
        box = item.get("box")
        if not isinstance(box, list) or len(box) != 4:
            raise ValueError('"box" must be a list of 4 numbers: [x1, y1, x2, y2]')
        _extend(columns.boxes, box)


def _add_tube(columns: Columns, item: dict[str, Any]) -> None:
    frames = item["frames"]
    boxes = item.get("boxes")
    if not isinstance(frames, list) or not isinstance(boxes, list) or not frames or len(frames) != len(boxes):
        raise ValueError('"frames" and "boxes" must be lists of the same length, at least 1')
    before = -1
    for frame in frames:
        if type(frame) is not int or not before < frame < MOST_FRAMES:
            raise ValueError(f'"frames" must be ascending whole numbers from 0 to {MOST_FRAMES - 1}')
        before = frame
    for box in boxes:
        if not isinstance(box, list) or len(box) != 4:
            raise ValueError('each of "boxes" must be a list of 4 numbers: [x1, y1, x2, y2]')
        _extend(columns.boxes, box)
    columns.frames.extend(frames)
    columns.count.append(len(frames))


def _class_number(columns: Columns, item: dict[str, Any], line: int) -> int:
    name = item.get("class")
    number = columns.classes.get(name) if isinstance(name, str | int) else None
    if number is not None and name is not True and name is not False:
        return number

    if type(name) is int and not 0 <= name < MOST_CLASSES:
        raise ValueError(f'"class" must be a name or a number from 0 to {MOST_CLASSES - 1}')
    if type(name) is not int and not isinstance(name, str):
        raise ValueError('"class" must be a name or a number from 0')
    if any(type(name) is not type(other) for other in columns.classes):
        raise ValueError("names its class, but earlier lines number theirs, or the other way around")
    if len(columns.classes) == MOST_CLASSES:
        raise ValueError(f"has more than {MOST_CLASSES} classes")
    columns.classes[name] = len(columns.classes)
    columns.class_lines.append(line)
    return columns.classes[name]


def _score(item: dict[str, Any]) -> float:
    score = item.get("score")
    if type(score) is not float and type(score) is not int:
        raise ValueError('"score" must be a number')
    return float(score)


def _whole(item: dict[str, Any], name: str, least: int, limit: int) -> int:
    value = item.get(name)
    if type(value) is not int or not least <= value < limit:
        raise ValueError(f'"{name}" must be a whole number from {least} to {limit - 1}')
    return value


def _extend(numbers: array[float], box: list[Any]) -> None:
    try:
        numbers.extend(box)
    except TypeError:
        raise ValueError("a box must consist of numbers") from None

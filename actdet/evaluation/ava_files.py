"""The files of AVA: truth, results, excluded key frames (all csv) and the label map (pbtxt).

    truth        video,second,x1,y1,x2,y2,class,person      boxes as shares of width and height, 0 to 1
    results      video,second,x1,y1,x2,y2,class,score
    exclusions   video,second                               key frames that do not count
    label map    item { name: "stand" id: 12 } ...          the classes that count, 60 of 80 in the official one

A key frame is a video and a second, 902 to 1798 in AVA itself. Rows of classes that the label map lacks do not count.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actdet.errors import DataError
from actdet.evaluation.arrays import MOST_CLASSES, MOST_FRAMES, FrameBoxes, frame_keys
from actdet.evaluation.matching import is_among
from actdet.evaluation.reading import read_lines
from actdet.wording import counted

_TRUTH_FORM = "video,second,x1,y1,x2,y2,class,person"
_RESULT_FORM = "video,second,x1,y1,x2,y2,class,score"

# Shares of width and height stay below this, with boxes that reach out of the picture; pixels do not.
_MOST_SHARE = 3.0

# A field of a label map and its value.
_FIELD = re.compile(r"""\b(name|id|label_id)\s*:\s*("[^"]*"|'[^']*'|\S+)""")


class AvaData(NamedTuple):
    """What `ava_precision` needs."""

    class_names: tuple[str, ...]
    truth: FrameBoxes
    detections: FrameBoxes
    notes: list[str]
    """What was passed over, a line each."""


class _Rows(NamedTuple):
    """The rows of a csv file, one array for each column."""

    videos: np.ndarray
    """(n,) int64, as `_read_rows` has numbered them."""
    seconds: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def read_ava(detections: Path, truth: Path, label_map: Path | None = None, exclusions: Path | None = None) -> AvaData:
    """Read truth and results.

    Args:
        detections: The csv file of the results.
        truth: The csv file of the truth.
        label_map: The label map; without it, all classes that have truth count, by their numbers.
        exclusions: The csv file of the key frames that do not count.

    Raises:
        DataError: For the first thing that is wrong with one of them.
    """
    videos: dict[str, int] = {}
    true_rows = _read_rows(truth, videos, scored=False)
    answers = _read_rows(detections, videos, scored=True)
    if len(answers.boxes) and answers.boxes.max() > _MOST_SHARE >= true_rows.boxes.max(initial=0.0):
        raise DataError(detections, "has boxes in pixels; expected shares of width and height, as in the truth")

    if label_map is None:
        names = {int(label): str(label) for label in np.unique(true_rows.classes)}
    else:
        names = read_label_map(label_map)
    labels = np.full(MOST_CLASSES, -1, dtype=np.int64)
    labels[list(names)] = np.arange(len(names))

    excluded = _read_exclusions(exclusions, videos) if exclusions is not None else np.zeros(0, dtype=np.int64)
    notes = []
    tables = []
    for path, rows in ((truth, true_rows), (detections, answers)):
        unknown = labels[rows.classes] < 0
        left_out = is_among(frame_keys(rows.videos, rows.seconds), excluded)
        if unknown.any():
            classes = ", ".join(map(str, np.unique(rows.classes[unknown])[:5]))
            notes.append(f"{path}: {int(unknown.sum())} rows of classes that do not count were passed over: {classes}")
        if left_out.any():
            notes.append(f"{path}: {int(left_out.sum())} rows in excluded key frames were passed over")
        keep = ~(unknown | left_out)
        tables.append(
            FrameBoxes(
                rows.videos[keep],
                rows.seconds[keep],
                labels[rows.classes[keep]],
                rows.boxes[keep],
                rows.scores[keep],
            )
        )

    if not len(tables[0]):
        raise DataError(truth, "has no row that counts")
    return AvaData(tuple(names.values()), tables[0], tables[1], notes)


def read_label_map(path: Path) -> dict[int, str]:
    """Read a label map.

    Returns:
        The name of each class that counts, by its number in the csv files, ascending.

    Raises:
        DataError: It is not a label map.
    """
    names: dict[int, str] = {}
    name = ""
    for number, line in read_lines(path, "a label map"):
        for key, value in _FIELD.findall(line):
            if key == "name":
                name = value.strip("\"'")
                continue
            label = _whole(path, number, key, value, MOST_CLASSES)
            names[label] = name or value
    if not names:
        raise DataError(path, 'names no class; expected items such as item { name: "stand" id: 12 }')
    return dict(sorted(names.items()))


def _read_exclusions(path: Path, videos: dict[str, int]) -> np.ndarray:
    """(n,) int64 keys of the key frames that do not count."""
    keys = []
    for number, row in _csv_rows(path):
        if len(row) != 2:
            raise DataError(path, f"has {counted(len(row), 'field')}; expected 2: video,second", number)
        video = videos.setdefault(row[0], len(videos))
        keys.append((video, _whole(path, number, "second", row[1], MOST_FRAMES)))
    pairs = np.array(keys, dtype=np.int64).reshape(-1, 2)
    return frame_keys(pairs[:, 0], pairs[:, 1])


def _read_rows(path: Path, videos: dict[str, int], *, scored: bool) -> _Rows:
    """Read a csv file; `videos`: numbers of videos by their names, to which those that are new are added."""
    form = _RESULT_FORM if scored else _TRUTH_FORM
    numbers = array("q")
    values = array("d")
    for line, row in _csv_rows(path):
        if len(row) != 8 and (scored or len(row) != 7):
            raise DataError(path, f"has {counted(len(row), 'field')}; expected 8: {form}", line)
        video = videos.setdefault(row[0], len(videos))
        second = _whole(path, line, "second", row[1], MOST_FRAMES)
        label = _whole(path, line, "class", row[6], MOST_CLASSES)
        numbers.extend((video, second, label, line))
        try:
            values.extend(map(float, row[2:6]))
            values.append(float(row[7]) if scored else 1.0)
        except ValueError as error:
            raise DataError(path, f"{str(error)[:80]}; expected {form}", line) from None

    columns = np.array(numbers, dtype=np.int64).reshape(-1, 4)
    floats = np.array(values, dtype=np.float64).reshape(-1, 5)
    finite = np.isfinite(floats).all(axis=1)
    if not finite.all():
        raise DataError(path, "holds a number that is not finite", int(columns[np.argmin(finite), 3]))

    boxes = floats[:, :4]
    turned = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    if not scored and turned.any():
        raise DataError(path, "has x2 < x1 or y2 < y1", int(columns[np.argmax(turned), 3]))
    return _Rows(columns[:, 0], columns[:, 1], columns[:, 2], boxes, floats[:, 4])


def _whole(path: Path, line: int, name: str, text: str, limit: int) -> int:
    text = text.strip()
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or int(text) >= limit:
        raise DataError(path, f"{name} is {text[:40]!r}; expected a whole number from 0 to {limit - 1}", line)
    return int(text)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not empty, and the number of its line."""
    reader = csv.reader((line for _, line in read_lines(path, "a csv file")), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(path, f"is not csv: {error}", reader.line_num) from None

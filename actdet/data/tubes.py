"""Tube files: a table of who does what, where and when in a video, which a person can write (docs/formats.md).

    frame,track,class,x1,y1,x2,y2
    12,1,fight,100,50,220,310
    13,1,fight,102,51,222,311

Each line is one actor in one frame. All lines of one track and one class are a tube.
"""

from __future__ import annotations

import csv
import io
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actdet.data.annotations import Annotation
from actdet.data.boxes import Box, parse_box, parse_number
from actdet.data.reading import read_text_lines
from actdet.detections import Tube
from actdet.errors import DataError
from actdet.files import write_bytes
from actdet.video.info import VideoInfo
from actdet.wording import counted

# An hour of video with five actors in each frame is about 20 MB.
_MOST_BYTES = 2**25
_MOST_LINES = 1_000_000
_MOST_CHARACTERS = 1000
_EXPECTED = "a table of tubes"

# Two lines can stand for all frames between them, so a small file could fill the memory.
_MOST_FRAMES = 10_000_000

# After so many wrong lines the rest of a file tells nothing new.
_MOST_PROBLEMS = 1000

# What a header may name. The columns of a box come together or not at all.
_TIMES = ("frame", "second")
_BOX = ("x1", "y1", "x2", "y2")
_KNOWN = (*_TIMES, "track", "class", *_BOX, "interpolate")
_FORM = "frame,track,class,x1,y1,x2,y2"

# A spreadsheet writes the one or the other, by the language of its user.
_DELIMITERS = (",", ";", "\t")

# How many classes an error lists before it says how many more there are.
_LISTED_CLASSES = 12


def read_tubes(
    path: str | os.PathLike[str], video: VideoInfo, class_names: Sequence[str]
) -> tuple[list[Tube], list[DataError]]:
    """Read the tubes of a video.

    Args:
        path: The tube file. If it is empty or has only a header, nothing happens in the video.
        video: Says how large its pictures are, and when each is shown.
        class_names: Names of the classes, in the order of their ids.

    Returns:
        The tubes that the good lines make, in the order in which they begin in the file, and a problem for each bad
        line, with its number.
    """
    try:
        lines = read_text_lines(path, _MOST_BYTES, _MOST_LINES, _EXPECTED)
        header = next((number for number, line in enumerate(lines) if line.strip()), None)
        if header is None:
            return [], []
        columns = _read_header(path, lines[header], header + 1)
    except DataError as error:
        return [], [error]

    parser = _RowParser(columns, video, class_names)
    rows: list[_Row] = []
    problems: list[DataError] = []
    for number, line in enumerate(lines[header + 1 :], start=header + 2):
        try:
            row = parser.row(line, number)
        except ValueError as error:
            problems.append(DataError(path, str(error), number))
            if len(problems) == _MOST_PROBLEMS:
                problems.append(DataError(path, f"has {_MOST_PROBLEMS} wrong lines; later lines were not read", number))
                break
            continue
        if row is not None:
            rows.append(row)

    tubes, more = _tubes_of(path, rows, class_names)
    return tubes, problems + more


def write_tubes(path: Path, tubes: Sequence[Tube], class_names: Sequence[str]) -> None:
    """Write a tube file, all of it or nothing; `read_tubes` gives the same tubes back, in the same order.

    Each frame of a tube gets a line, but for frames between others with the same box: of these only the first and the
    last do, and a column `interpolate` says so.

    Raises:
        DataError: If the disk refuses, or if the file would be too large to be read again.
    """
    write_bytes(path, tube_file(path, tubes, class_names))


def tube_file(path: Path, tubes: Sequence[Tube], class_names: Sequence[str]) -> bytes:
    """Return what `write_tubes` would write to `path`; its errors are those of `write_tubes`."""
    data = format_tubes(tubes, class_names).encode()
    if len(data) > _MOST_BYTES:
        problem = f"cannot be written: its tubes take more than {_MOST_BYTES} bytes; cut the video into shorter ones"
        raise DataError(path, problem)
    return data


def format_tubes(tubes: Sequence[Tube], class_names: Sequence[str]) -> str:
    """Return the text of a tube file; tracks are numbered from 1, in the order of `tubes`."""
    sparse = [thin(tube) for tube in tubes]
    has_interpolation = any(kept.filled.any() for kept in sparse)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((_FORM + ",interpolate" if has_interpolation else _FORM).split(","))
    for track, (tube, kept) in enumerate(zip(tubes, sparse, strict=True), start=1):
        name = class_names[tube.label]
        boxes = _box_texts(kept.tube)
        for frame, box, filled in zip(kept.tube.frames.tolist(), boxes, kept.filled.tolist(), strict=True):
            row = [frame, track, name, *box]
            if has_interpolation:
                row.append(int(filled))
            writer.writerow(row)
    return text.getvalue()


class ThinTube(NamedTuple):
    """Some frames of a tube, from which `interpolate` makes all of them again."""

    tube: Tube
    filled: np.ndarray
    """(n,) bool: whether the frames between this one and the next one were left out."""


def thin(tube: Tube) -> ThinTube:
    """Leave out frames between others with the same box, or without any, if none of them is missing."""
    same = np.diff(tube.frames) == 1
    if len(tube.boxes):
        same &= (tube.boxes[1:] == tube.boxes[:-1]).all(1)

    kept = np.ones(len(tube.frames), bool)
    kept[1:-1] = ~(same[1:] & same[:-1])
    filled = np.zeros(len(tube.frames), bool)
    filled[:-1] = ~kept[1:]

    boxes = tube.boxes[kept] if len(tube.boxes) else tube.boxes
    return ThinTube(Tube(tube.label, tube.frames[kept], boxes), filled[kept])


def interpolate(tube: Tube, filled: np.ndarray | None = None) -> Tube:
    """Fill gaps of a tube, with boxes on straight lines between those on both sides.

    Args:
        tube: With at least one frame.
        filled: (n,) bool, whether to fill the gap behind each frame; the last value is ignored. By default all gaps
            are filled.

    Returns:
        The tube without these gaps. Box corners move by the same step from each frame to the next.
    """
    count = len(tube.frames)
    if filled is None:
        filled = np.ones(count, bool)

    # Each frame stands for itself and, if its gap is filled, for the frames up to the next one.
    steps = np.ones(count, np.int64)
    gaps = np.diff(tube.frames)
    steps[:-1] = np.where(filled[:-1], gaps, 1)
    source = np.repeat(np.arange(count), steps)
    offset = np.arange(len(source)) - np.repeat(np.cumsum(steps) - steps, steps)

    frames = tube.frames[source] + offset
    if not len(tube.boxes):
        return Tube(tube.label, frames, tube.boxes)

    before = tube.boxes[source].astype(np.float64)
    after = tube.boxes[np.minimum(source + 1, count - 1)].astype(np.float64)
    share = (offset / steps[source])[:, None]
    boxes = before + (after - before) * share
    return Tube(tube.label, frames, boxes.astype(np.float32))


def clip_annotations(tubes: Sequence[Tube], width: int, height: int) -> tuple[Annotation, ...]:
    """Return what a detector of whole clips learns from: for each tube the box around all its boxes.

    A tube without boxes gets the whole picture, since the action is somewhere in it.

    Args:
        tubes: Of one clip.
        width: Of its pictures in pixels.
        height: Of its pictures in pixels.
    """
    annotations = []
    for tube in tubes:
        box = (0.0, 0.0, float(width), float(height))
        if len(tube.boxes):
            left, top = tube.boxes[:, :2].min(0).tolist()
            right, bottom = tube.boxes[:, 2:].max(0).tolist()
            box = (left, top, right, bottom)
        annotations.append(Annotation(tube.label, box))
    return tuple(annotations)


def tube_of_clip_line(annotation: Annotation, frames: range) -> Tube:
    """Return what a line `class x1 y1 x2 y2` says of a clip with these frames: the same box in each of them."""
    boxes = np.tile(np.array(annotation.box, np.float32), (len(frames), 1))
    return Tube(annotation.label, np.array(frames, np.int64), boxes)


def frame_times(video: VideoInfo) -> np.ndarray:
    """Return when each frame begins to show, in seconds from the first one: (frames,) float64."""
    return (video.pts - video.pts[0]) * float(video.time_base)


def nearest_frames(times: np.ndarray, seconds: np.ndarray | float) -> np.ndarray:
    """Return the frames that begin to show nearest to these seconds: int64, the earlier one of two as near.

    Before the first frame that is the first one, and after the last frame the last one, however long ago that was.

    Args:
        times: (frames,) float64 from `frame_times`.
        seconds: Any shape.
    """
    return np.searchsorted(_middles(times), seconds, side="left")


def _middles(times: np.ndarray) -> np.ndarray:
    """Return the times from which on the next frame is the nearest one."""
    return (times[1:] + times[:-1]) / 2


class _Columns(NamedTuple):
    """What the header says."""

    delimiter: str
    names: tuple[str, ...]
    time: str
    """Of `_TIMES`."""
    has_boxes: bool


class _Row(NamedTuple):
    """One actor in one frame."""

    line: int
    time: str
    """The frame or the second as the line spells it."""
    frame: int
    track: str
    label: int
    box: Box | None
    filled: bool


def _read_header(path: str | os.PathLike[str], line: str, number: int) -> _Columns:
    """Return the columns that the first line names, or raise a DataError that says what is wrong with them."""

    def problem(text: str) -> DataError:
        return DataError(path, f"{text}; expected a header such as {_FORM}", number)

    if len(line) > _MOST_CHARACTERS:
        raise problem(f"has {len(line)} characters")
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        names = tuple(field.strip().lower() for field in _split(line, delimiter))
    except ValueError as error:
        raise problem(str(error)) from None

    for name in names:
        if name not in _KNOWN:
            raise problem(f"column {name!r} is unknown")
        if names.count(name) > 1:
            raise problem(f"column {name} comes twice")
    for name in ("track", "class"):
        if name not in names:
            raise problem(f"there is no column {name}")
    times = [name for name in _TIMES if name in names]
    if len(times) != 1:
        raise problem("there must be one of the columns frame and second")
    missing = [name for name in _BOX if name not in names]
    if 0 < len(missing) < len(_BOX):
        raise problem(f"there is no column {missing[0]}, but others of a box")
    return _Columns(delimiter, names, times[0], not missing)


class _RowParser:
    """Turns the lines of one file into rows. Large data sets have half a million, so this takes the short ways."""

    def __init__(self, columns: _Columns, video: VideoInfo, class_names: Sequence[str]) -> None:
        self._columns = columns
        self._class_names = class_names
        self._labels = {name: label for label, name in enumerate(class_names)}
        self._width = video.width
        self._height = video.height
        self._frames = len(video.pts)
        self._seconds = video.seconds
        self._middles = _middles(frame_times(video)).tolist()

        # Where to find the fields in a line; a line has no field behind the last one.
        names = columns.names
        self._time = names.index(columns.time)
        self._track = names.index("track")
        self._class = names.index("class")
        self._box_places = [names.index(name) for name in _BOX] if columns.has_boxes else []
        self._interpolate = names.index("interpolate") if "interpolate" in names else None

    def row(self, line: str, number: int) -> _Row | None:
        """Return what a line says, None for an empty one; raise a ValueError that says what is wrong with it."""
        if len(line) > _MOST_CHARACTERS:
            raise ValueError(f"has {len(line)} characters; expected one field for each column of the header")
        fields = [field.strip() for field in _split(line, self._columns.delimiter)]
        if not any(fields):
            return None
        if len(fields) != len(self._columns.names):
            count = len(self._columns.names)
            header = ",".join(self._columns.names)
            raise ValueError(f"has {counted(len(fields), 'field')}; expected {count}, as the header: {header}")

        time = fields[self._time]
        frame = self._frame(time) if self._columns.time == "frame" else self._nearest_frame(time)
        track = fields[self._track]
        if not track:
            raise ValueError("track is empty; expected a number or name, the same in all lines of one actor's action")
        label = self._label(fields[self._class])
        box = self._box([fields[place] for place in self._box_places])
        filled = False if self._interpolate is None else _flag(fields[self._interpolate])
        return _Row(number, time, frame, track, label, box, filled)

    def _frame(self, text: str) -> int:
        if not (text.isdigit() and text.isascii() and len(text) < 10):
            raise ValueError(f"frame = {text!r} is not a whole number from 0")
        frame = int(text)
        if frame >= self._frames:
            raise ValueError(f"frame = {text} is not in the video, whose {self._frames} frames are counted from 0")
        return frame

    def _nearest_frame(self, text: str) -> int:
        second = parse_number("second", text)
        if not 0 <= second <= self._seconds:
            raise ValueError(f"second = {text} is not in the video, which lasts {self._seconds:.3f} seconds")
        return bisect_left(self._middles, second)

    def _label(self, text: str) -> int:
        if text in self._labels:
            return self._labels[text]
        if text.isdigit() and text.isascii() and len(text) < 10 and int(text) < len(self._class_names):
            return int(text)

        known = [f"{index} = {name}" for index, name in enumerate(self._class_names[:_LISTED_CLASSES])]
        more = len(self._class_names) - len(known)
        if more:
            known.append(f"and {more} more")
        raise ValueError(f"class {text!r} is unknown; known classes: {', '.join(known)}")

    def _box(self, texts: Sequence[str]) -> Box | None:
        if not any(texts):
            return None

        # Nearly all boxes are right, and only the others have to be looked at one number after the other.
        try:
            x1, y1, x2, y2 = map(float, texts)
            is_inside = 0 <= x1 < x2 <= self._width and 0 <= y1 < y2 <= self._height
            if is_inside and (x2 > 1 or y2 > 1) and "_" not in "".join(texts):
                return x1, y1, x2, y2
        except ValueError:
            pass
        return parse_box(texts, self._width, self._height)


def _flag(text: str) -> bool:
    if text not in ("", "0", "1"):
        raise ValueError(f"interpolate = {text!r} is neither 1 nor 0")
    return text == "1"


def _split(line: str, delimiter: str) -> list[str]:
    """Split a line into fields. Only those in quotes need the slower reader."""
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(f"cannot be split into fields: {error}") from None


def _tubes_of(
    path: str | os.PathLike[str], rows: Sequence[_Row], class_names: Sequence[str]
) -> tuple[list[Tube], list[DataError]]:
    """Return the tubes that rows make, and a problem for each row that does not fit to the others of its tube."""
    groups: dict[tuple[str, int], dict[int, _Row]] = {}
    problems = []
    for row in rows:
        group = groups.setdefault((row.track, row.label), {})
        first = group.setdefault(row.frame, row)
        name = class_names[row.label]
        if first is not row:
            whose = f"track {row.track} and class {name}"
            problem = f"{_describe_time(row)} comes twice for {whose}, first in line {first.line}"
            problems.append(DataError(path, problem, row.line))
            continue

        # Dictionaries keep their order, so this is the first row of the tube in the file.
        opening = next(iter(group.values()))
        if (row.box is None) != (opening.box is None):
            del group[row.frame]
            here, there = ("no box", "one") if row.box is None else ("a box", "none")
            problem = f"track {row.track} of class {name} has {here} here, but {there} in line {opening.line}"
            problems.append(DataError(path, f"{problem}; give all of its lines a box, or none of them", row.line))

    ordered = [sorted(group.values(), key=lambda row: row.frame) for group in groups.values()]
    total = sum(sum(_spans(group)) for group in ordered)
    if total > _MOST_FRAMES:
        problem = f"its tubes have {total} frames in all, more than {_MOST_FRAMES}; cut the video into shorter ones"
        return [], [*problems, DataError(path, problem)]
    return [_tube_of(group) for group in ordered], problems


def _describe_time(row: _Row) -> str:
    if row.time.isdigit() and int(row.time) == row.frame:
        return f"frame {row.frame}"
    return f"second {row.time}, which is frame {row.frame},"


def _spans(rows: Sequence[_Row]) -> Iterator[int]:
    """Yield how many frames each row of a tube stands for."""
    for row, following in pairwise(rows):
        yield following.frame - row.frame if row.filled else 1
    yield 1


def _tube_of(rows: Sequence[_Row]) -> Tube:
    """Return the tube of rows in the order of their frames."""
    boxes = [row.box for row in rows if row.box is not None]
    tube = Tube(
        label=rows[0].label,
        frames=np.array([row.frame for row in rows], np.int64),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
    )
    filled = np.array([row.filled for row in rows])
    return interpolate(tube, filled) if filled[:-1].any() else tube


def _box_texts(tube: Tube) -> list[list[str]]:
    """Return the fields of each box, as short as they can be for the same float32; empty ones for no box."""
    if not len(tube.boxes):
        return [[""] * 4 for _ in tube.frames]
    return [[text.removesuffix(".0") for text in row] for row in tube.boxes.astype(str).tolist()]

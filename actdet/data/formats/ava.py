"""AVA: movies in which every second one frame has boxes, each with all that the person in it does. Reads and writes it.

Lines `video,second,x1,y1,x2,y2,action,person`: the second is counted in the whole movie, corners are fractions of the
picture, actions are numbers from 1 that ava_action_list_*.pbtxt names, and a person has the same number in all of a
video's lines. Lists of excluded key frames are lines `video,second`.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actdet.data.boxes import parse_number
from actdet.data.formats.source import ClassMap, Facts, LeftOut, Source, SourceVideo, Split, UnusableError
from actdet.data.reading import read_text_lines
from actdet.data.tubes import nearest_frames
from actdet.detections import Tube
from actdet.errors import DataError
from actdet.files import write_bytes
from actdet.wording import counted

_MOST_BYTES = 2**28
_MOST_LINES = 5_000_000
_EXPECTED = "the tables of AVA: ava_train_v2.2.csv, ava_val_v2.2.csv and so on"
_FORM = "video,second,x1,y1,x2,y2,action,person"

# The annotated quarter of an hour begins here, and so do the copies of the movies that have been cut to it.
_CUT_AT = 900.0

# Times of key frames are whole seconds, so a video that is shorter than the last one by more is a cut one.
_SLACK_SECONDS = 1.0

_MOST_ACTION = 10**6


def read_ava(data: Path, class_names: Sequence[str] | None) -> Source:
    """Read the tables of AVA.

    Args:
        data: A folder with the tables, or one table of boxes.
        class_names: The actions to take, in the order of their class ids; by default those of the list of actions in
            that folder, or else all that have a box, called action_1 and so on.

    Raises:
        DataError: If there is no table, or a wrong line in one.
    """
    folder = data if data.is_dir() else data.parent
    tables = sorted(folder.glob("*.csv")) if data.is_dir() else [data]
    excluding = [path for path in sorted(folder.glob("*.csv")) if "excluded" in path.name.lower()]
    tables = [path for path in tables if not re.search("excluded|included", path.name.lower())]
    if not tables:
        raise DataError(data, f"contains no table of boxes; expected {_EXPECTED}")

    left_out = LeftOut()
    excluded = frozenset(key for path in excluding for key in _read_keys(path))
    rows_by_video: dict[str, list[_Row]] = defaultdict(list)
    videos_by_table: dict[Path, set[str]] = {}
    for path in tables:
        videos = videos_by_table.setdefault(path, set())
        for row in _read_rows(path, left_out):
            videos.add(row.video)
            if (row.video, round(row.second)) in excluded:
                left_out.add("lines of key frames that a list of excluded ones names", row.video)
                continue
            rows_by_video[row.video].append(row)

    names = _read_action_names(folder)
    if not names:
        actions = {row.action for rows in rows_by_video.values() for row in rows}
        names = {action: f"action_{action}" for action in sorted(actions)}
    class_names = class_names or list(names.values())
    classes = ClassMap(class_names, left_out)

    every = sorted(set().union(*videos_by_table.values()))
    videos = [_video(video, rows_by_video[video], names, classes, left_out) for video in every]
    train = frozenset(_in_tables(videos_by_table, "train"))
    test = frozenset(_in_tables(videos_by_table, "val", "test")) - train
    splits = [Split(train, test)] if train and test else []
    return Source(tuple(class_names), videos, splits, left_out)


def write_ava(
    path: Path, tubes: Sequence[Tube], actions: Sequence[int], facts: Facts, name: str, start: float = 0.0
) -> None:
    """Write the boxes of tubes as a table of AVA, all of the file or nothing.

    Args:
        path: The table.
        tubes: Each is a person. Those without boxes are left out.
        actions: The number of each class, in the order of the class ids.
        facts: Of the video.
        name: Of the video.
        start: When the video begins in its movie, in seconds.

    Raises:
        DataError: If the disk refuses.
    """
    size = np.array([facts.width, facts.height, facts.width, facts.height])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for person, tube in enumerate(tubes):
        if not len(tube.boxes):
            continue
        for frame, box in zip(tube.frames.tolist(), tube.boxes / size, strict=True):
            corners = [f"{value:.6f}" for value in box]
            writer.writerow([name, f"{start + facts.times[frame]:.3f}", *corners, actions[tube.label], person])
    write_bytes(path, text.getvalue().encode(errors="replace"))


class _Row(NamedTuple):
    """One person who does one thing in one key frame."""

    video: str
    second: float
    box: tuple[float, float, float, float]
    action: int
    person: str


def _read_rows(path: Path, left_out: LeftOut) -> Iterator[_Row]:
    """Yield the lines of a table of boxes."""
    lines = read_text_lines(path, _MOST_BYTES, _MOST_LINES, _EXPECTED)
    for number, line in enumerate(lines, start=1):
        fields = [field.strip() for field in line.split(",")]
        if not any(fields):
            continue
        if len(fields) == 2:
            left_out.add("key frames without a box", fields[0])
            continue

        # Results of a detector have a score behind the action, in place of the person.
        if len(fields) != 8:
            problem = f"has {counted(len(fields), 'field')}; expected {_FORM}"
            raise DataError(path, problem, number)
        try:
            corners = [
                parse_number(name, text) for name, text in zip(("x1", "y1", "x2", "y2"), fields[2:6], strict=True)
            ]
            if not re.fullmatch("[0-9]{1,6}", fields[6]):
                raise ValueError(f"action = {fields[6]!r} is not a whole number from 1")
            x1, y1, x2, y2 = corners
            yield _Row(fields[0], _second(fields[1]), (x1, y1, x2, y2), int(fields[6]), fields[7])
        except ValueError as error:
            raise DataError(path, f"{error}; expected {_FORM}", number) from None


def _read_keys(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the video and the second of each line of a list of key frames."""
    lines = read_text_lines(path, _MOST_BYTES, _MOST_LINES, "a list of key frames")
    for number, line in enumerate(lines, start=1):
        fields = [field.strip() for field in line.split(",")]
        if not any(fields):
            continue
        if len(fields) != 2:
            raise DataError(path, f"has {counted(len(fields), 'field')}; expected video,second", number)
        try:
            yield fields[0], round(_second(fields[1]))
        except ValueError as error:
            raise DataError(path, str(error), number) from None


def _second(text: str) -> float:
    second = parse_number("second", text)
    if not 0 <= second <= 10**6:
        raise ValueError(f"second = {text!r} is not a time in a movie")
    return second


def _read_action_names(folder: Path) -> dict[int, str]:
    """Return the names of the actions by their numbers, from the list in that folder; none if there is no such list."""
    paths = sorted(folder.glob("*.pbtxt"))
    if not paths:
        return {}

    # The list for evaluation has 60 of the 80 actions, those that are frequent enough.
    path = next((path for path in paths if "activitynet" in path.name.lower()), paths[0])
    text = "\n".join(read_text_lines(path, 2**20, 10**5, "a list of actions"))
    names = {}
    for entry in re.findall(r"\{([^{}]*)\}", text):
        name = re.search(r'\bname:\s*"([^"\n]*)"', entry)
        number = re.search(r"\b(?:label_)?id:\s*([0-9]{1,6})\b", entry)
        if name is None or number is None:
            raise DataError(path, f"has an entry without a name or an id: {' '.join(entry.split())[:80]}")
        names[int(number[1])] = name[1]
    if not names:
        raise DataError(path, 'contains no action; expected entries such as item { name: "stand" id: 12 }')
    return {number: names[number] for number in sorted(names)}


def _in_tables(videos_by_table: dict[Path, set[str]], *words: str) -> set[str]:
    """Return the videos of all tables whose name has one of these words in it."""
    chosen = [videos for path, videos in videos_by_table.items() if any(word in path.name.lower() for word in words)]
    return set().union(*chosen)


def _video(video: str, rows: list[_Row], names: dict[int, str], classes: ClassMap, left_out: LeftOut) -> SourceVideo:
    def tubes(facts: Facts) -> Iterator[Tube]:
        last = max((row.second for row in rows), default=0.0)
        start = 0.0 if last <= facts.seconds + _SLACK_SECONDS else _CUT_AT
        if last - start > facts.seconds + _SLACK_SECONDS:
            raise UnusableError("videos that end before their last key frame")

        by_person: dict[tuple[str, int], list[_Row]] = defaultdict(list)
        for row in rows:
            by_person[row.person, row.action].append(row)
        for (_, action), own in by_person.items():
            label = classes.label(names.get(action, f"action_{action}"), video)
            if label is not None:
                yield _tube(own, label, start, facts)

    return SourceVideo(video, tubes)


def _tube(rows: list[_Row], label: int, start: float, facts: Facts) -> Tube:
    """Return what one person's lines of one action say: a box in each key frame, and none in between."""
    seconds = np.array([row.second for row in rows])
    frames = nearest_frames(facts.times, seconds - start)
    size = np.array([facts.width, facts.height, facts.width, facts.height])
    boxes = np.array([row.box for row in rows]) * size
    return Tube(label, frames, boxes.astype(np.float32))

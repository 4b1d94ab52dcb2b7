"""Tables of truth and detections from JSON lines; `json_lines.py` says what a line looks like."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from actdet.errors import DataError
from actdet.evaluation.arrays import Truth, TubeBoxes, TubeletBoxes, empty_tubes, to_offsets
from actdet.evaluation.json_lines import FORM, Columns, parse_lines
from actdet.evaluation.reading import Found, describe_some


def read_truth_lines(path: Path) -> Truth:
    """Read truth.

    Raises:
        DataError: For the first thing that is wrong with the file.
    """
    columns = parse_lines(path, scored=False)
    if not columns.classes:
        raise DataError(path, f"holds no truth; expected lines such as {FORM}")

    numbered = any(isinstance(name, int) for name in columns.classes)
    if numbered:
        count = max(int(name) for name in columns.classes) + 1
        names = tuple(map(str, range(count)))
        labels = np.array([int(name) for name in columns.classes], dtype=np.int64)
    else:
        names = tuple(sorted(map(str, columns.classes)))
        labels = np.array([names.index(str(name)) for name in columns.classes], dtype=np.int64)

    lengths = np.array([columns.lengths.get(name, 0) for name in columns.videos], dtype=np.int64)
    table = _table(path, columns, np.arange(len(columns.videos)), labels, lengths)
    tubes = table if columns.kind == "tube" else None
    return Truth(names, tuple(columns.videos), lengths, table.as_frames(), tubes, closed=False, numbered=numbered)


def read_detection_lines(path: Path, truth: Truth, truth_path: Path) -> Found:
    """Read detections.

    Args:
        path: The file.
        truth: What they are compared with. Videos and classes that it does not have are passed over.
        truth_path: Its file, for messages.

    Raises:
        DataError: For the first thing that is wrong with the file, or if it shares no video with truth.
    """
    columns = parse_lines(path, scored=True)
    notes = []

    known = {name: number for number, name in enumerate(truth.videos)}
    videos = np.array([known.get(name, -1) for name in columns.videos], dtype=np.int64)
    strange = [name for name in columns.videos if name not in known]
    if strange and len(strange) == len(columns.videos):
        raise DataError(
            path, f"has no video of {truth_path}: it has {describe_some(strange)}, that has {describe_some(known)}"
        )
    if strange:
        notes.append(f"{len(strange)} videos that truth does not have are left out: {describe_some(strange)}")

    labels = _known_labels(path, columns, truth, truth_path)
    without = [str(name) for name, label in zip(columns.classes, labels, strict=True) if label < 0]
    if without:
        notes.append(f"{len(without)} classes that truth does not have are left out: {describe_some(without)}")

    table = _table(path, columns, videos, labels, truth.lengths)
    lengths = truth.lengths.copy()
    for boxes in (truth.frames, table.as_frames()):
        # Where a video's length is not known it ends with the last thing that is known of it.
        np.maximum.at(lengths, boxes.videos, boxes.frames + 1)

    missing = len(truth.videos) - len(np.unique(table.videos))
    if missing:
        notes.append(f"{missing} of {len(truth.videos)} videos have no detection")
    if columns.kind == "tube":
        return Found([], table, lengths, notes)
    return Found(_by_video(table), None, lengths, notes)


def _by_video(table: TubeBoxes) -> Iterator[TubeletBoxes]:
    """Cut a table of tubes that have a single box each."""
    order = np.argsort(table.videos, kind="stable")
    _, begins = np.unique(table.videos[order], return_index=True)
    for rows in np.split(order, begins[1:]) if len(order) else []:
        yield TubeletBoxes(
            table.videos[rows],
            table.frames[rows],
            table.labels[rows],
            table.boxes[rows][:, None],
            table.scores[rows],
        )


def _known_labels(path: Path, columns: Columns, truth: Truth, truth_path: Path) -> np.ndarray:
    """(classes,) int64, the number that truth has for each class of the file; -1 if it has none."""
    names = {name: number for number, name in enumerate(truth.class_names)}
    labels = []
    for name, line in zip(columns.classes, columns.class_lines, strict=True):
        if isinstance(name, int) and not truth.numbered:
            raise DataError(path, f"class {name} is a number, and {truth_path} names its classes", line)
        label = names.get(name, -1) if isinstance(name, str) else name
        if label >= len(names):
            label = -1
        if label < 0 and truth.closed:
            known = f"{describe_some(names)}; numbers count from 0 to {len(names) - 1}"
            raise DataError(path, f"class {name!r} is unknown; {truth_path} has {known}", line)
        labels.append(label)
    return np.array(labels, dtype=np.int64)


def _table(path: Path, columns: Columns, videos: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> TubeBoxes:
    """Make a table of what was read, after a look at all numbers; boxes are tubes of one frame.

    Args:
        path: The file, for messages.
        columns: What was read.
        videos: The number that each video of the file gets; those with -1 are left out.
        labels: The number that each class of the file gets; likewise.
        lengths: How many frames each video has by its new number; 0 if that is unknown.
    """
    counts = np.array(columns.count, dtype=np.int64)
    lines = np.array(columns.line, dtype=np.int64)
    frames = np.array(columns.frames, dtype=np.int64)
    boxes = np.array(columns.boxes, dtype=np.float64).reshape(-1, 4)
    scores = np.array(columns.score, dtype=np.float64)
    box_lines = np.repeat(lines, counts)

    _refuse(path, lines, ~np.isfinite(scores), "score is not finite")
    _refuse(path, box_lines, np.asarray(~np.isfinite(boxes).all(axis=1)), "a box is not finite")
    turned = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    _refuse(path, box_lines, turned, "a box has x2 < x1 or y2 < y1; expected [x1, y1, x2, y2], not x, y, width, height")
    if not len(lines):
        return empty_tubes()

    video = videos[np.array(columns.video, dtype=np.int64)]
    label = labels[np.array(columns.label, dtype=np.int64)]
    length = np.where(video >= 0, lengths[video], 0)
    late = (frames >= np.repeat(length, counts)) & np.repeat(length > 0, counts)
    _refuse(path, box_lines, late, "the frame is beyond the end of the video; frames count from 0")

    every = TubeBoxes(np.maximum(video, 0), np.maximum(label, 0), scores, to_offsets(counts), frames, boxes)
    keep = (video >= 0) & (label >= 0)
    if keep.all():
        return every
    return every.take(keep)


def _refuse(path: Path, lines: np.ndarray, bad: np.ndarray, problem: str) -> None:
    if bad.any():
        raise DataError(path, problem, int(lines[np.argmax(bad)]))

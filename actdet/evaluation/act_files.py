"""The files of the ACT scripts: truth as one pickle, detections as one pickle for each start frame.

    GT.pkl                  {"labels": [...], "train_videos": [[...], ...], "test_videos": [[...], ...],
                             "nframes": {video: n}, "resolution": {...},
                             "gttubes": {video: {label: [(n, 5) array of frame, x1, y1, x2, y2]}}}
    FOLDER/VIDEO/00001.pkl  {label: (N, 4 K + 1) array of K boxes and a score}, labels from 1; one file for each start
                            frame 1 to n - K + 1, as MOC writes them

Both count frames from 1. Labels count from 0 in truth and from 1 in detections.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from actdet.errors import DataError
from actdet.evaluation.arrays import MOST_FRAMES, Truth, TubeletBoxes
from actdet.evaluation.reading import Found, describe_some
from actdet.evaluation.safe_pickle import PickledArray, load_arrays
from actdet.evaluation.tubes import tubes_of


def read_act_truth(path: Path, split: int = 1) -> Truth:
    """Read the truth of the test videos of a split.

    Args:
        path: A pickle such as UCF101v2-GT.pkl or JHMDB-GT.pkl.
        split: Which split, from 1. UCF101-24 has one, JHMDB three.

    Raises:
        DataError: It is not such a pickle, or has no such split.
    """
    content = load_arrays(path)
    if not isinstance(content, dict):
        raise DataError(path, f"holds a {type(content).__name__}; expected ACT's truth, a dict")
    labels = _strings(path, "labels", content.get("labels"))
    tests = _member(path, content, "test_videos", list)
    trains = _member(path, content, "train_videos", list)
    frames = _member(path, content, "nframes", dict)
    tracks = _member(path, content, "gttubes", dict)

    if not 1 <= split <= min(len(tests), len(trains)):
        raise DataError(path, f"has {len(tests)} splits; --split {split} does not exist")
    videos = _strings(path, f"test_videos[{split - 1}]", tests[split - 1])
    train = _strings(path, f"train_videos[{split - 1}]", trains[split - 1], least=0)
    if len(videos) + len(train) != len(frames):
        raise DataError(path, f"has {len(train)} + {len(videos)} videos in split {split}, but {len(frames)} in all")

    numbers: list[int] = []
    classes: list[int] = []
    boxes: list[np.ndarray] = []
    lengths = []
    for number, video in enumerate(videos):
        length = frames.get(video)
        if type(length) is not int or not 0 < length < MOST_FRAMES:
            raise DataError(path, f"has no number of frames for the video {video}")
        lengths.append(length)
        for label, track in _tracks(path, video, tracks.get(video, {}), len(labels)):
            numbers.append(number)
            classes.append(label)
            boxes.append(track)

    tubes = tubes_of(numbers, classes, [1.0] * len(numbers), boxes)
    return Truth(
        labels, videos, np.array(lengths, dtype=np.int64), tubes.as_frames(), tubes, closed=True, numbered=True
    )


def read_act_folder(folder: Path, truth: Truth) -> Found:
    """Read the detections of all videos of a truth, video by video as they are asked for.

    Args:
        folder: Holds VIDEO/00001.pkl and so on.
        truth: Its videos, whose lengths must be known.

    Raises:
        DataError: There is nothing for any video; or later, for the first file that is missing or wrong.
    """
    first = next((path for path in (_path(folder, video, 1) for video in truth.videos) if path.is_file()), None)
    if first is None:
        raise DataError(folder, f"has no file such as {truth.videos[0]}/00001.pkl for any video of the truth")
    if not truth.lengths.all():
        video = truth.videos[int(np.argmin(truth.lengths))]
        raise DataError(folder, f'truth must say how many frames {video} has: {{"video": ..., "length": ...}}')

    length = _read_start(first, truth, 0, 1).length
    return Found(_read_videos(folder, truth, length), None, truth.lengths, [])


def _read_videos(folder: Path, truth: Truth, length: int) -> Iterator[TubeletBoxes]:
    for number, video in enumerate(truth.videos):
        starts = range(1, int(truth.lengths[number]) - length + 2)
        tables = [_read_start(_path(folder, video, start), truth, number, start) for start in starts]
        for start, table in zip(starts, tables, strict=True):
            if table.length != length:
                path = _path(folder, video, start)
                raise DataError(path, f"has tubelets of {table.length} boxes, and other files have {length}")
        if tables:
            columns = ("videos", "starts", "labels", "boxes", "scores")
            yield TubeletBoxes(*(np.concatenate([getattr(table, name) for table in tables]) for name in columns))


def _read_start(path: Path, truth: Truth, video: int, start: int) -> TubeletBoxes:
    """Read the tubelets that begin in a frame, which counts from 1 here."""
    if not path.is_file():
        raise DataError(path, "is missing; expected a file for each start frame from 1 to frames - K + 1")
    content = load_arrays(path)
    if not isinstance(content, dict) or not content:
        raise DataError(path, f"holds a {type(content).__name__}; expected a dict: label to array")

    labels = []
    rows = []
    for label, stored in content.items():
        if type(label) is not int or not 1 <= label <= len(truth.class_names):
            raise DataError(path, f"has the label {label!r}; expected 1 to {len(truth.class_names)}")
        array = _numbers(path, f"label {label}", stored)
        if array.ndim != 2 or array.shape[1] % 4 != 1 or array.shape[1] < 5:
            raise DataError(path, f"has an array of the shape {array.shape}; expected N rows of K boxes and a score")
        labels.append(np.full(len(array), label - 1, dtype=np.int64))
        rows.append(array)

    if len({array.shape[1] for array in rows}) > 1:
        raise DataError(path, "has tubelets of different lengths")
    numbers = np.concatenate(rows)
    count = len(numbers)
    return TubeletBoxes(
        np.full(count, video, dtype=np.int64),
        np.full(count, start - 1, dtype=np.int64),
        np.concatenate(labels),
        numbers[:, :-1].reshape(count, (numbers.shape[1] - 1) // 4, 4),
        numbers[:, -1],
    )


def _path(folder: Path, video: str, start: int) -> Path:
    name = PurePosixPath(video)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(folder, f"cannot have a video called {video!r}")
    return folder / name / f"{start:05d}.pkl"


def _tracks(path: Path, video: str, content: Any, classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the class and the rows (frame from 0, x1, y1, x2, y2) of each tube of a video."""
    if not isinstance(content, dict):
        raise DataError(path, f"has a {type(content).__name__} for the tubes of {video}; expected a dict")
    for label, tracks in content.items():
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(path, f"has the label {label!r} in {video}; expected 0 to {classes - 1}")
        if not isinstance(tracks, list | tuple):
            raise DataError(path, f"has a {type(tracks).__name__} for tubes of {video}; expected a list of arrays")
        for stored in tracks:
            track = _numbers(path, video, stored).astype(np.float64)
            if track.ndim != 2 or track.shape[1] != 5 or not len(track):
                raise DataError(path, f"has a tube of the shape {track.shape} in {video}; expected (n, 5)")
            frames = track[:, 0]
            if (frames != np.floor(frames)).any() or not frames[0] >= 1 or frames[-1] > MOST_FRAMES:
                raise DataError(path, f"has frames in {video} that are no whole numbers from 1")
            if (np.diff(frames) <= 0).any():
                raise DataError(path, f"has frames in {video} that do not ascend")
            track[:, 0] -= 1.0
            yield label, track


def _numbers(path: Path, name: str, stored: object) -> np.ndarray:
    """The array, if it is one of finite numbers."""
    if not isinstance(stored, PickledArray) or stored.value is None:
        raise DataError(path, f"has a {type(stored).__name__} for {name}; expected an array")
    if not np.isfinite(stored.value).all():
        raise DataError(path, f"has a number that is not finite for {name}")
    return stored.value


def _member(path: Path, content: dict[Any, Any], name: str, kind: type) -> Any:
    value = content.get(name)
    if not isinstance(value, kind):
        raise DataError(path, f'has no {kind.__name__} "{name}"; expected ACT\'s truth')
    return value


def _strings(path: Path, name: str, value: object, least: int = 1) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) < least or not all(isinstance(item, str) for item in value):
        raise DataError(path, f"has no list of names in {name}")
    if len(set(value)) < len(value):
        raise DataError(path, f"has a name twice in {name}: {describe_some(x for x in value if value.count(x) > 1)}")
    return tuple(value)

"""The files of the ACT scripts: truth as one pickle, detections as one pickle for each start frame.

    GT.pkl                  as `actdet.data.formats.gt_pickle` describes it
    FOLDER/VIDEO/00001.pkl  {label: (N, 4 K + 1) array of K boxes and a score}, labels from 1; one file for each start
                            frame 1 to n - K + 1, as MOC writes them

Both count frames from 1. Labels count from 0 in truth and from 1 in detections.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from actdet.data.formats.gt_pickle import read_act_truth
from actdet.data.formats.inert_pickle import array_of, read_inert_pickle
from actdet.errors import DataError
from actdet.evaluation.arrays import Truth, TubeletBoxes
from actdet.evaluation.reading import Found
from actdet.evaluation.tubes import tubes_of

_EXPECTED_TRUTH = "ACT's truth, such as UCF101v2-GT.pkl"
_EXPECTED_DETECTIONS = "detections as MOC writes them"


def read_act_split(path: Path, split: int = 1) -> Truth:
    """Read the truth of the test videos of a split.

    Args:
        path: A pickle such as UCF101v2-GT.pkl or JHMDB-GT.pkl.
        split: Which split, from 1. UCF101-24 has one, JHMDB three.

    Raises:
        DataError: It is not such a pickle, or has no such split.
    """
    stored = read_act_truth(path, _EXPECTED_TRUTH)
    if not 1 <= split <= len(stored.splits):
        raise DataError(path, f"has {len(stored.splits)} splits; --split {split} does not exist")
    names = stored.splits[split - 1].test
    if not names:
        raise DataError(path, f"has no videos to test on in split {split}")

    videos = [stored.videos[name] for name in names]
    numbered = [(number, tube) for number, video in enumerate(videos) for tube in video.tubes]
    tubes = tubes_of(
        [number for number, _ in numbered],
        [tube.label for _, tube in numbered],
        [1.0] * len(numbered),
        [tube.rows for _, tube in numbered],
    )
    lengths = np.array([video.frames for video in videos], dtype=np.int64)
    return Truth(stored.class_names, names, lengths, tubes.as_frames(), tubes, closed=True, numbered=True)


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
    content = read_inert_pickle(path, _EXPECTED_DETECTIONS)
    if not isinstance(content, dict) or not content:
        raise DataError(path, f"holds a {type(content).__name__}; expected a dict: label to array")

    labels = []
    rows = []
    for label, stored in content.items():
        if type(label) is not int or not 1 <= label <= len(truth.class_names):
            raise DataError(path, f"has the label {label!r}; expected 1 to {len(truth.class_names)}")
        try:
            array = array_of(stored)
        except ValueError as error:
            raise DataError(path, f"has {error} for label {label}; expected an array") from None
        if not np.isfinite(array).all():
            raise DataError(path, f"has a number that is not finite for label {label}")
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

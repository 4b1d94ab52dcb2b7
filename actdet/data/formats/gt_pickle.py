"""The ground truth that the ACT detector published for UCF101-24 and JHMDB (UCF101v2-GT.pkl, JHMDB-GT.pkl).

A dictionary: `labels`, a list of class names; `train_videos` and `test_videos`, a list of names for each split;
`nframes`, frames by name; `resolution`, (height, width) by name; `gttubes`, by name and class id from 0 a list of
tubes, (n, 5): the frame, counted from 1, and x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from actdet.data.formats.inert_pickle import array_of, read_inert_pickle
from actdet.data.formats.source import ClassMap, Facts, LeftOut, Source, SourceVideo, Split, facts_at_rate
from actdet.detections import Tube
from actdet.errors import DataError

_KEYS = ("labels", "train_videos", "test_videos", "nframes", "resolution", "gttubes")
_MOST_FRAMES = 10**7


def read_gt_pickle(
    path: Path,
    class_names: Sequence[str] | None,
    expected: str,
    rate: Fraction,
    group_of: Callable[[str], str | None],
) -> Source:
    """Read such a file.

    Args:
        path: The file. Nothing that it names is run.
        class_names: The classes to take, in the order of their ids; by default all, in the order of the file.
        expected: What it should be, for the error.
        rate: Frames per second of the videos.
        group_of: Gives the group of a video by its name.

    Raises:
        DataError: If it is something else.
    """
    content = read_inert_pickle(path, expected)
    try:
        return _source(content, class_names, rate, group_of)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise DataError(path, f"does not have the values of such a file ({error}); expected {expected}") from None


def _source(
    content: Any, class_names: Sequence[str] | None, rate: Fraction, group_of: Callable[[str], str | None]
) -> Source:
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise ValueError(f"no {missing[0]!r}")
    labels = [str(name) for name in content["labels"]]

    left_out = LeftOut()
    classes = ClassMap(class_names or labels, left_out)
    videos = []
    for name, frames in content["nframes"].items():
        height, width = (int(array_of(side)) for side in content["resolution"][name])
        count = int(array_of(frames))
        if min(width, height, count) < 1 or max(width, height, count) > _MOST_FRAMES:
            raise ValueError(f"video {name!r} of {width}x{height} pixels and {count} frames")

        # Arrays are made now, so that a wrong one is known before anything is written.
        tubes = []
        for label, arrays in content["gttubes"].get(name, {}).items():
            class_name = labels[_class_id(label, len(labels))]
            tubes += [(class_name, _rows(each)) for each in arrays]
        facts = facts_at_rate(width, height, count, rate)
        videos.append(_video(str(name), tubes, facts, classes, rate, group_of(str(name))))

    pairs = zip(content["train_videos"], content["test_videos"], strict=True)
    splits = [Split(train=frozenset(map(str, train)), test=frozenset(map(str, test))) for train, test in pairs]
    return Source(tuple(class_names or labels), videos, splits, left_out)


def _class_id(value: object, classes: int) -> int:
    label = int(array_of(value))
    if not 0 <= label < classes:
        raise ValueError(f"a class id {label} of {classes} classes")
    return label


def _rows(value: object) -> np.ndarray:
    """Return a tube: (n, 5) float64, frame x1 y1 x2 y2."""
    rows = array_of(value).reshape(-1, 5).astype(np.float64)
    if not np.isfinite(rows).all() or (np.abs(rows) > _MOST_FRAMES).any():
        raise ValueError("a tube whose values are not frames and pixels")
    return rows


def _video(
    name: str,
    tubes: list[tuple[str, np.ndarray]],
    facts: Facts,
    classes: ClassMap,
    rate: Fraction,
    group: str | None,
) -> SourceVideo:
    def read(_: Facts) -> Iterator[Tube]:
        for class_name, rows in tubes:
            label = classes.label(class_name, name)
            if label is not None and len(rows):
                yield Tube(label, rows[:, 0].astype(np.int64) - 1, rows[:, 1:].astype(np.float32))

    return SourceVideo(name, read, facts, group=group, rate=rate)

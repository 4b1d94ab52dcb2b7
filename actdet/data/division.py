"""How the clips of a data set are divided into those to train on and those held out, and what decides it.

Three files in a data set's folder have a say, if they are there; `actdet convert` writes them:

    groups.txt               a line `NAME GROUP` for each clip: clips of one group are never on both sides
    train.txt, test.txt      a clip's name on each line: which clips to train on, and which ones to test on

Without them `split` divides by the classes alone. If videos are cut into windows, the files still name the videos, and
the windows of a video are a group unless groups.txt says more.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from actdet.data.clips import ClipIndex
from actdet.data.groups import group_folds, hold_out_groups, read_groups
from actdet.data.reading import read_text_lines
from actdet.data.split import folds, hold_out
from actdet.errors import DataError

GROUPS = "groups.txt"
TRAIN = "train.txt"
TEST = "test.txt"
DIVISION_FILES = (GROUPS, TRAIN, TEST)

# The share of each class that is held out if nothing says another one.
_SHARE = 0.2

_MOST_BYTES = 2**24
_MOST_LINES = 10**6
_EXPECTED = "the name of a clip on each line"

Split = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Division:
    """Which clips are trained on, and which are held out."""

    splits: list[Split]
    """For each training the numbers of its training clips and of its held-out clips, both ascending."""
    reason: str
    """What decided it, in a few words; empty if the classes alone did."""
    settings: dict[str, Any]
    """All that decided it, beside the clips, their classes and the seed, as JSON can hold it. The same command divides
    in the same way if these are the same."""


def divide(
    index: ClipIndex, share: float | None, seed: int, groups_file: str | os.PathLike[str] | None = None
) -> Division:
    """Divide a data set once.

    Args:
        index: The data set.
        share: About this share of the clips of each class is held out, in [0, 1), of those in train.txt if there is
            such a list. None holds out those in test.txt; without the lists, a fifth.
        seed: Determines the division, unless the lists do.
        groups_file: Says which group each clip belongs to; by default the data set's own groups.txt, if it has one.

    Returns:
        The division; it has one split.

    Raises:
        ActdetError: If `share` is out of its range.
        DataError: If one of the files is wrong, or the clips cannot be divided so.
    """
    files = _read_files(index, groups_file)
    if files.lists is not None and share is None:
        train, held_out = files.lists
    else:
        share = _SHARE if share is None else share
        pool, groups = files.pool(index)
        found = hold_out(pool, share, seed) if groups is None else hold_out_groups(pool, groups, share, seed)
        train, held_out = files.numbers(found)

    reasons = []
    if files.lists is not None:
        listed, kept = map(len, files.lists)
        if share is None:
            reasons.append(f"{index.root / TRAIN} and {TEST}: {listed} clips to train on, {kept} held out")
        else:
            reasons.append(
                f"{index.root / TRAIN}: {len(train)} of its {listed} clips to train on, {len(held_out)} held out; "
                f"the {kept} in {TEST} are not used"
            )
    reasons += files.more_reasons(index)
    return Division([(train, held_out)], "; ".join(reasons), {"val_share": share} | files.settings(index))


def divide_into_folds(
    index: ClipIndex, count: int, seed: int, groups_file: str | os.PathLike[str] | None = None
) -> Division:
    """Divide a data set `count` times, so that each clip, or each one in train.txt if there is one, is held out once.

    Args:
        index: The data set.
        count: How many folds, at least 2.
        seed: Determines the folds.
        groups_file: As in `divide`.

    Returns:
        The division; it has `count` splits.

    Raises:
        ActdetError: If `count` is too small.
        DataError: If one of the files is wrong, or the clips cannot be divided so.
    """
    files = _read_files(index, groups_file)
    pool, groups = files.pool(index)
    found = folds(pool, count, seed) if groups is None else group_folds(pool, groups, count, seed)
    splits = [files.numbers(split) for split in found]

    reasons = []
    if files.lists is not None:
        listed, kept = map(len, files.lists)
        reasons.append(f"{index.root / TRAIN}: folds of its {listed} clips; the {kept} in {TEST} are not used")
    reasons += files.more_reasons(index)
    return Division(splits, "; ".join(reasons), {"folds": count} | files.settings(index))


def read_list(path: str | os.PathLike[str], index: ClipIndex) -> list[int]:
    """Read which clips of a data set a list names.

    Args:
        path: A file with the name of a clip on each line.
        index: The data set. Clips that were left out of it may be named.

    Returns:
        The numbers of the clips, ascending.

    Raises:
        DataError: If the list is empty, names a clip twice or one that is not in the data set, or if all that it names
            were left out.
    """
    return _numbers_of(path, _read_names(path, index), index)


def find_wrong_files(index: ClipIndex) -> list[DataError]:
    """Return what is wrong with groups.txt, and with train.txt and test.txt, in the folder of a data set."""
    problems: dict[str, DataError] = {}
    # The last one reads all files again, to compare them, and meets the same problems.
    for read in (_own_groups, _read_lists, _read_files):
        try:
            read(index)
        except DataError as problem:
            problems[str(problem)] = problem
    return list(problems.values())


class _Files(NamedTuple):
    """What the files of a data set say."""

    groups_path: Path | None
    groups: list[str] | None
    """The group of each clip."""
    lists: Split | None
    """The clips in train.txt, and those in test.txt."""

    def pool(self, index: ClipIndex) -> tuple[ClipIndex, list[str] | None]:
        """Return the clips of which some may be held out, and their groups: those in train.txt, or else all."""
        if self.lists is None:
            return index, self.groups
        listed = self.lists[0]
        clips = replace(index, clips=tuple(index.clips[i] for i in listed))
        return clips, None if self.groups is None else [self.groups[i] for i in listed]

    def numbers(self, split: Split) -> Split:
        """Return a division of the pool by the numbers that its clips have in the whole index."""
        if self.lists is None:
            return split
        listed = self.lists[0]
        train, held_out = split
        return [listed[i] for i in train], [listed[i] for i in held_out]

    def more_reasons(self, index: ClipIndex) -> list[str]:
        """Say what groups and lists did, beside what the numbers of clips tell."""
        reasons = []
        if self.lists is not None:
            others = len(index.clips) - sum(map(len, self.lists))
            if others:
                reasons.append(f"{others} in neither list are not used")
        if self.groups is not None:
            count = len(set(self.groups))
            what = f"{count} videos in windows" if self.groups_path is None else f"{self.groups_path}: {count} groups"
            reasons.append(f"{what}, none of them on both sides")
        return reasons

    def settings(self, index: ClipIndex) -> dict[str, Any]:
        """Return what is in the files, and nothing if there are none: experiments before there were any lack it."""
        settings: dict[str, Any] = {}
        if self.groups is not None:
            settings["groups"] = self.groups
        if self.lists is not None:
            train, test = ([index.clips[i].name for i in side] for side in self.lists)
            settings |= {"train_list": train, "test_list": test}
        return settings


def without_clips(path: Path, names: Collection[str]) -> str:
    """Return what is in groups.txt or a list of clips, without the lines about some clips.

    Args:
        path: The file.
        names: Names of those clips.

    Raises:
        DataError: If the file cannot be read as text.
    """
    kept = []
    for line in read_text_lines(path, _MOST_BYTES, _MOST_LINES, _EXPECTED):
        fields = line.strip().rsplit(None, 1) if path.name == GROUPS else [line.strip()]
        if not fields or fields[0] not in names:
            kept.append(line)
    return "\n".join(kept)


def _read_files(index: ClipIndex, groups_file: str | os.PathLike[str] | None = None) -> _Files:
    """Read the files that have a say.

    Raises:
        DataError: If one of them is wrong, or if the lists cut a group.
    """
    if groups_file is None:
        path, groups = _own_groups(index)
    else:
        path = Path(groups_file)
        groups = read_groups(path, [clip.video_name for clip in index.clips])
    if groups is None and any(clip.span for clip in index.clips):
        groups = [clip.video_name for clip in index.clips]

    lists = _read_lists(index)
    if groups is not None and lists is not None:
        train, test = lists
        trained = {groups[i]: index.clips[i].name for i in reversed(train)}
        for i in test:
            if groups[i] in trained:
                raise DataError(
                    index.root / TEST,
                    f"clip {index.clips[i].name} is of group {groups[i]} in {path}, as is {trained[groups[i]]} in "
                    f"{TRAIN}; list all clips of a group on one side, or correct their groups",
                )
    return _Files(path, groups, lists)


def _own_groups(index: ClipIndex) -> tuple[Path | None, list[str] | None]:
    """Return the data set's groups.txt, and the group of each clip in it; None if there is no such file."""
    path = index.root / GROUPS
    if not os.path.lexists(path):
        return None, None
    return path, read_groups(path, [clip.video_name for clip in index.clips])


def _read_lists(index: ClipIndex) -> Split | None:
    """Return the clips that train.txt and test.txt name; None if there are no such files.

    Raises:
        DataError: If one of the lists is wrong or missing, if they share a clip, or if no training clip has an action.
    """
    train_path = index.root / TRAIN
    test_path = index.root / TEST
    if not os.path.lexists(train_path) and not os.path.lexists(test_path):
        return None
    for path, other in ((train_path, TEST), (test_path, TRAIN)):
        if not os.path.lexists(path):
            raise DataError(path, f"file not found, but there is a {other}; a data set has both lists or neither")

    to_train = _read_names(train_path, index)
    to_test = _read_names(test_path, index)
    for name, line in to_test.items():
        if name in to_train:
            problem = f"clip {name} is in line {to_train[name]} of {TRAIN}, too; remove it from one of the lists"
            raise DataError(test_path, problem, line)

    train = _numbers_of(train_path, to_train, index)
    if (index.labels[train] == len(index.class_names)).all():
        problem = f"none of the {len(train)} clips that it names has an action: there is nothing to learn from"
        raise DataError(train_path, problem)
    return train, _numbers_of(test_path, to_test, index)


def _read_names(path: str | os.PathLike[str], index: ClipIndex) -> dict[str, int]:
    """Return the names in a list of clips, and the line that each is in."""
    lines = read_text_lines(path, _MOST_BYTES, _MOST_LINES, _EXPECTED)
    known = {clip.video_name for clip in index.clips}
    known.update(Path(problem.path).stem for problem in index.left_out)

    found: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        if name in found:
            raise DataError(path, f"clip {name} is in line {found[name]} already; remove one of the lines", number)
        if name not in known:
            problem = f"{name!r} is no clip of {index.root}; expected the name of a video without its extension"
            raise DataError(path, problem, number)
        found[name] = number

    if not found:
        raise DataError(path, f"is empty; expected {_EXPECTED}")
    return found


def _numbers_of(path: str | os.PathLike[str], names: dict[str, int], index: ClipIndex) -> list[int]:
    """Return the numbers of the clips of these names, which the list at `path` holds."""
    numbers = [number for number, clip in enumerate(index.clips) if clip.video_name in names]
    if not numbers:
        raise DataError(path, "all clips that it names were left out; repair one of them, or name others")
    return numbers

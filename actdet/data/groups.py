"""Divisions of a data set that keep groups of clips together: those of one camera, place or person.

Clips of one group look alike. If some of them are trained on and others evaluated on, the figures say how well the
detector remembers the place, and not how well it does in a new one. As in `split`, a clip with actions of several
classes counts for the class with the lowest id.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from actdet.data.classes import NO_ACTION
from actdet.data.clips import ClipIndex
from actdet.data.reading import read_text_lines
from actdet.errors import ActdetError, DataError

_MOST_BYTES = 2**24
_MOST_LINES = 10**6

# From how many random divisions the search for a good one starts. The best of all is taken; of folds, the first ones of
# which each has each class on both sides.
_STARTS = 20


def read_groups(path: str | os.PathLike[str], names: Sequence[str]) -> list[str]:
    """Read which group each clip belongs to.

    Args:
        path: A file with a line `NAME GROUP` for each clip. A name may have spaces in it, a group may not. Lines about
            other clips are passed over.
        names: The names of the clips.

    Returns:
        The group of each clip.

    Raises:
        DataError: If a line is wrong, or if a clip has no line or two different ones.
    """
    lines = read_text_lines(path, _MOST_BYTES, _MOST_LINES, "a line NAME GROUP for each clip")
    groups: dict[str, str] = {}
    first_lines: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.strip().rsplit(None, 1)
        if not fields:
            continue
        if len(fields) != 2:
            raise DataError(path, f"{fields[0]!r} has no group; expected NAME GROUP", number)

        name, group = fields
        known = groups.setdefault(name, group)
        first = first_lines.setdefault(name, number)
        if known != group:
            raise DataError(path, f"clip {name} is in group {group} here, but in group {known} in line {first}", number)

    missing = [name for name in names if name not in groups]
    if missing:
        raise DataError(
            path, f"{len(missing)} of {len(names)} clips have no group, {missing[0]} first; add a line NAME GROUP"
        )
    return [groups[name] for name in names]


def hold_out_groups(index: ClipIndex, groups: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide clips into those to train on and those to evaluate on, whole groups at a time.

    Args:
        index: The clips.
        groups: The group of each clip.
        share: How many clips of each class should be held out, as a fraction, as far as the groups allow it; 0 holds
            nothing out.
        seed: Another one gives another division.

    Returns:
        The numbers of the training clips and of the held-out ones, ascending. Each class is on both sides.

    Raises:
        ActdetError: If the share is not in [0, 1).
        DataError: If no clip has an action, or if there is no division with each class on both sides.
    """
    if not 0 <= share < 1:
        raise ActdetError(f"the share of clips to hold out must be in [0, 1), got {share}")
    table = _Table(index, groups)
    if share == 0:
        return list(range(len(groups))), []
    table.check_spread(2, "a split")

    random = np.random.default_rng(seed)
    found = [_search(table.counts, share, random) for _ in range(_STARTS)]
    held = min(found, key=lambda held: _cost(table.counts.sum(0), table.counts[held].sum(0), share))

    out = table.counts[held].sum(0)
    one_sided = np.flatnonzero((out == 0) | (out == table.counts.sum(0)))
    if len(one_sided):
        problem = f"its groups leave all clips of class {table.name(one_sided[0])} on one side of the split"
        raise DataError(index.root, f"{problem}; make smaller groups, or hold out no clip and train on all")
    is_held = held[table.group_of]
    return np.flatnonzero(~is_held).tolist(), np.flatnonzero(is_held).tolist()


def group_folds(index: ClipIndex, groups: Sequence[str], count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Divide clips into folds, whole groups at a time, with as equal shares of each class as the groups allow.

    Args:
        index: The clips.
        groups: The group of each clip.
        count: Number of folds.
        seed: Another one gives other folds.

    Returns:
        For each fold the numbers of the training clips and of the held-out ones, ascending. Each clip is held out once.

    Raises:
        ActdetError: If there are fewer than 2 folds.
        DataError: If no clip has an action, if a class is in fewer groups than there are folds, or if no folds are
            found of which each has each class on both sides.
    """
    if count < 2:
        raise ActdetError(f"cross-validation needs 2 or more folds, got {count}")
    table = _Table(index, groups)
    table.check_spread(count, f"{count} folds")

    # It takes half a second to import, which a run on one split does without.
    from sklearn.model_selection import StratifiedGroupKFold

    # It balances the folds, but may still leave a class out of one. Each try draws another order of the groups.
    labels = index.labels
    divider = StratifiedGroupKFold(count, shuffle=True, random_state=np.random.RandomState(seed))
    for _ in range(_STARTS):
        splits = divider.split(labels, labels, table.group_of)
        folds = [(train.tolist(), held.tolist()) for train, held in splits]
        if all(table.has_every_class(side) for fold in folds for side in fold):
            return folds
    problem = f"its groups are too unequal for {count} folds with clips of each class"
    raise DataError(index.root, f"{problem}; make smaller groups, or take fewer --folds")


class _Table:
    """How many clips of each class each group has."""

    def __init__(self, index: ClipIndex, groups: Sequence[str]) -> None:
        if len(groups) != len(index.clips):
            raise ValueError(f"{len(groups)} groups for {len(index.clips)} clips: each clip needs one")
        self._index = index
        self._names = sorted(set(groups))
        numbers = {name: number for number, name in enumerate(self._names)}
        self.group_of = np.array([numbers[group] for group in groups], np.int64)
        """(clips,) the number of each clip's group."""

        labels = index.labels
        if (labels == len(index.class_names)).all():
            problem = f"none of the {len(labels)} clips has an action: there is nothing to learn from"
            raise DataError(index.root / "annotations", problem)
        self._labels = labels
        self._classes, columns = np.unique(labels, return_inverse=True)
        self.counts = np.zeros((len(self._names), len(self._classes)), np.int64)
        """(groups, classes that some clip has)."""
        np.add.at(self.counts, (self.group_of, columns), 1)

    def name(self, column: int | np.integer) -> str:
        """The name of the class of a column."""
        label = self._classes[column]
        return self._index.class_names[label] if label < len(self._index.class_names) else NO_ACTION

    def has_every_class(self, clips: Sequence[int]) -> bool:
        """Whether among these clips is one of each class that the data set has."""
        return len(np.unique(self._labels[clips])) == len(self._classes)

    def check_spread(self, count: int, purpose: str) -> None:
        """Raise a DataError for a class that is in fewer than `count` groups."""
        spread = (self.counts > 0).sum(0)
        for column in np.flatnonzero(spread < count):
            here = [self._names[row] for row in np.flatnonzero(self.counts[:, column])]
            listed = ", ".join(here[:5])
            raise DataError(
                self._index.root,
                f"clips of class {self.name(column)} are only in {len(here)} of {len(self._names)} groups ({listed}): "
                f"{purpose} needs {count} or more groups with each class",
            )


def _search(counts: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Return a division that moving no single group to the other side makes better: (groups,) bool, those held out.

    Args:
        counts: (groups, classes).
        share: Of each class to hold out.
        random: Says where the search begins, and in which order it tries the groups.
    """
    total = counts.sum(0)
    held = random.random(len(counts)) < share
    out = counts[held].sum(0)
    cost = _cost(total, out, share)
    has_improved = True
    while has_improved:
        has_improved = False
        for group in random.permutation(len(counts)):
            new_out = out - counts[group] if held[group] else out + counts[group]
            new_cost = _cost(total, new_out, share)
            if new_cost < cost:
                held[group] = not held[group]
                out = new_out
                cost = new_cost
                has_improved = True
    return held


def _cost(total: np.ndarray, out: np.ndarray, share: float) -> float:
    """Say how bad a division is: a class on one side alone counts more than all that the shares can be off.

    Args:
        total: (classes,) clips of each class.
        out: (classes,) those held out.
        share: That should be.
    """
    one_sided = ((out == 0) | (out == total)).sum()
    off = ((out / total - share) ** 2).sum()
    return float(2 * len(total) * one_sided + off)

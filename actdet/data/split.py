"""Stratified divisions of a data set: training and held-out clips once, or k folds for cross-validation.

A clip with actions of several classes counts for the class with the lowest id, regardless of the order of the lines in
its annotation file.
"""

from __future__ import annotations

import numpy as np

from actdet.data.classes import NO_ACTION
from actdet.data.clips import ClipIndex
from actdet.errors import ActdetError, DataError


def hold_out(index: ClipIndex, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide the clips into training and held-out ones.

    Args:
        index: The data set.
        share: About this share of the clips of each class is held out, in [0, 1); 0 holds nothing out. The report uses
            0.2.
        seed: Determines the division.

    Returns:
        The numbers of the training clips and of the held-out clips, both ascending.

    Raises:
        ActdetError: If `share` is out of its range.
        DataError: If a class has fewer than two clips, or no clip has an action.
    """
    if not 0 <= share < 1:
        raise ActdetError(f"the share of clips to hold out must be in [0, 1), got {share}")
    labels = index.labels
    _need_positive(index, labels)
    if share == 0:
        return list(range(len(labels))), []

    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < 2:
            raise DataError(
                index.root,
                f"only {count} clip of class {_name(index, label)}: a split needs at least 2 clips of each class; "
                "add clips, or hold out none and train on all of them",
            )

    # The import takes half a second, which training on all clips can save.
    from sklearn.model_selection import train_test_split

    # Both parts need at least one clip of every class.
    classes = len(np.unique(labels))
    held = min(max(round(share * len(labels)), classes), len(labels) - classes)
    train, val = train_test_split(list(range(len(labels))), test_size=held, stratify=labels, random_state=seed)
    return sorted(train), sorted(val)


def folds(index: ClipIndex, count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Divide the clips `count` times, so that every clip is held out once.

    Args:
        index: The data set.
        count: How many folds, at least 2.
        seed: Determines the folds.

    Returns:
        For each fold the numbers of its training clips and of its held-out clips.

    Raises:
        ActdetError: If `count` is too small.
        DataError: If a class has fewer clips than there are folds, or no clip has an action.
    """
    if count < 2:
        raise ActdetError(f"cross-validation needs 2 or more folds, got {count}")
    labels = index.labels
    _need_positive(index, labels)

    for label, clips in zip(*np.unique(labels, return_counts=True), strict=True):
        if clips < count:
            found = f"{clips} clips" if clips > 1 else "1 clip"
            advice = f"use --folds {clips} or fewer, or add clips" if clips > 1 else "add clips"
            raise DataError(index.root, f"only {found} of class {_name(index, label)} for {count} folds: {advice}")

    # The import takes half a second, which a run on a single split can save.
    from sklearn.model_selection import StratifiedKFold

    splits = StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels)
    return [(train.tolist(), val.tolist()) for train, val in splits]


def _need_positive(index: ClipIndex, labels: np.ndarray) -> None:
    """Raise DataError if no clip has an action."""
    if (labels == len(index.class_names)).all():
        raise DataError(
            index.root / "annotations",
            f"none of the {len(labels)} clips has an action: there is nothing to learn from",
        )


def _name(index: ClipIndex, label: int) -> str:
    return index.class_names[label] if label < len(index.class_names) else NO_ACTION

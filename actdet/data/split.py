"""Stratified divisions of a data set: training and held-out clips once, or in k folds.

A clip with actions of several classes counts for the class of the lowest id, in whatever order they were written.
"""

from __future__ import annotations

import numpy as np

from actdet.data.classes import NO_ACTION
from actdet.data.index import ClipIndex
from actdet.errors import ActdetError, DataError


def hold_out(index: ClipIndex, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the training clips and of the held-out ones, about `share` of each class (the report's is 0.2).

    `share` 0 holds nothing out. Raises DataError where a class has too few clips, or no clip has an action.
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
                f"only {count} clip of class {_name(index, label)}: a split needs 2 or more "
                f"of each class; add clips, or train on all with --val-share 0",
            )
    # It takes half a second to import, which a training on all clips does without.
    from sklearn.model_selection import train_test_split

    classes = len(np.unique(labels))
    held = min(max(round(share * len(labels)), classes), len(labels) - classes)
    train, val = train_test_split(list(range(len(labels))), test_size=held, stratify=labels, random_state=seed)
    return sorted(train), sorted(val)


def folds(index: ClipIndex, count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """`count` pairs (training, held-out) in which every clip is held out once.

    Raises DataError where a class has fewer clips than there are folds, or no clip has an action.
    """
    if count < 2:
        raise ActdetError(f"cross-validation needs 2 or more folds, got {count}")
    labels = index.labels
    _need_positive(index, labels)
    for label, clips in zip(*np.unique(labels, return_counts=True), strict=True):
        if clips < count:
            advice = f"use --folds {clips} or fewer, or add clips" if clips > 1 else "add clips"
            clips = f"{clips} clips" if clips > 1 else "1 clip"
            raise DataError(index.root, f"only {clips} of class {_name(index, label)} for {count} folds: {advice}")
    # It takes half a second to import, which a run on one split does without.
    from sklearn.model_selection import StratifiedKFold

    splits = StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels)
    return [(train.tolist(), val.tolist()) for train, val in splits]


def _need_positive(index: ClipIndex, labels: np.ndarray) -> None:
    if (labels == len(index.class_names)).all():
        raise DataError(
            index.root / "annotations",
            f"none of the {len(labels)} clips has an action: there is nothing to learn from",
        )


def _name(index: ClipIndex, label: int) -> str:
    return index.class_names[label] if label < len(index.class_names) else NO_ACTION

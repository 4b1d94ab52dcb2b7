"""JHMDB: 928 short videos of 21 classes with a box in every frame. Reads JHMDB-GT.pkl and folders of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from actdet.data.formats.gt_pickle import read_gt_pickle
from actdet.data.formats.source import Source
from actdet.data.formats.ucf101_24 import annotation_file

_RATE = Fraction(30)
_EXPECTED = "JHMDB-GT.pkl"


def read_jhmdb(data: Path, class_names: Sequence[str] | None) -> Source:
    """Read the annotation of JHMDB.

    Args:
        data: JHMDB-GT.pkl, or a folder with it.
        class_names: The classes to take, in the order of their ids; by default all.

    Raises:
        DataError: If it is not there, or if it is something else.
    """
    path = annotation_file(data, ("*GT.pkl", "*.pkl"), _EXPECTED)
    return read_gt_pickle(path, class_names, _EXPECTED, _RATE, group_of=lambda name: None)

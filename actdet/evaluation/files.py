"""Reading truth and detections that any program wrote, whatever their form.

    truth        JSON lines (`json_lines.py`), or the pickle of the ACT scripts, .pkl (`act_files.py`)
    detections   JSON lines, or a folder of the pickles that MOC writes

AVA has its own protocol and its own files (`ava_files.py`).
"""

from __future__ import annotations

from pathlib import Path

from actdet.errors import ActdetError
from actdet.evaluation.act_files import read_act_folder, read_act_split
from actdet.evaluation.arrays import Truth
from actdet.evaluation.json_tables import read_detection_lines, read_truth_lines
from actdet.evaluation.reading import Found

_PICKLES = (".pkl", ".pickle")


def read_truth(path: Path, split: int | None = None) -> Truth:
    """Read truth.

    Args:
        path: The file.
        split: Which split of an ACT pickle, from 1; None: the first.

    Raises:
        DataError: For the first thing that is wrong with the file.
        ActdetError: A split is asked for of a file that has none.
    """
    if path.suffix.lower() in _PICKLES:
        return read_act_split(path, 1 if split is None else split)
    if split is not None:
        raise ActdetError(f"only truth in ACT's pickles has splits: leave out --split for {path}")
    return read_truth_lines(path)


def read_detections(path: Path, truth: Truth, truth_path: Path) -> Found:
    """Read detections.

    Args:
        path: The file or folder.
        truth: What they are compared with.
        truth_path: Its file, for messages.

    Raises:
        DataError: For the first thing that is wrong. What a folder holds is looked at as it is used.
    """
    if path.is_dir():
        return read_act_folder(path, truth)
    return read_detection_lines(path, truth, truth_path)

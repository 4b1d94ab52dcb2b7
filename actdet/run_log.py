"""The log of a run, log.jsonl: one JSON object a line, for every few steps and for every evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actdet.errors import DataError
from actdet.files import to_json, write_bytes

LOG = "log.jsonl"

# The figures of an evaluation that are compared between trainings, and drawn.
FIGURES = ("video_accuracy", "detection_accuracy", "mean_iou", "average_precision", "located_iou")


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a line to the log.

    Raises:
        DataError: If the disk refuses, or if a number is not finite.
    """
    try:
        with open(path, "a") as file:
            file.write(to_json(path, record) + "\n")
    except OSError as error:
        raise DataError(path, f"cannot be written: {error.strerror}") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log in order; lines that are no records, such as half a last one, are left out."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []

    records = []
    for line in lines:
        try:
            record = json.loads(line)
            # JSON has neither NaN nor infinity, though Python reads both. Writing them raises an error.
            json.dumps(record, allow_nan=False)
        except (ValueError, RecursionError):
            continue
        if _is_record(record):
            records.append(record)
    return records


def cut_log(path: Path, step_number: int) -> None:
    """Drop the lines past a restored state, which will be written again, and those that are no records.

    The evaluation after an epoch's last step comes after the checkpoint of that step, so it is dropped, too.

    Args:
        path: The log; it need not exist.
        step_number: How many steps the restored state has done.
    """
    if not path.exists():
        return
    kept = []
    for record in read_log(path):
        before = record["step"] < step_number
        if before or (record["step"] == step_number and "loss" in record):
            kept.append(record)
    write_bytes(path, "".join(to_json(path, record) + "\n" for record in kept).encode())


def is_log(path: Path) -> bool:
    """Return whether a training has begun the file; its first line need not be whole."""
    return path.is_file() and (read_log(path) != [] or b'{"epoch": '.startswith(path.read_bytes()[:10]))


def _is_record(record: Any) -> bool:
    if not _has_numbers(record, ("step", "epoch")):
        return False
    if "loss" in record:
        return _has_numbers(record["loss"], ("total",)) and _has_numbers(record["loss"], record["loss"])
    return isinstance(record.get("validation"), dict) and record["validation"].keys() >= set(FIGURES)


def _has_numbers(value: Any, names: Iterable[str]) -> bool:
    return isinstance(value, dict) and all(type(value.get(name)) in (int, float) for name in names)

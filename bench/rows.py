"""The rows that the benchmarks write as JSON: what each kind must hold, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
Key = TypeVar("Key", bound=Hashable)
NUMBER, MAYBE = int | float, dict | None
KEYS = {
    "time": ("operation", "size", "regime", "name"),
    "steps": ("operation", "size", "regime"),
    "compiled": ("kernel", "case", "capability"),
    "counted": ("operation", "size", "name"),
    "step": ("operation", "size", "regime", "name"),
    "account": ("size", "precision", "stage"),
    "memory": ("size", "precision", "checkpointing"),
    "decode": ("size", "regime", "name"),
    "stall": ("size", "reader", "epoch"),
    "start": ("command",),
}
RATES = ("clips_per_s", "bytes_per_s", "frames_per_s")
COMPILED = ("warps", "registers", "spill", "shared", "instructions")
STEP = ("instructions", "barriers", "shuffles", "reductions", "loads", "special")
FIELDS = {
    "time": dict.fromkeys(KEYS["time"], str),
    "steps": dict.fromkeys(KEYS["steps"], str)
    | {"problems": int, "rows": int, "placed": NUMBER, "steps": NUMBER, "most": int},
    "compiled": {"kernel": str, "case": str, "step": MAYBE} | dict.fromkeys(("capability", *COMPILED), int),
    "counted": dict.fromkeys(KEYS["counted"], str) | {"launches": int, "reads": int},
    "step": dict.fromkeys(KEYS["step"], str) | {"clips_per_s": NUMBER, "peak_bytes": int, "parts": dict},
    "account": dict.fromkeys(KEYS["account"], str) | {"flop": int, "bytes": int, "floor_us": dict},
    "memory": {"size": str, "precision": str, "checkpointing": bool, "batches": dict},
    "decode": dict.fromkeys(KEYS["decode"], str) | dict.fromkeys((*RATES, "difference"), NUMBER),
    "stall": {"size": str, "reader": str, "epoch": int, "clips_per_s": NUMBER, "data_share": NUMBER},
    "start": {"command": str, "cpu_s": NUMBER, "limit_s": NUMBER | None},
}
EVERY = {"device": str, "versions": dict, "commit": str, "date": str}
COUNTS = ("launches", "synchronizations", "peak_bytes", "input_bytes", "output_bytes")
GPU_FIELDS = {"graph_us": MAYBE, "eager_us": dict, "host_us": dict, "copy_bytes_per_s": NUMBER}
GPU_FIELDS |= dict.fromkeys(COUNTS, int)
NESTED: dict[str, dict[str, Any]] = {
    field: {"median": NUMBER} for field in ("wall_us", "graph_us", "eager_us", "host_us")
}
NESTED |= {"step": dict.fromkeys(STEP, int)}
POSITIVE = ("median", "input_bytes", "copy_bytes_per_s", *RATES)


class ReportError(Exception):
    """What is wrong with the input, in one line."""


def read(files: Iterable[Path]) -> list[Row]:
    """The rows of all files; ReportError where one lacks something or was there before."""
    rows: dict[Hashable, Row] = {}
    origins: dict[Hashable, str] = {}
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
        except ValueError as error:
            raise ReportError(f"{file}: not JSON: {error}") from None
        if not isinstance(found, list):
            raise ReportError(f"{file}: not a list of rows")
        for number, row in enumerate(found, 1):
            origin = f"{file}, row {number}"
            if fault := fault_of(row):
                raise ReportError(f"{origin}: {fault}")
            key = (row["device"], row["kind"], *(row[field] for field in KEYS[row["kind"]]))
            if key in rows:
                raise ReportError(f"{origin}: {', '.join(map(str, key))} is already in {origins[key]}")
            rows[key], origins[key] = row, origin
    return list(rows.values())


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def fault_of(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "not an object"
    if "kind" not in row:
        return "has no kind"
    if row["kind"] not in list(FIELDS):
        return f"kind is {row['kind']!r}, not one of {', '.join(FIELDS)}"
    return fault_among(row, EVERY | FIELDS[row["kind"]] | (fields_of_time(row) if row["kind"] == "time" else {}))


def fault_among(row: Row, fields: dict[str, Any]) -> str | None:
    for field, kind in fields.items():
        if field not in row:
            return f"has no {field}"
        value = row[field]
        if not isinstance(value, kind):
            return f"{field} is {value!r}, not {getattr(kind, '__name__', kind)}"
        if isinstance(value, NUMBER) and (value < 0 or (value == 0 and field in POSITIVE)):
            return f"{field} is {value!r}, which is too little"
        if field in NESTED and isinstance(value, dict) and (fault := fault_among(value, NESTED[field])):
            return f"{field}: {fault}"
    return None


def fields_of_time(row: Row) -> dict[str, Any]:
    if "why" in row:
        return {"why": str}
    on_gpu = row.keys() & GPU_FIELDS.keys() - {"input_bytes", "output_bytes"}
    return GPU_FIELDS if on_gpu else {"wall_us": dict}


def grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups

"""Lines of a log that are no records are passed over, whoever wrote them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from actdet.errors import DataError
from actdet.run_log import FIGURES, LOG, append_record, cut_log, is_log, read_log

_LOSS = {"total": 1.5, "cls": 0.25, "l1": 0.125, "giou": 0.5, "auxiliary": 0.0}
LINES = {
    "half a line": '{"step": 3, "lo',
    "not of JSON": "hello\n",
    "nothing": "\n",
    "a list": "[1, 2]\n",
    "a number": "7\n",
    "no step": '{"epoch": 1, "loss": {}}\n',
    "a step that is text": json.dumps({"epoch": 1, "step": "2", "loss": _LOSS}) + "\n",
    "an empty loss": '{"epoch": 1, "step": 2, "loss": {}}\n',
    "a loss that is text": json.dumps({"epoch": 1, "step": 2, "loss": _LOSS | {"cls": "low"}}) + "\n",
    "NaN": json.dumps({"epoch": 1, "step": 2, "loss": _LOSS | {"cls": math.nan}}) + "\n",
    "infinity": '{"epoch": 1e999, "step": 2, "validation": {}}\n',
    "not of UTF-8": b"\xff\xfe\x00\n".decode("latin-1"),
    "deep": "[" * 100_000 + "\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_that_is_no_record_is_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / LOG
    good = json.dumps({"epoch": 1.0, "step": 3, "lr": 1e-3, "loss": _LOSS}) + "\n"
    path.write_bytes((good + line).encode("latin-1"))
    cut_log(path, 4)
    assert path.read_text() == good

    ended = line if line.endswith("\n") else line + "\n"
    path.write_bytes((ended + good).encode("latin-1"))
    assert read_log(path) == [json.loads(good)]


def _record(step: int, kind: str) -> dict[str, Any]:
    values = {"loss": _LOSS, "validation": dict.fromkeys(FIGURES, 0.5)}
    return {"epoch": step / 3, "step": step, kind: values[kind]}


def test_the_log_is_cut_where_a_state_goes_on(tmp_path: Path) -> None:
    """The evaluation after an epoch is made again, because the state was saved before it."""
    path = tmp_path / LOG
    cut_log(path, 3)
    assert not path.exists()

    records = [_record(2, "loss"), _record(3, "loss"), _record(3, "validation"), _record(4, "loss")]
    for record in records:
        append_record(path, record)
    assert read_log(path) == records
    cut_log(path, 4)
    assert read_log(path) == records
    cut_log(path, 3)
    assert read_log(path) == records[:2]
    cut_log(path, 0)
    assert read_log(path) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(_record(2, "loss")) + "\n", True),
        (json.dumps(_record(2, "loss"))[:20], True),
        ('{"ep', True),
        ("", True),
        ("this is mine\n", False),
        ('{"mine": 1}\n', False),
    ],
)
def test_a_file_of_somebody_else_is_no_log(tmp_path: Path, text: str, expected: bool) -> None:
    path = tmp_path / LOG
    assert not is_log(path)
    path.write_text(text)
    assert is_log(path) is expected


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / LOG
    with pytest.raises(DataError, match="not finite"):
        append_record(path, _record(2, "loss") | {"lr": math.nan})
    assert read_log(path) == []

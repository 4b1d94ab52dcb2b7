"""Files of JSON are read, or refused in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actdet.data.reading import read_json_file
from actdet.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.json"


def test_it_says_what_the_file_says(path: Path) -> None:
    content = {"a": [1, -2.5, "\u00e9\u2028", None, True], "b": {"a": {}}, "c": [[]], "big": 2**63 - 1}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content, ensure_ascii=False).encode())
    assert read_json_file(path, 1000, "JSON") == content


@pytest.mark.parametrize("digits", [20, 400, 10**5])
def test_integers_beyond_64_bits_are_floats(path: Path, digits: int) -> None:
    path.write_text(f"[{'9' * digits}, -{'9' * digits}]")
    value = 1e20 if digits == 20 else float("inf")
    assert read_json_file(path, 10**6, "JSON") == [value, -value]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not JSON (Expecting value); expected a list"),
        (b'[\n1,\n"a]', "3: is not JSON (Unterminated string starting at); expected a list"),
        (b"[NaN]", "NaN is no number in JSON; expected a list"),
        (b"[-Infinity]", "-Infinity is no number in JSON; expected a list"),
        (b'[{"b": 1, "a": 1, "a": 1}]', "an object has two fields 'a'; expected a list"),
        (b"[" * 10**5, "has too many values inside of others; expected a list"),
        ('["\u00e9"]'.encode("utf-16"), "byte 0 is not UTF-8 text; save the file as UTF-8"),
        (b" " * 10**6, "has more than 200000 bytes; expected a list"),
    ],
    ids=["empty", "cut off", "NaN", "infinity", "twice", "deep", "UTF-16", "large"],
)
def test_anything_else_is_refused(path: Path, data: bytes, problem: str) -> None:
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_json_file(path, 200_000, "a list")
    assert str(caught.value).startswith(f"{path}:")
    assert str(caught.value).endswith(problem)
    assert "\n" not in str(caught.value)

"""MATLAB's files as SciPy writes them are read, and damaged ones, at which SciPy crashes, end in one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from actdet.data.formats.mat_file import read_mat
from actdet.errors import DataError


def structures(*rows: dict[str, Any]) -> np.ndarray:
    """An array of structures, as SciPy takes it."""
    table = np.zeros((1, len(rows)), [(name, "O") for name in rows[0]])
    for place, row in enumerate(rows):
        table[0, place] = tuple(row.values())
    return table


VALUES: dict[str, Any] = {
    "number": 5.5,
    "small": np.uint8(200),
    "matrix": np.arange(12.0).reshape(3, 4),
    "integers": np.array([[-5, 7]], np.int16),
    "long": np.array([[2**40]], np.int64),
    "single": np.array([[1.5, 2.5]], np.float32),
    "cube": np.arange(24).reshape(2, 3, 4),
    "nothing": np.zeros((0, 4)),
    "text": "v_Biking_g01_c01",
    "short": "ab",
    "umlaut": "Z\u00fcrich",
}


def write(path: Path, values: dict[str, Any], **options: Any) -> Path:
    savemat(path, values, **options)
    return path


@pytest.mark.parametrize("do_compression", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_what_scipy_writes_is_read(tmp_path: Path, name: str, do_compression: bool) -> None:
    path = write(tmp_path / "a.mat", VALUES, do_compression=do_compression)
    value = read_mat(path, name, "a test")
    if isinstance(VALUES[name], str):
        assert value == VALUES[name]
        return
    expected = np.atleast_2d(VALUES[name])
    assert value.dtype == expected.dtype
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("do_compression", [False, True])
def test_structures_and_cells_are_read(tmp_path: Path, do_compression: bool) -> None:
    inner = structures({"a": np.uint8(1), "long_name": "x"}, {"a": np.uint8(2), "long_name": "y"})
    cells = np.array([[np.arange(3.0), "text"]], dtype=object)
    outer = structures({"inner": inner, "cells": cells}, {"inner": np.zeros((0, 0)), "cells": cells[:, :0]})
    path = write(tmp_path / "a.mat", {"other": 1, "outer": outer}, do_compression=do_compression)

    first, second = read_mat(path, "outer", "a test")
    assert [int(each["a"][0, 0]) for each in first["inner"]] == [1, 2]
    assert [each["long_name"] for each in first["inner"]] == ["x", "y"]
    numbers, text = first["cells"]
    np.testing.assert_array_equal(numbers, [[0, 1, 2]])
    assert text == "text"
    assert len(second["inner"]) == 0
    assert second["cells"] == []


def test_the_other_order_of_bytes_is_read(tmp_path: Path) -> None:
    """A matrix of two numbers, of the class double."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    parts = [
        element(6, struct.pack(">II", 6, 0)),
        element(5, struct.pack(">ii", 1, 2)),
        # One letter lies in the tag itself.
        struct.pack(">HH", 1, 1) + b"a\0\0\0",
        element(9, struct.pack(">dd", 1.5, -2)),
    ]
    header = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI"
    path = tmp_path / "a.mat"
    path.write_bytes(header + element(14, b"".join(parts)))
    np.testing.assert_array_equal(read_mat(path, "a", "a test"), [[1.5, -2]])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "it has no header of version 5 to 7"),
        (b"x" * 1000, "it has no header of version 5 to 7"),
        (bytes(124) + b"\x00\x01IM", "it has no variable annot"),
        (bytes(124) + b"\x00\x01IM" + b"\x0e\x00\x00\x00\xff\xff\xff\xff", "it ends within the element at byte 128"),
        (bytes(124) + b"\x00\x01IM" + b"\x0f\x00\x00\x00\x03\x00\x00\x00abc", "Error -3"),
        (bytes(124) + b"\x00\x01IM" + b"\x0e\x00\x05\x00abcd", "it ends within the element"),
    ],
)
def test_what_is_no_such_file_is_said(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_mat(path, "annot", "a test")
    assert str(caught.value).startswith(f"{path}: is not a whole MATLAB file (")
    assert expected in str(caught.value)
    assert str(caught.value).endswith("; expected a test")


@pytest.mark.parametrize("do_compression", [False, True])
def test_a_damaged_file_ends_in_an_error_or_in_other_values(tmp_path: Path, do_compression: bool) -> None:
    """Every byte of a small file is changed, each in its turn, and the file cut before it."""
    whole = structures({"a": structures({"b": np.arange(3.0)}), "c": "text"})
    path = write(tmp_path / "a.mat", {"annot": whole}, do_compression=do_compression)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    messages = []
    for place in range(120, len(data)):
        changed = bytearray(data)
        changed[place] ^= int(random.integers(1, 256))
        for content in (bytes(changed), data[:place]):
            path.write_bytes(content)
            try:
                read_mat(path, "annot", "a test")
            except DataError as error:
                messages.append(str(error))
    assert len(messages) > len(data) - 120
    assert not any("\n" in message for message in messages)


def test_a_small_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    """A matrix of a thousand million cells or structures, of which there are none."""
    for kind in (1, 2):
        parts = [
            struct.pack("<IIII", 6, 8, kind, 0),
            struct.pack("<IIii", 5, 8, 10**5, 10**4),
            struct.pack("<HH", 1, 1) + b"a\0\0\0",
            struct.pack("<HHi", 5, 4, 8),
            struct.pack("<II", 1, 0),
        ]
        content = b"".join(parts)
        path = tmp_path / "a.mat"
        path.write_bytes(bytes(124) + b"\x00\x01IM" + struct.pack("<II", 14, len(content)) + content)
        with pytest.raises(DataError, match="is not a whole MATLAB file"):
            read_mat(path, "a", "a test")

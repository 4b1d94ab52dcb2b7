"""Reads variables from MATLAB's files of version 5 to 7: numbers, texts, structures and cells.

SciPy's reader is not used, because a damaged file can make it crash the whole program. The layout is that of
"MAT-File Format" (MathWorks): a header of 128 bytes, then elements of a type, a size and content, which may be
compressed, and which lie in each other for structures.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from actdet.data.reading import read_bytes
from actdet.errors import DataError

_MOST_BYTES = 2**29
_HEADER = 128

# How many structures may lie in each other.
_MOST_DEPTH = 20

# The types of elements.
_MATRIX = 14
_COMPRESSED = 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}

# The classes of matrices; all from 6 on are numbers.
_CELL = 1
_STRUCT = 2
_CHAR = 4
_FIRST_NUMERIC = 6
_LAST_NUMERIC = 15


def read_mat(path: Path, variable: str, expected: str) -> Any:
    """Read one variable.

    Args:
        path: The file.
        variable: The name of the variable.
        expected: What the file should be, for the error.

    Returns:
        A NumPy array for numbers, a string for a text, a list of dictionaries for an array of structures, and a list
        for cells, both in MATLAB's order of columns.

    Raises:
        DataError: If it is not such a file, is damaged, or does not have the variable.
    """
    data = read_bytes(path, _MOST_BYTES, expected)
    try:
        return _Reader(data).variable(variable)
    except (ValueError, struct.error, zlib.error, UnicodeDecodeError) as error:
        raise DataError(path, f"is not a whole MATLAB file ({error}); expected {expected}") from None


class _Reader:
    """Walks through the elements of a file."""

    def __init__(self, data: bytes) -> None:
        # The last two letters of the header tell the order of bytes.
        orders = {b"IM": "<", b"MI": ">"}
        order = orders.get(data[_HEADER - 2 : _HEADER])
        if order is None:
            raise ValueError("it has no header of version 5 to 7")
        self._order = order
        self._data = data

    def variable(self, name: str) -> Any:
        """Return the value of a variable."""
        start = _HEADER
        while start < len(self._data):
            kind, content, start = self._element(self._data, start)
            if kind == _COMPRESSED:
                inflater = zlib.decompressobj()
                inflated = inflater.decompress(content, _MOST_BYTES)
                if not inflater.eof:
                    raise ValueError("a variable is cut off or too large")
                kind, content, _ = self._element(inflated, 0)
            if kind == _MATRIX and self._name(content) == name:
                return self._matrix(content, 0)
        raise ValueError(f"it has no variable {name}")

    def _element(self, data: bytes, start: int) -> tuple[int, bytes, int]:
        """Return the type and the content of the element that starts here, and where the next one starts."""
        (first,) = struct.unpack_from(self._order + "I", data, start)
        kind = first & 0xFFFF
        size = first >> 16
        if size:
            # Up to four bytes lie in the tag itself.
            begin = start + 4
            end = start + 8
        else:
            (size,) = struct.unpack_from(self._order + "I", data, start + 4)
            begin = start + 8
            end = begin + size
            if kind != _COMPRESSED:
                end += -size % 8
        if begin + size > len(data) or size > max(end - begin, 0):
            raise ValueError(f"it ends within the element at byte {start}")
        return kind, data[begin : begin + size], end

    def _head(self, content: bytes) -> tuple[int, tuple[int, ...], bytes, int]:
        """Return the class, the sides and the name of a matrix, and where its values start."""
        _, flags, start = self._element(content, 0)
        _, sides, start = self._element(content, start)
        _, name, start = self._element(content, start)
        (number,) = struct.unpack_from(self._order + "I", flags)
        shape = struct.unpack(f"{self._order}{len(sides) // 4}i", sides)
        if len(shape) < 2 or min(shape) < 0:
            raise ValueError(f"a matrix of the shape {shape}")
        return number & 0xFF, shape, name, start

    def _name(self, content: bytes) -> str:
        return self._head(content)[2].decode("latin-1") if content else ""

    def _matrix(self, content: bytes, depth: int) -> Any:
        """Return the value of a matrix."""
        if not content:
            return np.zeros((0, 0))
        if depth > _MOST_DEPTH:
            raise ValueError(f"structures lie in more than {_MOST_DEPTH} others")
        kind, shape, _, start = self._head(content)
        count = math.prod(shape)

        if kind == _STRUCT:
            return self._structures(content, start, count, depth)
        if kind == _CELL:
            values, _ = self._values(content, start, count, depth)
            return values
        if kind == _CHAR:
            stored, text, _ = self._element(content, start)
            return self._text(stored, text)
        if _FIRST_NUMERIC <= kind <= _LAST_NUMERIC:
            stored, numbers, _ = self._element(content, start)
            return self._array(stored, numbers, shape)
        raise ValueError(f"a value of MATLAB's class {kind}, which is not read")

    def _structures(self, content: bytes, start: int, count: int, depth: int) -> list[dict[str, Any]]:
        _, lengths, start = self._element(content, start)
        _, names, start = self._element(content, start)
        (length,) = struct.unpack_from(self._order + "i", lengths)
        if length < 1 or count > len(content):
            raise ValueError(f"{count} structures with names of {length} letters")
        fields = [names[at : at + length].split(b"\0")[0].decode("latin-1") for at in range(0, len(names), length)]

        structures = []
        for _ in range(count):
            values, start = self._values(content, start, len(fields), depth)
            structures.append(dict(zip(fields, values, strict=True)))
        return structures

    def _values(self, content: bytes, start: int, count: int, depth: int) -> tuple[list[Any], int]:
        """Return so many matrices that follow each other, and where the next one starts."""
        values = []
        for _ in range(count):
            kind, inner, start = self._element(content, start)
            if kind != _MATRIX:
                raise ValueError(f"an element of type {kind} in place of a matrix")
            values.append(self._matrix(inner, depth + 1))
        return values, start

    def _text(self, stored: int, text: bytes) -> str:
        encoding = _TEXTS.get(stored)
        if encoding is None:
            raise ValueError(f"a text of type {stored}")
        if encoding in ("utf-16", "utf-32"):
            encoding += "-le" if self._order == "<" else "-be"
        return text.decode(encoding)

    def _array(self, stored: int, numbers: bytes, shape: tuple[int, ...]) -> np.ndarray:
        code = _NUMBERS.get(stored)
        if code is None:
            raise ValueError(f"numbers of type {stored}")
        dtype = np.dtype(self._order + code)
        if math.prod(shape) * dtype.itemsize != len(numbers):
            raise ValueError(f"a matrix of the shape {shape} with {len(numbers)} bytes")
        return np.frombuffer(numbers, dtype).reshape(shape, order="F")

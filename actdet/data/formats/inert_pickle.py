"""Reads pickles of arrays and plain containers without running anything that they name.

A pickle is a program: it may import any function and call it with any argument. Downloaded ones are therefore not given
to NumPy's or Python's own loaders. Here the names that a pickle of NumPy arrays needs stand for small recorders, and
every other name is an error. What they recorded is made into arrays afterwards, after checking it.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from actdet.data.reading import read_bytes
from actdet.errors import DataError

_MOST_BYTES = 2**29

# Types of numbers and of bytes; objects are not among them.
_KINDS = frozenset("biufS?")


def read_inert_pickle(path: Path, expected: str) -> Any:
    """Read a pickle of lists, tuples, sets, dictionaries, texts, numbers and NumPy arrays.

    Args:
        path: The file, of Python 2 or 3.
        expected: What it should be, for the error.

    Returns:
        The value, in which an `InertArray` stands for each array; `array_of` makes the array of it.

    Raises:
        DataError: If the file cannot be read, or names anything else.
    """
    data = read_bytes(path, _MOST_BYTES, expected)
    try:
        return _InertUnpickler(io.BytesIO(data), encoding="iso-8859-1").load()
    except _ForbiddenNameError as error:
        raise DataError(path, f"holds {error}, which is not read; expected {expected}") from None
    except MemoryError:
        raise DataError(path, f"asks for more memory than there is; expected {expected}") from None
    except Exception as error:
        # What a damaged pickle raises depends on where it is damaged: nearly any kind of error.
        raise DataError(path, f"is not a whole pickle ({type(error).__name__}); expected {expected}") from None


def array_of(value: object) -> np.ndarray:
    """Return the array that a pickle describes; numbers and lists of numbers become arrays, too.

    Raises:
        ValueError: If it does not describe an array of numbers.
    """
    if isinstance(value, InertArray):
        return value.array()
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise ValueError("a value that is not an array of numbers") from None
    if array.dtype.kind not in _KINDS:
        raise ValueError("a value that is not an array of numbers")
    return array


class _ForbiddenNameError(Exception):
    """The pickle names something that is not an array. The text is the name."""


class InertDtype:
    """Records how a pickle describes the type of an array's numbers."""

    def __init__(self, code: object, *_: object) -> None:
        self._code = code
        self._order = "|"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self._order = state[1]

    def dtype(self) -> np.dtype:
        """Return the type; raise a ValueError for anything but plain numbers."""
        code = self._code.decode("ascii") if isinstance(self._code, bytes) else self._code
        if not isinstance(code, str) or code[:1] not in _KINDS or self._order not in ("<", ">", "|", "="):
            raise ValueError("an array of something that is not numbers")
        return np.dtype(code).newbyteorder(self._order)


class InertArray:
    """Records how a pickle describes an array."""

    def __init__(self) -> None:
        self._shape: object = None
        self._dtype: object = None
        self._is_fortran: object = False
        self._data: object = b""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, self._shape, self._dtype, self._is_fortran, self._data = state

    def array(self) -> np.ndarray:
        """Return the array; raise a ValueError if the parts do not fit to each other."""
        data = self._data.encode("iso-8859-1") if isinstance(self._data, str) else self._data
        shape = self._shape
        if not isinstance(self._dtype, InertDtype) or not isinstance(data, bytes) or not isinstance(shape, tuple):
            raise ValueError("an array of something that is not numbers")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("an array without a shape")

        dtype = self._dtype.dtype()
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError("an array whose shape does not fit to its bytes")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if self._is_fortran else "C")


def _reconstruct(*_: object) -> InertArray:
    return InertArray()


def _scalar(dtype: object, data: object = b"") -> InertArray:
    array = InertArray()
    array.__setstate__((1, (), dtype, False, data))
    return array


def _from_buffer(data: object, dtype: object, shape: object, order: object = "C") -> InertArray:
    array = InertArray()
    array.__setstate__((1, shape, dtype, order == "F", bytes(data) if isinstance(data, bytearray) else data))
    return array


def _encode(text: object, encoding: object = "") -> bytes:
    """What Python 3 writes for bytes in pickles that Python 2 can read."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise _ForbiddenNameError("bytes in an unusual encoding")
    return text.encode("iso-8859-1")


def _empty_bytes(*arguments: object) -> bytes:
    """What Python 3 writes for no bytes at all in pickles that Python 2 can read."""
    if arguments:
        raise _ForbiddenNameError("a call of bytes")
    return b""


# By module and name. NumPy 2 moved its own modules to `_core`.
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): InertDtype,
    ("numpy", "ndarray"): "ndarray",
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}
for _package in ("numpy.core", "numpy._core"):
    _NAMES[_package + ".multiarray", "_reconstruct"] = _reconstruct
    _NAMES[_package + ".multiarray", "scalar"] = _scalar
    _NAMES[_package + ".numeric", "_frombuffer"] = _from_buffer
for _module in ("__builtin__", "builtins"):
    _NAMES[_module, "bytes"] = _empty_bytes
    _NAMES[_module, "set"] = set
    _NAMES[_module, "frozenset"] = frozenset


# Python's own version in C trusts the numbers in a pickle: one byte code can make it fill the memory. This one, in
# Python, does not, and is quick enough for the few hundred thousand codes of such a file.
class _InertUnpickler(pickle._Unpickler):
    """Gives a pickle the recorders instead of what it names."""

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise _ForbiddenNameError(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise _ForbiddenNameError("a reference to something outside")

    def get_extension(self, code: int) -> None:
        raise _ForbiddenNameError(f"extension number {code}")

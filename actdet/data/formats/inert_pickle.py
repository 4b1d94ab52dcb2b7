"""Reads pickles of arrays and plain containers without running anything that they name.

A pickle is a program: it may import any function and call it with any argument. Downloaded ones are therefore not given
to NumPy's or Python's own loaders. Here the names that a pickle of NumPy arrays needs stand for functions of our own,
which take the raw numbers and check shape, type and size, and every other name is an error.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from actdet.data.reading import read_bytes
from actdet.errors import DataError

_MOST_BYTES = 2**29
_MOST_DIMENSIONS = 32
_MOST_ROWS = 2**31

# Booleans, whole numbers and floats, of any byte order. NumPy itself takes many more texts for types.
_TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


def read_inert_pickle(path: Path, expected: str) -> Any:
    """Read a pickle of lists, tuples, sets, dictionaries, texts, numbers and NumPy arrays.

    Args:
        path: The file, of any protocol, written by Python 2 or 3.
        expected: What it should be, for the error.

    Returns:
        The value, in which an `InertArray` stands for each array, and a Python number for each NumPy scalar.

    Raises:
        DataError: If the file cannot be read, is damaged, or holds anything else.
    """
    data = read_bytes(path, _MOST_BYTES, expected)
    try:
        # Python 2 stored bytes as text; each byte is a character then.
        return _InertUnpickler(io.BytesIO(data), encoding="iso-8859-1").load()
    except _RefusedError as error:
        raise DataError(path, f"holds {error}, which is not read; expected {expected}") from None
    except MemoryError:
        raise DataError(path, f"asks for more memory than there is; expected {expected}") from None
    except Exception as error:
        # What a damaged pickle raises depends on where it is damaged: nearly any kind of error.
        raise DataError(path, f"is not a whole pickle ({type(error).__name__}); expected {expected}") from None


class InertArray:
    """An array in a pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: np.ndarray | None = None) -> None:
        self._value = value

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("an array without shape, type and numbers")
        _, shape, kind, is_fortran, data = state
        self._value = _array(data, kind, shape, "F" if is_fortran else "C")


def array_of(value: object) -> np.ndarray:
    """Return the array, of numbers in the machine's byte order, that an `InertArray` stands for. It may be read-only.

    Raises:
        ValueError: If the value is something else, or an array of which the pickle does not say what is in it.
    """
    if not isinstance(value, InertArray) or value._value is None:
        raise ValueError("a value that is not an array of numbers")
    return value._value


class _RefusedError(Exception):
    """The pickle holds something that no plain array needs. The text is what."""


class _InertType:
    """The type of an array's numbers."""

    __slots__ = ("dtype",)

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _TYPE.fullmatch(code):
            raise _RefusedError("an array of something that is not numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "=", "|"):
            raise _RefusedError("an array of numbers in an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


def _array(data: object, kind: object, shape: object, order: object) -> np.ndarray:
    """Return an array, after checking that its parts fit to each other."""
    if isinstance(data, str):
        data = data.encode("iso-8859-1")
    if not isinstance(kind, _InertType) or not isinstance(data, bytes | bytearray):
        raise _RefusedError("an array of something that is not numbers")
    if order not in ("C", "F"):
        raise _RefusedError("an array in an unknown order")

    # Without these bounds, the product of the sides could take hours.
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise _RefusedError("an array without a shape")
    if not all(type(side) is int and 0 <= side < _MOST_ROWS for side in shape):
        raise _RefusedError("an array without a shape")
    if math.prod(shape) * kind.dtype.itemsize != len(data):
        raise _RefusedError("an array whose shape does not fit to its bytes")

    # Numbers in the machine's byte order are not copied, since a pickle may use the same bytes a thousand times.
    values = np.frombuffer(data, kind.dtype).astype(kind.dtype.newbyteorder("="), copy=False)
    return values.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: object) -> InertArray:
    """Stands for NumPy's function that makes an array, which gets its content later."""
    return InertArray()


def _scalar(kind: object, data: object = b"") -> int | float | bool:
    return _array(data, kind, (1,), "C")[0].item()


def _from_buffer(data: object, kind: object, shape: object, order: object = "C", axes: object = None) -> InertArray:
    """Stands for NumPy's own; an array in the order "K" is one in the order "C" whose axes are to be transposed so."""
    if order != "K":
        return InertArray(_array(data, kind, shape, order))

    values = _array(data, kind, shape, "C")
    if not isinstance(axes, tuple | list) or sorted(axes) != list(range(values.ndim)):
        raise _RefusedError("an array in an unknown order")
    return InertArray(values.transpose(axes))


def _encode(text: object, encoding: object = "") -> bytes:
    """What Python 3 writes for bytes in pickles that Python 2 can read."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise _RefusedError("bytes in an unusual encoding")
    return text.encode("iso-8859-1")


def _empty_bytes(*arguments: object) -> bytes:
    """What Python 3 writes for no bytes at all in pickles that Python 2 can read."""
    if arguments:
        raise _RefusedError("a call of bytes")
    return b""


# By module and name. NumPy 2 moved its own modules to `_core`.
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _InertType,
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


def _load_build(unpickler: Any) -> None:
    """Tell an object its state; of others than these two, Python would set any attribute, such as a function's."""
    if not isinstance(unpickler.stack[-2], InertArray | _InertType):
        raise _RefusedError("attributes of something that is not an array")
    pickle._Unpickler.dispatch[pickle.BUILD[0]](unpickler)


def _load_bytearray(unpickler: Any) -> None:
    """Read bytes; Python itself would first fill the memory with as many zeros as the pickle says."""
    count = int.from_bytes(unpickler.read(8), "little")
    unpickler.append(bytearray(unpickler.read(count)))


# Python's own version in C trusts the numbers in a pickle: one byte code can make it fill the memory. This one, in
# Python, does not, and is quick enough for the few hundred thousand codes of such a file.
class _InertUnpickler(pickle._Unpickler):
    """Gives a pickle our own functions instead of what it names."""

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _load_build,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise _RefusedError(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("a reference to something outside")

    def get_extension(self, code: int) -> None:
        raise _RefusedError(f"extension number {code}")

"""Reading pickles of plain containers and NumPy arrays of numbers, and of nothing else.

A pickle is a program, and what was downloaded must not run one. So the only things that a pickle may name here are
NumPy's constructors of arrays, types and scalars, and in their place it gets our own: they take the raw numbers and
check shape, type and size. Not even NumPy's code sees what the file says.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from actdet.errors import DataError
from actdet.evaluation.reading import open_file

# Booleans, whole numbers and floats, of any byte order.
_TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


def load_arrays(path: Path) -> Any:
    """Read a pickle.

    Args:
        path: The file, of any protocol, written by Python 2 or 3.

    Returns:
        Containers, strings, numbers, and `PickledArray` where the file has an array.

    Raises:
        DataError: It is no pickle, is damaged, or holds anything else.
    """
    with open_file(path) as file:
        data = file.read()
    try:
        # Python 2 stored bytes as text; each byte is a character then.
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    # Damaged pickles make the unpickler raise almost anything.
    except Exception as error:
        problem = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(path, f"is not a pickle of plain arrays: {problem}") from None


class PickledArray:
    """An array in a pickle; `value` is None until the pickle has said what is in it."""

    __slots__ = ("value",)

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = value

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array is stored in an unknown way")
        _, shape, kind, is_fortran, raw = state
        self.value = _array(raw, kind, shape, "F" if is_fortran else "C")


class _Type:
    """The type of an array's numbers."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _TYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"numbers of the type {code!r} are not expected")
        self.code = code
        self.order = "="

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("the type of an array is stored in an unknown way")
        self.order = order

    def native(self) -> np.dtype[Any]:
        order: Any = "=" if self.order == "|" else self.order
        return np.dtype(self.code).newbyteorder(order)


def _array(raw: object, kind: object, shape: object, order: object) -> np.ndarray:
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    if not isinstance(raw, bytes | bytearray) or not isinstance(kind, _Type) or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array is stored in an unknown way")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise pickle.UnpicklingError("the shape of an array is stored in an unknown way")

    stored = kind.native()
    if math.prod(shape) * stored.itemsize != len(raw):
        raise pickle.UnpicklingError(f"an array of the shape {shape} has {len(raw)} bytes")
    values = np.frombuffer(raw, dtype=stored)
    return values.astype(stored.newbyteorder("=")).reshape(shape, order="F" if order == "F" else "C")


def _new_array(*_: object) -> PickledArray:
    """Stands for `numpy.core.multiarray._reconstruct`, whose array gets its content later."""
    return PickledArray()


def _from_buffer(raw: object, kind: object, shape: object, order: object, axes: object = None) -> PickledArray:
    """Stands for `numpy._core.numeric._frombuffer`; `axes`: how an array in the order "K" is to be transposed."""
    if order != "K":
        return PickledArray(_array(raw, kind, shape, order))

    values = _array(raw, kind, shape, "C")
    if not isinstance(axes, tuple | list) or sorted(axes) != list(range(values.ndim)):
        raise pickle.UnpicklingError("an array is stored in an unknown order")
    return PickledArray(values.transpose(axes))


def _scalar(kind: object, raw: object) -> int | float | bool:
    """Stands for `numpy.core.multiarray.scalar`."""
    return _array(raw, kind, (1,), "C")[0].item()


def _encode(text: object, codec: object) -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes into old protocols."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes are stored in an unknown way")
    return text.encode("latin1")


def _no_bytes(*content: object) -> bytes:
    """Stands for `bytes`, by which Python 3 writes empty bytes into old protocols."""
    if content:
        raise pickle.UnpicklingError("bytes are stored in an unknown way")
    return b""


# What a pickle gets when it names the class of arrays: it may pass it on, and can do nothing with it.
_ARRAY_CLASS = object()

_NUMPY: dict[str, object] = {
    "core.multiarray._reconstruct": _new_array,
    "core.numeric._frombuffer": _from_buffer,
    "core.multiarray.scalar": _scalar,
    "ndarray": _ARRAY_CLASS,
    "dtype": _Type,
}


class _Unpickler(pickle.Unpickler):
    """Knows no other names than those above."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if name == "bytes" and module in ("builtins", "__builtin__"):
            return _no_bytes
        # NumPy 2 has moved `core` to `_core`.
        package, _, rest = f"{module}.{name}".partition(".")
        known = _NUMPY.get(rest.removeprefix("_")) or _NUMPY.get(rest)
        if package != "numpy" or known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no plain array needs")
        return known

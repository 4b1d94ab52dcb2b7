"""Pickles of arrays are read, whatever Python and NumPy wrote them, and no pickle can do anything."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actdet.data.formats.inert_pickle import InertArray, array_of, read_inert_pickle
from actdet.errors import DataError

ARRAYS = [
    np.arange(15, dtype=np.float32).reshape(3, 5),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(6, dtype=">i2"),
    np.zeros((0, 5)),
    np.array([True, False]),
    np.array(7, np.uint8),
    np.float64(2.5),
    np.int64(-3),
]


def read(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    return read_inert_pickle(path, "a test")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_as_they_were(tmp_path: Path, protocol: int) -> None:
    value = {
        "arrays": ARRAYS,
        "plain": ["a", 1, 2.5, None, True, (1, 2), {3: "b"}],
        "sets": {1, 2},
        "ordered": OrderedDict(a=1, b=2),
    }
    found = read(tmp_path, pickle.dumps(value, protocol))
    assert found["plain"] == value["plain"]
    assert found["sets"] == value["sets"]
    assert list(found["ordered"].items()) == [("a", 1), ("b", 2)]
    for array, original in zip(found["arrays"], ARRAYS, strict=True):
        assert isinstance(array, InertArray)
        np.testing.assert_array_equal(array_of(array), original)
        assert array_of(array).dtype == original.dtype


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    """As protocol 2 of Python 2 has it: texts are bytes, and so is the content of an array."""
    content = np.array([[1, 2], [3, 4]], "<f4").tobytes()
    parts = [
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btRq",
        b"\x00(K\x01K\x02K\x02\x86cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        b"\x89U" + bytes([len(content)]) + content + b"tb.",
    ]
    array = array_of(read(tmp_path, b"".join(parts)))
    np.testing.assert_array_equal(array, [[1, 2], [3, 4]])
    assert array.dtype == np.float32


class _Calls:
    """Pickled, it asks whoever reads it to call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def _filled(argument: Any, mark: str) -> Any:
    """An argument with the path of the file that the function would make."""
    if isinstance(argument, list):
        return [_filled(each, mark) for each in argument]
    return argument.format(mark=mark) if isinstance(argument, str) else argument


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {mark}",), "posix.system"),
        (subprocess.Popen, (["touch", "{mark}"],), "Popen"),
        (eval, ("open('{mark}', 'w')",), "eval"),
        (np.load, ("{mark}",), "numpy.load"),
        (np.frombuffer, (b"12345678",), "frombuffer"),
        (getattr, (1, "real"), "getattr"),
        (bytearray, (3,), "bytearray"),
        (bytes, (10**12,), "a call of bytes"),
        (np.fromfile, ("{mark}",), "fromfile"),
    ],
)
def test_no_function_is_called(tmp_path: Path, protocol: int, function: Any, arguments: Any, name: str) -> None:
    mark = tmp_path / "mark"
    filled = [_filled(part, str(mark)) for part in arguments]
    with pytest.raises(DataError, match=rf"holds [\w.]*{name}, which is not read; expected a test$"):
        read(tmp_path, pickle.dumps([1, _Calls(function, *filled)], protocol))
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x04K\x01",
        pickle.dumps(ARRAYS)[:-20],
        b"\x80\x02cnumpy\ndtype\n(U\x02f4tRK\x01b.",
        # A persistent id, and the number of an extension.
        b"P1\n.",
        b"\x80\x02\x82\x01.",
        # What would fill the memory: a place in the memo, the length of a text and of a number.
        b"\x80\x02K\x01r\xff\xff\xff\x7f0r\xff\xff\xff\x7f0",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x80\x02\x8b\xff\xff\xff\x7f",
        b"(" * 10**5,
    ],
)
def test_what_is_no_whole_pickle_is_said(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, data)
    assert str(caught.value).startswith(f"{tmp_path / 'a.pkl'}: ")
    assert str(caught.value).endswith("; expected a test")
    assert "\n" not in str(caught.value)


def _array(shape: object = (2,), code: object = "f8", order: object = "<", data: object = bytes(16)) -> bytes:
    """A pickle of an array whose parts need not fit to each other."""
    stream = io.BytesIO()
    stream.write(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01")
    stream.write(pickle.dumps(shape, 2)[2:-1])
    stream.write(b"cnumpy\ndtype\n(" + pickle.dumps(code, 2)[2:-1] + b"K\x00K\x01tR(K\x03")
    stream.write(pickle.dumps(order, 2)[2:-1] + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
    stream.write(b"B" + len(data).to_bytes(4, "little") + data + b"tb." if isinstance(data, bytes) else b"Ntb.")
    return stream.getvalue()


@pytest.mark.parametrize(
    "parts",
    [
        {"shape": (3,)},
        {"shape": (2**40, 2**40)},
        {"shape": (-2,)},
        {"shape": (2.0,)},
        {"shape": "ab"},
        {"code": "O8"},
        {"code": "O"},
        {"code": "V8"},
        {"code": "M8"},
        {"code": 5},
        {"code": ""},
        {"order": "nonsense"},
        {"order": 3},
        {"data": None},
        {"data": bytes(17)},
    ],
    ids=str,
)
def test_arrays_that_are_none_are_said(tmp_path: Path, parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="an array"):
        array_of(read(tmp_path, _array(**parts)))


def test_the_parts_of_an_array_that_fit_make_one(tmp_path: Path) -> None:
    np.testing.assert_array_equal(array_of(read(tmp_path, _array())), [0.0, 0.0])


@pytest.mark.parametrize("value", [object(), ["a"], {"a": 1}, [[1], [1, 2]], None])
def test_only_numbers_make_an_array(value: object) -> None:
    with pytest.raises(ValueError, match="not an array of numbers"):
        array_of(value)


def test_numbers_make_arrays() -> None:
    np.testing.assert_array_equal(array_of([1, 2]), [1, 2])
    assert int(array_of(5)) == 5

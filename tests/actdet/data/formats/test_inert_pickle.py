"""Pickles of arrays are read, whatever Python and NumPy wrote them, and no pickle can do anything."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
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
    np.array(2.5),
    np.arange(4, dtype=">f4"),
    np.arange(4, dtype=">i8"),
    np.arange(3, dtype=np.float16),
    np.zeros((0, 29), dtype=np.float32),
    np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
]


def read(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    return read_inert_pickle(path, "a test")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_as_they_were(tmp_path: Path, protocol: int) -> None:
    value = {
        "arrays": ARRAYS,
        "plain": ["a", "é", b"\xff", b"", 1, 2.5, None, True, (1, 2), {3: "b"}],
        "scalars": {np.int64(3): np.float32(0.5), np.float64(2.5): np.int64(-3), "true": np.bool_(True)},
        "sets": {1, 2},
        "ordered": OrderedDict(a=1, b=2),
    }
    found = read(tmp_path, pickle.dumps(value, protocol))
    assert found["plain"] == value["plain"]
    assert found["scalars"] == {3: 0.5, 2.5: -3, "true": True}
    assert [type(part) for part in found["scalars"].values()] == [float, int, bool]
    assert found["sets"] == value["sets"]
    assert list(found["ordered"].items()) == [("a", 1), ("b", 2)]
    for array, original in zip(found["arrays"], ARRAYS, strict=True):
        assert isinstance(array, InertArray)
        np.testing.assert_array_equal(array_of(array), original)
        assert array_of(array).dtype == original.dtype.newbyteorder("=")


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
    "name",
    [
        "numpy.core.multiarray fromfile",
        "numpy._core.multiarray fromfile",
        "numpy.testing._private.utils runstring",
        "numpy.core.numeric _frombuffer.__globals__",
        "functools partial",
        "copyreg _reconstructor",
        "_codecs lookup",
        "actdet.files write_bytes",
    ],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_no_other_name_is_known(tmp_path: Path, name: str, stacked: bool) -> None:
    """Neither as protocol 0 names things, nor as protocol 4 does, in which a name may have dots."""
    module, attribute = name.split()
    data = f"c{module}\n{attribute}\n.".encode()
    if stacked:
        texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, attribute)]
        data = b"\x80\x04" + b"".join(texts) + b"\x93."
    with pytest.raises(DataError, match=rf"holds {module}\.{attribute}, which is not read"):
        read(tmp_path, data)


def test_no_attribute_is_set(tmp_path: Path) -> None:
    """A pickle may tell a state of whatever it names, and Python would set the function's attributes by it."""
    with pytest.raises(DataError, match="holds attributes of something that is not an array"):
        read(tmp_path, b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x01aK\x01sb.")


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.array([b"text"]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.array([1j]),
        np.longdouble(1),
    ],
    ids=repr,
)
def test_arrays_of_other_things_are_said(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match="holds an array of something that is not numbers, which is not read"):
        read(tmp_path, pickle.dumps(value, 2))


# Python's unpickler in C takes GiB and many seconds for the first four: it makes room for as many places of its memo as
# the pickle says.
GREEDY = {
    "memo": b"\x80\x04r\xff\xff\xff\x0e.",
    "larger memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "two memos": b"\x80\x02K\x01r\xff\xff\xff\x7f0r\xff\xff\xff\x7f0",
    "memo in text": b"Np2000000000\n.",
    "text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "bytes": b"\x80\x04\x8e\xff\xff\xff\x7f\x00\x00\x00\x00.",
    "bytearray": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f",
    "bytearray that the limit allows": b"\x80\x05\x96\x00\x00\x00\x40\x00\x00\x00\x00.",
    "number": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
}

# The limit is for the machine's sake, should the test fail. What asks for more than it is then said to do so.
_READ_IN_LITTLE_MEMORY = """
import pathlib, resource, sys
from actdet.data.formats.inert_pickle import read_inert_pickle
from actdet.errors import DataError

resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_inert_pickle(pathlib.Path(path), "a test")
    except DataError as error:
        assert "more memory" not in str(error), error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_pickle_takes_more_memory_than_its_size(tmp_path: Path) -> None:
    paths = []
    for name, data in GREEDY.items():
        paths.append(tmp_path / f"{name}.pkl")
        paths[-1].write_bytes(data)
    command = [sys.executable, "-c", _READ_IN_LITTLE_MEMORY, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000, "KiB"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80",
        b"\x80\x04.",
        b"(((((",
        b"cnumpy\nndarray\n(I3\ntR.",
        b"cnumpy\nndarray\n)\x81.",
        b"cnumpy\ndtype\n)\x81}b.",
        b"cnumpy\ndtype\n}b.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n)R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)RK\x01b.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x02tb.",
        b"\x80\x04K\x01",
        pickle.dumps(ARRAYS)[:-20],
        b"\x80\x02cnumpy\ndtype\n(U\x02f4tRK\x01b.",
        # A persistent id, and the number of an extension.
        b"P1\n.",
        b"\x80\x02\x82\x01.",
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
        {"shape": (2**70,) * 3},
        {"shape": (1,) * 100 + (2,)},
        {"shape": (-2,)},
        {"shape": (2.0,)},
        {"shape": "ab"},
        {"code": "O8"},
        {"code": "O"},
        {"code": "V8"},
        {"code": "M8"},
        {"code": 5},
        {"code": ""},
        {"code": "f8,f8"},
        {"code": "f"},
        {"code": "bool"},
        {"code": "float64"},
        {"code": "i3"},
        {"code": "(2,)f4"},
        {"order": "nonsense"},
        {"order": 3},
        {"data": None},
        {"data": bytes(17)},
    ],
    ids=str,
)
def test_arrays_that_are_none_are_said(tmp_path: Path, parts: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"holds an array .*, which is not read; expected a test$"):
        read(tmp_path, _array(**parts))


_BUFFER = b"\x80\x05cnumpy._core.numeric\n_frombuffer\n(C\x06abcdefcnumpy\ndtype\n(\x8c\x02u1tRK\x02K\x03\x86"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((), ["abc", "def"]),
        (("C",), ["abc", "def"]),
        (("F",), ["ace", "bdf"]),
        (("K", (0, 1)), ["abc", "def"]),
        (("K", (1, 0)), ["ad", "be", "cf"]),
        (("K", (1, 1)), None),
        (("K", (0,)), None),
        (("K", None), None),
        (("K", 1), None),
        (("K",), None),
        (("A",), None),
    ],
)
def test_the_order_of_a_buffer(tmp_path: Path, order: tuple[Any, ...], expected: list[str] | None) -> None:
    data = _BUFFER + b"".join(pickle.dumps(part, 2)[2:-1] for part in order) + b"tR."
    if expected is None:
        with pytest.raises(DataError, match="holds an array in an unknown order"):
            read(tmp_path, data)
        return
    rows = array_of(read(tmp_path, data))
    assert [bytes(row.tolist()).decode() for row in rows] == expected


def test_the_parts_of_an_array_that_fit_make_one(tmp_path: Path) -> None:
    np.testing.assert_array_equal(array_of(read(tmp_path, _array())), [0.0, 0.0])


@pytest.mark.parametrize("value", [object(), ["a"], {"a": 1}, [1, 2], 1, None, InertArray()])
def test_only_arrays_are_arrays(value: object) -> None:
    with pytest.raises(ValueError, match="not an array of numbers"):
        array_of(value)

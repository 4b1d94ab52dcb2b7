"""The unpickler reads arrays of every kind that is written, and runs nothing that a pickle asks for."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actdet.errors import DataError
from actdet.evaluation.safe_pickle import PickledArray, load_arrays


def load(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return load_arrays(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype=">f4"),
        np.arange(4, dtype=">i8"),
        np.array([True, False]),
        np.arange(3, dtype=np.uint8),
        np.zeros((0, 29), dtype=np.float32),
        np.array(2.5),
        np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    (loaded,) = load(tmp_path / "a.pkl", pickle.dumps([array], protocol=protocol))
    assert isinstance(loaded, PickledArray)
    assert loaded.value is not None
    assert loaded.value.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(loaded.value, array)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_scalars_and_containers(tmp_path: Path, protocol: int) -> None:
    content = {"a": (1, 2.5, None, True), np.int64(3): [np.float32(0.5), "é", b"\xff"]}
    loaded = load(tmp_path / "a.pkl", pickle.dumps(content, protocol=protocol))
    assert loaded == {"a": (1, 2.5, None, True), 3: [0.5, "é", b"\xff"]}
    assert type(list(loaded)[1]) is int


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """As Python 2 with NumPy 1 wrote {'a': np.array([1, 200], 'u1')} by protocol 2: bytes are strings there."""
    data = (
        b"\x80\x02}q\x00U\x01aq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04"
        b"U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02u1q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03"
        b"U\x01|q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x02\x01\xc8q\x0ftq\x10bs."
    )
    loaded = load(tmp_path / "a.pkl", data)
    assert loaded["a"].value.tolist() == [1, 200]


class Evil:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(DataError, match="which no plain array needs"):
        load(tmp_path / "a.pkl", pickle.dumps({"labels": [Evil(trace)]}, protocol=protocol))
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os system",
        "builtins eval",
        "builtins getattr",
        "numpy load",
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
def test_no_other_name_is_known(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    data = f"c{module}\n{attribute}\n.".encode()
    with pytest.raises(DataError, match="which no plain array needs"):
        load(tmp_path / "a.pkl", data)
    stacked = b"\x80\x04" + pickle.dumps(module, 4)[11:-2] + pickle.dumps(attribute, 4)[11:-2] + b"\x93."
    with pytest.raises(DataError):
        load(tmp_path / "a.pkl", stacked)


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.array([b"text"]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.array([1j]),
        {1, 2}.__class__,
        range(3),
    ],
    ids=str,
)
def test_other_types_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match="is not a pickle of plain arrays"):
        load(tmp_path / "a.pkl", pickle.dumps(value, protocol=2))


def test_an_array_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps(np.zeros(2, dtype=np.float32), protocol=2)
    assert data.count(b"K\x02\x85") == 1
    with pytest.raises(DataError, match="has 8 bytes"):
        load(tmp_path / "a.pkl", data.replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"text",
        b"\x80\x04.",
        b"(((((",
        b"\x80\x02]q\x00h\x00a.",
        b"cnumpy\nndarray\n(I3\ntR.",
        b"cnumpy\nndarray\n)\x81.",
        b"cnumpy\ndtype\n)\x81.",
        b"cnumpy\ndtype\n}b.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n)R.",
        b"P1\n.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
    ids=str,
)
def test_damage_is_refused_or_harmless(tmp_path: Path, data: bytes) -> None:
    complaint = ""
    try:
        load(tmp_path / "a.pkl", data)
    except DataError as error:
        complaint = str(error)
    assert "\n" not in complaint

"""Class names come from the data set, and two different orders of them are never mixed up silently."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from actdet.data.classes import CLASS_NAMES, class_names_of, read_class_names, write_class_names
from actdet.errors import ActdetError, DataError


@pytest.mark.parametrize(
    "names", [("fight", "collapse"), ("collapse", "fight"), ("Schlägerei", "vol à l'étalage", "倒れる"), ("a, b",)]
)
def test_what_is_written_is_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_class_names(tmp_path, names)
    assert read_class_names(tmp_path) == class_names_of(tmp_path) == class_names_of(tmp_path, list(names)) == names


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbfrun\r\n  jump over \r\n\r\n", b"run\njump over", b"run\rjump over\r\n \n"]
)
def test_files_of_any_editor_are_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "classes.txt").write_bytes(data)
    assert class_names_of(tmp_path) == ("run", "jump over")


def test_without_a_file_the_names_are_those_asked_for_or_the_default(tmp_path: Path) -> None:
    assert read_class_names(tmp_path) is None
    assert class_names_of(tmp_path) == CLASS_NAMES == ("fight", "collapse")
    assert class_names_of(tmp_path, ["robbery"]) == ("robbery",)


@pytest.mark.parametrize("asked", [("fight", "collapse"), ("collapse",), ("collapse", "fight", "fall"), ("a", "b")])
def test_names_that_contradict_the_file_are_refused(tmp_path: Path, asked: tuple[str, ...]) -> None:
    write_class_names(tmp_path, ("collapse", "fight"))
    with pytest.raises(DataError, match=r"classes\.txt: the classes of this data set are 0 = collapse, 1 = fight, but"):
        class_names_of(tmp_path, asked)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.touch(), "there is no class name"),
        (lambda path: path.write_text("\n \n"), "there is no class name"),
        (lambda path: path.write_text("fight\n\ncollapse\n"), "the name of class 1 is empty"),
        (
            lambda path: path.write_text("fight\ncollapse\nfight \n"),
            "the name 'fight' is used twice, for class 0 and 2",
        ),
        (lambda path: path.write_text("fight\nno action\n"), "no class can be called 'no action'"),
        (lambda path: path.write_text("fi\x1b[31mght\n"), "the name of class 0, 'fi\\x1b[31mght', is not one line of"),
        (lambda path: path.write_text("x" * 101), "xxx...xxx"),
        (lambda path: path.write_text("x" * 101), "', is not one line of at most 100 printable characters"),
        (lambda path: path.write_bytes("fight".encode("utf-16")), "byte 0 is not UTF-8"),
        (lambda path: path.write_bytes(b"\n" * 2**21), "has more than 1048576 bytes"),
        (lambda path: os.mkfifo(path), "it is not a regular file"),
        (lambda path: path.mkdir(), "it is not a regular file"),
    ],
)
def test_a_file_that_lists_no_names_is_refused(tmp_path: Path, make: Callable[[Path], object], problem: str) -> None:
    make(tmp_path / "classes.txt")
    with pytest.raises(DataError) as caught:
        class_names_of(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'classes.txt'}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", [("a", "a"), ("",), ("a\nb",), (os.fsdecode(b"\xfc"),), ("no action",), ()])
def test_names_that_cannot_be_written_are_refused(tmp_path: Path, asked: tuple[str, ...]) -> None:
    with pytest.raises(ActdetError) as caught:
        class_names_of(tmp_path, asked)
    assert str(caught.value).isprintable()

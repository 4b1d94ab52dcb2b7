"""Annotation files are read, and each mistake in one is reported in a single line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actdet.data.annotations import Annotation, check_annotations, forms, read_annotations
from actdet.errors import DataError

CLASSES = ("fight", "collapse")


def read(path: Path) -> list[Annotation]:
    return read_annotations(path, 320, 240, CLASSES)


def test_reads_lines_in_order_whatever_their_spacing(tmp_path: Path) -> None:
    path = tmp_path / "clip.txt"
    path.write_bytes(b"\xef\xbb\xbf1 10 20 30.5 40\r\n\r\n   \n0\t0 0 320 240")
    assert read(path) == [Annotation(1, (10, 20, 30.5, 40)), Annotation(0, (0, 0, 320, 240))]


def test_no_file_and_an_empty_file_mean_no_action(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert read(tmp_path / "empty.txt") == read(tmp_path / "missing.txt") == []


def test_a_box_up_to_one_pixel_outside_is_clipped(tmp_path: Path) -> None:
    path = tmp_path / "clip.txt"
    path.write_text("0 -1 -0.5 321 240.25\n")
    assert read(path) == [Annotation(0, (0, 0, 320, 240))]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 1 2 3", "has 4 fields; expected 5, separated by spaces: <class_id> <x1>"),
        ("0 1 2 3 4 5", "has 6 fields; expected 5"),
        ("0,10,20,30,40", "has 1 field; expected 5"),
        ("2 10 20 30 40", "class_id '2' is unknown; known ids: 0 = fight, 1 = collapse"),
        ("-1 10 20 30 40", "class_id '-1'"),
        ("0.0 10 20 30 40", "class_id '0.0'"),
        ("fight 10 20 30 40", "class_id 'fight'"),
        ("\u0661 10 20 30 40", "class_id"),
        ("99999999999999999999 10 20 30 40", "class_id"),
        ("0 nan 20 30 40", "x1 = 'nan' is not a finite number"),
        ("0 -1e300 20 30 40", "x1 = '-1e300' is beyond 1e+09"),
        ("0 10 20 inf 40", "x2 = 'inf'"),
        ("0 10 20 1e999 40", "x2 = '1e999'"),
        ("0 10 twenty 30 40", "y1 = 'twenty'"),
        ("0 10 20 3_0 40", "x2 = '3_0'"),
        ("0 30 20 10 40", "x2 = 10 must be greater than x1 = 30"),
        ("0 10 20 10 40", "x2 = 10 must be greater than x1 = 10"),
        ("0 10 40 30 20", "y2 = 20 must be greater than y1 = 40"),
        ("0 -1.01 20 30 40", "outside the picture of 320x240"),
        ("0 10 20 321.1 40", "outside the picture"),
        ("0 10 20 30 241.5", "outside the picture"),
        ("0 320 20 321 40", "outside the picture"),
        ("0 0.2 0.3 0.4 0.5", "looks like fractions"),
    ],
)
def test_each_mistake_is_named_with_its_line_and_value(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "clip.txt"
    path.write_text(f"0 10 20 30 40\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checking_finds_every_bad_line_and_keeps_the_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "clip.txt"
    path.write_text("5 10 20 30 40\n1 10 20 30 40\n0 1 2\n")
    annotations, problems = check_annotations(path, 320, 240, CLASSES)
    assert annotations == [Annotation(1, (10, 20, 30, 40))]
    assert [problem.line for problem in problems] == [1, 3]


@pytest.mark.parametrize("data", ["0 1 2 3 4\n".encode("utf-16"), b"0 10 20 30 40 \xff\n"])
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "clip.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match="not UTF-8"):
        read(path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)


def _endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(50 * 2**20)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "50 MB": (lambda path: path.write_bytes(b"0 10 20 30 40\n" * 3_600_000), "has more than 1048576 bytes"),
    "endless line": (_endless, "has more than 1048576 bytes"),
    "a line for each frame": (lambda path: path.write_text("0 10 20 30 40\n" * 5000), "has 5000 lines, more than 1000"),
    "FIFO": (lambda path: os.mkfifo(path), "cannot be read: it is not a regular file"),
    "folder": (lambda path: path.mkdir(), "cannot be read: it is not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is not a regular file"),
    "loop": (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
    "long line": (
        lambda path: path.write_text("0" * 5000 + " 10 20 30 40"),
        "has 5012 characters; expected five numbers",
    ),
}


@pytest.mark.parametrize(("make", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_anything_but_a_small_file_is_refused_in_one_short_line(
    tmp_path: Path, make: Callable[[Path], object], expected: str
) -> None:
    path = tmp_path / "clip.txt"
    make(path)
    start = time.perf_counter()
    annotations, (problem,) = check_annotations(path, 320, 240, CLASSES)
    assert time.perf_counter() - start < 0.5
    assert annotations == []
    assert str(problem).startswith(f"{path}:")
    assert expected in str(problem)
    assert len(problem.problem) < 200
    assert "\n" not in str(problem)


def test_many_actions_in_a_clip_are_read(tmp_path: Path) -> None:
    path = tmp_path / "clip.txt"
    path.write_text("0 10 20 30 40\r\n\r\n" * 1000)
    assert len(read(path)) == 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, {"corners", "size", "yolo"})),
        ("0 10 20 30 40", (1, {"corners", "size"})),
        ("0 10 20 30 40\n\n1 200 20 300 40\n", (2, {"corners"})),
        ("0 200 100 50 60\n", (1, {"size"})),
        ("0 200 100 121.5 60\n", (1, set())),
        ("0 0.5 0.5 1 1\n5 0.995 0.5 0.01 0.2", (2, {"yolo"})),
        ("0 0.5 0.5 1 1\n0 10 20 30 40", (2, set())),
        ("0 0.9 0.5 0.4 0.2", (1, set())),
        ("0 0.5 0.5 0 0.2", (1, set())),
        ("0 10 20 30 40 0.9", (1, set())),
        ("0 10 20 30", (1, set())),
        ("0 10 nan 30 40", (1, set())),
    ],
)
def test_the_forms_that_all_lines_could_have(tmp_path: Path, text: str, expected: tuple[int, set[str]]) -> None:
    path = tmp_path / "clip.txt"
    path.write_text(text)
    assert forms(path, 320, 240) == expected

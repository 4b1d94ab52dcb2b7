"""Le2i's text files: when somebody falls, boxes in either form, and files that are something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from actdet.data.formats.le2i import read_le2i
from actdet.data.formats.source import Source
from actdet.errors import DataError
from tests.actdet.data.formats.sources import tubes_of


def write(
    root: Path, text: str, place: str = "Home_01", name: str = "video (1)", folder: str = "Annotation_files"
) -> Path:
    path = root / place / folder / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def read(root: Path, text: str) -> Source:
    write(root, text)
    return read_le2i(root, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The person is annotated before and after the fall, too.
        (
            "3\n5\n1,1,0,0,0,0\n2,1,10,20,30,40\n3,1,11,20,31,40\n4,7,12,20,32,40\n5,8,13,20,33,40\n6,8,14,20,34,40\n",
            [(0, [2, 3, 4], [[11, 20, 31, 40], [12, 20, 32, 40], [13, 20, 33, 40]])],
        ),
        # A frame of the fall without a box.
        (
            "3\r\n5\r\n\r\n3,1,11,20,31,40\r\n4,1,0,0,0,0\r\n5,1,13,20,33,40",
            [(0, [2, 4], [[11, 20, 31, 40], [13, 20, 33, 40]])],
        ),
        # No boxes at all.
        ("3\n5\n", [(0, [2, 3, 4], [])]),
        ("3\n4\n3,1,0,0,0,0\n4,1,0,0,0,0\n", [(0, [2, 3], [])]),
        # Nobody falls.
        ("0\n0\n1,1,10,20,30,40\n", []),
        ("1,1,10,20,30,40\n2,1,10,20,30,40\n", []),
        ("", []),
        # Corner and size, which these cannot be corners: the picture is 320 x 240.
        ("1\n2\n1,1,100,100,50,60\n2,1,100,100,150,120", [(0, [0, 1], [[100, 100, 150, 160], [100, 100, 250, 220]])]),
        # Spaces and semicolons, and a byte order mark.
        ("\ufeff1\n1\n1; 1; 10; 20; 30; 40;\n", [(0, [0], [[10, 20, 30, 40]])]),
    ],
)
def test_the_frames_of_the_fall_are_a_tube(tmp_path: Path, text: str, expected: list[object]) -> None:
    source = read(tmp_path, text)
    assert source.class_names == ("fall",)
    assert tubes_of(source, "Home_01/video (1)") == expected


def test_videos_of_one_place_are_a_group(tmp_path: Path) -> None:
    write(tmp_path, "0\n0\n")
    write(tmp_path, "0\n0\n", name="video (2)")
    write(tmp_path / "Coffee_room_01", "0\n0\n", place="Coffee_room_01", folder="Annotations_files")
    videos = read_le2i(tmp_path, None).videos
    assert [(video.clip_name, video.group) for video in videos] == [
        ("Coffee_room_01_video (1)", "Coffee_room_01"),
        ("Home_01_video (1)", "Home_01"),
        ("Home_01_video (2)", "Home_01"),
    ]


def test_a_class_of_another_name_has_no_falls(tmp_path: Path) -> None:
    write(tmp_path, "1\n2\n")
    source = read_le2i(tmp_path, ["collapse"])
    assert tubes_of(source, "Home_01") == []
    assert len(source.left_out.lines()) == 1


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("3\n5\n1,1,0,0,0\n", 3, "has 5 numbers"),
        ("3\n5\n7\n", 3, "has 1 numbers"),
        ("3\nfive\n", 2, "number 1 = 'five' is not a finite number"),
        ("3\n5\n1.5,1,0,0,0,0\n", 3, "frame 1.5 is not a whole number from 0"),
        ("-3\n5\n", 1, "frame -3 is not a whole number from 0"),
        ("3\n5\n1,1,0,0,nan,0\n", 3, "number 5 = 'nan' is not a finite number"),
        ("3\n1,1,10,20,30,40\n", 1, "has one frame before the boxes"),
        ("5\n3\n", 2, "the fall ends in frame 3, before it begins in frame 5"),
    ],
)
def test_each_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_le2i(tmp_path, None)
    assert str(caught.value).startswith(f"{path}:{line}: {expected}")


def test_a_folder_without_annotation_is_said(tmp_path: Path) -> None:
    (tmp_path / "Office").mkdir()
    with pytest.raises(DataError, match=r"contains no Annotation_files/\*\.txt"):
        read_le2i(tmp_path, None)

"""AVA's tables: key frames, several actions of one person, lists of excluded key frames, and the list of actions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actdet.data.formats.ava import read_ava, write_ava
from actdet.data.formats.source import Source, Split, UnusableError
from actdet.detections import Tube
from actdet.errors import DataError
from tests.actdet.data.formats.sources import PlainTube, facts, tubes_of

ROWS = [
    "aa-b,0902,0.25,0.5,0.5,1.000,12,7",
    "aa-b,0902,0.25,0.5,0.5,1.000,80,7",
    "aa-b,0904,0.275,0.5,0.525,1.000,12,7",
    "aa-b,0903,0.000,0.000,1.000,1.000,12,8",
]
ACTIONS = (
    'item {\n  name: "stand"\n  id: 12\n}\nitem {\n  name: "watch (a person)"\n  id: 80\n}\nitem {name: "run" id: 3}\n'
)

# A quarter of an hour of 10 frames a second, and a movie whose first quarter is not annotated.
CUT = facts(frames=9000, rate=10)
WHOLE = facts(frames=18500, rate=10)

BOX = [80.0, 120.0, 160.0, 240.0]
MOVED = [88.0, 120.0, 168.0, 240.0]


def write(folder: Path, **tables: list[str]) -> Path:
    for name, lines in tables.items():
        (folder / f"ava_{name}_v2.2.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(("about", "offset"), [(CUT, 0), (WHOLE, 9000)], ids=["cut", "whole"])
def test_each_action_of_a_person_is_a_tube_of_key_frames(tmp_path: Path, about: object, offset: int) -> None:
    write(tmp_path, train=[*ROWS, "aa-b,1798,0,0,1,1,3,9"])
    (tmp_path / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text(ACTIONS)
    source = read_ava(tmp_path, None)
    assert source.class_names == ("run", "stand", "watch (a person)")
    expected: list[PlainTube] = [
        (1, [20 + offset, 40 + offset], [BOX, MOVED]),
        (2, [20 + offset], [BOX]),
        (1, [30 + offset], [[0, 0, 320, 240]]),
    ]
    tubes = tubes_of(source, "aa-b", about)  # type: ignore[arg-type]
    assert tubes[:3] == expected
    assert tubes[3][1] == [8980 + offset]


def test_a_video_that_is_too_short_is_not_used(tmp_path: Path) -> None:
    source = read_ava(write(tmp_path, train=["a,1798,0,0,1,1,3,9"]), None)
    with pytest.raises(UnusableError, match="videos that end before their last key frame"):
        tubes_of(source, "a", facts(frames=890, rate=1))


def lines_of(source: Source) -> list[str]:
    return source.left_out.lines()


def test_excluded_key_frames_and_those_without_a_box_are_left_out(tmp_path: Path) -> None:
    write(
        tmp_path,
        train=[*ROWS, "aa-b,0950"],
        train_excluded_timestamps=["aa-b,0902", "zz,0902"],
        included=["aa-b,0902"],
    )
    source = read_ava(tmp_path, None)
    assert tubes_of(source, "aa-b", CUT) == [(0, [40], [MOVED]), (0, [30], [[0, 0, 320, 240]])]
    assert lines_of(source) == [
        "lines of key frames that a list of excluded ones names: 2 (first in aa-b)",
        "key frames without a box: 1 (first in aa-b)",
    ]


def test_without_a_list_actions_are_called_by_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, train=ROWS)
    assert read_ava(tmp_path, None).class_names == ("action_12", "action_80")


def test_the_list_for_evaluation_goes_before_the_whole_one(tmp_path: Path) -> None:
    write(tmp_path, train=ROWS)
    (tmp_path / "ava_action_list_v2.2.pbtxt").write_text('label { name: "a" label_id: 80 label_type: PERSON_MOVEMENT }')
    assert read_ava(tmp_path, None).class_names == ("a",)
    (tmp_path / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text('item { name: "b" id: 12 }')
    source = read_ava(tmp_path, None)
    assert source.class_names == ("b",)
    assert [tube[0] for tube in tubes_of(source, "aa-b", CUT)] == [0, 0]
    assert lines_of(source) == ["actions of class 'action_80', which is not among the class names: 1 (first in aa-b)"]


def test_the_tables_are_a_split(tmp_path: Path) -> None:
    write(tmp_path, train=ROWS, val=["b,0902,0,0,1,1,12,1"])
    source = read_ava(tmp_path, None)
    assert source.splits == [Split(train={"aa-b"}, test={"b"})]
    assert [video.name for video in source.videos] == ["aa-b", "b"]

    alone = read_ava(tmp_path / "ava_val_v2.2.csv", None)
    assert [video.name for video in alone.videos] == ["b"]
    assert alone.splits == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a,0902,0,0,1,1,12", "has 7 fields; expected video,second,x1,y1,x2,y2,action,person"),
        ("a,soon,0,0,1,1,12,1", "second = 'soon' is not a finite number"),
        ("a,-1,0,0,1,1,12,1", "second = '-1' is not a time in a movie"),
        ("a,0902,0,zero,1,1,12,1", "y1 = 'zero' is not a finite number"),
        ("a,0902,0,0,1,1,stand,1", "action = 'stand' is not a whole number from 1"),
    ],
)
def test_each_mistake_is_named_with_its_line(tmp_path: Path, line: str, expected: str) -> None:
    write(tmp_path, train=[*ROWS, "", line])
    with pytest.raises(DataError) as caught:
        read_ava(tmp_path, None)
    assert str(caught.value).startswith(f"{tmp_path / 'ava_train_v2.2.csv'}:6: {expected}")


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no table": (lambda folder: folder, "contains no table of boxes; expected the tables of AVA"),
    "FIFO": (lambda folder: os.mkfifo(folder / "ava_train.csv"), "it is not a regular file"),
    "binary": (lambda folder: (folder / "ava_train.csv").write_bytes(b"\xff\xfe\x00"), "byte 0 is not UTF-8 text"),
    "excluded": (
        lambda folder: write(folder, train=ROWS, train_excluded_timestamps=["aa-b"]),
        "ava_train_excluded_timestamps_v2.2.csv:1: has 1 field; expected video,second",
    ),
    "actions": (
        lambda folder: write(folder, train=ROWS) and (folder / "a.pbtxt").write_text("item { id: 3 }"),
        "has an entry without a name or an id: id: 3",
    ),
    "no actions": (
        lambda folder: write(folder, train=ROWS) and (folder / "a.pbtxt").write_text("nothing"),
        "contains no action; expected entries such as",
    ),
}


@pytest.mark.parametrize(("make", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], object], expected: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        read_ava(tmp_path, None)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    boxes = np.array([BOX, MOVED], np.float32)
    tubes = [
        Tube(0, np.array([20, 45]), boxes),
        Tube(2, np.array([20]), boxes[1:]),
        Tube(1, np.arange(3), np.zeros((0, 4), np.float32)),
    ]
    write_ava(tmp_path / "ava_train.csv", tubes, [3, 12, 80], CUT, "door", start=900.0)
    source = read_ava(tmp_path, None)
    assert source.class_names == ("action_3", "action_80")
    assert tubes_of(source, "door", CUT) == [(0, [20, 45], [BOX, MOVED]), (1, [20], [MOVED])]

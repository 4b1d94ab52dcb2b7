"""JSON lines of truth and detections: what is read from them, and that damage ends in one line with its number."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actdet.errors import ActdetError, DataError
from actdet.evaluation.arrays import TubeletBoxes, join_tubelets
from actdet.evaluation.files import read_detections, read_truth
from tests.actdet.evaluation.loops import Track
from tests.actdet.evaluation.scenes import tracks_of

BOX = [1.0, 2.0, 30.5, 40.0]
FRAME = {"video": "a", "frame": 7, "class": "run", "score": 0.9, "box": BOX}
TUBE = {"video": "a", "class": "run", "score": 0.9, "frames": [7, 8, 10], "boxes": [BOX, BOX, [0, 0, 1, 1]]}


def write(path: Path, items: Iterable[object]) -> Path:
    path.write_text("".join(item if isinstance(item, str) else json.dumps(item) + "\n" for item in items))
    return path


def without_score(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != "score"}


@pytest.fixture
def truth_path(tmp_path: Path) -> Path:
    return write(
        tmp_path / "truth.jsonl",
        [
            {"video": "b", "length": 20},
            without_score(TUBE),
            without_score(TUBE | {"video": "b", "class": "jump"}),
        ],
    )


def tubelets_of(path: Path, truth_path: Path) -> TubeletBoxes:
    truth = read_truth(truth_path)
    return join_tubelets(list(read_detections(path, truth, truth_path).tubelets))


def test_truth(truth_path: Path) -> None:
    truth = read_truth(truth_path)
    assert truth.class_names == ("jump", "run")
    assert truth.videos == ("b", "a")
    assert truth.lengths.tolist() == [20, 0]
    boxes = {7: tuple(BOX), 8: tuple(BOX), 10: (0.0, 0.0, 1.0, 1.0)}
    assert truth.tubes is not None
    assert tracks_of(truth.tubes) == [Track(1, 1, boxes), Track(0, 0, boxes)]  # type: ignore[arg-type]
    assert truth.frames.frames.tolist() == [7, 8, 10] * 2


def test_truth_of_single_boxes_has_no_tubes(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path / "t.jsonl", ["\ufeff", without_score(FRAME), "\n", FRAME | {"frame": 9}]))
    assert truth.tubes is None
    assert truth.frames.frames.tolist() == [7, 9]
    assert truth.frames.scores.tolist() == [1.0, 1.0]


def test_classes_may_be_numbers(tmp_path: Path) -> None:
    truth_path = write(tmp_path / "t.jsonl", [FRAME | {"class": 2}, FRAME | {"class": 0}])
    truth = read_truth(truth_path)
    assert truth.class_names == ("0", "1", "2")
    assert truth.frames.labels.tolist() == [2, 0]
    path = write(tmp_path / "d.jsonl", [FRAME | {"class": 1}, FRAME | {"class": 2}, FRAME | {"class": 7}])
    found = read_detections(path, truth, truth_path)
    assert join_tubelets(list(found.tubelets)).labels.tolist() == [1, 2]
    assert found.notes == ["1 classes that truth does not have are left out: 7"]


def test_detections_come_video_by_video(tmp_path: Path, truth_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        [
            FRAME,
            FRAME | {"video": "b", "frame": 19},
            FRAME | {"frame": 500, "class": "jump", "score": 1, "box": [0, 0, 1, 1]},
        ],
    )
    truth = read_truth(truth_path)
    found = read_detections(path, truth, truth_path)
    tables = list(found.tubelets)
    assert [table.videos.tolist() for table in tables] == [[0], [1, 1]]
    table = join_tubelets(tables)
    assert table.starts.tolist() == [19, 7, 500]
    assert table.labels.tolist() == [1, 1, 0]
    assert table.scores.tolist() == [0.9, 0.9, 1.0]
    np.testing.assert_array_equal(table.boxes[:, 0], [BOX, BOX, [0, 0, 1, 1]])
    assert found.lengths.tolist() == [20, 501]
    assert found.notes == []


def test_detected_tubes(tmp_path: Path, truth_path: Path) -> None:
    found = read_detections(
        write(tmp_path / "d.jsonl", [TUBE, TUBE | {"score": 0.1}]), read_truth(truth_path), truth_path
    )
    assert found.tubes is not None
    assert found.tubes.scores.tolist() == [0.9, 0.1]
    assert found.notes == ["1 of 2 videos have no detection"]


def test_what_truth_does_not_have_is_left_out_and_said(tmp_path: Path, truth_path: Path) -> None:
    items = [FRAME, FRAME | {"video": "x"}, FRAME | {"class": "swim"}, FRAME | {"video": "b"}]
    found = read_detections(write(tmp_path / "d.jsonl", items), read_truth(truth_path), truth_path)
    assert join_tubelets(list(found.tubelets)).videos.tolist() == [0, 1]
    assert found.notes == [
        "1 videos that truth does not have are left out: x",
        "1 classes that truth does not have are left out: swim",
    ]


def test_no_video_in_common_is_an_error(tmp_path: Path, truth_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [FRAME | {"video": "A"}, FRAME | {"video": "C"}])
    with pytest.raises(DataError, match=r"has no video of .*truth.jsonl: it has A, C, that has a, b"):
        read_detections(path, read_truth(truth_path), truth_path)


def test_no_detection_at_all(tmp_path: Path, truth_path: Path) -> None:
    found = read_detections(write(tmp_path / "d.jsonl", ["\n"]), read_truth(truth_path), truth_path)
    assert list(found.tubelets) == []
    assert found.notes == ["2 of 2 videos have no detection"]


def changed(**parts: Any) -> dict[str, Any]:
    return FRAME | parts


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ('{"video": "a"', "is not JSON"),
        ("[]", "expected one object a line"),
        ("7", "expected one object a line"),
        ('[{"video": "a"}]', "expected one object a line"),
        ("\xff", None),
        ("[" * 100_000, None),
        ("9" * 5000, None),
        (changed(video=3), '"video" must be a name'),
        (without_score(FRAME), '"score" must be a number'),
        (changed(score="0.9"), '"score" must be a number'),
        (changed(score=True), '"score" must be a number'),
        (changed(score=None), '"score" must be a number'),
        (json.dumps(FRAME).replace("0.9", "NaN"), "NaN is no number"),
        (json.dumps(FRAME).replace("0.9", "Infinity"), "Infinity is no number"),
        (json.dumps(FRAME).replace("0.9", "1e999"), "score is not finite"),
        (json.dumps(FRAME).replace("30.5", "1e999"), "a box is not finite"),
        (json.dumps(FRAME).replace("30.5", "9" * 5000), "a box is not finite"),
        (json.dumps(FRAME).replace("30.5", "1" + "0" * 400), "too large"),
        (changed(frame=7.5), '"frame" must be a whole number'),
        (changed(frame=-1), '"frame" must be a whole number'),
        (changed(frame=10**10), '"frame" must be a whole number'),
        (changed(frame=True), '"frame" must be a whole number'),
        (changed(frame="7"), '"frame" must be a whole number'),
        (changed(video="b", frame=20), "beyond the end of the video"),
        (changed(box=[1, 2, 3]), '"box" must be a list of 4 numbers'),
        (changed(box=None), '"box" must be a list of 4 numbers'),
        (changed(box=[1, 2, 3, "4"]), "a box must consist of numbers"),
        (changed(box=[1, 2, 3, None]), "a box must consist of numbers"),
        (changed(box=[30, 2, 3, 9]), "x2 < x1"),
        (changed(**{"class": None}), '"class" must be a name or a number'),
        (changed(**{"class": 1.0}), '"class" must be a name or a number'),
        (changed(**{"class": -1}), '"class" must be a name or a number'),
        (changed(**{"class": True}), '"class" must be a name or a number'),
        (changed(**{"class": [1]}), '"class" must be a name or a number'),
        (changed(**{"class": 1}), "names its class"),
        (TUBE, "a file holds one kind alone"),
        (changed(frames=[], boxes=[]), "a file holds one kind alone"),
        ({"video": "a", "length": 7}, '"class" must be'),
    ],
    ids=str,
)
def test_a_damaged_line_is_named(tmp_path: Path, truth_path: Path, line: object, problem: str | None) -> None:
    path = tmp_path / "d.jsonl"
    write(path, [FRAME, FRAME])
    with open(path, "ab") as file:
        text = line if isinstance(line, str) else json.dumps(line)
        file.write(text.encode("latin1") + b"\n")
    with pytest.raises(DataError) as caught:
        read_detections(path, read_truth(truth_path), truth_path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)
    if problem is not None:
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    "parts",
    [
        {"frames": [7, 8]},
        {"frames": []},
        {"frames": 7},
        {"frames": [7, 7, 8]},
        {"frames": [8, 7, 9]},
        {"frames": [7, 8, 9.0]},
        {"frames": [7, 8, 10**10]},
        {"frames": [-1, 8, 9]},
        {"boxes": [BOX, BOX]},
        {"boxes": [BOX, BOX, 3]},
        {"boxes": [BOX, BOX, [1, 2, 3]]},
        {"boxes": [BOX, BOX, [1, 2, 3, "x"]]},
        {"boxes": [BOX, BOX, [9, 2, 3, 7]]},
        {"boxes": {"0": BOX}},
    ],
    ids=str,
)
def test_a_damaged_tube_is_named(tmp_path: Path, parts: dict[str, Any]) -> None:
    path = write(tmp_path / "lines.jsonl", [TUBE, TUBE | parts])
    good = write(tmp_path / "good.jsonl", [TUBE])
    truth = read_truth(good)
    with pytest.raises(DataError) as caught:
        read_detections(path, truth, good)
    assert str(caught.value).startswith(f"{path}:2: ")
    with pytest.raises(DataError) as caught:
        read_truth(path)
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ([], "holds no truth"),
        ([{"video": "a", "length": 5}], "holds no truth"),
        ([{"video": "a", "length": 0}], '1: "length" must be a whole number from 1'),
        ([{"video": "a", "length": 8}, without_score(TUBE)], "2: the frame is beyond the end of the video"),
    ],
)
def test_bad_truth(tmp_path: Path, items: list[object], problem: str) -> None:
    path = write(tmp_path / "t.jsonl", items)
    with pytest.raises(DataError, match=problem):
        read_truth(path)


def test_a_number_of_a_class_that_has_a_name_is_refused(tmp_path: Path, truth_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [FRAME | {"class": 1}])
    with pytest.raises(DataError, match=r"d.jsonl:1: class 1 is a number, and .*truth.jsonl names its classes"):
        read_detections(path, read_truth(truth_path), truth_path)


def test_a_split_needs_a_pickle(truth_path: Path) -> None:
    with pytest.raises(ActdetError, match="--split"):
        read_truth(truth_path, split=2)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(DataError, match=r"(file not found|is not a regular file); expected JSON lines"):
        read_truth(path)

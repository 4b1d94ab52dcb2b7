"""AVA's files: what is read from them, and that damage ends in one line with its number."""

from __future__ import annotations

from pathlib import Path

import pytest

from actdet.errors import DataError
from actdet.evaluation.ava_files import read_ava, read_label_map

TRUTH = """-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1
-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,9,1
-5KQ66BBWC4,0903,0.1,0.1,0.5,0.5,12,0
1j20qq1JyX4,902,0.2,0.2,0.4,0.4,12,0
"""
RESULTS = """-5KQ66BBWC4,902,0.08,0.15,0.28,0.81,80,0.9134
1j20qq1JyX4,0902,0.2,0.2,0.4,0.4,12,0.5

zzz,0950,0.2,0.2,0.4,0.4,9,0.25
-5KQ66BBWC4,0903,0.1,0.1,0.1,0.5,3,1
"""
LABEL_MAP = """item {
  name: "stand"
  id: 12
}
label {
  name: "watch (a person)"
  label_id: 80
  label_type: PERSON_INTERACTION
}
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("truth.csv", "results.csv", "map.pbtxt", "excluded.csv")}
    for path, text in zip(paths.values(), (TRUTH, RESULTS, LABEL_MAP, "-5KQ66BBWC4,0903\n"), strict=True):
        path.write_text(text)
    return paths


def test_all_classes_of_truth(files: dict[str, Path]) -> None:
    data = read_ava(files["results.csv"], files["truth.csv"])
    assert data.class_names == ("9", "12", "80")
    assert data.truth.videos.tolist() == [0, 0, 0, 1]
    assert data.truth.frames.tolist() == [902, 902, 903, 902]
    assert data.truth.labels.tolist() == [2, 0, 1, 1]
    assert data.detections.videos.tolist() == [0, 1, 2]
    assert data.detections.frames.tolist() == [902, 902, 950]
    assert data.detections.scores.tolist() == [0.9134, 0.5, 0.25]
    assert data.detections.boxes[0].tolist() == [0.08, 0.15, 0.28, 0.81]
    assert data.notes == [f"{files['results.csv']}: 1 rows of classes that do not count were passed over: 3"]


def test_label_map_and_exclusions(files: dict[str, Path]) -> None:
    data = read_ava(files["results.csv"], files["truth.csv"], files["map.pbtxt"], files["excluded.csv"])
    assert data.class_names == ("stand", "watch (a person)")
    assert data.truth.labels.tolist() == [1, 0]
    assert data.truth.frames.tolist() == [902, 902]
    assert data.detections.labels.tolist() == [1, 0]
    assert data.notes == [
        f"{files['truth.csv']}: 1 rows of classes that do not count were passed over: 9",
        f"{files['truth.csv']}: 1 rows in excluded key frames were passed over",
        f"{files['results.csv']}: 2 rows of classes that do not count were passed over: 3, 9",
        f"{files['results.csv']}: 1 rows in excluded key frames were passed over",
    ]


def test_a_label_map_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "map.pbtxt"
    path.write_text("item { name: 'stand' id: 12 } item { id: 3 }\n")
    assert read_label_map(path)[12] == "stand"
    assert list(read_label_map(path)) == [3, 12]


def test_truth_needs_no_person(files: dict[str, Path]) -> None:
    files["truth.csv"].write_text("a,0902,0.1,0.1,0.2,0.2,12\n")
    files["results.csv"].write_text("a,0902,0.1,0.1,0.2,0.2,12,0.5\n")
    assert len(read_ava(files["results.csv"], files["truth.csv"]).truth) == 1


GOOD = "a,0902,0.1,0.1,0.2,0.2,12,0.5"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,0902,0.1,0.1,0.2,0.2", "has 6 fields"),
        ("a,0902,0.1,0.1,0.2,0.2,12,0.5,7", "has 9 fields"),
        ("a,902.5,0.1,0.1,0.2,0.2,12,0.5", "second is '902.5'"),
        ("a,-1,0.1,0.1,0.2,0.2,12,0.5", "second is '-1'"),
        ("a,,0.1,0.1,0.2,0.2,12,0.5", "second is ''"),
        ("a,12345678901,0.1,0.1,0.2,0.2,12,0.5", "second is '12345678901'"),
        ("a,0902,0.1,0.1,0.2,0.2,run,0.5", "class is 'run'"),
        ("a,0902,0.1,0.1,0.2,0.2,10000,0.5", "class is '10000'"),
        ("a,0902,0.1,,0.2,0.2,12,0.5", "could not convert string to float"),
        ("a,0902,0.1,0.1,nan,0.2,12,0.5", "not finite"),
        ("a,0902,0.1,0.1,1e999,0.2,12,0.5", "not finite"),
        ('a,"0902', "is not csv"),
        ("a,0902,0.1,0.1,0.2,0.2,12,\xff", "is not UTF-8"),
        ("x" * 200_000, "is not csv"),
    ],
)
def test_a_damaged_row_is_named(files: dict[str, Path], row: str, problem: str) -> None:
    for broken, name in ((files["truth.csv"], "truth"), (files["results.csv"], "results")):
        files["truth.csv"].write_text(GOOD + "\n")
        files["results.csv"].write_text(GOOD + "\n")
        broken.write_bytes(f"{GOOD}\n\n{row}\n".encode("latin1"))
        if name == "truth" and problem.startswith("is not UTF-8"):
            problem = "is not UTF-8"
        with pytest.raises(DataError) as caught:
            read_ava(files["results.csv"], files["truth.csv"])
        assert str(caught.value).startswith(f"{broken}:3: ")
        assert problem in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_score_is_needed_in_results_alone(files: dict[str, Path]) -> None:
    files["results.csv"].write_text("a,0902,0.1,0.1,0.2,0.2,12\n")
    with pytest.raises(DataError, match="1: has 7 fields; expected 8"):
        read_ava(files["results.csv"], files["truth.csv"])
    files["results.csv"].write_text("a,0902,0.1,0.1,0.2,0.2,12,high\n")
    with pytest.raises(DataError, match="1: could not convert"):
        read_ava(files["results.csv"], files["truth.csv"])
    files["results.csv"].write_text("a,0902,0.1,0.1,0.2,0.2,12,NaN\n")
    with pytest.raises(DataError, match="1: holds a number that is not finite"):
        read_ava(files["results.csv"], files["truth.csv"])


def test_a_turned_box_is_refused_in_truth_alone(files: dict[str, Path]) -> None:
    turned = "-5KQ66BBWC4,0902,0.5,0.1,0.2,0.2,12,0.5\n"
    files["results.csv"].write_text(turned)
    assert len(read_ava(files["results.csv"], files["truth.csv"]).detections) == 1
    files["truth.csv"].write_text(TRUTH + turned)
    with pytest.raises(DataError, match="5: has x2 < x1"):
        read_ava(files["results.csv"], files["truth.csv"])


def test_pixels_are_noticed(files: dict[str, Path]) -> None:
    files["results.csv"].write_text("-5KQ66BBWC4,0902,20,30,200,300,12,0.5\n")
    with pytest.raises(DataError, match="has boxes in pixels"):
        read_ava(files["results.csv"], files["truth.csv"])


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("map.pbtxt", "", "names no class"),
        ("map.pbtxt", 'item {\n  name: "a"\n  id: many\n}\n', "3: id is 'many'"),
        ("map.pbtxt", 'item {\n  name: "a"\n  id: 77\n}\n', "has no row that counts"),
        ("excluded.csv", "-5KQ66BBWC4\n", "1: has 1 field; expected 2"),
        ("excluded.csv", "-5KQ66BBWC4,x\n", "1: second is 'x'"),
        ("truth.csv", "", "has no row that counts"),
    ],
)
def test_other_damage(files: dict[str, Path], name: str, text: str, problem: str) -> None:
    files[name].write_text(text)
    with pytest.raises(DataError, match=problem):
        read_ava(files["results.csv"], files["truth.csv"], files["map.pbtxt"], files["excluded.csv"])

"""The pickles of the ACT scripts: what is read from them, and that a damaged one ends in one line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actdet.errors import DataError
from actdet.evaluation.arrays import join_tubelets
from actdet.evaluation.files import read_detections, read_truth
from tests.actdet.evaluation.loops import Track, Tubelet
from tests.actdet.evaluation.pickles import truth_content, write_folder, write_pickle
from tests.actdet.evaluation.scenes import tracks_of

BOX = (1.0, 2.0, 30.5, 40.0)
TRUTH = [Track(0, 1, {3: BOX, 4: BOX}), Track(0, 1, {0: BOX}), Track(2, 0, {5: BOX})]
LABELS = ("Basketball", "Fencing")
VIDEOS = ("Basketball/v_1", "Basketball/v_2", "Fencing/v_1")
TUBELETS = [
    Tubelet(0, 0, 0, (BOX, BOX), 0.5),
    Tubelet(0, 0, 1, (BOX, BOX), 0.25),
    Tubelet(2, 4, 1, (BOX, (0.0, 0.0, 1.0, 1.0)), 0.75),
]


def content(**parts: Any) -> dict[str, Any]:
    return truth_content(TRUTH, LABELS, VIDEOS, 6, train=("Fencing/v_9",)) | parts


@pytest.mark.parametrize("protocol", range(6))
def test_truth(tmp_path: Path, protocol: int) -> None:
    """Frames count from 0 once they are read, and the second video has no truth."""
    truth = read_truth(write_pickle(tmp_path / "GT.pkl", content(), protocol))
    assert truth.class_names == LABELS
    assert truth.videos == VIDEOS
    assert truth.lengths.tolist() == [6, 6, 6]
    assert truth.closed
    assert truth.tubes is not None
    assert tracks_of(truth.tubes) == TRUTH


def test_the_split_chooses_the_videos(tmp_path: Path) -> None:
    parts = content()
    parts["test_videos"].append(["Fencing/v_9"])
    parts["train_videos"].append(list(VIDEOS))
    path = write_pickle(tmp_path / "GT.pkl", parts)
    assert read_truth(path, 1).videos == VIDEOS
    assert read_truth(path, 2).videos == ("Fencing/v_9",)
    for split in (0, 3, -1):
        with pytest.raises(DataError, match=f"--split {split} does not exist"):
            read_truth(path, split)


@pytest.mark.parametrize(
    "parts",
    [
        {"labels": None},
        {"labels": []},
        {"labels": ["a", 3]},
        {"labels": ["a", "a"]},
        {"test_videos": None},
        {"test_videos": [["x"]]},
        {"train_videos": [[]]},
        {"train_videos": [["Fencing/v_9", "Fencing/v_8"]]},
        {"train_videos": [[VIDEOS[0]]]},
        {"train_videos": [["Fencing/v_9", VIDEOS[0]]]},
        {"train_videos": [["Fencing/v_9"], []]},
        {"train_videos": [["Fencing/v_8"]]},
        {"resolution": {}},
        {"nframes": {}},
        {"nframes": dict.fromkeys([*VIDEOS, "Fencing/v_9"], 0)},
        {"nframes": dict.fromkeys([*VIDEOS, "Fencing/v_9"], "6")},
        {"gttubes": []},
        {"gttubes": {VIDEOS[0]: []}},
        {"gttubes": {VIDEOS[0]: {7: []}}},
        {"gttubes": {VIDEOS[0]: {"0": []}}},
        {"gttubes": {VIDEOS[0]: {0: np.ones((3, 5))}}},
        {"gttubes": {VIDEOS[0]: {0: [[1, 2]]}}},
        {"gttubes": {VIDEOS[0]: {0: [np.ones((3, 4))]}}},
        {"gttubes": {VIDEOS[0]: {0: [np.zeros((0, 5))]}}},
        {"gttubes": {VIDEOS[0]: {0: [np.zeros((1, 5))]}}},
        {"gttubes": {VIDEOS[0]: {0: [np.ones((2, 5))]}}},
        {"gttubes": {VIDEOS[0]: {0: [np.full((1, 5), 1.5)]}}},
        {"gttubes": {VIDEOS[0]: {0: [np.full((1, 5), np.nan)]}}},
        {"gttubes": {VIDEOS[0]: {0: [np.full((1, 5), 1e12)]}}},
    ],
    ids=str,
)
def test_other_content_is_refused(tmp_path: Path, parts: dict[str, Any]) -> None:
    path = write_pickle(tmp_path / "GT.pkl", content(**parts))
    with pytest.raises(DataError) as caught:
        read_truth(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [None, 3, [], {}, "text", np.ones(3)], ids=str)
def test_another_pickle_is_refused(tmp_path: Path, other: object) -> None:
    with pytest.raises(DataError, match=r"expected ACT's truth|no list of names"):
        read_truth(write_pickle(tmp_path / "GT.pkl", other))


def complaint_of(path: Path) -> str | None:
    try:
        read_truth(path)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_damage_ends_in_one_line(tmp_path: Path, protocol: int) -> None:
    """Cut anywhere, or with any byte changed: either it is read, or refused; nothing else happens."""
    good = write_pickle(tmp_path / "good.pkl", content(), protocol).read_bytes()
    path = tmp_path / "GT.pkl"
    generator = random.Random(0)
    for i in range(400):
        data = bytearray(good)
        if i % 2:
            del data[generator.randrange(len(data)) :]
        else:
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        complaint = complaint_of(path)
        if complaint is None:
            assert i % 2 == 0
        else:
            assert complaint.startswith(f"{path}: ")


@pytest.fixture
def truth_path(tmp_path: Path) -> Path:
    return write_pickle(tmp_path / "GT.pkl", content())


def test_a_folder_of_detections(tmp_path: Path, truth_path: Path) -> None:
    folder = write_folder(tmp_path / "found", TUBELETS, VIDEOS, 6, 2, 2)
    found = read_detections(folder, read_truth(truth_path), truth_path)
    table = join_tubelets(list(found.tubelets))
    assert table.length == 2
    assert list(zip(table.videos.tolist(), table.starts.tolist(), table.labels.tolist(), strict=True)) == [
        (0, 0, 0), (0, 0, 1), (2, 4, 1),
    ]  # fmt: skip
    np.testing.assert_array_equal(table.boxes, np.array([item.boxes for item in TUBELETS], dtype=np.float32))
    assert table.scores.tolist() == [0.5, 0.25, 0.75]
    assert found.lengths.tolist() == [6, 6, 6]


def test_a_video_shorter_than_a_tubelet_has_no_files(tmp_path: Path) -> None:
    parts = content()
    parts["nframes"][VIDEOS[1]] = 1
    truth_path = write_pickle(tmp_path / "GT.pkl", parts)
    folder = write_folder(tmp_path / "found", TUBELETS, (VIDEOS[0],), 6, 2, 2)
    write_folder(folder, [item._replace(video=0) for item in TUBELETS if item.video == 2], (VIDEOS[2],), 6, 2, 2)
    table = join_tubelets(list(read_detections(folder, read_truth(truth_path), truth_path).tubelets))
    assert table.videos.tolist() == [0, 0, 2]


ROWS = np.zeros((1, 9), dtype=np.float32)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {},
        [],
        (ROWS, ROWS),
        {0: ROWS},
        {3: ROWS},
        {"1": ROWS},
        {1: ROWS.tolist()},
        {1: ROWS[0]},
        {1: np.zeros((1, 8), dtype=np.float32)},
        {1: np.zeros((1, 1), dtype=np.float32)},
        {1: ROWS, 2: np.zeros((0, 13), dtype=np.float32)},
        {1: np.zeros((1, 13), dtype=np.float32)},
        {1: np.full((1, 9), np.nan)},
    ],
    ids=str,
)
def test_a_bad_file_among_detections_is_named(tmp_path: Path, truth_path: Path, bad: object) -> None:
    folder = write_folder(tmp_path / "found", TUBELETS, VIDEOS, 6, 2, 2)
    path = write_pickle(folder / VIDEOS[2] / "00003.pkl", bad)
    with pytest.raises(DataError) as caught:
        list(read_detections(folder, read_truth(truth_path), truth_path).tubelets)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_is_named(tmp_path: Path, truth_path: Path) -> None:
    folder = write_folder(tmp_path / "found", TUBELETS, VIDEOS, 6, 2, 2)
    (folder / VIDEOS[1] / "00005.pkl").unlink()
    with pytest.raises(DataError, match=r"v_2/00005.pkl: is missing"):
        list(read_detections(folder, read_truth(truth_path), truth_path).tubelets)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, truth_path: Path) -> None:
    (tmp_path / "found").mkdir()
    with pytest.raises(DataError, match=r"found: has no file such as Basketball/v_1/00001.pkl"):
        read_detections(tmp_path / "found", read_truth(truth_path), truth_path)


@pytest.mark.parametrize("name", ["../../secret", "/etc/secret"])
def test_names_of_videos_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    truth_path = write_pickle(tmp_path / "GT.pkl", truth_content(TRUTH[:1], LABELS, [name], 6))
    (tmp_path / "found").mkdir()
    with pytest.raises(DataError, match="cannot have a video called"):
        read_detections(tmp_path / "found", read_truth(truth_path), truth_path)

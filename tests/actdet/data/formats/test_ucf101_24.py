"""UCF101-24: the corrected annotation as MATLAB wrote it, and the pickle that the ACT detector made of it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from actdet.data.formats.source import Split
from actdet.data.formats.ucf101_24 import read_ucf101_24
from actdet.errors import DataError
from tests.actdet.data.formats.sources import tubes_of

ROPE = "RopeClimbing/v_RopeClimbing_g01_c01"
GOLF = "GolfSwing/v_GolfSwing_g08_c02"
BIKING = "Biking/v_Biking_g07_c03"


def mat_video(name: str, frames: int, tubes: list[tuple[int, int, int, np.ndarray]]) -> dict[str, Any]:
    """A video as the correction has it: x y width height from frame sf to ef, counted from 1."""
    fields = np.zeros((1, len(tubes)), [("ef", "O"), ("sf", "O"), ("class", "O"), ("boxes", "O")])
    for place, (first, last, number, boxes) in enumerate(tubes):
        fields[0, place] = (np.uint16(last), np.uint16(first), np.uint8(number), boxes)
    return {"num_imgs": np.uint16(frames), "name": name, "tubes": fields}


def write_mat(path: Path, *videos: dict[str, Any]) -> Path:
    table = np.zeros((1, len(videos)), [("num_imgs", "O"), ("name", "O"), ("tubes", "O")])
    for place, video in enumerate(videos):
        table[0, place] = tuple(video.values())
    savemat(path, {"annot": table})
    return path


def ground_truth() -> dict[str, Any]:
    """As UCF101v2-GT.pkl: frames counted from 1, then x1 y1 x2 y2."""
    rows = np.array([[3, 10, 20, 30, 40], [4, 11, 20.5, 31, 40]], np.float32)
    return {
        "labels": ["Biking", "GolfSwing", "RopeClimbing"],
        "gttubes": {ROPE: {2: [rows, rows[:1] + np.array([6, 1, 1, 1, 1])]}, GOLF: {1: [rows[1:]]}, BIKING: {}},
        "nframes": {ROPE: 40, GOLF: 9, BIKING: 20},
        "train_videos": [[GOLF]],
        "test_videos": [[ROPE, BIKING]],
        "resolution": {ROPE: (240, 320), GOLF: (120, 160), BIKING: (240, 320)},
    }


def write_pickle(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def test_the_correction_is_read(tmp_path: Path) -> None:
    boxes = np.array([[10, 20, 5, 6], [11, 20, 5, 6], [12, 20, 5, 7]], np.uint16)
    rope = mat_video(ROPE, 30, [(4, 6, 3, boxes), (1, 1, 3, boxes[:1]), (1, 9, 3, boxes)])
    write_mat(tmp_path / "finalAnnots.mat", rope, mat_video(GOLF, 9, [(9, 9, 2, boxes[:1])]), mat_video(BIKING, 20, []))

    source = read_ucf101_24(tmp_path, None)
    assert source.class_names == ("Biking", "GolfSwing", "RopeClimbing")
    assert tubes_of(source, ROPE) == [
        (2, [3, 4, 5], [[10, 20, 15, 26], [11, 20, 16, 26], [12, 20, 17, 27]]),
        (2, [0], [[10, 20, 15, 26]]),
    ]
    assert tubes_of(source, GOLF) == [(1, [8], [[10, 20, 15, 26]])]
    assert tubes_of(source, BIKING) == []
    assert source.splits == [Split(train={GOLF}, test={ROPE, BIKING})]
    assert source.left_out.lines() == [f"tubes that have more boxes than frames, or fewer: 1 (first in {ROPE})"]
    assert [video.group for video in source.videos] == ["RopeClimbing_g01", "GolfSwing_g08", "Biking_g07"]

    facts = source.videos[0].facts
    assert facts is not None
    assert (facts.width, facts.height, len(facts.times)) == (320, 240, 30)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    write_pickle(tmp_path / "UCF101v2-GT.pkl", ground_truth(), protocol)
    source = read_ucf101_24(tmp_path, None)
    assert source.class_names == ("Biking", "GolfSwing", "RopeClimbing")
    assert tubes_of(source, ROPE) == [
        (2, [2, 3], [[10, 20, 30, 40], [11, 20.5, 31, 40]]),
        (2, [8], [[11, 21, 31, 41]]),
    ]
    assert tubes_of(source, GOLF) == [(1, [3], [[11, 20.5, 31, 40]])]
    assert tubes_of(source, BIKING) == []
    assert source.splits == [Split(train={GOLF}, test={ROPE, BIKING})]
    assert [video.group for video in source.videos] == ["RopeClimbing_g01", "GolfSwing_g08", "Biking_g07"]

    facts = source.videos[1].facts
    assert facts is not None
    assert (facts.width, facts.height, facts.seconds) == (160, 120, 9 / 25)


def test_some_of_the_classes_can_be_asked_for(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "GT.pkl", ground_truth())
    source = read_ucf101_24(path, ["RopeClimbing"])
    assert [tube[0] for tube in tubes_of(source, ROPE)] == [0, 0]
    assert tubes_of(source, GOLF) == []
    assert source.left_out.lines() == [
        f"actions of class 'GolfSwing', which is not among the class names: 1 (first in {GOLF})"
    ]


def _without(key: str) -> dict[str, Any]:
    content = ground_truth()
    del content[key]
    return content


def _changed(key: str, name: str, value: object) -> dict[str, Any]:
    content = ground_truth()
    content[key][name] = value
    return content


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "FIFO": ("a.pkl", lambda path: os.mkfifo(path), "it is not a regular file"),
    "empty": ("a.pkl", lambda path: path.touch(), "is not a whole pickle"),
    "function": ("a.pkl", lambda path: write_pickle(path, os.system), "holds posix.system, which is not read"),
    "number": ("a.pkl", lambda path: write_pickle(path, 5), "does not have the values of such a file"),
    "list": ("a.pkl", lambda path: write_pickle(path, list(ground_truth())), "does not have the values of such a file"),
    "key": ("a.pkl", lambda path: write_pickle(path, _without("nframes")), "(no 'nframes')"),
    "class": (
        "a.pkl",
        lambda path: write_pickle(path, _changed("gttubes", GOLF, {3: []})),
        "a class id 3 of 3 classes",
    ),
    "size": ("a.pkl", lambda path: write_pickle(path, _changed("resolution", GOLF, (0, 320))), "of 320x0 pixels"),
    "no size": ("a.pkl", lambda path: write_pickle(path, _changed("resolution", GOLF, None)), "does not have"),
    "frames": ("a.pkl", lambda path: write_pickle(path, _changed("nframes", GOLF, 10**12)), "1000000000000 frames"),
    "columns": (
        "a.pkl",
        lambda path: write_pickle(path, _changed("gttubes", GOLF, {1: [np.zeros((3, 4))]})),
        "does not have the values",
    ),
    "nan": (
        "a.pkl",
        lambda path: write_pickle(path, _changed("gttubes", GOLF, {1: [np.full((3, 5), np.nan)]})),
        "a tube whose values are not frames and pixels",
    ),
    "texts": (
        "a.pkl",
        lambda path: write_pickle(path, _changed("gttubes", GOLF, {1: [np.array([["a"] * 5])]})),
        "an array of something that is not numbers",
    ),
    "mat FIFO": ("a.mat", lambda path: os.mkfifo(path), "it is not a regular file"),
    "mat text": ("a.mat", lambda path: path.write_text("nothing" * 50), "is not a whole MATLAB file (it has no header"),
    "mat other": ("a.mat", lambda path: savemat(path, {"other": np.arange(3)}), "it has no variable annot"),
    "mat fields": (
        "a.mat",
        lambda path: savemat(path, {"annot": np.arange(3)}),
        "does not have the values of such a file",
    ),
    "mat cut": (
        "a.mat",
        lambda path: path.write_bytes(write_mat(path, mat_video(ROPE, 30, [])).read_bytes()[:-60]),
        "is not a whole MATLAB file (it ends within",
    ),
    "mat name": ("a.mat", lambda path: write_mat(path, mat_video("", 30, [])), "a video called"),
    "no file": (
        "a.txt",
        lambda path: path.touch(),
        "contains no annotation; expected UCF101v2-GT.pkl or finalAnnots.mat",
    ),
}


@pytest.mark.parametrize(("name", "make", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_no_annotation_is_refused_in_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], object], expected: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError) as caught:
        read_ucf101_24(tmp_path, None)
    assert str(caught.value).startswith(str(tmp_path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)

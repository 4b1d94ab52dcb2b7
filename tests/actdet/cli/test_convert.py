"""actdet convert says what it read and what it left out, and what it makes is a data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from actdet.files import sole_writer
from tests.actdet.command import Actdet
from tests.actdet.data.formats.test_cvat import box, document, track
from tests.actdet.data.formats.test_ucf101_24 import ground_truth, write_pickle
from tests.actdet.video.videos import write_video


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export of CVAT, and the video that it is about in another folder."""
    path = tmp_path / "annotations.xml"
    path.write_text(document(track(box(2, 10), box(6, 30), box(7, 30, outside=1)), track(box(39, 5), label="car")))
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films" / "door.mp4", frames=40, size=(320, 240))
    return path


def test_it_says_what_it_read_and_what_it_left_out(actdet_command: Actdet, export: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    films = tmp_path / "films"
    outcome = actdet_command("convert", "cvat", export, out, "--video-folder", films, "--class-names", "fight", "fall")
    assert (outcome.code, outcome.complaints) == (0, []), outcome.err
    assert outcome.out.splitlines() == [
        "left out: actions of class 'car', which is not among the class names: 1 (first in door.mp4)",
        f"{out}: 1 video, 1 tube, 5 boxes, 2 classes",
    ]
    assert (out / "videos" / "door.mp4").resolve() == films / "door.mp4"


def test_a_folder_that_another_process_writes_to_is_refused(
    actdet_command: Actdet, export: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with sole_writer(out):
        outcome = actdet_command("convert", "cvat", export, out, "--video-folder", tmp_path / "films")
        assert outcome.code == 1
        assert outcome.complaints[-1].startswith(f"actdet: {out}: another actdet process is writing there")
        assert [path.name for path in out.iterdir()] == [".actdet-lock"]


def test_it_says_how_it_is_split(actdet_command: Actdet, tmp_path: Path) -> None:
    data = write_pickle(tmp_path / "UCF101v2-GT.pkl", ground_truth())
    outcome = actdet_command("convert", "ucf101-24", data, tmp_path / "out", "--videos", "none")
    assert outcome.out.splitlines() == [
        f"{tmp_path / 'out'}: 3 videos, 3 tubes, 4 boxes, 3 classes",
        "split: 1 video in train.txt, 2 in test.txt",
    ]


def test_what_is_wrong_is_one_line(actdet_command: Actdet, export: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such file or folder" in actdet_command("convert", "cvat", tmp_path / "none", out).complaint()
    assert "contains no annotation" in actdet_command("convert", "jhmdb", tmp_path, out).complaint()
    missing = actdet_command("convert", "cvat", export, out, "--video-folder", tmp_path / "none").complaint()
    assert missing == f"{tmp_path / 'none'}: folder not found; expected a folder with videos"

    (tmp_path / "films" / "door.mp4").write_bytes(b"")
    empty = actdet_command("convert", "cvat", export, out).complaint()
    assert empty.startswith(f"{export}: no video of it can be converted: videos of which one is empty (0 bytes)")
    assert not out.exists()


def test_an_unknown_format_is_a_mistyped_line(actdet_command: Actdet, tmp_path: Path) -> None:
    outcome = actdet_command("convert", "coco", tmp_path, tmp_path / "out")
    assert outcome.code == 2
    assert "coco" in outcome.err
    assert "label-studio" in outcome.err

"""UCF101-24 in its official layout: converted, trained on with tubelets, evaluated on its test videos, and reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.actdet.command import Actdet
from tests.actdet.data.formats.test_ucf101_24 import write_pickle
from tests.actdet.tiny import TRAIN_OPTIONS, TUBELET_OPTIONS
from tests.actdet.video.videos import write_video

CLASSES = ("Basketball", "Biking")
FRAMES = 24
SIZE = (64, 48)


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Two videos for testing and two for training of each class. One of these has a second actor."""
    tubes = {}
    for label, name in enumerate(CLASSES):
        for group in (1, 7, 8, 25):
            video = f"{name}/v_{name}_g{group:02}_c01"
            frames = np.arange(3, 20)
            boxes = np.stack([frames, frames + 5, frames + 20, frames + 25], 1)
            rows = np.column_stack([frames, boxes]).astype(np.float32)
            tubes[video] = {label: [rows, rows[5:] + np.array([0, 20, 0, 20, 0], np.float32)][: 1 + (group == 8)]}
            path = tmp_path / "ucf" / "videos" / video
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path.with_suffix(".avi"), "mpeg4", frames=FRAMES, size=SIZE)
    names = list(tubes)
    truth = {
        "labels": list(CLASSES),
        "gttubes": tubes,
        "nframes": dict.fromkeys(names, FRAMES),
        "train_videos": [[name for name in names if "_g08" in name or "_g25" in name]],
        "test_videos": [[name for name in names if "_g01" in name or "_g07" in name]],
        "resolution": dict.fromkeys(names, SIZE[::-1]),
    }
    write_pickle(tmp_path / "ucf" / "UCF101v2-GT.pkl", truth)
    return tmp_path / "ucf"


def test_tubelets_are_trained_and_evaluated_on_it(actdet_command: Actdet, ucf: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    converted = actdet_command("convert", "ucf101-24", ucf, data)
    assert converted.code == 0, converted.err
    assert converted.out.splitlines()[-1] == "split: 4 videos in train.txt, 4 in test.txt"

    checked = actdet_command("check", data)
    assert checked.code == 0, checked.err
    assert "10 tubes of 160 boxes in 8 clips; at most 2 in one" in checked.out

    run = tmp_path / "run"
    options = [*TUBELET_OPTIONS, *TRAIN_OPTIONS, "--epochs", 1, "--batch-size", 2]
    trained = actdet_command("train", data, "--out", run, *options)
    assert trained.code == 0, trained.err
    assert "4 tubes: frame-mAP" in trained.out

    # The run holds out the test videos of the official split.
    evaluated = actdet_command(
        "evaluate", run / "model.safetensors", data, "--list", data / "test.txt", "--out", tmp_path / "again"
    )
    assert evaluated.code == 0, evaluated.err
    tubes = json.loads((tmp_path / "again" / "metrics.json").read_text())["tubes"]
    assert tubes == json.loads((run / "metrics.json").read_text())["tubes"]
    assert tubes["tubes"] == 4
    assert list(tubes["video_map"]) == ["0.2", "0.5", "0.75", "0.5:0.95"]
    assert tubes["classes"].keys() == set(CLASSES)
    assert "By the protocol of ACT" in (tmp_path / "again" / "report.html").read_text()


def test_more_actors_than_slots_is_one_line(actdet_command: Actdet, ucf: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert actdet_command("convert", "ucf101-24", ucf, data).code == 0
    options = [*TUBELET_OPTIONS, *TRAIN_OPTIONS, "--slots", 1]
    complaint = actdet_command("train", data, "--out", tmp_path / "run", *options).complaint()
    assert complaint == (
        "clip v_Basketball_g08_c01 has 2 annotations, more than the 1 slot of the model: use --slots 2 or more"
    )

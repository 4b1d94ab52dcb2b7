"""A clip whose damage is found only when it is decoded stops a training, which goes on without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import corrupt, write_video

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_that_is_corrupt_in_the_middle_stops_the_training(
    actdet_command: Actdet, data: Path, tmp_path: Path, workers: int
) -> None:
    video = sorted((data / "videos").iterdir())[4]
    video.unlink()
    video = corrupt(write_video(video.with_suffix(".mkv"), "mjpeg", frames=30, size=(64, 64)), range(12, 16))
    (data / "annotations" / f"{video.stem}.txt").write_text("")

    out = tmp_path / "o"
    options = [option if option != "0" else str(workers) for option in OPTIONS[8:]]
    arguments = ("train", data, "--val-share", 0, "--epochs", 2, "--out", out, *OPTIONS[:8], *options)
    complaint = actdet_command(*arguments).complaint()
    assert complaint.startswith(f"{video}: ")
    assert "damaged" in complaint
    advice = "Fix or remove the file, or pass --bad-files skip, then rerun the same command with --resume."
    assert f"{advice} State saved in {out}" in complaint
    assert not (out / "model.safetensors").exists()

    outcome = actdet_command(*arguments, "--resume", "--bad-files", "skip")
    assert outcome.code == 0, outcome.err
    assert [line for line in outcome.out.splitlines() if line.startswith(f"left out: {video}: ")]
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()][-1] == 2 * 2


def test_a_cross_validation_goes_on_without_a_bad_video(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    video = sorted((data / "videos").iterdir())[0]
    video.unlink()
    video = corrupt(write_video(video.with_suffix(".mkv"), "mjpeg", frames=30, size=(64, 64)), range(12, 16))
    text = data / "annotations" / f"{video.stem}.txt"
    text.write_text(text.read_text() and "0 1 2 30 40")
    arguments = ("crossval", data, "--folds", 2, "--epochs", 1, "--out", tmp_path / "cv", *OPTIONS)
    assert "then rerun the same command. State saved in" in actdet_command(*arguments).complaint()

    outcome = actdet_command(*arguments, "--bad-files", "skip")
    assert outcome.code == 0, outcome.err
    assert f"left out: {video}: " in outcome.out


def test_a_held_out_video_that_is_corrupt_is_left_out_of_the_report(
    actdet_command: Actdet, data: Path, tmp_path: Path
) -> None:
    for video in sorted((data / "videos").iterdir()):
        boxes = (data / "annotations" / f"{video.stem}.txt").read_text()
        # All of one class are damaged, so one of them is held out.
        if not boxes:
            video.unlink()
            corrupt(write_video(video.with_suffix(".mkv"), "mjpeg", frames=30, size=(64, 64)), range(12, 16))

    out = tmp_path / "o"
    arguments = ("train", data, "--val-share", 0.3, "--epochs", 1, "--out", out, *OPTIONS)

    outcome = actdet_command(*arguments, "--bad-files", "skip")
    assert outcome.code == 0, outcome.err

    lines = [line for line in outcome.out.splitlines() if line.startswith("left out: ")]
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(lines) == 4
    assert 0 < metrics["clips"] < 12 * 0.3
    page = (out / "report.html").read_text()
    assert all(line.removeprefix("left out: ").partition(":")[0] in page for line in lines)

"""actdet evaluate measures a checkpoint on the clips that are asked for, and names what it cannot read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actdet.models.checkpoints import read_info
from actdet.video.info import probe
from tests.actdet.command import Actdet, lines_without_bars
from tests.actdet.video.videos import cut, write_video


@pytest.mark.parametrize("held_out", [False, True])
def test_evaluate_measures_all_clips_or_those_held_out(
    actdet_command: Actdet, rendered: Path, trained: Path, model: Path, tmp_path: Path, held_out: bool
) -> None:
    flags = ["--held-out"] if held_out else []
    outcome = actdet_command("evaluate", model, rendered, "--out", tmp_path / "e", "--workers", 0, *flags)
    assert outcome.code == 0, outcome.err

    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["clips"] == (3 if held_out else 12)
    assert f"{metrics['clips']} clips: video accuracy {metrics['video_accuracy']:.3f}" in outcome.out
    assert f"mean IoU {metrics['mean_iou']:.3f}" in outcome.out
    assert (tmp_path / "e" / "report.html").is_file()

    if held_out:
        before = json.loads((trained / "metrics.json").read_text())
        assert metrics["confusion"] == before["confusion"]
        # The command computes in bf16 on a CPU that has it.
        assert metrics["mean_iou"] == pytest.approx(before["mean_iou"], abs=0.01)


@pytest.mark.parametrize(("flags", "videos"), [([], 12), (["--no-videos"], 0)])
def test_evaluate_shows_how_far_drawing_is(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, flags: list[str], videos: int
) -> None:
    outcome = actdet_command("evaluate", model, rendered, "--out", tmp_path, "--workers", 0, *flags)
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.glob("videos/*.mp4"))) == videos

    # Four pictures for each clip, and all frames of the videos.
    frames = 12 * 4 + sum(len(probe(path).pts) for path in tmp_path.glob("videos/*.mp4"))
    last = re.split("[\r\n]", outcome.err.strip())[-1]
    assert last.startswith("draw: 100%")
    assert f" {frames}/{frames} [" in last
    assert "evaluate: " in outcome.err

    # The report says how the detector was made.
    assert "<td>decoder layers</td><td>1</td>" in (tmp_path / "report.html").read_text()


def test_help_says_what_without_videos_means(actdet_command: Actdet) -> None:
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", actdet_command("evaluate", "--help").out).split())
    assert "--videos, --no-videos Whether to write annotated videos" in text


def _pickled(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("epoch 1"),
        _pickled,
        lambda path: save_file({"a": torch.ones(2)}, path),
        lambda path: path.mkdir(),
    ],
    ids=["missing", "empty", "text", "pickle", "another's", "folder"],
)
def test_a_bad_checkpoint_is_named(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "model.safetensors"
    make(path)
    clip = sorted((rendered / "videos").iterdir())[0]
    for arguments in (("evaluate", path, rendered), ("predict", path, clip)):
        assert actdet_command(*arguments, "--out", tmp_path / "o").complaint().startswith(f"{path}: ")


def test_a_cut_checkpoint_is_named(actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path) -> None:
    path = cut(Path(shutil.copy(model, tmp_path)), 0.9)
    assert actdet_command("evaluate", path, rendered).complaint().startswith(f"{path}: ")


def test_held_out_clips_of_another_data_set_are_missed(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path
) -> None:
    for name in read_info(model).held_out:
        (data / "videos" / f"{name}.webm").unlink()
        (data / "annotations" / f"{name}.txt").unlink()
    outcome = actdet_command("evaluate", model, data, "--held-out", "--out", tmp_path / "o", "--workers", 0)
    assert outcome.complaint().startswith(f"{data}: holds none of the 3 clips")


def test_evaluate_takes_the_clips_of_a_list(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path
) -> None:
    names = sorted(path.stem for path in (rendered / "videos").iterdir())[1:10:2]
    path = tmp_path / "some.txt"
    path.write_text("\r\n\r\n".join(names))
    out = tmp_path / "e"
    arguments = ("evaluate", model, rendered, "--out", out, "--workers", 0, "--list", path)
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err
    assert json.loads((out / "metrics.json").read_text())["clips"] == 5
    assert {video.stem for video in (out / "videos").iterdir()} == set(names)

    complaint = actdet_command(*arguments, "--held-out").complaint()
    assert complaint == "--held-out and --list both say which clips to evaluate: give one of them"
    path.write_text(f"{names[0]}\nnobody\n")
    assert actdet_command(*arguments).complaint().startswith(f"{path}:2: 'nobody' is no clip of {rendered}; ")


def test_what_is_odd_in_the_data_is_noted(actdet_command: Actdet, data: Path, model: Path, tmp_path: Path) -> None:
    """A stray file, and a clip with a cut to another scene."""
    (data / "videos" / "notes.txt").write_text("mine")
    pictures = np.full((16, 64, 64, 3), 230, np.uint8)
    pictures[:8] = 40
    write_video(data / "videos" / "cut.mkv", "mjpeg", frames=16, size=(64, 64), pictures=pictures)

    out = tmp_path / "e"
    outcome = actdet_command("evaluate", model, data, "--out", out, "--workers", 0)
    assert outcome.code == 0, outcome.err
    notes = [line for line in lines_without_bars(outcome.out + outcome.err) if line.startswith("note: ")]
    assert any("notes.txt" in note for note in notes), notes
    assert "note: 1 of 13 clips has a cut to another scene: scores are not reliable there" in notes
    page = (out / "report.html").read_text()
    assert page.count("The picture changes to another scene") == 1
    assert "Clips with a cut to another scene, where scores are not reliable: 1." in page

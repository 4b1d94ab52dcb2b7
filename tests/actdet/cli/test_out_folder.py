"""Reports and runs are written neither among the clips nor over another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


def _report(command: str, data: Path, model: Path, out: Path) -> list[object]:
    """A short run of `command` that writes a report to `out`."""
    if command == "evaluate":
        return [command, model, data, "--out", out, "--workers", 0]
    arguments = [command, data, "--out", out, "--epochs", 1, *OPTIONS]
    if command == "crossval":
        arguments += ["--folds", 2]
    return arguments


@pytest.mark.parametrize("place", ["data", "data/videos", "data/annotations/run", "near", "above"])
@pytest.mark.parametrize("command", ["train", "evaluate", "crossval", "ablate"])
def test_no_report_is_written_among_the_clips(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path, command: str, place: str
) -> None:
    """`near` has a link to the videos/ of the data set, and `above` has the files that the data set links to."""
    out = tmp_path / place
    if place == "near":
        out.mkdir()
        (out / "videos").symlink_to(data / "videos")
    elif place == "above":
        shutil.copytree(data / "videos", out / "videos")
        for video in (data / "videos").iterdir():
            video.unlink()
            video.symlink_to(out / "videos" / video.name)

    before = {path for path in tmp_path.rglob("*") if path.name != ".actdet-index.json"}

    complaint = actdet_command(*_report(command, data, model, out)).complaint()
    assert complaint.startswith(f"{out}: its files would be written among those of the data set {data}")
    assert {path for path in tmp_path.rglob("*") if path.name != ".actdet-index.json"} == before


@pytest.mark.parametrize("command", ["crossval", "ablate"])
def test_no_part_of_an_experiment_is_written_among_the_clips(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / {"crossval": "fold_2", "ablate": "no_L1_loss"}[command]).symlink_to(data / "annotations")
    assert actdet_command(*_report(command, data, model, out)).complaint().startswith(f"{out}: ")
    assert len(list(out.iterdir())) == 1


@pytest.mark.parametrize("command", ["train", "evaluate", "crossval"])
def test_a_report_may_lie_beside_the_clips(actdet_command: Actdet, data: Path, model: Path, command: str) -> None:
    outcome = actdet_command(*_report(command, data, model, data / "runs"))
    assert outcome.code == 0, outcome.err
    assert actdet_command("check", data).code == 0


def test_a_folder_that_holds_a_run_is_kept(actdet_command: Actdet, rendered: Path, trained: Path) -> None:
    before = (trained / "metrics.json").read_bytes()
    outcome = actdet_command("train", rendered, "--out", trained, "--epochs", 1, *OPTIONS)
    assert outcome.complaint().startswith(f"{trained} holds a run already")
    outcome = actdet_command("train", rendered, "--out", trained, "--epochs", 1, *OPTIONS, "--resume")
    assert outcome.complaint().startswith(f"{trained}: nothing to resume")
    assert (trained / "metrics.json").read_bytes() == before

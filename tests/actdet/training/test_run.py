"""A run is finished when its report is there, and goes on from nothing but its folder and the data."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from actdet.evaluation import report
from actdet.models.checkpoints import read_checkpoint, read_info, save_checkpoint
from actdet.models.detr.config import ModelConfig
from actdet.training import run as running
from actdet.training.config import TrainConfig
from actdet.training.run import describe_training
from actdet.training.run_state import read_run
from actdet.training.trainer import Trainer
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS, TinyBackbone
from tests.actdet.training.folders import contents_of, die

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]

# Where a run is killed after its last step: something that it calls there.
LATE: dict[str, tuple[Any, str]] = {
    "evaluation": (Trainer, "evaluate"),
    "report": (running, "write_report"),
    "pictures": (report, "decode_frames"),
    "page": (report, "write_bytes"),
}


def _figures(path: Path) -> dict[str, Any]:
    """A metrics.json without the time that it took."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "seconds"}


@pytest.mark.parametrize(("place", "name"), LATE.values(), ids=LATE)
def test_a_run_that_was_killed_late_gets_its_report(
    actdet_command: Actdet,
    rendered: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
) -> None:
    out = tmp_path / "o"
    with monkeypatch.context() as patch:
        patch.setattr(place, name, die)
        assert actdet_command("train", rendered, "--out", out, "--epochs", 1, *OPTIONS).code == 130
    assert (out / "model.safetensors").exists()
    assert not (out / "report.html").exists()
    before = (out / "model.safetensors").read_bytes()
    (out / ".x.4194305.partial.mp4").touch()

    outcome = actdet_command("train", rendered, "--out", out, "--resume", "--workers", 0)
    assert outcome.code == 0, outcome.err
    assert f"report: {out / 'report.html'}" in outcome.out
    assert (out / "model.safetensors").read_bytes() == before
    assert _figures(out / "metrics.json") == _figures(trained / "metrics.json")
    assert set(contents_of(out)) == set(contents_of(trained))

    outcome = actdet_command("train", rendered, "--out", out, "--resume")
    assert outcome.complaint().startswith(f"{out}: nothing to resume: this run is finished")


@pytest.fixture
def stopped(actdet_command: Actdet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training of `data` that was stopped after one of its three epochs."""
    weights = tmp_path / "start.safetensors"
    options = ["--epochs", 3, "--lr", 1e-3, "--seed", 4, "--val-share", 0.4, "--no-jitter", "--ema-decay", 0.5]
    epochs = Trainer.steps

    def steps(self: Trainer) -> Any:
        for progress in epochs(self):
            yield progress
            if progress.epoch == 0 and progress.record:
                self.save()
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "steps", steps)
        patch.setattr(TinyBackbone, "load_weights", lambda *_: None)
        start = [*MODEL_OPTIONS, "--backbone-weights", weights, *TRAIN_OPTIONS[2:]]
        assert actdet_command("train", data, "--out", tmp_path / "o", *options, *start).code == 130
    return tmp_path / "o"


def test_a_run_goes_on_with_nothing_but_its_folder_and_the_data(
    actdet_command: Actdet, data: Path, stopped: Path
) -> None:
    """Its start weights are gone, and its settings are not the default ones."""
    outcome = actdet_command("train", data, "--out", stopped, "--resume")
    assert outcome.code == 0, outcome.err
    info = read_info(stopped / "model.safetensors")
    assert len(info.held_out) == 5
    assert info.training is not None
    settings = info.training["settings"]
    assert (settings["epochs"], settings["seed"], settings["ema_decay"]) == (3, 4, 0.5)
    assert settings["augment"]["jitter"] is False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", 50], "epochs was 3, is now 50"),
        (["--lr", 5e-5], "lr was 0.001, is now 5e-05"),
        (["--crop", 0.3], "augment was"),
        (["--image-size", 224], "image_size was 32, is now 224"),
        (["--val-share", 0.2], "training clips"),
        (["--backbone-weights", "kinetics"], "backbone_weights was"),
    ],
    ids=str,
)
def test_an_option_that_differs_from_the_stopped_runs_is_named(
    actdet_command: Actdet, data: Path, stopped: Path, options: list[object], words: str
) -> None:
    """Also if it is the default one."""
    before = contents_of(stopped)
    complaint = actdet_command("train", data, "--out", stopped, "--resume", *options).complaint()
    assert complaint.startswith(f"{stopped / 'last.safetensors'}: a checkpoint of ")
    assert words in complaint
    assert contents_of(stopped) == before


def test_the_same_command_and_what_changes_no_result_resume(actdet_command: Actdet, data: Path, stopped: Path) -> None:
    options = ["--epochs", 3, "--no-jitter", "--val-share", 0.4, "--checkpointing", "--workers", 0, "--resume"]
    outcome = actdet_command("train", data, "--out", stopped, *options)
    assert outcome.code == 0, outcome.err


def test_a_data_set_that_has_changed_is_named(actdet_command: Actdet, data: Path, stopped: Path) -> None:
    video = min((data / "videos").iterdir())
    more = shutil.copy(video, data / "videos" / "another.webm")
    complaint = actdet_command("train", data, "--out", stopped, "--resume").complaint()
    assert complaint.startswith(f"{data}: now also holds another: not the data set that the run in {stopped} began")

    Path(more).unlink()
    video.unlink()
    (data / "annotations" / f"{video.stem}.txt").unlink()
    complaint = actdet_command("train", data, "--out", stopped, "--resume").complaint()
    assert complaint.startswith(f"{data}: no longer holds {video.stem}: ")


def test_a_run_goes_on_with_the_groups_that_it_began_with(
    actdet_command: Actdet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder holds the division, with the clips that it does not use; one that is typed anew must be the same."""
    names = sorted(path.stem for path in (data / "videos").iterdir())
    groups = data / "groups.txt"
    groups.write_text("".join(f"{name} room{i % 4}\n" for i, name in enumerate(names)))
    (data / "train.txt").write_text("\n".join(name for i, name in enumerate(names) if i % 4))
    (data / "test.txt").write_text("\n".join(names[::4]))
    out = tmp_path / "o"
    arguments = ("train", data, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "finish", lambda self: self.save() or die())
        options = ["--epochs", 1, "--val-share", 0.4, *MODEL_OPTIONS, *TRAIN_OPTIONS]
        assert actdet_command(*arguments, *options).code == 130
    before = read_run(out)
    assert before.unused_clips == tuple(names[::4])

    # A typed division is made anew, of the files as they are now: no three clips that were a group still are.
    text = groups.read_text()
    rooms = ["test" if i % 4 == 0 else f"room{(i + i // 4) % 3}" for i in range(len(names))]
    groups.write_text("".join(f"{name} {room}\n" for name, room in zip(names, rooms, strict=True)))
    for options in (["--val-share", 0.4], ["--groups", groups, "--val-share", 0.4], ["--groups", groups]):
        complaint = actdet_command(*arguments, "--resume", *options).complaint()
        assert complaint.startswith(f"{out / 'last.safetensors'}: a checkpoint of other training clips: ")
    groups.write_text(text)
    (data / "groups.txt").rename(tmp_path / "groups.txt")

    outcome = actdet_command(*arguments, "--resume")
    assert outcome.code == 0, outcome.err
    info = read_info(out / "model.safetensors")
    assert info.training is not None
    assert tuple(info.training["training_clips"]) == before.training_clips
    assert info.held_out == before.held_out_clips


def test_nothing_to_go_on_from_is_said(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    complaint = actdet_command("train", rendered, "--out", tmp_path / "o", "--resume").complaint()
    assert complaint.startswith(f"{tmp_path / 'o'}: nothing to resume")
    assert not (tmp_path / "o").exists()


def test_a_finished_detector_is_trained_on_with_more_epochs(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path
) -> None:
    """Its shape need not be given again."""
    out = tmp_path / "o"
    options = ["--epochs", 2, "--val-share", 0.4, "--out", out, *TRAIN_OPTIONS[2:]]
    outcome = actdet_command("train", rendered, "--init", model, *options)
    assert outcome.code == 0, outcome.err
    assert read_info(out / "model.safetensors").model == read_info(model).model
    assert f"trained on from {model}" in (out / "report.html").read_text()
    assert (out / "best.safetensors").is_file()

    complaint = actdet_command("train", rendered, "--init", model, *options, "--queries", 9).complaint()
    assert complaint.startswith(f"{out} holds a run already")
    options[5] = tmp_path / "p"
    complaint = actdet_command("train", rendered, "--init", model, *options, "--queries", 9).complaint()
    assert complaint.startswith(f"{model}: a detector of another configuration: queries is 12, asked for is 9")


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_detector_that_says_nothing_finite_is_named(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, value: float
) -> None:
    """The last one is finite, but what is computed with it is not."""
    tensors, info = read_checkpoint(model)
    path = tmp_path / "m.safetensors"
    name = "model.projection.weight"
    save_checkpoint(path, tensors | {name: torch.full_like(tensors[name], value)}, info)
    complaint = actdet_command("evaluate", path, rendered, "--out", tmp_path / "o", "--workers", 0).complaint()
    assert "not finite" in complaint
    assert not (tmp_path / "o").exists()

    video = min((rendered / "videos").iterdir())
    assert "not finite" in actdet_command("predict", path, video, "--out", tmp_path / "p").complaint()
    # The others are refused before the video is opened.
    results = list((tmp_path / "p").iterdir())
    assert len(results) == math.isfinite(value)
    assert all("not finite" in json.loads(result.read_text())["problem"] for result in results)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 1}, "for 1 epoch, batches"),
        ({"epochs": 6, "shallow_epochs": 4}, "for 6 epochs (the first 4 of half the backbone's blocks), batches"),
        (
            {"epochs": 6, "small_epochs": 1, "shallow_epochs": 2},
            "for 6 epochs (the first 1 of half the pixels, the first 2 of half the backbone's blocks), batches",
        ),
    ],
)
def test_a_report_says_what_the_epochs_were(settings: dict[str, Any], words: str) -> None:
    config = TrainConfig(backbone_weights="none", **settings)
    assert words in describe_training(ModelConfig(), config, 600)

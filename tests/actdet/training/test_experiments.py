"""Runs are finished when their reports are there, go on from nothing but their folder, and replace nobody's files."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actdet.cli import main as cli
from actdet.evaluation import report
from actdet.files import sole_writer
from actdet.models.checkpoints import read_about, read_checkpoint, save_checkpoint
from actdet.models.detr.config import ModelConfig
from actdet.synthetic import rendered as rendering
from actdet.synthetic.demo import Demo
from actdet.synthetic.rendered import RenderConfig
from actdet.training import experiments
from actdet.training import trainer as training
from actdet.training.config import TrainConfig
from actdet.training.trainer import Trainer
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import write_video

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]
FIGURES = ("video_accuracy", "detection_accuracy", "mean_iou", "average_precision")


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


# Where a run is killed after its last step: what it calls there.
LATE: dict[str, tuple[Any, str]] = {
    "evaluation": (Trainer, "evaluate"),
    "report": (experiments, "write_report"),
    "pictures": (report, "decode_frames"),
    "page": (report, "write_bytes"),
}


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
        patch.setattr(place, name, _die)
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
    assert set(_contents(out)) == set(_contents(trained))
    outcome = actdet_command("train", rendered, "--out", out, "--resume")
    assert outcome.complaint().startswith(f"{out}: nothing to resume: this run is finished")


@pytest.mark.parametrize("late", ["evaluation", "page"])
@pytest.mark.parametrize("command", ["crossval", "ablate"])
def test_an_experiment_that_was_killed_late_is_completed_by_the_same_command(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, late: str
) -> None:
    out = tmp_path / "o"
    options = [*["--folds", 2] * (command == "crossval"), "--epochs", 1, *OPTIONS]
    with monkeypatch.context() as patch:
        patch.setattr(*LATE[late], _die)
        assert actdet_command(command, rendered, "--out", out, *options).code == 130
    first = {"crossval": "fold_1", "ablate": "full_loss"}[command]
    model = out / first / "model.safetensors"
    before = model.stat().st_mtime_ns
    outcome = actdet_command(command, rendered, "--out", out, *options)
    assert outcome.code == 0, outcome.err
    assert model.stat().st_mtime_ns == before
    parts = [path for path in out.iterdir() if path.is_dir()]
    assert len(parts) == {"crossval": 2, "ablate": 4}[command]
    assert all((part / "report.html").is_file() for part in parts)
    (out / first / "metrics.json").write_text('{"video_accuracy": ')
    complaint = actdet_command(command, rendered, "--out", out, *options).complaint()
    assert complaint.startswith(f"{out / first / 'metrics.json'} was not written by this command")


@pytest.mark.parametrize("command", ["crossval", "ablate"])
def test_a_stopped_experiment_names_no_option_that_its_command_has_not(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    options = [*["--folds", 2] * (command == "crossval"), "--epochs", 1, *OPTIONS]
    arguments = (command, rendered, "--out", tmp_path / "o", *options)
    log = Trainer._log

    def stop(self: Trainer, record: dict[str, Any]) -> None:
        monkeypatch.setattr(cli, "_stop_signal", 2)
        log(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", stop)
        outcome = actdet_command(*arguments)
    assert outcome.code == 130
    assert outcome.complaints[-1].endswith("last.safetensors: run the same command to go on")
    assert actdet_command(*arguments).code == 0


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = {"clips": 6, "width": 64, "height": 64, "frames": 16, "fps": 8, "workers": 1}
    model = ModelConfig(image_size=32, frames=8, encoder_layers=0, decoder_layers=1)
    config = TrainConfig(epochs=1, backbone_weights="none", workers=0, precision="fp32")
    demo = Demo(RenderConfig(seed=0, **clips), RenderConfig(seed=1, **clips), model, config)
    monkeypatch.setattr("actdet.synthetic.demo.demo_for", lambda *_: demo)


@pytest.mark.usefixtures("small_demo")
def test_a_killed_demo_goes_on(actdet_command: Actdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it begins to train, before its detector is written, before its evaluation and before its page."""
    out = tmp_path / "o"
    for place, name in (
        (experiments, "describe_setup"),
        (Trainer, "finish"),
        (experiments, "evaluate_checkpoint"),
        LATE["page"],
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, _die)
            assert actdet_command("demo", "--out", out).code == 130
        times = {path: path.stat().st_mtime_ns for path in out.rglob("*.webm")}
        assert len(times) == 12
    model = (out / "model.safetensors").stat().st_mtime_ns
    for _ in range(2):
        outcome = actdet_command("demo", "--out", out)
        assert outcome.code == 0, outcome.err
        assert (out / "report.html").is_file()
        assert (out / "model.safetensors").stat().st_mtime_ns == model
        assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_stopped_render_goes_on(actdet_command: Actdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--clips", 5, "--width", 64, "--height", 64, "--frames", 8, "--fps", 4, "--workers", 1]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert actdet_command("render", whole, *options).code == 0

    def stop(function: Callable[..., None], jobs: list[Any], workers: int, progress: Callable[[int], None]) -> None:
        for job in jobs[:2]:
            function(*job)
        shutil.copy(whole / "annotations" / f"{rendering._stage_clip(jobs[2][0], jobs[2][1]).name}.txt", out)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rendering, "run_all", stop)
        assert actdet_command("render", out, *options).code == 130
    (text,) = (path for path in out.glob("*.txt") if path.name != "classes.txt")
    text.rename(out / "annotations" / text.name)
    (out / "videos" / ".fight_0003.4194305.partial.webm").touch()
    times = {path: path.stat().st_mtime_ns for path in (out / "videos").glob("[!.]*.webm")}
    assert len(times) == 2
    complaint = actdet_command("render", out, *options, "--seed", 1).complaint()
    assert complaint.startswith(f"{out / 'videos'} is not empty")
    for _ in range(2):
        outcome = actdet_command("render", out, *options)
        assert outcome.code == 0, outcome.err
        made, wanted = _contents(out), _contents(whole)
        assert made.keys() == wanted.keys()
        # Every WebM has a random number of its own.
        assert {name: made[name] for name in made if name[-4:] == ".txt"} == {
            name: wanted[name] for name in wanted if name[-4:] == ".txt"
        }
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("folder", ["videos", "annotations"])
def test_render_adds_to_nobodys_files(actdet_command: Actdet, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine.txt").write_text("0 1 2 3 4")
    complaint = actdet_command("render", tmp_path, "--clips", 1).complaint()
    assert complaint.startswith(f"{tmp_path / folder} is not empty: give a new folder")
    (tmp_path / folder / "mine.txt").unlink()
    (tmp_path / "rendered.json").write_text('{"mine": 1}')
    complaint = actdet_command("render", tmp_path, "--clips", 1).complaint()
    assert complaint.startswith(f"{tmp_path / 'rendered.json'} was not written by this command")


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("command", ["train", "resume", "evaluate", "crossval", "ablate", "render", "prepare", "demo"])
def test_a_folder_that_another_process_writes_to_is_refused(
    actdet_command: Actdet, rendered: Path, trained: Path, model: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "o"
    if command == "resume":
        shutil.copytree(trained, out)
        (out / "report.html").unlink()
    arguments: dict[str, list[object]] = {
        "train": ["train", rendered, "--out", out, *OPTIONS],
        "resume": ["train", rendered, "--out", out, "--resume"],
        "evaluate": ["evaluate", model, rendered, "--out", out, "--workers", 0],
        "crossval": ["crossval", rendered, "--folds", 2, "--out", out, *OPTIONS],
        "ablate": ["ablate", rendered, "--out", out, *OPTIONS],
        "render": ["render", out, "--clips", 1],
        "prepare": ["prepare", rendered, out],
        "demo": ["demo", "--out", out],
    }
    held = out / "data" / "train" if command == "demo" else out
    with sole_writer(held):
        before = _contents(out)
        complaint = actdet_command(*arguments[command]).complaint()
        assert complaint.startswith(f"{held}: another actdet process is writing there")
        assert _contents(out) == before


def _prepared(actdet_command: Actdet, rendered: Path, out: Path) -> None:
    assert actdet_command("prepare", rendered, out, "--short-side", 32).code == 0


def _own_video(out: Path) -> None:
    (out / "videos").mkdir(parents=True)
    for name in ("fight_0000", "collapse_0001"):
        write_video(out / "videos" / f"{name}.mp4", frames=9)


def _own_page(out: Path) -> None:
    out.mkdir()
    (out / "report.html").write_text("<!doctype html><title>the yearly report</title>")


def _own_figures(out: Path) -> None:
    out.mkdir()
    (out / "metrics.json").write_text('{"video_accuracy": 1, "mine": 2}')


def _other_data(out: Path) -> None:
    for folder in ("videos", "annotations"):
        (out / folder).mkdir(parents=True)
    write_video(out / "videos" / "door.mp4", frames=9)


FOREIGN: dict[str, Callable[[Path], None]] = {
    "videos of these names": _own_video,
    "a page": _own_page,
    "figures": _own_figures,
    "another data set": _other_data,
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("command", ["train", "evaluate", "crossval"])
def test_a_report_replaces_nobodys_files(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, make: Callable[[Path], None], command: str
) -> None:
    out = tmp_path / "o"
    make(out / "fold_1" if command == "crossval" and (out.mkdir() or True) else out)
    before = _contents(out)
    arguments: dict[str, list[object]] = {
        "train": ["train", rendered, "--out", out, "--val-share", 0.7, "--epochs", 1, *OPTIONS],
        "evaluate": ["evaluate", model, rendered, "--out", out, "--workers", 0],
        "crossval": ["crossval", rendered, "--folds", 2, "--out", out, "--epochs", 1, *OPTIONS],
    }
    assert "another" in actdet_command(*arguments[command]).complaint()
    assert {name: value for name, value in _contents(out).items() if name != "settings.json"} == before


def test_a_report_replaces_no_prepared_data_set(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    _prepared(actdet_command, rendered, out)
    before = _contents(out)
    complaint = actdet_command("evaluate", model, rendered, "--out", out, "--workers", 0).complaint()
    assert complaint.startswith(f"{out} holds a data set, with which a report would be mixed")
    shutil.rmtree(out / "annotations")
    complaint = actdet_command("evaluate", model, rendered, "--out", out, "--workers", 0).complaint()
    assert "was not written by this command" in complaint
    assert {name: value for name, value in before.items() if not name.startswith("annotations")} == _contents(out)


def test_a_report_replaces_an_earlier_one(actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path) -> None:
    for _ in range(2):
        outcome = actdet_command("evaluate", model, rendered, "--out", tmp_path / "o", "--workers", 0)
        assert outcome.code == 0, outcome.err
    # But no training begins beside it.
    complaint = actdet_command("train", rendered, "--out", tmp_path / "o", *OPTIONS).complaint()
    assert complaint.startswith(f"{tmp_path / 'o'} holds a report already")


@pytest.mark.parametrize(
    ("command", "name"),
    [("train", "log.jsonl"), ("crossval", "crossval.json"), ("crossval", "settings.json"), ("ablate", "ablation.json")],
)
def test_a_run_replaces_nobodys_files(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, command: str, name: str
) -> None:
    (tmp_path / name).write_text("this is mine\n")
    options = ["--folds", 2] if command == "crossval" else []
    complaint = actdet_command(command, rendered, "--out", tmp_path, *options, *OPTIONS).complaint()
    assert str(tmp_path) in complaint
    assert _contents(tmp_path) == {name: b"this is mine\n"}


@pytest.mark.parametrize("name", ["prepared.json", "annotations/fight_0000.txt", "annotations/collapse_0001.txt"])
def test_prepare_replaces_nobodys_files(actdet_command: Actdet, rendered: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("1 2 3 30 40\n")
    complaint = actdet_command("prepare", rendered, tmp_path).complaint()
    assert complaint.startswith(f"{path} was not written by this command")
    assert _contents(tmp_path) == {name: b"1 2 3 30 40\n"}


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
        patch.setattr(training, "load_backbone_weights", lambda *_: None)
        start = [*MODEL_OPTIONS, "--backbone-weights", weights, *TRAIN_OPTIONS[2:]]
        assert actdet_command("train", data, "--out", tmp_path / "o", *options, *start).code == 130
    return tmp_path / "o"


def test_a_run_goes_on_with_nothing_but_its_folder_and_the_data(
    actdet_command: Actdet, data: Path, stopped: Path
) -> None:
    """Its start weights are gone, its settings are not the default ones."""
    outcome = actdet_command("train", data, "--out", stopped, "--resume")
    assert outcome.code == 0, outcome.err
    about = read_about(stopped / "model.safetensors")
    assert len(about.held_out) == 5
    assert about.training is not None
    settings = about.training["settings"]
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
    """Also where it is the default one."""
    before = _contents(stopped)
    complaint = actdet_command("train", data, "--out", stopped, "--resume", *options).complaint()
    assert complaint.startswith(f"{stopped / 'last.safetensors'}: a checkpoint of ")
    assert words in complaint
    assert _contents(stopped) == before


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
    assert complaint.startswith(f"{data}: holds no more {video.stem}: ")


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
    assert read_about(out / "model.safetensors").model == read_about(model).model
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
    """The last one is finite, what is computed with it is not."""
    tensors, about = read_checkpoint(model)
    path = tmp_path / "m.safetensors"
    name = "model.projection.weight"
    save_checkpoint(path, tensors | {name: torch.full_like(tensors[name], value)}, about)
    complaint = actdet_command("evaluate", path, rendered, "--out", tmp_path / "o", "--workers", 0).complaint()
    assert "not finite" in complaint
    assert not (tmp_path / "o").exists()


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
    setup: Any = SimpleNamespace(model=ModelConfig(), config=config)
    assert words in experiments.describe_training(setup, 600)

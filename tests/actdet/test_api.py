"""Training and evaluation from Python do what the commands do, print nothing, and refuse in the same words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from actdet import ActdetError, DataError, ModelConfig, TrainConfig, evaluate, load_dataset, load_model, train
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS

pytestmark = pytest.mark.usefixtures("tiny_backbone")

# The settings of the fixture `trained`, which the command made.
MODEL = ModelConfig(image_size=32, frames=8, encoder_layers=0, decoder_layers=1)
CONFIG = TrainConfig(epochs=1, backbone_weights="none", workers=0, precision="fp32")


def test_settings_are_those_of_the_command() -> None:
    assert MODEL_OPTIONS == ["--image-size", "32", "--frames", "8", "--encoder-layers", "0", "--decoder-layers", "1"]
    assert TRAIN_OPTIONS == ["--backbone-weights", "none", "--workers", "0", "--precision", "fp32"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


def test_training_gives_what_the_command_gives(
    rendered: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[int, int]] = []
    evaluation = train(
        str(rendered),
        tmp_path / "run",
        model=MODEL,
        config=CONFIG,
        device="cpu",
        progress=lambda *step: steps.append(step),
    )
    assert capfd.readouterr() == ("", "")
    assert evaluation is not None
    assert steps == [(number, steps[-1][1]) for number in range(1, steps[-1][1] + 1)]

    ours, _ = load_model(tmp_path / "run" / "model.safetensors")
    theirs, info = load_model(trained / "model.safetensors")
    assert ours.config == info.model == MODEL
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)

    figures = json.loads((trained / "metrics.json").read_text())
    del figures["seconds"]
    assert json.loads(json.dumps(asdict(evaluation.metrics))) == figures
    assert (tmp_path / "run" / "report.html").is_file()


def test_without_held_out_clips_there_is_no_evaluation(rendered: Path, tmp_path: Path) -> None:
    assert train(rendered, tmp_path / "run", model=MODEL, config=CONFIG, val_share=0) is None
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "report.html").exists()


class Interruption(Exception):
    """What a test raises while a training runs."""


def test_an_interrupted_training_is_resumed_to_the_same_detector(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actdet.training.trainer.SAVE_SECONDS", -1)
    config = TrainConfig(**{**vars(CONFIG), "epochs": 2, "batch_size": 4})

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise Interruption

    train(rendered, tmp_path / "whole", model=MODEL, config=config, val_share=0)
    with pytest.raises(Interruption):
        train(rendered, tmp_path / "run", model=MODEL, config=config, val_share=0, progress=interrupt)
    assert not (tmp_path / "run" / "model.safetensors").exists()

    train(rendered, tmp_path / "run", model=MODEL, config=config, val_share=0, resume=True)
    whole, _ = load_model(tmp_path / "whole" / "model.safetensors")
    resumed, _ = load_model(tmp_path / "run" / "model.safetensors")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


@pytest.mark.parametrize("held_out", [False, True])
def test_evaluation_gives_what_the_command_gives(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, held_out: bool
) -> None:
    flags = ["--held-out"] if held_out else []
    outcome = actdet_command(
        "evaluate", model, rendered, "--out", tmp_path / "o", "--no-videos", "--workers", 0, *flags
    )
    assert outcome.code == 0, outcome.err
    figures = json.loads((tmp_path / "o" / "metrics.json").read_text())
    del figures["seconds"]

    clips: list[tuple[int, int]] = []
    metrics = evaluate(str(model), rendered, held_out=held_out, workers=0, progress=lambda *done: clips.append(done))
    assert json.loads(json.dumps(asdict(metrics))) == figures
    assert clips[-1] == (metrics.clips, metrics.clips)
    assert (metrics.clips < 12) == held_out


def test_an_evaluation_writes_only_what_it_is_asked_for(rendered: Path, model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    evaluate(model, rendered, workers=0)
    assert sorted(tmp_path.rglob("*")) == before

    evaluate(model, rendered, tmp_path / "report", workers=0, videos=False)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["metrics.json", "report.html"]


def test_a_data_set_is_read_with_its_class_names(rendered: Path) -> None:
    index = load_dataset(str(rendered))
    assert len(index.clips) == 12
    assert index.class_names == ("fight", "collapse")
    with pytest.raises(DataError):
        load_dataset(rendered, ["dance"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda data, out: train(data, out, val_share=1.0), "val_share must be in"),
        (lambda data, out: train(data, out, device="gpu"), "device must be"),
        (lambda data, out: train(data / "nowhere", out), "nowhere"),
        (lambda data, out: train(data, out, model=ModelConfig(class_names=("a", "b"))), "class"),
        (lambda data, out: train(data, out, resume=True), "nothing to resume"),
        (lambda data, out: evaluate(data / "none.safetensors", data), "none.safetensors: "),
        (lambda data, out: evaluate(data / "none.safetensors", data, workers=-1), "workers must be in"),
        (lambda data, out: load_model(str(data / "none.safetensors")), "none.safetensors: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    rendered: Path, tmp_path: Path, call: Callable[[Path, Path], object], words: str
) -> None:
    with pytest.raises(ActdetError) as caught:
        call(rendered, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_command_still_says_in_one_line_which_setting_is_wrong(
    actdet_command: Actdet, rendered: Path, trained: Path
) -> None:
    """With the default of 50 epochs this warmup is right, but the run that is resumed has one epoch."""
    outcome = actdet_command("train", rendered, "--out", trained, "--resume", "--warmup", 3)
    assert outcome.complaint().startswith("warmup must be shorter than the 1 epoch")


def test_groups_and_lists_divide_as_in_the_commands(rendered: Path, tmp_path: Path) -> None:
    names = [clip.name for clip in load_dataset(rendered).clips]
    groups = tmp_path / "groups.txt"
    groups.write_text("".join(f"{name} {i % 4}\n" for i, name in enumerate(names)))
    evaluation = train(rendered, tmp_path / "run", model=MODEL, config=CONFIG, groups=groups)
    assert evaluation is not None
    held = set(load_model(tmp_path / "run" / "model.safetensors")[1].held_out)
    assert held in [set(names[i::4]) for i in range(4)]

    path = tmp_path / "list"
    path.write_text("\n".join(sorted(held)))
    metrics = evaluate(tmp_path / "run" / "model.safetensors", rendered, list_file=path, workers=0)
    assert metrics.confusion == evaluation.metrics.confusion

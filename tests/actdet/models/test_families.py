"""Training, evaluation, prediction and export name no family: a toy that only these tests know passes through them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from actdet import TrainConfig, evaluate, load_model, train
from actdet.bounds import BOUNDS
from actdet.errors import ActdetError, SettingError
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.families import FAMILIES, FamilyParts, build_network, config_class, loss_class
from actdet.models.family import FamilyNetwork
from tests.actdet.command import Actdet
from tests.actdet.models.toy import Toy, ToyConfig, ToyLoss

SMALL = ["--family", "toy", "--image-size", "32", "--frames", "8", "--width", "4"]
QUICK = ["--backbone-weights", "none", "--workers", "0", "--precision", "fp32"]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a family toy."""
    home = "tests.actdet.models.toy"
    monkeypatch.setitem(FAMILIES, "toy", FamilyParts(f"{home}:ToyConfig", f"{home}:ToyLoss", f"{home}:Toy"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_entry_is_whole(family: str) -> None:
    """The settings of the losses name terms that the network has, and a network is built from the default settings."""
    config = config_class(family)()
    assert config.family == family
    with torch.device("meta"):
        network = build_network(config)
    assert isinstance(network, FamilyNetwork)
    assert network.config is config
    assert network.loss_names[0] == "total"
    assert set(loss_class(family)().term_weights()) < set(network.loss_names)
    assert network.rule

    # The settings are checked before any work begins.
    for settings in (config, loss_class(family)()):
        numbers = {name: value for name, value in vars(settings).items() if type(value) in (int, float)}
        assert numbers.keys() <= BOUNDS.keys()
        for name in numbers:
            with pytest.raises(SettingError, match=name):
                replace(settings, **{name: -1.0})  # pyright: ignore[reportArgumentType]


def test_a_network_that_lacks_a_method_is_refused() -> None:
    class Lacking(FamilyNetwork):
        def losses(self, *_: object, **__: object) -> dict[str, torch.Tensor]:
            return {}

    with pytest.raises(TypeError, match="assess"):
        Lacking()  # pyright: ignore[reportAbstractUsage]


@pytest.mark.usefixtures("no_bf16_units")
def test_the_commands_take_another_family(toy: None, actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*SMALL, "--box-weight", "2", *QUICK, "--epochs", "2", "--batch-size", "4"]
    trained = actdet_command("train", rendered, "--out", run, *options)
    assert trained.code == 0, trained.err
    assert "loss: " in trained.out
    assert "box " in trained.out
    assert "(weight 2)" in trained.out

    model = run / "model.safetensors"
    detector, info = load_model(model)
    assert isinstance(detector, Toy)
    assert info.family == "toy"
    assert asdict(info.loss) == {"box_weight": 2.0}
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = next(record["loss"] for record in records if "loss" in record)
    assert losses["total"] == pytest.approx(losses["cls"] + 2 * losses["box"], rel=1e-5)
    assert "auxiliary" not in losses
    report = (run / "report.html").read_text()
    assert "width" in report
    assert "<td>family</td><td>toy</td>" in report
    assert Toy.rule in report

    evaluated = actdet_command("evaluate", model, rendered, "--out", tmp_path / "again", "--held-out", "--workers", "0")
    assert evaluated.code == 0, evaluated.err
    first, second = (json.loads((out / "metrics.json").read_text()) for out in (run, tmp_path / "again"))
    for metrics in (first, second):
        del metrics["seconds"]
    assert second == first

    video = next((rendered / "videos").iterdir())
    predicted = actdet_command("predict", model, video, "--out", tmp_path / "found", "--threshold", "0")
    assert predicted.code == 0, predicted.err
    found = json.loads((tmp_path / "found" / f"{video.stem}.json").read_text())
    assert [window["action"] in ("fight", "collapse") for window in found["windows"]] == [True]

    refused = actdet_command("train", rendered, "--out", run, "--resume", "--family", "detr")
    assert (refused.code, refused.err) == (1, "actdet: the detector to train on is of the family toy, not detr\n")


@pytest.mark.usefixtures("no_bf16_units")
def test_an_interrupted_training_goes_on_as_what_it_was(
    toy: None, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result is that of an uninterrupted one, and it does not go on as a detector of another family."""
    model = ToyConfig(image_size=32, frames=8, width=4)
    config = TrainConfig(
        epochs=3, batch_size=4, loss=ToyLoss(2.0), backbone_weights="none", workers=0, precision="fp32"
    )
    whole = train(rendered, tmp_path / "whole", model=model, config=config)

    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done == total - 1:
            raise Interrupted

    # The state is saved after every epoch if it need not be so old.
    monkeypatch.setattr("actdet.training.trainer.SAVE_SECONDS", -1)
    parts = tmp_path / "parts"
    with pytest.raises(Interrupted):
        train(rendered, parts, model=model, config=config, progress=interrupt)

    other = ModelConfig(image_size=32, frames=8)
    with pytest.raises(ActdetError, match=r"family was toy, is now detr$"):
        train(rendered, parts, model=other, config=replace(config, loss=LossConfig()), resume=True)
    resumed = train(rendered, parts, model=model, config=config, resume=True)
    assert whole is not None
    assert resumed is not None
    assert resumed.metrics == whole.metrics

    figures = evaluate(parts / "model.safetensors", rendered, held_out=True, workers=0)
    assert figures == whole.metrics


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_the_outputs_of_another_family_are_exported(
    toy: None, actdet_command: Actdet, rendered: Path, tmp_path: Path, format: str
) -> None:
    config = TrainConfig(epochs=1, loss=ToyLoss(), backbone_weights="none", workers=0, precision="fp32")
    train(rendered, tmp_path, model=ToyConfig(image_size=32, frames=8), config=config, val_share=0)
    model = tmp_path / "model.safetensors"
    refused = actdet_command("export", model, "--format", format, "--threshold", "0.5")
    assert refused.complaint() == "an export of the family toy has no threshold inside: leave out threshold"
    exported = actdet_command("export", model, "--format", format)
    assert exported.code == 0, exported.err

    clips = np.random.default_rng(0).integers(0, 256, (3, 8, 32, 32, 3), np.uint8)
    if format == "pt2":
        program = torch.export.load(model.with_suffix(".pt2")).module()
        # In some versions of PyTorch its weights want gradients again.
        with torch.no_grad():
            found = program(torch.from_numpy(clips))
    else:
        session = onnxruntime.InferenceSession(str(model.with_suffix(".onnx")))
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, map(np.asarray, session.run(None, {"clips": clips})), strict=True))

    pixels = (torch.from_numpy(clips).double() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    detector, _ = load_model(tmp_path / "model.safetensors")
    with torch.no_grad():
        wanted = detector(pixels.float().permute(0, 4, 1, 2, 3))
    assert list(found) == ["logits", "boxes"]
    for name, value in found.items():
        np.testing.assert_allclose(np.asarray(value), getattr(wanted, name), rtol=1e-4, atol=1e-4)


def test_more_actions_than_the_family_learns_from_are_refused(toy: None, tmp_path: Path, rendered: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(rendered, data)
    name = min(path.stem for path in (data / "annotations").iterdir() if path.stat().st_size)
    annotation = data / "annotations" / f"{name}.txt"
    annotation.write_text(annotation.read_text() * 2)
    config = TrainConfig(loss=ToyLoss(), backbone_weights="none", workers=0, precision="fp32")
    with pytest.raises(ActdetError) as caught:
        train(data, tmp_path / "run", model=ToyConfig(image_size=32, frames=8), config=config)
    assert str(caught.value) == f"clip {name} has 2 annotations, and a detector of the family toy learns from 1 at most"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"backbone_weights": "kinetics"},
            "backbone_weights kinetics is not for the backbone of the family toy: set backbone_weights to none",
        ),
        ({"shallow_epochs": 1}, "shallow_epochs is not for the backbone of the family toy: leave it out"),
        ({"checkpointing": True}, "checkpointing is not for the backbone of the family toy: leave it out"),
        ({"auxiliary_weight": 1.0}, "the family toy has no auxiliary loss: leave out auxiliary_weight"),
        ({"loss": LossConfig()}, "the family toy needs ToyLoss for its losses, got LossConfig"),
    ],
)
def test_an_option_that_the_family_has_no_use_for_is_refused(
    toy: None, rendered: Path, tmp_path: Path, options: dict[str, object], problem: str
) -> None:
    settings = {"epochs": 2, "loss": ToyLoss(), "backbone_weights": "none", "workers": 0, "precision": "fp32"}
    config = TrainConfig(**(settings | options))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ActdetError) as caught:
        train(rendered, tmp_path / "run", model=ToyConfig(image_size=32, frames=8), config=config)
    assert str(caught.value) == problem


@pytest.mark.parametrize("words", [["--family", "tubelot"], ["--family=tubelot"]])
@pytest.mark.parametrize("command", ["train", "crossval"])
def test_an_unknown_family_is_a_mistyped_option(actdet_command: Actdet, command: str, words: list[str]) -> None:
    ended = actdet_command(command, "data", *words)
    problem = "there is no family tubelot (did you mean tubelet?)"
    assert (ended.code, ended.err) == (2, f"actdet: {problem}: use {', '.join(FAMILIES)}\n")


def test_each_family_has_its_own_options(toy: None, actdet_command: Actdet) -> None:
    shown = actdet_command("train", "--family", "toy", "--help").out
    assert "--width" in shown
    assert "--box-weight" in shown
    assert "--queries" not in shown
    assert "--l1-weight" not in shown

    mistyped = actdet_command("train", "data", "--family", "toy", "--queries", "3")
    line = "actdet train --family toy has no option --queries; actdet train --family toy --help lists all options"
    assert (mistyped.code, mistyped.err) == (2, f"actdet: {line}\n")

"""Training lowers the loss, goes on after a stop as if there had been none, and never saves what is not finite."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from actdet_kernels import set_loss
from torch import nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from actdet.data.config import NO_AUGMENTATION, AugmentConfig
from actdet.errors import ActdetError
from actdet.models.checkpoints import load_model, read_checkpoint, read_info
from actdet.models.detr import losses as detector_losses
from actdet.models.detr.losses import AuxiliaryHead
from actdet.run_log import LOG
from actdet.training import trainer as training
from actdet.training.config import TrainConfig
from actdet.training.run_state import BEST, LAST, MODEL
from actdet.training.schedule import learning_rate
from actdet.training.trainer import Trainer
from tests.actdet.training.trainers import (
    MODEL_CONFIG,
    TRAIN_IDS,
    VAL_IDS,
    MakeTrainer,
    assert_same,
    log_of,
    numbers_of,
    one_line,
    run,
    state_of,
)


def test_the_loss_falls_and_its_log_is_the_mean_of_the_steps(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(*arguments: Any, **options: Any) -> Any:
        losses = set_loss(*arguments, **options)
        seen.append([value.item() for value in losses])
        return losses

    monkeypatch.setattr(detector_losses, "set_loss", spy)
    model = replace(MODEL_CONFIG, dropout=0.0)
    trainer = make(model=model, val=[], epochs=15, augment=NO_AUGMENTATION, clip_norm=10.0)
    events = list(trainer.steps())
    records = log_of(trainer)

    # Every ten steps and the ends of epochs.
    ends = [step for step in range(1, 46) if step % 10 == 0 or step % 3 == 0]
    assert [r["step"] for r in records] == ends
    assert [e.record for e in events if e.record] == records
    assert [(e.epoch, e.step_number, e.total_steps) for e in events] == [(i // 3, i + 1, 45) for i in range(45)]

    for first, record in zip([0, *ends], records, strict=False):
        steps = torch.tensor(seen[first : record["step"]], dtype=torch.float64)
        assert list(record["loss"].values()) == pytest.approx([*steps.mean(0).tolist(), 0.0], rel=1e-5)
        assert next(iter(record["loss"])) == "total"
        assert all(math.isfinite(value) for value in record["loss"].values())
        assert record["epoch"] == pytest.approx(record["step"] / 3)
        assert record["lr"] == learning_rate(trainer.config, (record["step"] - 1) / 3)
    assert records[-1]["loss"]["total"] < 0.7 * records[0]["loss"]["total"]
    assert trainer.finish() is None
    assert {path.name for path in trainer.out.iterdir()} == {"log.jsonl", MODEL}


def test_every_step_uses_the_learning_rate_of_its_start(make: MakeTrainer) -> None:
    trainer = make(warmup=1.0)
    rates = [trainer.train_step.optimizer.param_groups[0]["lr"].item() for _ in trainer.steps()]
    rising = [0.0, 1e-3 / 3, 2e-3 / 3]
    falling = [1e-6 + 9.99e-4 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    assert rates == pytest.approx(rising + falling)


def head_of(trainer: Trainer) -> AuxiliaryHead:
    head = trainer.train_step.auxiliary_head
    assert isinstance(head, AuxiliaryHead)
    return head


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_auxiliary_loss_is_that_of_one_query_read_off_the_averaged_features(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    """Class and box of the clip's action, or no object; the losses of torch and torchvision are the judge."""
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    trainer = make(epochs=1, batch_size=16, auxiliary_weight=weight, augment=NO_AUGMENTATION)
    first = next(trainer.loader.train_batches(TRAIN_IDS, 16, NO_AUGMENTATION, seed=trainer.config.seed, epoch=0))
    with torch.no_grad():
        features = trainer.detector.train().backbone(first.clips).mean((2, 3, 4))
        head = head_of(trainer)
        auxiliary_output = features @ head.weight.T + head.bias
        positive = first.targets.counts > 0
        labels = torch.where(positive, first.targets.labels[:, 0], 2)
        boxes = auxiliary_output[positive, 3:].sigmoid()
        wanted = first.targets.boxes[positive, 0]
        assert 0 < positive.sum() < len(positive)
        corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes, wanted)]
        giou = generalized_box_iou_loss(*corners, reduction="mean")
        cls = F.cross_entropy(auxiliary_output[:, :3], labels)
        expected = 8 * cls + 5 * F.l1_loss(boxes, wanted) * 4 + 2 * giou

    trainer = make(epochs=1, batch_size=16, auxiliary_weight=weight, augment=NO_AUGMENTATION)
    before = head_of(trainer).weight.clone()
    record = next(trainer.steps()).record
    assert record is not None
    loss = record["loss"]
    assert loss["auxiliary"] == pytest.approx(expected.item(), rel=1e-4)
    terms = 2 * loss["cls"] + 5 * loss["l1"] + 2 * loss["giou"]
    assert loss["total"] == pytest.approx(terms + weight * loss["auxiliary"], rel=1e-5)
    assert record["loss_weights"] == {"cls": 2.0, "l1": 5.0, "giou": 2.0, "auxiliary": weight}
    assert not torch.equal(before, head_of(trainer).weight)


def test_only_what_is_trained_from_scratch_is_shallow(tmp_path: Path) -> None:
    for settings, problem in (
        ({"backbone_weights": str(tmp_path)}, "set backbone_weights to none, and no init"),
        ({"init": str(tmp_path)}, "set backbone_weights to none, and no init"),
        ({"freeze_backbone": True}, "leave out freeze_backbone"),
    ):
        with pytest.raises(ActdetError, match=problem):
            TrainConfig(**{"shallow_epochs": 1, "backbone_weights": "none", **settings})


def test_the_first_epochs_are_small_and_shallow(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    trainer = make(val=[], epochs=4, small_epochs=1, shallow_epochs=2, backbone_weights="none")
    trainer.speedometer.clip_flop = 10**9
    sides: list[int] = []
    shallow: list[bool] = []

    def note(backbone: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sides.append(inputs[0].shape[-1])
        shallow.append(trainer.detector.backbone.shallow)

    trainer.detector.backbone.register_forward_pre_hook(note)
    run(trainer)
    assert sides == [23] * 3 + [32] * 9
    assert shallow == [True] * 6 + [False] * 6
    # Only of whole steps is it known how much they compute.
    assert ["tflop_per_second" in record["speed"] for record in log_of(trainer)] == [False] * 6 + [True] * 6


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_does_not_change(make: MakeTrainer, frozen: bool) -> None:
    trainer = make(freeze_backbone=frozen, epochs=1)
    before = {name: value.clone() for name, value in trainer.detector.state_dict().items()}
    run(trainer)
    same = {name for name, value in trainer.detector.state_dict().items() if torch.equal(value, before[name])}
    backbone = {name for name in before if name.startswith("backbone.")}
    assert "backbone.1.running_mean" in backbone
    assert same == (backbone if frozen else set())


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "all": ({"deep_supervision": True, "decoder_layers": 2}, {"warmup": 0.5, "augment": AugmentConfig(mixup=0.4)}),
    "frozen": ({}, {"freeze_backbone": True}),
    "bf16": ({}, {"precision": "bf16"}),
    "auxiliary": ({}, {"auxiliary_weight": 0.5}),
    "shallow": ({}, {"small_epochs": 1, "shallow_epochs": 2, "backbone_weights": "none"}),
}


Run = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Run]:
    """State and log at the end of a run of each of SETTINGS, once it was needed."""
    return {}


@pytest.mark.parametrize(
    ("setting", "stop", "further"),
    [
        ("plain", 1, 0),
        ("plain", 3, 0),
        ("plain", 3, 2),
        ("plain", 8, 0),
        ("all", 4, 0),
        ("all", 6, 1),
        ("frozen", 3, 0),
        ("bf16", 4, 0),
        ("auxiliary", 3, 1),
        ("auxiliary", 4, 0),
        ("shallow", 3, 0),
        ("shallow", 5, 0),
        ("shallow", 6, 0),
        ("shallow", 7, 1),
    ],
)
def test_a_resumed_run_gives_the_numbers_of_an_uninterrupted_one(
    make: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: dict[str, Run],
    setting: str,
    stop: int,
    further: int,
) -> None:
    """Stopped within an epoch or at its end (steps 3 and 6), saved; `further` steps are lost after the saving."""
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    model = replace(MODEL_CONFIG, **SETTINGS[setting][0])
    settings = SETTINGS[setting][1] | {"eval_every": 1}
    if setting not in uninterrupted:
        whole = make("whole", model=model, **settings)
        run(whole)
        uninterrupted[setting] = state_of(whole), numbers_of(whole)
    state, numbers = uninterrupted[setting]

    stopped = make("stopped", model=model, **settings)
    steps = stopped.steps()
    for _ in range(stop):
        next(steps)
    stopped.save()
    for _ in range(further):
        next(steps)
    assert isinstance(steps, Generator)
    steps.close()

    # Another process begins with another state of the generator.
    torch.manual_seed(99)
    resumed = make("stopped", model=model, **settings)
    resumed.restore()
    assert resumed.step_number == stop
    run(resumed)
    assert_same(state_of(resumed), state)
    assert numbers_of(resumed) == numbers
    resumed.finish()
    assert not (resumed.out / LAST).exists()
    assert_same(read_checkpoint(resumed.out / MODEL)[0], {k: v for k, v in state.items() if k[0] == "m"})


def test_a_resumed_run_goes_on_with_its_average_and_finishes_with_it(make: MakeTrainer) -> None:
    whole = make("whole", val=[], ema_decay=0.9)
    stopped = make("stopped", val=[], ema_decay=0.9)
    run(whole)
    run(stopped, until=4)
    stopped.save()

    torch.manual_seed(99)
    resumed = make("stopped", val=[], ema_decay=0.9)
    resumed.restore()
    run(resumed)
    assert_same(resumed.train_step.average, whole.train_step.average)
    resumed.finish()
    written = read_checkpoint(resumed.out / MODEL)[0]
    averages = {f"model.{name}": value for name, value in whole.train_step.average.items()}
    assert_same({name: written[name] for name in averages}, averages)
    live = state_of(whole)
    assert any(not torch.equal(written[name], live[name]) for name in averages)


COMPILED = pytest.param(
    {"step": "compile"},
    marks=pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU a compiled step needs a C++ compiler"),
)


@pytest.mark.parametrize("changes", [{"checkpointing": True}, {"workers": 1}, COMPILED])
def test_how_a_step_is_launched_may_change_on_resuming(make: MakeTrainer, changes: dict[str, Any]) -> None:
    stopped = make()
    run(stopped, until=2)
    stopped.save()
    resumed = make(**changes)
    resumed.restore()
    assert resumed.step_number == 2


def test_half_a_line_of_the_log_keeps_no_run_from_going_on(make: MakeTrainer, stopped: Trainer) -> None:
    path = stopped.out / LOG
    loss = {"total": 1.5, "cls": 0.25, "l1": 0.125, "giou": 0.5, "auxiliary": 0.0}
    good = json.dumps({"epoch": 1.0, "step": 3, "lr": 1e-3, "loss": loss}) + "\n"
    path.write_text(good + '{"step": 3, "lo')
    resumed = make()
    resumed.restore()
    assert path.read_text() == good


def test_a_run_saves_itself_now_and_then_and_goes_on_from_there(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a loss of power: nothing was saved at the end, and what was written last is not whole."""
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    whole = make("whole", eval_every=1)
    run(whole)
    lost = make("lost", eval_every=1)
    run(lost, until=5)
    resumed = make("lost", eval_every=1)
    resumed.restore()
    assert resumed.step_number == 3
    run(resumed)
    assert_same(state_of(resumed), state_of(whole))
    assert numbers_of(resumed) == numbers_of(whole)


def test_two_runs_of_a_seed_are_the_same_and_of_two_seeds_are_not(make: MakeTrainer) -> None:
    states = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer = make(out, epochs=1, seed=seed)
        run(trainer)
        states.append(state_of(trainer))
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["model.queries"], states[2]["model.queries"])


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_trained_detector_that_was_not_evaluated_is_evaluated(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, ema_decay: float
) -> None:
    whole = make("whole", ema_decay=ema_decay, eval_every=1)
    killed = make("killed", ema_decay=ema_decay, eval_every=1)
    run(whole)
    wanted = whole.finish()
    run(killed)

    def die(self: Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", die)
        with pytest.raises(KeyboardInterrupt):
            killed.finish()
    before = (killed.out / MODEL).read_bytes()

    again = make("killed", ema_decay=ema_decay, eval_every=1)
    again.restore()
    assert list(again.steps()) == []
    found = again.finish()
    assert wanted is not None
    assert found is not None
    assert found.metrics == wanted.metrics
    assert numbers_of(again) == numbers_of(whole)
    assert (again.out / MODEL).read_bytes() == before
    assert {path.name for path in again.out.iterdir()} == {path.name for path in whole.out.iterdir()}


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.5, 0.5, 0.5), (0.4, 0.9, 0.9), (0.3, 0.3, 0.3)], 0),
        ([(0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0.6, 0.1, 0.1)], 2),
        ([(0.5, 0.5, 0.5), (0.5, 0.5, 0.6), (0.5, 0.5, 0.55)], 1),
        ([(0.5, 0.5, None), (0.5, 0.5, 0.0), (0.5, 0.4, 0.9)], 1),
    ],
)
@pytest.mark.parametrize("stopped", [None, 4, 8])
def test_the_detector_of_the_best_evaluation_is_kept(
    make: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    figures: list[tuple[float, ...]],
    best: int,
    stopped: int | None,
) -> None:
    """Also over a stop after so many of the nine steps."""
    trainer = make(epochs=3, eval_every=1, ema_decay=0.5)
    found = iter(figures)
    weights = []
    own = Trainer.evaluate

    def evaluate(self: Trainer) -> Any:
        evaluation = own(self)
        weights.append({name: value.clone() for name, value in self.train_step.average.items()})
        names = ("detection_accuracy", "video_accuracy", "mean_iou")
        return replace(evaluation, metrics=replace(evaluation.metrics, **dict(zip(names, next(found), strict=True))))

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    run(trainer, until=stopped)
    if stopped is not None:
        trainer.save()
        trainer = make(epochs=3, eval_every=1, ema_decay=0.5)
        trainer.restore()
        run(trainer)
    trainer.finish()
    assert len(weights) == 3
    written = read_checkpoint(trainer.out / BEST)[0]
    assert_same({name: written[f"model.{name}"] for name in weights[best]}, weights[best])
    assert read_info(trainer.out / BEST).training is None


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the total loss of the step of that number, counted from 1, NaN."""

    def spoil(step: int) -> None:
        count = 0

        def bad(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            losses = set_loss(*arguments, **options)
            return losses._replace(total=losses.total * math.nan) if count == step else losses

        monkeypatch.setattr(detector_losses, "set_loss", bad)

    monkeypatch.setattr(training, "LOG_EVERY", 2)
    return spoil


def _drain(steps: Iterator[Any], trainer: Trainer, bad: int) -> None:
    """Goes on to the end; after the bad step, tries to save."""
    for _ in steps:
        if trainer.step_number == bad:
            with pytest.raises(ActdetError, match="not finite"):
                trainer.save()


@pytest.mark.parametrize("step", [3, 4, 9])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(
    make: MakeTrainer, spoil: Callable[[int], None], step: int
) -> None:
    trainer = make()
    steps = trainer.steps()
    spoil(step)
    next(steps)
    next(steps)
    trainer.save()
    saved = (trainer.out / LAST).read_bytes()
    with pytest.raises(ActdetError) as caught:
        _drain(steps, trainer, step)
    message = one_line(caught)
    assert "not finite" in message
    assert "lower lr" in message
    assert str(trainer.out / LAST) in message
    assert (trainer.out / LAST).read_bytes() == saved
    assert not (trainer.out / MODEL).exists()
    assert "NaN" not in (trainer.out / "log.jsonl").read_text()


def test_weights_that_are_not_finite_are_not_written(make: MakeTrainer) -> None:
    """The last step's loss is that of the weights before it, and says nothing of those that it made."""
    trainer = make(epochs=1)
    run(trainer)
    trainer.save()
    saved = (trainer.out / LAST).read_bytes()
    with torch.no_grad():
        trainer.detector.get_parameter("queries")[0, 0] = math.inf
    for write in (trainer.save, trainer.finish):
        with pytest.raises(ActdetError, match="not finite") as caught:
            write()
        one_line(caught)
    assert (trainer.out / LAST).read_bytes() == saved
    assert not (trainer.out / MODEL).exists()


def test_an_absurd_learning_rate_ends_in_one_line(make: MakeTrainer) -> None:
    trainer = make(lr=1e38, epochs=8, val=[])
    with pytest.raises(ActdetError) as caught:
        run(trainer)
    assert "no checkpoint had been written" in one_line(caught)
    assert not (trainer.out / MODEL).exists()


def _crowded(rendered: Path, out: Path) -> Path:
    """The same videos with three actions in every clip except the first."""
    shutil.copytree(rendered, out)
    for path in sorted((out / "annotations").iterdir())[1:]:
        path.write_text("0 2 3 20 40\n1 30 10 60 50\n1 5 5 62 62\n")
    return out


@pytest.mark.parametrize(
    ("model", "settings", "layers", "targets"),
    [
        ({}, {}, 1, 1),
        ({"deep_supervision": True, "decoder_layers": 3}, {}, 3, 1),
        ({}, {"augment": AugmentConfig(mixup=0.5)}, 1, 2),
        ({"deep_supervision": True, "decoder_layers": 2}, {"crowded": True}, 2, 3),
        ({}, {"crowded": True, "augment": AugmentConfig(mixup=0.5)}, 1, 6),
        ({}, {"precision": "bf16"}, 1, 1),
        ({"class_names": ("fight", "collapse", "third")}, {}, 1, 1),
        ({}, {"batch_size": 64}, 1, 1),
        ({}, {"batch_size": 1, "augment": AugmentConfig(mixup=0.5)}, 1, 1),
    ],
    ids=["plain", "deep", "mixup", "crowd, deep", "crowd, mixup", "bf16", "a class without clips", "one batch", "ones"],
)
def test_the_ways_to_train_run_and_give_what_their_names_say(
    make: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    rendered: Path,
    tmp_path: Path,
    model: dict[str, Any],
    settings: dict[str, Any],
    layers: int,
    targets: int,
) -> None:
    shapes = set()
    inner = set()

    def spy(logits: torch.Tensor, boxes: torch.Tensor, wanted: Any, matched: torch.Tensor, **options: Any) -> Any:
        shapes.add((len(logits), wanted.boxes.shape[1], logits.shape[-1], logits.dtype))
        return set_loss(logits, boxes, wanted, matched, **options)

    monkeypatch.setattr(detector_losses, "set_loss", spy)
    settings = dict(settings)
    data = _crowded(rendered, tmp_path / "crowd") if settings.pop("crowded", False) else rendered
    trainer = make(model=replace(MODEL_CONFIG, **model), data=data, **({"epochs": 1} | settings))
    trainer.detector.get_submodule("projection").register_forward_hook(lambda *a: inner.add(a[2].dtype))
    run(trainer)
    classes = len(trainer.plan.model.class_names) + 1
    assert shapes == {(layers, targets, classes, torch.float32)}
    assert inner == {torch.bfloat16 if settings.get("precision") == "bf16" else torch.float32}

    evaluation = trainer.finish()
    assert evaluation is not None
    assert evaluation.metrics.clips == 2
    assert math.isfinite(evaluation.metrics.loss["total"])
    assert log_of(trainer)[-1]["validation"]["clips"] == 2


def test_the_finished_model_is_what_was_evaluated(make: MakeTrainer) -> None:
    """The detector in the file gives on the held-out clips the figures that `finish` returned."""
    trainer = make(epochs=1)
    run(trainer)
    evaluation = trainer.finish()
    detector, info = load_model(trainer.out / MODEL)
    names = [clip.name for clip in trainer.loader.index.clips]
    assert info.held_out == tuple(names[i] for i in VAL_IDS)
    assert info.training is not None
    assert info.training["step"] == 3
    assert info.reader == "pyav"
    assert info.clip_seconds == trainer.loader.index.median_seconds()

    trainer.detector = detector
    again = trainer.evaluate()
    assert evaluation is not None
    assert torch.equal(again.decision.score, evaluation.decision.score)
    assert again.metrics == evaluation.metrics

"""Training lowers the loss, goes on after a stop as if there had been none, and never saves what is not finite."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from actdet_kernels import set_loss
from torch import nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from actdet.data.config import NO_AUGMENTATION, AugmentConfig
from actdet.data.index import load_index
from actdet.data.loader import ClipLoader
from actdet.errors import ActdetError, DataError
from actdet.models.checkpoints import load_detector, read_about, read_checkpoint, save_checkpoint
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.training import train_step as stepping
from actdet.training import trainer as training
from actdet.training.config import TrainConfig
from actdet.training.cost import Card
from actdet.training.trainer import BEST, LAST, LOG, MODEL, Trainer, learning_rate, read_log, read_run
from actdet.video.readers import PyAVReader

pytestmark = pytest.mark.usefixtures("tiny_backbone")

MODEL_CONFIG = ModelConfig(image_size=32, frames=8, encoder_layers=0, decoder_layers=1, queries=8)
CONFIG = TrainConfig(epochs=3, batch_size=4, lr=1e-3, backbone_weights="none", workers=0, precision="fp32")
TRAIN_IDS, VAL_IDS = list(range(10)), [10, 11]  # three steps an epoch, the last of two clips
MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make(rendered: Path, tmp_path: Path) -> MakeTrainer:
    def make(
        out: str = "run",
        *,
        model: ModelConfig = MODEL_CONFIG,
        train: list[int] = TRAIN_IDS,
        val: list[int] = VAL_IDS,
        data: Path = rendered,
        **settings: Any,
    ) -> Trainer:
        loader = ClipLoader(load_index(data), model, PyAVReader((32, 32), 0), torch.device("cpu"))
        (tmp_path / out).mkdir(exist_ok=True)
        config = replace(CONFIG, **settings)
        return Trainer(model, config, loader, train, val, tmp_path / out, torch.device("cpu"))

    return make


def _log(trainer: Trainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trainer.out / "log.jsonl").read_text().splitlines()]


def _numbers(trainer: Trainer) -> list[dict[str, Any]]:
    """The log without the speeds, which no two runs share."""
    return [{key: value for key, value in record.items() if key != "speed"} for record in _log(trainer)]


def _run(trainer: Trainer, until: int | None = None) -> None:
    for progress in trainer.steps():
        if progress.step == until:
            return


def _state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of all tensors that a run holds."""
    tensors = {f"model.{name}": value.clone() for name, value in trainer.detector.state_dict().items()}
    for number, state in trainer.train_step.optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": value.clone() for name, value in state.items()}
    return tensors


def _assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def _one_line(error: pytest.ExceptionInfo[ActdetError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_loss_falls_and_its_log_is_the_mean_of_the_steps(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(*arguments: Any, **options: Any) -> Any:
        losses = set_loss(*arguments, **options)
        seen.append([value.item() for value in losses])
        return losses

    monkeypatch.setattr(stepping, "set_loss", spy)
    model = replace(MODEL_CONFIG, dropout=0.0)
    trainer = make(model=model, val=[], epochs=15, augment=NO_AUGMENTATION, clip_norm=10.0)
    events = list(trainer.steps())
    records = _log(trainer)
    ends = [step for step in range(1, 46) if step % 10 == 0 or step % 3 == 0]  # every ten, and those of epochs
    assert [r["step"] for r in records] == ends
    assert [e.record for e in events if e.record] == records
    assert [(e.epoch, e.step, e.total_steps) for e in events] == [(i // 3, i + 1, 45) for i in range(45)]
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


def test_the_log_says_how_fast_it_was(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model FLOP a second, and of the card's rate; here of a card that is made up, and with a clock that counts."""
    ticks = itertools.count(step=0.5)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    trainer = make(epochs=1, val=[])
    _run(trainer)
    assert [record["speed"].keys() for record in _log(trainer)] == [{"clips_per_second", "data_share"}]
    trainer = make("gpu", epochs=1, val=[])
    trainer._clip_flop = 2 * 10**12
    trainer._card = Card("made up", {torch.float32: 1e14}, 1e12, 10**9)
    _run(trainer)
    (record,) = _log(trainer)
    # Three batches, a tick before each and one after it, and one for the line.
    seconds, waited = 7 * 0.5, 3 * 0.5
    assert record["speed"] == pytest.approx(
        {
            "clips_per_second": 10 / seconds,
            "data_share": waited / seconds,
            "tflop_per_second": 20 / seconds,
            "utilisation": 0.2 / seconds,
        }
    )


@pytest.mark.parametrize(
    ("warmup", "epoch", "expected"),
    [
        (0.0, 0.0, 5e-5),
        (0.0, 12.5, 1e-6 + 4.9e-5 * 0.8535533905932737),  # (1 + cos 45 degrees) / 2
        (0.0, 25.0, 2.55e-5),
        (0.0, 37.5, 1e-6 + 4.9e-5 * 0.1464466094067262),
        (0.0, 50.0, 1e-6),
        (2.0, 0.0, 0.0),
        (2.0, 0.5, 1.25e-5),
        (2.0, 1.0, 2.5e-5),
        (2.0, 2.0, 5e-5),
        (2.0, 26.0, 2.55e-5),
        (2.0, 50.0, 1e-6),
        (49.0, 24.5, 2.5e-5),
    ],
)
def test_learning_rate_by_hand(warmup: float, epoch: float, expected: float) -> None:
    """Equation 15, min + (max - min) (1 + cos(pi t / T)) / 2, with the report's 5e-5, 1e-6 and 50 epochs."""
    assert learning_rate(TrainConfig(warmup=warmup), epoch) == pytest.approx(expected, rel=1e-12)


def test_every_step_uses_the_learning_rate_of_its_start(make: MakeTrainer) -> None:
    trainer = make(warmup=1.0)
    rates = [trainer.train_step.optimizer.param_groups[0]["lr"].item() for _ in trainer.steps()]
    rising = [0.0, 1e-3 / 3, 2e-3 / 3]
    falling = [1e-6 + 9.99e-4 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    assert rates == pytest.approx(rising + falling)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_auxiliary_loss_is_that_of_one_query_read_off_the_averaged_features(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    """Class and box of the clip's action, or no object; torch's and torchvision's losses are the judge."""
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    trainer = make(epochs=1, batch_size=16, auxiliary_weight=weight, augment=NO_AUGMENTATION)
    (first,) = list(trainer.loader.train_batches(TRAIN_IDS, trainer.config, 0))[:1]
    with torch.no_grad():
        features = trainer.detector.train().backbone(first.clips).mean((2, 3, 4))
        said = features @ trainer.train_step.clip_head.weight.T + trainer.train_step.clip_head.bias
        positive = first.targets.counts > 0
        labels = torch.where(positive, first.targets.labels[:, 0], 2)
        boxes, wanted = said[positive, 3:].sigmoid(), first.targets.boxes[positive, 0]
        assert 0 < positive.sum() < len(positive)
        giou = generalized_box_iou_loss(*(box_convert(b, "cxcywh", "xyxy") for b in (boxes, wanted)), reduction="mean")
        expected = 8 * F.cross_entropy(said[:, :3], labels) + 5 * F.l1_loss(boxes, wanted) * 4 + 2 * giou
    trainer = make(epochs=1, batch_size=16, auxiliary_weight=weight, augment=NO_AUGMENTATION)
    before = trainer.train_step.clip_head.weight.clone()
    steps = trainer.steps()
    record = next(steps).record
    loss = record["loss"]
    assert loss["auxiliary"] == pytest.approx(expected.item(), rel=1e-4)
    terms = 2 * loss["cls"] + 5 * loss["l1"] + 2 * loss["giou"]
    assert loss["total"] == pytest.approx(terms + weight * loss["auxiliary"], rel=1e-5)
    assert record["loss_weights"] == {"cls": 2.0, "l1": 5.0, "giou": 2.0, "auxiliary": weight}
    assert not torch.equal(before, trainer.train_step.clip_head.weight)


def test_only_what_is_trained_from_scratch_is_shallow(tmp_path: Path) -> None:
    for settings, problem in (
        ({"backbone_weights": str(tmp_path)}, "give backbone_weights none, and no init"),
        ({"init": str(tmp_path)}, "give backbone_weights none, and no init"),
        ({"freeze_backbone": True}, "leave out freeze_backbone"),
    ):
        with pytest.raises(ActdetError, match=problem):
            TrainConfig(**{"shallow_epochs": 1, "backbone_weights": "none", **settings})


def test_the_first_epochs_are_small_and_shallow(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    trainer = make(val=[], epochs=4, small_epochs=1, shallow_epochs=2, backbone_weights="none")
    trainer._clip_flop = 10**9
    sides: list[int] = []
    shallow: list[bool] = []

    def note(backbone: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sides.append(inputs[0].shape[-1])
        shallow.append(trainer.detector.backbone.shallow)

    trainer.detector.backbone.register_forward_pre_hook(note)
    _run(trainer)
    assert sides == [23] * 3 + [32] * 9
    assert shallow == [True] * 6 + [False] * 6
    # Only of whole steps is it known what they compute.
    assert ["tflop_per_second" in record["speed"] for record in _log(trainer)] == [False] * 6 + [True] * 6


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_does_not_change(make: MakeTrainer, frozen: bool) -> None:
    trainer = make(freeze_backbone=frozen, epochs=1)
    before = {name: value.clone() for name, value in trainer.detector.state_dict().items()}
    _run(trainer)
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
        _run(whole)
        uninterrupted[setting] = _state(whole), _numbers(whole)
    state, numbers = uninterrupted[setting]
    stopped = make("stopped", model=model, **settings)
    steps = stopped.steps()
    for _ in range(stop):
        next(steps)
    stopped.save()
    for _ in range(further):
        next(steps)
    steps.close()
    torch.manual_seed(99)  # another process
    resumed = make("stopped", model=model, **settings)
    resumed.restore()
    assert resumed.step == stop
    _run(resumed)
    _assert_same(_state(resumed), state)
    assert _numbers(resumed) == numbers
    resumed.finish()
    assert not (resumed.out / LAST).exists()
    _assert_same(read_checkpoint(resumed.out / MODEL)[0], {k: v for k, v in state.items() if k[0] == "m"})


def test_a_resumed_run_goes_on_with_its_average_and_finishes_with_it(make: MakeTrainer) -> None:
    whole, stopped = (make(out, val=[], ema_decay=0.9) for out in ("whole", "stopped"))
    _run(whole)
    _run(stopped, until=4)
    stopped.save()
    torch.manual_seed(99)
    resumed = make("stopped", val=[], ema_decay=0.9)
    resumed.restore()
    _run(resumed)
    _assert_same(resumed.train_step.average, whole.train_step.average)
    resumed.finish()
    written = read_checkpoint(resumed.out / MODEL)[0]
    averages = {f"model.{name}": value for name, value in whole.train_step.average.items()}
    _assert_same({name: written[name] for name in averages}, averages)
    live = _state(whole)
    assert any(not torch.equal(written[name], live[name]) for name in averages)


COMPILED = pytest.param(
    {"step": "compile"},
    marks=pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU a compiled step needs a C++ compiler"),
)


@pytest.mark.parametrize("changes", [{"checkpointing": True}, {"workers": 1}, COMPILED])
def test_how_a_step_is_launched_may_change_on_resuming(make: MakeTrainer, changes: dict[str, Any]) -> None:
    stopped = make()
    _run(stopped, until=2)
    stopped.save()
    resumed = make(**changes)
    resumed.restore()
    assert resumed.step == 2


def test_a_run_saves_itself_now_and_then_and_goes_on_from_there(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a loss of power: nothing was saved at the end, and what was written last is not whole."""
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    whole = make("whole", eval_every=1)
    _run(whole)
    lost = make("lost", eval_every=1)
    _run(lost, until=5)
    resumed = make("lost", eval_every=1)
    resumed.restore()
    assert resumed.step == 3
    _run(resumed)
    _assert_same(_state(resumed), _state(whole))
    assert _numbers(resumed) == _numbers(whole)


_LOSS = {"total": 1.5, "cls": 0.25, "l1": 0.125, "giou": 0.5, "auxiliary": 0.0}
LINES = {
    "half a line": '{"step": 3, "lo',
    "not of JSON": "hello\n",
    "nothing": "\n",
    "a list": "[1, 2]\n",
    "a number": "7\n",
    "no step": '{"epoch": 1, "loss": {}}\n',
    "a step that is text": json.dumps({"epoch": 1, "step": "2", "loss": _LOSS}) + "\n",
    "an empty loss": '{"epoch": 1, "step": 2, "loss": {}}\n',
    "a loss that is text": json.dumps({"epoch": 1, "step": 2, "loss": _LOSS | {"cls": "low"}}) + "\n",
    "NaN": json.dumps({"epoch": 1, "step": 2, "loss": _LOSS | {"cls": math.nan}}) + "\n",
    "infinity": '{"epoch": 1e999, "step": 2, "validation": {}}\n',
    "not of UTF-8": b"\xff\xfe\x00\n".decode("latin-1"),
    "deep": "[" * 100_000 + "\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_of_the_log_that_is_none_keeps_no_run_from_going_on(
    make: MakeTrainer, stopped: Trainer, line: str
) -> None:
    path = stopped.out / LOG
    good = json.dumps({"epoch": 1.0, "step": 3, "lr": 1e-3, "loss": _LOSS}) + "\n"
    path.write_bytes((good + line).encode("latin-1"))
    resumed = make()
    resumed.restore()
    assert path.read_text() == good
    path.write_bytes((line + ("\n" * (not line.endswith("\n"))) + good).encode("latin-1"))
    assert read_log(path) == [json.loads(good)]


def test_two_runs_of_a_seed_are_the_same_and_of_two_seeds_are_not(make: MakeTrainer) -> None:
    states = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer = make(out, epochs=1, seed=seed)
        _run(trainer)
        states.append(_state(trainer))
    _assert_same(states[0], states[1])
    assert not torch.equal(states[0]["model.queries"], states[2]["model.queries"])


@pytest.fixture
def stopped(make: MakeTrainer) -> Trainer:
    trainer = make()
    _run(trainer, until=4)
    trainer.save()
    return trainer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 2e-3}, "lr was 0.001, is now 0.002"),
        ({"epochs": 4}, "epochs was 3, is now 4"),
        ({"loss": LossConfig(l1_weight=1.0)}, "loss was "),
        ({"model": replace(MODEL_CONFIG, queries=9)}, "queries was 8, is now 9"),
        ({"model": replace(MODEL_CONFIG, decoder_layers=2)}, "decoder_layers was 1, is now 2"),
        ({"train": TRAIN_IDS[:-1]}, "training clips"),
        ({"train": TRAIN_IDS[::-1]}, "training clips"),
        ({"val": VAL_IDS[:-1]}, "held out clips"),
    ],
)
def test_another_run_cannot_be_resumed(
    make: MakeTrainer, stopped: Trainer, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError) as caught:
        make(**changes).restore()
    message = _one_line(caught)
    assert message.startswith(f"{stopped.out / LAST}: a checkpoint of ")
    assert words in message


def test_what_is_not_there_cannot_be_resumed(make: MakeTrainer, stopped: Trainer) -> None:
    with pytest.raises(DataError) as caught:
        make("nowhere").restore()
    assert "nowhere: nothing to resume: it holds no state of a training" in _one_line(caught)
    resumed = make()
    resumed.restore()
    _run(resumed)
    resumed.finish()
    (stopped.out / MODEL).rename(stopped.out / LAST)
    with pytest.raises(DataError) as caught:
        make().restore()
    assert "not the state of a training" in _one_line(caught)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_trained_detector_that_was_not_evaluated_is_evaluated(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, ema_decay: float
) -> None:
    whole, killed = (make(out, ema_decay=ema_decay, eval_every=1) for out in ("whole", "killed"))
    _run(whole)
    wanted = whole.finish()
    _run(killed)

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
    assert _numbers(again) == _numbers(whole)
    assert (again.out / MODEL).read_bytes() == before
    assert {path.name for path in again.out.iterdir()} == {path.name for path in whole.out.iterdir()}


def test_start_weights_are_not_read_again(make: MakeTrainer, stopped: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(training, "load_backbone_weights", gone)
    with pytest.raises(AssertionError):
        make("new")
    resumed = Trainer(
        MODEL_CONFIG, CONFIG, stopped.loader, TRAIN_IDS, VAL_IDS, stopped.out, torch.device("cpu"), to_restore=True
    )
    resumed.restore()
    _assert_same(_state(resumed), _state(stopped))


def test_a_stored_run_says_what_it_is(make: MakeTrainer) -> None:
    settings = {
        "warmup": 1.0,
        "workers": 0,
        "checkpointing": True,
        "ema_decay": 0.5,
        "augment": AugmentConfig(jitter=False, mixup=0.5),
        "loss": LossConfig(l1_weight=1.0),
    }
    trainer = make(model=replace(MODEL_CONFIG, dropout=0.25), **settings)
    _run(trainer, until=2)
    trainer.save()
    stored = read_run(trainer.out)
    assert (stored.model, stored.config) == (trainer.model, trainer.config)
    names = [clip.name for clip in trainer.loader.index.clips]
    assert [*stored.training_clips, *stored.held_out_clips] == [names[i] for i in (*TRAIN_IDS, *VAL_IDS)]


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.5, 0.5, 0.5), (0.4, 0.9, 0.9), (0.3, 0.3, 0.3)], 0),
        ([(0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0.6, 0.1, 0.1)], 2),
        ([(0.5, 0.5, 0.5), (0.5, 0.5, 0.6), (0.5, 0.5, 0.55)], 1),
        ([(0.5, 0.5, None), (0.5, 0.5, 0.0), (0.5, 0.4, 0.9)], 1),
    ],
)
def test_the_detector_of_the_best_evaluation_is_kept(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, figures: list[tuple[float, ...]], best: int
) -> None:
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
    _run(trainer)
    trainer.finish()
    assert len(weights) == 3
    written = read_checkpoint(trainer.out / BEST)[0]
    _assert_same({name: written[f"model.{name}"] for name in weights[best]}, weights[best])
    assert read_about(trainer.out / BEST).training is None


def _damaged(path: Path, tensors: dict[str, Any] | None = None, **training: Any) -> None:
    """Write the state at `path` anew with other tensors (None: without it), and another description."""
    found, about = read_checkpoint(path)
    found |= tensors or {}
    state = {name: value for name, value in ((about.training or {}) | training).items() if value is not None}
    kept = {name: value for name, value in found.items() if value is not None}
    save_checkpoint(path, kept, replace(about, training=state))


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "a step of text": ({"step": "4"}, "step"),
    "a step of a half": ({"step": 4.5}, "step"),
    "a step below none": ({"step": -1}, "step"),
    "a step past the end": ({"step": 10**9}, "step 1000000000"),
    "no step": ({"step": None}, "step"),
    "no settings": ({"settings": None}, "settings"),
    "settings that are a list": ({"settings": [1]}, "settings"),
    "a model that is text": ({"model": "large"}, "model"),
    "clips that are numbers": ({"training_clips": [1, 2]}, "training_clips"),
    "left out without a reason": ({"left_out": {"a": []}}, "left_out"),
    "a scaler of text": ({"scaler": {"scale": "x"}}, "scaler"),
    "a best of text": ({"best": ["x"]}, "best"),
    "losses of another shape": ({"tensors": {"losses": torch.zeros(7)}}, "losses"),
    "no head": ({"tensors": {"clip_head.weight": None}}, "clip_head.weight"),
    "an average of another shape": ({"tensors": {"optimizer.0.exp_avg": torch.zeros(3)}}, "optimizer.0.exp_avg"),
    "an average that is gone": ({"tensors": {"optimizer.1.exp_avg_sq": None}}, "optimizer.1.exp_avg_sq"),
    "NaN": ({"tensors": {"model.queries": torch.full((8, 256), math.nan)}}, "queries"),
    "infinite averages": ({"tensors": {"clip_head.bias": torch.full((7,), math.inf)}}, "clip_head.bias"),
    "counts for weights": ({"tensors": {"model.queries": torch.zeros(8, 256, dtype=torch.int64)}}, "queries"),
}


@pytest.mark.parametrize(("damage", "word"), DAMAGES.values(), ids=DAMAGES)
def test_a_state_that_cannot_be_is_refused_in_one_line(
    make: MakeTrainer, stopped: Trainer, damage: dict[str, Any], word: str
) -> None:
    _damaged(stopped.out / LAST, **damage)
    with pytest.raises(DataError) as caught:
        make().restore()
    message = _one_line(caught)
    assert message.startswith(f"{stopped.out / LAST}: ")
    assert word in message


def test_a_finished_detector_is_trained_on(make: MakeTrainer) -> None:
    first = make("first", epochs=1, ema_decay=0.5)
    _run(first)
    first.finish()
    path = first.out / MODEL
    written = read_checkpoint(path)[0]
    second = make("second", model=replace(MODEL_CONFIG, dropout=0.5), epochs=5, init=str(path), train=[*range(12)])
    assert all(torch.equal(value, written[f"model.{name}"]) for name, value in second.detector.state_dict().items())
    _run(second, until=2)
    second.save()
    path.unlink()
    assert read_run(second.out).config.init == str(path)
    with pytest.raises(DataError, match="no such checkpoint"):
        make("third", init=str(path))


@pytest.mark.parametrize(
    "changes", [{"queries": 9}, {"decoder_layers": 2}, {"class_names": ("a", "b")}, {"frames": 16}]
)
def test_a_detector_of_another_shape_is_not_trained_on(make: MakeTrainer, changes: dict[str, Any]) -> None:
    first = make("first", epochs=1)
    _run(first)
    first.finish()
    with pytest.raises(DataError) as caught:
        make("second", init=str(first.out / MODEL), model=replace(MODEL_CONFIG, **changes))
    message = _one_line(caught)
    assert message.startswith(f"{first.out / MODEL}: ")
    assert next(iter(changes)) in message


def test_a_cut_state_cannot_be_resumed(make: MakeTrainer, stopped: Trainer) -> None:
    path = stopped.out / LAST
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError) as caught:
        make().restore()
    assert _one_line(caught).startswith(f"{path}: ")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes the total loss of the step of that number, counted from 1, NaN."""

    def spoil(step: int) -> None:
        count = 0

        def bad(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            losses = set_loss(*arguments, **options)
            return losses._replace(total=losses.total * math.nan) if count == step else losses

        monkeypatch.setattr(stepping, "set_loss", bad)

    monkeypatch.setattr(training, "LOG_EVERY", 2)
    return spoil


def _drain(steps: Iterator[Any], trainer: Trainer, bad: int) -> None:
    """Goes on to the end; after the bad step, tries to save."""
    for _ in steps:
        if trainer.step == bad:
            with pytest.raises(ActdetError, match="not finite"):
                trainer.save()


@pytest.mark.parametrize("step", [3, 4, 9])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(
    make: MakeTrainer, spoil: Callable[[int], None], step: int
) -> None:
    trainer = make()
    steps = trainer.steps()
    spoil(step)
    next(steps), next(steps)
    trainer.save()
    saved = (trainer.out / LAST).read_bytes()
    with pytest.raises(ActdetError) as caught:
        _drain(steps, trainer, step)
    message = _one_line(caught)
    assert "not finite" in message
    assert "lower lr" in message
    assert str(trainer.out / LAST) in message
    assert (trainer.out / LAST).read_bytes() == saved
    assert not (trainer.out / MODEL).exists()
    assert "NaN" not in (trainer.out / "log.jsonl").read_text()


def test_weights_that_are_not_finite_are_not_written(make: MakeTrainer) -> None:
    """The last step's loss is that of the weights before it: it says nothing of those that it made."""
    trainer = make(epochs=1)
    _run(trainer)
    trainer.save()
    saved = (trainer.out / LAST).read_bytes()
    with torch.no_grad():
        trainer.detector.queries[0, 0] = math.inf
    for write in (trainer.save, trainer.finish):
        with pytest.raises(ActdetError, match="not finite") as caught:
            write()
        _one_line(caught)
    assert (trainer.out / LAST).read_bytes() == saved
    assert not (trainer.out / MODEL).exists()


def test_an_absurd_learning_rate_ends_in_one_line(make: MakeTrainer) -> None:
    trainer = make(lr=1e38, epochs=8, val=[])
    with pytest.raises(ActdetError) as caught:
        _run(trainer)
    assert "no checkpoint had been written" in _one_line(caught)
    assert not (trainer.out / MODEL).exists()


def _crowded(rendered: Path, out: Path) -> Path:
    """The same videos with three actions in every clip but the first."""
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
    shapes, inner = set(), set()

    def spy(logits: torch.Tensor, boxes: torch.Tensor, wanted: Any, matched: torch.Tensor, **options: Any) -> Any:
        shapes.add((len(logits), wanted.boxes.shape[1], logits.shape[-1], logits.dtype))
        return set_loss(logits, boxes, wanted, matched, **options)

    monkeypatch.setattr(stepping, "set_loss", spy)
    settings = dict(settings)
    data = _crowded(rendered, tmp_path / "crowd") if settings.pop("crowded", False) else rendered
    trainer = make(model=replace(MODEL_CONFIG, **model), data=data, **({"epochs": 1} | settings))
    trainer.detector.projection.register_forward_hook(lambda *a: inner.add(a[2].dtype))
    _run(trainer)
    classes = len(trainer.model.class_names) + 1
    assert shapes == {(layers, targets, classes, torch.float32)}
    assert inner == {torch.bfloat16 if settings.get("precision") == "bf16" else torch.float32}
    evaluation = trainer.finish()
    assert evaluation is not None
    assert evaluation.metrics.clips == 2
    assert math.isfinite(evaluation.metrics.loss["total"])
    assert _log(trainer)[-1]["validation"]["clips"] == 2


def test_the_finished_model_is_what_was_evaluated(make: MakeTrainer) -> None:
    """The detector in the file gives on the held-out clips what `finish` said of them."""
    trainer = make(epochs=1)
    _run(trainer)
    evaluation = trainer.finish()
    detector, about = load_detector(trainer.out / MODEL)
    names = [clip.name for clip in trainer.loader.index.clips]
    assert about.held_out == tuple(names[i] for i in VAL_IDS)
    assert about.training is not None
    assert about.training["step"] == 3
    assert about.reader == "pyav"
    assert about.clip_seconds == trainer.loader.index.median_seconds()
    trainer.detector = detector
    again = trainer.evaluate()
    assert evaluation is not None
    assert torch.equal(again.decision.score, evaluation.decision.score)
    assert again.metrics == evaluation.metrics

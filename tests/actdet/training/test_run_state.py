"""A run goes on only from a state that is its own and whole; what is wrong with another one is said in one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from actdet.data.config import AugmentConfig
from actdet.errors import DataError
from actdet.models.checkpoints import read_checkpoint, save_checkpoint
from actdet.models.detr.config import LossConfig
from actdet.training.run_state import LAST, MODEL, read_run
from actdet.training.trainer import Trainer
from tests.actdet.training.trainers import (
    MODEL_CONFIG,
    TRAIN_IDS,
    VAL_IDS,
    MakeTrainer,
    assert_same,
    numbers_of,
    one_line,
    run,
    state_of,
)


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
    message = one_line(caught)
    assert message.startswith(f"{stopped.out / LAST}: a checkpoint of ")
    assert words in message


def test_what_is_not_there_cannot_be_resumed(make: MakeTrainer, stopped: Trainer) -> None:
    with pytest.raises(DataError) as caught:
        make("nowhere").restore()
    assert "nowhere: nothing to resume: the folder contains no training state" in one_line(caught)

    resumed = make()
    resumed.restore()
    run(resumed)
    resumed.finish()
    (stopped.out / MODEL).rename(stopped.out / LAST)
    with pytest.raises(DataError) as caught:
        make().restore()
    assert "not the state of a training" in one_line(caught)


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
    run(trainer, until=2)
    trainer.save()
    stored = read_run(trainer.out)
    assert (stored.model, stored.config) == (trainer.plan.model, trainer.config)
    names = [clip.name for clip in trainer.loader.index.clips]
    assert [*stored.training_clips, *stored.held_out_clips] == [names[i] for i in (*TRAIN_IDS, *VAL_IDS)]
    assert stored.unused_clips == ()


def test_a_stored_run_says_which_clips_it_does_not_use(make: MakeTrainer) -> None:
    trainer = make(train=TRAIN_IDS[2:], val=VAL_IDS)
    trainer.save()
    names = [clip.name for clip in trainer.loader.index.clips]
    assert read_run(trainer.out).unused_clips == (names[0], names[1])


def test_a_state_of_an_earlier_version_goes_on(make: MakeTrainer, tmp_path: Path) -> None:
    """The names of its tensors and settings are those of format 1; settings that came later are missing."""
    settings = {"auxiliary_weight": 0.5, "augment": AugmentConfig(color=0.25)}
    whole = make("whole", **settings)
    run(whole)
    early = make("early", **settings)
    run(early, until=4)
    early.save()

    path = early.out / LAST
    tensors = load_file(path)
    head = {name for name in tensors if not name.startswith(("model.", "optimizer.", "average."))}
    assert head == {"losses", "clip_head.weight", "clip_head.bias"}
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["actdet"])
    header["format"] = 1
    header.pop("family")
    stored = header["training"]["settings"]
    stored["augment"]["colour"] = stored["augment"].pop("color")
    for later in ("small_epochs", "shallow_epochs"):
        stored.pop(later)
    header["training"].pop("left_out")
    header["training"].pop("unused_clips")
    save_file(tensors, path, metadata={"actdet": json.dumps(header)})

    assert read_run(early.out).config == early.config
    resumed = make("early", **settings)
    resumed.restore()
    run(resumed)
    assert_same(state_of(resumed), state_of(whole))
    assert numbers_of(resumed) == numbers_of(whole)


def _damaged(path: Path, tensors: dict[str, Any] | None = None, **training: Any) -> None:
    """Write the state at `path` anew with other tensors (None: without it), and another description."""
    found, info = read_checkpoint(path)
    found |= tensors or {}
    state = {name: value for name, value in ((info.training or {}) | training).items() if value is not None}
    kept = {name: value for name, value in found.items() if value is not None}
    save_checkpoint(path, kept, replace(info, training=state))


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
    "an unused clip that is a number": ({"unused_clips": [1]}, "unused_clips"),
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
    message = one_line(caught)
    assert message.startswith(f"{stopped.out / LAST}: ")
    assert word in message


def test_a_cut_state_cannot_be_resumed(make: MakeTrainer, stopped: Trainer) -> None:
    path = stopped.out / LAST
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError) as caught:
        make().restore()
    assert one_line(caught).startswith(f"{path}: ")

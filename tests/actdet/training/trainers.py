"""Small trainings for the tests of the trainer and of what it is made of, and how two of them are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actdet.data.config import ClipSize
from actdet.data.index import load_index
from actdet.data.loader import ClipLoader
from actdet.errors import ActdetError
from actdet.models.detr.config import ModelConfig
from actdet.run_log import LOG
from actdet.training.config import TrainConfig
from actdet.training.plan import make_plan
from actdet.training.trainer import Trainer
from actdet.video.pyav import PyAVReader

CPU = torch.device("cpu")
MODEL_CONFIG = ModelConfig(image_size=32, frames=8, encoder_layers=0, decoder_layers=1, queries=8)
CONFIG = TrainConfig(epochs=3, batch_size=4, lr=1e-3, backbone_weights="none", workers=0, precision="fp32")

# Three steps an epoch, the last of two clips.
TRAIN_IDS = list(range(10))
VAL_IDS = [10, 11]

MakeTrainer = Callable[..., Trainer]


def make_trainer(
    data: Path,
    out: Path,
    *,
    model: ModelConfig = MODEL_CONFIG,
    train: list[int] = TRAIN_IDS,
    val: list[int] = VAL_IDS,
    to_restore: bool = False,
    **settings: Any,
) -> Trainer:
    """A trainer on the CPU of the clips in `data`, whose folder `out` is made.

    settings: what differs from CONFIG.
    """
    index = load_index(data)
    size = ClipSize(model.frames, 32)
    plan = make_plan(index, model, replace(CONFIG, **settings), CPU)
    loader = ClipLoader(index, size, PyAVReader((32, 32), 0), CPU)
    out.mkdir(exist_ok=True)
    return Trainer(plan, loader, train, val, out, to_restore=to_restore)


def run(trainer: Trainer, until: int | None = None) -> None:
    """Train to the end, or until so many steps are done."""
    for progress in trainer.steps():
        if progress.step_number == until:
            return


def log_of(trainer: Trainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trainer.out / LOG).read_text().splitlines()]


def numbers_of(trainer: Trainer) -> list[dict[str, Any]]:
    """The log without the speeds, which no two runs share."""
    return [{key: value for key, value in record.items() if key != "speed"} for record in log_of(trainer)]


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of all tensors that a run has."""
    tensors = {f"model.{name}": value.clone() for name, value in trainer.detector.state_dict().items()}
    for number, state in trainer.train_step.optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": value.clone() for name, value in state.items()}
    return tensors


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """The same names, and the same numbers bit for bit."""
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def one_line(error: pytest.ExceptionInfo[ActdetError]) -> str:
    """The message of an error, which must be one line."""
    assert "\n" not in str(error.value)
    return str(error.value)

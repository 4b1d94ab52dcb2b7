"""Small trainings of the rendered data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actdet.training.trainer import Trainer
from tests.actdet.training.trainers import MakeTrainer, make_trainer, run


@pytest.fixture
def make(rendered: Path, tmp_path: Path, tiny_backbone: None) -> MakeTrainer:
    """Makes trainers by `make_trainer`, whose folders have the names that are given."""

    def make(out: str = "run", *, data: Path = rendered, **options: Any) -> Trainer:
        return make_trainer(data, tmp_path / out, **options)

    return make


@pytest.fixture
def stopped(make: MakeTrainer) -> Trainer:
    """A trainer that stopped after four of its nine steps, and saved its state."""
    trainer = make()
    run(trainer, until=4)
    trainer.save()
    return trainer

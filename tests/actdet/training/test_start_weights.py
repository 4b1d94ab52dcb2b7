"""A training starts from another detector's weights if its shape is the same, and says if it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from actdet.errors import DataError
from actdet.models.checkpoints import read_checkpoint
from actdet.training.run_state import MODEL, read_run
from actdet.training.trainer import Trainer
from tests.actdet.tiny import TinyBackbone
from tests.actdet.training.trainers import MODEL_CONFIG, MakeTrainer, assert_same, one_line, run, state_of


def test_start_weights_are_not_read_again(make: MakeTrainer, stopped: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(TinyBackbone, "load_weights", gone)
    with pytest.raises(AssertionError):
        make("new")
    resumed = make(to_restore=True)
    resumed.restore()
    assert_same(state_of(resumed), state_of(stopped))


def test_a_finished_detector_is_trained_on(make: MakeTrainer) -> None:
    first = make("first", epochs=1, ema_decay=0.5)
    run(first)
    first.finish()
    path = first.out / MODEL
    written = read_checkpoint(path)[0]
    second = make("second", model=replace(MODEL_CONFIG, dropout=0.5), epochs=5, init=str(path), train=[*range(12)])
    assert all(torch.equal(value, written[f"model.{name}"]) for name, value in second.detector.state_dict().items())

    run(second, until=2)
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
    run(first)
    first.finish()
    with pytest.raises(DataError) as caught:
        make("second", init=str(first.out / MODEL), model=replace(MODEL_CONFIG, **changes))
    message = one_line(caught)
    assert message.startswith(f"{first.out / MODEL}: ")
    assert next(iter(changes)) in message

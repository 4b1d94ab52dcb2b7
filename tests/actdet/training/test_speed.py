"""The log says how fast a training is: clips, waiting, and FLOP if they are known."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from actdet.training import speed
from actdet.training.cost import Card
from tests.actdet.training.trainers import MakeTrainer, log_of, run


def test_the_log_says_how_fast_it_was(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model FLOP a second, and their share of the card's rate; the card is made up, and the clock counts its calls."""
    ticks = itertools.count(step=0.5)
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    trainer = make(epochs=1, val=[])
    run(trainer)
    assert [record["speed"].keys() for record in log_of(trainer)] == [{"clips_per_second", "data_share"}]

    trainer = make("gpu", epochs=1, val=[])
    trainer.speedometer.clip_flop = 2 * 10**12
    trainer.speedometer.card = Card("made up", {torch.float32: 1e14}, 1e12, 10**9)
    run(trainer)
    (record,) = log_of(trainer)
    # Three batches, a tick before each and one after it, and one for the line.
    seconds = 7 * 0.5
    waited = 3 * 0.5
    assert record["speed"] == pytest.approx(
        {
            "clips_per_second": 10 / seconds,
            "data_share": waited / seconds,
            "tflop_per_second": 20 / seconds,
            "utilisation": 0.2 / seconds,
        }
    )

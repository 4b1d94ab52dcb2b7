"""The learning rate is the report's, every step and process draws its own dropout, and no process is left idle."""

from __future__ import annotations

import math

import pytest
import torch

from actdet.errors import ActdetError
from actdet.training.config import TrainConfig
from actdet.training.schedule import check_last_batch, dropout_seed, last_batch, learning_rate


@pytest.mark.parametrize(
    ("warmup", "epoch", "expected"),
    [
        (0.0, 0.0, 5e-5),
        # (1 + cos 45 degrees) / 2
        (0.0, 12.5, 1e-6 + 4.9e-5 * 0.8535533905932737),
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


def test_every_step_and_every_process_of_every_run_has_another_seed() -> None:
    arguments = [(seed, step, rank) for seed in (0, 1, 4294967295) for step in range(50) for rank in range(4)]
    seeds = [dropout_seed(*given) for given in arguments]
    assert len(set(seeds)) == len(arguments)
    assert all(0 <= seed < 2**64 for seed in seeds)
    # Half of all seeds are beyond what a signed integer of 64 bits can be, and PyTorch takes them, too.
    torch.Generator().manual_seed(max(seeds))
    assert seeds == [dropout_seed(*given) for given in arguments]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 12, 13])
def test_the_last_batch_has_what_the_others_leave(batch_size: int) -> None:
    for clips in range(1, 13):
        sizes = [len(range(start, min(start + batch_size, clips))) for start in range(0, clips, batch_size)]
        assert last_batch(clips, batch_size) == sizes[-1]
        assert len(sizes) == math.ceil(clips / batch_size)


@pytest.mark.parametrize(
    ("clips", "batch_size", "processes", "advice"),
    [
        (9, 4, 1, None),
        (9, 4, 2, "use --batch-size 5"),
        (9, 5, 2, None),
        # The last batches of 5, 6 and 7 of 13 clips have 3, 1 and 6.
        (13, 4, 4, "use --batch-size 7"),
        (2, 8, 3, "use fewer processes"),
    ],
)
def test_a_last_batch_that_leaves_a_process_idle_is_refused(
    clips: int, batch_size: int, processes: int, advice: str | None
) -> None:
    if advice is None:
        check_last_batch(clips, batch_size, processes)
        return
    with pytest.raises(ActdetError, match=f"fewer than the {processes} processes: {advice}$"):
        check_last_batch(clips, batch_size, processes)

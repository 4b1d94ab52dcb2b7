"""What each step of a training gets by its number: its clips, its learning rate, and the seed of its dropout."""

from __future__ import annotations

import math

import numpy as np

from actdet.errors import ActdetError
from actdet.training.config import TrainConfig


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Return the learning rate at a time in the training.

    It rises linearly from 0 over the first `warmup` epochs, then falls as a cosine from `lr` to `min_lr` (eq. 15).

    Args:
        config: The training's settings.
        epoch: Epochs since the start, in [0, epochs]; a fraction within an epoch.
    """
    if epoch < config.warmup:
        return config.lr * epoch / config.warmup
    share = (epoch - config.warmup) / (config.epochs - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * share)) / 2


def dropout_seed(seed: int, step_number: int, rank: int) -> int:
    """Return the seed of what dropout draws in a step, in [0, 2^64).

    Args:
        seed: The run's.
        step_number: How many steps came before.
        rank: The number of the process, each of which draws its own dropout.
    """
    return int(np.random.SeedSequence([seed, step_number, rank]).generate_state(1, np.uint64)[0])


def last_batch(clips: int, batch_size: int) -> int:
    """Return how many clips the last batch of an epoch has."""
    return (clips - 1) % batch_size + 1


def check_last_batch(clips: int, batch_size: int, processes: int) -> None:
    """Check that the last batch of an epoch has a clip for each process.

    Args:
        clips: How many clips an epoch has.
        batch_size: Clips in the other batches.
        processes: How many processes share a batch.

    Raises:
        ActdetError: If it has fewer.
    """
    last = last_batch(clips, batch_size)
    if last >= processes:
        return
    larger = range(batch_size + 1, clips + 1)
    fitting = [size for size in larger if last_batch(clips, size) >= processes]
    advice = f"use --batch-size {fitting[0]}" if fitting else "use fewer processes"
    raise ActdetError(
        f"the last of the batches of {batch_size} has {last} of the {clips} clips, fewer than the {processes} "
        f"processes: {advice}"
    )

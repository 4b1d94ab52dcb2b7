"""How long a training will take on this CPU, found by trying three steps of it."""

from __future__ import annotations

import math
import time

import torch

from actdet.data.augment import Batch
from actdet.data.truth import centered_targets
from actdet.device import prepare_device
from actdet.models.config import FamilyConfig
from actdet.models.families import build_network
from actdet.training.config import TrainConfig
from actdet.training.train_step import TrainStep

# FLOP of a step that is tried. It takes seconds on a slow core, and is enough to try a batch of small clips whole.
_TRIAL_FLOP = 2e11

# FLOP of a step for each pixel of a frame, with the report's network: a clip of 16 x 112 x 112 takes 243 * 10^9,
# forward and backward. The costliest settings of any family, tubelets whose features keep all frames, take so many
# times as many.
_FLOP_PER_PIXEL = 1.21e6
_COSTLIEST = 2.2

# The share of a step's FLOP that is left while pictures are small, and while the backbone is shallow.
_SMALL_SHARE = 0.54
_SHALLOW_SHARE = 0.49

# Any core does so many FLOP in a second. If an epoch takes less than a minute at this rate, it need not be tried.
_LEAST_FLOP_PER_SECOND = 5e9


def seconds_per_clip(model: FamilyConfig, config: TrainConfig, dtype: torch.dtype) -> float:
    """Time the training step on this CPU, without decoding.

    Three steps are done on noise, and the last one counts: in those before it, libraries set themselves up and memory
    is fetched. If the clips are large, a smaller batch is tried. The random state is left as it was.

    Args:
        model: The detector's settings.
        config: The training's settings.
        dtype: The network's arithmetic.

    Returns:
        Seconds of a step for each clip of its batch.
    """
    device = torch.device("cpu")
    prepare_device(device)
    clips = max(1, min(config.batch_size, int(_TRIAL_FLOP / step_flop(model))))
    shape = (clips, model.frames, model.image_size, model.image_size, 3)
    with torch.random.fork_rng(devices=[]):
        # The convolutions of a new detector are flat, as the plan has them on every CPU.
        step = TrainStep(build_network(model), config, device, dtype, "eager")
        targets = centered_targets(step.detector.truth, clips, model.frames)
        batch = Batch(torch.randn(shape).permute(0, 4, 1, 2, 3), targets)
        seconds = 0.0
        for number in range(3):
            started = time.monotonic()
            step.run(batch, lr=0.0, seed=0, number=number)
            seconds = time.monotonic() - started
    return seconds / clips


def step_flop(model: FamilyConfig) -> float:
    """Estimate the FLOP of a step of the report's network for each clip; `actdet.training.cost` counts them exactly."""
    return _FLOP_PER_PIXEL * model.frames * model.image_size**2


def is_short(model: FamilyConfig, clips: int) -> bool:
    """Return whether an epoch over so many clips certainly takes less than a minute."""
    return clips * _COSTLIEST * step_flop(model) < 60 * _LEAST_FLOP_PER_SECOND


def training_seconds(config: TrainConfig, epoch_seconds: float) -> float:
    """Return how long a training takes.

    Args:
        config: Its settings.
        epoch_seconds: How long an epoch takes that is neither small nor shallow.
    """
    small = config.small_epochs
    shallow = config.shallow_epochs
    both = min(small, shallow)
    whole = config.epochs - max(small, shallow)
    partial = (small - both) * _SMALL_SHARE + (shallow - both) * _SHALLOW_SHARE + both * _SMALL_SHARE * _SHALLOW_SHARE
    return epoch_seconds * (whole + partial)


def describe_duration(model: FamilyConfig, config: TrainConfig, epoch_seconds: float) -> str | None:
    """Say how long a training takes, and which option makes it shorter; None if an epoch takes at most a minute.

    Args:
        model: The detector's settings.
        config: The training's settings.
        epoch_seconds: How long an epoch takes.
    """
    if epoch_seconds <= 60:
        return None
    return (
        f"an epoch takes about {in_words(epoch_seconds)} here, all {config.epochs} about "
        f"{in_words(training_seconds(config, epoch_seconds))}: {_advice(model, epoch_seconds)}"
    )


def in_words(seconds: float) -> str:
    """Return for instance 40 s, 3 min 20 s, 5 h 10 min or 2 days: an estimate knows no more than two figures."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds, -1), 60)
        return f"{minutes:.0f} min {rest:.0f} s" if rest else f"{minutes:.0f} min"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{round(minutes / 1440)} days"


def _advice(model: FamilyConfig, epoch_seconds: float) -> str:
    """Name an option that makes an epoch shorter, and say by how much."""
    smaller = model.image_size // 32 * 16
    if smaller >= 48:
        share = (smaller / model.image_size) ** 2
        return f"with --image-size {smaller} about {in_words(epoch_seconds * share)} each"
    if model.frames > 8:
        fewer = model.frames // 16 * 8
        return f"with --frames {fewer} about {in_words(epoch_seconds * fewer / model.frames)} each"
    return "fewer --epochs take less"

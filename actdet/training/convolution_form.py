"""Whether the backbone's factorized convolutions are computed in two dimensions or in three.

Both forms are the same function (`actdet.models.backbones.convolution`). Which one is faster depends on the GPU, on the
shape of the clips and on the arithmetic, so it is measured, once, for the plan of a training.
"""

from __future__ import annotations

import time

import torch

from actdet.device import lay_channels_last, prepare_device
from actdet.models.backbones.convolution import set_flat
from actdet.models.config import FamilyConfig
from actdet.models.families import build_network

# cuDNN chooses its algorithms in the first passes, so the fastest of several counts.
_PASSES = 5


def choose_convolutions(model: FamilyConfig, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Choose the form of the factorized convolutions.

    On a GPU this takes seconds: it times forward and backward passes of both forms over a batch of random clips, or
    over the largest half, quarter and so on of the batch that fits into the free memory.

    Args:
        model: The settings of the network whose backbone is trained.
        batch: Clips in a batch (B).
        device: Where the network is trained.
        dtype: The network's arithmetic.

    Returns:
        Whether the convolutions are to be flat (two-dimensional), and why in a few words.
    """
    if device.type != "cuda":
        return True, "on a CPU 3-D ones err in bf16"

    prepare_device(device)
    whole = batch
    while batch:
        try:
            flat_seconds = _seconds_of_passes(model, True, batch, device, dtype)
            solid_seconds = _seconds_of_passes(model, False, batch, device, dtype)
        except torch.OutOfMemoryError:
            batch //= 2
            continue
        finally:
            # A training runs on a stream of its own and cannot use the memory that PyTorch keeps for this one.
            torch.cuda.empty_cache()

        flat = flat_seconds <= solid_seconds
        faster = min(flat_seconds, solid_seconds)
        slower = max(flat_seconds, solid_seconds)
        clips = "" if batch == whole else f" of {batch} clips"
        return flat, f"{1e3 * faster:.1f} ms a step{clips} against {1e3 * slower:.1f}"
    return True, "too little memory to measure"


def _seconds_of_passes(model: FamilyConfig, flat: bool, batch: int, device: torch.device, dtype: torch.dtype) -> float:
    """Time a forward and a backward pass of a new backbone over random clips; the random state is left as it was.

    Args:
        model: The settings of the network that has the backbone.
        flat: The form of its convolutions.
        batch: How many clips.
        device: Where to compute.
        dtype: The arithmetic.

    Returns:
        Seconds of both passes together, the least of several tries.
    """
    side = model.image_size
    with torch.random.fork_rng([device]):
        backbone = build_network(model).backbone.to(device).train()
        lay_channels_last(backbone)
        clips = torch.randn(batch, model.frames, side, side, 3, device=device).permute(0, 4, 1, 2, 3)
    set_flat(backbone, flat)

    times = []
    for _ in range(_PASSES):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features = backbone(clips)
        features.float().mean().backward()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)

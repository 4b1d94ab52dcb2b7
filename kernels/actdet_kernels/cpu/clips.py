"""Makes training clips out of a pool of video frames, and computes the mean of each frame (src/clips.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import in_memory, pointer
from actdet_kernels.reference import IMAGENET_MEAN, IMAGENET_STD

# The dtypes that the C++ code writes. For float16 it writes float32, which PyTorch rounds.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}


def gather_clips(
    frames: Tensor,
    indices: Tensor,
    crops: Tensor | None,
    color: Tensor | None,
    frame_means: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the clips, (B, 3, T, H, W) of `dtype`, channels_last_3d."""
    written = dtype if dtype in TYPES else torch.float32
    out = arguments.empty((*indices.shape, *frames.shape[1:]), written)
    tensors = (
        in_memory(frames, torch.uint8),
        in_memory(indices, torch.int64),
        *(None if value is None else in_memory(value, torch.float32) for value in (crops, color, frame_means)),
        out,
    )
    native.gather_clips(
        TYPES[written],
        torch.get_num_threads(),
        *map(pointer, tensors),
        len(frames),
        *indices.shape,
        *frames.shape[1:3],
        *IMAGENET_MEAN,
        *IMAGENET_STD,
    )
    return out.to(frames.device, dtype).permute(0, 4, 1, 2, 3)


def frame_levels(frames: Tensor) -> Tensor:
    """Return the mean of each frame (F, H, W, 3) as (F,) float32."""
    values = in_memory(frames, torch.uint8)
    frame_means = arguments.empty((len(frames),), torch.float32)
    native.frame_levels(torch.get_num_threads(), pointer(values), pointer(frame_means), len(frames), frames[0].numel())
    return frame_means.to(frames.device)

"""Clips to train on, out of cached frames of video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.operators import LIBRARY, operator

# The largest side of a picture that is stretched: the middles of its pixels are float32 numbers.
LARGEST_SIDE = 2**23

# The most pixels of a frame: the kernel's offsets within it have 32 bits.
MAX_PIXELS = 2**29


@torch.no_grad()
def gather_clips(
    frames: Tensor,
    indices: Tensor,
    windows: Tensor | None = None,
    colour: Tensor | None = None,
    levels: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> Tensor:
    """Clips of cached frames, changed and normalised (ImageNet's mean and standard deviation) for a network.

    frames: (F, H, W, 3) uint8, contiguous RGB, of any number of videos. indices: (B, T) int64, the frame that is frame
        t of clip b.
    windows: (B, 4) float32 left, top, width, height of the part that is stretched to the whole picture, in [0, 1] of
        it. A negative width mirrors, left being the right edge then. Bilinear; what lies outside of the picture is as
        its border, as in `grid_sample(padding_mode="border", align_corners=False)`. None leaves every pixel as it is.
        Places are float32, so that a side of such a picture has at most 2^23 pixels.
    colour: (B, 3) float32 factors of brightness (everything), contrast (the distance from the mean of the clip, as it
        was before window and colour) and saturation (the distance from grey, the mean of the channels), in this order;
        clamped to [0, 1] at the end.
    levels: (F,) float32 from `frame_levels`; where there is `colour` only.
    dtype: float16, bfloat16, float32, or float64, which Triton does not compute.
    Returns (B, 3, T, H, W), channels_last_3d. A frame is NaN where its index is not in [0, F), or its clip's window,
    colour or mean level is not finite. No gradient. Raises ValueError where shapes, dtypes or devices disagree.
    """
    _check_clips(frames, indices, windows, colour, levels)
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    return _gather_clips(frames, indices, windows, colour, None if colour is None else levels, dtype, backend)


@torch.no_grad()
def frame_levels(frames: Tensor, *, backend: Backend = "auto") -> Tensor:
    """The mean of every frame over its pixels and channels, in [0, 1]: (F, H, W, 3) uint8 to (F,) float32.

    Of the exact sum. There is no Triton kernel for it. Raises ValueError for other frames than `gather_clips` takes.
    """
    _check_frames(frames)
    compute = implementation(
        backend,
        frames.device,
        kernels=lambda chosen, frames: kernel_module(chosen, "clips").frame_levels(frames),
        reference=reference.frame_levels,
        obstacle="no Triton kernel computes levels",
        cpu_obstacle=_elsewhere(frames),
    )
    return compute(frames)


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ValueError(f"frames must be (F, H, W, 3) and not empty, got {tuple(frames.shape)}")
    if frames.dtype != torch.uint8 or not frames.is_contiguous():
        raise ValueError(f"frames must be uint8 and contiguous, got {frames.dtype} with strides {frames.stride()}")


def _check_clips(
    frames: Tensor, indices: Tensor, windows: Tensor | None, colour: Tensor | None, levels: Tensor | None
) -> None:
    _check_frames(frames)
    if indices.ndim != 2:
        raise ValueError(f"indices must be (B, T), got {tuple(indices.shape)}")
    height, width = frames.shape[1:3]
    if windows is not None and max(height, width) > LARGEST_SIDE:
        raise ValueError(f"with windows, frames may have at most {LARGEST_SIDE} pixels a side, got {height} x {width}")
    if colour is not None and levels is None:
        raise ValueError("colour needs the levels of the frames: frame_levels(frames)")
    batch = indices.shape[0]
    for name, tensor, shape, dtype in (
        ("indices", indices, tuple(indices.shape), torch.int64),
        ("windows", windows, (batch, 4), torch.float32),
        ("colour", colour, (batch, 3), torch.float32),
        ("levels", levels, (frames.shape[0],), torch.float32),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != dtype or tensor.device != frames.device:
            raise ValueError(f"{name} must be {dtype} on {frames.device}, got {tensor.dtype} on {tensor.device}")


@operator(
    "gather_clips(Tensor frames, Tensor indices, Tensor? windows, Tensor? colour, Tensor? levels, ScalarType dtype, "
    "str backend) -> Tensor"
)
def _gather_clips(
    frames: Tensor,
    indices: Tensor,
    windows: Tensor | None,
    colour: Tensor | None,
    levels: Tensor | None,
    dtype: torch.dtype,
    backend: Any,
) -> Tensor:
    """(B, 3, T, H, W) of `dtype`, channels_last_3d."""
    compute = implementation(
        backend,
        frames.device,
        kernels=_by_kernels,
        reference=reference.gather_clips,
        obstacle=_obstacle(frames, dtype),
        cpu_obstacle=_elsewhere(frames),
    )
    return compute(frames, indices, windows, colour, levels, dtype)


def _by_kernels(chosen: str, *arguments: Any) -> Tensor:
    return kernel_module(chosen, "clips").gather_clips(*arguments)


def _obstacle(frames: Tensor, dtype: torch.dtype) -> str | None:
    """Why the kernel does not compute these clips, if it does not."""
    height, width = frames.shape[1:3]
    if height * width > MAX_PIXELS:
        return f"{height} x {width} is more than {MAX_PIXELS} pixels"
    return "clips are computed in float32" if dtype == torch.float64 else None


def _elsewhere(frames: Tensor) -> str | None:
    """Why the C++ code does not compute of these frames: a pool of gigabytes is not copied for it."""
    return None if frames.device.type == "cpu" else f"the frames are on {frames.device}"


@torch.library.register_fake("actdet_kernels::gather_clips", lib=LIBRARY)
def _shape(frames: Tensor, indices: Tensor, *rest: Any) -> Tensor:
    dtype = rest[-2]
    return frames.new_empty((*indices.shape, *frames.shape[1:]), dtype=dtype).permute(0, 4, 1, 2, 3)

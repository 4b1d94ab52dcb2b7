"""Clips to train on, out of cached frames of video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.operators import LIBRARY, operator

# The largest side of a picture that is cropped. The centers of its pixels must be exact in float32.
LARGEST_SIDE = 2**23

# The most pixels of a frame. The kernel's offsets within a frame have 32 bits.
MAX_PIXELS = 2**29


@torch.no_grad()
def gather_clips(
    frames: Tensor,
    indices: Tensor,
    crops: Tensor | None = None,
    color: Tensor | None = None,
    frame_means: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> Tensor:
    """Make a batch of clips out of cached frames: cropped, recolored, and normalized for a network.

    Pixels are normalized by ImageNet's mean and standard deviation. There is no gradient.

    Args:
        frames: (F, H, W, 3) uint8, contiguous RGB, from any number of videos.
        indices: (B, T) int64; frame t of clip b is `frames[indices[b, t]]`.
        crops: (B, 4) float32 left, top, width and height of the part of the picture that is scaled to the whole
            picture, in units of its sides. A negative width mirrors the clip; left is then the right edge. Pixels are
            interpolated bilinearly. Outside of the picture its border continues, as in
            `grid_sample(padding_mode="border", align_corners=False)`. None leaves every pixel where it is. With crops,
            a side may have at most 2^23 pixels, because coordinates are float32.
        color: (B, 3) float32 factors of brightness, contrast and saturation, which are applied in this order.
            Brightness scales everything, contrast the distance from the clip's mean, and saturation the distance from
            gray, the mean of the channels. The clip's mean is that before any change. The result is clamped to [0, 1].
            None leaves colors as they are.
        frame_means: (F,) float32, the result of `frame_levels(frames)`. Needed with `color`, and ignored without it.
        dtype: The dtype of the clips: float16, bfloat16, float32 or float64. Triton does not compute float64.
        backend: See `explain_backend`.

    Returns:
        (B, 3, T, H, W) of `dtype`, channels_last_3d. A frame is NaN if its index is not in [0, F), or if the crop, the
        color or the mean of its clip is not finite.

    Raises:
        ValueError: Shapes, dtypes or devices disagree.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    _check_clips(frames, indices, crops, color, frame_means)
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    return _gather_clips(frames, indices, crops, color, None if color is None else frame_means, dtype, backend)


@torch.no_grad()
def frame_levels(frames: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Compute the mean of every frame over its pixels and channels, from the exact sum.

    Args:
        frames: (F, H, W, 3) uint8, contiguous.
        backend: See `explain_backend`. There is no Triton kernel for this operation.

    Returns:
        (F,) float32 in [0, 1].

    Raises:
        ValueError: The frames are not such as `gather_clips` takes.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    _check_frames(frames)
    compute = implementation(
        backend,
        frames.device,
        kernels=lambda chosen, frames: kernel_module(chosen, "clips").frame_levels(frames),
        reference=reference.frame_levels,
        obstacle="no Triton kernel computes the means of frames",
        cpu_obstacle=_elsewhere(frames),
    )
    return compute(frames)


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ValueError(f"frames must be (F, H, W, 3) and not empty, got {tuple(frames.shape)}")
    if frames.dtype != torch.uint8 or not frames.is_contiguous():
        raise ValueError(f"frames must be uint8 and contiguous, got {frames.dtype} with strides {frames.stride()}")


def _check_clips(
    frames: Tensor, indices: Tensor, crops: Tensor | None, color: Tensor | None, frame_means: Tensor | None
) -> None:
    _check_frames(frames)
    if indices.ndim != 2:
        raise ValueError(f"indices must be (B, T), got {tuple(indices.shape)}")

    height, width = frames.shape[1:3]
    if crops is not None and max(height, width) > LARGEST_SIDE:
        raise ValueError(f"with crops, frames may have at most {LARGEST_SIDE} pixels a side, got {height} x {width}")
    if color is not None and frame_means is None:
        raise ValueError("color needs frame_means, the result of frame_levels(frames)")

    batch = indices.shape[0]
    for name, tensor, shape, dtype in (
        ("indices", indices, tuple(indices.shape), torch.int64),
        ("crops", crops, (batch, 4), torch.float32),
        ("color", color, (batch, 3), torch.float32),
        ("frame_means", frame_means, (frames.shape[0],), torch.float32),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != dtype or tensor.device != frames.device:
            raise ValueError(f"{name} must be {dtype} on {frames.device}, got {tensor.dtype} on {tensor.device}")


@operator(
    "gather_clips(Tensor frames, Tensor indices, Tensor? crops, Tensor? color, Tensor? frame_means, ScalarType dtype, "
    "str backend) -> Tensor"
)
def _gather_clips(
    frames: Tensor,
    indices: Tensor,
    crops: Tensor | None,
    color: Tensor | None,
    frame_means: Tensor | None,
    dtype: torch.dtype,
    backend: Any,
) -> Tensor:
    """Return the clips, (B, 3, T, H, W) of `dtype`, channels_last_3d."""
    compute = implementation(
        backend,
        frames.device,
        kernels=_by_kernels,
        reference=reference.gather_clips,
        obstacle=_obstacle(frames, dtype),
        cpu_obstacle=_elsewhere(frames),
    )
    return compute(frames, indices, crops, color, frame_means, dtype)


def _by_kernels(chosen: str, *arguments: Any) -> Tensor:
    return kernel_module(chosen, "clips").gather_clips(*arguments)


def _obstacle(frames: Tensor, dtype: torch.dtype) -> str | None:
    """Return why the Triton kernel cannot compute these clips, or None if it can."""
    height, width = frames.shape[1:3]
    if height * width > MAX_PIXELS:
        return f"{height} x {width} is more than {MAX_PIXELS} pixels"
    return "clips are computed in float32" if dtype == torch.float64 else None


def _elsewhere(frames: Tensor) -> str | None:
    """Return why the C++ kernels do not read these frames, or None if they do.

    Frames on another device are not copied to the CPU, because a pool may have gigabytes.
    """
    return None if frames.device.type == "cpu" else f"the frames are on {frames.device}"


@torch.library.register_fake("actdet_kernels::gather_clips", lib=LIBRARY)
def _shape(frames: Tensor, indices: Tensor, *rest: Any) -> Tensor:
    dtype = rest[-2]
    return frames.new_empty((*indices.shape, *frames.shape[1:]), dtype=dtype).permute(0, 4, 1, 2, 3)

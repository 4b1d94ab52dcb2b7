"""Multi-scale deformable attention: every query reads each level of features at a few points of its own.

out_qh = sum over l, p of weights_qhlp * values_l,h(points_qhlp)        bilinear, and 0 outside of the picture

This is equation 3 of Deformable DETR (Zhu et al. 2021) without its linear layers. From top to bottom: the public
function, its checks, the way through the kernels with its autograd function, and the operators of the result and the
gradient with their shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.operators import LIBRARY, operator

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The Triton kernels' offsets within the features of a sample have 32 bits.
MAX_VALUES = 2**31 - 1

# Triton's atomic instructions tell the order of memory, which older GPUs do not know.
LEAST_CAPABILITY = (7, 0)


def deformable_attention(
    values: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: Sequence[tuple[int, int]],
    mask: Tensor | None = None,
    *,
    deterministic: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Add up features at the points of each query, weighted. Features between four pixels are interpolated bilinearly.

    The pixel in row i and column j of a level of (height, width) has its center at ((j + 1/2) / width, (i + 1/2) /
    height), as in `grid_sample(align_corners=False)`. Outside of the picture features are 0.

    For video, let queries of a frame read that frame alone: make frames samples, B*T of them. Or let them read all T
    frames: values (B, T*S, H, D), `sizes` T times one after the other, and T times the points.

    Args:
        values: (B, S, H, D) floating point, the features of all levels, one level after the other and each row by row,
            of H heads.
        points: (B, Q, H, L, P, 2) floating point, x and y in units of the picture's sides.
        weights: (B, Q, H, L, P) floating point, usually a softmax over levels and points.
        sizes: Height and width of each of the L levels, which have S pixels together.
        mask: (B, S) bool, False where a pixel is padding, whose features count as 0. None if all are real.
        deterministic: Whether two runs give the same bits. The gradient of `values` has sums over queries, which the
            Triton kernels then add up as integers: in 62 bits, of the largest that a sum can be. If not, they are
            added up in float32 in any order. The other backends are always deterministic on a CPU.
        backend: See `explain_backend`.

    Returns:
        (B, Q, H * D) of values' dtype, computed in float32, or float64 if any of the inputs is. A point that is not
        finite is outside of the picture.

    Raises:
        ValueError: Shapes, dtypes or devices disagree.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    sizes = _check_sizes(sizes)
    _check_tensors(values, points, weights, sizes, mask)
    compute = implementation(
        backend,
        values.device,
        kernels=_by_kernels,
        reference=reference.deformable_attention,
        obstacle=_obstacle(values),
    )
    return compute(values, points, weights, sizes, mask, deterministic)


def _check_sizes(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the sizes as a list of pairs."""
    checked: list[tuple[int, int]] = []
    for size in sizes:
        height, width = size if len(size) == 2 else (0, 0)
        if not (_is_side(height) and _is_side(width)):
            raise ValueError(f"sizes must be (height, width) of every level, two positive integers, got {tuple(size)}")
        checked.append((int(height), int(width)))
    if not checked:
        raise ValueError("sizes must have at least one level")
    return checked


def _is_side(value: object) -> bool:
    # The compiler of PyTorch 2.7 does not know `int | np.integer`.
    return isinstance(value, (int, np.integer)) and bool(value >= 1)


def _check_tensors(
    values: Tensor, points: Tensor, weights: Tensor, sizes: list[tuple[int, int]], mask: Tensor | None
) -> None:
    if values.ndim != 4 or points.ndim != 6:
        shapes = f"{tuple(values.shape)} and {tuple(points.shape)}"
        raise ValueError(f"values must be (B, S, H, D) and points (B, Q, H, L, P, 2), got {shapes}")

    batch, pixels, heads, _ = values.shape
    queries = points.shape[1]
    expected_pixels = sum(height * width for height, width in sizes)
    if pixels != expected_pixels:
        raise ValueError(f"values have {pixels} pixels, but levels of {sizes} have {expected_pixels}")

    expected = (batch, queries, heads, len(sizes), points.shape[4])
    for name, tensor, shape in (("points", points, (*expected, 2)), ("weights", weights, expected)):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
    for name, tensor in (("values", values), ("points", points), ("weights", weights)):
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.device != values.device:
            raise ValueError(f"{name} are on {tensor.device}, values on {values.device}")

    if mask is None:
        return
    if tuple(mask.shape) != (batch, pixels) or mask.dtype != torch.bool:
        raise ValueError(f"mask must be {(batch, pixels)} bool, got {tuple(mask.shape)} {mask.dtype}")
    if mask.device != values.device:
        raise ValueError(f"mask is on {mask.device}, values on {values.device}")


def _obstacle(values: Tensor) -> str | None:
    """Return why the Triton kernels cannot read these features, or None if they can."""
    size = values[:1].numel()
    if size > MAX_VALUES:
        return f"a sample has {size} values, more than {MAX_VALUES}"
    if values.is_cuda and torch.cuda.get_device_capability(values.device) < LEAST_CAPABILITY:
        return "the gradient of deformable attention needs a compute capability of 7.0"
    return None


def _by_kernels(
    chosen: str,
    values: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: list[tuple[int, int]],
    mask: Tensor | None,
    deterministic: bool,
) -> Tensor:
    flat_sizes = [side for size in sizes for side in size]
    return DifferentiableDeformableAttention.apply(values, points, weights, flat_sizes, mask, deterministic, chosen)


class DifferentiableDeformableAttention(torch.autograd.Function):
    """`deformable_attention` by the kernels, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        points: Tensor,
        weights: Tensor,
        sizes: list[int],
        mask: Tensor | None,
        deterministic: bool,
        chosen: str,
    ) -> Tensor:
        ctx.save_for_backward(values, points, weights, mask)
        ctx.options = sizes, deterministic, chosen
        return _deformable_attention(values, points, weights, sizes, mask, chosen)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, points, weights, mask = ctx.saved_tensors
        sizes, deterministic, chosen = ctx.options
        gradients = _deformable_attention_gradient(d_out, values, points, weights, sizes, mask, deterministic, chosen)
        return *gradients, None, None, None, None


@operator(
    "deformable_attention(Tensor values, Tensor points, Tensor weights, int[] sizes, Tensor? mask, str chosen)"
    " -> Tensor"
)
def _deformable_attention(
    values: Tensor, points: Tensor, weights: Tensor, sizes: list[int], mask: Tensor | None, chosen: str
) -> Tensor:
    """Return (B, Q, H * D) of values' dtype. `sizes` are height, width, height, ..."""
    return kernel_module(chosen, "deformable").deformable_attention(values, points, weights, tuple(sizes), mask)


@torch.library.register_fake("actdet_kernels::deformable_attention", lib=LIBRARY)
def _shape(values: Tensor, points: Tensor, *rest: Any) -> Tensor:
    return values.new_empty((*points.shape[:2], values.shape[2] * values.shape[3]))


@operator(
    "deformable_attention_gradient(Tensor d_out, Tensor values, Tensor points, Tensor weights, int[] sizes,"
    " Tensor? mask, bool deterministic, str chosen) -> (Tensor, Tensor, Tensor)"
)
def _deformable_attention_gradient(
    d_out: Tensor,
    values: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: list[int],
    mask: Tensor | None,
    deterministic: bool,
    chosen: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of values, points and weights, contiguous and of their dtypes."""
    compute = kernel_module(chosen, "deformable").deformable_attention_gradient
    return compute(d_out, values, points, weights, tuple(sizes), mask, deterministic)


@torch.library.register_fake("actdet_kernels::deformable_attention_gradient", lib=LIBRARY)
def _gradient_shapes(d_out: Tensor, values: Tensor, points: Tensor, weights: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(given.new_empty(given.shape) for given in (values, points, weights))


def _no_second_derivative(ctx: Any, *cotangents: Tensor | None) -> Any:
    raise RuntimeError("deformable_attention has no second derivative with the kernels: use backend='reference'")


torch.library.register_autograd("actdet_kernels::deformable_attention_gradient", _no_second_derivative, lib=LIBRARY)

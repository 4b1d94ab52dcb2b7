"""Reads features at points between pixels, and adds them up weighted, and the gradient of that (src/deformable.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import head, in_memory, pointer


def deformable_attention(
    values: Tensor, points: Tensor, weights: Tensor, sizes: tuple[int, ...], mask: Tensor | None
) -> Tensor:
    """Return (B, Q, H * D) of values' dtype. `sizes` are height, width, height, ..."""
    given = _in_memory(values, points, weights, sizes, mask)
    out = arguments.empty((*points.shape[:2], values.shape[2] * values.shape[3]), given[0].dtype)
    native.deformable_attention(
        *head(out.dtype), *map(pointer, given), pointer(out), 0, 0, 0, 0, *_sizes(values, points)
    )
    return out.to(values.device, values.dtype)


def deformable_attention_gradient(
    d_out: Tensor,
    values: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: tuple[int, ...],
    mask: Tensor | None,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of values, points and weights, given that of the result. They are always deterministic."""
    given = _in_memory(values, points, weights, sizes, mask)
    dtype = given[0].dtype
    d_out = in_memory(d_out, dtype)
    gradients = [arguments.empty(tuple(tensor.shape), dtype) for tensor in (values, points, weights)]
    native.deformable_attention_gradient(
        *head(dtype), *map(pointer, given), 0, pointer(d_out), *map(pointer, gradients), *_sizes(values, points)
    )
    d_values, d_points, d_weights = gradients
    return (
        d_values.to(values.device, values.dtype),
        d_points.to(points.device, points.dtype),
        d_weights.to(weights.device, weights.dtype),
    )


def _in_memory(
    values: Tensor, points: Tensor, weights: Tensor, sizes: tuple[int, ...], mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return the tensors that a call reads, of the dtype of its arithmetic."""
    dtype = torch.promote_types(torch.promote_types(values.dtype, points.dtype), weights.dtype)
    dtype = arguments.compute_dtype(dtype)
    return (
        in_memory(values, dtype),
        in_memory(points, dtype),
        in_memory(weights, dtype),
        torch.tensor(sizes, dtype=torch.int64),
        None if mask is None else in_memory(mask, torch.bool),
    )


def _sizes(values: Tensor, points: Tensor) -> tuple[int, ...]:
    """Return the sizes of `DeformableArguments` in src/operations.hpp."""
    _, queries, _, levels, points_each, _ = points.shape
    return (*values.shape, queries, levels, points_each)

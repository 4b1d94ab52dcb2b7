"""The operators as PyTorch's dispatcher knows them: one boundary for each, behind which the implementation is chosen.

Tracing (torch.compile, export, fake tensors) sees an operator and its shapes, and never what is inside: neither a
kernel's launch nor the reference's way through SciPy. Targets are flat arguments here; `visible` is None for boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import choose_backend
from actdet_kernels.targets import Targets, Tubelets

MAX_SIZE = 2**15  # queries or targets in one problem: the kernels keep a pair of them in 32 bits
MAX_PIXELS = 2**29  # in one frame: the kernel's offsets within it have 32 bits

TARGETS = "Tensor labels, Tensor target_boxes, Tensor counts, Tensor? visible"
WEIGHTS = "float[] weights"
LOSS = f"{WEIGHTS}, float no_object_weight, str class_loss, bool per_layer"
LIBRARY = torch.library.Library("actdet_kernels", "DEF")


def operator(schema: str, shapes: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an operator of a function; `shapes` gives outputs of the right shape and dtype without looking at values."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.split("(")[0]
        LIBRARY.define(schema)
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"actdet_kernels::{name}", shapes, lib=LIBRARY)
        return getattr(torch.ops.actdet_kernels, name).default

    return register


def flat(targets: Targets | Tubelets) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A batch of targets as the operators take it."""
    visible = targets.visible if isinstance(targets, Tubelets) else None
    return targets.labels, targets.boxes, targets.counts, visible


def _targets(labels: Tensor, boxes: Tensor, counts: Tensor, visible: Tensor | None) -> Targets | Tubelets:
    return Targets(labels, boxes, counts) if visible is None else Tubelets(labels, boxes, counts, visible)


def _cost_shape(logits: Tensor, boxes: Tensor, labels: Tensor, *rest: Any) -> Tensor:
    shape = (*logits.shape[:-2], labels.shape[1], logits.shape[-2])
    return logits.new_empty(shape, dtype=torch.promote_types(logits.dtype, boxes.dtype))


@operator(
    f"pairwise_cost(Tensor logits, Tensor boxes, {TARGETS}, {WEIGHTS}, str class_cost, str backend) -> Tensor",
    _cost_shape,
)
def pairwise_cost(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor | None,
    weights: tuple[float, float, float],
    class_cost: str,
    backend: Any,
) -> Tensor:
    """The cost as (..., B, M, N): so the assignment reads it, a target after the other."""
    targets = _targets(labels, target_boxes, counts, visible)
    dtype = torch.promote_types(logits.dtype, boxes.dtype)
    if choose_backend(backend, logits.device) == "triton":
        from actdet_kernels.triton import cost

        return cost.pairwise_cost(logits, boxes, targets, weights, class_cost, dtype)
    return reference.pairwise_cost(logits, boxes, targets, weights, class_cost).mT.to(dtype).contiguous()


def _assignment_shapes(cost: Tensor, counts: Tensor | None, maximize: bool, duals: bool, backend: str) -> Any:
    batch, rows, columns = cost.shape
    sides = (cost.new_empty((batch, size), dtype=torch.int64) for size in (columns, rows))
    dtype = reference.dual_dtype(cost.dtype)
    prices = (cost.new_empty((batch, size if duals else 0), dtype=dtype) for size in (rows, columns))
    return *sides, *prices, cost.new_empty(batch, dtype=torch.int32)


@operator(
    "assign(Tensor cost, Tensor? counts, bool maximize, bool duals, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _assignment_shapes,
)
def assign(cost: Tensor, counts: Tensor | None, maximize: bool, duals: bool, backend: Any) -> tuple[Tensor, ...]:
    """The fields of `operations.Assignment`; the duals are empty where they are not asked for."""
    if choose_backend(backend, cost.device, _too_large(*cost.shape[1:])) == "triton":
        from actdet_kernels.triton import assignment

        return assignment.solve_assignment(cost, counts, maximize, duals)
    return reference.solve_assignment(cost, counts, maximize, duals)


def _match_shapes(logits: Tensor, boxes: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    problems = logits.shape[:-2]
    matched = logits.new_empty((*problems, labels.shape[1]), dtype=torch.int64)
    return matched, logits.new_empty(problems, dtype=torch.int32)


@operator(
    f"match(Tensor logits, Tensor boxes, {TARGETS}, {WEIGHTS}, str class_cost, str backend) -> (Tensor, Tensor)",
    _match_shapes,
)
def match(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor | None,
    weights: tuple[float, float, float],
    class_cost: str,
    backend: Any,
) -> tuple[Tensor, Tensor]:
    """The query of each target (..., B, M) and the status of each problem (..., B)."""
    targets = _targets(labels, target_boxes, counts, visible)
    if choose_backend(backend, logits.device, _too_large(logits.shape[-2], labels.shape[1])) == "triton":
        from actdet_kernels.triton import matching

        return matching.match(logits, boxes, targets, weights, class_cost)
    cost = reference.pairwise_cost(logits, boxes, targets, weights, class_cost)
    problems = cost.shape[:-2]
    every = counts.expand(problems).reshape(-1)
    matched, *_, status = reference.solve_assignment(cost.flatten(0, -3), every, maximize=False, duals=False)
    return matched.view(*problems, labels.shape[1]), status.view(problems)


def _loss_shapes(logits: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    per_layer, leading = rest[-1], logits.shape[:-3]
    dtype = torch.promote_types(torch.promote_types(logits.dtype, boxes.dtype), torch.float32)
    losses = (logits.new_empty(leading if per_layer else (), dtype=dtype) for _ in range(4))
    return *losses, logits.new_empty((2, leading.numel()), dtype=dtype)


@operator(
    f"set_loss(Tensor logits, Tensor boxes, {TARGETS}, Tensor matched, {LOSS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _loss_shapes,
)
def set_loss(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor | None,
    matched: Tensor,
    weights: tuple[float, float, float],
    no_object_weight: float,
    class_loss: str,
    per_layer: bool,
) -> tuple[Tensor, ...]:
    """total, cls, l1, giou, and the divisors that the gradient needs; by the kernels, as what follows."""
    from actdet_kernels.triton import loss

    targets = _targets(labels, target_boxes, counts, visible)
    return loss.set_loss(logits, boxes, targets, matched, weights, no_object_weight, class_loss, per_layer)


def _gradient_shapes(logits: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape), boxes.new_empty(boxes.shape)


@operator(
    f"set_loss_gradient(Tensor logits, Tensor boxes, {TARGETS}, Tensor matched, Tensor divisors, "
    f"Tensor? d_total, Tensor? d_cls, Tensor? d_l1, Tensor? d_giou, {LOSS}) -> (Tensor, Tensor)",
    _gradient_shapes,
)
def set_loss_gradient(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor | None,
    matched: Tensor,
    divisors: Tensor,
    d_total: Tensor | None,
    d_cls: Tensor | None,
    d_l1: Tensor | None,
    d_giou: Tensor | None,
    weights: tuple[float, float, float],
    no_object_weight: float,
    class_loss: str,
    per_layer: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of logits and boxes, from those of the four losses."""
    from actdet_kernels.triton import loss

    targets = _targets(labels, target_boxes, counts, visible)
    cotangents = (d_total, d_cls, d_l1, d_giou)
    options = (weights, no_object_weight, class_loss, per_layer)
    return loss.set_loss_gradient(logits, boxes, targets, matched, divisors, cotangents, *options)


def _no_second_derivative(ctx: Any, *cotangents: Tensor | None) -> Any:
    raise RuntimeError(
        "set_loss has no second derivative with the kernels: take backend='reference' to differentiate its gradient"
    )


# Of the operator, not by `once_differentiable`: that one lets a gradient pass for a constant where what it was given
# wants no gradient, so that a penalty on it would be dropped without a word.
torch.library.register_autograd("actdet_kernels::set_loss_gradient", _no_second_derivative, lib=LIBRARY)


class DifferentiableSetLoss(torch.autograd.Function):
    """`set_loss` with its gradient: total, cls, l1, giou."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *targets_and_matched, weights, no_object_weight, class_loss, per_layer = rest
        *losses, divisors = set_loss(logits, boxes, *rest)
        ctx.save_for_backward(logits, boxes, *targets_and_matched, divisors)
        ctx.options = (weights, no_object_weight, class_loss, per_layer)
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = set_loss_gradient(*ctx.saved_tensors, *cotangents, *ctx.options)
        return *gradients, *[None] * 9


def _clip_shape(frames: Tensor, indices: Tensor, *rest: Any) -> Tensor:
    dtype = rest[-2]
    return frames.new_empty((*indices.shape, *frames.shape[1:]), dtype=dtype).permute(0, 4, 1, 2, 3)


@operator(
    "gather_clips(Tensor frames, Tensor indices, Tensor? windows, Tensor? colour, Tensor? levels, ScalarType dtype, "
    "str backend) -> Tensor",
    _clip_shape,
)
def gather_clips(
    frames: Tensor,
    indices: Tensor,
    windows: Tensor | None,
    colour: Tensor | None,
    levels: Tensor | None,
    dtype: torch.dtype,
    backend: Any,
) -> Tensor:
    """(B, 3, T, H, W) of `dtype`, channels_last_3d."""
    if choose_backend(backend, frames.device, _no_clips(frames, dtype)) == "triton":
        from actdet_kernels.triton import clips

        return clips.gather_clips(frames, indices, windows, colour, levels, dtype)
    return reference.gather_clips(frames, indices, windows, colour, levels, dtype)


def _no_clips(frames: Tensor, dtype: torch.dtype) -> str | None:
    height, width = frames.shape[1:3]
    if height * width > MAX_PIXELS:
        return f"{height} x {width} is more than {MAX_PIXELS} pixels"
    return "clips are computed in float32" if dtype == torch.float64 else None


def _too_large(rows: int, columns: int) -> str | None:
    return f"{rows} x {columns} is larger than {MAX_SIZE}" if max(rows, columns) > MAX_SIZE else None

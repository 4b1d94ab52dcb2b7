"""Computes the losses of matched and unmatched queries, and their gradients (src/loss.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import back_on, in_memory, loss_numbers, pointer, predictions
from actdet_kernels.options import LossOptions
from actdet_kernels.targets import Targets, Tubelets, query_shape


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    class_weights: Tensor | None,
    options: LossOptions,
) -> tuple[Tensor, ...]:
    """Return total, cls, l1 and giou, and what the class losses and the other terms were divided by, (2, layers).

    Losses are those of each layer (...) with `per_layer`, and otherwise their sums ().
    """
    given = predictions(logits, boxes, targets)
    matched = in_memory(matched, torch.int64)
    class_weights = None if class_weights is None else in_memory(class_weights, given.dtype)

    leading = query_shape(boxes, isinstance(targets, Tubelets))[:-2]
    losses = [arguments.empty(tuple(leading) if options.per_layer else (), given.dtype) for _ in range(4)]
    divisors = arguments.empty((2, leading.numel()), given.dtype)

    native.set_loss(
        *given.head,
        *given.numbers,
        *loss_numbers(options),
        pointer(matched),
        pointer(class_weights),
        *options.weights,
        options.per_layer,
        *map(pointer, losses),
        pointer(divisors),
    )
    return back_on(logits, (*losses, divisors))


def set_loss_gradient(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    class_weights: Tensor | None,
    divisors: Tensor,
    cotangents: tuple[Tensor | None, ...],
    options: LossOptions,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of logits and boxes, from those of the four losses, which are None for unused ones."""
    given = predictions(logits, boxes, targets)
    matched = in_memory(matched, torch.int64)
    class_weights = None if class_weights is None else in_memory(class_weights, given.dtype)
    divisors = in_memory(divisors, given.dtype)
    slopes = [None if slope is None else in_memory(slope, given.dtype) for slope in cotangents]

    d_logits = arguments.empty(tuple(logits.shape), given.dtype)
    d_boxes = arguments.empty(tuple(boxes.shape), given.dtype)

    native.set_loss_gradient(
        *given.head,
        *given.numbers,
        *loss_numbers(options),
        pointer(matched),
        pointer(class_weights),
        *options.weights,
        options.per_layer,
        pointer(divisors),
        *map(pointer, slopes),
        pointer(d_logits),
        pointer(d_boxes),
    )
    return d_logits.to(logits.device, logits.dtype), d_boxes.to(boxes.device, boxes.dtype)

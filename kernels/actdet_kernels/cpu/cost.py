"""Computes the matching cost of every query with every target of its sample (src/cost.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import cost_numbers, pointer, predictions
from actdet_kernels.options import CostOptions
from actdet_kernels.targets import Targets, Tubelets, query_shape


def pairwise_cost(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    options: CostOptions,
    dtype: torch.dtype,
) -> Tensor:
    """Return the cost (..., B, M, N) of `dtype`, 0 past a sample's count."""
    given = predictions(logits, boxes, targets)
    *problems, queries = query_shape(boxes, isinstance(targets, Tubelets))
    cost = arguments.empty((*problems, targets.labels.shape[1], queries), given.dtype)
    native.pairwise_cost(*given.head, *given.numbers, *cost_numbers(options), pointer(cost))
    return cost.to(logits.device, dtype)

"""The matching cost of every query with every target (src/cost.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import BOX_TERMS, KINDS, pointer, predictions
from actdet_kernels.targets import Targets, Tubelets


def pairwise_cost(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    weights: tuple[float, float, float],
    class_cost: str,
    alpha: float,
    gamma: float,
    box_term: str,
    dtype: torch.dtype,
) -> Tensor:
    """(..., B, M, N) of `dtype`, 0 past a sample's count."""
    given = predictions(logits, boxes, targets)
    cost = arguments.empty((*logits.shape[:-2], targets.labels.shape[1], logits.shape[-2]), given.dtype)
    options = (*weights, KINDS[class_cost], alpha, gamma, BOX_TERMS[box_term])
    native.pairwise_cost(*given.head, *given.numbers, *options, pointer(cost))
    return cost.to(logits.device, dtype)

"""Finds the cheapest matching (src/assign.hpp).

The costs of a problem, and its assignment, stay in the cache of one thread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import back_on, cost_numbers, pointer, predictions
from actdet_kernels.options import CostOptions
from actdet_kernels.targets import Targets, Tubelets, query_shape


def match(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, options: CostOptions) -> tuple[Tensor, Tensor]:
    """Return the query of each target (..., B, M) and the status of each problem (..., B)."""
    given = predictions(logits, boxes, targets)
    problems = query_shape(boxes, isinstance(targets, Tubelets))[:-1]
    matched = arguments.empty((*problems, targets.labels.shape[1]), torch.int64)
    status = arguments.empty(tuple(problems), torch.int32)

    native.match(*given.head, *given.numbers, *cost_numbers(options), pointer(matched), pointer(status))
    matched, status = back_on(logits, (matched, status))
    return matched, status

"""Solves B assignment problems exactly, by shortest augmenting paths (src/assignment.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import CPU, back_on, head, in_memory, pointer

# What stands for results that are not asked for.
NOTHING = torch.empty(0)


def solve_assignment(cost: Tensor, counts: Tensor | None, maximize: bool, duals: bool) -> tuple[Tensor, ...]:
    """Return the fields of `assignment.Assignment`. Without `duals` all but the first are empty."""
    batch, rows, columns = cost.shape
    dtype = reference.dual_dtype(cost.dtype)

    # The costs may have any strides, which are passed on.
    values = cost if cost.is_cpu and cost.dtype == dtype else cost.detach().to(CPU, dtype)
    counts = None if counts is None else in_memory(counts, torch.int64)

    # A small problem takes less time than a tensor that nobody reads.
    row_of_column = arguments.empty((batch, columns), torch.int64)
    more: tuple[Tensor, ...] = (NOTHING, NOTHING, NOTHING, NOTHING)
    addresses = (0, 0, 0, 0)
    if duals:
        more = (
            arguments.empty((batch, rows), torch.int64),
            arguments.empty((batch, rows), dtype),
            arguments.empty((batch, columns), dtype),
            arguments.empty((batch,), torch.int32),
        )
        addresses = tuple(map(pointer, more))

    native.assign(
        *head(dtype),
        pointer(values),
        *values.shape,
        *values.stride(),
        pointer(counts),
        batch,
        maximize,
        pointer(row_of_column),
        *addresses,
    )
    return back_on(cost, (row_of_column, *more))

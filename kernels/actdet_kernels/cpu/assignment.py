"""Exact assignment of B problems by shortest augmenting paths (src/assignment.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import CPU, head, in_memory, pointer


def solve_assignment(cost: Tensor, counts: Tensor | None, maximize: bool, duals: bool) -> tuple[Tensor, ...]:
    """The fields of `assignment.Assignment`; the duals are empty where they are not asked for."""
    batch, rows, columns = cost.shape
    dtype = reference.dual_dtype(cost.dtype)
    values = cost.detach().to(CPU, dtype)
    counts = None if counts is None else in_memory(counts, torch.int64)
    found = (
        arguments.empty((batch, columns), torch.int64),
        arguments.empty((batch, rows), torch.int64),
        arguments.empty((batch, rows if duals else 0), dtype),
        arguments.empty((batch, columns if duals else 0), dtype),
        arguments.empty((batch,), torch.int32),
    )
    row_of_column, column_of_row, row_dual, column_dual, status = map(pointer, found)
    if not duals:
        row_dual = column_dual = 0
    native.assign(
        *head(dtype),
        pointer(values),
        *values.shape,
        *values.stride(),
        pointer(counts),
        batch,
        maximize,
        row_of_column,
        column_of_row,
        row_dual,
        column_dual,
        status,
    )
    return tuple(field.to(cost.device) for field in found)

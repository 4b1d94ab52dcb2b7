"""Exact rectangular linear assignment of many problems at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.operators import LIBRARY, operator
from actdet_kernels.targets import check_counts

# The most rows or columns of one problem: the kernels keep a pair of them in 32 bits.
MAX_SIZE = 2**15


class Assignment(NamedTuple):
    """The solutions of B assignment problems `cost (B, N, M)`.

    row_of_column: (B, M) int64, column_of_row: (B, N) int64; -1 for none.
    row_dual: (B, N), column_dual: (B, M), 0 past the count. They prove the solution optimal:
        row_dual[i] + column_dual[j] <= cost[i, j] (>= under `maximize`), equal on the pairs, and on the larger side
        0 for who is left over; so the total cost equals their sum. For costs that are all finite.
    status: (B,) int32. Bit 0: an entry is not finite; bit 1: such an entry had to be taken.
    """

    row_of_column: Tensor
    column_of_row: Tensor
    row_dual: Tensor
    column_dual: Tensor
    status: Tensor


def assign(
    cost: Tensor,
    counts: Tensor | None = None,
    *,
    maximize: bool = False,
    check: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Exact linear assignment of B independent problems (eq. 11): `cost (B, N, M)` to `(B, M)` int64.

    The result holds, for each column, the row that it got, and -1 for a column past `counts (B,)` or left over
    because there are more columns than rows. Where several assignments cost the same, any of them may come out.
    An entry that is not finite (NaN, either infinity) is never chosen while an assignment without it exists.
    A count below 0 is as 0, one above M as M.
    check: raise ValueError, naming the problem, for such an entry and such a count. It waits for the device.
    Kernels compute in float32, and in float64 for float64, int32 and int64 costs.
    Raises ValueError for other shapes.
    """
    _check(cost, counts)
    row_of_column, status = _assign(_constant(cost), counts, maximize, backend)
    if check:
        if counts is not None:
            check_counts("counts", counts, cost.shape[2])
        check_status(status)
    return row_of_column


def solve_assignment(
    cost: Tensor, counts: Tensor | None = None, *, maximize: bool = False, backend: Backend = "auto"
) -> Assignment:
    """`assign` with all that is known of the solution: both sides, the dual prices that prove it, and the status."""
    _check(cost, counts)
    return Assignment(*_solve_assignment(_constant(cost), counts, maximize, backend))


def _check(cost: Tensor, counts: Tensor | None) -> None:
    if cost.ndim != 3:
        raise ValueError(f"cost must be (B, N, M), got {tuple(cost.shape)}")
    if counts is not None and counts.shape != cost.shape[:1]:
        raise ValueError(f"counts must be ({cost.shape[0]},) for {cost.shape[0]} problems, got {tuple(counts.shape)}")
    if counts is not None and (counts.device != cost.device or counts.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"counts must be int32 or int64 on {cost.device}, got {counts.dtype} on {counts.device}")


def _constant(cost: Tensor) -> Tensor:
    return cost.detach() if cost.requires_grad else cost


@operator("assign(Tensor cost, Tensor? counts, bool maximize, str backend) -> (Tensor, Tensor)")
def _assign(cost: Tensor, counts: Tensor | None, maximize: bool, backend: Any) -> tuple[Tensor, Tensor]:
    """row_of_column and status."""
    row_of_column, *_, status = _compute(cost, counts, maximize, backend, duals=False)
    return row_of_column, status


@operator(
    "solve_assignment(Tensor cost, Tensor? counts, bool maximize, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def _solve_assignment(cost: Tensor, counts: Tensor | None, maximize: bool, backend: Any) -> tuple[Tensor, ...]:
    """The fields of `Assignment`."""
    return _compute(cost, counts, maximize, backend, duals=True)


def _compute(cost: Tensor, counts: Tensor | None, maximize: bool, backend: Backend, duals: bool) -> tuple[Tensor, ...]:
    compute = implementation(
        backend,
        cost.device,
        kernels=_by_kernels,
        reference=reference.solve_assignment,
        obstacle=too_large(*cost.shape[1:]),
    )
    return compute(cost, counts, maximize, duals)


def _by_kernels(chosen: str, *arguments: Any) -> tuple[Tensor, ...]:
    return kernel_module(chosen, "assignment").solve_assignment(*arguments)


@torch.library.register_fake("actdet_kernels::assign", lib=LIBRARY)
def _shapes(cost: Tensor, counts: Tensor | None, maximize: bool, backend: str) -> Any:
    batch, _, columns = cost.shape
    return cost.new_empty((batch, columns), dtype=torch.int64), cost.new_empty(batch, dtype=torch.int32)


@torch.library.register_fake("actdet_kernels::solve_assignment", lib=LIBRARY)
def _all_shapes(cost: Tensor, counts: Tensor | None, maximize: bool, backend: str) -> Any:
    batch, rows, columns = cost.shape
    sides = (cost.new_empty((batch, size), dtype=torch.int64) for size in (columns, rows))
    prices = (cost.new_empty((batch, size), dtype=reference.dual_dtype(cost.dtype)) for size in (rows, columns))
    return *sides, *prices, cost.new_empty(batch, dtype=torch.int32)


def too_large(rows: int, columns: int) -> str | None:
    """Why no kernel solves a problem of this size, if none does."""
    return f"{rows} x {columns} is larger than {MAX_SIZE}" if max(rows, columns) > MAX_SIZE else None


def check_status(status: Tensor) -> None:
    """Raise ValueError, naming the first problem, for a cost that is not finite. It waits for the device."""
    bad = (status & reference.NOT_FINITE).nonzero()
    if len(bad):
        raise ValueError(f"the cost of problem {tuple(bad[0].tolist())} is not finite ({len(bad)} of {status.numel()})")

"""Exact rectangular linear assignment of many problems at once.

From top to bottom: the public functions, their checks, their operators with the two implementations, the operators'
shapes, and the check of a status, which matching.py shares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.operators import LIBRARY, operator
from actdet_kernels.targets import check_counts

# The most rows or columns of one problem. The Triton kernels keep a row and a column together in 32 bits.
MAX_SIZE = 2**15


class Assignment(NamedTuple):
    """The solutions of B assignment problems `cost (B, N, M)`.

    The duals prove that the solution of a problem whose costs are all finite is optimal:

        row_dual[i] + column_dual[j] <= cost[i, j]    (>= with `maximize`),  with equality on the pairs

    They are 0 for unassigned rows or columns on the larger side, so their sum is the total cost of the pairs.

    Args:
        row_of_column: (B, M) int64, the row of each column, or -1.
        column_of_row: (B, N) int64, the column of each row, or -1.
        row_dual: (B, N) float32, or float64 for float64, int32 and int64 costs.
        column_dual: (B, M) of the same dtype; 0 past the count.
        status: (B,) int32. Bit 0: an entry of the cost is not finite. Bit 1: such an entry had to be taken.
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
    """Solve B independent linear assignment problems exactly (eq. 11): `cost (B, N, M)` to `(B, M)` int64.

    Of all ways to pair min(N, M) rows and columns one to one, the result is one with the least total cost. If several
    assignments cost the same, it may be any of them, and the same in every run on the same kind of device. An entry
    that is not finite, NaN or an infinity, is never chosen if there is an assignment with fewer of them.

    Costs are computed in float32, and in float64 if they are float64, int32 or int64. There is no gradient.

    Args:
        cost: (B, N, M) floating point or integer, with any strides.
        counts: (B,) int32 or int64, the number of columns of each problem that are real, or None if all are. Columns
            past the count are ignored. A count below 0 counts as 0, one above M as M.
        maximize: Find the largest total instead of the least.
        check: Raise ValueError if an entry is not finite or a count is not in [0, M]. This waits for the device.
        backend: See `explain_backend`.

    Returns:
        (B, M) int64, the row of each column. It is -1 for a column past the count, and for an unassigned column if
        there are more columns than rows.

    Raises:
        ValueError: Shapes, dtypes or devices disagree, or `check` found something; the text names the problem.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    _check(cost, counts)
    if check:
        _check_values(cost, counts)
    return _assign(_constant(cost), counts, maximize, backend)


def solve_assignment(
    cost: Tensor, counts: Tensor | None = None, *, maximize: bool = False, backend: Backend = "auto"
) -> Assignment:
    """Do what `assign` does, and return the rest of the solution as well.

    Args:
        cost: (B, N, M), as in `assign`.
        counts: (B,), as in `assign`.
        maximize: Find the largest total instead of the least.
        backend: See `explain_backend`.

    Returns:
        The pairs from both sides, the dual prices that prove them optimal, and the status, which tells about entries
        that are not finite without waiting for the device.

    Raises:
        ValueError: Shapes, dtypes or devices disagree.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    _check(cost, counts)
    return Assignment(*_solve_assignment(_constant(cost), counts, maximize, backend))


def _check(cost: Tensor, counts: Tensor | None) -> None:
    if cost.ndim != 3:
        raise ValueError(f"cost must be (B, N, M), got {tuple(cost.shape)}")
    if counts is not None and counts.shape != cost.shape[:1]:
        raise ValueError(f"counts must be ({cost.shape[0]},) for {cost.shape[0]} problems, got {tuple(counts.shape)}")
    if counts is not None and (counts.device != cost.device or counts.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"counts must be int32 or int64 on {cost.device}, got {counts.dtype} on {counts.device}")


def _check_values(cost: Tensor, counts: Tensor | None) -> None:
    strange = ~cost.isfinite()
    if counts is not None:
        check_counts("counts", counts, cost.shape[2])
        strange &= torch.arange(cost.shape[2], device=cost.device) < counts[:, None, None]
    check_status(strange.flatten(1).any(1) * reference.NOT_FINITE)


def _constant(cost: Tensor) -> Tensor:
    return cost.detach() if cost.requires_grad else cost


@operator("assign(Tensor cost, Tensor? counts, bool maximize, str backend) -> Tensor")
def _assign(cost: Tensor, counts: Tensor | None, maximize: bool, backend: Any) -> Tensor:
    """Return row_of_column alone."""
    return _compute(cost, counts, maximize, backend, duals=False)[0]


@operator(
    "solve_assignment(Tensor cost, Tensor? counts, bool maximize, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def _solve_assignment(cost: Tensor, counts: Tensor | None, maximize: bool, backend: Any) -> tuple[Tensor, ...]:
    """Return the fields of `Assignment`."""
    return _compute(cost, counts, maximize, backend, duals=True)


def _compute(cost: Tensor, counts: Tensor | None, maximize: bool, backend: Backend, duals: bool) -> tuple[Tensor, ...]:
    _, rows, columns = cost.shape
    compute = implementation(
        backend,
        cost.device,
        kernels=_by_kernels,
        reference=reference.solve_assignment,
        obstacle=too_large(rows, columns),
    )
    return compute(cost, counts, maximize, duals)


def _by_kernels(chosen: str, *arguments: Any) -> tuple[Tensor, ...]:
    return kernel_module(chosen, "assignment").solve_assignment(*arguments)


@torch.library.register_fake("actdet_kernels::assign", lib=LIBRARY)
def _shapes(cost: Tensor, counts: Tensor | None, maximize: bool, backend: str) -> Any:
    batch, _, columns = cost.shape
    return cost.new_empty((batch, columns), dtype=torch.int64)


@torch.library.register_fake("actdet_kernels::solve_assignment", lib=LIBRARY)
def _all_shapes(cost: Tensor, counts: Tensor | None, maximize: bool, backend: str) -> Any:
    batch, rows, columns = cost.shape
    sides = (cost.new_empty((batch, size), dtype=torch.int64) for size in (columns, rows))
    prices = (cost.new_empty((batch, size), dtype=reference.dual_dtype(cost.dtype)) for size in (rows, columns))
    return *sides, *prices, cost.new_empty(batch, dtype=torch.int32)


def too_large(rows: int, columns: int) -> str | None:
    """Return why the Triton kernels cannot solve a problem of this size, or None if they can."""
    return f"{rows} x {columns} is larger than {MAX_SIZE}" if max(rows, columns) > MAX_SIZE else None


def check_status(status: Tensor) -> None:
    """Raise a ValueError that names the first problem with a cost that is not finite. This waits for the device."""
    bad = (status & reference.NOT_FINITE).nonzero()
    if len(bad):
        raise ValueError(f"the cost of problem {tuple(bad[0].tolist())} is not finite ({len(bad)} of {status.numel()})")

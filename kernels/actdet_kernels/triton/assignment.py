"""Solves rectangular linear assignments exactly: shortest augmenting paths, one program for each problem.

minimize  sum_i cost[i, column_i]   over one-to-one choices of a column for every row,  rows <= columns

The method is that of Jonker and Volgenant (1987) in the form of Crouse (2016), as in SciPy. Rows get their columns one
at a time, each along the cheapest path of re-assignments. Dijkstra's algorithm finds that path on the reduced costs
cost[i, j] - u[i] - v[j] >= 0. Rows are the smaller side and are walked one by one. The state of all columns (dual, row,
distance, path) lies in one block. The dual u of an assigned row follows from its own pair, which is tight:
u[i] = cost[i, j] - v[j]. So rounding errors never add up. `bench/LOG.md` says what was tuned, and why.

`solve` does not know where costs come from. It calls a device function for the costs of a row.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.reference import dual_dtype
from actdet_kernels.triton import launch
from actdet_kernels.triton.launch import compiler_options, power_of_2, triton_dtype

INFINITY = tl.constexpr(float("inf"))

# Costs above HUGE are scaled by SHRINK, which is exact, so that their sums cannot overflow.
HUGE = tl.constexpr(2.0**90)
SHRINK = tl.constexpr(2.0**-40)


@triton.jit
def solve(
    row_costs: tl.constexpr, KIND: tl.constexpr, source, kept, memo, rows, columns,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, SQUARE: tl.constexpr, REDUX: tl.constexpr,
):  # fmt: skip
    """Solve one problem.

    Every row gets a column, whatever the costs are: each loop is bounded by a count, and each step finds a column,
    because `distance` is never NaN.

    Args:
        row_costs: The device function row_costs(source, i, j, KIND, DTYPE), which returns the costs of rows i in
            columns j, which broadcast. Past `columns` it may return anything.
        KIND: Passed on to `row_costs`.
        source: Passed on to `row_costs`.
        kept: Room for `rows` times BLOCK values of DTYPE, where costs that are slow to compute are kept; or None.
        memo: Room for `rows` values of DTYPE, for the duals of assigned rows. Loading a dual from here delays nothing,
            whereas picking it from registers would be one more reduction in every step.
        rows: The number of rows, at most `columns`.
        columns: The number of columns, at most BLOCK.
        DTYPE: The type of the arithmetic.
        BLOCK: The size of the block that holds the columns.
        TILE: The number of rows that the greedy start reads at a time.
        SQUARE: Whether to start with prices of the columns if there are as many rows as columns.
        REDUX: See `least_and_first`.

    Returns:
        For every column (BLOCK,) its row or -1, the dual u of that row, and its own dual v. And the problem's status.
    """
    # Without this hint, values would be converted between two layouts in every step.
    o_j = tl.max_contiguous(tl.arange(0, BLOCK), 1)
    m_j = o_j < columns
    v = tl.zeros([BLOCK], DTYPE)
    if SQUARE:  # noqa: SIM102 - known when it is compiled
        if rows == columns:
            v = starting_prices(row_costs, KIND, source, rows, DTYPE, BLOCK, TILE)
    row_of, own, low, high, has_non_finite = greedy_start(
        row_costs, KIND, source, kept, v, rows, columns, DTYPE, BLOCK, TILE, REDUX
    )
    scale, substitute = finite_substitute(low, high, rows)
    own *= scale
    v *= scale

    root = rows
    waiting = m_j & (o_j < 0)
    if tl.sum((row_of >= 0).to(tl.int32), axis=0) < rows:
        tl.store(memo + o_j, tl.full([BLOCK], INFINITY, DTYPE), mask=o_j < rows)
        tl.debug_barrier()
        tl.store(memo + row_of, own - v, mask=row_of >= 0)
        tl.debug_barrier()
        waiting = tl.load(memo + o_j, mask=o_j < rows, other=0) == INFINITY
        root = tl.min(tl.where(waiting, o_j, BLOCK), axis=0)

    while root < rows:
        # Search from `root` to the nearest free column. A column is open until its shortest path is known.
        open = m_j
        distance = tl.full([BLOCK], INFINITY, DTYPE)

        # For each column: the row before it and the column before that row, as i * BLOCK + j; and the row's cost in it.
        path = tl.zeros([BLOCK], tl.int32)
        last = tl.zeros([BLOCK], DTYPE)
        nearest = tl.full([], 0, DTYPE)

        # The zero is a tensor, because comparisons of Python numbers would be Python bools, which no mask takes.
        zero = root * 0
        i = root
        j = zero
        steps = zero
        while (i >= 0) & (steps < rows):
            cost = bounded(known_costs(row_costs, KIND, source, kept, i, o_j, DTYPE, BLOCK), scale, substitute)
            # The dual of the root is not known yet. Any finite value does.
            u = tl.where(steps > 0, tl.load(memo + i), 0)
            through = nearest + (cost - v - u)
            closer = open & (through < distance)
            distance = tl.where(closer, through, distance)
            path = tl.where(closer, i * BLOCK + j, path)
            last = tl.where(closer, cost, last)

            # Among equally near columns a free one comes first, because it ends the search.
            nearest, first = least_and_first(tl.where(open, distance, INFINITY), (row_of + 1) * BLOCK + o_j, REDUX)
            i = first // BLOCK - 1
            j = first % BLOCK
            open = open & (o_j != j)
            steps += 1
        v += tl.where(m_j & (open == 0), distance - nearest, 0)

        # Every row on the path moves to the column after it.
        i = zero - 1
        while (i != root) & (steps > 0):
            before = tl.sum(tl.where(o_j == j, path, 0), axis=0)
            i = before // BLOCK
            row_of = tl.where(o_j == j, i, row_of)
            own = tl.where(o_j == j, last, own)
            j = before % BLOCK
            steps -= 1
        tl.store(memo + row_of, own - v, mask=row_of >= 0)
        tl.debug_barrier()
        root = tl.min(tl.where(waiting & (o_j > root), o_j, BLOCK), axis=0)

    forced = has_non_finite * 0
    if has_non_finite > 0:
        cost = known_costs(row_costs, KIND, source, kept, tl.maximum(row_of, 0), o_j, DTYPE, BLOCK)
        forced = tl.max(((row_of >= 0) & not_finite(cost)).to(tl.int32), axis=0)
    return row_of, tl.where(row_of >= 0, own - v, 0) / scale, v / scale, has_non_finite + 2 * forced


@triton.jit
def known_costs(
    row_costs: tl.constexpr, KIND: tl.constexpr, source, kept, i, j, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Return the costs, in the columns j, of rows that the greedy start has looked at."""
    if kept is None:  # noqa: SIM108 - known when it is compiled
        cost = row_costs(source, i, j, KIND, DTYPE)
    else:
        cost = tl.load(kept + i * BLOCK + j)
    return cost


@triton.jit
def starting_prices(
    row_costs: tl.constexpr, KIND: tl.constexpr, source, rows, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Return duals (BLOCK,) of the columns to start with, if there are as many rows as columns.

    Any duals are allowed, because all columns are taken. One choice is each column's minimum. The other is the minimum
    of what is left of each column after the rows' minima are subtracted. The function takes the choice that gives the
    larger bound on the total cost. The duals are 0 if some cost is huge or not finite.
    """
    o_j = tl.arange(0, BLOCK)[None, :]
    left = tl.full([1, BLOCK], INFINITY, DTYPE)
    least = left
    bound_left = tl.full([], 0, DTYPE)
    bound_least = tl.full([], 0, DTYPE)
    has_non_finite = tl.zeros([1, BLOCK], tl.int32)
    for first in range(0, rows, TILE):
        o_i = first + tl.arange(0, TILE)
        cost = row_costs(source, tl.minimum(o_i, rows - 1)[:, None], o_j, KIND, DTYPE)
        cost = tl.where(o_j < rows, cost, HUGE)
        has_non_finite = tl.maximum(has_non_finite, tl.max(((tl.abs(cost) <= HUGE) == 0).to(tl.int32), axis=0)[None, :])
        u = smallest_of_rows(cost)
        least = tl.minimum(least, tl.min(cost, axis=0)[None, :])
        left = tl.minimum(left, tl.min(cost - u[:, None], axis=0)[None, :])
        bound_left += tl.sum(tl.where(o_i < rows, u, 0), axis=0)
    for first in range(0, rows, TILE):
        o_i = first + tl.arange(0, TILE)
        cost = row_costs(source, tl.minimum(o_i, rows - 1)[:, None], o_j, KIND, DTYPE)
        u = smallest_of_rows(tl.where(o_j < rows, cost - least, HUGE))
        bound_least += tl.sum(tl.where(o_i < rows, u, 0), axis=0)
    bound_left += tl.sum(tl.sum(tl.where(o_j < rows, left, 0), axis=1), axis=0)
    bound_least += tl.sum(tl.sum(tl.where(o_j < rows, least, 0), axis=1), axis=0)
    usable = (tl.max(tl.max(has_non_finite, axis=1), axis=0) == 0) & (o_j < rows)
    return tl.reshape(tl.where(usable, tl.where(bound_left >= bound_least, left, least), 0), [BLOCK])


@triton.jit
def greedy_start(
    row_costs: tl.constexpr, KIND: tl.constexpr, source, kept, v, rows, columns,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, REDUX: tl.constexpr,
):  # fmt: skip
    """Give each row its cheapest column under the prices v if that is free. Rows are read TILE at a time.

    Returns:
        The row of each column or -1, and its cost in it, (BLOCK,) each. The least and the largest finite cost. And 1 if
        some entry is not finite, otherwise 0.
    """
    o_j = tl.arange(0, BLOCK)[None, :]
    m_j = o_j < columns
    row_of = tl.full([1, BLOCK], -1, tl.int32)
    own = tl.zeros([1, BLOCK], DTYPE)
    low = tl.full([1, BLOCK], INFINITY, DTYPE)
    high = -low
    has_non_finite = tl.zeros([1, BLOCK], tl.int32)
    for first in range(0, rows, TILE):
        o_i = first + tl.arange(0, TILE)[:, None]
        m = m_j & (o_i < rows)
        cost = row_costs(source, tl.minimum(o_i, rows - 1), o_j, KIND, DTYPE)
        if kept is not None:
            tl.store(kept + o_i * BLOCK + o_j, cost, mask=o_i < rows)
        finite = m & (not_finite(cost) == 0)
        has_non_finite = tl.maximum(has_non_finite, tl.max((m & not_finite(cost)).to(tl.int32), axis=0)[None, :])
        low = tl.minimum(low, tl.min(tl.where(finite, cost, INFINITY), axis=0)[None, :])
        high = tl.maximum(high, tl.max(tl.where(finite, cost, -INFINITY), axis=0)[None, :])
        free_first = tl.where(row_of < 0, o_j, BLOCK + o_j)
        price, j = least_and_first(tl.where(finite, cost - v[None, :], INFINITY), free_first, REDUX)

        # A column of BLOCK or more means that another row has it already.
        j = tl.where(price < INFINITY, j, BLOCK)[:, None]
        row = tl.min(tl.where(o_j == j, o_i, BLOCK), axis=0)[None, :]
        own = tl.where(row < BLOCK, tl.sum(tl.where(o_i == row, cost, 0), axis=0)[None, :], own)
        row_of = tl.where(row < BLOCK, row, row_of)

    low = tl.min(low, axis=1)
    high = tl.max(high, axis=1)
    has_non_finite = tl.max(has_non_finite, axis=1)
    return (
        tl.reshape(row_of, [BLOCK]), tl.reshape(own, [BLOCK]), tl.max(low, axis=0), tl.max(high, axis=0),
        tl.max(has_non_finite, axis=0),
    )  # fmt: skip


@triton.jit
def least_and_first(x, tie, REDUX: tl.constexpr):
    """Return the least x along the last axis, and the least `tie` among the elements that have it.

    `tie` must not be negative. float32 is compared by integers of the same order, in which -0 is less than 0 and a
    positive NaN more than infinity. With REDUX there are two reductions of 32 bits, each of which is a single
    instruction of a warp from compute capability 8.0 on. Without it, both values are packed into 64 bits and reduced
    once, by shuffles. The results are the same.
    """
    axis: tl.constexpr = len(x.shape) - 1
    if x.dtype == tl.float32:
        if REDUX:
            key = ordered(x)
            lowest = tl.min(key, axis=axis)
            first = tl.min(tl.where(key == tl.expand_dims(lowest, axis), tie, 0x7FFFFFFF), axis=axis)
            least = ordered(lowest).to(tl.float32, bitcast=True)
        else:
            key = tl.min((ordered(x).to(tl.int64) << 32) | tie.to(tl.int64), axis=axis)
            least = ordered((key >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
            first = (key & 0xFFFFFFFF).to(tl.int32)
    else:
        least = tl.min(x, axis=axis)
        first = tl.min(tl.where(x <= tl.expand_dims(least, axis), tie, 0x7FFFFFFF), axis=axis)
    return least, first


@triton.jit
def ordered(x):
    """Map float32 to int32 of the same order. Applied to the bits of the result, it gives the first bits back."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def smallest_of_rows(x):
    """Return the minimum of each row."""
    if x.dtype == tl.float32:
        least = ordered(tl.min(ordered(x), axis=1)).to(tl.float32, bitcast=True)
    else:
        least = tl.min(x, axis=1)
    return least


@triton.jit
def finite_substitute(low, high, rows):
    """Return a scale at which sums of costs do not overflow, and at that scale the substitute for non-finite costs.

    Let finite costs be in [low, high]. Then `rows` pairs of which b cost the substitute s cost at most
    b s + (rows - b) high, and with b + 1 such pairs at least (b + 1) s + (rows - b - 1) low. So fewer of them are
    always cheaper if s > high + (rows - 1) (high - low). The substitute exceeds that only by a margin, so that in
    float32 it swallows as little as possible of the other costs.
    """
    some = low <= high
    low = tl.where(some, low, 0.0)
    high = tl.where(some, high, 0.0)
    largest = tl.maximum(tl.abs(low), tl.abs(high))
    scale = tl.where(largest > HUGE, SHRINK, 1.0).to(low.dtype)
    spread = high * scale - low * scale
    margin = tl.where(spread > 0, spread, tl.where(largest > 0, largest * scale, 1.0))
    return scale, high * scale + (rows - 1) * spread + margin


@triton.jit
def bounded(cost, scale, substitute):
    """Scale the costs, with the substitute in place of those that are not finite."""
    return tl.where(not_finite(cost), substitute, cost * scale)


@triton.jit
def not_finite(cost):
    return (tl.abs(cost) < INFINITY) == 0


@triton.jit
def matrix_costs(source, i, j, SIGN: tl.constexpr, DTYPE: tl.constexpr):
    """Load the costs of a matrix for `solve`.

    They are loaded as a vector, so that the columns lie along the threads. If a tile was loaded, Triton up to 3.6 would
    lay the threads across its rows, and several threads would keep the same column.
    """
    pointer, stride_i, stride_j, columns = source
    places = pointer + i * stride_i + j * stride_j
    mask = tl.reshape(tl.broadcast_to(j < columns, places.shape), [places.numel])
    costs = tl.load(tl.reshape(places, [places.numel]), mask=mask, other=0)
    return SIGN * tl.reshape(costs, places.shape).to(DTYPE)


@triton.jit(do_not_specialize=["samples", "rows", "columns", "s_p", "s_n", "s_m"])
def assign_kernel(
    cost, counts, row_of_column, column_of_row, row_dual, column_dual, status,
    samples, rows, columns, s_p, s_n, s_m,
    SIGN: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, REDUX: tl.constexpr,
):  # fmt: skip
    """Solve one problem in each program: cost (rows, columns), of which the first `count` columns are used."""
    i_p = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    count = columns
    if counts is not None:
        count = tl.minimum(tl.maximum(tl.load(counts + i_p % samples), 0), columns).to(tl.int32)

    # If there are few columns, they are the smaller side, which the solver walks.
    few = count <= rows
    smaller = tl.minimum(count, rows)
    larger = tl.maximum(count, rows)
    stride_i = tl.where(few, s_m, s_n).to(tl.int64)
    stride_j = tl.where(few, s_n, s_m).to(tl.int64)

    # Without a row there is nothing to read.
    readable = tl.where(smaller > 0, larger, 0)
    source = (cost + i_p * s_p, stride_i, stride_j, readable)

    p_row = column_of_row + i_p * rows
    p_column = row_of_column + i_p * columns
    p_larger = tl.where(few, p_row, p_column)
    size_larger = tl.where(few, rows, columns)
    p_smaller = tl.where(few, p_column, p_row)
    size_smaller = tl.where(few, columns, rows)
    memo = p_smaller.to(tl.pointer_type(DTYPE), bitcast=True)
    partner, u, v, flags = solve(
        matrix_costs, SIGN, source, None, memo, smaller, larger, DTYPE, BLOCK, TILE, SQUARE=True, REDUX=REDUX
    )

    # partner, u and v lie along the larger side. The results of the smaller side are scattered through them.
    m_pair = partner >= 0
    m_larger = o < size_larger
    m_padding = (o >= smaller) & (o < size_smaller)
    tl.store(p_larger + o, partner, mask=m_larger)
    tl.store(p_smaller + o, tl.full([BLOCK], -1, tl.int32), mask=m_padding)
    tl.store(p_smaller + partner, o, mask=m_pair)
    tl.store(status + i_p, flags)
    if row_dual is not None:
        p_u = row_dual + i_p * rows
        p_v = column_dual + i_p * columns
        tl.store(tl.where(few, p_u, p_v) + o, SIGN * v, mask=m_larger)
        tl.store(tl.where(few, p_v, p_u) + o, tl.zeros([BLOCK], DTYPE), mask=m_padding)
        tl.store(tl.where(few, p_v, p_u) + partner, SIGN * u, mask=m_pair)


def solve_assignment(cost: Tensor, counts: Tensor | None, maximize: bool, duals: bool) -> tuple[Tensor, ...]:
    """Return the fields of `actdet_kernels.Assignment`. The duals are empty if they are not asked for.

    Args:
        cost: (B, N, M).
        counts: The number of columns used in each problem. There may be fewer counts than problems, because layers
            share those of the samples: problem p takes count p modulo their number. None uses all columns.
        maximize: Whether the total cost is to be largest.
        duals: Whether duals are asked for.
    """
    batch, rows, columns = cost.shape
    dtype = dual_dtype(cost.dtype)
    if cost.dtype == torch.bool:
        cost = cost.view(torch.uint8)

    row_of_column = launch.empty((batch, columns), torch.int64, cost.device)
    column_of_row = launch.empty((batch, rows), torch.int64, cost.device)
    row_dual = launch.empty((batch, rows if duals else 0), dtype, cost.device)
    column_dual = launch.empty((batch, columns if duals else 0), dtype, cost.device)
    status = launch.empty((batch,), torch.int32, cost.device)
    block = block_size(rows, columns)
    stride_p, stride_n, stride_m = cost.stride()
    launch.launch(
        assign_kernel,
        batch,
        cost=cost,
        counts=None if counts is None else counts.contiguous(),
        row_of_column=row_of_column,
        column_of_row=column_of_row,
        row_dual=row_dual if duals else None,
        column_dual=column_dual if duals else None,
        status=status,
        samples=batch if counts is None else counts.shape[0],
        rows=rows,
        columns=columns,
        s_p=stride_p,
        s_n=stride_n,
        s_m=stride_m,
        SIGN=-1 if maximize else 1,
        DTYPE=triton_dtype(dtype),
        **solver_options(block, cost.device, costs=8, most_warps=8),
    )
    return row_of_column, column_of_row, row_dual, column_dual, status


def block_size(rows: int, columns: int) -> int:
    return max(power_of_2(max(rows, columns)), 32)


def solver_options(block: int, device: torch.device, costs: int, most_warps: int) -> dict[str, Any]:
    """Return the options of a kernel that calls `solve`.

    Each thread gets one column, or more if `most_warps` are too few. So many rows are read at a time that each thread
    holds `costs` costs, but at most 8 rows. The registers of a thread decide how many problems a multiprocessor solves
    at a time.
    """
    warps = min(block // 32, most_warps)
    each = block // (32 * warps)
    return {
        "BLOCK": block,
        "TILE": min(max(costs // each, 1), 8),
        "REDUX": launch.has_redux(device),
        **compiler_options(warps),
    }

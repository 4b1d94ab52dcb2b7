"""Exact rectangular linear assignment: shortest augmenting paths, one program for each problem.

minimise  sum_i cost[i, column_i]   over one-to-one choices of a column for every row,  rows <= columns

The method is Jonker and Volgenant's (1987) in the form of Crouse (2016), as in SciPy: rows get their columns one at a
time, each along the cheapest path of re-assignments, which Dijkstra's algorithm finds on the reduced costs
cost[i, j] - u[i] - v[j] >= 0. Rows are the smaller side, walked one by one; all that is known of the columns (dual,
row, distance, path) lies in one block. The dual u of an assigned row is not stored: its own pair is tight, so that
u[i] = cost[i, j] - v[j] there.

`solve` does not know where costs come from: it calls a device function for the costs of a row.
"""
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# (what Triton compiles has types that a checker of Python does not know)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels import backend
from actdet_kernels.arguments import compiler_options, triton_dtype
from actdet_kernels.reference import dual_dtype

INFINITY = tl.constexpr(float("inf"))
HUGE, SHRINK = tl.constexpr(2.0**90), tl.constexpr(2.0**-40)  # exact, and sums of shrunken costs cannot overflow


@triton.jit
def solve(
    row_costs: tl.constexpr, KIND: tl.constexpr, source, rows, columns,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """(BLOCK,) for every column: its row or -1, the dual u of that row, its own dual v. And the problem's status.

    row_costs(source, i, j, KIND, DTYPE): the costs of rows i in columns j, which broadcast; past `columns` it may
    return anything. rows <= columns <= BLOCK. Every row gets a column, whatever the costs hold: every loop is bounded
    by a count, and every step finds a column, because `distance` is never NaN.
    """
    o_j = tl.arange(0, BLOCK)
    m_j = o_j < columns
    row_of, placed, low, high, strange = greedy_start(row_costs, KIND, source, rows, columns, DTYPE, BLOCK, TILE)
    scale, instead = finite_substitute(low, high, rows)

    v = tl.zeros([BLOCK], DTYPE)
    root = tl.min(tl.where((placed == 0) & (o_j < rows), o_j, BLOCK), axis=0)
    zero = root * 0  # a tensor: a comparison of Python numbers would be a Python bool, which no mask takes
    while root < rows:
        # Dijkstra from `root` to the nearest free column. A column is open until its shortest path is known.
        open = m_j
        distance = tl.full([BLOCK], INFINITY, DTYPE)
        path = tl.zeros([BLOCK], tl.int32)  # the row before this column, and the column before that: i * BLOCK + j
        nearest = tl.full([], 0, DTYPE)
        i, j, steps = root, zero, zero
        while (i >= 0) & (steps < rows):
            slack = bounded(row_costs(source, i, o_j, KIND, DTYPE), scale, instead) - v
            u = value_at(slack, (o_j == j) & (steps > 0))  # any value does for the root
            through = nearest + (slack - u)
            closer = open & (through < distance)
            distance = tl.where(closer, through, distance)
            path = tl.where(closer, i * BLOCK + j, path)
            # Of equally near columns a free one comes first, which ends the search.
            nearest, first = nearest_column(distance, open, (row_of + 1) * BLOCK + o_j)
            i, j = first // BLOCK - 1, first % BLOCK
            open = open & (o_j != j)
            steps += 1
        v += tl.where(m_j & (open == 0), distance - nearest, 0)
        # Every row on the path moves to the column after it.
        i = zero - 1
        while (i != root) & (steps > 0):
            before = value_at(path, o_j == j)
            i = before // BLOCK
            row_of = tl.where(o_j == j, i, row_of)
            j = before % BLOCK
            steps -= 1
        root = tl.min(tl.where((placed == 0) & (o_j < rows) & (o_j > root), o_j, BLOCK), axis=0)

    taken = row_of >= 0
    cost = row_costs(source, tl.maximum(row_of, 0), o_j, KIND, DTYPE)
    u = tl.where(taken, bounded(cost, scale, instead) - v, 0)
    forced = tl.max(tl.where(taken & (tl.abs(cost) < INFINITY), 0, taken.to(tl.int32)), axis=0)
    return row_of, u / scale, v / scale, strange + 2 * forced


@triton.jit
def greedy_start(
    row_costs: tl.constexpr, KIND: tl.constexpr, source, rows, columns,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A look at every cost, TILE rows at a time: each row takes its cheapest column, if it is free.

    (BLOCK,) the row of each column or -1, and which rows have one; the least and the largest finite cost; 1 where an
    entry is not finite.
    """
    o_j = tl.arange(0, BLOCK)[None, :]
    m_j = o_j < columns
    row_of = tl.full([1, BLOCK], -1, tl.int32)
    placed = tl.zeros([1, BLOCK], tl.int32)  # by row
    low = tl.full([1, BLOCK], INFINITY, DTYPE)
    high = -low
    strange = tl.zeros([1, BLOCK], tl.int32)
    for first in range(0, rows, TILE):
        o_i = first + tl.arange(0, TILE)[:, None]
        m = m_j & (o_i < rows)
        cost = row_costs(source, tl.minimum(o_i, rows - 1), o_j, KIND, DTYPE)
        finite = m & (tl.abs(cost) < INFINITY)
        strange = tl.maximum(strange, tl.max(tl.where(m & (finite == 0), 1, 0), axis=0)[None, :])
        low = tl.minimum(low, tl.min(tl.where(finite, cost, INFINITY), axis=0)[None, :])
        high = tl.maximum(high, tl.max(tl.where(finite, cost, -INFINITY), axis=0)[None, :])
        cheapest = smallest_of_rows(tl.where(finite, cost, INFINITY))
        j = tl.min(tl.where(finite & (row_of < 0) & (cost <= cheapest[:, None]), o_j, BLOCK), axis=1)[:, None]
        wanted_by = tl.min(tl.where(o_j == j, o_i, BLOCK), axis=0)[None, :]
        row_of = tl.where(wanted_by < BLOCK, wanted_by, row_of)
        won = tl.max(tl.where(row_of == o_i, 1, 0), axis=1)[:, None]
        placed = tl.maximum(placed, tl.max(tl.where(o_j == o_i, won, 0), axis=0)[None, :])
    low, high, strange = tl.min(low, axis=1), tl.max(high, axis=1), tl.max(strange, axis=1)
    return (
        tl.reshape(row_of, [BLOCK]), tl.reshape(placed, [BLOCK]), tl.max(low, axis=0), tl.max(high, axis=0),
        tl.max(strange, axis=0),
    )  # fmt: skip


@triton.jit
def nearest_column(distance, open, tie):
    """The least distance of an open column, and of those that have it the least `tie`, which is not negative.

    One reduction in float32, of the two packed into 64 bits; order-preserving integers are reduced without shuffles.
    """
    if distance.dtype == tl.float32:
        key = (ordered(distance).to(tl.int64) << 32) | tie.to(tl.int64)
        key = tl.min(tl.where(open, key, 0x7FFFFFFFFFFFFFFF), axis=0)
        nearest = ordered((key >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
        first = (key & 0xFFFFFFFF).to(tl.int32)
    else:
        nearest = tl.min(tl.where(open, distance, INFINITY), axis=0)
        first = tl.min(tl.where(open & (distance <= nearest), tie, 0x7FFFFFFF), axis=0)
    return nearest, first


@triton.jit
def ordered(x):
    """float32 to int32 of the same order; the same again, on the bits, goes back."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def smallest_of_rows(x):
    if x.dtype == tl.float32:
        least = ordered(tl.min(ordered(x), axis=1)).to(tl.float32, bitcast=True)
    else:
        least = tl.min(x, axis=1)
    return least


@triton.jit
def value_at(x, chosen):
    """The one value that is chosen, 0 if there is none; a sum of integers, which is exact and needs no shuffles."""
    if x.dtype == tl.float32:
        value = tl.sum(tl.where(chosen, x.to(tl.int32, bitcast=True), 0), axis=0).to(tl.float32, bitcast=True)
    else:
        value = tl.sum(tl.where(chosen, x, 0), axis=0)
    return value


@triton.jit
def finite_substitute(low, high, rows):
    """The scale at which sums of costs do not overflow, and at that scale the cost to use for one that is not finite.

    With finite costs in [low, high], `rows` pairs of which b are substitutes s cost at most b s + (rows - b) high, and
    with b + 1 at least (b + 1) s + (rows - b - 1) low: s > high + (rows - 1) (high - low) makes fewer always cheaper.
    No larger than that and a margin, so that in float32 it swallows as little as possible of the others.
    """
    some = low <= high
    low, high = tl.where(some, low, 0.0), tl.where(some, high, 0.0)
    largest = tl.maximum(tl.abs(low), tl.abs(high))
    scale = tl.where(largest > HUGE, SHRINK, 1.0).to(low.dtype)
    spread = high * scale - low * scale
    margin = tl.where(spread > 0, spread, tl.where(largest > 0, largest * scale, 1.0))
    return scale, high * scale + (rows - 1) * spread + margin


@triton.jit
def bounded(cost, scale, instead):
    return tl.where(tl.abs(cost) < INFINITY, cost * scale, instead)


@triton.jit
def matrix_costs(source, i, j, SIGN: tl.constexpr, DTYPE: tl.constexpr):
    pointer, stride_i, stride_j, columns = source
    return SIGN * tl.load(pointer + i * stride_i + j * stride_j, mask=j < columns, other=0).to(DTYPE)


@triton.jit(do_not_specialize=["samples", "rows", "columns", "s_p", "s_n", "s_m"])
def assign_kernel(
    cost, counts, row_of_column, column_of_row, row_dual, column_dual, status,
    samples, rows, columns, s_p, s_n, s_m,
    SIGN: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program solves one problem: cost (rows, columns), of which as many columns count as its count says."""
    i_p = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    count = columns
    if counts is not None:
        count = tl.minimum(tl.maximum(tl.load(counts + i_p % samples), 0), columns).to(tl.int32)

    few = count <= rows  # the columns are the smaller side
    smaller, larger = tl.minimum(count, rows), tl.maximum(count, rows)
    stride_i, stride_j = tl.where(few, s_m, s_n).to(tl.int64), tl.where(few, s_n, s_m).to(tl.int64)
    readable = tl.where(smaller > 0, larger, 0)  # without a row there is no column to look at
    source = (cost + i_p * s_p, stride_i, stride_j, readable)
    partner, u, v, flags = solve(matrix_costs, SIGN, source, smaller, larger, DTYPE, BLOCK, TILE)

    # partner, u and v lie along the larger side; the smaller side's answers are written through them.
    m_pair = partner >= 0
    p_row, p_column = column_of_row + i_p * rows, row_of_column + i_p * columns
    p_larger, size_larger = tl.where(few, p_row, p_column), tl.where(few, rows, columns)
    p_smaller, size_smaller = tl.where(few, p_column, p_row), tl.where(few, columns, rows)
    m_larger, m_padding = o < size_larger, (o >= smaller) & (o < size_smaller)
    tl.store(p_larger + o, partner, mask=m_larger)
    tl.store(p_smaller + o, tl.full([BLOCK], -1, tl.int32), mask=m_padding)
    tl.store(p_smaller + partner, o, mask=m_pair)
    tl.store(status + i_p, flags)
    if row_dual is not None:
        p_u, p_v = row_dual + i_p * rows, column_dual + i_p * columns
        tl.store(tl.where(few, p_u, p_v) + o, SIGN * v, mask=m_larger)
        tl.store(tl.where(few, p_v, p_u) + o, tl.zeros([BLOCK], DTYPE), mask=m_padding)
        tl.store(tl.where(few, p_v, p_u) + partner, SIGN * u, mask=m_pair)


def solve_assignment(cost: Tensor, counts: Tensor | None, maximize: bool, duals: bool) -> tuple[Tensor, ...]:
    """`operations.Assignment` of `cost (B, N, M)`; the duals are empty where they are not asked for.

    counts: (B,), or fewer, of which each problem takes its own modulo their number: layers share the samples' counts.
    """
    batch, rows, columns = cost.shape
    dtype = dual_dtype(cost.dtype)
    if cost.dtype == torch.bool:
        cost = cost.view(torch.uint8)

    row_of_column = backend.empty((batch, columns), torch.int64, cost.device)
    column_of_row = backend.empty((batch, rows), torch.int64, cost.device)
    row_dual = backend.empty((batch, rows if duals else 0), dtype, cost.device)
    column_dual = backend.empty((batch, columns if duals else 0), dtype, cost.device)
    status = backend.empty((batch,), torch.int32, cost.device)
    block = block_size(rows, columns)
    backend.launch(
        assign_kernel,
        batch,
        cost,
        None if counts is None else counts.contiguous(),
        row_of_column,
        column_of_row,
        row_dual if duals else None,
        column_dual if duals else None,
        status,
        batch if counts is None else counts.shape[0],
        rows,
        columns,
        *cost.stride(),
        SIGN=-1 if maximize else 1,
        DTYPE=triton_dtype(dtype),
        **solver_options(block),
    )
    return row_of_column, column_of_row, row_dual, column_dual, status


def block_size(rows: int, columns: int) -> int:
    return max(triton.next_power_of_2(max(rows, columns)), 16)


def solver_options(block: int) -> dict[str, Any]:
    """A thread for each column, up to 8 warps: all of a multiprocessor works on the costs, and the warps wait for each
    other in every step. TILE rows at a time make four costs a thread; eight for 1,024 columns, because Triton 3.3
    unrolls a tile of one row over all its columns."""
    warps = min(max(block // 32, 1), 8)
    tile = 4 if block <= 256 else 2 if block <= 1024 else 1
    return {"BLOCK": block, "TILE": tile, **compiler_options(warps)}

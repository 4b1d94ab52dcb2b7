"""Reads features at points between pixels, and adds them up weighted: deformable attention, forward and backward.

u = x W - 1/2,  v = y H - 1/2            where a point (x, y) lies among the pixels of a level of H x W
j, i = floor(u), floor(v)                the pixel to the upper left of it, in row i, and a, b = u - j, v - i
s = (1-a)(1-b) f_i,j + a(1-b) f_i,j+1 + (1-a)b f_i+1,j + a b f_i+1,j+1         pixels outside of the picture are 0
out_d = sum over levels and points of w s_d

dw = sum_d g_d s_d,   dx = w W sum_d g_d ds_d/da,   dy = w H sum_d g_d ds_d/db        g is the gradient of out
df_i,j,d += w (1-a)(1-b) g_d, and likewise for the other three pixels

A program has some queries of one head and all D features of that head. Neighboring programs have the same queries and
other heads, whose features lie side by side in memory. The time is that of reading 4 pixels for each point.

Many queries add to one pixel, in any order. Sums of float32 would then differ from run to run. So they are made of
integers: g w is less than some power of two that is found beforehand, and so is the sum of all queries; what is added
is multiplied by another power of two, so that the largest possible sum has 62 bits, and rounded. That is exact but for
this rounding. Without `DETERMINISTIC` it is float32 that is added up.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# Triton 3.3 compares a compile-time constant with a type in one order alone.
# ruff: noqa: SIM300

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.triton import launch
from actdet_kernels.triton.launch import compiler_options, power_of_2, tile_count, triton_dtype

# The most numbers of a tile (queries, features), and of queries that it has for few features. The gradient has one for
# each thread, so that the threads of a warp add to places that lie side by side in memory: with four for each, it takes
# up to four times as long.
TILE = 1024
GRADIENT_TILE = 128
MOST_QUERIES = 32

# The numbers that a program converts from integers.
BLOCK = 1024


@triton.jit
def locate_queries(queries, heads, BLOCK_Q: tl.constexpr):
    """Return a program's sample, its queries, which of these exist, and its head."""
    tiles = tl.cdiv(queries, BLOCK_Q)
    i_h = tl.program_id(0) % heads
    o_q = tl.program_id(0) // heads % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return tl.program_id(0) // (heads * tiles), o_q, o_q < queries, i_h


@triton.jit
def load_level(levels, level):
    """Load the height and width of a level, and the number of pixels before it."""
    levels += level * 3
    return tl.load(levels), tl.load(levels + 1), tl.load(levels + 2)


@triton.jit
def upper_left(place, size):
    """Return the pixel before a place, how far behind its center the place is, and whether it is inside at all."""
    place = place * size - 0.5
    inside = (place > -1) & (place < size)
    place = tl.where(inside, place, 0.0)
    first = tl.floor(place)
    return first.to(tl.int32), place - first, inside


@triton.jit
def pixel(i, j, height, width, start, mask, m):
    """Return the number of a pixel within its sample, and whether it is in the picture and real."""
    m = m & (i >= 0) & (i < height) & (j >= 0) & (j < width)
    number = start + i * width + j
    if mask is not None:
        m = m & (tl.load(mask + number, mask=m, other=0) != 0)
    return number, m


@triton.jit
def four_pixels(p_points, level, mask, m_q, DTYPE: tl.constexpr):
    """Return the numbers of the pixels around a point of each query, which of them exist, and the point's a and b.

    The order is upper left, upper right, lower left, lower right. `level` is what `load_level` returns.
    """
    height, width, start = level
    j, a, m_x = upper_left(tl.load(p_points, mask=m_q, other=-1).to(DTYPE), width)
    i, b, m_y = upper_left(tl.load(p_points + 1, mask=m_q, other=-1).to(DTYPE), height)
    m = m_q & m_x & m_y
    n1, m1 = pixel(i, j, height, width, start, mask, m)
    n2, m2 = pixel(i, j + 1, height, width, start, mask, m)
    n3, m3 = pixel(i + 1, j, height, width, start, mask, m)
    n4, m4 = pixel(i + 1, j + 1, height, width, start, mask, m)
    return (n1, n2, n3, n4), (m1, m2, m3, m4), a, b


@triton.jit
def load_pixels(values, number, m, stride, o_d, m_d, DTYPE: tl.constexpr):
    """Load the features of a pixel for each query, (queries, features), with 0 outside of the masks."""
    p = values + (number * stride)[:, None] + o_d[None, :]
    return tl.load(p, mask=m[:, None] & m_d[None, :], other=0).to(DTYPE)


@triton.jit(do_not_specialize=["queries", "pixels", "heads", "features", "level_count", "points_each"])
def deformable_attention_kernel(
    values, points, weights, levels, mask, out,
    queries, pixels, heads, features, level_count, points_each,
    DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write out (B, queries, heads, features)."""
    i_b, o_q, m_q, i_h = locate_queries(queries, heads, BLOCK_Q)
    features = features // ALIGNMENT * ALIGNMENT
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < features
    stride = heads * features
    values += i_b.to(tl.int64) * pixels * stride + i_h * features
    if mask is not None:
        mask += i_b.to(tl.int64) * pixels
    row = (i_b.to(tl.int64) * queries + o_q) * heads + i_h
    points += row * (level_count * points_each * 2)
    weights += row * (level_count * points_each)

    total = tl.zeros([BLOCK_Q, BLOCK_D], DTYPE)
    for k in range(level_count * points_each):
        level = load_level(levels, k // points_each)
        n, m, a, b = four_pixels(points + k * 2, level, mask, m_q, DTYPE)
        w = tl.load(weights + k, mask=m_q, other=0).to(DTYPE)
        total += (w * (1 - a) * (1 - b))[:, None] * load_pixels(values, n[0], m[0], stride, o_d, m_d, DTYPE)
        total += (w * a * (1 - b))[:, None] * load_pixels(values, n[1], m[1], stride, o_d, m_d, DTYPE)
        total += (w * (1 - a) * b)[:, None] * load_pixels(values, n[2], m[2], stride, o_d, m_d, DTYPE)
        total += (w * a * b)[:, None] * load_pixels(values, n[3], m[3], stride, o_d, m_d, DTYPE)
    tl.store(out + (row * features)[:, None] + o_d[None, :], total, mask=m_q[:, None] & m_d[None, :])


@triton.jit
def exponent_of(value, DTYPE: tl.constexpr):
    """Return the exponent of a positive number: at most that of the largest, and one less than any for 0."""
    if DTYPE == tl.float64:
        return ((value.to(tl.int64, bitcast=True) >> 52) & 2047).to(tl.int32) - 1023
    else:
        return ((value.to(tl.int32, bitcast=True) >> 23) & 255) - 127


@triton.jit
def power_of_two(exponent, DTYPE: tl.constexpr):
    """Return 2^exponent by its bits, which no approximation touches. The exponent is that of a normal number."""
    if DTYPE == tl.float64:
        return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale_exponent(largest, count, DTYPE: tl.constexpr):
    """Return the exponent e of the scale that makes integers of numbers, and whether that can be done.

    A sum of `count` products, whose factors are at most the two `largest`, times 2^e is below 2^62. Both 2^e and 2^-e
    are normal numbers, so the least that is told from 0 is about the least normal number. It cannot be done if a
    factor is not finite, or if products leave the range of DTYPE.
    """
    bound = 1022 if DTYPE == tl.float64 else 126
    one = tl.load(largest).to(DTYPE)
    other = tl.load(largest + 1).to(DTYPE)
    # Each of these powers of two is larger than what it stands for.
    of_products = exponent_of(one, DTYPE) + 1 + exponent_of(other, DTYPE) + 1
    exponent = 62 - of_products - (exponent_of(count.to(DTYPE), DTYPE) + 1)
    possible = ((one - one) == 0) & ((other - other) == 0) & (exponent >= -bound)
    return tl.minimum(tl.maximum(exponent, -bound), bound), possible


@triton.jit
def add_pixels(sums, share, g, scale, number, m, stride, o_d, m_d, DETERMINISTIC: tl.constexpr):
    """Add share * g to the sums of a pixel for each query, as integers or as they are."""
    p = sums + (number * stride)[:, None] + o_d[None, :]
    m = m[:, None] & m_d[None, :]
    term = share[:, None] * g
    tl.atomic_add(p, (term * scale).to(tl.int64) if DETERMINISTIC else term, mask=m, sem="relaxed")


@triton.jit(do_not_specialize=["queries", "pixels", "heads", "features", "level_count", "points_each"])
def deformable_gradient_kernel(
    d_out, values, points, weights, levels, mask, largest, sums, d_points, d_weights,
    queries, pixels, heads, features, level_count, points_each,
    DETERMINISTIC: tl.constexpr, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write d_points and d_weights, and add to sums, (B, pixels, heads, features), which begin as 0.

    largest: (2,), the largest magnitudes of d_out and of the weights; None if not DETERMINISTIC.
    """
    i_b, o_q, m_q, i_h = locate_queries(queries, heads, BLOCK_Q)
    features = features // ALIGNMENT * ALIGNMENT
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < features
    stride = heads * features
    first = i_b.to(tl.int64) * pixels * stride + i_h * features
    values += first
    sums += first
    if mask is not None:
        mask += i_b.to(tl.int64) * pixels
    row = (i_b.to(tl.int64) * queries + o_q) * heads + i_h
    points += row * (level_count * points_each * 2)
    d_points += row * (level_count * points_each * 2)
    weights += row * (level_count * points_each)
    d_weights += row * (level_count * points_each)

    scale = tl.full([], 1.0, DTYPE)
    if DETERMINISTIC:
        exponent, _ = scale_exponent(largest, queries * points_each, DTYPE)
        scale = power_of_two(exponent, DTYPE)

    g = tl.load(d_out + (row * features)[:, None] + o_d[None, :], mask=m_q[:, None] & m_d[None, :], other=0).to(DTYPE)
    for k in range(level_count * points_each):
        level = load_level(levels, k // points_each)
        n, m, a, b = four_pixels(points + k * 2, level, mask, m_q, DTYPE)
        w = tl.load(weights + k, mask=m_q, other=0).to(DTYPE)

        s1 = tl.sum(g * load_pixels(values, n[0], m[0], stride, o_d, m_d, DTYPE), axis=1)
        s2 = tl.sum(g * load_pixels(values, n[1], m[1], stride, o_d, m_d, DTYPE), axis=1)
        s3 = tl.sum(g * load_pixels(values, n[2], m[2], stride, o_d, m_d, DTYPE), axis=1)
        s4 = tl.sum(g * load_pixels(values, n[3], m[3], stride, o_d, m_d, DTYPE), axis=1)
        above = s1 + a * (s2 - s1)
        below = s3 + a * (s4 - s3)
        tl.store(d_weights + k, above + b * (below - above), mask=m_q)
        to_right = s2 - s1 + b * ((s4 - s3) - (s2 - s1))
        tl.store(d_points + k * 2, w * level[1] * to_right, mask=m_q)
        tl.store(d_points + k * 2 + 1, w * level[0] * (below - above), mask=m_q)

        add_pixels(sums, w * (1 - a) * (1 - b), g, scale, n[0], m[0], stride, o_d, m_d, DETERMINISTIC)
        add_pixels(sums, w * a * (1 - b), g, scale, n[1], m[1], stride, o_d, m_d, DETERMINISTIC)
        add_pixels(sums, w * (1 - a) * b, g, scale, n[2], m[2], stride, o_d, m_d, DETERMINISTIC)
        add_pixels(sums, w * a * b, g, scale, n[3], m[3], stride, o_d, m_d, DETERMINISTIC)


@triton.jit(do_not_specialize=["size", "count"])
def from_integers_kernel(
    sums, largest, d_values,
    size, count,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write d_values, (size,). All are NaN if they cannot be told from integers, as `scale_exponent` says."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < size
    exponent, possible = scale_exponent(largest, count, DTYPE)
    value = tl.load(sums + o, mask=m, other=0).to(DTYPE) * power_of_two(-exponent, DTYPE)
    tl.store(d_values + o, tl.where(possible, value, float("nan")), mask=m)


def deformable_attention(
    values: Tensor, points: Tensor, weights: Tensor, sizes: tuple[int, ...], mask: Tensor | None
) -> Tensor:
    """Return (B, Q, H * D) of values' dtype. `sizes` are height, width, height, ..."""
    batch, _, heads, features = values.shape
    queries = points.shape[1]
    out = launch.empty((batch, queries, heads * features), values.dtype, values.device)
    given, programs = tile_arguments(values, points, weights, sizes, mask, TILE, fused=True)
    launch.launch(deformable_attention_kernel, programs, out=out, **given)
    return out


def deformable_attention_gradient(
    d_out: Tensor,
    values: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: tuple[int, ...],
    mask: Tensor | None,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of values, points and weights, given that of the result."""
    compute = compute_dtype(values, points, weights)
    d_points = launch.empty(tuple(points.shape), points.dtype, points.device)
    d_weights = launch.empty(tuple(weights.shape), weights.dtype, weights.device)
    d_out = d_out.contiguous()
    largest = None
    if deterministic and d_out.numel() > 0 and weights.numel() > 0:
        norms = [torch.linalg.vector_norm(value, torch.inf, dtype=compute) for value in (d_out, weights)]
        largest = torch.stack(norms)
    sums = torch.zeros(values.shape, dtype=compute if largest is None else torch.int64, device=values.device)

    # If fused, a product is rounded by the threads that get it from another one, and not by the one that has it. Their
    # sums differ then, and it is not said whose is stored.
    given, programs = tile_arguments(values, points, weights, sizes, mask, GRADIENT_TILE, fused=False)
    launch.launch(
        deformable_gradient_kernel,
        programs,
        d_out=d_out,
        largest=largest,
        sums=sums,
        d_points=d_points,
        d_weights=d_weights,
        DETERMINISTIC=largest is not None,
        **given,
    )
    if largest is None:
        return sums.to(values.dtype), d_points, d_weights

    d_values = launch.empty(tuple(values.shape), values.dtype, values.device)
    launch.launch(
        from_integers_kernel,
        tile_count(sums.numel(), BLOCK),
        sums=sums,
        largest=largest,
        d_values=d_values,
        size=sums.numel(),
        count=points.shape[1] * points.shape[4],
        DTYPE=triton_dtype(compute),
        BLOCK=BLOCK,
        **compiler_options(),
    )
    return d_values, d_points, d_weights


def tile_arguments(
    values: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: tuple[int, ...],
    mask: Tensor | None,
    tile: int,
    fused: bool,
) -> tuple[dict[str, Any], int]:
    """Return the arguments of both kernels that read features, and the number of their programs.

    `tile` is the most numbers of a tile in float32. In float64 it has half as many.
    """
    batch, pixels, heads, features = values.shape
    _, queries, _, levels, points_each, _ = points.shape
    compute = compute_dtype(values, points, weights)
    if compute == torch.float64:
        tile //= 2
    block_d = power_of_2(features)
    # Not 1: for a tile of one number, Triton's interpreter takes an `other` of 0 for none.
    block_q = max(min(power_of_2(queries), MOST_QUERIES, tile // block_d), 2)
    arguments = {
        "values": values.contiguous(),
        "points": points.contiguous(),
        "weights": weights.contiguous(),
        "levels": level_table(sizes, values.device),
        "mask": None if mask is None else mask.contiguous(),
        "queries": queries,
        "pixels": pixels,
        "heads": heads,
        "features": features,
        "level_count": levels,
        "points_each": points_each,
        "DTYPE": triton_dtype(compute),
        "ALIGNMENT": min(features & -features, 8),
        "BLOCK_Q": block_q,
        "BLOCK_D": block_d,
        **compiler_options(warps=4 if block_q * block_d > tile // 4 else 1, fused=fused),
    }
    return arguments, batch * heads * tile_count(queries, block_q)


def compute_dtype(values: Tensor, points: Tensor, weights: Tensor) -> torch.dtype:
    dtype = torch.promote_types(torch.promote_types(values.dtype, points.dtype), weights.dtype)
    return torch.promote_types(dtype, torch.float32)


@cache
def level_table(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return (L, 3) int32: height, width, and the number of pixels of all levels before.

    It is copied to a device once, so a call with new sizes waits for the device, and cannot be captured in a graph.
    """
    rows = []
    start = 0
    for height, width in zip(sizes[::2], sizes[1::2], strict=True):
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)

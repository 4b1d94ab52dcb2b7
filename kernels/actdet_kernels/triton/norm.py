"""Normalizes channels-last features over the batch, with the sum and the ReLU after it, in training, and its gradient.

mean_c = sum_r x_rc / R,   var_c = sum_r (x_rc - mean_c)^2 / R,   n_rc = (x_rc - mean_c) / sqrt(var_c + eps)
y_rc = relu(w_c n_rc + b_c + s_rc)                         the ReLU and the shortcut s only where they are asked for
g_rc = dy_rc where what the ReLU sees is above 0, else 0;  ds_rc = g_rc,   db_c = sum_r g_rc,   dw_c = sum_r g_rc n_rc
dx_rc = w_c / sqrt(var_c + eps) (g_rc - db_c / R - n_rc dw_c / R)

Features are R rows (samples, frames and pixels) of channels that lie side by side. The time is that of reading and
writing them: three times forward and five times backward; PyTorch's BatchNorm and ReLU take five and eight. With a
shortcut it is four and seven times, where PyTorch, which adds it in place, takes eight and ten. The sign of what the
ReLU saw is computed again rather than read.

Sums are made in stages with a fixed order, so that two runs give the same bits. Every program adds up some rows element
by element, and across its threads once at the end. Then one program for some channels adds up the results of these
programs, in float64. Squares are taken of the distance from the first row, so that a large mean does not swallow a
small variance.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.triton import launch
from actdet_kernels.triton.launch import compiler_options, tile_count, triton_dtype

# The number of rows and of channels that a program has in registers at a time, and of rows that it normalizes.
BLOCK_R = 64
BLOCK_C = 64
ROWS_EACH = 256

# The number of programs that add up rows, slightly more than a large GPU runs at a time. How many of their sums are
# added up at a time, and of how many channels: of few, since nothing else runs meanwhile, and many programs wait less.
PROGRAMS = 1024
BLOCK_P = 128
SUMMED_C = 8


@triton.jit
def locate(channels, ALIGNMENT: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return what a program works on: its share of the rows, its channels, and which of these exist.

    The number of channels is returned, too, in a form that tells the compiler that it is a multiple of ALIGNMENT. Rows
    can then be read 16 bytes at a time.
    """
    channels = channels // ALIGNMENT * ALIGNMENT
    blocks = tl.cdiv(channels, BLOCK_C)
    o_c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return tl.program_id(0) // blocks, o_c, o_c < channels, channels


@triton.jit
def load_tile(features, o_r, o_c, channels, m, DTYPE: tl.constexpr):
    """Load a tile (rows, channels) of the features, with 0 outside of the mask."""
    return tl.load(features + (o_r.to(tl.int64) * channels)[:, None] + o_c[None, :], mask=m, other=0).to(DTYPE)


@triton.jit
def load_channels(values, o_c, m_c, DTYPE: tl.constexpr):
    """Load a value for each channel as (1, channels), which broadcasts over rows."""
    return tl.load(values + o_c, mask=m_c, other=0).to(DTYPE)[None, :]


@triton.jit
def load_affine(weight, bias, statistics, o_c, m_c, channels, DTYPE: tl.constexpr):
    """Load what `normalized` needs: weight, bias, mean and 1 / sqrt(var + eps) of each channel."""
    return (
        load_channels(weight, o_c, m_c, DTYPE),
        load_channels(bias, o_c, m_c, DTYPE),
        load_channels(statistics, o_c, m_c, DTYPE),
        load_channels(statistics + channels, o_c, m_c, DTYPE),
    )


@triton.jit
def normalized(x, affine):
    """Return n and w n + b."""
    weight, bias, mean, scale = affine
    n = (x - mean) * scale
    return n, weight * n + bias


@triton.jit
def store_tile(features, value, o_r, o_c, channels, m):
    tl.store(features + (o_r.to(tl.int64) * channels)[:, None] + o_c[None, :], value, mask=m)


@triton.jit
def rectified_gradient(d_y, y, RELU: tl.constexpr):
    """Return the gradient that passes through the ReLU. It passes if y is NaN, as in PyTorch."""
    return tl.where(y <= 0, 0.0, d_y) if RELU else d_y


@triton.jit(do_not_specialize=["rows", "channels", "rows_each"])
def feature_sums_kernel(
    x, sums,
    rows, channels, rows_each,
    DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write sums (2, shares, channels) of the distance from the first row, and of its square."""
    i_p, o_c, m_c, channels = locate(channels, ALIGNMENT, BLOCK_C)
    origin = load_channels(x, o_c, m_c, DTYPE)

    total = tl.zeros([BLOCK_R, BLOCK_C], DTYPE)
    squares = tl.zeros([BLOCK_R, BLOCK_C], DTYPE)
    last = tl.minimum((i_p + 1) * rows_each, rows)
    for first in range(i_p * rows_each, last, BLOCK_R):
        o_r = first + tl.arange(0, BLOCK_R)
        m = (o_r < last)[:, None] & m_c[None, :]
        distance = tl.where(m, load_tile(x, o_r, o_c, channels, m, DTYPE) - origin, 0.0)
        total += distance
        squares += distance * distance
    p_sums = sums + i_p * channels + o_c
    tl.store(p_sums, tl.sum(total, axis=0), mask=m_c)
    tl.store(p_sums + tl.cdiv(rows, rows_each) * channels, tl.sum(squares, axis=0), mask=m_c)


@triton.jit
def sums_of_shares(sums, shares, channels, o_c, m_c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Add up both sums of all programs, (2, shares, channels), to (BLOCK_C,) float64 each."""
    one = tl.zeros([BLOCK_P, BLOCK_C], tl.float64)
    other = tl.zeros([BLOCK_P, BLOCK_C], tl.float64)
    for first in range(0, shares, BLOCK_P):
        o_p = first + tl.arange(0, BLOCK_P)
        m = (o_p < shares)[:, None] & m_c[None, :]
        p_sums = sums + o_p[:, None] * channels + o_c[None, :]
        one += tl.load(p_sums, mask=m, other=0).to(tl.float64)
        other += tl.load(p_sums + shares * channels, mask=m, other=0).to(tl.float64)
    return tl.sum(one, axis=0), tl.sum(other, axis=0)


@triton.jit(do_not_specialize=["rows", "channels", "shares"])
def statistics_kernel(
    x, sums, statistics,
    rows, channels, shares,
    EPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write statistics (3, channels): mean, 1 / sqrt(var + eps), and the variance with R - 1 in place of R."""
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    count = rows.to(tl.float64)
    total, squares = sums_of_shares(sums, shares, channels, o_c, m_c, BLOCK_P, BLOCK_C)
    shift = total / count

    # If all rows are the same, rounding may leave a variance below 0. NaN stays NaN.
    variance = squares / count - shift * shift
    variance = tl.where(variance < 0, 0.0, variance)
    scale = 1.0 / tl.sqrt(variance + tl.full([], EPS, tl.float64))
    mean = tl.load(x + o_c, mask=m_c, other=0).to(tl.float64) + shift
    tl.store(statistics + o_c, mean, mask=m_c)
    tl.store(statistics + channels + o_c, scale, mask=m_c)
    tl.store(statistics + 2 * channels + o_c, variance * (count / (count - 1)), mask=m_c)


@triton.jit(do_not_specialize=["rows", "channels"])
def normalize_kernel(
    x, weight, bias, shortcut, statistics, y,
    rows, channels,
    RELU: tl.constexpr, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr, ROWS_EACH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write y. `shortcut` is None if nothing is added."""
    i_p, o_c, m_c, channels = locate(channels, ALIGNMENT, BLOCK_C)
    affine = load_affine(weight, bias, statistics, o_c, m_c, channels, DTYPE)
    for first in range(i_p * ROWS_EACH, tl.minimum((i_p + 1) * ROWS_EACH, rows), BLOCK_R):
        o_r = first + tl.arange(0, BLOCK_R)
        m = (o_r < rows)[:, None] & m_c[None, :]
        value = normalized(load_tile(x, o_r, o_c, channels, m, DTYPE), affine)[1]
        if shortcut is not None:
            value += load_tile(shortcut, o_r, o_c, channels, m, DTYPE)
        if RELU:
            value = tl.where(value <= 0, 0.0, value)
        store_tile(y, value, o_r, o_c, channels, m)


@triton.jit(do_not_specialize=["rows", "channels", "rows_each"])
def gradient_sums_kernel(
    d_y, x, weight, bias, shortcut, statistics, sums, d_shortcut,
    rows, channels, rows_each,
    RELU: tl.constexpr, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write sums (2, shares, channels) of g, and of g n. Write g itself to `d_shortcut` if there is a `shortcut`."""
    i_p, o_c, m_c, channels = locate(channels, ALIGNMENT, BLOCK_C)
    affine = load_affine(weight, bias, statistics, o_c, m_c, channels, DTYPE)

    total = tl.zeros([BLOCK_R, BLOCK_C], DTYPE)
    products = tl.zeros([BLOCK_R, BLOCK_C], DTYPE)
    last = tl.minimum((i_p + 1) * rows_each, rows)
    for first in range(i_p * rows_each, last, BLOCK_R):
        o_r = first + tl.arange(0, BLOCK_R)
        m = (o_r < last)[:, None] & m_c[None, :]
        n, value = normalized(load_tile(x, o_r, o_c, channels, m, DTYPE), affine)
        if shortcut is not None:
            value += load_tile(shortcut, o_r, o_c, channels, m, DTYPE)
        g = rectified_gradient(load_tile(d_y, o_r, o_c, channels, m, DTYPE), value, RELU)
        if shortcut is not None:
            store_tile(d_shortcut, g, o_r, o_c, channels, m)
        total += g
        # Outside of the mask x was loaded as 0, so n is not 0 there. But g is 0.
        products += g * n
    p_sums = sums + i_p * channels + o_c
    tl.store(p_sums, tl.sum(total, axis=0), mask=m_c)
    tl.store(p_sums + tl.cdiv(rows, rows_each) * channels, tl.sum(products, axis=0), mask=m_c)


@triton.jit(do_not_specialize=["channels", "shares"])
def weight_gradient_kernel(
    sums, d_weight, d_bias,
    channels, shares,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    of_bias, of_weight = sums_of_shares(sums, shares, channels, o_c, m_c, BLOCK_P, BLOCK_C)
    tl.store(d_bias + o_c, of_bias, mask=m_c)
    tl.store(d_weight + o_c, of_weight, mask=m_c)


@triton.jit(do_not_specialize=["rows", "channels"])
def feature_gradient_kernel(
    d_y, x, weight, bias, statistics, d_weight, d_bias, d_x,
    rows, channels,
    RELU: tl.constexpr, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr, ROWS_EACH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    i_p, o_c, m_c, channels = locate(channels, ALIGNMENT, BLOCK_C)
    affine = load_affine(weight, bias, statistics, o_c, m_c, channels, DTYPE)
    mean_g = load_channels(d_bias, o_c, m_c, DTYPE) / rows
    mean_gn = load_channels(d_weight, o_c, m_c, DTYPE) / rows
    for first in range(i_p * ROWS_EACH, tl.minimum((i_p + 1) * ROWS_EACH, rows), BLOCK_R):
        o_r = first + tl.arange(0, BLOCK_R)
        m = (o_r < rows)[:, None] & m_c[None, :]
        n, value = normalized(load_tile(x, o_r, o_c, channels, m, DTYPE), affine)
        g = rectified_gradient(load_tile(d_y, o_r, o_c, channels, m, DTYPE), value, RELU)
        gradient = affine[0] * affine[3] * (g - mean_g - n * mean_gn)
        store_tile(d_x, gradient, o_r, o_c, channels, m)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, relu: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Return y like x (B, C, ...), channels-last, and the statistics (3, C) that `statistics_kernel` writes.

    The shortcut has x's dtype and memory layout.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    tiles = tile_arguments(x, compute)
    rows = tiles["rows"]
    channels = tiles["channels"]
    shares, rows_each = shares_of(rows, channels)
    sums = launch.empty((2, shares, channels), compute, x.device)
    statistics = launch.empty((3, channels), compute, x.device)
    y = launch.empty_like(x)
    blocks = tile_count(channels, BLOCK_C)

    launch.launch(feature_sums_kernel, shares * blocks, x=x, sums=sums, rows_each=rows_each, **tiles)
    launch.launch(
        statistics_kernel,
        tile_count(channels, SUMMED_C),
        x=x,
        sums=sums,
        statistics=statistics,
        rows=rows,
        channels=channels,
        shares=shares,
        EPS=float(eps),
        **sum_options(),
    )
    launch.launch(
        normalize_kernel,
        tile_count(rows, ROWS_EACH) * blocks,
        x=x,
        weight=weight,
        bias=bias,
        shortcut=shortcut,
        statistics=statistics,
        y=y,
        RELU=relu,
        ROWS_EACH=ROWS_EACH,
        **tiles,
    )
    return y, statistics


def batch_norm_gradient(
    d_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, statistics: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, weight, bias and, if there is one, of the shortcut, given that of y.

    The gradient of y has x's memory layout. The shortcut is None, too, if there is no ReLU: nothing depends on it then,
    and its gradient is that of y.
    """
    compute = statistics.dtype
    tiles = tile_arguments(x, compute)
    channels = tiles["channels"]
    shares, rows_each = shares_of(tiles["rows"], channels)
    sums = launch.empty((2, shares, channels), compute, x.device)
    d_weight, d_bias = (launch.empty((channels,), compute, x.device) for _ in range(2))
    d_x = launch.empty_like(x)
    d_shortcut = None if shortcut is None else launch.empty_like(x)
    blocks = tile_count(channels, BLOCK_C)
    given = {"x": x, "weight": weight, "bias": bias, "statistics": statistics, **tiles}

    launch.launch(
        gradient_sums_kernel,
        shares * blocks,
        d_y=d_y,
        shortcut=shortcut,
        sums=sums,
        d_shortcut=d_shortcut,
        rows_each=rows_each,
        RELU=relu,
        # Four features of a whole block would leave room for two programs at a time, not four.
        **given | {"BLOCK_R": tiles["BLOCK_R"] if d_shortcut is None else tiles["BLOCK_R"] // 2},
    )
    launch.launch(
        weight_gradient_kernel,
        tile_count(channels, SUMMED_C),
        sums=sums,
        d_weight=d_weight,
        d_bias=d_bias,
        channels=channels,
        shares=shares,
        **sum_options(),
    )
    # The gradient of the shortcut is g itself, which then need not be found again.
    launch.launch(
        feature_gradient_kernel,
        tile_count(tiles["rows"], ROWS_EACH) * blocks,
        d_y=d_y if d_shortcut is None else d_shortcut,
        d_weight=d_weight,
        d_bias=d_bias,
        d_x=d_x,
        RELU=relu and d_shortcut is None,
        ROWS_EACH=ROWS_EACH,
        **given,
    )
    return d_x, d_weight.to(weight.dtype), d_bias.to(bias.dtype), d_shortcut


def shares_of(rows: int, channels: int) -> tuple[int, int]:
    """Return how many programs add up the rows of one block of channels, and how many rows each of them takes."""
    programs = min(tile_count(rows, BLOCK_R), max(PROGRAMS // tile_count(channels, BLOCK_C), 1))
    rows_each = tile_count(tile_count(rows, programs), BLOCK_R) * BLOCK_R
    return tile_count(rows, rows_each), rows_each


def tile_arguments(x: Tensor, compute: torch.dtype) -> dict[str, Any]:
    """Return the arguments of every kernel that reads features: their sizes and those of its blocks."""
    channels = x.shape[1]
    return {
        "rows": x.numel() // channels,
        "channels": channels,
        "DTYPE": triton_dtype(compute),
        "ALIGNMENT": min(channels & -channels, 8),
        # In float64, a whole block would nearly spill.
        "BLOCK_R": BLOCK_R // 2 if compute == torch.float64 else BLOCK_R,
        "BLOCK_C": BLOCK_C,
        **compiler_options(),
    }


def sum_options() -> dict[str, Any]:
    """Return the options of the kernels that add up the sums of all programs."""
    return {"BLOCK_P": BLOCK_P, "BLOCK_C": SUMMED_C, **compiler_options()}

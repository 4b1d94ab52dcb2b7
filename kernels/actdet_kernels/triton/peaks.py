"""Finds the highest peaks of a map of centers, and gathers the tubelet of each, in one launch.

peak: no neighbor among the eight is higher, and the logit is above minus infinity
order: the highest logit first, and of equals the one of the lower channel, then of the lower pixel
center in frame j = (x + 1/2, y + 1/2) + movement_j,   u, v = its pixel, clamped to the grid
box in frame j = (u + 1/2 - left, v + 1/2 - top, u + 1/2 + right, v + 1/2 + bottom), the sides those of pixel (u, v)

A program has a sample, whose logits are numbered channel by channel and row by row. Number i belongs to lane i modulo
LANES. First each lane finds the first peak among its logits, which needs no other lane. Then the first of all lanes is
taken as often as there are peaks to be found, and each time its lane alone is searched again, for the first peak behind
the one that was taken. So the map is read once, and a fraction of it for each peak. No size is a compile-time constant.

Peaks are compared by their depth, the negative of the logit, because `least_and_first` finds the least.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.centers import CenterMaps
from actdet_kernels.peaks import flat_map
from actdet_kernels.reference import widest
from actdet_kernels.triton import launch
from actdet_kernels.triton.assignment import least_and_first
from actdet_kernels.triton.launch import compiler_options, triton_dtype

INFINITY = tl.constexpr(float("inf"))

# The lanes of a program, and the numbers of the results that it writes at a time.
LANES = 1024
WARPS = 8


@triton.jit
def depths(centers, o, size, height, width, stride_c, stride_p, DTYPE: tl.constexpr):
    """Return how deep the peaks among the logits with the numbers `o` are: infinity for what is no peak."""
    m = o < size
    pixel = o % (height * width)
    y = pixel // width
    x = pixel % width
    p = centers + (o // (height * width)).to(tl.int64) * stride_c + pixel.to(tl.int64) * stride_p
    logit = tl.load(p, mask=m, other=0).to(DTYPE)

    # A comparison with NaN is false, so that NaN is neither a peak nor a higher neighbor.
    is_peak = m & (logit > -INFINITY)
    for i in tl.static_range(9):
        dy = i // 3 - 1
        dx = i % 3 - 1
        inside = m & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        neighbor = tl.load(p + (dy * width + dx) * stride_p, mask=inside, other=0).to(DTYPE)
        is_peak = is_peak & ((inside & (neighbor > logit)) == 0)

    # The difference from 0 is never -0, which `least_and_first` would take for less than 0.
    return tl.where(is_peak, 0.0 - logit, INFINITY)


@triton.jit
def pixel_of(place, size):
    """Return the pixel in which a place along a side of `size` pixels is, clamped to the grid."""
    place = tl.minimum(tl.maximum(place, 0.0), size.to(place.dtype))
    return tl.minimum(place.to(tl.int32), size - 1)


@triton.jit
def load_channel(values, channel, pixel, stride_c, stride_p, m, DTYPE: tl.constexpr):
    """Load one channel of each pixel, with 0 outside of the mask."""
    p = values + channel.to(tl.int64) * stride_c + pixel.to(tl.int64) * stride_p
    return tl.load(p, mask=m, other=0).to(DTYPE)


@triton.jit(do_not_specialize=[
    "size", "height", "width", "frames", "rows", "columns", "count", "peaks", "centers_b", "centers_c", "centers_p",
    "movement_b", "movement_c", "movement_p", "sizes_b", "sizes_c", "sizes_p", "classes_b", "classes_c", "classes_p",
])  # fmt: skip
def center_peaks_kernel(
    centers, movement, sizes, classes, pixels, channels, scores, boxes, logits,
    size, height, width, frames, rows, columns, count, peaks,
    centers_b, centers_c, centers_p, movement_b, movement_c, movement_p,
    sizes_b, sizes_c, sizes_p, classes_b, classes_c, classes_p,
    MOVED: tl.constexpr, DTYPE: tl.constexpr, LANES: tl.constexpr, REDUX: tl.constexpr,
):  # fmt: skip
    """Write all of a sample's results.

    size: The number of its logits of centers. (rows, columns): the grid of the classes, of which there are `count`.
    """
    i_b = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, LANES)
    centers += i_b * centers_b
    movement += i_b * movement_b
    sizes += i_b * sizes_b
    pixels += i_b * peaks
    channels += i_b * peaks
    scores += i_b * peaks
    boxes += i_b * peaks * frames * 4

    # The first peak of each lane, and its number. Of equals a lane meets the one with the lower number first.
    depth = tl.full([LANES], INFINITY, DTYPE)
    number = tl.zeros([LANES], tl.int32)
    for first in range(0, size, LANES):
        o_i = first + o
        found = depths(centers, o_i, size, height, width, centers_c, centers_p, DTYPE)
        closer = found < depth
        depth = tl.where(closer, found, depth)
        number = tl.where(closer, o_i, number)

    for n in range(peaks):
        least, i = least_and_first(depth, number, REDUX)

        # Of its lane, the first peak behind it.
        lane = i % LANES
        next_depth = tl.full([LANES], INFINITY, DTYPE)
        next_number = tl.zeros([LANES], tl.int32)
        for first in range(0, size, LANES * LANES):
            o_i = first + o * LANES + lane
            found = depths(centers, o_i, size, height, width, centers_c, centers_p, DTYPE)
            is_behind = (found > least) | ((found == least) & (o_i > i))
            closer = is_behind & (found < next_depth)
            next_depth = tl.where(closer, found, next_depth)
            next_number = tl.where(closer, o_i, next_number)
        lane_depth, lane_number = least_and_first(next_depth, next_number, REDUX)
        depth = tl.where(o == lane, lane_depth, depth)
        number = tl.where(o == lane, lane_number, number)

        exists = least < INFINITY
        tl.store(pixels + n, tl.where(exists, i % (height * width), -1))
        tl.store(channels + n, tl.where(exists, i // (height * width), 0))
        tl.store(scores + n, 1 / (1 + tl.exp(least)))

    # Each thread now reads the pixels that one thread has written.
    tl.debug_barrier()
    for first in range(0, peaks * frames, LANES):
        o_k = first + o
        m = o_k < peaks * frames
        frame = o_k % frames
        pixel = tl.load(pixels + o_k // frames, mask=m, other=-1).to(tl.int32)
        exists = pixel >= 0
        pixel = tl.where(exists, pixel, 0)
        u = pixel % width
        v = pixel // width
        if MOVED:
            dx = load_channel(movement, 2 * frame, pixel, movement_c, movement_p, exists, DTYPE)
            dy = load_channel(movement, 2 * frame + 1, pixel, movement_c, movement_p, exists, DTYPE)
            u = pixel_of(u.to(DTYPE) + 0.5 + tl.where(tl.abs(dx) < INFINITY, dx, 0.0), width)
            v = pixel_of(v.to(DTYPE) + 0.5 + tl.where(tl.abs(dy) < INFINITY, dy, 0.0), height)

        pixel = v * width + u
        left = load_channel(sizes, 4 * frame, pixel, sizes_c, sizes_p, exists, DTYPE)
        top = load_channel(sizes, 4 * frame + 1, pixel, sizes_c, sizes_p, exists, DTYPE)
        right = load_channel(sizes, 4 * frame + 2, pixel, sizes_c, sizes_p, exists, DTYPE)
        bottom = load_channel(sizes, 4 * frame + 3, pixel, sizes_c, sizes_p, exists, DTYPE)

        p_box = boxes + o_k * 4
        center_x = (u.to(DTYPE) + 0.5 + (right - left) / 2) / width.to(DTYPE)
        center_y = (v.to(DTYPE) + 0.5 + (bottom - top) / 2) / height.to(DTYPE)
        tl.store(p_box, tl.where(exists, center_x, 0.0), mask=m)
        tl.store(p_box + 1, tl.where(exists, center_y, 0.0), mask=m)
        tl.store(p_box + 2, (left + right) / width.to(DTYPE), mask=m)
        tl.store(p_box + 3, (top + bottom) / height.to(DTYPE), mask=m)

    if classes is not None:
        classes += i_b * classes_b
        logits += i_b * peaks * count
        for first in range(0, peaks * count, LANES):
            o_c = first + o
            m = o_c < peaks * count
            pixel = tl.load(pixels + o_c // count, mask=m, other=-1).to(tl.int32)
            exists = pixel >= 0
            row = (2 * (pixel // width) + 1) * rows // (2 * height)
            column = (2 * (pixel % width) + 1) * columns // (2 * width)
            cell = row * columns + column
            logit = load_channel(classes, o_c % count, cell, classes_c, classes_p, exists, DTYPE)
            tl.store(logits + o_c, logit, mask=m)


def center_peaks(maps: CenterMaps, peaks: int, moved: bool) -> tuple[Tensor, ...]:
    """Return the fields of `actdet_kernels.Peaks`."""
    centers, _, _, classes = maps
    batch, channels, height, width = centers.shape
    frames = maps.movement.shape[1]
    count, rows, columns = (0, 0, 0) if classes is None else classes.shape[1:]
    dtype = widest(*maps)

    pixels = launch.empty((batch, peaks), torch.int64, centers.device)
    channel_numbers = launch.empty((batch, peaks), torch.int64, centers.device)
    scores = launch.empty((batch, peaks), dtype, centers.device)
    boxes = launch.empty((batch, peaks, frames, 4), dtype, centers.device)
    logits = launch.empty((batch, peaks, count), dtype, centers.device)
    launch.launch(
        center_peaks_kernel,
        batch,
        **_maps(maps),
        pixels=pixels,
        channels=channel_numbers,
        scores=scores,
        boxes=boxes,
        logits=None if classes is None else logits,
        size=channels * height * width,
        height=height,
        width=width,
        frames=frames,
        rows=rows,
        columns=columns,
        count=count,
        peaks=peaks,
        MOVED=moved,
        DTYPE=triton_dtype(dtype),
        LANES=LANES,
        REDUX=launch.has_redux(centers.device),
        **compiler_options(WARPS),
    )
    return pixels, channel_numbers, scores, boxes, logits


def _maps(maps: CenterMaps) -> dict[str, Any]:
    """Return the maps and their strides under the names of the kernel's arguments."""
    arguments: dict[str, Any] = {}
    for name, values in zip(maps._fields, maps, strict=True):
        flat = None if values is None else flat_map(values)
        strides = (0, 0, 0) if flat is None else flat.stride()
        arguments[name] = flat
        arguments |= dict(zip((f"{name}_b", f"{name}_c", f"{name}_p"), strides, strict=True))
    return arguments

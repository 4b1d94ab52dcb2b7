"""Computes the loss of maps of centers, movement, sizes and classes in three launches, and its gradient in two.

`actdet_kernels.centers` has the formulas. No target is written to memory: a program takes some pixels of the grid, goes
through the actors of its sample, and has in registers what they want of these pixels.

`actors_kernel` writes a row of numbers for each actor: how large its areas are, whether it counts, and where it is in
each frame. `center_loss_kernel` has programs for the centers, for each frame of movement and sizes, and for the classes
of each sample. Each writes its sums, which `center_total_kernel` adds up in a fixed order, so that two runs give the
same bits. `center_gradient_kernel` computes all of it again, which moves less memory than keeping gradients from the
forward pass.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportPossiblyUnboundVariable=false
# Triton 3.3 compares a compile-time constant with a type in one order alone.
# ruff: noqa: SIM300

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels import reference, reference_centers
from actdet_kernels.centers import CenterMaps, class_count
from actdet_kernels.options import CenterOptions
from actdet_kernels.targets import Tubelets
from actdet_kernels.triton import launch
from actdet_kernels.triton.boxes import box_giou, giou_gradient, load_box, not_negative
from actdet_kernels.triton.classes import MINUS_INFINITY, sign_of
from actdet_kernels.triton.launch import compiler_options, tile_count, triton_dtype

# The pixels of the grid, the cells of the classes' grid, and the actors, that a program takes at a time.
BLOCK_P = 256
BLOCK_H = 64
BLOCK_M = 16

# The sums of programs that are added up at a time, and the warps that do it.
BLOCK_I = 512
TOTAL_WARPS = 8

# What the row of an actor begins with: the area of its box in the key frame, infinite if it does not count; the radius
# of its center; how far the areas for movement and sides reach to the sides, and up and down; the weight of the
# movement; the pixel of its center in the key frame, and the cell of the classes' grid; and its label.
AREA = tl.constexpr(0)
RADIUS = tl.constexpr(1)
MOVEMENT_REACH = tl.constexpr(2)
SIZE_REACH = tl.constexpr(4)
MOVEMENT_WEIGHT = tl.constexpr(6)
KEY_PIXEL = tl.constexpr(7)
CELL = tl.constexpr(9)
LABEL = tl.constexpr(10)
OF_ACTOR = tl.constexpr(11)

# Then come for each frame: whether it is visible; the weight of the sides; the pixel about which they are learned; and
# its box, cx, cy, w and h in pixels of the grid.
SEEN = tl.constexpr(0)
SIZE_WEIGHT = tl.constexpr(1)
PIXEL = tl.constexpr(2)
BOX = tl.constexpr(4)
OF_FRAME = tl.constexpr(8)

IOU = tl.constexpr(reference_centers.HEAT_MAP_IOU)
SHARE = tl.constexpr(reference_centers.AREA_SHARE)
E = tl.constexpr(math.e)


@triton.jit
def root(x, DTYPE: tl.constexpr):
    """Return the square root, rounded to nearest."""
    return tl.sqrt(x) if DTYPE == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def heat_map_radius(width, height, CORRECTED: tl.constexpr, DTYPE: tl.constexpr):
    """Return how far a center may be moved so that the IoU is 0.7, rounded down, as `reference_centers` defines it."""
    # The constants get the type of the sides, because Triton would round a Python float to float32.
    iou = tl.full([], IOU, DTYPE)
    around = width + height
    area = width * height
    c1 = area * (tl.full([], 1 - IOU, DTYPE) / tl.full([], 1 + IOU, DTYPE))
    c2 = tl.full([], 1 - IOU, DTYPE) * area
    root1 = root(not_negative(around * around - 4 * c1), DTYPE)
    root2 = root(not_negative(4 * around * around - 16 * c2), DTYPE)
    b3 = -2 * iou * around
    root3 = root(not_negative(b3 * b3 + 16 * iou * c2), DTYPE)
    if CORRECTED:
        r1 = (around - root1) / 2
        r2 = (2 * around - root2) / 8
        r3 = (b3 + root3) / (8 * iou)
    else:
        r1 = (around + root1) / 2
        r2 = (2 * around + root2) / 2
        r3 = (b3 + root3) / 2
    return not_negative(tl.floor(tl.minimum(tl.minimum(r1, r2), r3)))


@triton.jit
def half_sides(width, height, radius, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """Return how far an area reaches from its center to the sides, and up and down."""
    if KIND == "ellipse":
        across = tl.floor(width / 2 * tl.full([], SHARE, DTYPE))
        down = tl.floor(height / 2 * tl.full([], SHARE, DTYPE))
    elif KIND == "circle":
        across = radius
        down = radius
    else:
        across = radius * 0
        down = radius * 0
    return across, down


@triton.jit
def bump(distance, reach):
    """Return a Gaussian of standard deviation (2 r + 1) / 6, and 0 beyond the reach r."""
    spread = (2 * reach + 1) / 6
    return tl.where(tl.abs(distance) <= reach, tl.exp(-(distance * distance) / (2 * spread * spread)), 0.0)


@triton.jit
def sum_of_bump(center, reach, size):
    """Return the sum of `bump` over the pixels 0 to size - 1 about each center (BLOCK_M,)."""
    total = bump(center * 0, reach)
    # There is nothing beyond the grid, however large a box is.
    farthest = tl.minimum(tl.max(reach, axis=0), size.to(reach.dtype)).to(tl.int32)
    for step in range(1, farthest + 1):
        distance = center * 0 + step
        both = (center - step >= 0).to(total.dtype) + (center + step < size).to(total.dtype)
        total += both * bump(distance, reach)
    return total


@triton.jit
def pixel_of(place, size):
    """Return the pixel that a place is in, clamped to 0 to size - 1; 0 for NaN."""
    place = tl.where(place == place, place, 0.0)
    return tl.minimum(not_negative(tl.floor(place)), size - 1.0)


@triton.jit(
    do_not_specialize=["size", "frames", "height", "width", "cell_rows", "cell_columns", "classes", "key", "stride"]
)
def actors_kernel(
    labels, target_boxes, counts, visible, actors, counted,
    size, frames, height, width, cell_rows, cell_columns, classes, key, stride,
    CORRECTED: tl.constexpr, MOVEMENT_AREA: tl.constexpr, SIZE_AREA: tl.constexpr, MOVED: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write the rows of a sample's actors, and (2, samples): how many count, and 0, or NaN if one is impossible.

    `classes` is the number of those that a label may name, 0 if any will do.
    """
    i_b = tl.program_id(0).to(tl.int64)
    count = clamped_count(counts, i_b, size)
    length = OF_ACTOR + OF_FRAME * frames
    number = tl.zeros([BLOCK_M], DTYPE)
    flaw = tl.zeros([BLOCK_M], DTYPE)
    for first in range(0, size, BLOCK_M):
        o_m = first + tl.arange(0, BLOCK_M)
        row = i_b * size + o_m
        used = (o_m < count) & (tl.load(visible + row * frames + key, mask=o_m < count, other=0) != 0)
        label = tl.load(labels + row, mask=used, other=0)
        impossible = used & (classes > 0) & ((label < 0) | (label >= classes))

        cx, cy, w, h = load_box(target_boxes + (row * frames + key) * 4, used, DTYPE)
        key_x = pixel_of(tl.where(used, cx * width, 0.0), width)
        key_y = pixel_of(tl.where(used, cy * height, 0.0), height)
        cell_x = pixel_of(tl.where(used, cx * cell_columns, 0.0), cell_columns)
        cell_y = pixel_of(tl.where(used, cy * cell_rows, 0.0), cell_rows)
        w = not_negative(tl.where(used & (w - w == 0), w * width, 0.0))
        h = not_negative(tl.where(used & (h - h == 0), h * height, 0.0))
        area = w * h
        pixels = tl.maximum(area * (stride * stride), tl.full([], E, DTYPE))
        # Rounded up.
        radius = heat_map_radius(-tl.floor(-w), -tl.floor(-h), CORRECTED, DTYPE)
        m_across, m_down = half_sides(w, h, radius, MOVEMENT_AREA, DTYPE)
        s_across, s_down = half_sides(w, h, radius, SIZE_AREA, DTYPE)
        weight = tl.log(pixels)

        m = o_m < size
        p = actors + row * length
        whole = sum_of_bump(key_x, m_across, width) * sum_of_bump(key_y, m_down, height)
        tl.store(p + AREA, tl.where(used, area, float("inf")), mask=m)
        tl.store(p + RADIUS, radius, mask=m)
        tl.store(p + MOVEMENT_REACH, m_across, mask=m)
        tl.store(p + MOVEMENT_REACH + 1, m_down, mask=m)
        tl.store(p + SIZE_REACH, s_across, mask=m)
        tl.store(p + SIZE_REACH + 1, s_down, mask=m)
        tl.store(p + MOVEMENT_WEIGHT, weight / whole, mask=m)
        tl.store(p + KEY_PIXEL, key_x, mask=m)
        tl.store(p + KEY_PIXEL + 1, key_y, mask=m)
        tl.store(p + CELL, cell_y * cell_columns + cell_x, mask=m)
        tl.store(p + LABEL, label.to(DTYPE), mask=m)

        for frame in range(frames):
            seen = used & (tl.load(visible + row * frames + frame, mask=used, other=0) != 0)
            cx, cy, w, h = load_box(target_boxes + (row * frames + frame) * 4, seen, DTYPE)
            cx = tl.where(seen, cx * width, 0.0)
            cy = tl.where(seen, cy * height, 0.0)
            w = tl.where(seen, w * width, 0.0)
            h = tl.where(seen, h * height, 0.0)
            # Infinity minus itself is NaN, and so is NaN.
            impossible |= ((cx - cx) + (cy - cy) + (w - w) + (h - h)) != 0

            x = pixel_of(cx, width) if MOVED else key_x
            y = pixel_of(cy, height) if MOVED else key_y
            whole = sum_of_bump(x, s_across, width) * sum_of_bump(y, s_down, height)
            p_frame = p + OF_ACTOR + frame * OF_FRAME
            tl.store(p_frame + SEEN, tl.where(seen, 1.0, 0.0), mask=m)
            tl.store(p_frame + SIZE_WEIGHT, weight / whole, mask=m)
            tl.store(p_frame + PIXEL, x, mask=m)
            tl.store(p_frame + PIXEL + 1, y, mask=m)
            tl.store(p_frame + BOX, cx, mask=m)
            tl.store(p_frame + BOX + 1, cy, mask=m)
            tl.store(p_frame + BOX + 2, w, mask=m)
            tl.store(p_frame + BOX + 3, h, mask=m)
        number += used.to(DTYPE)
        flaw += tl.where(impossible, float("nan"), 0.0)
    tl.store(counted + i_b, tl.sum(number, axis=0))
    tl.store(counted + tl.num_programs(0) + i_b, tl.sum(flaw, axis=0))


@triton.jit
def clamped_count(counts, i_b, size):
    return tl.minimum(tl.maximum(tl.load(counts + i_b), 0), size).to(tl.int32)


@triton.jit
def places(i_t, height, width, DTYPE: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return the pixels of tile i_t, which of them exist, and their x and y."""
    o_p = i_t * BLOCK_P + tl.arange(0, BLOCK_P)
    return o_p, o_p < height * width, (o_p % width).to(DTYPE), (o_p // width).to(DTYPE)


@triton.jit
def wanted_centers(actors, channel, channels, count, length, x, y):
    """Return P of each pixel (BLOCK_P,) for a channel, and which pixels are centers."""
    wanted = x * 0
    hit = x < 0
    for m in range(count):
        row = actors + m * length
        # A single channel is everybody's, whatever the label. Who does not count here is infinitely far away.
        is_here = (tl.load(row + AREA) < float("inf")) & ((tl.load(row + LABEL) - channel) * (channels - 1) == 0)
        dx = tl.where(is_here, x - tl.load(row + KEY_PIXEL), float("inf"))
        dy = y - tl.load(row + KEY_PIXEL + 1)
        radius = tl.load(row + RADIUS)
        wanted = tl.maximum(wanted, bump(dx, radius) * bump(dy, radius))
        hit = hit | ((dx == 0) & (dy == 0))
    return wanted, hit


@triton.jit
def power(base, EXPONENT: tl.constexpr):
    """Return base^EXPONENT of a base that is not negative; 0^0 is 1."""
    if EXPONENT == 0:
        result = base * 0 + 1
    elif EXPONENT == 1:
        result = base
    elif EXPONENT == 2:
        result = base * base
    elif EXPONENT == 4:
        result = base * base * (base * base)
    else:
        some = base > 0
        logarithm = tl.log(tl.where(some, base, 1.0))
        result = tl.where(some, tl.exp(tl.full([], EXPONENT, base.dtype) * logarithm), 0.0)
    return result


@triton.jit
def center_terms(logit, wanted, hit, ALPHA: tl.constexpr, BETA: tl.constexpr):
    """Return the focal loss of each pixel (eq. 3), and its derivative."""
    # With y = -x in the pixels that are no centers, both cases are (1 - p)^alpha (-log p) with p = sigmoid(y).
    sign = tl.where(hit, 1.0, -1.0).to(logit.dtype)
    y = logit * sign
    tail = tl.exp(-tl.abs(y))
    p = tl.where(y > 0, 1.0, tail) / (1 + tail)
    rest = tl.where(y > 0, tail, 1.0) / (1 + tail)
    common = tl.log(1 + tail)
    surprise = common + tl.where(y < 0, -y, 0.0)
    of_rest = common + tl.where(y > 0, y, 0.0)

    alpha = tl.full([], ALPHA, logit.dtype)
    modulation = tl.exp(-alpha * of_rest) * tl.where(hit, 1.0, power(1 - wanted, BETA))
    return modulation * surprise, -sign * modulation * (alpha * p * surprise + rest)


@triton.jit
def wanted_frame(actors, frame, count, length, x, y):
    """Return what a frame wants of each pixel (BLOCK_P,), from the smallest actor whose area it is in.

    Returns:
        The weight of the movement, 0 if the pixel is nobody's, and the movement to the right and down; the weight of
        the sides, and the box, cx, cy, w and h.
    """
    nothing = x * 0
    m_best = nothing + float("inf")
    m_weight = nothing
    m_x = nothing
    m_y = nothing
    s_best = nothing + float("inf")
    s_weight = nothing
    cx = nothing
    cy = nothing
    w = nothing
    h = nothing
    for m in range(count):
        row = actors + m * length
        of_frame = row + OF_ACTOR + frame * OF_FRAME
        # Of those who do not count the area is infinite, so no pixel is theirs.
        area = tl.where(tl.load(of_frame + SEEN) != 0, tl.load(row + AREA), float("inf"))

        # Of equals the first, since others must be smaller.
        key_x = tl.load(row + KEY_PIXEL)
        key_y = tl.load(row + KEY_PIXEL + 1)
        across = bump(x - key_x, tl.load(row + MOVEMENT_REACH))
        down = bump(y - key_y, tl.load(row + MOVEMENT_REACH + 1))
        share = across * down
        better = (share > 0) & (area < m_best)
        m_best = tl.where(better, area, m_best)
        m_weight = tl.where(better, share * tl.load(row + MOVEMENT_WEIGHT), m_weight)
        a_cx = tl.load(of_frame + BOX)
        a_cy = tl.load(of_frame + BOX + 1)
        m_x = tl.where(better, a_cx - (key_x + 0.5), m_x)
        m_y = tl.where(better, a_cy - (key_y + 0.5), m_y)

        across = bump(x - tl.load(of_frame + PIXEL), tl.load(row + SIZE_REACH))
        down = bump(y - tl.load(of_frame + PIXEL + 1), tl.load(row + SIZE_REACH + 1))
        share = across * down
        better = (share > 0) & (area < s_best)
        s_best = tl.where(better, area, s_best)
        s_weight = tl.where(better, share * tl.load(of_frame + SIZE_WEIGHT), s_weight)
        cx = tl.where(better, a_cx, cx)
        cy = tl.where(better, a_cy, cy)
        w = tl.where(better, tl.load(of_frame + BOX + 2), w)
        h = tl.where(better, tl.load(of_frame + BOX + 3), h)
    # Not as a tuple within the tuple, which Triton 3.3 cannot return.
    return m_weight, m_x, m_y, s_weight, cx, cy, w, h


@triton.jit
def locate_frame(i, frames, height, width, tiles, DTYPE: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return what program i works on: its sample and frame, its pixels, which of them exist, and their x and y."""
    i_b = (i // (tiles * frames)).to(tl.int64)
    o_p, m_p, x, y = places(i % tiles, height, width, DTYPE, BLOCK_P)
    return i_b, i // tiles % frames, o_p, m_p, x, y


@triton.jit
def load_movement(movement, p, pixels, m, DTYPE: tl.constexpr):
    """Load the two numbers of each pixel."""
    right = tl.load(movement + p, mask=m, other=0).to(DTYPE)
    down = tl.load(movement + p + pixels, mask=m, other=0).to(DTYPE)
    return right, down


@triton.jit
def box_of_sides(sizes, p, pixels, x, y, m, DTYPE: tl.constexpr):
    """Load the four sides of each pixel, and return the box around its middle: cx, cy, w and h."""
    left = tl.load(sizes + p, mask=m, other=0).to(DTYPE)
    top = tl.load(sizes + p + pixels, mask=m, other=0).to(DTYPE)
    right = tl.load(sizes + p + 2 * pixels, mask=m, other=0).to(DTYPE)
    bottom = tl.load(sizes + p + 3 * pixels, mask=m, other=0).to(DTYPE)
    return x + 0.5 + (right - left) / 2, y + 0.5 + (bottom - top) / 2, left + right, top + bottom


@triton.jit
def cell_of(row):
    """Return the cell of the classes' grid that an actor is in; -1 if it does not count."""
    return tl.where(tl.load(row + AREA) < float("inf"), tl.load(row + CELL), -1.0)


@triton.jit
def softmax_of_cells(classes, p, class_count, cells, m, DTYPE: tl.constexpr):
    """Return the largest logit of each cell, and the sum of exp(logit - largest)."""
    peak = tl.where(m, tl.full([], MINUS_INFINITY, DTYPE), 0.0)
    for c in range(class_count):
        peak = tl.maximum(peak, tl.load(classes + p + c * cells, mask=m, other=0).to(DTYPE))
    total = peak * 0
    for c in range(class_count):
        total += tl.exp(tl.load(classes + p + c * cells, mask=m, other=0).to(DTYPE) - peak)
    return peak, total


NOT_SPECIALIZED = ["batch", "size", "frames", "channels", "height", "width", "class_count", "cells", "tiles"]


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def center_loss_kernel(
    centers, movement, sizes, classes, counts, actors, center_sums, area_sums, class_sums,
    batch, size, frames, channels, height, width, class_count, cells, tiles,
    ALPHA: tl.constexpr, BETA: tl.constexpr, DTYPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write the sums of programs: of centers (batch * tiles), of areas (4, batch * tiles * frames), of classes (batch).

    Those of areas are the weighted distances, their weights, the weighted 1 - GIoU, and their weights.
    """
    pixels = height * width
    length = OF_ACTOR + OF_FRAME * frames
    of_centers = batch * tiles
    of_areas = of_centers * frames
    i = tl.program_id(0)
    if i < of_centers:
        i_b = (i // tiles).to(tl.int64)
        o_p, m_p, x, y = places(i % tiles, height, width, DTYPE, BLOCK_P)
        count = clamped_count(counts, i_b, size)
        total = tl.zeros([BLOCK_P], DTYPE)
        for channel in range(channels):
            p = centers + (i_b * channels + channel) * pixels + o_p
            logit = tl.load(p, mask=m_p, other=0).to(DTYPE)
            wanted, hit = wanted_centers(actors + i_b * size * length, channel, channels, count, length, x, y)
            total += tl.where(m_p, center_terms(logit, wanted, hit, ALPHA, BETA)[0], 0.0)
        tl.store(center_sums + i, tl.sum(total, axis=0))
    elif i < of_centers + of_areas:
        i = i - of_centers
        i_b, frame, o_p, m_p, x, y = locate_frame(i, frames, height, width, tiles, DTYPE, BLOCK_P)
        first = i_b * frames + frame
        count = clamped_count(counts, i_b, size)
        m_weight, m_x, m_y, s_weight, cx, cy, w, h = wanted_frame(
            actors + i_b * size * length, frame, count, length, x, y
        )
        goal = (cx, cy, w, h)
        m_own = m_p & (m_weight > 0)
        s_own = m_p & (s_weight > 0)
        right, down = load_movement(movement + first * 2 * pixels, o_p, pixels, m_own, DTYPE)
        box = box_of_sides(sizes + first * 4 * pixels, o_p, pixels, x, y, s_own, DTYPE)
        distance = (tl.abs(right - m_x) + tl.abs(down - m_y)) / 2
        p_sums = area_sums + i
        tl.store(p_sums, tl.sum(tl.where(m_own, m_weight * distance, 0.0), axis=0))
        tl.store(p_sums + of_areas, tl.sum(tl.where(m_own, m_weight, 0.0), axis=0))
        tl.store(p_sums + 2 * of_areas, tl.sum(tl.where(s_own, s_weight * (1 - box_giou(box, goal)), 0.0), axis=0))
        tl.store(p_sums + 3 * of_areas, tl.sum(tl.where(s_own, s_weight, 0.0), axis=0))
    elif classes is not None:
        i_b = (i - of_centers - of_areas).to(tl.int64)
        count = clamped_count(counts, i_b, size)
        classes += i_b * class_count * cells
        total = tl.zeros([BLOCK_M], DTYPE)
        for start in range(0, count, BLOCK_M):
            o_m = start + tl.arange(0, BLOCK_M)
            row = actors + (i_b * size + o_m) * length
            used = (o_m < count) & (tl.load(row + AREA, mask=o_m < count, other=float("inf")) < float("inf"))
            cell = tl.load(row + CELL, mask=used, other=0).to(tl.int32)
            label = tl.load(row + LABEL, mask=used, other=0).to(tl.int32)
            known = used & (label >= 0) & (label < class_count)
            peak, summed = softmax_of_cells(classes, cell, class_count, cells, used, DTYPE)
            logit = tl.load(classes + label * cells + cell, mask=known, other=0).to(DTYPE)
            total += tl.where(known, tl.log(summed) - (logit - peak), 0.0)
        tl.store(class_sums + i_b, tl.sum(total, axis=0))


@triton.jit
def sum_of(values, count, DTYPE: tl.constexpr, BLOCK_I: tl.constexpr):
    """Add up so many numbers in a fixed order."""
    o_i = tl.arange(0, BLOCK_I)
    total = tl.zeros([BLOCK_I], DTYPE)
    for first in range(0, count, BLOCK_I):
        total += tl.load(values + first + o_i, mask=first + o_i < count, other=0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["batch", "frames", "tiles"])
def center_total_kernel(
    center_sums, area_sums, class_sums, counted, total, of_classes, of_centers, of_movement, of_sizes, divisors,
    batch, frames, tiles,
    CLASSES: tl.constexpr, CENTERS: tl.constexpr, MOVEMENT: tl.constexpr, SIZES: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the five losses and the three divisors, in a single program."""
    number = tl.maximum(sum_of(counted, batch, DTYPE, BLOCK_I), 1.0)
    flaw = sum_of(counted + batch, batch, DTYPE, BLOCK_I)
    programs = batch * tiles * frames
    m_weight = sum_of(area_sums + programs, programs, DTYPE, BLOCK_I)
    s_weight = sum_of(area_sums + 3 * programs, programs, DTYPE, BLOCK_I)
    # What an impossible actor weighs may be NaN.
    m_weight = tl.where(m_weight > 0, m_weight, 1.0)
    s_weight = tl.where(s_weight > 0, s_weight, 1.0)

    e_classes = tl.full([], 0, DTYPE)
    if class_sums is not None:
        e_classes = sum_of(class_sums, batch, DTYPE, BLOCK_I) / number
    e_centers = sum_of(center_sums, batch * tiles, DTYPE, BLOCK_I) / number
    e_movement = sum_of(area_sums, programs, DTYPE, BLOCK_I) / m_weight
    e_sizes = sum_of(area_sums + 2 * programs, programs, DTYPE, BLOCK_I) / s_weight
    e_classes += flaw
    e_centers += flaw
    e_movement += flaw
    e_sizes += flaw
    e_total = tl.full([], CLASSES, DTYPE) * e_classes + tl.full([], CENTERS, DTYPE) * e_centers
    e_total += tl.full([], MOVEMENT, DTYPE) * e_movement + tl.full([], SIZES, DTYPE) * e_sizes
    tl.store(total, e_total)
    tl.store(of_classes, e_classes)
    tl.store(of_centers, e_centers)
    tl.store(of_movement, e_movement)
    tl.store(of_sizes, e_sizes)
    tl.store(divisors, number)
    tl.store(divisors + 1, m_weight)
    tl.store(divisors + 2, s_weight)


@triton.jit
def store(pointer, value, mask):
    """Store in the type of the memory. Triton's interpreter knows no way from float64 to bfloat16 but by float32."""
    if pointer.dtype.element_ty == tl.bfloat16:
        value = value.to(tl.float32)
    tl.store(pointer, value, mask=mask)


@triton.jit
def slope(d_total, d_term, divisor, flaw, WEIGHT: tl.constexpr, DTYPE: tl.constexpr):
    """Return the gradient that reaches the sum of one term, directly and through the total; 0 if the term is unused."""
    value = tl.full([], 0, DTYPE)
    if d_total is not None:
        value += tl.full([], WEIGHT, DTYPE) * tl.load(d_total) + flaw
    if d_term is not None:
        value += tl.load(d_term) + flaw
    return value / tl.load(divisor)


@triton.jit(do_not_specialize=[*NOT_SPECIALIZED, "cell_tiles"])
def center_gradient_kernel(
    centers, movement, sizes, classes, counts, actors, counted, divisors,
    d_total, d_of_classes, d_of_centers, d_of_movement, d_of_sizes, d_centers, d_movement, d_sizes, d_classes,
    batch, size, frames, channels, height, width, class_count, cells, tiles, cell_tiles,
    CLASSES: tl.constexpr, CENTERS: tl.constexpr, MOVEMENT: tl.constexpr, SIZES: tl.constexpr,
    ALPHA: tl.constexpr, BETA: tl.constexpr, DTYPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the maps, given those of the losses, or None if not used."""
    pixels = height * width
    length = OF_ACTOR + OF_FRAME * frames
    of_centers = batch * tiles
    of_areas = of_centers * frames
    flaw = sum_of(counted + batch, batch, DTYPE, BLOCK_I)
    i = tl.program_id(0)
    if i < of_centers:
        i_b = (i // tiles).to(tl.int64)
        o_p, m_p, x, y = places(i % tiles, height, width, DTYPE, BLOCK_P)
        count = clamped_count(counts, i_b, size)
        by_centers = slope(d_total, d_of_centers, divisors, flaw, CENTERS, DTYPE)
        for channel in range(channels):
            place = (i_b * channels + channel) * pixels + o_p
            logit = tl.load(centers + place, mask=m_p, other=0).to(DTYPE)
            wanted, hit = wanted_centers(actors + i_b * size * length, channel, channels, count, length, x, y)
            store(d_centers + place, by_centers * center_terms(logit, wanted, hit, ALPHA, BETA)[1], mask=m_p)
    elif i < of_centers + of_areas:
        i = i - of_centers
        i_b, frame, o_p, m_p, x, y = locate_frame(i, frames, height, width, tiles, DTYPE, BLOCK_P)
        first = i_b * frames + frame
        count = clamped_count(counts, i_b, size)
        m_weight, m_x, m_y, s_weight, cx, cy, w, h = wanted_frame(
            actors + i_b * size * length, frame, count, length, x, y
        )
        goal = (cx, cy, w, h)
        m_own = m_p & (m_weight > 0)
        s_own = m_p & (s_weight > 0)
        right, down = load_movement(movement + first * 2 * pixels, o_p, pixels, m_own, DTYPE)
        by_movement = slope(d_total, d_of_movement, divisors + 1, flaw, MOVEMENT, DTYPE) * m_weight / 2
        p = d_movement + first * 2 * pixels + o_p
        store(p, tl.where(m_own, by_movement * sign_of(right - m_x), 0.0), mask=m_p)
        store(p + pixels, tl.where(m_own, by_movement * sign_of(down - m_y), 0.0), mask=m_p)

        box = box_of_sides(sizes + first * 4 * pixels, o_p, pixels, x, y, s_own, DTYPE)
        by_sizes = -slope(d_total, d_of_sizes, divisors + 2, flaw, SIZES, DTYPE) * s_weight
        d_cx, d_cy, d_w, d_h = giou_gradient(box, goal)
        p = d_sizes + first * 4 * pixels + o_p
        store(p, tl.where(s_own, by_sizes * (d_w - d_cx / 2), 0.0), mask=m_p)
        store(p + pixels, tl.where(s_own, by_sizes * (d_h - d_cy / 2), 0.0), mask=m_p)
        store(p + 2 * pixels, tl.where(s_own, by_sizes * (d_w + d_cx / 2), 0.0), mask=m_p)
        store(p + 3 * pixels, tl.where(s_own, by_sizes * (d_h + d_cy / 2), 0.0), mask=m_p)
    elif classes is not None:
        i = i - of_centers - of_areas
        i_b = (i // cell_tiles).to(tl.int64)
        o_h = i % cell_tiles * BLOCK_H + tl.arange(0, BLOCK_H)
        m_h = o_h < cells
        count = clamped_count(counts, i_b, size)
        actors += i_b * size * length
        first = i_b * class_count * cells
        by_classes = slope(d_total, d_of_classes, divisors, flaw, CLASSES, DTYPE)

        # How many actors are in each cell.
        crowd = tl.zeros([BLOCK_H], DTYPE)
        for m in range(count):
            crowd += tl.where(cell_of(actors + m * length) == o_h, 1.0, 0.0)
        peak, summed = softmax_of_cells(classes + first, o_h, class_count, cells, m_h, DTYPE)
        for c in range(class_count):
            place = first + c * cells + o_h
            hits = tl.zeros([BLOCK_H], DTYPE)
            for m in range(count):
                row = actors + m * length
                cell = tl.where(tl.load(row + LABEL) == c, cell_of(row), -1.0)
                hits += tl.where(cell == o_h, 1.0, 0.0)
            share = tl.exp(tl.load(classes + place, mask=m_h, other=0).to(DTYPE) - peak) / summed
            store(d_classes + place, tl.where(crowd > 0, by_classes * (crowd * share - hits), 0.0), mask=m_h)


def center_loss(maps: CenterMaps, targets: Tubelets, options: CenterOptions) -> tuple[Tensor, ...]:
    """Return total, classes, centers, movement and sizes, all 0-d, and what they were divided by, (3,)."""
    dtype = reference.widest(*maps)
    device = maps.centers.device
    given = _sizes(maps, targets)
    batch = given["batch"]
    tiles = given["tiles"]
    frames = given["frames"]
    actors, counted = _actors(maps, targets, options, dtype)
    center_sums = launch.empty((batch * tiles,), dtype, device)
    area_sums = launch.empty((4, batch * tiles * frames), dtype, device)
    class_sums = None if maps.classes is None else launch.empty((batch,), dtype, device)
    losses = [launch.empty((), dtype, device) for _ in range(5)]
    divisors = launch.empty((3,), dtype, device)

    launch.launch(
        center_loss_kernel,
        batch * tiles * (1 + frames) + (batch if maps.classes is not None else 0),
        actors=actors,
        center_sums=center_sums,
        area_sums=area_sums,
        class_sums=class_sums,
        BLOCK_M=BLOCK_M,
        **_inputs(maps, targets),
        **given,
        **_constants(options, dtype),
    )
    names = ("total", "of_classes", "of_centers", "of_movement", "of_sizes")
    launch.launch(
        center_total_kernel,
        1,
        center_sums=center_sums,
        area_sums=area_sums,
        class_sums=class_sums,
        counted=counted,
        **dict(zip(names, losses, strict=True)),
        divisors=divisors,
        batch=batch,
        frames=frames,
        tiles=tiles,
        DTYPE=triton_dtype(dtype),
        BLOCK_I=BLOCK_I,
        **_weights(options),
        **compiler_options(TOTAL_WARPS),
    )
    return *losses, divisors


def center_loss_gradient(
    maps: CenterMaps,
    targets: Tubelets,
    divisors: Tensor,
    cotangents: tuple[Tensor | None, ...],
    options: CenterOptions,
) -> tuple[Tensor, ...]:
    """Return the gradients of the maps, of which the last is empty if there are no classes.

    The cotangents are those of the five losses, and None for unused ones.
    """
    dtype = reference.widest(*maps)
    given = _sizes(maps, targets)
    batch = given["batch"]
    gradients = [None if each is None else launch.empty(tuple(each.shape), each.dtype, each.device) for each in maps]
    names = ("d_total", "d_of_classes", "d_of_centers", "d_of_movement", "d_of_sizes")
    actors, counted = _actors(maps, targets, options, dtype)
    cell_tiles = tile_count(given["cells"], BLOCK_H)
    launch.launch(
        center_gradient_kernel,
        batch * given["tiles"] * (1 + given["frames"]) + (batch * cell_tiles if maps.classes is not None else 0),
        actors=actors,
        counted=counted,
        divisors=divisors,
        **dict(zip(names, cotangents, strict=True)),
        **{f"d_{name}": gradient for name, gradient in zip(maps._fields, gradients, strict=True)},
        cell_tiles=cell_tiles,
        BLOCK_H=BLOCK_H,
        BLOCK_I=BLOCK_I,
        **_inputs(maps, targets),
        **given,
        **_weights(options),
        **_constants(options, dtype),
    )
    nothing = launch.empty((0,), maps.centers.dtype, maps.centers.device)
    return tuple(nothing if each is None else each for each in gradients)


def _actors(maps: CenterMaps, targets: Tubelets, options: CenterOptions, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the rows of the actors, and (2, B): how many of each sample count, and 0 or NaN."""
    labels, boxes, counts, visible = targets
    batch, size = labels.shape
    frames = visible.shape[2]
    device = maps.centers.device
    actors = launch.empty((batch, size, OF_ACTOR.value + OF_FRAME.value * frames), dtype, device)
    counted = launch.empty((2, batch), dtype, device)
    cells = (1, 1) if maps.classes is None else maps.classes.shape[2:]
    launch.launch(
        actors_kernel,
        batch,
        labels=labels.contiguous(),
        target_boxes=boxes.contiguous(),
        counts=counts.contiguous(),
        visible=visible.contiguous(),
        actors=actors,
        counted=counted,
        size=size,
        frames=frames,
        height=maps.centers.shape[2],
        width=maps.centers.shape[3],
        cell_rows=cells[0],
        cell_columns=cells[1],
        classes=class_count(maps),
        key=options.key,
        stride=options.stride,
        CORRECTED=options.radius == "corrected",
        MOVEMENT_AREA=options.movement_area,
        SIZE_AREA=options.size_area,
        MOVED=options.moved,
        DTYPE=triton_dtype(dtype),
        BLOCK_M=BLOCK_M,
        **compiler_options(warps=1),
    )
    return actors, counted


def _inputs(maps: CenterMaps, targets: Tubelets) -> dict[str, Tensor | None]:
    given = {name: None if each is None else each.contiguous() for name, each in zip(maps._fields, maps, strict=True)}
    return given | {"counts": targets.counts.contiguous()}


def _sizes(maps: CenterMaps, targets: Tubelets) -> dict[str, int]:
    batch, channels, height, width = maps.centers.shape
    classes = maps.classes
    return {
        "batch": batch,
        "size": targets.labels.shape[1],
        "frames": maps.movement.shape[1],
        "channels": channels,
        "height": height,
        "width": width,
        "class_count": 0 if classes is None else classes.shape[1],
        "cells": 1 if classes is None else classes.shape[2] * classes.shape[3],
        "tiles": tile_count(height * width, BLOCK_P),
    }


def _weights(options: CenterOptions) -> dict[str, float]:
    """Return the weights as compile-time constants, because a Python float would reach a kernel as float32."""
    return dict(zip(("CLASSES", "CENTERS", "MOVEMENT", "SIZES"), map(float, options.weights), strict=True))


def _constants(options: CenterOptions, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "ALPHA": float(options.alpha),
        "BETA": float(options.beta),
        "DTYPE": triton_dtype(dtype),
        "BLOCK_P": BLOCK_P,
        **compiler_options(),
    }

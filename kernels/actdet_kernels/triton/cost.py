"""The matching cost of every query with every target: device functions, and the kernel that writes it out.

cost[i, j] = cls * class_cost + l1 * |b_i - b_j|_1 + giou * (1 - GIoU(b_i, b_j)),  or with DIoU or CIoU

class_cost with "softmax": -softmax(logits_i)[label_j]
           with "focal":   alpha (1 - p)^gamma -log(p) - (1 - alpha) p^gamma -log(1 - p),
                           p = sigmoid(logits_i[label_j])

The L1 and GIoU terms of tubelets are means over the visible frames.
Everything is computed in float32, or in float64 where logits or boxes are float64. A label that no logit has makes the
cost NaN, which the assignment avoids and reports.
"""
# pyright: reportArgumentType=false, reportCallIssue=false
# (what Triton compiles has types that a checker of Python does not know)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.targets import Targets, Tubelets
from actdet_kernels.triton import launch
from actdet_kernels.triton.boxes import tubelet_terms
from actdet_kernels.triton.launch import (
    block_of_classes,
    compiler_options,
    compute_dtype,
    cost_options,
    inputs,
    sizes,
    tile_count,
)

# Queries and targets that one program compares at a time.
BLOCK_N = 64
BLOCK_M = 8

# Logits of a query that are in registers at a time.
LARGEST_BLOCK_C = 16

MINUS_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def pair_cost(x, normaliser, box_terms, weights, COST: tl.constexpr):
    """The cost of pairs: x is the query's logit of the target's class, box_terms their L1 and GIoU terms.

    COST: CLASS_COST, ALPHA, GAMMA and BOX_TERM, together so that they pass through the assignment as one.
    """
    class_cost = softmax_cost(x, normaliser) if COST[0] == "softmax" else focal_cost(x, COST[1], COST[2])
    return weights[0] * class_cost + weights[1] * box_terms[0] + weights[2] * box_terms[1]


@triton.jit
def softmax_cost(x, normaliser):
    peak, total = normaliser
    return -tl.exp(x - peak) / total


@triton.jit
def focal_cost(x, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """The focal loss of calling it this class, less that of calling it none (Lin et al. 2017, as Deformable DETR).

    sigmoid(x) and sigmoid(-x) come from one exponential that cannot overflow; neither is one less the other.
    """
    tail = tl.exp(-tl.abs(x))
    larger = 1 / (1 + tail)
    smaller = tail / (1 + tail)
    p = tl.where(x > 0, larger, smaller)
    rest = tl.where(x > 0, smaller, larger)

    # -log(p) and -log(1 - p).
    common = tl.log(1 + tail)
    found = common + tl.where(x < 0, -x, 0.0)
    missed = common + tl.where(x > 0, x, 0.0)

    # Of the logits' type, as Triton would round a Python float to float32.
    alpha = tl.full([], ALPHA, x.dtype)
    others = tl.full([], 1 - ALPHA, x.dtype)
    return times_power(alpha, rest, missed, GAMMA) * found - times_power(others, p, found, GAMMA) * missed


@triton.jit
def times_power(factor, p, surprise, GAMMA: tl.constexpr):
    """factor * p^GAMMA. surprise: -log(p), by which a power is 0 where p is, and not NaN."""
    if GAMMA == 0:
        result = factor
    elif GAMMA == 1:
        result = factor * p
    elif GAMMA == 2:
        result = factor * p * p
    else:
        result = factor * tl.exp(tl.full([], -GAMMA, surprise.dtype) * surprise)
    return result


@triton.jit
def softmax_normaliser(
    logits, m_n, classes, CLASS_COST: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    """(BLOCK_N,) max(x) and sum(exp(x - max(x))) over the `classes` logits behind each pointer; not for "focal"."""
    peak = tl.full([BLOCK_N], MINUS_INFINITY, DTYPE)
    total = tl.zeros([BLOCK_N], DTYPE)
    if CLASS_COST == "softmax":
        # Element by element, and across the threads once at the end: a reduction in each round would take most of the
        # time. The second look at the logits finds them in the cache.
        #
        # Not `for`: there Triton re-arranges a reduction of what was loaded, and 3.6 and 3.7 carry its arrangement into
        # the matching, where every thread then computes the costs of all columns.
        highest = tl.full([BLOCK_N, BLOCK_C], MINUS_INFINITY, DTYPE)
        first = classes * 0
        while first < classes:
            o_c = first + tl.arange(0, BLOCK_C)[None, :]
            highest = tl.maximum(highest, load_logits(logits, m_n, o_c, classes, MINUS_INFINITY, DTYPE))
            first += BLOCK_C
        peak = tl.max(highest, axis=1)

        # Infinity less infinity would be NaN.
        shift = tl.where(peak == MINUS_INFINITY, 0.0, peak)[:, None]
        summed = tl.zeros([BLOCK_N, BLOCK_C], DTYPE)
        first = classes * 0
        while first < classes:
            o_c = first + tl.arange(0, BLOCK_C)[None, :]
            summed += tl.exp(load_logits(logits, m_n, o_c, classes, MINUS_INFINITY, DTYPE) - shift)
            first += BLOCK_C
        total = tl.sum(summed, axis=1)
    return peak, total


@triton.jit
def load_logits(logits, m_n, o_c, classes, other, DTYPE: tl.constexpr):
    return tl.load(logits[:, None] + o_c, mask=m_n[:, None] & (o_c < classes), other=other).to(DTYPE)


@triton.jit
def load_logit(pointer, label, classes, DTYPE: tl.constexpr):
    """The logit of class `label` behind each pointer, NaN for a class there is not."""
    known = (label >= 0) & (label < classes)
    x = tl.load(pointer + tl.where(known, label, 0)).to(DTYPE)
    return tl.where(known, x, float("nan"))


@triton.jit(do_not_specialize=["batch", "queries", "size", "classes", "frames"])
def pairwise_cost_kernel(
    logits, boxes, labels, target_boxes, counts, visible, out,
    batch, queries, size, classes, frames,
    CLS: tl.constexpr, L1: tl.constexpr, GIOU: tl.constexpr,
    CLASS_COST: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr, BOX_TERM: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (problems, size, queries): one program writes BLOCK_N queries of one problem, BLOCK_M targets at a time."""
    # A problem is a sample under a layer.
    tiles = tl.cdiv(queries, BLOCK_N)
    i_p = (tl.program_id(0) // tiles).to(tl.int64)
    i_b = i_p % batch
    o_n = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < queries
    count = tl.minimum(tl.maximum(tl.load(counts + i_b), 0), size).to(tl.int32)

    weights = (tl.full([], CLS, DTYPE), tl.full([], L1, DTYPE), tl.full([], GIOU, DTYPE))
    row = tl.where(m_n, i_p * queries + o_n, 0)
    peak, total = softmax_normaliser(logits + row * classes, m_n, classes, CLASS_COST, DTYPE, BLOCK_N, BLOCK_C)
    normaliser = (peak[:, None], total[:, None])
    o_n = o_n[:, None]
    m_n = m_n[:, None]
    row = row[:, None]
    p_logits = logits + row * classes
    p_boxes = boxes + row * frames * 4
    for first in range(0, size, BLOCK_M):
        o_m = first + tl.arange(0, BLOCK_M)[None, :]
        m_m = o_m < count
        target = i_b * size + o_m
        label = tl.load(labels + target, mask=m_m, other=-1)
        x = load_logit(p_logits, label, classes, DTYPE)
        p_targets = target_boxes + target * frames * 4
        p_visible = None if visible is None else visible + target * frames
        terms = tubelet_terms(p_boxes, p_targets, p_visible, frames, m_n, m_m, BOX_TERM, DTYPE)
        cost = tl.where(m_m, pair_cost(x, normaliser, terms, weights, (CLASS_COST, ALPHA, GAMMA, BOX_TERM)), 0)
        tl.store(out + (i_p * size + o_m) * queries + o_n, cost, mask=m_n & (o_m < size))


def pairwise_cost(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    weights: tuple[float, float, float],
    class_cost: str,
    alpha: float,
    gamma: float,
    box_term: str,
    dtype: torch.dtype,
) -> Tensor:
    """(..., B, M, N) of `dtype`: the queries of one target lie together in memory, as the assignment reads them."""
    *leading, batch, queries, classes = logits.shape
    size = targets.labels.shape[1]
    out = launch.empty((*leading, batch, size, queries), dtype, logits.device)
    problems = out.shape[:-2].numel() if out.numel() else 0
    launch.launch(
        pairwise_cost_kernel,
        problems * tile_count(queries, BLOCK_N),
        out=out,
        **inputs(logits, boxes, targets),
        **sizes(logits, targets),
        BLOCK_N=BLOCK_N,
        BLOCK_M=BLOCK_M,
        BLOCK_C=block_of_classes(classes, LARGEST_BLOCK_C),
        **compiler_options(),
        **cost_options(compute_dtype(logits, boxes), weights, class_cost, alpha, gamma, box_term),
    )
    return out

"""Computes the matching cost of every query with every target of its sample.

cost[i, j] = cls * class_cost + l1 * |b_i - b_j|_1 + giou * (1 - GIoU(b_i, b_j)),  or DIoU or CIoU in place of GIoU

class_cost with "softmax":        -softmax(logits_i)[label_j]
           with "focal":          alpha (1 - p)^gamma -log(p) - (1 - alpha) p^gamma -log(1 - p)
           with "varifocal":      q BCE(p, q) - alpha p^gamma -log(1 - p)
           with "quality_focal":  |q - p|^gamma BCE(p, q) - p^gamma -log(1 - p)

Here p = sigmoid(logits_i[label_j]), and q is the IoU of the boxes. Except for "softmax", the class cost is by how much
the class loss of query i changes when it gets target j. If a target has several labels, their class costs are added up.
For tubelets, the L1 and GIoU terms and the IoU are means over the visible frames, and so is the class cost if there are
logits of each frame. Targets may then have labels of each frame, too.

Everything is computed in float32, or in float64 if logits or boxes are float64. A label for which there is no logit
makes the cost NaN, which the assignment avoids and reports.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.options import CostOptions
from actdet_kernels.targets import Targets, Tubelets, has_frame_labels, query_shape
from actdet_kernels.triton import launch
from actdet_kernels.triton.boxes import tubelet_terms
from actdet_kernels.triton.classes import class_cost, softmax_normalizer
from actdet_kernels.triton.launch import (
    block_of_classes,
    compiler_options,
    compute_dtype,
    cost_options,
    inputs,
    is_of_each_frame,
    sizes,
    tile_count,
)

# The number of queries and of targets that one program compares at a time.
BLOCK_N = 64
BLOCK_M = 8

# The most logits of a query that are in registers at a time.
LARGEST_BLOCK_C = 16


@triton.jit
def mean_class_cost(
    logits, label, more_labels, visible, m_n, m_m, classes, frames, labels_each,
    COST: tl.constexpr, FRAME_LABELS: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Return the means of the class costs over the frames in which a target is visible, 0 if it is in none.

    Args:
        logits: Pointers (BLOCK_N,) to the first logit of each query's first frame.
        label: The first label of each target (1, BLOCK_M), of those with labels of each frame in the first one.
        more_labels: Pointers to it.
        visible: Pointers (1, BLOCK_M) to whether each target is visible in its first frame.
        m_n: Which queries exist, (BLOCK_N,).
        m_m: Which targets exist, (1, BLOCK_M).
        classes: The number of logits of a query in a frame.
        frames: The number of frames.
        labels_each: The number of labels stored for each target, or for each in each frame.
        COST: As in `class_cost`.
        FRAME_LABELS: Whether there are labels of each frame.
        DTYPE: The type of the arithmetic.
        BLOCK_N: The number of queries.
        BLOCK_C: The number of logits that are read at a time.
    """
    total = tl.zeros([BLOCK_N, label.shape[1]], DTYPE)
    seen = tl.zeros([1, label.shape[1]], DTYPE)
    for frame in range(frames):
        p_logits = logits + frame * classes
        peak, exponentials = softmax_normalizer(p_logits, m_n, classes, COST[0], DTYPE, BLOCK_N, BLOCK_C)
        normalizer = (peak[:, None], exponentials[:, None])
        shown = tl.load(visible + frame, mask=m_m, other=0) != 0
        p_labels = more_labels
        if FRAME_LABELS:
            p_labels += frame * labels_each
            label = tl.load(p_labels, mask=m_m, other=-1)
        cost = class_cost(p_logits[:, None], label, p_labels, m_m, classes, labels_each, normalizer, 0.0, COST, DTYPE)
        total += tl.where(shown, cost, 0.0)
        seen += tl.where(shown, 1.0, 0.0)
    return total / tl.maximum(seen, 1.0)


@triton.jit(do_not_specialize=["batch", "queries", "size", "classes", "frames", "labels_each"])
def pairwise_cost_kernel(
    logits, boxes, labels, target_boxes, counts, visible, out,
    batch, queries, size, classes, frames, labels_each,
    CLS: tl.constexpr, L1: tl.constexpr, GIOU: tl.constexpr,
    CLASS_COST: tl.constexpr, ALPHA: tl.constexpr, GAMMA: tl.constexpr, BOX_TERM: tl.constexpr,
    SEVERAL: tl.constexpr, EACH_FRAME: tl.constexpr, FRAME_LABELS: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write out (problems, size, queries): each program has BLOCK_N queries of one problem, BLOCK_M targets at a time.

    A problem is one sample under one decoder layer.
    """
    tiles = tl.cdiv(queries, BLOCK_N)
    i_p = (tl.program_id(0) // tiles).to(tl.int64)
    i_b = i_p % batch
    o_n = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < queries
    count = tl.minimum(tl.maximum(tl.load(counts + i_b), 0), size).to(tl.int32)

    weights = (tl.full([], CLS, DTYPE), tl.full([], L1, DTYPE), tl.full([], GIOU, DTYPE))
    row = tl.where(m_n, i_p * queries + o_n, 0)
    p_frames = logits + row * frames * classes
    m_frames = m_n
    if not EACH_FRAME:
        peak, total = softmax_normalizer(logits + row * classes, m_n, classes, CLASS_COST, DTYPE, BLOCK_N, BLOCK_C)
        normalizer = (peak[:, None], total[:, None])
    o_n = o_n[:, None]
    m_n = m_n[:, None]
    row = row[:, None]

    p_logits = logits + row * classes
    p_boxes = boxes + row * frames * 4
    for first in range(0, size, BLOCK_M):
        o_m = first + tl.arange(0, BLOCK_M)[None, :]
        m_m = o_m < count
        target = i_b * size + o_m
        of_target = target * frames if FRAME_LABELS else target
        p_labels = labels + (of_target * labels_each if SEVERAL else of_target)
        label = tl.load(p_labels, mask=m_m, other=-1)
        p_targets = target_boxes + target * frames * 4
        p_visible = None if visible is None else visible + target * frames
        l1, giou = tubelet_terms(p_boxes, p_targets, p_visible, frames, m_n, m_m, BOX_TERM, DTYPE)
        quality = 0.0
        if CLASS_COST == "varifocal" or CLASS_COST == "quality_focal":
            quality = 1 - tubelet_terms(p_boxes, p_targets, p_visible, frames, m_n, m_m, "iou", DTYPE)[1]
        if EACH_FRAME:
            cls = mean_class_cost(
                p_frames, label, p_labels, p_visible, m_frames, m_m, classes, frames, labels_each,
                (CLASS_COST, ALPHA, GAMMA, BOX_TERM, SEVERAL), FRAME_LABELS, DTYPE, BLOCK_N, BLOCK_C,
            )  # fmt: skip
        else:
            cls = class_cost(
                p_logits, label, p_labels, m_m, classes, labels_each, normalizer, quality,
                (CLASS_COST, ALPHA, GAMMA, BOX_TERM, SEVERAL), DTYPE,
            )  # fmt: skip
        cost = tl.where(m_m, weights[0] * cls + weights[1] * l1 + weights[2] * giou, 0)
        tl.store(out + (i_p * size + o_m) * queries + o_n, cost, mask=m_n & (o_m < size))


def pairwise_cost(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    options: CostOptions,
    dtype: torch.dtype,
) -> Tensor:
    """Return the cost as (..., B, M, N) of `dtype`.

    The costs of one target lie side by side in memory, because the assignment reads them together.
    """
    *problems_of, queries = query_shape(boxes, isinstance(targets, Tubelets))
    size = targets.labels.shape[1]
    out = launch.empty((*problems_of, size, queries), dtype, logits.device)
    problems = out.shape[:-2].numel() if out.numel() else 0

    launch.launch(
        pairwise_cost_kernel,
        problems * tile_count(queries, BLOCK_N),
        out=out,
        **inputs(logits, boxes, targets),
        **sizes(logits, boxes, targets),
        EACH_FRAME=is_of_each_frame(logits, boxes, targets),
        FRAME_LABELS=has_frame_labels(targets),
        BLOCK_N=BLOCK_N,
        BLOCK_M=BLOCK_M,
        BLOCK_C=block_of_classes(logits.shape[-1], LARGEST_BLOCK_C),
        **compiler_options(),
        **cost_options(compute_dtype(logits, boxes), targets, options),
    )
    return out

"""Finds the boxes of each class that no surer one of that class overlaps, in one launch.

order: the highest score first, and of equals the lower row
IoU of two tubelets = the mean over their frames of |a and b| / |a or b|, 0 where that is 0 / 0 or one is not finite
kept: in that order, each one whose IoU with all that were kept before is at most a threshold

A program has a class of a sample, and the scores of all its boxes in registers. As often as one is kept, the surest of
those that are left is taken, and compared with all of them. So nothing is sorted, and no matrix of overlaps is written.

Scores are compared by their depth, the negative of the score, because `least_and_first` finds the least.
"""
# Pyright does not know the types of what Triton compiles.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from actdet_kernels.reference import widest
from actdet_kernels.triton import launch
from actdet_kernels.triton.assignment import least_and_first
from actdet_kernels.triton.boxes import not_negative
from actdet_kernels.triton.launch import compiler_options, power_of_2, triton_dtype

INFINITY = tl.constexpr(float("inf"))

# The boxes of a sample that a warp looks at.
BOXES_OF_WARP = 128
LEAST_BLOCK_N = 32


@triton.jit
def load_corners(p, m, DTYPE: tl.constexpr):
    """Load x1, y1, x2 and y2. Those of a box that is not finite are 0, as are those outside of the mask."""
    x1 = tl.load(p, mask=m, other=0).to(DTYPE)
    y1 = tl.load(p + 1, mask=m, other=0).to(DTYPE)
    x2 = tl.load(p + 2, mask=m, other=0).to(DTYPE)
    y2 = tl.load(p + 3, mask=m, other=0).to(DTYPE)
    # Infinity minus itself is NaN, and so is NaN.
    finite = ((x1 - x1) + (y1 - y1) + (x2 - x2) + (y2 - y2)) == 0
    return tl.where(finite, x1, 0.0), tl.where(finite, y1, 0.0), tl.where(finite, x2, 0.0), tl.where(finite, y2, 0.0)


@triton.jit
def overlap_of(a, b):
    """Return the IoU of two boxes, or of one with many."""
    a_x1, a_y1, a_x2, a_y2 = a
    b_x1, b_y1, b_x2, b_y2 = b
    width = not_negative(tl.minimum(a_x2, b_x2) - tl.maximum(a_x1, b_x1))
    height = not_negative(tl.minimum(a_y2, b_y2) - tl.maximum(a_y1, b_y1))
    shared = width * height
    own = not_negative(a_x2 - a_x1) * not_negative(a_y2 - a_y1)
    other = not_negative(b_x2 - b_x1) * not_negative(b_y2 - b_y1)
    whole = own + other - shared
    return tl.where(whole > 0, shared / tl.where(whole > 0, whole, 1.0), 0.0)


@triton.jit(do_not_specialize=["rows", "frames", "classes"])
def suppress_overlaps_kernel(
    boxes, scores, kept, rows, frames, classes,
    IOU: tl.constexpr, SCORE: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, REDUX: tl.constexpr,
):  # fmt: skip
    """Write which boxes of a sample are kept as one of a class."""
    i = tl.program_id(0)
    i_b = (i // classes).to(tl.int64)
    o_n = tl.arange(0, BLOCK_N)
    m_n = o_n < rows
    boxes += i_b * rows * frames * 4
    p = i_b * rows * classes + o_n.to(tl.int64) * classes + i % classes

    # A comparison with NaN is false. The difference from 0 is never -0, which `least_and_first` would take for less
    # than 0.
    score = tl.load(scores + p, mask=m_n, other=0).to(DTYPE)
    depth = tl.where(m_n & (score > tl.full([], SCORE, DTYPE)), 0.0 - score, INFINITY)
    is_kept = tl.zeros([BLOCK_N], tl.int32)
    least, surest = least_and_first(depth, o_n, REDUX)
    while least < INFINITY:
        overlap = tl.zeros([BLOCK_N], DTYPE)
        for frame in range(frames):
            taken = load_corners(boxes + (surest.to(tl.int64) * frames + frame) * 4, True, DTYPE)
            others = load_corners(boxes + (o_n.to(tl.int64) * frames + frame) * 4, m_n, DTYPE)
            overlap += overlap_of(taken, others)
        near = overlap / frames.to(DTYPE) > tl.full([], IOU, DTYPE)
        is_kept = tl.where(o_n == surest, 1, is_kept)
        depth = tl.where(near | (o_n == surest), INFINITY, depth)
        least, surest = least_and_first(depth, o_n, REDUX)
    tl.store(kept + p, is_kept.to(tl.int8), mask=m_n)


def suppress_overlaps(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """Return which boxes are kept, as `actdet_kernels.suppress_overlaps` does."""
    batch, rows, classes = scores.shape
    kept = launch.empty((batch, rows, classes), torch.int8, scores.device)
    block = max(power_of_2(rows), LEAST_BLOCK_N)
    dtype = widest(boxes, scores)
    launch.launch(
        suppress_overlaps_kernel,
        batch * classes,
        boxes=boxes.contiguous(),
        scores=scores.contiguous(),
        kept=kept,
        rows=rows,
        frames=boxes.shape[2] if boxes.ndim == 4 else 1,
        classes=classes,
        IOU=iou_threshold,
        SCORE=score_threshold,
        DTYPE=triton_dtype(dtype),
        BLOCK_N=block,
        REDUX=launch.has_redux(boxes.device),
        **compiler_options(min(max(block // BOXES_OF_WARP, 1), 8)),
    )
    return kept.view(torch.bool)

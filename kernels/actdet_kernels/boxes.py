"""Box algebra that kernels share: device functions over boxes given as four values (cx, cy, w, h).

The four values may be scalars or blocks of any shape. What broadcasts is compared pair by pair, value by value, so that
an array of shape (N, M, 4) never exists.
"""

import triton
import triton.language as tl


@triton.jit
def load_box(pointer, mask, DTYPE: tl.constexpr):
    """The four values that lie behind `pointer`; anything where `mask` is false."""
    cx = tl.load(pointer, mask=mask).to(DTYPE)
    cy = tl.load(pointer + 1, mask=mask).to(DTYPE)
    w = tl.load(pointer + 2, mask=mask).to(DTYPE)
    h = tl.load(pointer + 3, mask=mask).to(DTYPE)
    return cx, cy, w, h


@triton.jit
def box_l1(a, b):
    """|a - b|_1 of the four values as they are."""
    return tl.abs(a[0] - b[0]) + tl.abs(a[1] - b[1]) + tl.abs(a[2] - b[2]) + tl.abs(a[3] - b[3])


@triton.jit
def box_iou_and_giou(a, b):
    """IoU and generalized IoU (Rezatofighi et al. 2019).

    iou = intersection / union        giou = iou - (hull - union) / hull

    A quotient whose denominator is 0 (boxes without an area) is 0.
    """
    ax1, ay1, ax2, ay2 = box_corners(a)
    bx1, by1, bx2, by2 = box_corners(b)
    overlap_x = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    overlap_y = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    intersection = tl.maximum(overlap_x, 0.0) * tl.maximum(overlap_y, 0.0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    hull = (tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1)) * (tl.maximum(ay2, by2) - tl.minimum(ay1, by1))
    iou = divide_or_zero(intersection, union)
    return iou, iou - divide_or_zero(hull - union, hull)


@triton.jit
def box_corners(box):
    """x1, y1, x2, y2; a negative width or height counts as zero, and NaN stays NaN."""
    half_w = tl.where(box[2] < 0, 0.0, box[2]) / 2
    half_h = tl.where(box[3] < 0, 0.0, box[3]) / 2
    return box[0] - half_w, box[1] - half_h, box[0] + half_w, box[1] + half_h


@triton.jit
def divide_or_zero(numerator, denominator):
    positive = denominator > 0
    return tl.where(positive, numerator / tl.where(positive, denominator, 1.0), 0.0)

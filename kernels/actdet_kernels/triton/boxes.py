"""Box algebra that kernels share: device functions over boxes given as four values (cx, cy, w, h).

The four values may be scalars or blocks of any shape. What broadcasts is compared pair by pair, value by value, so that
an array of shape (N, M, 4) never exists.
"""

import triton
import triton.language as tl

from actdet_kernels import reference

SMALLEST_AREA = tl.constexpr(reference.SMALLEST_AREA)


@triton.jit
def load_box(pointer, mask, DTYPE: tl.constexpr):
    """The four values that lie behind `pointer`; anything where `mask` is false."""
    cx = tl.load(pointer, mask=mask).to(DTYPE)
    cy = tl.load(pointer + 1, mask=mask).to(DTYPE)
    w = tl.load(pointer + 2, mask=mask).to(DTYPE)
    h = tl.load(pointer + 3, mask=mask).to(DTYPE)
    return cx, cy, w, h


@triton.jit
def box_terms(a, b):
    """The L1 distance of the four values as they are, and 1 - GIoU."""
    l1 = tl.abs(a[0] - b[0]) + tl.abs(a[1] - b[1]) + tl.abs(a[2] - b[2]) + tl.abs(a[3] - b[3])
    return l1, 1 - box_giou(a, b)


@triton.jit
def tubelet_terms(a, b, visible, frames, m_a, m_b, DTYPE: tl.constexpr):
    """The means of `box_terms` over the frames that are visible, of tubelets (frames, 4) behind the pointers a and b.

    visible points to the flags (frames,) of b; None where every frame is.
    """
    shape = (m_a & m_b).to(DTYPE)
    l1, giou, seen = shape * 0, shape * 0, shape * 0
    for frame in range(frames):
        m = m_b if visible is None else tl.load(visible + frame, mask=m_b, other=0) != 0
        frame_l1, frame_giou = box_terms(load_box(a + frame * 4, m_a, DTYPE), load_box(b + frame * 4, m, DTYPE))
        m &= m_a
        l1 += tl.where(m, frame_l1, 0.0)
        giou += tl.where(m, frame_giou, 0.0)
        seen += m.to(DTYPE)
    seen = tl.maximum(seen, 1.0)
    return l1 / seen, giou / seen


@triton.jit
def box_giou(a, b):
    """Generalized IoU (Rezatofighi et al. 2019).

    giou = intersection / union - (hull - union) / hull

    A quotient whose denominator is no larger than SMALLEST_AREA (boxes without an area) is 0.
    """
    ax1, ay1, ax2, ay2 = box_corners(a)
    bx1, by1, bx2, by2 = box_corners(b)
    overlap_x = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    overlap_y = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    intersection = tl.maximum(overlap_x, 0.0) * tl.maximum(overlap_y, 0.0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    hull = (tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1)) * (tl.maximum(ay2, by2) - tl.minimum(ay1, by1))
    return divide_or_zero(intersection, union) - divide_or_zero(hull - union, hull)


@triton.jit
def giou_gradient(a, b):
    """d giou / d a, the four values: the derivative of `box_giou`, with PyTorch's choices at the kinks.

    With U union, H hull, I intersection, A the area of a:  giou = I / U - 1 + U / H  and  U = A + B - I, so that
    d giou = (1 / H - I / U^2) dA + (1 / U - 1 / H + I / U^2) dI - U / H^2 dH,  each a product of two sides.
    """
    ax1, ay1, ax2, ay2 = box_corners(a)
    bx1, by1, bx2, by2 = box_corners(b)
    w, h = ax2 - ax1, ay2 - ay1
    overlap_x = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    overlap_y = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    hull_x = tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1)
    hull_y = tl.maximum(ay2, by2) - tl.minimum(ay1, by1)
    inner_x, inner_y = tl.maximum(overlap_x, 0.0), tl.maximum(overlap_y, 0.0)
    intersection, hull = inner_x * inner_y, hull_x * hull_y
    union = w * h + (bx2 - bx1) * (by2 - by1) - intersection

    by_union, by_hull = divide_or_zero(1.0, union), divide_or_zero(1.0, hull)
    d_area = by_hull - divide_or_zero(intersection, union) * by_union
    d_intersection = by_union - d_area
    d_hull = -divide_or_zero(union, hull) * by_hull
    d_x1, d_x2 = side_gradient(ax1, ax2, bx1, bx2, d_area * h, d_intersection * inner_y, d_hull * hull_y, overlap_x)
    d_y1, d_y2 = side_gradient(ay1, ay2, by1, by2, d_area * w, d_intersection * inner_x, d_hull * hull_x, overlap_y)
    d_w = tl.where(a[2] < 0, 0.0, (d_x2 - d_x1) / 2)
    d_h = tl.where(a[3] < 0, 0.0, (d_y2 - d_y1) / 2)
    return d_x1 + d_x2, d_y1 + d_y2, d_w, d_h


@triton.jit
def side_gradient(a1, a2, b1, b2, d_length, d_overlap, d_hull, overlap):
    """d / d a1 and d / d a2 of what depends on the length of [a1, a2], its overlap and its hull with [b1, b2]."""
    d_overlap = tl.where(overlap < 0, 0.0, d_overlap)
    d_a1 = -d_length - d_overlap * larger(a1, b1) - d_hull * larger(b1, a1)
    d_a2 = d_length + d_overlap * larger(b2, a2) + d_hull * larger(a2, b2)
    return d_a1, d_a2


@triton.jit
def larger(a, b):
    """1 where a > b, 0 where a < b, and 1/2 where they are equal: d max(a, b) / d a, and d min(a, b) / d b."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def box_corners(box):
    """x1, y1, x2, y2; a negative width or height counts as zero, and NaN stays NaN."""
    half_w = tl.where(box[2] < 0, 0.0, box[2]) / 2
    half_h = tl.where(box[3] < 0, 0.0, box[3]) / 2
    return box[0] - half_w, box[1] - half_h, box[0] + half_w, box[1] + half_h


@triton.jit
def divide_or_zero(numerator, denominator):
    """NaN stays NaN."""
    none = denominator <= SMALLEST_AREA
    return tl.where(none, 0.0, numerator / tl.where(none, 1.0, denominator))

"""Box algebra that kernels share: device functions over boxes given as four values (cx, cy, w, h).

The four values may be scalars or blocks of any shape. Pairs of boxes are compared by broadcasting each of the four
values, so an array of shape (N, M, 4) never exists.
"""

import math

import triton
import triton.language as tl

from actdet_kernels import reference

SMALLEST_AREA = tl.constexpr(reference.SMALLEST_AREA)
FOUR_BY_PI_SQUARED = tl.constexpr(4 / math.pi**2)


@triton.jit
def load_box(pointer, mask, DTYPE: tl.constexpr):
    """Load the four values at `pointer`. Elements whose `mask` is false may hold anything."""
    cx = tl.load(pointer, mask=mask).to(DTYPE)
    cy = tl.load(pointer + 1, mask=mask).to(DTYPE)
    w = tl.load(pointer + 2, mask=mask).to(DTYPE)
    h = tl.load(pointer + 3, mask=mask).to(DTYPE)
    return cx, cy, w, h


@triton.jit
def box_terms(a, b, BOX_TERM: tl.constexpr):
    """Return the L1 distance of the four values as they are, and 1 - GIoU, DIoU or CIoU."""
    l1 = tl.abs(a[0] - b[0]) + tl.abs(a[1] - b[1]) + tl.abs(a[2] - b[2]) + tl.abs(a[3] - b[3])
    similarity = box_giou(a, b) if BOX_TERM == "giou" else box_diou(a, b, BOX_TERM)
    return l1, 1 - similarity


@triton.jit
def tubelet_terms(a, b, visible, frames, m_a, m_b, BOX_TERM: tl.constexpr, DTYPE: tl.constexpr):
    """Return the means of `box_terms` over the visible frames of tubelets (frames, 4) at the pointers a and b.

    `visible` points to the flags (frames,) of b. None means that every frame is visible.
    """
    shape = (m_a & m_b).to(DTYPE)
    l1, giou, seen = shape * 0, shape * 0, shape * 0
    for frame in range(frames):
        m = m_b if visible is None else tl.load(visible + frame, mask=m_b, other=0) != 0
        box_a = load_box(a + frame * 4, m_a, DTYPE)
        box_b = load_box(b + frame * 4, m, DTYPE)
        frame_l1, frame_giou = box_terms(box_a, box_b, BOX_TERM)
        m &= m_a
        l1 += tl.where(m, frame_l1, 0.0)
        giou += tl.where(m, frame_giou, 0.0)
        seen += m.to(DTYPE)
    seen = tl.maximum(seen, 1.0)
    return l1 / seen, giou / seen


@triton.jit
def box_giou(a, b):
    """Return the generalized IoU (Rezatofighi et al. 2019).

    giou = intersection / union - (hull - union) / hull

    A quotient is 0 if its denominator is at most SMALLEST_AREA, as for boxes without an area.
    """
    _, _, hull_x, hull_y, intersection, union = common_sides(a, b)
    hull = hull_x * hull_y
    return divide_or_zero(intersection, union) - divide_or_zero(hull - union, hull)


@triton.jit
def giou_gradient(a, b):
    """Return d giou / d a, four values: the derivative of `box_giou`, with PyTorch's choices at the kinks.

    Let U be the union, H the hull, I the intersection and A the area of a. Then giou = I / U - 1 + U / H and
    U = A + B - I, so
    d giou = (1 / H - I / U^2) dA + (1 / U - 1 / H + I / U^2) dI - U / H^2 dH,  each a product of two sides.
    """
    ax1, ay1, ax2, ay2 = box_corners(a)
    bx1, by1, bx2, by2 = box_corners(b)
    w = ax2 - ax1
    h = ay2 - ay1
    overlap_x, overlap_y, hull_x, hull_y, intersection, union = common_sides(a, b)
    inner_x = tl.maximum(overlap_x, 0.0)
    inner_y = tl.maximum(overlap_y, 0.0)
    hull = hull_x * hull_y

    by_union = divide_or_zero(1.0, union)
    by_hull = divide_or_zero(1.0, hull)
    d_area = by_hull - divide_or_zero(intersection, union) * by_union
    d_intersection = by_union - d_area
    d_hull = -divide_or_zero(union, hull) * by_hull
    d_x1, d_x2 = side_gradient(ax1, ax2, bx1, bx2, d_area * h, d_intersection * inner_y, d_hull * hull_y, overlap_x)
    d_y1, d_y2 = side_gradient(ay1, ay2, by1, by2, d_area * w, d_intersection * inner_x, d_hull * hull_x, overlap_y)
    d_w = tl.where(a[2] < 0, 0.0, (d_x2 - d_x1) / 2)
    d_h = tl.where(a[3] < 0, 0.0, (d_y2 - d_y1) / 2)
    return d_x1 + d_x2, d_y1 + d_y2, d_w, d_h


@triton.jit
def box_diou(a, b, BOX_TERM: tl.constexpr):
    """Return IoU, distance IoU or complete IoU (Zheng et al. 2020), as `reference.box_similarity` defines them."""
    _, _, hull_x, hull_y, intersection, union = common_sides(a, b)
    iou = divide_or_zero(intersection, union)
    similarity = iou
    if BOX_TERM != "iou":
        similarity -= divide_or_zero(square(a[0] - b[0]) + square(a[1] - b[1]), square(hull_x) + square(hull_y))
    if BOX_TERM == "ciou":
        _, v, alpha = aspect_terms(a, b, iou)
        similarity -= alpha * v
    return similarity


@triton.jit
def diou_gradient(a, b, BOX_TERM: tl.constexpr):
    """Return d diou / d a or d ciou / d a, four values, with PyTorch's choices at the kinks.

    Let D be the squared distance of the centers, S the squared diagonal of the hull, and I, U, A as in `giou_gradient`:
    d diou = (1 / U + I / U^2) dI - I / U^2 dA - dD / S + D / S^2 dS,  and  d ciou = d diou - alpha dv.
    """
    ax1, ay1, ax2, ay2 = box_corners(a)
    bx1, by1, bx2, by2 = box_corners(b)
    w = ax2 - ax1
    h = ay2 - ay1
    overlap_x, overlap_y, hull_x, hull_y, intersection, union = common_sides(a, b)
    inner_x = tl.maximum(overlap_x, 0.0)
    inner_y = tl.maximum(overlap_y, 0.0)
    span = square(hull_x) + square(hull_y)

    iou = divide_or_zero(intersection, union)
    by_union = divide_or_zero(1.0, union)
    by_span = divide_or_zero(1.0, span)
    d_area = -iou * by_union
    d_intersection = by_union - d_area
    d_hull = 2 * divide_or_zero(square(a[0] - b[0]) + square(a[1] - b[1]), span) * by_span
    d_x1, d_x2 = side_gradient(ax1, ax2, bx1, bx2, d_area * h, d_intersection * inner_y, d_hull * hull_x, overlap_x)
    d_y1, d_y2 = side_gradient(ay1, ay2, by1, by2, d_area * w, d_intersection * inner_x, d_hull * hull_y, overlap_y)
    d_w = (d_x2 - d_x1) / 2
    d_h = (d_y2 - d_y1) / 2
    if BOX_TERM == "ciou":
        angle, _, alpha = aspect_terms(a, b, iou)
        # d angle / d w = -h / (w^2 + h^2), and d angle / d h = w / (w^2 + h^2).
        w = not_negative(a[2])
        h = not_negative(a[3])
        by_angle = alpha * (2 * tl.full([], FOUR_BY_PI_SQUARED, angle.dtype)) * angle
        by_angle = divide_or_zero(by_angle, square(w) + square(h))
        d_w += by_angle * h
        d_h -= by_angle * w
    d_w = tl.where(a[2] < 0, 0.0, d_w)
    d_h = tl.where(a[3] < 0, 0.0, d_h)
    return d_x1 + d_x2 - 2 * (a[0] - b[0]) * by_span, d_y1 + d_y2 - 2 * (a[1] - b[1]) * by_span, d_w, d_h


@triton.jit
def common_sides(a, b):
    """Return overlap_x, overlap_y, hull_x, hull_y, intersection and union, by which two boxes are compared.

    These are the sides of their overlap, which are negative if there is a gap between the boxes, the sides of their
    hull, and the areas of their intersection and their union.
    """
    ax1, ay1, ax2, ay2 = box_corners(a)
    bx1, by1, bx2, by2 = box_corners(b)
    overlap_x = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    overlap_y = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    hull_x = tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1)
    hull_y = tl.maximum(ay2, by2) - tl.minimum(ay1, by1)
    intersection = tl.maximum(overlap_x, 0.0) * tl.maximum(overlap_y, 0.0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return overlap_x, overlap_y, hull_x, hull_y, intersection, union


@triton.jit
def aspect_terms(a, b, iou):
    """Return CIoU's angle between the diagonals of a and b, its v and its alpha; 0 if one of the boxes is a point."""
    a_w = not_negative(a[2])
    a_h = not_negative(a[3])
    b_w = not_negative(b[2])
    b_h = not_negative(b[3])
    points = (square(a_w) + square(a_h) <= SMALLEST_AREA) | (square(b_w) + square(b_h) <= SMALLEST_AREA)

    # atan(x) - atan(y) = atan((x - y) / (1 + x y)). The denominator is not negative, because sides are not.
    cross = b_w * a_h - a_w * b_h
    dot = tl.where(points, 1.0, a_w * b_w + a_h * b_h)
    angle = tl.where(points, 0.0, arctan(cross, dot))
    v = tl.full([], FOUR_BY_PI_SQUARED, angle.dtype) * angle * angle
    return angle, v, divide_or_zero(v, not_negative(1 - iou) + v)


@triton.jit
def arctan(y, x):
    """Return atan(y / x) up to a few roundings, for x >= 0, unless both are 0.

    It is computed by the rational function of Cephes (Moshier 1992), with its argument reduced to [-0.21, 0.66].
    """
    size = tl.abs(y)
    steep = size > x
    low = tl.where(steep, x, size)
    high = tl.where(steep, size, x)
    middle = low > 0.66 * high
    z = tl.where(middle, low - high, low) / tl.where(middle, low + high, high)
    square_z = z * z

    # The coefficients get the argument's type, because Triton would round a Python float to float32.
    p = tl.full([], -8.750608600031904122785e-1, z.dtype) * square_z
    p = (p + tl.full([], -1.615753718733365076637e1, z.dtype)) * square_z
    p = (p + tl.full([], -7.500855792314704667340e1, z.dtype)) * square_z
    p = (p + tl.full([], -1.228866684490136173410e2, z.dtype)) * square_z
    p = p + tl.full([], -6.485021904942025371773e1, z.dtype)
    q = (square_z + tl.full([], 2.485846490142306297962e1, z.dtype)) * square_z
    q = (q + tl.full([], 1.650270098316988542046e2, z.dtype)) * square_z
    q = (q + tl.full([], 4.328810604912902668951e2, z.dtype)) * square_z
    q = (q + tl.full([], 4.853903996359136964868e2, z.dtype)) * square_z
    q = q + tl.full([], 1.945506571482613964425e2, z.dtype)
    angle = z + z * (square_z * p / q)
    angle += tl.where(middle, tl.full([], 0.7853981633974483, z.dtype), tl.full([], 0.0, z.dtype))
    angle = tl.where(steep, tl.full([], 1.5707963267948966, z.dtype) - angle, angle)
    return tl.where(y < 0, -angle, angle)


@triton.jit
def square(x):
    return x * x


@triton.jit
def not_negative(x):
    """Replace negative values by 0. NaN stays NaN."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def side_gradient(a1, a2, b1, b2, d_length, d_overlap, d_hull, overlap):
    """Return the derivatives by a1 and a2 of a function of the interval [a1, a2].

    The function depends on the interval's length, and on its overlap and its hull with [b1, b2]. Its derivatives by
    these three are given.
    """
    d_overlap = tl.where(overlap < 0, 0.0, d_overlap)
    d_a1 = -d_length - d_overlap * larger(a1, b1) - d_hull * larger(b1, a1)
    d_a2 = d_length + d_overlap * larger(b2, a2) + d_hull * larger(a2, b2)
    return d_a1, d_a2


@triton.jit
def larger(a, b):
    """Return 1 if a > b, 0 if a < b, and 1/2 if they are equal: d max(a, b) / d a, and d min(a, b) / d b."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def box_corners(box):
    """Return x1, y1, x2, y2. A negative width or height counts as zero, and NaN stays NaN."""
    half_w = tl.where(box[2] < 0, 0.0, box[2]) / 2
    half_h = tl.where(box[3] < 0, 0.0, box[3]) / 2
    return box[0] - half_w, box[1] - half_h, box[0] + half_w, box[1] + half_h


@triton.jit
def divide_or_zero(numerator, denominator):
    """Return the quotient, or 0 if the denominator is at most SMALLEST_AREA. NaN stays NaN."""
    none = denominator <= SMALLEST_AREA
    return tl.where(none, 0.0, numerator / tl.where(none, 1.0, denominator))

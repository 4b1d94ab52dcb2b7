// Boxes (cx, cy, w, h): the L1 distance and the similarity of two of them, and the derivative of the similarity.
//
// Values are passed one by one, because the compiler does not vectorize a loop over structs.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "math.hpp"

namespace actdet::ACTDET_ISA {

enum class BoxTerm : int64_t { kGiou = 0, kDiou = 1, kCiou = 2, kIou = 3 };

// A quotient is 0 if its denominator is no larger than this.
template <typename Real>
inline constexpr Real kSmallestArea = static_cast<Real>(0x1p-100);

template <typename Real>
inline Real divide_or_zero(Real numerator, Real denominator) {
    const bool none = denominator <= kSmallestArea<Real>;
    const Real quotient = numerator / (none ? Real(1) : denominator);
    return none ? Real(0) : quotient;
}

// Replaces a negative side by 0, and keeps NaN.
template <typename Real>
inline Real not_negative(Real x) {
    return x < 0 ? Real(0) : x;
}

// Return the larger or the smaller of two numbers, and NaN if one of them is NaN.
template <typename Real>
inline Real larger(Real a, Real b) {
    return select(a > b, a, select(a <= b, b, a + b));
}

template <typename Real>
inline Real smaller(Real a, Real b) {
    return select(a < b, a, select(a >= b, b, a + b));
}

template <typename Real>
inline Real square(Real x) {
    return x * x;
}

template <typename Real>
inline Real l1_distance(Real ax, Real ay, Real aw, Real ah, Real bx, Real by, Real bw, Real bh) {
    return std::abs(ax - bx) + std::abs(ay - by) + std::abs(aw - bw) + std::abs(ah - bh);
}

// Returns atan(y / x) for x >= 0 and not both 0, accurate to a few roundings, by the rational function of Cephes
// (Moshier 1992). The arguments are changed so that the quotient is in [-0.21, 0.66], before anything is divided.
template <typename Real>
inline Real arctan(Real y, Real x) {
    const Real size = std::abs(y);
    const bool steep = size > x;
    const Real low = steep ? x : size;
    const Real high = steep ? size : x;
    const bool middle = low > Real(0.66) * high;
    const Real z = (middle ? low - high : low) / (middle ? low + high : high);
    const Real zz = z * z;
    Real p = Real(-8.750608600031904122785e-1) * zz;
    p = (p + Real(-1.615753718733365076637e1)) * zz;
    p = (p + Real(-7.500855792314704667340e1)) * zz;
    p = (p + Real(-1.228866684490136173410e2)) * zz;
    p = p + Real(-6.485021904942025371773e1);
    Real q = (zz + Real(2.485846490142306297962e1)) * zz;
    q = (q + Real(1.650270098316988542046e2)) * zz;
    q = (q + Real(4.328810604912902668951e2)) * zz;
    q = (q + Real(4.853903996359136964868e2)) * zz;
    q = q + Real(1.945506571482613964425e2);
    Real angle = z + z * (zz * p / q);
    angle += middle ? Real(0.7853981633974483) : Real(0);
    angle = steep ? Real(1.5707963267948966) - angle : angle;
    return y < 0 ? -angle : angle;
}

// Returns CIoU's angle between the diagonals of boxes with these sides, of which none is negative. It is 0 if one of
// the boxes is a point.
//
// It is computed as atan(x) - atan(y) = atan((x - y) / (1 + x y)), whose denominator is not negative.
template <typename Real>
inline Real angle_between(Real aw, Real ah, Real bw, Real bh) {
    const bool point_a = square(aw) + square(ah) <= kSmallestArea<Real>;
    const bool point_b = square(bw) + square(bh) <= kSmallestArea<Real>;
    const bool points = point_a | point_b;
    const Real angle = arctan(bw * ah - aw * bh, points ? Real(1) : aw * bw + ah * bh);
    return points ? Real(0) : angle;
}

template <typename Real>
inline constexpr Real kFourByPiSquared = static_cast<Real>(0.40528473456935108578);

// Returns the generalized IoU (Rezatofighi et al. 2019), the distance or complete IoU (Zheng et al. 2020), or the IoU
// of boxes whose corners and areas are known, and whose sides are not negative. If a value is NaN, the result is
// arbitrary.
template <typename Real, BoxTerm kTerm>
inline Real similarity_of_corners(
    Real ax, Real ay, Real aw, Real ah, Real ax1, Real ay1, Real ax2, Real ay2, Real a_area, Real bx, Real by, Real bw,
    Real bh, Real bx1, Real by1, Real bx2, Real by2, Real b_area
) {
    const Real overlap_x = not_negative((ax2 < bx2 ? ax2 : bx2) - (ax1 > bx1 ? ax1 : bx1));
    const Real overlap_y = not_negative((ay2 < by2 ? ay2 : by2) - (ay1 > by1 ? ay1 : by1));
    const Real hull_x = (ax2 > bx2 ? ax2 : bx2) - (ax1 < bx1 ? ax1 : bx1);
    const Real hull_y = (ay2 > by2 ? ay2 : by2) - (ay1 < by1 ? ay1 : by1);
    const Real both = overlap_x * overlap_y;
    const Real either = a_area + b_area - both;
    const Real iou = divide_or_zero(both, either);

    if constexpr (kTerm == BoxTerm::kGiou) {
        const Real hull = hull_x * hull_y;
        return iou - divide_or_zero(hull - either, hull);
    }
    if constexpr (kTerm == BoxTerm::kIou) return iou;

    const Real span = square(hull_x) + square(hull_y);
    const Real distance = iou - divide_or_zero(square(ax - bx) + square(ay - by), span);
    if constexpr (kTerm == BoxTerm::kDiou) return distance;

    const Real v = kFourByPiSquared<Real> * square(angle_between(aw, ah, bw, bh));
    return distance - divide_or_zero(v, not_negative(1 - iou) + v) * v;
}

// Returns NaN if one of the four values is NaN, otherwise 0.
template <typename Real>
inline Real flaw_of(const Real* box) {
    const bool none = box[0] == box[0] && box[1] == box[1] && box[2] == box[2] && box[3] == box[3];
    return none ? Real(0) : std::numeric_limits<Real>::quiet_NaN();
}

// Returns the same of two boxes as they are given, and NaN if one of their values is NaN.
template <BoxTerm kTerm, typename Real>
inline Real similarity(const Real* a, const Real* b) {
    const Real aw = not_negative(a[2]), ah = not_negative(a[3]);
    const Real bw = not_negative(b[2]), bh = not_negative(b[3]);
    const Real ax1 = a[0] - aw / 2, ax2 = a[0] + aw / 2, ay1 = a[1] - ah / 2, ay2 = a[1] + ah / 2;
    const Real bx1 = b[0] - bw / 2, bx2 = b[0] + bw / 2, by1 = b[1] - bh / 2, by2 = b[1] + bh / 2;
    const Real value = similarity_of_corners<Real, kTerm>(
        a[0], a[1], aw, ah, ax1, ay1, ax2, ay2, (ax2 - ax1) * (ay2 - ay1), b[0], b[1], bw, bh, bx1, by1, bx2, by2,
        (bx2 - bx1) * (by2 - by1)
    );
    return value + flaw_of(a) + flaw_of(b);
}

// Returns d max(a, b) / d a, which is also d min(a, b) / d b. PyTorch halves it if both are equal.
template <typename Real>
inline Real share(Real a, Real b) {
    return Real(0.5) * (static_cast<Real>(a > b) + static_cast<Real>(a >= b));
}

// Computes the derivatives with respect to a1 and a2 of a function of the length of [a1, a2], and of its overlap and
// its hull with [b1, b2]. The function's derivatives with respect to these three are given.
template <typename Real>
ACTDET_INLINE void side_gradient(
    Real a1, Real a2, Real b1, Real b2, Real d_length, Real d_overlap, Real d_hull, Real overlap, Real& d_a1, Real& d_a2
) {
    const Real by_overlap = select(overlap < 0, Real(0), d_overlap);
    d_a1 = -d_length - by_overlap * share(a1, b1) - d_hull * share(b1, a1);
    d_a2 = d_length + by_overlap * share(b2, a2) + d_hull * share(a2, b2);
}

// Computes d similarity(a, b) / d a, with PyTorch's choices at the kinks. CIoU's alpha is a constant to it.
//
// With the union U, the hull H, the intersection I, and the areas A and B of the boxes:
//   giou = I / U - 1 + U / H,  U = A + B - I
//   d giou = (1 / H - I / U^2) dA + (1 / U - 1 / H + I / U^2) dI - U / H^2 dH,  A, I and H being products of two sides
// With the squared distance D of the centers, and the squared diagonal S of the hull:
//   d diou = (1 / U + I / U^2) dI - I / U^2 dA - dD / S + D / S^2 dS
//   d ciou = d diou - alpha dv
template <BoxTerm kTerm, typename Real>
ACTDET_INLINE void similarity_gradient(const Real* a, const Real* b, Real* gradient) {
    const Real aw = not_negative(a[2]), ah = not_negative(a[3]);
    const Real bw = not_negative(b[2]), bh = not_negative(b[3]);
    const Real ax1 = a[0] - aw / 2, ax2 = a[0] + aw / 2, ay1 = a[1] - ah / 2, ay2 = a[1] + ah / 2;
    const Real bx1 = b[0] - bw / 2, bx2 = b[0] + bw / 2, by1 = b[1] - bh / 2, by2 = b[1] + bh / 2;
    const Real w = ax2 - ax1, h = ay2 - ay1;
    const Real overlap_x = smaller(ax2, bx2) - larger(ax1, bx1), overlap_y = smaller(ay2, by2) - larger(ay1, by1);
    const Real hull_x = larger(ax2, bx2) - smaller(ax1, bx1), hull_y = larger(ay2, by2) - smaller(ay1, by1);
    const Real inner_x = not_negative(overlap_x), inner_y = not_negative(overlap_y);
    const Real both = inner_x * inner_y;
    const Real either = w * h + (bx2 - bx1) * (by2 - by1) - both;
    const Real iou = divide_or_zero(both, either);
    const Real by_union = divide_or_zero(Real(1), either);

    // First the derivatives with respect to the area of a, the intersection, and the sides of the hull.
    Real d_area, d_both, d_hull_x, d_hull_y, by_span = 0;
    if constexpr (kTerm == BoxTerm::kGiou) {
        const Real hull = hull_x * hull_y;
        const Real by_hull = divide_or_zero(Real(1), hull);
        const Real d_hull = -divide_or_zero(either, hull) * by_hull;
        d_area = by_hull - iou * by_union;
        d_hull_x = d_hull * hull_y;
        d_hull_y = d_hull * hull_x;
    } else {
        const Real span = square(hull_x) + square(hull_y);
        by_span = divide_or_zero(Real(1), span);
        const Real d_hull = 2 * divide_or_zero(square(a[0] - b[0]) + square(a[1] - b[1]), span) * by_span;
        d_area = -iou * by_union;
        d_hull_x = d_hull * hull_x;
        d_hull_y = d_hull * hull_y;
    }
    d_both = by_union - d_area;

    // Then those with respect to the corners, and to the sides.
    Real d_x1, d_x2, d_y1, d_y2;
    side_gradient(ax1, ax2, bx1, bx2, d_area * h, d_both * inner_y, d_hull_x, overlap_x, d_x1, d_x2);
    side_gradient(ay1, ay2, by1, by2, d_area * w, d_both * inner_x, d_hull_y, overlap_y, d_y1, d_y2);
    Real d_w = (d_x2 - d_x1) / 2;
    Real d_h = (d_y2 - d_y1) / 2;
    if constexpr (kTerm == BoxTerm::kCiou) {
        const Real angle = angle_between(aw, ah, bw, bh);
        const Real v = kFourByPiSquared<Real> * square(angle);
        const Real alpha = divide_or_zero(v, not_negative(1 - iou) + v);
        // The angle has d angle / d w = -h / (w^2 + h^2) and d angle / d h = w / (w^2 + h^2).
        const Real by_angle = divide_or_zero(alpha * 2 * kFourByPiSquared<Real> * angle, square(aw) + square(ah));
        d_w += by_angle * ah;
        d_h -= by_angle * aw;
    }

    gradient[0] = d_x1 + d_x2 - 2 * (a[0] - b[0]) * by_span;
    gradient[1] = d_y1 + d_y2 - 2 * (a[1] - b[1]) * by_span;
    gradient[2] = select(a[2] < 0, Real(0), d_w);
    gradient[3] = select(a[3] < 0, Real(0), d_h);
}

template <typename Real>
void similarity_gradient(BoxTerm term, const Real* a, const Real* b, Real* gradient) {
    switch (term) {
        case BoxTerm::kGiou: return similarity_gradient<BoxTerm::kGiou>(a, b, gradient);
        case BoxTerm::kDiou: return similarity_gradient<BoxTerm::kDiou>(a, b, gradient);
        default: return similarity_gradient<BoxTerm::kCiou>(a, b, gradient);
    }
}

}  // namespace actdet::ACTDET_ISA

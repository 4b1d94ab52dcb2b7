// Boxes by coordinate: of many queries in arrays, so that a loop over queries is one of vector instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace actdet::ACTDET_ISA {

enum class BoxTerm : int32_t { kGiou = 0, kDiou = 1, kCiou = 2, kIou = 3 };

// A quotient is 0 where its denominator is no larger.
template <typename Real>
inline constexpr Real kSmallestArea = static_cast<Real>(0x1p-100);

template <typename Real>
inline Real divide_or_zero(Real numerator, Real denominator) {
    const bool none = denominator <= kSmallestArea<Real>;
    const Real quotient = numerator / (none ? Real(1) : denominator);
    return none ? Real(0) : quotient;
}

// A negative side counts as 0; NaN stays NaN.
template <typename Real>
inline Real not_negative(Real x) {
    return x < 0 ? Real(0) : x;
}

template <typename Real>
inline Real l1_distance(Real ax, Real ay, Real aw, Real ah, Real bx, Real by, Real bw, Real bh) {
    return std::abs(ax - bx) + std::abs(ay - by) + std::abs(aw - bw) + std::abs(ah - bh);
}

template <typename Real>
inline Real larger(Real a, Real b) {
    return a > b ? a : a <= b ? b : a + b;
}

template <typename Real>
inline Real smaller(Real a, Real b) {
    return a < b ? a : a >= b ? b : a + b;
}

// Generalized IoU (Rezatofighi et al. 2019), distance and complete IoU (Zheng et al. 2020), or IoU.
//
// By value, one by one: of a struct in a loop the compiler makes no vectors.
template <typename Real, BoxTerm kTerm>
inline Real similarity(Real ax, Real ay, Real aw, Real ah, Real bx, Real by, Real bw, Real bh) {
    aw = not_negative(aw);
    ah = not_negative(ah);
    bw = not_negative(bw);
    bh = not_negative(bh);
    const Real ax1 = ax - aw / 2, ax2 = ax + aw / 2, ay1 = ay - ah / 2, ay2 = ay + ah / 2;
    const Real bx1 = bx - bw / 2, bx2 = bx + bw / 2, by1 = by - bh / 2, by2 = by + bh / 2;
    const Real overlap_x = not_negative(smaller(ax2, bx2) - larger(ax1, bx1));
    const Real overlap_y = not_negative(smaller(ay2, by2) - larger(ay1, by1));
    const Real hull_x = larger(ax2, bx2) - smaller(ax1, bx1);
    const Real hull_y = larger(ay2, by2) - smaller(ay1, by1);
    const Real both = overlap_x * overlap_y;
    const Real either = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - both;
    const Real iou = divide_or_zero(both, either);
    if constexpr (kTerm == BoxTerm::kGiou) {
        const Real hull = hull_x * hull_y;
        return iou - divide_or_zero(hull - either, hull);
    }
    if constexpr (kTerm == BoxTerm::kIou) return iou;
    const Real dx = ax - bx;
    const Real dy = ay - by;
    const Real distance = iou - divide_or_zero(dx * dx + dy * dy, hull_x * hull_x + hull_y * hull_y);
    if constexpr (kTerm == BoxTerm::kDiou) return distance;
    const bool point = aw * aw + ah * ah <= kSmallestArea<Real> || bw * bw + bh * bh <= kSmallestArea<Real>;
    const Real angle = point ? Real(0) : std::atan2(bw, bh) - std::atan2(aw, ah);
    const Real v = static_cast<Real>(0.40528473456935109) * angle * angle;
    return distance - divide_or_zero(v, not_negative(1 - iou) + v) * v;
}

}  // namespace actdet::ACTDET_ISA

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
struct Box {
    Real cx, cy, w, h;

    Real half_w() const { return not_negative(w) / 2; }
    Real half_h() const { return not_negative(h) / 2; }
};

template <typename Real>
inline Real l1_distance(const Box<Real>& a, const Box<Real>& b) {
    return std::abs(a.cx - b.cx) + std::abs(a.cy - b.cy) + std::abs(a.w - b.w) + std::abs(a.h - b.h);
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
template <typename Real, BoxTerm kTerm>
inline Real similarity(const Box<Real>& a, const Box<Real>& b) {
    const Real ax1 = a.cx - a.half_w(), ax2 = a.cx + a.half_w(), ay1 = a.cy - a.half_h(), ay2 = a.cy + a.half_h();
    const Real bx1 = b.cx - b.half_w(), bx2 = b.cx + b.half_w(), by1 = b.cy - b.half_h(), by2 = b.cy + b.half_h();
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
    const Real dx = a.cx - b.cx;
    const Real dy = a.cy - b.cy;
    const Real distance = iou - divide_or_zero(dx * dx + dy * dy, hull_x * hull_x + hull_y * hull_y);
    if constexpr (kTerm == BoxTerm::kDiou) return distance;
    const Real aw = not_negative(a.w), ah = not_negative(a.h), bw = not_negative(b.w), bh = not_negative(b.h);
    const bool point = aw * aw + ah * ah <= kSmallestArea<Real> || bw * bw + bh * bh <= kSmallestArea<Real>;
    const Real angle = point ? Real(0) : std::atan2(bw, bh) - std::atan2(aw, ah);
    const Real v = static_cast<Real>(0.40528473456935109) * angle * angle;
    return distance - divide_or_zero(v, not_negative(1 - iou) + v) * v;
}

}  // namespace actdet::ACTDET_ISA

// The sigmoid losses of logits, and their derivatives. A class cost is the difference of two of these losses.
//
//   loss                            of a label                    of another class
//   focal (Lin et al. 2017)         alpha (1 - p)^gamma -log p    (1 - alpha) p^gamma -log(1 - p)
//   varifocal (RT-DETR's)           q BCE(p, q)                   alpha p^gamma -log(1 - p)
//   quality focal (Li et al. 2020)  |q - p|^gamma BCE(p, q)       p^gamma -log(1 - p)
//
// Here p = sigmoid(x), and q is the IoU of the boxes. Everything is computed from tail = e^-|x|, which cannot overflow:
// found = -log p,  missed = -log(1 - p) = found + x,  and  BCE(p, q) = missed - x q.
#pragma once

#include <cmath>
#include <cstdint>

#include "math.hpp"

namespace actdet::ACTDET_ISA {

enum class Kind : int64_t { kSoftmax = 0, kFocal = 1, kVarifocal = 2, kQualityFocal = 3 };

// The exponents gamma that need no power, but at most a product. Loops with one of them can be vectorized.
enum class Power { kZero, kOne, kTwo, kAny };

inline Power power_of(double gamma) {
    return gamma == 0 ? Power::kZero : gamma == 1 ? Power::kOne : gamma == 2 ? Power::kTwo : Power::kAny;
}

template <typename Real>
ACTDET_INLINE Real sigmoid(Real x, Real tail) {
    return select(x > 0, Real(1), tail) / (1 + tail);
}

// Returns -log sigmoid(x).
template <typename Real>
ACTDET_INLINE Real surprise(Real x, Real tail) {
    return log_one_plus(tail) + select(x < 0, -x, Real(0));
}

// Returns p^gamma. It is computed from the logarithm of p if gamma is not 0, 1 or 2.
template <Power kPower, typename Real>
ACTDET_INLINE Real power(Real p, Real minus_log_p, Real gamma) {
    if constexpr (kPower == Power::kZero) return Real(1);
    if constexpr (kPower == Power::kOne) return p;
    if constexpr (kPower == Power::kTwo) return p * p;
    return exponential(-gamma * minus_log_p);
}

// Returns |q - p|^gamma, where the distance may be 0.
template <Power kPower, typename Real>
inline Real power_of_distance(Real off, Real gamma) {
    if constexpr (kPower == Power::kOne) return off;
    if constexpr (kPower == Power::kTwo) return off * off;
    return std::pow(off, gamma);
}

// Returns the loss of a logit whose class is no label. `factor` is 1 - alpha for the focal loss, alpha for varifocal,
// and 1 for quality focal.
template <Power kPower, typename Real>
ACTDET_INLINE Real unlabeled(Real x, Real factor, Real gamma) {
    const Real tail = exponential(-std::abs(x));
    const Real found = surprise(x, tail);
    const Real missed = surprise(-x, tail);
    return factor * power<kPower>(sigmoid(x, tail), found, gamma) * missed;
}

// Returns its derivative. With kSteady, the power is a constant to the derivative, as in varifocal.
template <Power kPower, bool kSteady, typename Real>
ACTDET_INLINE Real unlabeled_slope(Real x, Real factor, Real gamma) {
    const Real tail = exponential(-std::abs(x));
    const Real p = sigmoid(x, tail);
    const Real rest = sigmoid(-x, tail);
    const Real found = surprise(x, tail);
    const Real missed = surprise(-x, tail);
    const Real by_power = kSteady ? Real(0) : gamma * rest * missed;
    return factor * power<kPower>(p, found, gamma) * (by_power + p);
}

// Returns the loss of a logit whose class is a label. `q` is the IoU, and focal ignores it.
template <Kind kKind, Power kPower, typename Real>
inline Real labeled(Real x, Real q, Real alpha, Real gamma) {
    const Real tail = exponential(-std::abs(x));
    const Real missed = surprise(-x, tail);
    if constexpr (kKind == Kind::kFocal) {
        return alpha * power<kPower>(sigmoid(-x, tail), missed, gamma) * surprise(x, tail);
    }
    if constexpr (kKind == Kind::kVarifocal) return q * (missed - x * q);
    return power_of_distance<kPower>(std::abs(q - sigmoid(x, tail)), gamma) * (missed - x * q);
}

// Returns its derivative.
template <Kind kKind, Power kPower, typename Real>
inline Real labeled_slope(Real x, Real q, Real alpha, Real gamma) {
    const Real tail = exponential(-std::abs(x));
    const Real p = sigmoid(x, tail);
    const Real rest = sigmoid(-x, tail);
    const Real missed = surprise(-x, tail);
    if constexpr (kKind == Kind::kFocal) {
        return -alpha * power<kPower>(rest, missed, gamma) * (gamma * p * surprise(x, tail) + rest);
    }
    if constexpr (kKind == Kind::kVarifocal) return q * (p - q);

    const Real off = std::abs(q - p);
    const Real sign = static_cast<Real>((p > q) - (p < q));
    const Real by_power = gamma * std::pow(off, gamma - 1) * sign * p * rest * (missed - x * q);
    return by_power + power_of_distance<kPower>(off, gamma) * (p - q);
}

// Returns the factor of `unlabeled`.
template <typename Real>
inline Real factor_of(Kind kind, Real alpha) {
    return kind == Kind::kFocal ? 1 - alpha : kind == Kind::kVarifocal ? alpha : Real(1);
}

// Writes the losses of a row of logits as if none had a label, or their derivatives.
template <bool kSlope, bool kSteady, Power kPower, typename Real>
void unlabeled_row(const Real* __restrict x, int64_t size, Real factor, Real gamma, Real* __restrict to) {
#pragma omp simd
    for (int64_t c = 0; c < size; ++c) {
        if constexpr (kSlope) {
            to[c] = unlabeled_slope<kPower, kSteady>(x[c], factor, gamma);
        } else {
            to[c] = unlabeled<kPower>(x[c], factor, gamma);
        }
    }
}

template <bool kSlope, bool kSteady, typename Real>
void unlabeled_row(const Real* x, int64_t size, Real factor, Real gamma, Real* to) {
    switch (power_of(gamma)) {
        case Power::kZero: return unlabeled_row<kSlope, kSteady, Power::kZero>(x, size, factor, gamma, to);
        case Power::kOne: return unlabeled_row<kSlope, kSteady, Power::kOne>(x, size, factor, gamma, to);
        case Power::kTwo: return unlabeled_row<kSlope, kSteady, Power::kTwo>(x, size, factor, gamma, to);
        case Power::kAny: return unlabeled_row<kSlope, kSteady, Power::kAny>(x, size, factor, gamma, to);
    }
}

// Returns the loss of a logit with a label, or its derivative.
template <bool kSlope, Kind kKind, Power kPower, typename Real>
Real labeled_term(Real x, Real q, Real alpha, Real gamma) {
    if constexpr (kSlope) return labeled_slope<kKind, kPower>(x, q, alpha, gamma);
    return labeled<kKind, kPower>(x, q, alpha, gamma);
}

template <bool kSlope, Kind kKind, typename Real>
Real labeled_term(Real x, Real q, Real alpha, Real gamma) {
    switch (power_of(gamma)) {
        case Power::kZero: return labeled_term<kSlope, kKind, Power::kZero>(x, q, alpha, gamma);
        case Power::kOne: return labeled_term<kSlope, kKind, Power::kOne>(x, q, alpha, gamma);
        case Power::kTwo: return labeled_term<kSlope, kKind, Power::kTwo>(x, q, alpha, gamma);
        default: return labeled_term<kSlope, kKind, Power::kAny>(x, q, alpha, gamma);
    }
}

}  // namespace actdet::ACTDET_ISA

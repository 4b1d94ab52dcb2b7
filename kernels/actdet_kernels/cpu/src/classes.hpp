// What a logit costs: the terms of the sigmoid losses, of which a class cost is a difference, and their derivatives.
//
// p = sigmoid(x), and with tail = e^-|x| nothing overflows:  found = -log p,  missed = -log(1 - p) = found + x.
#pragma once

#include <cmath>
#include <cstdint>

#include "math.hpp"

namespace actdet::ACTDET_ISA {

enum class Kind : int64_t { kSoftmax = 0, kFocal = 1, kVarifocal = 2, kQualityFocal = 3 };

// The exponents that are plain products, so that a loop with one of them is of vector instructions.
enum class Power { kZero, kOne, kTwo, kAny };

inline Power power_of(double gamma) {
    return gamma == 0 ? Power::kZero : gamma == 1 ? Power::kOne : gamma == 2 ? Power::kTwo : Power::kAny;
}

template <typename Real>
inline Real sigmoid(Real x, Real tail) {
    return select(x > 0, Real(1), tail) / (1 + tail);
}

// -log sigmoid(x).
template <typename Real>
inline Real surprise(Real x, Real tail) {
    return log_one_plus(tail) + select(x < 0, -x, Real(0));
}

// p^gamma, by its logarithm where gamma is no small integer.
template <Power kPower, typename Real>
inline Real power(Real p, Real minus_log_p, Real gamma) {
    if constexpr (kPower == Power::kZero) return Real(1);
    if constexpr (kPower == Power::kOne) return p;
    if constexpr (kPower == Power::kTwo) return p * p;
    return exponential(-gamma * minus_log_p);
}

// |q - p|^gamma, which may be that of 0.
template <Power kPower, typename Real>
inline Real power_of_distance(Real off, Real gamma) {
    if constexpr (kPower == Power::kOne) return off;
    if constexpr (kPower == Power::kTwo) return off * off;
    return std::pow(off, gamma);
}

// The loss of a logit whose class is no label. factor: 1 - alpha of the focal loss, alpha of varifocal, 1 of quality
// focal.
template <Power kPower, typename Real>
inline Real unlabeled(Real x, Real factor, Real gamma) {
    const Real tail = exponential(-std::abs(x));
    const Real found = surprise(x, tail);
    const Real missed = surprise(-x, tail);
    return factor * power<kPower>(sigmoid(x, tail), found, gamma) * missed;
}

// Its derivative. kSteady: the power is a constant to it, as varifocal's is.
template <Power kPower, bool kSteady, typename Real>
inline Real unlabeled_slope(Real x, Real factor, Real gamma) {
    const Real tail = exponential(-std::abs(x));
    const Real p = sigmoid(x, tail);
    const Real rest = sigmoid(-x, tail);
    const Real found = surprise(x, tail);
    const Real missed = surprise(-x, tail);
    const Real by_power = kSteady ? Real(0) : gamma * rest * missed;
    return factor * power<kPower>(p, found, gamma) * (by_power + p);
}

// The loss of a logit whose class is a label, of quality q, the IoU, where the kind of loss is soft.
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

// The factor of `unlabeled`.
template <typename Real>
inline Real factor_of(Kind kind, Real alpha) {
    return kind == Kind::kFocal ? 1 - alpha : kind == Kind::kVarifocal ? alpha : Real(1);
}

}  // namespace actdet::ACTDET_ISA

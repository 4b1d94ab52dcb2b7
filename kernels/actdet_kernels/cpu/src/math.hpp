// Exponential and logarithm in plain arithmetic, so that the compiler can vectorize loops around them. Those of double
// are the standard library's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// A loop around a call is not vectorized, and the compiler does not inline what it finds too long for so many callers.
#ifndef ACTDET_INLINE
#ifdef __GNUC__
#define ACTDET_INLINE __attribute__((always_inline)) inline
#else
#define ACTDET_INLINE inline
#endif
#endif

namespace actdet::ACTDET_ISA {

template <typename Real>
using Bits = std::conditional_t<sizeof(Real) == 8, int64_t, int32_t>;

template <typename Real>
inline Bits<Real> to_bits(Real value) {
    Bits<Real> bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <typename Real>
inline Real from_bits(Bits<Real> bits) {
    Real value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Returns condition ? a : b, without a branch. The compiler would not vectorize a loop in which it sees a branch.
template <typename Real>
inline Real select(bool condition, Real a, Real b) {
    const Bits<Real> mask = -static_cast<Bits<Real>>(condition);
    return from_bits<Real>((to_bits(a) & mask) | (to_bits(b) & ~mask));
}

// Returns e^x for x <= 0, accurate to one unit in the last place. It is 0 below -87.3, where float32 has no more normal
// numbers, and NaN for NaN. The polynomial is that of Cephes (Moshier 1992).
ACTDET_INLINE float exponential(float x) {
    const float bounded = x > -87.3f ? x : -87.3f;
    const float n = std::nearbyint(bounded * 1.44269504088896341f);
    const float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;

    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;

    const float power_of_two = from_bits<float>((static_cast<int32_t>(n) + 127) << 23);
    const float value = select(x < -87.3f, 0.0f, p * power_of_two);
    return select(x == x, value, x);
}

// Returns log(1 + x) for x in [0, 1], accurate to two units in the last place, and NaN for NaN.
ACTDET_INLINE float log_one_plus(float x) {
    // It is the logarithm of y = 1 + x, rounded, and a correction for what the rounding lost.
    const float y = 1.0f + x;
    const float lost = (x - (y - 1.0f)) / y;

    // y = (1 + f) 2^k, with 1 + f in [sqrt(1/2), sqrt(2)] and k = 0 or 1.
    const bool upper = y > 1.41421356237f;
    const float f = y * select(upper, 0.5f, 1.0f) - 1.0f;
    const float k = select(upper, 1.0f, 0.0f);
    const float z = f * f;

    float p = 7.0376836292e-2f;
    p = p * f + -1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f + -1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f + -1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f + -2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;

    const float small = f * z * p + k * -2.12194440e-4f - 0.5f * z;
    return (f + small) + k * 0.693359375f + lost;
}

inline double exponential(double x) { return std::exp(x); }

inline double log_one_plus(double x) { return std::log1p(x); }

}  // namespace actdet::ACTDET_ISA

// Exponential and logarithm as plain arithmetic, so that the compiler makes vector instructions of loops around them, and
// every instruction set gives the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace actdet::ACTDET_ISA {

inline float from_bits(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline int32_t to_bits(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// e^x within two units in the last place, 0 below -87.3 (where float32 has no more normal numbers), NaN for NaN. The
// polynomial is that of Cephes (Moshier 1992).
inline float exponential(float x) {
    const float bounded = x < -87.3f ? -87.3f : x > 88.7f ? 88.7f : x;
    const float n = std::nearbyint(bounded * 1.44269504088896341f);
    const float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // 2^n in two factors: for 128 there is no float.
    const int32_t half = static_cast<int32_t>(n) / 2;
    const int32_t rest = static_cast<int32_t>(n) - half;
    const float value = p * from_bits((half + 127) << 23) * from_bits((rest + 127) << 23);
    return x != x ? x : x < -87.3f ? 0.0f : x > 88.7f ? from_bits(0x7f800000) : value;
}

// log(1 + x) for x in [0, 1], within two units in the last place.
inline float log_one_plus(float x) {
    // Of y = 1 + x, rounded, and of what that lost.
    const float y = 1.0f + x;
    const float lost = (x - (y - 1.0f)) / y;
    // y = m 2^k with m in [sqrt(1/2), sqrt(2)): k is 0 or 1.
    const bool upper = y > 1.41421356237f;
    const float f = (upper ? y * 0.5f : y) - 1.0f;
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
    const float k = upper ? 1.0f : 0.0f;
    const float small = f * z * p + k * -2.12194440e-4f - 0.5f * z;
    return (f + small) + k * 0.693359375f + lost;
}

inline double exponential(double x) { return std::exp(x); }

inline double log_one_plus(double x) { return std::log1p(x); }

}  // namespace actdet::ACTDET_ISA

// Training clips out of a pool of video frames: gathered, stretched, colored and normalized, a row of pixels at a time.
//
//   u = left W + (x + 1/2) width - 1/2      output pixel (x, y) reads the source at (u, v), bilinear, within the picture
//   v = top H + (y + 1/2) height - 1/2
//   p1 = brightness p                       p in [0, 1], and m the mean of the clip's frames before any change
//   p2 = m brightness + contrast (p1 - m brightness)
//   p3 = gray + saturation (p2 - gray)      gray: the mean of the three channels of p2
//   out = (clamp(p3, 0, 1) - mean) / std    ImageNet's
//
// Two rows of the source are blended into one, and that row is resampled into the one that is written. Each of the two
// steps is a loop over columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "math.hpp"
#include "operations.hpp"

namespace actdet::ACTDET_ISA {

// Finds the nearest two places that an output place reads, and the share of the second.
template <typename Real>
inline void source_of(int64_t o, Real start, Real extent, int64_t size, int64_t& first, int64_t& second, Real& share) {
    Real place = start * static_cast<Real>(size) - Real(0.5) + (static_cast<Real>(o) + Real(0.5)) * extent;
    // Stay within the picture even if the place is NaN.
    place = place > 0 ? place : Real(0);
    place = std::min(place, static_cast<Real>(size - 1));
    first = static_cast<int64_t>(place);
    second = std::min(first + 1, size - 1);
    share = place - static_cast<Real>(first);
}

// Rounded to the nearest, ties to even.
struct BFloat16 {
    uint16_t bits;
};

inline void store(float value, float& to) { to = value; }
inline void store(double value, double& to) { to = value; }
inline void store(float value, BFloat16& to) {
    const uint32_t bits = static_cast<uint32_t>(to_bits(value));
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

template <typename Real, typename Out>
class Clips {
  public:
    explicit Clips(const ClipArguments& a) : a_(a), wide_(a.width * 3) {
        for (auto* part : {&row_, &scale_, &offset_}) part->resize(wide_);
        for (auto* part : {&share_, &red_, &green_, &blue_}) part->resize(a.width);
        first_.resize(a.width);
        second_.resize(a.width);
        for (int64_t k = 0; k < wide_; ++k) {
            scale_[k] = static_cast<Real>(1 / (255 * a.std_dev[k % 3]));
            offset_[k] = static_cast<Real>(-a.mean[k % 3] / a.std_dev[k % 3]);
        }
    }

    // Writes frame `i` of all clips, counted one clip after the other.
    void write(int64_t i) {
        const int64_t size = a_.height * wide_;
        const int64_t index = reinterpret_cast<const int64_t*>(a_.indices)[i];
        const bool known = index >= 0 && index < a_.frames;
        const uint8_t* frame = reinterpret_cast<const uint8_t*>(a_.pool) + (known ? index : 0) * size;
        Out* out = reinterpret_cast<Out*>(a_.out) + i * size;
        const int64_t clip = i / a_.length;
        const float* crop = reinterpret_cast<const float*>(a_.crops);
        const float* color = reinterpret_cast<const float*>(a_.color);
        // Also NaN if one of the numbers below is not finite.
        Real flaw = known ? Real(0) : std::numeric_limits<Real>::quiet_NaN();
        if (crop != nullptr) {
            crop += clip * 4;
            for (int k = 0; k < 4; ++k) flaw += crop[k] * 0;
            find_columns(crop);
        }
        Real mean = 0;
        if (color != nullptr) {
            color += clip * 3;
            mean = clip_mean(clip);
            flaw += mean * 0;
            for (int k = 0; k < 3; ++k) flaw += color[k] * 0;
        }
        for (int64_t y = 0; y < a_.height; ++y, out += wide_) {
            if (crop == nullptr && color == nullptr) {
                normalize(frame + y * wide_, flaw, out);
                continue;
            }
            if (crop == nullptr) {
                split(frame + y * wide_);
            } else {
                stretch(frame, y, crop);
            }
            if (color != nullptr) change(mean, color[0], color[1], color[2]);
            normalize(flaw, out);
        }
    }

  private:
    // The mean of a clip: the mean of frame_means over those of its frames that exist.
    Real clip_mean(int64_t clip) const {
        const int64_t* indices = reinterpret_cast<const int64_t*>(a_.indices) + clip * a_.length;
        const float* frame_means = reinterpret_cast<const float*>(a_.frame_means);
        Real total = 0;
        int64_t known = 0;
        for (int64_t t = 0; t < a_.length; ++t) {
            if (indices[t] < 0 || indices[t] >= a_.frames) continue;
            total += frame_means[indices[t]];
            ++known;
        }
        return total / static_cast<Real>(known);
    }

    // Finds where the pixels of a row read, in elements of a row of the source.
    void find_columns(const float* crop) {
        low_ = a_.width;
        high_ = 0;
        for (int64_t x = 0; x < a_.width; ++x) {
            int64_t first, second;
            source_of<Real>(x, crop[0], crop[2], a_.width, first, second, share_[x]);
            first_[x] = static_cast<int32_t>(first * 3);
            second_[x] = static_cast<int32_t>(second * 3);
            low_ = std::min(low_, first);
            high_ = std::max(high_, second);
        }
    }

    // Reads row y through the crop, by channel.
    void stretch(const uint8_t* frame, int64_t y, const float* crop) {
        int64_t above, below;
        Real share;
        source_of<Real>(y, crop[1], crop[3], a_.height, above, below, share);
        const uint8_t* __restrict a = frame + above * wide_;
        const uint8_t* __restrict b = frame + below * wide_;
        Real* __restrict row = row_.data();
        const int64_t end = (high_ + 1) * 3;
        for (int64_t k = low_ * 3; k < end; ++k) {
            const Real upper = a[k];
            row[k] = upper + share * (b[k] - upper);
        }
        const int32_t* __restrict first = first_.data();
        const int32_t* __restrict second = second_.data();
        const Real* __restrict shares = share_.data();
        Real* const channels[3] = {red_.data(), green_.data(), blue_.data()};
        for (int channel = 0; channel < 3; ++channel) {
            const Real* __restrict from = row_.data() + channel;
            Real* __restrict to = channels[channel];
#pragma omp simd
            for (int64_t x = 0; x < a_.width; ++x) {
                const Real left = from[first[x]];
                to[x] = left + shares[x] * (from[second[x]] - left);
            }
        }
    }

    // Splits a row into its channels, unchanged.
    void split(const uint8_t* __restrict row) {
        Real* __restrict red = red_.data();
        Real* __restrict green = green_.data();
        Real* __restrict blue = blue_.data();
        for (int64_t x = 0; x < a_.width; ++x) {
            red[x] = row[3 * x];
            green[x] = row[3 * x + 1];
            blue[x] = row[3 * x + 2];
        }
    }

    // Changes the colors of values in [0, 255], and clamps the results to that range.
    void change(Real mean, Real brightness, Real contrast, Real saturation) {
        const Real middle = mean * brightness * 255;
        Real* __restrict red = red_.data();
        Real* __restrict green = green_.data();
        Real* __restrict blue = blue_.data();
#pragma omp simd
        for (int64_t x = 0; x < a_.width; ++x) {
            const Real r = middle + contrast * (red[x] * brightness - middle);
            const Real g = middle + contrast * (green[x] * brightness - middle);
            const Real b = middle + contrast * (blue[x] * brightness - middle);
            const Real gray = (r + g + b) / 3;
            red[x] = within_range(gray + saturation * (r - gray));
            green[x] = within_range(gray + saturation * (g - gray));
            blue[x] = within_range(gray + saturation * (b - gray));
        }
    }

    static Real within_range(Real x) {
        const Real low = x > 0 ? x : Real(0);
        return low < 255 ? low : Real(255);
    }

    // Writes a row of bytes.
    void normalize(const uint8_t* __restrict row, Real flaw, Out* __restrict out) const {
        const Real* __restrict scale = scale_.data();
        const Real* __restrict offset = offset_.data();
#pragma omp simd
        for (int64_t k = 0; k < wide_; ++k) store(row[k] * scale[k] + offset[k] + flaw, out[k]);
    }

    // Writes the row that the buffers of the three channels hold.
    void normalize(Real flaw, Out* __restrict out) const {
        const Real* __restrict red = red_.data();
        const Real* __restrict green = green_.data();
        const Real* __restrict blue = blue_.data();
        const Real by_red = scale_[0], by_green = scale_[1], by_blue = scale_[2];
        const Real red_at_0 = offset_[0] + flaw, green_at_0 = offset_[1] + flaw, blue_at_0 = offset_[2] + flaw;
        for (int64_t x = 0; x < a_.width; ++x) {
            store(red[x] * by_red + red_at_0, out[3 * x]);
            store(green[x] * by_green + green_at_0, out[3 * x + 1]);
            store(blue[x] * by_blue + blue_at_0, out[3 * x + 2]);
        }
    }

    const ClipArguments& a_;
    const int64_t wide_;
    int64_t low_ = 0, high_ = 0;
    std::vector<Real> row_, scale_, offset_, share_, red_, green_, blue_;
    std::vector<int32_t> first_, second_;
};

template <typename Real, typename Out>
void gather_clips(const ClipArguments& a, Counter& next) {
    Clips<Real, Out> clips(a);
    for (int64_t frame; next.next(frame);) clips.write(frame);
}

// Writes the mean of every frame over its bytes, in [0, 1], from the exact sum.
inline void frame_levels(const LevelArguments& a, Counter& next) {
    for (int64_t i; next.next(i);) {
        const uint8_t* __restrict frame = reinterpret_cast<const uint8_t*>(a.pool) + i * a.size;
        int64_t sum = 0;
        // The sum of this many bytes fits 32 bits.
        for (int64_t first = 0; first < a.size; first += 1 << 23) {
            const int64_t size = std::min<int64_t>(a.size - first, 1 << 23);
            uint32_t part = 0;
#pragma omp simd reduction(+ : part)
            for (int64_t k = 0; k < size; ++k) part += frame[first + k];
            sum += part;
        }
        reinterpret_cast<float*>(a.frame_means)[i] = static_cast<float>(static_cast<double>(sum) / (255.0 * a.size));
    }
}

}  // namespace actdet::ACTDET_ISA

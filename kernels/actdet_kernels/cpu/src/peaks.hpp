// The highest peaks of a map of centers, and the tubelet of each.
//
//   peak: no neighbor among the eight is higher, and the logit is above minus infinity
//   order: the highest logit first, and of equals the one of the lower channel, then of the lower pixel
//   center in frame j = (x + 1/2, y + 1/2) + movement_j,   u, v = its pixel, clamped to the grid
//   box in frame j = (u + 1/2 - left, v + 1/2 - top, u + 1/2 + right, v + 1/2 + bottom), the sides those of pixel (u, v)
//
// The map is read once, row by row. The highest logits around each pixel of three rows are those of the three columns
// around it, so two loops over columns find the peaks of a row. The best that were found so far are a heap, and what
// comes behind all of them is dropped within these loops, which leaves nothing to do in most rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "operations.hpp"

namespace actdet::ACTDET_ISA {

template <typename Real>
class PeakFinder {
  public:
    explicit PeakFinder(const PeakArguments& a)
        : a_(a), area_(a.height * a.width), most_(std::min(a.peaks, a.channels * area_)) {
        heap_.reserve(most_);
        for (Row& row : rows_) {
            row.logits.assign(a.width + 2, kNone);
            row.highest.assign(a.width, kNone);
        }
        candidates_.resize(a.width);
    }

    // Writes the results of a sample.
    void write(int64_t sample) {
        heap_.clear();
        for (int64_t channel = 0; channel < a_.channels; ++channel) search(sample, channel);
        std::sort_heap(heap_.begin(), heap_.end(), is_before);

        for (int64_t n = 0; n < a_.peaks; ++n) {
            const bool exists = n < static_cast<int64_t>(heap_.size());
            const int64_t number = exists ? heap_[n].number : 0;
            const int64_t pixel = number % area_;
            const int64_t place = sample * a_.peaks + n;
            reinterpret_cast<int64_t*>(a_.pixels)[place] = exists ? pixel : -1;
            reinterpret_cast<int64_t*>(a_.channel_numbers)[place] = number / area_;
            reinterpret_cast<Real*>(a_.scores)[place] = exists ? 1 / (1 + std::exp(-heap_[n].logit)) : Real(0);

            Real* boxes = reinterpret_cast<Real*>(a_.boxes) + place * a_.frames * 4;
            Real* logits = reinterpret_cast<Real*>(a_.logits) + place * a_.count;
            if (exists) {
                write_boxes(sample, pixel, boxes);
                write_classes(sample, pixel, logits);
            } else {
                std::fill_n(boxes, a_.frames * 4, Real(0));
                std::fill_n(logits, a_.count, Real(0));
            }
        }
    }

  private:
    static constexpr Real kNone = -std::numeric_limits<Real>::infinity();

    // A logit of the map and its number, counted channel by channel and row by row.
    struct Peak {
        Real logit;
        int64_t number;
    };

    // A row of the map with a column beyond either end, and the highest of each three columns.
    struct Row {
        std::vector<Real> logits, highest;
    };

    // The order of the results. The heap has the last of the best on its top.
    static bool is_before(const Peak& a, const Peak& b) {
        return a.logit > b.logit || (a.logit == b.logit && a.number < b.number);
    }

    static Real larger(Real a, Real b) { return a > b ? a : b; }

    static const Real* data_of(const Map& map, int64_t sample, int64_t channel) {
        return reinterpret_cast<const Real*>(map.data) + sample * map.stride_b + channel * map.stride_c;
    }

    // Searches a channel. While row y is searched, rows y - 1 to y + 1 are in the buffers, each at its number modulo 3.
    void search(int64_t sample, int64_t channel) {
        const Real* logits = data_of(a_.centers, sample, channel);
        std::fill(rows_[2].highest.begin(), rows_[2].highest.end(), kNone);
        read(logits, 0, rows_[0]);
        for (int64_t y = 0; y < a_.height; ++y) {
            Row& below = rows_[(y + 1) % 3];
            if (y + 1 < a_.height) {
                read(logits, y + 1, below);
            } else {
                std::fill(below.highest.begin(), below.highest.end(), kNone);
            }
            if (!find_candidates(rows_[(y + 2) % 3], rows_[y % 3], below)) continue;
            for (int64_t x = 0; x < a_.width; ++x) add({candidates_[x], channel * area_ + y * a_.width + x});
        }
    }

    // Reads row y of a channel, with minus infinity in place of NaN.
    void read(const Real* logits, int64_t y, Row& row) const {
        const int64_t stride = a_.centers.stride_p;
        const Real* __restrict from = logits + y * a_.width * stride;
        Real* __restrict to = row.logits.data() + 1;
        if (stride == 1) {
            for (int64_t x = 0; x < a_.width; ++x) to[x] = from[x] == from[x] ? from[x] : kNone;
        } else {
            for (int64_t x = 0; x < a_.width; ++x) to[x] = from[x * stride] == from[x * stride] ? from[x * stride] : kNone;
        }

        Real* __restrict highest = row.highest.data();
        for (int64_t x = 0; x < a_.width; ++x) highest[x] = larger(larger(to[x - 1], to[x]), to[x + 1]);
    }

    // Sets the candidates of a row: its peaks that come before the last of the best, and minus infinity elsewhere.
    // Returns whether there is any.
    bool find_candidates(const Row& above, const Row& row, const Row& below) {
        const Real least = threshold();
        const Real* __restrict logits = row.logits.data() + 1;
        const Real* __restrict highest[3] = {above.highest.data(), row.highest.data(), below.highest.data()};
        Real* __restrict candidates = candidates_.data();
        Real best = kNone;
#pragma omp simd reduction(max : best)
        for (int64_t x = 0; x < a_.width; ++x) {
            const Real around = larger(larger(highest[0][x], highest[1][x]), highest[2][x]);
            const Real value = (logits[x] >= around) & (logits[x] > least) ? logits[x] : kNone;
            candidates[x] = value;
            best = larger(best, value);
        }
        return best > least;
    }

    // What a logit must exceed. Of equals the first comes first, so the last of the best is not replaced by an equal.
    Real threshold() const { return static_cast<int64_t>(heap_.size()) < most_ ? kNone : heap_.front().logit; }

    void add(const Peak& peak) {
        if (!(peak.logit > threshold())) return;
        if (static_cast<int64_t>(heap_.size()) == most_) {
            std::pop_heap(heap_.begin(), heap_.end(), is_before);
            heap_.pop_back();
        }
        heap_.push_back(peak);
        std::push_heap(heap_.begin(), heap_.end(), is_before);
    }

    // Returns the pixel in which a center is after its movement along a side of `size` pixels, clamped to the grid.
    static int64_t moved_pixel(int64_t pixel, Real movement, int64_t size) {
        if (!std::isfinite(movement)) return pixel;
        const Real place = static_cast<Real>(pixel) + Real(0.5) + movement;
        const Real within = std::min(std::max(place, Real(0)), static_cast<Real>(size));
        return std::min(static_cast<int64_t>(within), size - 1);
    }

    void write_boxes(int64_t sample, int64_t pixel, Real* boxes) const {
        const Real width = static_cast<Real>(a_.width);
        const Real height = static_cast<Real>(a_.height);
        for (int64_t frame = 0; frame < a_.frames; ++frame, boxes += 4) {
            int64_t u = pixel % a_.width;
            int64_t v = pixel / a_.width;
            if (a_.moved) {
                const Real* movement = data_of(a_.movement, sample, 2 * frame) + pixel * a_.movement.stride_p;
                u = moved_pixel(u, movement[0], a_.width);
                v = moved_pixel(v, movement[a_.movement.stride_c], a_.height);
            }

            const Real* sides = data_of(a_.sizes, sample, 4 * frame) + (v * a_.width + u) * a_.sizes.stride_p;
            const int64_t stride = a_.sizes.stride_c;
            const Real left = sides[0], top = sides[stride], right = sides[2 * stride], bottom = sides[3 * stride];
            boxes[0] = (static_cast<Real>(u) + Real(0.5) + (right - left) / 2) / width;
            boxes[1] = (static_cast<Real>(v) + Real(0.5) + (bottom - top) / 2) / height;
            boxes[2] = (left + right) / width;
            boxes[3] = (top + bottom) / height;
        }
    }

    // Writes the class logits, of the pixel of their own grid in which the middle of a pixel is.
    void write_classes(int64_t sample, int64_t pixel, Real* logits) const {
        if (a_.count == 0) return;
        const int64_t row = (2 * (pixel / a_.width) + 1) * a_.rows / (2 * a_.height);
        const int64_t column = (2 * (pixel % a_.width) + 1) * a_.columns / (2 * a_.width);
        const Real* classes = data_of(a_.classes, sample, 0) + (row * a_.columns + column) * a_.classes.stride_p;
        for (int64_t k = 0; k < a_.count; ++k) logits[k] = classes[k * a_.classes.stride_c];
    }

    const PeakArguments& a_;
    const int64_t area_, most_;
    std::vector<Peak> heap_;
    Row rows_[3];
    std::vector<Real> candidates_;
};

template <typename Real>
void find_peaks(const PeakArguments& a, Counter& next) {
    PeakFinder<Real> finder(a);
    for (int64_t sample; next.next(sample);) finder.write(sample);
}

}  // namespace actdet::ACTDET_ISA

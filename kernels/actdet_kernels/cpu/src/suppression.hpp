// The boxes of each class that no surer one of that class overlaps.
//
//   order: the highest score first, and of equals the lower row
//   IoU of two tubelets = the mean over their frames of |a and b| / |a or b|, 0 where that is 0 / 0 or one is not finite
//   kept: in that order, each one whose IoU with all that were kept before is at most a threshold
//
// An item is a class of a sample. Its candidates are copied in their order, coordinate by coordinate, so that the loop
// over all that come after one that is kept reads memory in a row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "operations.hpp"

namespace actdet::ACTDET_ISA {

template <typename Real>
class Suppressor {
  public:
    explicit Suppressor(const SuppressionArguments& a) : a_(a) {}

    // Writes which boxes of a sample are kept as one of a class.
    void write(int64_t item) {
        const int64_t sample = item / a_.classes;
        const int64_t label = item % a_.classes;
        const Real* scores = reinterpret_cast<const Real*>(a_.scores) + sample * a_.rows * a_.classes + label;
        int8_t* kept = reinterpret_cast<int8_t*>(a_.kept) + sample * a_.rows * a_.classes + label;

        order_.clear();
        for (int64_t row = 0; row < a_.rows; ++row) {
            kept[row * a_.classes] = 0;
            // A comparison with NaN is false.
            if (scores[row * a_.classes] > static_cast<Real>(a_.score_threshold)) order_.push_back(row);
        }
        std::sort(order_.begin(), order_.end(), [&](int64_t i, int64_t j) {
            const Real a = scores[i * a_.classes];
            const Real b = scores[j * a_.classes];
            return a > b || (a == b && i < j);
        });

        const int64_t count = static_cast<int64_t>(order_.size());
        copy(sample, count);
        gone_.assign(count, 0);
        overlap_.resize(count);
        for (int64_t i = 0; i < count; ++i) {
            if (gone_[i]) continue;
            kept[order_[i] * a_.classes] = 1;
            suppress_by(i, count);
        }
    }

  private:
    // x1, y1, x2, y2 and the area.
    static constexpr int64_t kNumbers = 5;

    // Copies the boxes of the candidates of a sample: frame by frame, number by number. One that is not finite is a box
    // without area at 0.
    void copy(int64_t sample, int64_t count) {
        const Real* boxes = reinterpret_cast<const Real*>(a_.boxes) + sample * a_.rows * a_.frames * 4;
        numbers_.resize(a_.frames * kNumbers * count);
        for (int64_t frame = 0; frame < a_.frames; ++frame) {
            Real* to = numbers_.data() + frame * kNumbers * count;
            for (int64_t i = 0; i < count; ++i) {
                const Real* box = boxes + (order_[i] * a_.frames + frame) * 4;
                // Infinity minus itself is NaN, and so is NaN.
                const bool finite = (box[0] - box[0]) + (box[1] - box[1]) + (box[2] - box[2]) + (box[3] - box[3]) == 0;
                for (int64_t j = 0; j < 4; ++j) to[j * count + i] = finite ? box[j] : Real(0);
                to[4 * count + i] = finite ? positive(box[2] - box[0]) * positive(box[3] - box[1]) : Real(0);
            }
        }
    }

    static Real positive(Real side) { return side > 0 ? side : Real(0); }

    // Marks the candidates behind `i` that it overlaps by more than the threshold.
    void suppress_by(int64_t i, int64_t count) {
        Real* __restrict overlap = overlap_.data();
        std::fill(overlap + i, overlap + count, Real(0));
        for (int64_t frame = 0; frame < a_.frames; ++frame) {
            const Real* __restrict x1 = numbers_.data() + frame * kNumbers * count;
            const Real* __restrict y1 = x1 + count;
            const Real* __restrict x2 = y1 + count;
            const Real* __restrict y2 = x2 + count;
            const Real* __restrict area = y2 + count;
            const Real left = x1[i], top = y1[i], right = x2[i], bottom = y2[i], own = area[i];
            for (int64_t j = i + 1; j < count; ++j) {
                const Real width = positive(std::min(right, x2[j]) - std::max(left, x1[j]));
                const Real height = positive(std::min(bottom, y2[j]) - std::max(top, y1[j]));
                const Real shared = width * height;
                const Real whole = own + area[j] - shared;
                overlap[j] += whole > 0 ? shared / whole : Real(0);
            }
        }
        const Real frames = static_cast<Real>(a_.frames);
        const Real threshold = static_cast<Real>(a_.iou_threshold);
        for (int64_t j = i + 1; j < count; ++j) gone_[j] |= overlap[j] / frames > threshold;
    }

    const SuppressionArguments& a_;
    std::vector<int64_t> order_;
    std::vector<Real> numbers_, overlap_;
    std::vector<uint8_t> gone_;
};

template <typename Real>
void suppress_boxes(const SuppressionArguments& a, Counter& next) {
    Suppressor<Real> suppressor(a);
    for (int64_t item; next.next(item);) suppressor.write(item);
}

}  // namespace actdet::ACTDET_ISA

// The matching cost of one target with every query, a row of what the assignment solves.
//
//   cost[j] = cls * class_cost + l1 * |b_j - target|_1 + giou * (1 - GIoU(b_j, target)),  or with DIoU or CIoU
//
// The class costs are those of `reference.pairwise_cost`: -softmax, or what a sigmoid loss changes by. Of tubelets, L1,
// GIoU and IoU are means over the visible frames; of several labels, the class costs are added up.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "boxes.hpp"
#include "math.hpp"

namespace actdet::ACTDET_ISA {

enum class ClassCost : int32_t { kSoftmax = 0, kFocal = 1, kVarifocal = 2, kQualityFocal = 3 };

template <typename Real>
struct CostOptions {
    Real cls, l1, giou;
    ClassCost class_cost;
    Real alpha, gamma;
    BoxTerm box_term;
};

// One sample under one layer: logits (queries, classes), boxes (queries, frames, 4); labels (size, labels_each), boxes
// (size, frames, 4) and visible (size, frames) of its targets. All contiguous; visible may be null.
template <typename Real>
struct Sample {
    const Real* logits;
    const Real* boxes;
    const int64_t* labels;
    const Real* target_boxes;
    const bool* visible;
    int64_t queries, classes, frames, labels_each;
};

// Of x, with tail = e^-|x|: sigmoid(x), and -log sigmoid(x).
template <typename Real>
inline Real sigmoid(Real x, Real tail) {
    return (x > 0 ? Real(1) : tail) / (1 + tail);
}

template <typename Real>
inline Real surprise(Real x, Real tail) {
    return log_one_plus(tail) + (x < 0 ? -x : Real(0));
}

// factor * p^gamma; minus_log_p: by which a power is 0 where p is.
template <typename Real>
inline Real times_power(Real factor, Real p, Real minus_log_p, Real gamma) {
    if (gamma == 0) return factor;
    if (gamma == 1) return factor * p;
    if (gamma == 2) return factor * p * p;
    return factor * exponential(-gamma * minus_log_p);
}

// Costs of one sample. `prepare` looks at the queries once; `row` gives the costs of a target.
template <typename Real>
class Costs {
  public:
    explicit Costs(const CostOptions<Real>& options) : options_(options) {}

    void prepare(const Sample<Real>& sample) {
        sample_ = sample;
        const int64_t count = sample.queries * sample.frames;
        for (auto* part : {&cx_, &cy_, &w_, &h_}) part->resize(count);
        for (int64_t n = 0; n < sample.queries; ++n) {
            for (int64_t t = 0; t < sample.frames; ++t) {
                const Real* box = sample.boxes + (n * sample.frames + t) * 4;
                const int64_t place = t * sample.queries + n;
                cx_[place] = box[0];
                cy_[place] = box[1];
                w_[place] = box[2];
                h_[place] = box[3];
            }
        }
        for (auto* part : {&x_, &l1_, &giou_, &iou_, &peak_, &total_}) part->resize(sample.queries);
        if (options_.class_cost == ClassCost::kSoftmax) normalize();
    }

    // costs (queries) of target j.
    void row(int64_t j, Real* __restrict costs) {
        boxes_of(j);
        const int64_t queries = sample_.queries;
        std::fill_n(costs, queries, Real(0));
        for (int64_t k = 0; k < sample_.labels_each; ++k) {
            const int64_t label = sample_.labels[j * sample_.labels_each + k];
            if (k > 0 && label == -1) continue;
            if (label < 0 || label >= sample_.classes) {
                std::fill_n(costs, queries, std::numeric_limits<Real>::quiet_NaN());
                return;
            }
            for (int64_t n = 0; n < queries; ++n) x_[n] = sample_.logits[n * sample_.classes + label];
            add_class_costs(costs);
        }
        const Real* __restrict l1 = l1_.data();
        const Real* __restrict giou = giou_.data();
        const CostOptions<Real> o = options_;
#pragma omp simd
        for (int64_t n = 0; n < queries; ++n) costs[n] = o.cls * costs[n] + o.l1 * l1[n] + o.giou * giou[n];
    }

  private:
    void normalize() {
        const int64_t classes = sample_.classes;
        for (int64_t n = 0; n < sample_.queries; ++n) {
            const Real* __restrict x = sample_.logits + n * classes;
            Real peak = -std::numeric_limits<Real>::infinity();
#pragma omp simd reduction(max : peak)
            for (int64_t c = 0; c < classes; ++c) peak = x[c] > peak ? x[c] : peak;
            // Infinity less infinity would be NaN.
            const Real shift = peak == -std::numeric_limits<Real>::infinity() ? Real(0) : peak;
            Real total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t c = 0; c < classes; ++c) total += exponential(x[c] - shift);
            peak_[n] = peak;
            total_[n] = total;
        }
    }

    void add_class_costs(Real* __restrict costs) {
        const int64_t queries = sample_.queries;
        const Real* __restrict x = x_.data();
        const Real* __restrict q = iou_.data();
        const Real alpha = options_.alpha;
        const Real gamma = options_.gamma;
        switch (options_.class_cost) {
            case ClassCost::kSoftmax: {
                const Real* __restrict peak = peak_.data();
                const Real* __restrict total = total_.data();
#pragma omp simd
                for (int64_t n = 0; n < queries; ++n) costs[n] -= exponential(x[n] - peak[n]) / total[n];
                break;
            }
            case ClassCost::kFocal:
#pragma omp simd
                for (int64_t n = 0; n < queries; ++n) {
                    const Real tail = exponential(-std::abs(x[n]));
                    const Real p = sigmoid(x[n], tail);
                    const Real rest = sigmoid(-x[n], tail);
                    const Real found = surprise(x[n], tail);
                    const Real missed = surprise(-x[n], tail);
                    costs[n] += times_power(alpha, rest, missed, gamma) * found -
                                times_power(1 - alpha, p, found, gamma) * missed;
                }
                break;
            case ClassCost::kVarifocal:
#pragma omp simd
                for (int64_t n = 0; n < queries; ++n) {
                    const Real tail = exponential(-std::abs(x[n]));
                    const Real p = sigmoid(x[n], tail);
                    const Real found = surprise(x[n], tail);
                    const Real missed = surprise(-x[n], tail);
                    costs[n] += q[n] * (missed - x[n] * q[n]) - times_power(alpha, p, found, gamma) * missed;
                }
                break;
            case ClassCost::kQualityFocal:
                for (int64_t n = 0; n < queries; ++n) {
                    const Real tail = exponential(-std::abs(x[n]));
                    const Real p = sigmoid(x[n], tail);
                    const Real found = surprise(x[n], tail);
                    const Real missed = surprise(-x[n], tail);
                    const Real off = std::abs(q[n] - p);
                    costs[n] += std::pow(off, gamma) * (missed - x[n] * q[n]) -
                                times_power(Real(1), p, found, gamma) * missed;
                }
                break;
        }
    }

    // L1 and box terms of target j with every query, and IoU where the class cost asks for it.
    void boxes_of(int64_t j) {
        const bool soft = options_.class_cost == ClassCost::kVarifocal || options_.class_cost == ClassCost::kQualityFocal;
        std::fill(l1_.begin(), l1_.end(), Real(0));
        std::fill(giou_.begin(), giou_.end(), Real(0));
        std::fill(iou_.begin(), iou_.end(), Real(0));
        int64_t seen = 0;
        for (int64_t t = 0; t < sample_.frames; ++t) {
            const int64_t place = j * sample_.frames + t;
            if (sample_.visible != nullptr && !sample_.visible[place]) continue;
            ++seen;
            const Real* box = sample_.target_boxes + place * 4;
            switch (options_.box_term) {
                case BoxTerm::kGiou: add_terms<BoxTerm::kGiou>(t, box, giou_.data()); break;
                case BoxTerm::kDiou: add_terms<BoxTerm::kDiou>(t, box, giou_.data()); break;
                default: add_terms<BoxTerm::kCiou>(t, box, giou_.data());
            }
            if (soft) add_terms<BoxTerm::kIou>(t, box, iou_.data());
        }
        const Real mean = Real(1) / static_cast<Real>(std::max<int64_t>(seen, 1));
        for (int64_t n = 0; n < sample_.queries; ++n) {
            l1_[n] *= mean;
            giou_[n] *= mean;
            iou_[n] = 1 - iou_[n] * mean;
        }
    }

    // Adds 1 - similarity to `terms`, and where that is the box term, L1 too.
    template <BoxTerm kTerm>
    void add_terms(int64_t t, const Real* target, Real* __restrict terms) {
        const int64_t queries = sample_.queries;
        const Real* __restrict cx = &cx_[t * queries];
        const Real* __restrict cy = &cy_[t * queries];
        const Real* __restrict w = &w_[t * queries];
        const Real* __restrict h = &h_[t * queries];
        Real* __restrict l1 = l1_.data();
        const Real bx = target[0], by = target[1], bw = target[2], bh = target[3];
#pragma omp simd
        for (int64_t n = 0; n < queries; ++n) {
            terms[n] += 1 - similarity<Real, kTerm>(cx[n], cy[n], w[n], h[n], bx, by, bw, bh);
            if constexpr (kTerm != BoxTerm::kIou) l1[n] += l1_distance(cx[n], cy[n], w[n], h[n], bx, by, bw, bh);
        }
    }

    CostOptions<Real> options_;
    Sample<Real> sample_{};
    std::vector<Real> cx_, cy_, w_, h_;           // (frames, queries)
    std::vector<Real> x_, l1_, giou_, iou_;       // (queries) of one target
    std::vector<Real> peak_, total_;              // (queries) of the softmax
};

}  // namespace actdet::ACTDET_ISA

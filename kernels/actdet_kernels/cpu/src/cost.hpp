// The matching cost of one target with every query, a row of what the assignment solves.
//
//   cost[j] = cls * class_cost + l1 * |b_j - target|_1 + giou * (1 - GIoU(b_j, target)),  or with DIoU or CIoU
//
// The class cost is -softmax, or what a sigmoid loss changes by when a logit gets a label. Of tubelets, L1, GIoU and
// IoU are means over the visible frames; of several labels, the class costs are added up.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "boxes.hpp"
#include "classes.hpp"
#include "math.hpp"
#include "targets.hpp"

namespace actdet::ACTDET_ISA {

// The greatest of x, and -infinity if there is none; NaN counts as none.
template <typename Real>
inline Real greatest(const Real* __restrict x, int64_t size) {
    Real peak = -std::numeric_limits<Real>::infinity();
#pragma omp simd reduction(max : peak)
    for (int64_t c = 0; c < size; ++c) peak = x[c] > peak ? x[c] : peak;
    return peak;
}

// to = e^(x - peak), and their sum.
template <typename Real>
inline Real exponentials(const Real* __restrict x, Real peak, int64_t size, Real* __restrict to) {
    Real total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < size; ++c) {
        const Real value = exponential(x[c] - peak);
        to[c] = value;
        total += value;
    }
    return total;
}

// costs += what class cost kKind is for logits x, whose boxes have IoU q with the target's.
template <Kind kKind, Power kPower, typename Real>
void add_sigmoid_costs(
    const Real* __restrict x, const Real* __restrict q, Real alpha, Real gamma, int64_t size, Real* __restrict costs
) {
    const Real factor = factor_of(kKind, alpha);
#pragma omp simd
    for (int64_t n = 0; n < size; ++n) {
        costs[n] += labeled<kKind, kPower>(x[n], q[n], alpha, gamma) - unlabeled<kPower>(x[n], factor, gamma);
    }
}

template <Kind kKind, typename Real>
void add_sigmoid_costs(const Real* x, const Real* q, Real alpha, Real gamma, int64_t size, Real* costs) {
    switch (power_of(gamma)) {
        case Power::kZero: return add_sigmoid_costs<kKind, Power::kZero>(x, q, alpha, gamma, size, costs);
        case Power::kOne: return add_sigmoid_costs<kKind, Power::kOne>(x, q, alpha, gamma, size, costs);
        case Power::kTwo: return add_sigmoid_costs<kKind, Power::kTwo>(x, q, alpha, gamma, size, costs);
        case Power::kAny: return add_sigmoid_costs<kKind, Power::kAny>(x, q, alpha, gamma, size, costs);
    }
}

// terms += 1 - similarity of a target's box with boxes (4, size), and l1 += their distance, where there is l1.
template <BoxTerm kTerm, bool kL1, typename Real>
void add_box_terms(
    const Real* __restrict boxes, const Real* __restrict target, int64_t size, Real* __restrict terms,
    Real* __restrict l1
) {
    const Real* __restrict cx = boxes;
    const Real* __restrict cy = boxes + size;
    const Real* __restrict w = boxes + 2 * size;
    const Real* __restrict h = boxes + 3 * size;
    const Real bx = target[0];
    const Real by = target[1];
    const Real bw = target[2];
    const Real bh = target[3];
#pragma omp simd
    for (int64_t n = 0; n < size; ++n) {
        terms[n] += 1 - similarity<Real, kTerm>(cx[n], cy[n], w[n], h[n], bx, by, bw, bh);
        if constexpr (kL1) l1[n] += l1_distance(cx[n], cy[n], w[n], h[n], bx, by, bw, bh);
    }
}

// Costs of one sample after the other. `look_at` reads the queries once; `row` gives the costs of a target.
template <typename Real>
class Costs {
  public:
    explicit Costs(const CostOptions& options)
        : cls_(options.cls),
          l1_weight_(options.l1),
          giou_weight_(options.giou),
          alpha_(options.alpha),
          gamma_(options.gamma),
          kind_(static_cast<Kind>(options.class_cost)),
          term_(static_cast<BoxTerm>(options.box_term)) {}

    void look_at(const Sample<Real>& sample) {
        sample_ = &sample;
        // (frames, 4, queries): a coordinate of all queries after the other.
        boxes_.resize(sample.queries * sample.frames * 4);
        for (int64_t n = 0; n < sample.queries; ++n) {
            for (int64_t k = 0; k < sample.frames * 4; ++k) {
                boxes_[k * sample.queries + n] = sample.boxes[n * sample.frames * 4 + k];
            }
        }
        for (auto* part : {&x_, &l1_, &giou_, &iou_}) part->resize(sample.queries);
        if (kind_ == Kind::kSoftmax) softmax();
    }

    // costs (queries) of target j.
    void row(int64_t j, Real* __restrict costs) {
        const int64_t queries = sample_->queries;
        std::fill_n(costs, queries, Real(0));
        add_boxes(j);
        for (int64_t k = 0; k < sample_->labels_each; ++k) {
            if (sample_->absent(j, k)) continue;
            if (!sample_->known(j, k)) {
                std::fill_n(costs, queries, std::numeric_limits<Real>::quiet_NaN());
                return;
            }
            add_classes(sample_->labels[j * sample_->labels_each + k], costs);
        }
        const Real* __restrict l1 = l1_.data();
        const Real* __restrict giou = giou_.data();
        const Real cls = cls_;
        const Real by_l1 = l1_weight_;
        const Real by_giou = giou_weight_;
#pragma omp simd
        for (int64_t n = 0; n < queries; ++n) costs[n] = cls * costs[n] + by_l1 * l1[n] + by_giou * giou[n];
    }

  private:
    // exponentials_ (queries, classes), and their sums, totals_ (queries).
    void softmax() {
        const int64_t classes = sample_->classes;
        exponentials_.resize(sample_->queries * classes);
        totals_.resize(sample_->queries);
        for (int64_t n = 0; n < sample_->queries; ++n) {
            const Real* x = sample_->logits + n * classes;
            totals_[n] = exponentials(x, greatest(x, classes), classes, &exponentials_[n * classes]);
        }
    }

    void add_classes(int64_t label, Real* __restrict costs) {
        const int64_t queries = sample_->queries;
        const int64_t classes = sample_->classes;
        if (kind_ == Kind::kSoftmax) {
            const Real* __restrict values = exponentials_.data() + label;
            const Real* __restrict totals = totals_.data();
            for (int64_t n = 0; n < queries; ++n) costs[n] -= values[n * classes] / totals[n];
            return;
        }
        for (int64_t n = 0; n < queries; ++n) x_[n] = sample_->logits[n * classes + label];
        const Real* x = x_.data();
        const Real* q = iou_.data();
        switch (kind_) {
            case Kind::kFocal: return add_sigmoid_costs<Kind::kFocal>(x, q, alpha_, gamma_, queries, costs);
            case Kind::kVarifocal: return add_sigmoid_costs<Kind::kVarifocal>(x, q, alpha_, gamma_, queries, costs);
            default: return add_sigmoid_costs<Kind::kQualityFocal>(x, q, alpha_, gamma_, queries, costs);
        }
    }

    // L1 and box terms of target j with every query, and IoU where the class cost asks for it.
    void add_boxes(int64_t j) {
        const int64_t queries = sample_->queries;
        const bool soft = kind_ == Kind::kVarifocal || kind_ == Kind::kQualityFocal;
        for (auto* part : {&l1_, &giou_, &iou_}) std::fill(part->begin(), part->end(), Real(0));
        int64_t seen = 0;
        for (int64_t t = 0; t < sample_->frames; ++t) {
            const int64_t place = j * sample_->frames + t;
            if (sample_->visible != nullptr && !sample_->visible[place]) continue;
            ++seen;
            const Real* boxes = &boxes_[t * 4 * queries];
            const Real* target = sample_->target_boxes + place * 4;
            switch (term_) {
                case BoxTerm::kGiou:
                    add_box_terms<BoxTerm::kGiou, true>(boxes, target, queries, giou_.data(), l1_.data());
                    break;
                case BoxTerm::kDiou:
                    add_box_terms<BoxTerm::kDiou, true>(boxes, target, queries, giou_.data(), l1_.data());
                    break;
                default: add_box_terms<BoxTerm::kCiou, true>(boxes, target, queries, giou_.data(), l1_.data());
            }
            if (soft) add_box_terms<BoxTerm::kIou, false>(boxes, target, queries, iou_.data(), l1_.data());
        }
        const Real frames = static_cast<Real>(std::max<int64_t>(seen, 1));
        Real* __restrict l1 = l1_.data();
        Real* __restrict giou = giou_.data();
        Real* __restrict iou = iou_.data();
#pragma omp simd
        for (int64_t n = 0; n < queries; ++n) {
            l1[n] /= frames;
            giou[n] /= frames;
            iou[n] = 1 - iou[n] / frames;
        }
    }

    const Real cls_, l1_weight_, giou_weight_, alpha_, gamma_;
    const Kind kind_;
    const BoxTerm term_;
    const Sample<Real>* sample_ = nullptr;
    std::vector<Real> boxes_, exponentials_, totals_, x_, l1_, giou_, iou_;
};

// Writes the costs (size, queries) of every problem that `next` hands out; 0 past a sample's count.
template <typename Real>
void write_costs(const CostArguments& a, Counter& next) {
    Costs<Real> costs(a.options);
    const int64_t size = a.predictions.size * a.predictions.queries;
    for (int64_t problem; next.next(problem);) {
        const Sample<Real> sample(a.predictions, problem);
        Real* to = reinterpret_cast<Real*>(a.cost) + problem * size;
        if (sample.count > 0) costs.look_at(sample);
        for (int64_t j = 0; j < sample.count; ++j) costs.row(j, to + j * sample.queries);
        std::fill(to + sample.count * sample.queries, to + size, Real(0));
    }
}

}  // namespace actdet::ACTDET_ISA

// The matching cost of a target with every query, which is a row of costs for the assignment.
//
//   cost[j] = cls * class_cost + l1 * |b_j - target|_1 + giou * (1 - GIoU(b_j, target)),  or with DIoU or CIoU
//
// The class cost is -softmax, or by how much a sigmoid loss of classes.hpp changes when a logit gets a label. For
// tubelets, L1, GIoU and IoU are means over the visible frames, and so are class costs with logits of each frame, where
// each frame may have labels of its own. If a target has several labels, their class costs are added up.
//
// `Costs` reads the queries of a sample once, and then gives the costs of one target after the other.
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

// Returns the greatest of x, ignoring NaN, and -infinity if there is none.
template <typename Real>
inline Real greatest(const Real* __restrict x, int64_t size) {
    Real peak = -std::numeric_limits<Real>::infinity();
#pragma omp simd reduction(max : peak)
    for (int64_t c = 0; c < size; ++c) peak = x[c] > peak ? x[c] : peak;
    return peak;
}

// Writes to = e^(x - peak), and returns the sum.
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

// Adds the class cost kKind of a label to `costs`. x are the label's logits, and q the IoU of the boxes with the
// target.
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

// What is kept of the boxes of a frame's queries, as an array of each: the four values, sides that are not negative,
// corners, area, and a flaw that is NaN if a value is NaN, otherwise 0.
enum Column { kX, kY, kW, kH, kSideW, kSideH, kX1, kY1, kX2, kY2, kArea, kFlaw, kColumns };

// Writes these numbers of one box, `stride` apart.
template <typename Real>
inline void describe(const Real* box, Real* values, int64_t stride) {
    const Real w = not_negative(box[2]);
    const Real h = not_negative(box[3]);
    const Real x1 = box[0] - w / 2, x2 = box[0] + w / 2, y1 = box[1] - h / 2, y2 = box[1] + h / 2;
    const Real all[kColumns] = {box[0],      box[1], box[2], box[3], w, h, x1, y1, x2, y2, (x2 - x1) * (y2 - y1),
                                flaw_of(box)};
    for (int column = 0; column < kColumns; ++column) values[column * stride] = all[column];
}

// Adds 1 - similarity of a target's box and those of the queries to `terms`, and with kL1 their distance to `l1`. The
// boxes of the queries are columns (kColumns, size).
template <BoxTerm kTerm, bool kL1, typename Real>
void add_box_terms(const Real* columns, const Real* target, int64_t size, Real* __restrict terms, Real* __restrict l1) {
    Real b[kColumns];
    describe(target, b, 1);
    const Real bx = b[kX], by = b[kY], bw = b[kW], bh = b[kH], b_side_w = b[kSideW], b_side_h = b[kSideH];
    const Real bx1 = b[kX1], by1 = b[kY1], bx2 = b[kX2], by2 = b[kY2], b_area = b[kArea], flaw_of_target = b[kFlaw];

    const Real* __restrict x = columns + kX * size;
    const Real* __restrict y = columns + kY * size;
    const Real* __restrict w = columns + kW * size;
    const Real* __restrict h = columns + kH * size;
    const Real* __restrict side_w = columns + kSideW * size;
    const Real* __restrict side_h = columns + kSideH * size;
    const Real* __restrict x1 = columns + kX1 * size;
    const Real* __restrict y1 = columns + kY1 * size;
    const Real* __restrict x2 = columns + kX2 * size;
    const Real* __restrict y2 = columns + kY2 * size;
    const Real* __restrict area = columns + kArea * size;
    const Real* __restrict flaw = columns + kFlaw * size;
#pragma omp simd
    for (int64_t n = 0; n < size; ++n) {
        const Real value = similarity_of_corners<Real, kTerm>(
            x[n], y[n], side_w[n], side_h[n], x1[n], y1[n], x2[n], y2[n], area[n], bx, by, b_side_w, b_side_h, bx1, by1,
            bx2, by2, b_area
        );
        terms[n] += 1 - value + (flaw[n] + flaw_of_target);
        if constexpr (kL1) l1[n] += l1_distance(x[n], y[n], w[n], h[n], bx, by, bw, bh);
    }
}

// The costs of one sample after the other. `look_at` reads the queries of a sample, and `row` gives the costs of a
// target.
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

        // boxes_ is (frames, kColumns, queries).
        boxes_.resize(sample.frames * kColumns * sample.queries);
        for (int64_t n = 0; n < sample.queries; ++n) {
            for (int64_t t = 0; t < sample.frames; ++t) {
                const Real* box = sample.boxes + (n * sample.frames + t) * 4;
                describe(box, boxes_.data() + t * kColumns * sample.queries + n, sample.queries);
            }
        }

        for (auto* part : {&x_, &l1_, &giou_, &iou_}) part->resize(sample.queries);
        if (kind_ == Kind::kSoftmax) softmax();
    }

    // Writes the costs (queries) of target j.
    void row(int64_t j, Real* __restrict costs) {
        const int64_t queries = sample_->queries;
        std::fill_n(costs, queries, Real(0));
        add_boxes(j);
        int64_t seen = 0;
        for (int64_t t = 0; t < sample_->class_frames; ++t) {
            if (sample_->in_frame(j, t) < 0) continue;
            ++seen;
            const int64_t* labels = sample_->labels_of(j, t);
            for (int64_t k = 0; k < sample_->labels_each; ++k) {
                if (Sample<Real>::absent(labels, k)) continue;
                if (!sample_->known(labels[k])) {
                    std::fill_n(costs, queries, std::numeric_limits<Real>::quiet_NaN());
                    return;
                }
                add_classes(labels[k], t, costs);
            }
        }

        const Real* __restrict l1 = l1_.data();
        const Real* __restrict giou = giou_.data();
        const Real cls = cls_ / static_cast<Real>(std::max<int64_t>(seen, 1));
        const Real by_l1 = l1_weight_;
        const Real by_giou = giou_weight_;
#pragma omp simd
        for (int64_t n = 0; n < queries; ++n) costs[n] = cls * costs[n] + by_l1 * l1[n] + by_giou * giou[n];
    }

  private:
    // Computes the numerators of the softmax, exponentials_ (queries, class_frames, classes), and the denominators,
    // totals_ (queries, class_frames).
    void softmax() {
        const int64_t classes = sample_->classes;
        const int64_t rows = sample_->queries * sample_->class_frames;
        exponentials_.resize(rows * classes);
        totals_.resize(rows);
        for (int64_t n = 0; n < rows; ++n) {
            const Real* x = sample_->logits + n * classes;
            totals_[n] = exponentials(x, greatest(x, classes), classes, &exponentials_[n * classes]);
        }
    }

    // Adds the class costs of a label in frame t of the logits.
    void add_classes(int64_t label, int64_t t, Real* __restrict costs) {
        const int64_t queries = sample_->queries;
        const int64_t frames = sample_->class_frames;
        const int64_t first = t * sample_->classes + label;
        const int64_t stride = frames * sample_->classes;
        if (kind_ == Kind::kSoftmax) {
            const Real* __restrict values = exponentials_.data() + first;
            const Real* __restrict totals = totals_.data() + t;
            for (int64_t n = 0; n < queries; ++n) costs[n] -= values[n * stride] / totals[n * frames];
            return;
        }

        for (int64_t n = 0; n < queries; ++n) x_[n] = sample_->logits[n * stride + first];
        const Real* x = x_.data();
        const Real* q = iou_.data();
        switch (kind_) {
            case Kind::kFocal: return add_sigmoid_costs<Kind::kFocal>(x, q, alpha_, gamma_, queries, costs);
            case Kind::kVarifocal: return add_sigmoid_costs<Kind::kVarifocal>(x, q, alpha_, gamma_, queries, costs);
            default: return add_sigmoid_costs<Kind::kQualityFocal>(x, q, alpha_, gamma_, queries, costs);
        }
    }

    // Computes the L1 and box terms of target j with every query, and the IoU if the class cost needs it.
    void add_boxes(int64_t j) {
        const int64_t queries = sample_->queries;
        const bool soft = kind_ == Kind::kVarifocal || kind_ == Kind::kQualityFocal;
        for (auto* part : {&l1_, &giou_, &iou_}) std::fill(part->begin(), part->end(), Real(0));

        int64_t seen = 0;
        for (int64_t t = 0; t < sample_->frames; ++t) {
            const int64_t place = j * sample_->frames + t;
            if (sample_->visible != nullptr && !sample_->visible[place]) continue;
            ++seen;
            const Real* boxes = boxes_.data() + t * kColumns * queries;
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

// Writes the costs (size, queries) of every problem that `next` hands out, with 0 past a sample's count.
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

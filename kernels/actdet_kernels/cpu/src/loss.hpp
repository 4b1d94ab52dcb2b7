// The losses of matched and unmatched queries, one sample after the other, and their gradients.
//
//   cls  sum of w_n (-log softmax(logits_n)[label_n]) over the queries n, or of a loss of classes.hpp over all logits
//   l1   sum of |b_n - target|_1 over matched queries n
//   giou sum of 1 - GIoU(b_n, target) over matched queries n,  or of DIoU or CIoU
//
// In the cross entropy, the label of a query without a target is the last class, no_object. w_n is the class weight of
// label_n. Box terms of tubelets are means over the visible frames. With logits of each frame, n counts the frames of all
// queries, and a query has a target only in frames in which that is visible, where it may have labels of that frame.
//
// The divisors of these sums are known when all samples have been read. So `add_up` writes sums for each problem, which
// module.cpp adds up in a fixed order and divides. `differentiate` takes the factors of the derivatives.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "boxes.hpp"
#include "classes.hpp"
#include "cost.hpp"
#include "targets.hpp"

namespace actdet::ACTDET_ISA {

// The losses of one problem after the other.
template <typename Real>
class Losses {
  public:
    Losses(const Predictions& predictions, const LossOptions& options)
        : predictions_(predictions),
          options_(options),
          kind_(static_cast<Kind>(options.class_loss)),
          term_(static_cast<BoxTerm>(options.box_term)),
          alpha_(options.alpha),
          gamma_(options.gamma),
          class_weights_(reinterpret_cast<const Real*>(options.class_weights)),
          row_(predictions.classes),
          target_(predictions.queries) {}

    // Writes the sums (4) of a problem: weighted class losses, their weights, L1 and box terms.
    void add_up(int64_t problem, double* sums) {
        const Sample<Real> sample(predictions_, problem);
        find_targets(sample, problem);

        double cls = 0, weights = 0, l1 = 0, similarity = 0;
        for (int64_t n = 0; n < sample.queries; ++n) {
            for (int64_t t = 0; t < sample.class_frames; ++t) add_class_loss(sample, n, t, cls, weights);
            if (target_[n] >= 0) box_terms(sample, n, target_[n], l1, similarity);
        }

        sums[0] = cls;
        sums[1] = weights;
        sums[2] = l1;
        sums[3] = similarity;
    }

    // Writes a problem's gradients d_logits (queries, class_frames, classes) and d_boxes (queries, frames, 4). factors (3) multiply
    // the derivatives of the class losses, the L1 and the box terms of its layer.
    void differentiate(int64_t problem, const double* factors, Real* d_logits, Real* d_boxes) {
        const Sample<Real> sample(predictions_, problem);
        find_targets(sample, problem);
        std::fill_n(d_boxes, sample.queries * sample.frames * 4, Real(0));

        for (int64_t n = 0; n < sample.queries; ++n) {
            for (int64_t t = 0; t < sample.class_frames; ++t) {
                Real* to = d_logits + (n * sample.class_frames + t) * sample.classes;
                differentiate_classes(sample, n, t, static_cast<Real>(factors[0]), to);
            }

            const int64_t j = target_[n];
            if (j >= 0) {
                const Real by_l1 = static_cast<Real>(factors[1]);
                const Real by_giou = static_cast<Real>(factors[2]);
                differentiate_boxes(sample, n, j, by_l1, by_giou, d_boxes + n * sample.frames * 4);
            }
        }
    }

  private:
    // Sets target_ (queries) to the target of each query, the last one if there are several, or -1.
    void find_targets(const Sample<Real>& sample, int64_t problem) {
        std::fill(target_.begin(), target_.end(), -1);
        const int64_t* matched = reinterpret_cast<const int64_t*>(options_.matched) + problem * predictions_.size;
        for (int64_t j = 0; j < sample.count; ++j) {
            if (matched[j] >= 0 && matched[j] < sample.queries) target_[matched[j]] = j;
        }
    }

    // Adds the class loss of a query in frame t of its logits, and its weight in the cross entropy.
    void add_class_loss(const Sample<Real>& sample, int64_t n, int64_t t, double& cls, double& weights) {
        const Real* x = sample.logits + (n * sample.class_frames + t) * sample.classes;
        const int64_t j = sample.in_frame(target_[n], t);
        if (kind_ == Kind::kSoftmax) {
            const Real peak = greatest(x, sample.classes);
            const Real total = exponentials(x, peak, sample.classes, row_.data());
            const int64_t label = wanted(sample, j, t);
            const Real weight = weight_of(label, sample.classes);
            const Real loss = std::log(total) - (x[label] - peak);
            cls += wrong(sample, j, t) ? std::numeric_limits<double>::quiet_NaN() : double(weight * loss);
            weights += weight;
        } else {
            class_terms<false>(sample, x, n, j, t, row_.data());
            double sum = 0;
            for (int64_t c = 0; c < sample.classes; ++c) sum += row_[c];
            cls += wrong(sample, j, t) ? std::numeric_limits<double>::quiet_NaN() : sum;
        }
    }

    // Writes the gradient of a query's logits (classes) in frame t, given what multiplies the derivative of their loss.
    void differentiate_classes(const Sample<Real>& sample, int64_t n, int64_t t, Real factor, Real* __restrict to) {
        const Real* x = sample.logits + (n * sample.class_frames + t) * sample.classes;
        const int64_t j = sample.in_frame(target_[n], t);
        const Real by_cls = wrong(sample, j, t) ? std::numeric_limits<Real>::quiet_NaN() : factor;
        if (kind_ == Kind::kSoftmax) {
            const Real total = exponentials(x, greatest(x, sample.classes), sample.classes, to);
            const int64_t label = wanted(sample, j, t);
            const Real by_query = by_cls * weight_of(label, sample.classes);
            for (int64_t c = 0; c < sample.classes; ++c) to[c] = by_query * (to[c] / total - (c == label ? 1 : 0));
        } else {
            class_terms<true>(sample, x, n, j, t, to);
            for (int64_t c = 0; c < sample.classes; ++c) to[c] *= by_cls;
        }
    }

    // Returns whether a target has a label in frame t for which there is no logit.
    static bool wrong(const Sample<Real>& sample, int64_t j, int64_t t) {
        if (j < 0) return false;
        const int64_t* labels = sample.labels_of(j, t);
        for (int64_t k = 0; k < sample.labels_each; ++k) {
            if (!Sample<Real>::absent(labels, k) && !sample.known(labels[k])) return true;
        }
        return false;
    }

    // Returns the class of a query in the cross entropy. It is 0 if the target's label is wrong, and the loss then NaN.
    static int64_t wanted(const Sample<Real>& sample, int64_t j, int64_t t) {
        if (j < 0) return sample.classes - 1;
        const int64_t label = *sample.labels_of(j, t);
        return sample.known(label) ? label : 0;
    }

    // Returns the weight of a query in the cross entropy.
    Real weight_of(int64_t label, int64_t classes) const {
        if (class_weights_ != nullptr) return class_weights_[label];
        return label == classes - 1 ? static_cast<Real>(options_.no_object_weight) : Real(1);
    }

    // Writes the losses of a query's logits x in frame t to (classes), or their derivatives, times the weights of the
    // classes. j is its target, or -1.
    template <bool kSlope>
    void class_terms(const Sample<Real>& sample, const Real* x, int64_t n, int64_t j, int64_t t, Real* __restrict to) {
        const Real factor = factor_of(kind_, alpha_);
        if (kind_ == Kind::kVarifocal) {
            unlabeled_row<kSlope, true>(x, sample.classes, factor, gamma_, to);
        } else {
            unlabeled_row<kSlope, false>(x, sample.classes, factor, gamma_, to);
        }

        if (j >= 0) {
            const Real q = kind_ == Kind::kFocal ? Real(1) : quality(sample, n, j);
            const int64_t* labels = sample.labels_of(j, t);
            for (int64_t k = 0; k < sample.labels_each; ++k) {
                const int64_t label = labels[k];
                if (!sample.known(label)) continue;
                switch (kind_) {
                    case Kind::kFocal:
                        to[label] = labeled_term<kSlope, Kind::kFocal>(x[label], q, alpha_, gamma_);
                        break;
                    case Kind::kVarifocal:
                        to[label] = labeled_term<kSlope, Kind::kVarifocal>(x[label], q, alpha_, gamma_);
                        break;
                    default: to[label] = labeled_term<kSlope, Kind::kQualityFocal>(x[label], q, alpha_, gamma_);
                }
            }
        }

        if (class_weights_ == nullptr) return;
        for (int64_t c = 0; c < sample.classes; ++c) to[c] *= class_weights_[c];
    }

    // Calls with(box, target, frame) for every visible frame of a pair, and returns their number.
    template <typename With>
    static int64_t for_frames(const Sample<Real>& sample, int64_t n, int64_t j, const With& with) {
        int64_t seen = 0;
        for (int64_t t = 0; t < sample.frames; ++t) {
            const int64_t place = j * sample.frames + t;
            if (sample.visible != nullptr && !sample.visible[place]) continue;
            ++seen;
            with(sample.boxes + (n * sample.frames + t) * 4, sample.target_boxes + place * 4, t);
        }
        return seen;
    }

    static Real similarity_of(BoxTerm term, const Real* a, const Real* b) {
        switch (term) {
            case BoxTerm::kGiou: return similarity<BoxTerm::kGiou>(a, b);
            case BoxTerm::kDiou: return similarity<BoxTerm::kDiou>(a, b);
            case BoxTerm::kCiou: return similarity<BoxTerm::kCiou>(a, b);
            default: return similarity<BoxTerm::kIou>(a, b);
        }
    }

    // Returns the mean IoU of a pair over the visible frames, and 1 if there are none.
    static Real quality(const Sample<Real>& sample, int64_t n, int64_t j) {
        Real sum = 0;
        const int64_t seen = for_frames(sample, n, j, [&](const Real* box, const Real* target, int64_t) {
            sum += 1 - similarity_of(BoxTerm::kIou, box, target);
        });
        return 1 - sum / static_cast<Real>(std::max<int64_t>(seen, 1));
    }

    // Adds the L1 and the box term of a pair.
    void box_terms(const Sample<Real>& sample, int64_t n, int64_t j, double& l1, double& similarity) const {
        double distance = 0;
        double term = 0;
        const int64_t seen = for_frames(sample, n, j, [&](const Real* a, const Real* b, int64_t) {
            distance += l1_distance(a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]);
            term += 1 - similarity_of(term_, a, b);
        });

        l1 += distance / static_cast<double>(std::max<int64_t>(seen, 1));
        similarity += term / static_cast<double>(std::max<int64_t>(seen, 1));
    }

    // Writes the gradient of a query's boxes (frames, 4). That of frames that are not visible stays 0.
    void differentiate_boxes(
        const Sample<Real>& sample, int64_t n, int64_t j, Real by_l1, Real by_giou, Real* d_boxes
    ) const {
        const int64_t seen = for_frames(sample, n, j, [](const Real*, const Real*, int64_t) {});
        const Real frames = static_cast<Real>(std::max<int64_t>(seen, 1));
        by_l1 /= frames;
        by_giou /= frames;

        for_frames(sample, n, j, [&](const Real* a, const Real* b, int64_t t) {
            Real slope[4];
            similarity_gradient(term_, a, b, slope);
            for (int k = 0; k < 4; ++k) {
                const Real off = a[k] - b[k];
                const Real sign = off > 0 ? Real(1) : off < 0 ? Real(-1) : off * 0;
                d_boxes[t * 4 + k] = by_l1 * sign - by_giou * slope[k];
            }
        });
    }

    const Predictions& predictions_;
    const LossOptions& options_;
    const Kind kind_;
    const BoxTerm term_;
    const Real alpha_, gamma_;
    const Real* const class_weights_;
    std::vector<Real> row_;
    std::vector<int64_t> target_;
};

// The functions of `Operations`.
template <typename Real>
void add_up_losses(const LossArguments& a, Counter& next) {
    Losses<Real> losses(a.predictions, a.options);
    double* sums = reinterpret_cast<double*>(a.sums);
    for (int64_t problem; next.next(problem);) losses.add_up(problem, sums + problem * 4);
}

template <typename Real>
void differentiate_losses(const GradientArguments& a, Counter& next) {
    const Predictions& p = a.predictions;
    Losses<Real> losses(p, a.options);
    const double* factors = reinterpret_cast<const double*>(a.factors);
    Real* d_logits = reinterpret_cast<Real*>(a.d_logits);
    Real* d_boxes = reinterpret_cast<Real*>(a.d_boxes);
    for (int64_t i; next.next(i);) {
        const int64_t layer = i / p.batch;
        losses.differentiate(
            i, factors + layer * 3, d_logits + i * p.queries * p.class_frames() * p.classes,
            d_boxes + i * p.queries * p.frames * 4
        );
    }
}

}  // namespace actdet::ACTDET_ISA

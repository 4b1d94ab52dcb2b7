// The loss of maps of centers, movement, sizes and classes, and its gradient. `center_loss` in Python has the formulas.
//
// Only the logits of centers are read everywhere, and no target is rendered. An item is a frame with its movement and
// its sizes, or some rows of the centers, or the classes, each of one sample. It writes sums, which module.cpp adds up
// in a fixed order and divides, or its part of the gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "actors.hpp"
#include "boxes.hpp"
#include "classes.hpp"
#include "cost.hpp"
#include "operations.hpp"

namespace actdet::ACTDET_ISA {

// The terms of one item after the other.
template <typename Real>
class CenterTerms {
  public:
    explicit CenterTerms(const CenterArguments& a)
        : a_(a),
          across_(a.width),
          down_(a.height),
          spared_(a.rows_each() * a.width),
          losses_(kBlock),
          weights_(kBlock),
          x_(kBlock),
          y_(kBlock),
          boxes_(4 * kBlock),
          places_(kBlock),
          owned_(a.pixels()),
          row_(a.class_count),
          shares_(a.class_count) {}

    // Writes the sums of an item, which are 0 before, or its part of the gradients.
    template <bool kSlope>
    void compute(int64_t item, double* sums) {
        const int64_t sample = item / a_.items_each();
        const int64_t part = item % a_.items_each();
        const Actors<Real> actors(a_, sample);
        if (part < a_.frames) {
            movement_of<kSlope>(actors, sample, part, sums);
            sizes_of<kSlope>(actors, sample, part, sums);
        } else if (part < a_.frames + a_.row_items()) {
            centers_of<kSlope>(actors, sample, part - a_.frames, sums);
        } else {
            classes_of<kSlope>(actors, sample, sums);
        }
    }

  private:
    // How many pixels are added up in Real: so few lose nothing to rounding that would be seen in a sum.
    static constexpr int64_t kBlock = 1024;

    // What takes the place of (1 - P)^beta in the pixel of a center.
    static constexpr Real kCenter = -1;

    Real factor(int64_t term) const { return static_cast<Real>(reinterpret_cast<const double*>(a_.factors)[term]); }

    // Returns where a gradient is written, or null if none is.
    template <bool kSlope>
    static Real* gradient_at(uintptr_t gradient, int64_t offset) {
        return kSlope ? reinterpret_cast<Real*>(gradient) + offset : nullptr;
    }

    // Adds the focal loss of some rows of all channels, or writes its gradient.
    template <bool kSlope>
    void centers_of(const Actors<Real>& actors, int64_t sample, int64_t part, double* sums) {
        const int64_t first = part * a_.rows_each();
        const int64_t rows = std::min(a_.rows_each(), a_.channels * a_.height - first);
        const int64_t size = rows * a_.width;
        const int64_t offset = (sample * a_.channels * a_.height + first) * a_.width;
        const Real* x = reinterpret_cast<const Real*>(a_.centers) + offset;
        const Real alpha = static_cast<Real>(a_.alpha);

        if constexpr (kSlope) {
            Real* to = gradient_at<kSlope>(a_.d_centers, offset);
            const Real by = factor(1);
            if (by == 0) {
                std::fill_n(to, size, Real(0));
                return;
            }

            spare(actors, first, rows);
            unlabeled_row<true, false>(x, size, by, alpha, to);
            for (int64_t i = 0; i < size; ++i) to[i] *= spared_[i];
            for (const int64_t i : centers_) {
                to[i] = by * labeled_term<true, Kind::kFocal>(x[i], Real(1), Real(1), alpha);
            }
        } else {
            spare(actors, first, rows);
            for (int64_t begin = 0; begin < size; begin += kBlock) {
                const int64_t length = std::min(kBlock, size - begin);
                unlabeled_row<false, false>(x + begin, length, Real(1), alpha, losses_.data());
                sums[1] += spared_sum(losses_.data(), spared_.data() + begin, length);
            }
            for (const int64_t i : centers_) {
                sums[1] += labeled_term<false, Kind::kFocal>(x[i], Real(1), Real(1), alpha);
            }
        }
    }

    // Returns the sum of the losses of all pixels but the centers.
    static Real spared_sum(const Real* __restrict losses, const Real* __restrict spared, int64_t size) {
        Real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; ++i) sum += select(spared[i] == kCenter, Real(0), spared[i] * losses[i]);
        return sum;
    }

    // Sets spared_ to (1 - P)^beta in some rows of all channels, and centers_ to the places of centers among them. The
    // largest P has the smallest power.
    void spare(const Actors<Real>& actors, int64_t first, int64_t rows) {
        std::fill_n(spared_.begin(), rows * a_.width, Real(1));
        for (const Actor<Real>& actor : actors.all()) {
            const int64_t top = first_row(actors, actor) - first;
            across_.set(actor.x, actor.radius);
            down_.set(actor.y, actor.radius);
            const int64_t end = std::min(top + down_.end, rows);
            for (int64_t row = std::max<int64_t>(top + down_.first, 0); row < end; ++row) {
                Real* spared = spared_.data() + row * a_.width;
                const Real peak = down_.at[row - top];
                for (int64_t x = across_.first; x < across_.end; ++x) {
                    spared[x] = std::min(spared[x], power_of_rest(1 - peak * across_.at[x]));
                }
            }
        }

        centers_.clear();
        for (const Actor<Real>& actor : actors.all()) {
            const int64_t row = first_row(actors, actor) + actor.y - first;
            if (row < 0 || row >= rows) continue;

            // Several actors may have one center.
            const int64_t place = row * a_.width + actor.x;
            if (spared_[place] != kCenter) centers_.push_back(place);
            spared_[place] = kCenter;
        }
    }

    // Returns the first row of an actor's channel, behind all rows if there is no such channel.
    int64_t first_row(const Actors<Real>& actors, const Actor<Real>& actor) const {
        if (a_.channels == 1) return 0;
        const int64_t label = actors.label(actor);
        return (label >= 0 && label < a_.channels ? label : a_.channels) * a_.height;
    }

    Real power_of_rest(Real rest) const {
        return a_.beta == 4 ? square(square(rest)) : std::pow(rest, static_cast<Real>(a_.beta));
    }

    // Calls with(actor, box, count) for blocks of `count` pixels that belong to one actor in a frame. Their places are in
    // places_, their middles in x_ and y_, and their weights in weights_. The rows of an area are joined, because they are
    // too short for vectors.
    template <typename With>
    void each_block(const Actors<Real>& actors, int64_t area, bool moved, int64_t frame, const With& with) {
        ++stamp_;
        for (const Actor<Real>& actor : actors.all()) {
            if (!actors.seen(actor, frame)) continue;

            Real box[4];
            actors.box(actor.row, frame, box);
            const bool circle = static_cast<Area>(area) == Area::kCircle;
            const bool center = static_cast<Area>(area) == Area::kCenter;
            const Real reach_x = center ? Real(0) : circle ? actor.radius : actor.reach_x;
            const Real reach_y = center ? Real(0) : circle ? actor.radius : actor.reach_y;
            across_.set(moved ? pixel_of(finite(box[0]), a_.width) : actor.x, reach_x);
            down_.set(moved ? pixel_of(finite(box[1]), a_.height) : actor.y, reach_y);
            const Real share = actor.log_area / (across_.sum * down_.sum);

            int64_t count = 0;
            for (int64_t y = down_.first; y < down_.end; ++y) {
                const Real of_row = down_.at[y];
                const Real middle = static_cast<Real>(y) + Real(0.5);
                for (int64_t x = across_.first; x < across_.end; ++x) {
                    const int64_t place = y * a_.width + x;
                    if (owned_[place] == stamp_) continue;

                    owned_[place] = stamp_;
                    places_[count] = place;
                    weights_[count] = of_row * across_.at[x] * share;
                    x_[count] = static_cast<Real>(x) + Real(0.5);
                    y_[count] = middle;
                    if (++count == kBlock) {
                        with(actor, box, count);
                        count = 0;
                    }
                }
            }
            if (count > 0) with(actor, box, count);
        }
    }

    // Adds the L1 distance of the movement in a frame, and its weights, or writes its gradient.
    template <bool kSlope>
    void movement_of(const Actors<Real>& actors, int64_t sample, int64_t frame, double* sums) {
        const int64_t offset = (sample * a_.frames + frame) * 2 * a_.pixels();
        const Real* from = reinterpret_cast<const Real*>(a_.movement) + offset;
        Real* to = gradient_at<kSlope>(a_.d_movement, offset);
        const Real by = kSlope ? factor(2) / 2 : Real(0);
        if constexpr (kSlope) {
            std::fill_n(to, 2 * a_.pixels(), Real(0));
            if (by == 0) return;
        }

        const auto block = [&](const Actor<Real>& actor, const Real* box, int64_t count) {
            const Real middle[2] = {static_cast<Real>(actor.x) + Real(0.5), static_cast<Real>(actor.y) + Real(0.5)};
            for (int64_t axis = 0; axis < 2; ++axis) {
                const Real wanted = box[axis] - middle[axis];
                const int64_t plane = axis * a_.pixels();
                if constexpr (kSlope) {
                    write_signs(from + plane, wanted, by, count, to + plane);
                } else {
                    sums[2] += weighted_distance(from + plane, wanted, count) / 2;
                }
            }
            if constexpr (!kSlope) sums[4] += weight_sum(count);
        };
        each_block(actors, a_.movement_area, false, frame, block);
    }

    // Returns the sum of the weights of a block.
    Real weight_sum(int64_t count) const {
        const Real* weights = weights_.data();
        Real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; ++i) sum += weights[i];
        return sum;
    }

    Real weighted_distance(const Real* values, Real wanted, int64_t count) const {
        const Real* weights = weights_.data();
        const int64_t* places = places_.data();
        Real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; ++i) sum += weights[i] * std::abs(values[places[i]] - wanted);
        return sum;
    }

    void write_signs(const Real* values, Real wanted, Real by, int64_t count, Real* to) const {
        for (int64_t i = 0; i < count; ++i) {
            const Real off = values[places_[i]] - wanted;
            const Real sign = off > 0 ? Real(1) : off < 0 ? Real(-1) : off * 0;
            to[places_[i]] = by * weights_[i] * sign;
        }
    }

    // Adds 1 - GIoU of the boxes in a frame, and its weights, or writes its gradient.
    template <bool kSlope>
    void sizes_of(const Actors<Real>& actors, int64_t sample, int64_t frame, double* sums) {
        const int64_t pixels = a_.pixels();
        const int64_t offset = (sample * a_.frames + frame) * 4 * pixels;
        const Real* from = reinterpret_cast<const Real*>(a_.sizes) + offset;
        Real* to = gradient_at<kSlope>(a_.d_sizes, offset);
        const Real by = kSlope ? factor(3) : Real(0);
        if constexpr (kSlope) {
            std::fill_n(to, 4 * pixels, Real(0));
            if (by == 0) return;
        }

        const auto block = [&](const Actor<Real>&, const Real* box, int64_t count) {
            predict(from, count);
            if constexpr (kSlope) {
                differentiate_similarity(box, by, count);
                for (int64_t side = 0; side < 4; ++side) {
                    const Real* slopes = boxes_.data() + side * kBlock;
                    for (int64_t i = 0; i < count; ++i) to[side * pixels + places_[i]] = slopes[i];
                }
            } else {
                sums[3] += weighted_dissimilarity(box, count);
                sums[5] += weight_sum(count);
            }
        };
        each_block(actors, a_.size_area, a_.moved != 0, frame, block);
    }

    // Sets boxes_ (4, kBlock) to the predicted boxes of a block, given the maps of their sides.
    void predict(const Real* sides, int64_t count) {
        const int64_t pixels = a_.pixels();
        Real* boxes = boxes_.data();
        for (int64_t i = 0; i < count; ++i) {
            const int64_t place = places_[i];
            const Real left = sides[place];
            const Real top = sides[pixels + place];
            const Real right = sides[2 * pixels + place];
            const Real bottom = sides[3 * pixels + place];
            boxes[i] = x_[i] + (right - left) / 2;
            boxes[kBlock + i] = y_[i] + (bottom - top) / 2;
            boxes[2 * kBlock + i] = left + right;
            boxes[3 * kBlock + i] = top + bottom;
        }
    }

    // Returns the weighted sum of 1 - GIoU of boxes_ and an actor's box.
    Real weighted_dissimilarity(const Real* box, int64_t count) const {
        const Real* weights = weights_.data();
        const Real* boxes = boxes_.data();
        const Real target[4] = {box[0], box[1], box[2], box[3]};
        Real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; ++i) {
            const Real predicted[4] = {boxes[i], boxes[kBlock + i], boxes[2 * kBlock + i], boxes[3 * kBlock + i]};
            sum += weights[i] * (1 - similarity<BoxTerm::kGiou>(predicted, target));
        }
        return sum;
    }

    // Replaces boxes_ by the gradients of the four sides. With `omp simd`, GCC would keep the arrays of an iteration in
    // memory, and not vectorize the loop.
    void differentiate_similarity(const Real* box, Real by, int64_t count) {
        const Real* __restrict weights = weights_.data();
        Real* __restrict boxes = boxes_.data();
        const Real target[4] = {box[0], box[1], box[2], box[3]};
        for (int64_t i = 0; i < count; ++i) {
            const Real predicted[4] = {boxes[i], boxes[kBlock + i], boxes[2 * kBlock + i], boxes[3 * kBlock + i]};
            Real slope[4];
            similarity_gradient<BoxTerm::kGiou>(predicted, target, slope);
            const Real factor = -by * weights[i];
            boxes[i] = factor * (slope[2] - slope[0] / 2);
            boxes[kBlock + i] = factor * (slope[3] - slope[1] / 2);
            boxes[2 * kBlock + i] = factor * (slope[2] + slope[0] / 2);
            boxes[3 * kBlock + i] = factor * (slope[3] + slope[1] / 2);
        }
    }

    // Adds the cross entropy at the centers in the key frame, or writes its gradient.
    template <bool kSlope>
    void classes_of(const Actors<Real>& actors, int64_t sample, double* sums) {
        const int64_t cells = a_.class_height * a_.class_width;
        const int64_t offset = sample * a_.class_count * cells;
        const Real* logits = reinterpret_cast<const Real*>(a_.classes) + offset;
        Real* to = gradient_at<kSlope>(a_.d_classes, offset);
        const Real by = kSlope ? factor(0) : Real(0);
        if constexpr (kSlope) {
            std::fill_n(to, a_.class_count * cells, Real(0));
            if (by == 0) return;
        }

        for (const Actor<Real>& actor : actors.all()) {
            const Real* box = actors.shares(actor, a_.key);
            const Real x = finite(box[0]) * static_cast<Real>(a_.class_width);
            const Real y = finite(box[1]) * static_cast<Real>(a_.class_height);
            const int64_t cell = pixel_of(y, a_.class_height) * a_.class_width + pixel_of(x, a_.class_width);
            // With a label for which there is no class, all terms are NaN.
            const int64_t label = std::clamp<int64_t>(actors.label(actor), 0, a_.class_count - 1);
            const Real logit = logits[label * cells + cell];

            for (int64_t c = 0; c < a_.class_count; ++c) row_[c] = logits[c * cells + cell];
            const Real peak = greatest(row_.data(), a_.class_count);
            const Real total = exponentials(row_.data(), peak, a_.class_count, shares_.data());
            if constexpr (kSlope) {
                for (int64_t c = 0; c < a_.class_count; ++c) {
                    to[c * cells + cell] += by * (shares_[c] / total - (c == label ? 1 : 0));
                }
            } else {
                sums[0] += std::log(total) - (logit - peak);
            }
        }
    }

    const CenterArguments& a_;
    Bell<Real> across_, down_;
    std::vector<Real> spared_, losses_, weights_, x_, y_, boxes_;
    std::vector<int64_t> places_, centers_;

    // Pixels that belong to an actor hold the number of the search that found that out, so that none must be cleared.
    std::vector<int32_t> owned_;
    int32_t stamp_ = 0;

    std::vector<Real> row_, shares_;
};

// The functions of `Operations`.

// Writes how many actors of a sample count, and 1, or NaN if one of them is impossible.
template <typename Real>
void survey_actors(const CenterArguments& a, Counter& next) {
    for (int64_t sample; next.next(sample);) {
        const Actors<Real> actors(a, sample);
        double* to = reinterpret_cast<double*>(a.survey) + sample * 2;
        to[0] = static_cast<double>(actors.all().size());
        to[1] = 1;
        for (const Actor<Real>& actor : actors.all()) {
            if (actors.impossible(actor)) to[1] = std::numeric_limits<double>::quiet_NaN();
        }
    }
}

template <typename Real>
void add_up_centers(const CenterArguments& a, Counter& next) {
    CenterTerms<Real> terms(a);
    double* sums = reinterpret_cast<double*>(a.sums);
    for (int64_t item; next.next(item);) terms.template compute<false>(item, sums + item * kCenterSums);
}

template <typename Real>
void differentiate_centers(const CenterArguments& a, Counter& next) {
    CenterTerms<Real> terms(a);
    for (int64_t item; next.next(item);) terms.template compute<true>(item, nullptr);
}

}  // namespace actdet::ACTDET_ISA

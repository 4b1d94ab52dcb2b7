// The actors of a sample on a grid, as `center_loss` needs them: who counts, where, and how far around them.
//
// Where the numbers of targets are made whole (the pixel of a center, how far an area reaches), the order of operations
// is that of the reference, because another rounding would move them by a pixel.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "boxes.hpp"
#include "math.hpp"
#include "operations.hpp"

namespace actdet::ACTDET_ISA {

enum class Area : int64_t { kEllipse = 0, kCircle = 1, kCenter = 2 };

// Returns the value with infinities replaced by the largest numbers, and NaN by 0.
template <typename Real>
inline Real finite(Real x) {
    constexpr Real kLargest = std::numeric_limits<Real>::max();
    return x > kLargest ? kLargest : x < -kLargest ? -kLargest : x == x ? x : Real(0);
}

// Returns the pixel of `size` in which a finite coordinate is. It is clamped before it is converted, because a huge one
// has no integer.
template <typename Real>
inline int64_t pixel_of(Real coordinate, int64_t size) {
    const Real last = static_cast<Real>(size - 1);
    const Real bounded = std::min(std::max(std::floor(coordinate), Real(0)), last);
    return std::min(static_cast<int64_t>(bounded), size - 1);
}

// A Gaussian along one axis of the grid, over the pixels that are up to `reach` from its center.
template <typename Real>
struct Bell {
    int64_t first = 0;
    int64_t end = 0;
    Real sum = 0;
    std::vector<Real> at;

    explicit Bell(int64_t size) : at(size) {}

    void set(int64_t center, Real reach) {
        const int64_t size = static_cast<int64_t>(at.size());
        // A reach that is no number reaches nothing.
        const int64_t far = !(reach >= 0) ? -1 : reach < static_cast<Real>(size) ? static_cast<int64_t>(reach) : size;
        first = std::max<int64_t>(center - far, 0);
        end = std::min(center + far + 1, size);

        const Real spread = 2 * square((2 * reach + 1) / 6);
        sum = 0;
        for (int64_t i = first; i < end; ++i) {
            at[i] = exponential(-square(static_cast<Real>(i - center)) / spread);
            sum += at[i];
        }
    }
};

// Returns how far a center may be moved, rounded down (CornerNet), given the sides of its box, rounded up. Both corners
// are moved in one direction, both inward, and both outward, which are three quadratic equations.
template <typename Real>
inline Real heat_map_radius(Real width, Real height, bool corrected) {
    const Real around = width + height;
    const Real area = width * height;
    const double iou = 0.7;
    const Real a[3] = {Real(1), Real(4), static_cast<Real>(4 * iou)};
    const Real b[3] = {around, 2 * around, static_cast<Real>(-2 * iou) * around};
    const Real c[3] = {
        area * static_cast<Real>(1 - iou) / static_cast<Real>(1 + iou),
        static_cast<Real>(1 - iou) * area,
        static_cast<Real>(iou - 1) * area,
    };
    const Real sign[3] = {-1, -1, 1};

    Real least = std::numeric_limits<Real>::infinity();
    for (int k = 0; k < 3; ++k) {
        const Real square_of_root = square(b[k]) - 4 * a[k] * c[k];
        const Real root = std::sqrt(square_of_root < 0 ? Real(0) : square_of_root);
        least = smaller(least, corrected ? (b[k] + sign[k] * root) / (2 * a[k]) : (b[k] + root) / 2);
    }
    return not_negative(std::floor(least));
}

// An actor who counts. `x` and `y` are the pixel of its center in the key frame, `reach_x` and `reach_y` those of an
// elliptic area, and `area` that of its box in the key frame.
template <typename Real>
struct Actor {
    int64_t row, x, y;
    Real radius, reach_x, reach_y, area, log_area;
};

// The actors of a sample, from the smallest to the largest one.
template <typename Real>
class Actors {
  public:
    Actors(const CenterArguments& a, int64_t sample)
        : a_(a),
          labels_(reinterpret_cast<const int64_t*>(a.labels) + sample * a.size),
          boxes_(reinterpret_cast<const Real*>(a.boxes) + sample * a.size * a.frames * 4),
          visible_(reinterpret_cast<const bool*>(a.visible) + sample * a.size * a.frames) {
        const int64_t count = std::clamp<int64_t>(reinterpret_cast<const int64_t*>(a.counts)[sample], 0, a.size);
        for (int64_t row = 0; row < count; ++row) {
            if (visible_[row * a.frames + a.key]) all_.push_back(actor(row));
        }
        const auto smaller = [](const Actor<Real>& one, const Actor<Real>& other) { return one.area < other.area; };
        std::stable_sort(all_.begin(), all_.end(), smaller);
    }

    const std::vector<Actor<Real>>& all() const { return all_; }

    bool seen(const Actor<Real>& actor, int64_t frame) const { return visible_[actor.row * a_.frames + frame]; }

    int64_t label(const Actor<Real>& actor) const { return labels_[actor.row]; }

    // Returns the box of an actor as it is given, as shares of the picture.
    const Real* shares(const Actor<Real>& actor, int64_t frame) const { return shares(actor.row, frame); }

    // Writes the box of an actor in pixels of the grid.
    void box(int64_t row, int64_t frame, Real* to) const {
        const Real* from = shares(row, frame);
        const Real width = static_cast<Real>(a_.width);
        const Real height = static_cast<Real>(a_.height);
        to[0] = from[0] * width;
        to[1] = from[1] * height;
        to[2] = from[2] * width;
        to[3] = from[3] * height;
    }

    // Returns whether an actor has a label for which there is no class, or a box that is not finite.
    bool impossible(const Actor<Real>& actor) const {
        const int64_t known = a_.classes != 0 ? a_.class_count : a_.channels;
        const bool labeled = a_.classes != 0 || a_.channels > 1;
        if (labeled && (label(actor) < 0 || label(actor) >= known)) return true;

        for (int64_t t = 0; t < a_.frames; ++t) {
            if (!seen(actor, t)) continue;
            Real found[4];
            box(actor.row, t, found);
            for (const Real value : found) {
                if (!std::isfinite(value)) return true;
            }
        }
        return false;
    }

  private:
    const Real* shares(int64_t row, int64_t frame) const { return boxes_ + (row * a_.frames + frame) * 4; }

    Actor<Real> actor(int64_t row) const {
        Real found[4];
        box(row, a_.key, found);
        const Real width = not_negative(finite(found[2]));
        const Real height = not_negative(finite(found[3]));
        const Real area = width * height;
        const Real in_picture = area * square(static_cast<Real>(a_.stride));

        Actor<Real> actor;
        actor.row = row;
        actor.x = pixel_of(finite(found[0]), a_.width);
        actor.y = pixel_of(finite(found[1]), a_.height);
        actor.radius = heat_map_radius(std::ceil(width), std::ceil(height), a_.corrected != 0);
        actor.reach_x = std::floor(width / 2 * static_cast<Real>(0.54));
        actor.reach_y = std::floor(height / 2 * static_cast<Real>(0.54));
        actor.area = area;
        actor.log_area = std::log(std::max(in_picture, static_cast<Real>(2.718281828459045)));
        return actor;
    }

    const CenterArguments& a_;
    const int64_t* const labels_;
    const Real* const boxes_;
    const bool* const visible_;
    std::vector<Actor<Real>> all_;
};

}  // namespace actdet::ACTDET_ISA

// Deformable attention: features at points between pixels, weighted and added up, and the gradient of that.
//
//   u = x W - 1/2,  v = y H - 1/2            where a point (x, y) lies among the pixels of a level of H x W
//   j, i = floor(u), floor(v)                the pixel to the upper left of it, in row i, and a, b = u - j, v - i
//   s = (1-a)(1-b) f_i,j + a(1-b) f_i,j+1 + (1-a)b f_i+1,j + a b f_i+1,j+1         pixels outside of the picture are 0
//   out_d = sum over levels and points of w s_d
//
//   dw = sum_d g_d s_d,   dx = w W sum_d g_d ds_d/da,   dy = w H sum_d g_d ds_d/db        g is the gradient of out
//   df_i,j,d += w (1-a)(1-b) g_d, and likewise for the other three pixels
//
// An item is a head of a sample. Nobody else adds to its features, so sums have one order whatever the threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "operations.hpp"

namespace actdet::ACTDET_ISA {

// Four pixels around a point: their places within the features of a head, their shares of the point, and which exist.
template <typename Real>
struct Corners {
    int64_t place[4];
    Real share[4];
    bool exists[4];
    Real a, b;
    bool any;
};

template <typename Real>
class HeadAttention {
  public:
    HeadAttention(const DeformableArguments& a, int64_t item)
        : a_(a),
          features_(a.features),
          stride_(a.heads * a.features),
          sample_(item / a.heads),
          head_(item % a.heads),
          offset_(sample_ * a.pixels * stride_ + head_ * features_),
          values_(reinterpret_cast<const Real*>(a.values) + offset_),
          mask_(a.mask == 0 ? nullptr : reinterpret_cast<const bool*>(a.mask) + sample_ * a.pixels) {}

    void attend() const {
        std::vector<Real> sum(features_);
        for (int64_t q = 0; q < a_.queries; ++q) {
            Real* __restrict total = sum.data();
            for (int64_t d = 0; d < features_; ++d) total[d] = 0;
            each_point(q, [&](const Corners<Real>& c, int64_t place, int64_t, int64_t) {
                const Real weight = reinterpret_cast<const Real*>(a_.weights)[place];
                for (int k = 0; k < 4; ++k) {
                    if (!c.exists[k]) continue;
                    const Real share = weight * c.share[k];
                    const Real* __restrict pixel = values_ + c.place[k];
#pragma omp simd
                    for (int64_t d = 0; d < features_; ++d) total[d] += share * pixel[d];
                }
            });
            Real* out = reinterpret_cast<Real*>(a_.out) + row(q) * features_;
            for (int64_t d = 0; d < features_; ++d) out[d] = total[d];
        }
    }

    void differentiate() const {
        Real* const d_values = reinterpret_cast<Real*>(a_.d_values) + offset_;
        for (int64_t s = 0; s < a_.pixels; ++s) {
            for (int64_t d = 0; d < features_; ++d) d_values[s * stride_ + d] = 0;
        }

        for (int64_t q = 0; q < a_.queries; ++q) {
            const Real* __restrict g = reinterpret_cast<const Real*>(a_.d_out) + row(q) * features_;
            each_point(q, [&](const Corners<Real>& c, int64_t place, int64_t height, int64_t width) {
                const Real weight = reinterpret_cast<const Real*>(a_.weights)[place];
                Real products[4] = {0, 0, 0, 0};
                for (int k = 0; k < 4; ++k) {
                    if (!c.exists[k]) continue;
                    const Real share = weight * c.share[k];
                    const Real* __restrict pixel = values_ + c.place[k];
                    Real* __restrict d_pixel = d_values + c.place[k];
                    Real product = 0;
#pragma omp simd reduction(+ : product)
                    for (int64_t d = 0; d < features_; ++d) {
                        product += g[d] * pixel[d];
                        d_pixel[d] += share * g[d];
                    }
                    products[k] = product;
                }

                const Real above = products[0] + c.a * (products[1] - products[0]);
                const Real below = products[2] + c.a * (products[3] - products[2]);
                const Real left = products[0] + c.b * (products[2] - products[0]);
                const Real right = products[1] + c.b * (products[3] - products[1]);
                Real* d_point = reinterpret_cast<Real*>(a_.d_points) + place * 2;
                reinterpret_cast<Real*>(a_.d_weights)[place] = above + c.b * (below - above);
                d_point[0] = c.any ? weight * static_cast<Real>(width) * (right - left) : Real(0);
                d_point[1] = c.any ? weight * static_cast<Real>(height) * (below - above) : Real(0);
            });
        }
    }

  private:
    // The number of a query's row in (samples, queries, heads).
    int64_t row(int64_t q) const { return (sample_ * a_.queries + q) * a_.heads + head_; }

    // Calls work(corners, place of the point, height, width) for every point of a query.
    template <typename Work>
    void each_point(int64_t q, const Work& work) const {
        const int64_t* levels = reinterpret_cast<const int64_t*>(a_.levels);
        int64_t place = row(q) * a_.levels_each * a_.points_each;
        int64_t start = 0;
        for (int64_t level = 0; level < a_.levels_each; ++level) {
            const int64_t height = levels[2 * level];
            const int64_t width = levels[2 * level + 1];
            for (int64_t p = 0; p < a_.points_each; ++p, ++place) {
                const Real* point = reinterpret_cast<const Real*>(a_.points) + place * 2;
                work(corners(point[0], point[1], start, height, width), place, height, width);
            }
            start += height * width;
        }
    }

    Corners<Real> corners(Real x, Real y, int64_t start, int64_t height, int64_t width) const {
        Corners<Real> c;
        const Real u = x * static_cast<Real>(width) - Real(0.5);
        const Real v = y * static_cast<Real>(height) - Real(0.5);
        // Not for NaN, either.
        c.any = u > -1 && u < static_cast<Real>(width) && v > -1 && v < static_cast<Real>(height);
        const Real first_u = c.any ? std::floor(u) : Real(0);
        const Real first_v = c.any ? std::floor(v) : Real(0);
        const int64_t j = static_cast<int64_t>(first_u);
        const int64_t i = static_cast<int64_t>(first_v);
        c.a = c.any ? u - first_u : Real(0);
        c.b = c.any ? v - first_v : Real(0);

        const Real shares_x[2] = {1 - c.a, c.a};
        const Real shares_y[2] = {1 - c.b, c.b};
        for (int k = 0; k < 4; ++k) {
            const int64_t at_x = j + k % 2;
            const int64_t at_y = i + k / 2;
            const bool inside = c.any && at_x >= 0 && at_x < width && at_y >= 0 && at_y < height;
            const int64_t pixel = start + at_y * width + at_x;
            c.exists[k] = inside && (mask_ == nullptr || mask_[pixel]);
            c.place[k] = pixel * stride_;
            c.share[k] = shares_x[k % 2] * shares_y[k / 2];
        }
        return c;
    }

    const DeformableArguments& a_;
    const int64_t features_, stride_, sample_, head_, offset_;
    const Real* const values_;
    const bool* const mask_;
};

template <typename Real>
void attend(const DeformableArguments& a, Counter& next) {
    for (int64_t item; next.next(item);) HeadAttention<Real>(a, item).attend();
}

template <typename Real>
void differentiate_attention(const DeformableArguments& a, Counter& next) {
    for (int64_t item; next.next(item);) HeadAttention<Real>(a, item).differentiate();
}

}  // namespace actdet::ACTDET_ISA

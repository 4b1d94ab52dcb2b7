// Problems in, solutions out: what surrounds the solver, for one element type, on one thread.
#pragma once

#include <cmath>

#include "assignment.hpp"

namespace actdet::ACTDET_ISA {

// cost (problems, rows, columns) by strides in elements; counts (samples) or null, of which problem p has p % samples.
// The duals may be null. All outputs are contiguous.
template <typename Real>
struct Assignment {
    const Real* cost;
    int64_t rows, columns;
    int64_t stride_p, stride_n, stride_m;
    const int64_t* counts;
    int64_t samples;
    bool maximize;
    int64_t* row_of_column;
    int64_t* column_of_row;
    Real* row_dual;
    Real* column_dual;
    int32_t* status;
};

// Above kHuge costs are shrunk, exactly, so that their sums cannot overflow.
template <typename Real>
inline constexpr Real kHuge = static_cast<Real>(0x1p90);
template <typename Real>
inline constexpr Real kShrink = static_cast<Real>(0x1p-40);

enum Status : int32_t { kNotFinite = 1, kForced = 2 };

// Copies a problem, smaller side along the rows, and makes its costs finite. The scale that it gave them.
template <typename Real>
Real load(const Assignment<Real>& a, int64_t problem, int64_t count, Workspace<Real>& w, int32_t& status) {
    const bool few = count <= a.rows;
    const int64_t small = few ? count : a.rows;
    const int64_t large = few ? a.rows : count;
    const int64_t stride_i = few ? a.stride_m : a.stride_n;
    const int64_t stride_j = few ? a.stride_n : a.stride_m;
    const Real* from = a.cost + problem * a.stride_p;
    const Real sign = a.maximize ? -1 : 1;
    Real low = kInfinity<Real>;
    Real high = -kInfinity<Real>;
    bool strange = false;
    for (int64_t i = 0; i < small; ++i) {
        Real* __restrict to = &w.costs[i * w.stride];
        const Real* __restrict row = from + i * stride_i;
        if (stride_j == 1) {
            for (int64_t j = 0; j < large; ++j) to[j] = sign * row[j];
        } else {
            for (int64_t j = 0; j < large; ++j) to[j] = sign * row[j * stride_j];
        }
        std::fill(to + large, to + w.stride, kInfinity<Real>);
        int32_t bad = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : bad)
        for (int64_t j = 0; j < large; ++j) {
            const bool finite = std::abs(to[j]) < kInfinity<Real>;
            const Real least = finite ? to[j] : kInfinity<Real>;
            const Real most = finite ? to[j] : -kInfinity<Real>;
            low = least < low ? least : low;
            high = most > high ? most : high;
            bad += !finite;
        }
        strange |= bad > 0;
    }
    if (!(low <= high)) low = high = 0;

    const Real largest = std::max(std::abs(low), std::abs(high));
    const Real scale = largest > kHuge<Real> ? kShrink<Real> : 1;
    if (!strange && scale == 1) return scale;

    // With b of them, an assignment costs at most b s + (small - b) high; with one more at least (b + 1) s +
    // (small - b - 1) low: s > high + (small - 1) (high - low) makes fewer always cheaper.
    const Real spread = high * scale - low * scale;
    const Real margin = spread > 0 ? spread : largest > 0 ? largest * scale : 1;
    const Real instead = high * scale + static_cast<Real>(small - 1) * spread + margin;
    for (int64_t i = 0; i < small; ++i) {
        Real* to = &w.costs[i * w.stride];
        for (int64_t j = 0; j < large; ++j) to[j] = std::abs(to[j]) < kInfinity<Real> ? to[j] * scale : instead;
    }
    status = strange ? kNotFinite : 0;
    return scale;
}

template <typename Real>
void assign(const Assignment<Real>& a, int64_t problem, Workspace<Real>& w) {
    const int64_t given = a.counts == nullptr ? a.columns : a.counts[problem % a.samples];
    const int64_t count = std::clamp<int64_t>(given, 0, a.columns);
    const bool few = count <= a.rows;
    const int64_t small = few ? count : a.rows;
    const int64_t large = few ? a.rows : count;
    int64_t* row_of_column = a.row_of_column + problem * a.columns;
    int64_t* column_of_row = a.column_of_row + problem * a.rows;
    std::fill_n(row_of_column, a.columns, -1);
    std::fill_n(column_of_row, a.rows, -1);
    Real* row_dual = a.row_dual == nullptr ? nullptr : a.row_dual + problem * a.rows;
    Real* column_dual = a.row_dual == nullptr ? nullptr : a.column_dual + problem * a.columns;
    if (row_dual != nullptr) {
        std::fill_n(row_dual, a.rows, 0);
        std::fill_n(column_dual, a.columns, 0);
    }
    int32_t& status = a.status[problem];
    status = 0;
    if (small == 0) return;

    w.resize(small, large);
    const Real scale = load(a, problem, count, w, status);
    solve(w, small, large);

    const Real sign = a.maximize ? -1 : 1;
    const Real* from = a.cost + problem * a.stride_p;
    for (int64_t i = 0; i < small; ++i) {
        const int64_t j = w.column_of[i];
        const int64_t row = few ? j : i;
        const int64_t column = few ? i : j;
        row_of_column[column] = row;
        column_of_row[row] = column;
        if (status != 0 && !(std::abs(from[row * a.stride_n + column * a.stride_m]) < kInfinity<Real>)) status |= kForced;
    }
    if (row_dual == nullptr) return;
    Real* u = few ? column_dual : row_dual;
    Real* v = few ? row_dual : column_dual;
    for (int64_t i = 0; i < small; ++i) {
        const int64_t j = w.column_of[i];
        u[i] = sign * (w.costs[i * w.stride + j] - w.v[j]) / scale;
    }
    for (int64_t j = 0; j < large; ++j) v[j] = sign * w.v[j] / scale;
}

}  // namespace actdet::ACTDET_ISA

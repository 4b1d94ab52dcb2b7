// What surrounds the solver, for `assign` and for `match`: problems are read, costs that are not finite are replaced,
// and solutions are written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "assignment.hpp"
#include "cost.hpp"
#include "operations.hpp"

namespace actdet::ACTDET_ISA {

// The bits of a problem's status: it has entries that are not finite, and one of them had to be taken.
enum Status : int32_t { kNotFinite = 1, kForced = 2 };

// Costs above kHuge are scaled by kShrink, which is exact, so that their sums cannot overflow.
template <typename Real>
inline constexpr Real kHuge = static_cast<Real>(0x1p90);
template <typename Real>
inline constexpr Real kShrink = static_cast<Real>(0x1p-40);

// Prepares the costs (small, large) in a workspace for the solver, which needs infinities behind the last column and
// finite numbers elsewhere.
template <typename Real>
struct Bounds {
    // The factor by which the costs were multiplied.
    Real scale = 1;

    // The value that takes the place of an entry that is not finite. It is so high that any assignment with fewer of
    // such entries is cheaper.
    Real substitute = 0;

    bool has_non_finite = false;

    Bounds(Workspace<Real>& w, int64_t small, int64_t large) {
        Real low = kInfinity<Real>;
        Real high = -kInfinity<Real>;
        int64_t bad = 0;
        for (int64_t i = 0; i < small; ++i) {
            Real* row = &w.costs[i * w.stride];
            std::fill(row + large, row + w.stride, kInfinity<Real>);
            bad += look_at(row, large, low, high);
        }
        has_non_finite = bad > 0;

        // There may be no finite entry at all.
        if (!(low <= high)) low = high = 0;
        const Real largest = std::max(std::abs(low), std::abs(high));
        if (largest > kHuge<Real>) scale = kShrink<Real>;
        if (!has_non_finite && scale == 1) return;

        // With b substitutes s, an assignment costs at most b s + (small - b) high, and with one more of them at least
        // (b + 1) s + (small - b - 1) low. So fewer of them are always cheaper if s > high + (small - 1) (high - low).
        const Real spread = high * scale - low * scale;
        const Real margin = spread > 0 ? spread : largest > 0 ? largest * scale : 1;
        substitute = high * scale + static_cast<Real>(small - 1) * spread + margin;

        for (int64_t i = 0; i < small; ++i) {
            Real* row = &w.costs[i * w.stride];
            for (int64_t j = 0; j < large; ++j) {
                row[j] = std::abs(row[j]) < kInfinity<Real> ? row[j] * scale : substitute;
            }
        }
    }

    // Returns the status of a solution, in which every row has a column.
    int32_t status(const Workspace<Real>& w, int64_t small) const {
        if (!has_non_finite) return 0;
        bool forced = false;
        for (int64_t i = 0; i < small; ++i) forced |= w.costs[i * w.stride + w.column_of[i]] == substitute;
        return forced ? kNotFinite | kForced : kNotFinite;
    }

  private:
    // Extends [low, high] by a row's finite entries, and returns the number of the others.
    static int64_t look_at(const Real* __restrict row, int64_t size, Real& low, Real& high) {
        Real least = low;
        Real most = high;
        int32_t bad = 0;
#pragma omp simd reduction(min : least) reduction(max : most) reduction(+ : bad)
        for (int64_t j = 0; j < size; ++j) {
            const bool finite = std::abs(row[j]) < kInfinity<Real>;
            const Real below = finite ? row[j] : kInfinity<Real>;
            const Real above = finite ? row[j] : -kInfinity<Real>;
            least = below < least ? below : least;
            most = above > most ? above : most;
            bad += !finite;
        }

        low = least;
        high = most;
        return bad;
    }
};

// Returns whether the columns of a problem become the rows of the workspace. Its rows are the smaller side, and on
// squares the side along which memory is contiguous.
inline bool columns_first(const AssignArguments& a, int64_t count) {
    return count < a.rows || (count == a.rows && a.stride_m != 1);
}

// Copies elements (small, large) into the rows of a workspace, times `sign`.
template <typename Real>
void load(
    const Real* from, int64_t stride_i, int64_t stride_j, int64_t small, int64_t large, Real sign, Workspace<Real>& w
) {
    if (stride_j == 1) {
        for (int64_t i = 0; i < small; ++i) {
            const Real* __restrict row = from + i * stride_i;
            Real* __restrict to = &w.costs[i * w.stride];
            for (int64_t j = 0; j < large; ++j) to[j] = sign * row[j];
        }
        return;
    }

    // This is a transposition. It takes as many rows at a time as a line of the cache has elements, so that each line
    // is read once.
    constexpr int64_t kTogether = 64 / sizeof(Real);
    for (int64_t first = 0; first < small; first += kTogether) {
        const int64_t end = std::min(first + kTogether, small);
        for (int64_t j = 0; j < large; ++j) {
            const Real* line = from + j * stride_j;
            for (int64_t i = first; i < end; ++i) w.costs[i * w.stride + j] = sign * line[i * stride_i];
        }
    }
}

// Solves one problem, and writes its solution.
template <typename Real>
void assign_problem(const AssignArguments& a, int64_t problem, Workspace<Real>& w) {
    const int64_t* counts = reinterpret_cast<const int64_t*>(a.counts);
    const int64_t count =
        counts == nullptr ? a.columns : std::clamp<int64_t>(counts[problem % a.samples], 0, a.columns);
    const bool few = columns_first(a, count);
    const int64_t small = few ? count : a.rows;
    const int64_t large = few ? a.rows : count;

    int64_t* row_of_column = reinterpret_cast<int64_t*>(a.row_of_column) + problem * a.columns;
    int32_t unwanted;
    int32_t& status = a.status == 0 ? unwanted : reinterpret_cast<int32_t*>(a.status)[problem];
    std::fill_n(row_of_column, a.columns, -1);
    status = 0;

    // The pointer to the duals of a side without elements is null, so one of the two is enough.
    const bool duals = a.row_dual != 0 || a.column_dual != 0;
    int64_t* column_of_row = duals ? reinterpret_cast<int64_t*>(a.column_of_row) + problem * a.rows : nullptr;
    Real* row_dual = duals ? reinterpret_cast<Real*>(a.row_dual) + problem * a.rows : nullptr;
    Real* column_dual = duals ? reinterpret_cast<Real*>(a.column_dual) + problem * a.columns : nullptr;
    if (duals) {
        std::fill_n(column_of_row, a.rows, -1);
        std::fill_n(row_dual, a.rows, 0);
        std::fill_n(column_dual, a.columns, 0);
    }
    if (small == 0) return;

    w.resize(small, large);
    const Real* from = reinterpret_cast<const Real*>(a.cost) + problem * a.stride_p;
    const Real sign = a.maximize ? -1 : 1;
    load(from, few ? a.stride_m : a.stride_n, few ? a.stride_n : a.stride_m, small, large, sign, w);

    const Bounds<Real> bounds(w, small, large);
    solve(w, small, large);
    status = bounds.status(w, small);

    for (int64_t i = 0; i < small; ++i) {
        const int64_t row = few ? w.column_of[i] : i;
        const int64_t column = few ? i : w.column_of[i];
        row_of_column[column] = row;
        if (duals) column_of_row[row] = column;
    }
    if (!duals) return;

    // The dual of a row of the workspace follows from its pair, on which the duals add up to the cost.
    Real* u = few ? column_dual : row_dual;
    Real* v = few ? row_dual : column_dual;
    for (int64_t i = 0; i < small; ++i) {
        const int64_t j = w.column_of[i];
        u[i] = sign * (w.costs[i * w.stride + j] - w.v[j]) / bounds.scale;
    }
    for (int64_t j = 0; j < large; ++j) v[j] = sign * w.v[j] / bounds.scale;
}

// Computes the costs of every target of a sample, and solves their assignment. The costs do not leave the workspace.
template <typename Real>
void match_problem(
    const MatchArguments& a, int64_t problem, Costs<Real>& costs, std::vector<Real>& row, Workspace<Real>& w
) {
    const Sample<Real> sample(a.predictions, problem);
    int64_t* matched = reinterpret_cast<int64_t*>(a.matched) + problem * a.predictions.size;
    int32_t& status = reinterpret_cast<int32_t*>(a.status)[problem];
    std::fill_n(matched, a.predictions.size, -1);
    status = 0;

    const bool few = sample.count <= sample.queries;
    const int64_t small = few ? sample.count : sample.queries;
    const int64_t large = few ? sample.queries : sample.count;
    if (small == 0) return;

    w.resize(small, large);
    costs.look_at(sample);
    if (few) {
        for (int64_t j = 0; j < sample.count; ++j) costs.row(j, &w.costs[j * w.stride]);
    } else {
        row.resize(sample.queries);
        for (int64_t j = 0; j < sample.count; ++j) {
            costs.row(j, row.data());
            for (int64_t n = 0; n < sample.queries; ++n) w.costs[n * w.stride + j] = row[n];
        }
    }

    const Bounds<Real> bounds(w, small, large);
    solve(w, small, large);
    status = bounds.status(w, small);

    for (int64_t i = 0; i < small; ++i) {
        const int64_t j = w.column_of[i];
        matched[few ? i : j] = few ? j : i;
    }
}

// The functions of `Operations`: they take one problem after the other, and keep their buffers in between.
template <typename Real>
void assign_problems(const AssignArguments& a, Counter& next) {
    Workspace<Real> workspace;
    for (int64_t problem; next.next(problem);) assign_problem(a, problem, workspace);
}

template <typename Real>
void match_problems(const MatchArguments& a, Counter& next) {
    Costs<Real> costs(a.options);
    std::vector<Real> row;
    Workspace<Real> workspace;
    for (int64_t problem; next.next(problem);) match_problem(a, problem, costs, row, workspace);
}

}  // namespace actdet::ACTDET_ISA

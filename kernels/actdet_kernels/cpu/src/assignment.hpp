// Exact rectangular linear assignment on a CPU: shortest augmenting paths over dense rows.
//
//   minimize  sum_i cost[i, column_i]   over one-to-one choices of a column for every row,  rows <= columns
//
// Jonker and Volgenant (1987), rectangular as Crouse (2016). Rows first take their cheapest column if it is free, then
// bid for one (augmenting row reduction: a row that takes another's column lowers its price by what the second best
// would have cost more), and what is left over is assigned along cheapest paths of re-assignments, by Dijkstra's
// algorithm on the reduced costs cost[i, j] - u[i] - v[j] >= 0. A column that was taken once stays taken, so that the
// prices of free columns are 0, or, on squares, anything: there columns start from their minima.
//
// Every loop over columns is one over plain arrays, which the compiler makes vector instructions of.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace actdet::ACTDET_ISA {

// What a solver needs, kept from one problem to the next. Columns are padded to whole vectors.
template <typename Real>
struct Workspace {
    static constexpr int64_t kPad = 64 / sizeof(Real);

    std::vector<Real> costs;     // (rows, stride), finite, the smaller side along the rows
    std::vector<Real> v;         // (stride) price of each column
    std::vector<Real> shifted;   // (stride) the same, and -infinity for columns whose path is known
    std::vector<Real> distance;  // (stride) length of the shortest path known to each column; infinity once it is final
    std::vector<Real> final;     // (stride) that length, for columns whose path is known
    std::vector<int32_t> before;     // (stride) the row before each column on that path
    std::vector<int32_t> row_of;     // (stride) the row of each column, -1 for none
    std::vector<int32_t> column_of;  // (rows)
    std::vector<int32_t> unassigned;
    std::vector<int32_t> waiting;  // what was unassigned before a round of bids
    std::vector<int32_t> reached;  // columns whose path is known
    int64_t stride = 0;

    void resize(int64_t rows, int64_t columns) {
        stride = (columns + kPad - 1) / kPad * kPad;
        costs.resize(rows * stride);
        v.assign(stride, 0);
        shifted.resize(stride);
        distance.resize(stride);
        final.resize(stride);
        before.resize(stride);
        row_of.assign(stride, -1);
        column_of.assign(rows, -1);
        unassigned.clear();
        reached.clear();
    }
};

template <typename Real>
inline constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

// The least of distance, after paths through a row of costs have been tried. through: the length of the path to that
// row, less its dual.
template <typename Real>
inline Real relax(
    const Real* __restrict cost, const Real* __restrict shifted, Real through, int32_t row, int64_t stride,
    Real* __restrict distance, int32_t* __restrict before
) {
    Real least = kInfinity<Real>;
#pragma omp simd reduction(min : least)
    for (int64_t j = 0; j < stride; ++j) {
        const Real length = through + (cost[j] - shifted[j]);
        const bool closer = length < distance[j];
        distance[j] = closer ? length : distance[j];
        before[j] = closer ? row : before[j];
        least = distance[j] < least ? distance[j] : least;
    }
    return least;
}

// The first column at that distance, a free one if there is any: it ends the search.
template <typename Real>
inline int32_t nearest(const Real* __restrict distance, const int32_t* __restrict row_of, Real least, int64_t stride) {
    constexpr int32_t kTaken = 1 << 30;
    int32_t first = std::numeric_limits<int32_t>::max();
#pragma omp simd reduction(min : first)
    for (int64_t j = 0; j < stride; ++j) {
        const int32_t place = static_cast<int32_t>(j) + (row_of[j] < 0 ? 0 : kTaken);
        const int32_t here = distance[j] <= least ? place : std::numeric_limits<int32_t>::max();
        first = here < first ? here : first;
    }
    return first & (kTaken - 1);
}

template <typename Real>
inline Real least_of(const Real* __restrict cost, int64_t size) {
    Real least = kInfinity<Real>;
#pragma omp simd reduction(min : least)
    for (int64_t j = 0; j < size; ++j) least = cost[j] < least ? cost[j] : least;
    return least;
}

// v[j] = the least of column j, of rows as they are or less their own least. How many rows are the least of a column.
template <typename Real>
int64_t column_minima(Workspace<Real>& w, int64_t size, bool of_rows_less_their_least) {
    std::fill_n(w.v.begin(), size, kInfinity<Real>);
    for (int64_t i = 0; i < size; ++i) {
        const Real* __restrict cost = &w.costs[i * w.stride];
        Real* __restrict v = w.v.data();
        int32_t* __restrict row = w.before.data();
        const Real base = of_rows_less_their_least ? least_of(cost, size) : Real(0);
#pragma omp simd
        for (int64_t j = 0; j < size; ++j) {
            const Real value = cost[j] - base;
            const bool less = value < v[j];
            v[j] = less ? value : v[j];
            row[j] = less ? static_cast<int32_t>(i) : row[j];
        }
    }
    int64_t rows = 0;
    for (int64_t j = 0; j < size; ++j) {
        int32_t& seen = w.column_of[w.before[j]];
        rows += seen == -1;
        seen = 0;
    }
    std::fill(w.column_of.begin(), w.column_of.end(), -1);
    return rows;
}

// The least of cost - v, where it is, and the least of the others.
template <typename Real>
struct TwoCheapest {
    Real least;
    Real second;
    int32_t column;
};

template <typename Real>
inline TwoCheapest<Real> two_cheapest(const Real* __restrict cost, const Real* __restrict v, int64_t stride) {
    Real least = kInfinity<Real>;
#pragma omp simd reduction(min : least)
    for (int64_t j = 0; j < stride; ++j) {
        const Real reduced = cost[j] - v[j];
        least = reduced < least ? reduced : least;
    }
    int32_t first = std::numeric_limits<int32_t>::max();
    Real second = kInfinity<Real>;
    int32_t equal = 0;
#pragma omp simd reduction(min : first, second) reduction(+ : equal)
    for (int64_t j = 0; j < stride; ++j) {
        const Real reduced = cost[j] - v[j];
        const bool here = reduced <= least;
        const int32_t place = here ? static_cast<int32_t>(j) : std::numeric_limits<int32_t>::max();
        const Real other = here ? kInfinity<Real> : reduced;
        first = place < first ? place : first;
        second = other < second ? other : second;
        equal += here;
    }
    return {least, equal > 1 ? least : second, first};
}

// A round of bids by the rows that are unassigned. Where a row's cheapest column is taken, it raises what that costs to
// everybody else by what its second best would have cost it more, and pushes the other row out, which bids again. Where
// two are as cheap it waits for a path.
template <typename Real>
void bid(Workspace<Real>& w, int64_t rows) {
    std::vector<int32_t>& waiting = w.waiting;
    waiting.swap(w.unassigned);
    w.unassigned.clear();
    size_t next = 0;
    int64_t bids = 0;
    const int64_t most = 4 * rows;
    while (next < waiting.size()) {
        const int32_t i = waiting[next++];
        const TwoCheapest<Real> best = two_cheapest(&w.costs[i * w.stride], w.v.data(), w.stride);
        const int32_t j = best.column;
        const int32_t owner = w.row_of[j];
        const bool raises = best.second < kInfinity<Real> && best.least < best.second;
        if (owner >= 0 && (!raises || ++bids > most)) {
            w.unassigned.push_back(i);
            continue;
        }
        if (raises) w.v[j] -= best.second - best.least;
        w.row_of[j] = i;
        w.column_of[i] = j;
        if (owner >= 0) {
            w.column_of[owner] = -1;
            waiting[--next] = owner;
        }
    }
}

// Assigns one more row, along the cheapest path of re-assignments to a free column.
template <typename Real>
void augment(Workspace<Real>& w, int32_t root) {
    const int64_t stride = w.stride;
    std::copy(w.v.begin(), w.v.end(), w.shifted.begin());
    std::fill(w.distance.begin(), w.distance.end(), kInfinity<Real>);
    w.reached.clear();
    int32_t i = root;
    int32_t j = -1;
    Real through = 0;
    Real least = 0;
    while (true) {
        const Real* cost = &w.costs[i * stride];
        least = relax(cost, w.shifted.data(), through, i, stride, w.distance.data(), w.before.data());
        j = nearest(w.distance.data(), w.row_of.data(), least, stride);
        if (w.row_of[j] < 0) break;
        w.final[j] = least;
        w.distance[j] = kInfinity<Real>;
        w.shifted[j] = -kInfinity<Real>;
        w.reached.push_back(j);
        i = w.row_of[j];
        // The dual of an assigned row follows from its pair, which is tight.
        through = least - (w.costs[i * stride + j] - w.v[j]);
    }
    for (const int32_t known : w.reached) w.v[known] += w.final[known] - least;
    for (int32_t row = -1; row != root;) {
        row = w.before[j];
        std::swap(w.column_of[row], j);
        w.row_of[w.column_of[row]] = row;
    }
}

// Assigns every row. costs beyond `columns` must be infinite, and all others finite.
template <typename Real>
void solve(Workspace<Real>& w, int64_t rows, int64_t columns) {
    if (rows == columns) {
        // Columns start from their minima. Where few rows are the least of a column, that says what these rows cost
        // less in every column, and hides all else (near-identical columns): the minima of rows without it may say
        // more.
        const int64_t found = column_minima(w, columns, false);
        if (found < columns / 4 && column_minima(w, columns, true) < found) column_minima(w, columns, false);
    }
    for (int64_t i = 0; i < rows; ++i) w.unassigned.push_back(static_cast<int32_t>(i));
    for (int round = 0; round < 2 && !w.unassigned.empty(); ++round) bid(w, rows);
    for (const int32_t root : w.unassigned) augment(w, root);
}

}  // namespace actdet::ACTDET_ISA

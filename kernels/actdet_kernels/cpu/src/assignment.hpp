// The solver: exact rectangular linear assignment by shortest augmenting paths over dense rows.
//
//   minimize  sum_i cost[i, column_i]   over one-to-one choices of a column for every row,  rows <= columns
//
// The method is that of Jonker and Volgenant (1987) in the rectangular form of Crouse (2016). First, rows bid for their
// cheapest columns (augmenting row reduction). A row that takes the column of another one lowers the column's price by
// how much more the second best would have cost. The rows that are left over are then assigned along cheapest paths of
// re-assignments, which Dijkstra's algorithm finds on the reduced costs cost[i, j] - u[i] - v[j] >= 0.
//
// A column that is taken stays taken, so the prices of free columns are still those at the start. These are 0, except
// on squares, which have no free columns at the end: there columns start from their minima.
//
// From top to bottom: the workspace, the loops over columns, the bids, the paths, and `solve`. Every loop over columns
// is over plain arrays, so that the compiler can vectorize it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace actdet::ACTDET_ISA {

// The memory of the solver, which is kept from one problem to the next. Columns are padded to whole vectors.
template <typename Real>
struct Workspace {
    static constexpr int64_t kPad = 64 / sizeof(Real);

    // (rows, stride), with the smaller side along the rows: finite, and infinite in the padding.
    std::vector<Real> costs;

    // (stride): the price of each column.
    std::vector<Real> v;

    // (stride): the same, but -infinity for columns whose shortest path is final, so that no path leads to them again.
    std::vector<Real> shifted;

    // (stride): the length of the shortest path to each column so far, or infinity once it is final.
    std::vector<Real> distance;

    // (stride): the length of the shortest path, for columns whose path is final.
    std::vector<Real> final;

    // (stride): the row before each column on its path.
    std::vector<int32_t> before;

    // (stride): the row of each column, or -1.
    std::vector<int32_t> row_of;

    // (rows): the column of each row, or -1.
    std::vector<int32_t> column_of;

    // The rows without a column, and those that had none before a round of bids.
    std::vector<int32_t> unassigned;
    std::vector<int32_t> waiting;

    // The columns whose shortest path is final.
    std::vector<int32_t> reached;

    // The distance of two rows of costs.
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

// Tries the paths through a row of costs, and returns the least distance after that. `through` is the length of the
// path to that row, less the row's dual.
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

// Returns the first column at the least distance. A free column comes first, because it ends the search.
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

// Returns the least of a row of costs.
template <typename Real>
inline Real least_of(const Real* __restrict cost, int64_t size) {
    Real least = kInfinity<Real>;
#pragma omp simd reduction(min : least)
    for (int64_t j = 0; j < size; ++j) least = cost[j] < least ? cost[j] : least;
    return least;
}

// Sets v[j] to the least of column j, and returns how many rows are the least of some column. With
// `of_rows_less_their_least`, the least of each row is subtracted from it first.
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

    // column_of marks the rows that were counted.
    int64_t rows = 0;
    for (int64_t j = 0; j < size; ++j) {
        int32_t& seen = w.column_of[w.before[j]];
        rows += seen == -1;
        seen = 0;
    }
    std::fill(w.column_of.begin(), w.column_of.end(), -1);
    return rows;
}

// The least of cost - v, its column, and the least of the others.
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

// Lets the unassigned rows bid in turn for their cheapest columns. A bid lowers the price of the column by how much
// more the second best would have cost the bidder, so that it becomes more expensive for all others. If the column is
// taken, its row is pushed out and bids next. If the second best costs the same, there is nothing to bid, and a row
// whose column is taken waits for a path. So does every row that would push out another one after 4 * rows such bids.
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

// Assigns the row `root`, along the cheapest path of re-assignments to a free column.
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

        // The dual of an assigned row follows from its pair, whose reduced cost is 0.
        through = least - (w.costs[i * stride + j] - w.v[j]);
    }

    // New prices keep all reduced costs from becoming negative. Then each row on the path takes the column after it.
    for (const int32_t known : w.reached) w.v[known] += w.final[known] - least;
    for (int32_t row = -1; row != root;) {
        row = w.before[j];
        std::swap(w.column_of[row], j);
        w.row_of[w.column_of[row]] = row;
    }
}

// Assigns every row. Costs behind the last column must be infinite, and all others finite.
template <typename Real>
void solve(Workspace<Real>& w, int64_t rows, int64_t columns) {
    if (rows == columns) {
        // Columns start from their minima. If the minima of all columns are in a few rows, as with near-identical
        // columns, they mostly show that these rows are cheap everywhere, and hide the differences between columns. The
        // minima after each row's own least was subtracted may then show more.
        const int64_t found = column_minima(w, columns, false);
        if (found < columns / 4 && column_minima(w, columns, true) < found) column_minima(w, columns, false);
    }

    for (int64_t i = 0; i < rows; ++i) w.unassigned.push_back(static_cast<int32_t>(i));
    for (int round = 0; round < 2 && !w.unassigned.empty(); ++round) bid(w, rows);
    for (const int32_t root : w.unassigned) augment(w, root);
}

}  // namespace actdet::ACTDET_ISA

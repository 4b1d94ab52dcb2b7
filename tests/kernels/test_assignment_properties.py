"""The assignment kernel is exact: on thousands of drawn costs, to the last digit wherever no sum can be rounded.

Costs are integers, or such times a power of two, of at most `TOP` in magnitude. Duals, distances and their sums are
differences of at most 2 k of them, k = min(N, M) <= 64, so that every number which the kernel computes has at most 24
bits (53 in float64) and nothing is rounded: what it finds must be SciPy's float64 optimum exactly, and the duals must
prove it exactly. Float costs of any size have a bound, in `test_rounded_costs_stay_within_their_roundings`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import Assignment, match, solve_assignment, solve_matching
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tests.kernels.device import DEVICE, EACH_KERNEL, POISONED
from tests.kernels.oracles import best_assignment, random_boxes, random_logits, random_targets

pytestmark = POISONED
# A seed cannot be shrunk, and every example takes the interpreter a third of a second.
drawn: Any = {
    "deadline": None,
    "derandomize": True,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}

TOP = {
    torch.float16: 2**11,
    torch.bfloat16: 2**8,
    torch.float32: 2**15,
    torch.float64: 2**40,
    torch.int32: 2**30,
    torch.int64: 2**40,
}


def chain(rows: int, columns: int, top: int) -> np.ndarray:
    """Every row but the last starts at its own column, and the last moves all of them on by one."""
    matrix = np.full((rows, columns), top)
    near = np.arange(min(rows, columns) - 1)
    matrix[near, near], matrix[near, near + 1], matrix[min(rows, columns) - 1, 0] = 0, 1, 0
    return matrix


def drawn_costs(kind: str, rng: np.random.Generator, rows: int, columns: int, top: int) -> np.ndarray:
    """One problem (rows, columns) of integers in [-top, top]."""
    noise = rng.integers(-top, top + 1, (rows, columns))
    i, j = np.arange(rows)[:, None], np.arange(columns)
    found = (rng.permutation(max(rows, columns))[:columns] == i) * (top // 2)
    kinds = {
        "random": noise,
        "few values": rng.integers(0, 3, (rows, columns)),
        "tied": np.full((rows, columns), noise.flat[0]),
        "duplicate rows": np.repeat(noise[:1], rows, axis=0),
        "near-identical queries": noise[:1] // 2 + rng.integers(0, 3, (rows, columns)),  # the first steps of training
        "trained": noise // 4 - found,
        "products": (i + 1) * (j + 1) % (top + 1),  # Machol and Wien 1976
        "one order of preference": noise[0] + rng.integers(-1, 1, (rows, 1)),
        "chain": chain(rows, columns, top)[rng.permutation(rows)][:, rng.permutation(columns)],
    }
    return kinds[kind].clip(-top, top)


KINDS = (
    "random", "few values", "tied", "duplicate rows", "near-identical queries", "trained", "products",
    "one order of preference", "chain",
)  # fmt: skip


def check_exact(
    solution: Assignment, matrices: np.ndarray, counts: list[int], maximize: bool, unit: float = 1.0
) -> None:
    """One-to-one, complete, consistent, as cheap as SciPy's, and proved so: with no tolerance. Costs are in `unit`."""
    row_of_column, column_of_row, u, v, status = (field.cpu().numpy() for field in solution)
    assert not status.any()
    sign = -1 if maximize else 1
    for problem, (matrix, count) in enumerate(zip(sign * matrices[:, :, :].astype(np.float64), counts, strict=True)):
        taken = row_of_column[problem]
        columns = np.flatnonzero(taken >= 0)
        assert len(columns) == len(set(taken[columns])) == min(matrix.shape[0], count)
        assert (taken[columns] < matrix.shape[0]).all()
        assert (columns < count).all()
        assert (np.delete(taken, columns) == -1).all()
        inverse = np.full(matrix.shape[0], -1)
        inverse[taken[columns]] = columns
        assert (column_of_row[problem] == inverse).all()

        matrix = matrix[:, :count]
        best = matrix[linear_sum_assignment(matrix)].sum()
        assert matrix[taken[columns], columns].sum() == best
        a, b = sign * u[problem].astype(np.float64) / unit, sign * v[problem].astype(np.float64) / unit
        slack = matrix - a[:, None] - b[:count]
        assert (slack >= 0).all()
        assert (slack[taken[columns], columns] == 0).all()
        assert a.sum() + b.sum() == best
        left_over = a[inverse < 0] if count <= matrix.shape[0] else b[taken < 0]
        assert not left_over.any()
        assert not b[count:].any()


def check_drawn(
    kernels: Any, rows: int, columns: int, dtype: torch.dtype, wide: bool, maximize: bool, counted: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = (columns, rows) if wide else (rows, columns)
    kinds = [KINDS[index % len(KINDS)] for index in range(3 * len(KINDS))]
    matrices = np.stack([drawn_costs(kind, rng, rows, columns, TOP[dtype]) for kind in kinds])
    unit = 2.0 ** rng.integers(-12, 4) if dtype.is_floating_point else 1
    cost = torch.from_numpy(matrices).to(dtype) * unit
    counts = [columns] * len(kinds)
    if counted:
        counts = rng.integers(0, columns + 1, len(kinds)).tolist()
        for problem, count in enumerate(counts):
            cost[problem, :, count:] = (math.nan, -math.inf, 0.0)[problem % 3] if dtype.is_floating_point else -(2**31)
    given_counts = torch.tensor(counts, dtype=torch.int32, device=DEVICE) if counted else None
    solution = solve_assignment(cost.to(dtype).to(DEVICE), given_counts, maximize=maximize, backend=kernels)
    check_exact(solution, matrices, counts, maximize, unit)


PROBLEMS = given(
    st.integers(1, 9),
    st.integers(1, 7),
    st.sampled_from(list(TOP)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)

test_drawn_costs_are_solved_exactly_and_proved_so = EACH_KERNEL(
    settings(max_examples=15, **drawn)(PROBLEMS(check_drawn))
)

test_many_drawn_costs_are_solved_exactly_and_proved_so = pytest.mark.slow(
    pytest.mark.timeout(1200)(EACH_KERNEL(settings(max_examples=300, **drawn)(PROBLEMS(check_drawn))))
)


@EACH_KERNEL
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 9), (9, 64), (17, 17)])
def test_larger_costs_are_solved_exactly_and_proved_so(kernels: Any, kind: str, shape: tuple[int, int]) -> None:
    matrices = drawn_costs(kind, np.random.default_rng(len(kind)), *shape, TOP[torch.float32])[None]
    cost = torch.from_numpy(matrices).float().to(DEVICE)
    check_exact(solve_assignment(cost, backend=kernels), matrices, [shape[1]], False)


@EACH_KERNEL
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_costs_whose_sums_overflow_are_solved_exactly(kernels: Any, shape: tuple[int, int], maximize: bool) -> None:
    """Of almost 2^128, the largest float32, so that a sum is infinite. The solver shrinks them, by a power of two."""
    rng = np.random.default_rng(len(shape))
    matrices = np.stack([drawn_costs(kind, rng, *shape, 2**15 - 1) for kind in KINDS])
    both = np.concatenate([matrices, np.where(matrices % 5 == 0, 2 - 2**15, 2**15 - 1 - abs(matrices) // 4)])
    matrices = np.concatenate([both, np.where(np.arange(shape[1]) == 0, 1 - 2**15, abs(both) // 2 + 2**14)])
    cost = (torch.from_numpy(matrices).double() * 2.0**113).float()
    solution = solve_assignment(cost.to(DEVICE), maximize=maximize, backend=kernels)
    assert not solution.status.any()
    for matrix, taken in zip(matrices, solution.row_of_column.tolist(), strict=True):
        pairs = [(row, column) for column, row in enumerate(taken) if row != -1]
        assert len({row for row, _ in pairs}) == len(pairs) == min(shape)
        best = matrix[linear_sum_assignment(matrix, maximize=maximize)].sum()
        assert sum(matrix[pair] for pair in pairs) == best


@EACH_KERNEL
@settings(max_examples=20, **drawn)
@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_rounded_costs_stay_within_their_roundings(
    kernels: Any, rows: int, columns: int, dtype: torch.dtype, maximize: bool, seed: int
) -> None:
    """Half of the problems mix costs of 1e-30 and of 1e30, the others are uniform.

    With k = min(N, M), costs of at most c and the unit roundoff e: duals and distances are sums of at most 2 k costs,
    so that one rounding is at most 2 k c e; a step of Dijkstra's and the update of its duals round the slack of a pair
    at most 12 times, and there are k augmentations: a slack is off by s = 24 k^2 c e, to the first order in e. Another
    assignment is cheaper by no more than its k slacks and the k of ours are off: 2 k s.
    """
    rng = np.random.default_rng(seed)
    shape, k, e = (8, rows, columns), min(rows, columns), torch.finfo(dtype).eps / 2
    huge = 10 ** (60 * rng.random(shape) - 30) * rng.choice([-1, 1], shape)
    cost = torch.from_numpy(np.where(np.arange(8)[:, None, None] % 2, huge, rng.random(shape))).to(dtype)
    solution = solve_assignment(cost.to(DEVICE), maximize=maximize, backend=kernels)
    sign = -1 if maximize else 1
    for matrix, taken, _, u, v, status in zip(sign * cost.double().numpy(), *(f.cpu().numpy() for f in solution)):  # noqa: B905
        assert status == 0
        pairs = [(row, column) for column, row in enumerate(taken) if row >= 0]
        assert len({row for row, _ in pairs}) == len(pairs) == k
        best = math.fsum(matrix[linear_sum_assignment(matrix)])
        off = 24 * k**2 * np.abs(matrix).max() * e
        assert math.fsum(matrix[pair] for pair in pairs) <= best + 2 * k * off
        slack = matrix - sign * u.astype(np.float64)[:, None] - sign * v.astype(np.float64)
        assert slack.min() >= -off
        assert all(abs(slack[pair]) <= off for pair in pairs)


# Entries that are not finite


def check_with_entries_that_are_not_finite(
    kernels: Any,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    unit: float,
    wide: bool,
    maximize: bool,
    share: float,
    seed: int,
) -> None:
    """Integers times a power of two, so exactly; the last count is one too many, which means all."""
    rng = np.random.default_rng(seed)
    rows, columns = (columns, rows) if wide else (rows, columns)
    values = rng.integers(-4, 5, (16, rows, columns)).astype(np.float64)
    strange = rng.random(values.shape) < share
    values[strange] = rng.choice([math.nan, math.inf, -math.inf], strange.sum())
    unit = unit if dtype in (torch.float32, torch.float64) else 1.0
    cost = (torch.from_numpy(values) * unit).to(dtype)
    counts = [*rng.integers(0, columns + 1, 15).tolist(), columns]
    given_counts = torch.tensor([*counts[:-1], columns + 1], dtype=torch.int32, device=DEVICE)
    solution = solve_assignment(cost.to(DEVICE), given_counts, maximize=maximize, backend=kernels)
    for matrix, count, taken, inverse, status in zip(
        (-values if maximize else values).tolist(),
        counts,
        *(field.tolist() for field in (*solution[:2], solution.status)),
        strict=True,
    ):
        pairs = [(row, column) for column, row in enumerate(taken) if row != -1]
        assert len({row for row, _ in pairs}) == len(pairs) == min(rows, count)
        assert all(row < rows and column < count for row, column in pairs)
        assert sorted((row, column) for row, column in enumerate(inverse) if column != -1) == sorted(pairs)
        chosen = [matrix[row][column] for row, column in pairs]
        finite = [value for value in chosen if math.isfinite(value)]
        fewest, best = best_assignment([row[:count] for row in matrix], rows, count)
        assert (len(chosen) - len(finite), sum(finite)) == (fewest, best)
        bad = not all(math.isfinite(value) for row in matrix for value in row[:count])
        assert status == bad + 2 * (fewest > 0)


PROBLEMS_NOT_FINITE = given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([1.0, 2.0**-40, 2.0**100]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.integers(0, 2**32 - 1),
)

test_the_fewest_entries_that_are_not_finite_are_taken_and_of_the_others_the_cheapest = EACH_KERNEL(
    settings(max_examples=12, **drawn)(PROBLEMS_NOT_FINITE(check_with_entries_that_are_not_finite))
)

test_many_problems_with_entries_that_are_not_finite = pytest.mark.slow(
    pytest.mark.timeout(1200)(
        EACH_KERNEL(settings(max_examples=250, **drawn)(PROBLEMS_NOT_FINITE(check_with_entries_that_are_not_finite)))
    )
)


@EACH_KERNEL
@settings(max_examples=12, **drawn)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 2**16))
def test_the_rest_of_a_batch_has_the_same_bits_beside_a_bad_problem(
    kernels: Any, rows: int, columns: int, bad: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cost = torch.from_numpy(rng.random((6, rows, columns))).float().to(DEVICE)
    clean = solve_assignment(cost, backend=kernels)
    hit = torch.from_numpy(rng.random(6) < 0.5).to(DEVICE)
    mask = torch.from_numpy(rng.random(cost.shape) < 0.5).to(DEVICE)
    got = solve_assignment(cost.masked_fill(mask & hit[:, None, None], bad), backend=kernels)
    for one, other in zip(got, clean, strict=True):
        assert torch.equal(one[~hit], other[~hit])


@EACH_KERNEL
@settings(max_examples=12, **drawn)
@given(st.integers(2, 7), st.integers(1, 5), st.sampled_from(["softmax", "focal"]), st.integers(0, 2**16))
def test_the_rest_of_a_batch_is_matched_alike_beside_bad_predictions(
    kernels: Any, queries: int, size: int, class_cost: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    targets = random_targets(rng.integers(0, size + 1, 4).tolist(), size, 2, seed=seed).to(DEVICE)
    logits, boxes = random_logits(4, queries, 3, seed=seed).to(DEVICE), random_boxes(4, queries, seed=seed).to(DEVICE)
    clean = solve_matching(logits, boxes, targets, class_cost=class_cost, backend=kernels)
    hit = [0, 2]
    for values in (logits, boxes):
        mask = torch.from_numpy(rng.random(values[hit].shape) < 0.3).to(DEVICE)
        values[hit] = values[hit].masked_fill(mask, rng.choice([math.nan, math.inf, -math.inf]))
    got = solve_matching(logits, boxes, targets, class_cost=class_cost, backend=kernels)
    for one, other in zip(got, clean, strict=True):
        assert torch.equal(one[1::2], other[1::2])
    for count, taken in zip(targets.counts.tolist(), got.matched.tolist(), strict=True):
        assert len({query for query in taken if 0 <= query < queries}) == min(count, queries)
        assert sum(query != -1 for query in taken) == min(count, queries)


@EACH_KERNEL
def test_a_bad_target_takes_the_worst_query_and_the_good_ones_their_best(kernels: Any) -> None:
    """A target whose box is not finite makes its whole row of costs so, in every backend."""
    targets = random_targets([3], 3, 2, seed=1)
    logits, boxes = random_logits(1, 6, 3, seed=1), random_boxes(1, 6, seed=1)
    targets.boxes[0, 1, 2] = math.nan
    good = targets._replace(labels=targets.labels[:, ::2], boxes=targets.boxes[:, ::2], counts=targets.counts - 1)
    for backend in (kernels, "reference"):
        arguments = (logits.to(DEVICE), boxes.to(DEVICE))
        matched = match(*arguments, targets.to(DEVICE), backend=backend)
        wanted = match(*arguments, good.to(DEVICE), backend=backend)
        assert matched[0, ::2].tolist() == wanted[0].tolist()
        assert matched[0, 1] not in wanted[0]

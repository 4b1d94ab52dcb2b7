"""The Triton kernels of cost, assignment and matching against SciPy in float64 and loops over pairs.

On a CPU they run in Triton's interpreter, which is slow: sizes are small, and just past powers of two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import (
    MatchWeights,
    Targets,
    assign,
    match,
    pairwise_cost,
    solve_assignment,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.kernels.device import DEVICE, EACH_KERNEL, KINDS, POISONED
from tests.kernels.oracles import best_assignment, costs, random_boxes, random_logits, random_targets

WEIGHTS = MatchWeights(1.3, 4.1, 0.7)

pytestmark = POISONED


def on_device(targets: Targets) -> Targets:
    return targets.to(DEVICE)


# Assignment


def check_solution(
    kernels: Any, cost: Tensor, counts: list[int], maximize: bool = False, given_counts: Tensor | None = None
) -> None:
    """One-to-one, complete, as cheap as SciPy's float64 optimum, and proved so by the duals.

    Rounding: each of the at most k = min(N, M) sums of a path is off by half a unit of the largest value in it.
    """
    solution = solve_assignment(cost.to(DEVICE), given_counts, maximize=maximize, backend=kernels)
    row_of_column, column_of_row, u, v, status = (field.cpu() for field in solution)
    batch, rows, columns = cost.shape
    assert (row_of_column.shape, column_of_row.shape) == ((batch, columns), (batch, rows))
    assert row_of_column.dtype == column_of_row.dtype == torch.int64
    assert (u.shape, v.shape, status.tolist()) == ((batch, rows), (batch, columns), [0] * batch)
    sign = -1 if maximize else 1
    for problem, count in enumerate(counts):
        pairs = [(row, column) for column, row in enumerate(row_of_column[problem].tolist()) if row != -1]
        assert all(0 <= row < rows and column < count for row, column in pairs)
        assert len({row for row, _ in pairs}) == len(pairs) == min(rows, count)
        others = {row: column for row, column in enumerate(column_of_row[problem].tolist()) if column != -1}
        assert others == dict(pairs)

        matrix = sign * cost[problem, :, :count].double().numpy()
        size = max(np.abs(matrix).max(initial=0), 1e-30) * max(len(pairs), 1)
        error = size * torch.finfo(u.dtype).eps * 4
        best = matrix[linear_sum_assignment(matrix)].sum()
        total = math.fsum(matrix[pair] for pair in pairs)
        assert total == pytest.approx(best, abs=error)

        a, b = sign * u[problem].double().numpy(), sign * v[problem].double().numpy()
        assert not b[count:].any()
        slack = matrix - a[:, None] - b[None, :count]
        assert slack.min(initial=0) >= -error
        assert all(abs(slack[pair]) <= error for pair in pairs)
        assert a.sum() + b.sum() == pytest.approx(best, abs=error * max(rows, count))
        larger, partners = (a, column_of_row) if count <= rows else (b, row_of_column)
        left_over = larger[(partners[problem] < 0).numpy()]
        assert not left_over.any()


def problems(kind: str, shape: tuple[int, int, int]) -> Tensor:
    rng = np.random.default_rng([*shape, len(kind)])
    uniform = rng.random(shape)
    batch, rows, columns = shape
    near = rng.random((batch, 1, columns)) + 1e-4 * uniform
    values = {
        "random": uniform,
        "integer": rng.integers(-5, 6, shape).astype(float),
        "tied": np.full(shape, 3.0),
        "duplicate rows": np.repeat(uniform[:, :1], rows, axis=1),
        "near-identical queries": near,  # the first steps of every training
        "trained": uniform + 5 - 5 * (np.arange(rows)[:, None] % max(columns, 1) == np.arange(columns)),
        "huge range": 10 ** (60 * uniform - 30) * rng.choice([-1, 1], shape),
        "far from zero": 1e4 + uniform,
        "adversarial": np.outer(np.arange(rows) + 1, np.arange(columns) + 1)[None].repeat(batch, 0).astype(float),
    }
    return torch.from_numpy(values[kind])


PROBLEMS = [
    "random", "integer", "tied", "duplicate rows", "near-identical queries", "trained", "huge range", "far from zero",
    "adversarial",
]  # fmt: skip


@EACH_KERNEL
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("shape", [(2, 12, 4), (1, 9, 9), (2, 3, 7)])
@pytest.mark.parametrize(("dtype", "maximize"), [(torch.float32, False), (torch.float64, True)])
def test_assignment_is_optimal_and_proves_it(
    kernels: Any, kind: str, shape: tuple[int, int, int], maximize: bool, dtype: torch.dtype
) -> None:
    check_solution(kernels, problems(kind, shape).to(dtype), [shape[2]] * shape[0], maximize)


@EACH_KERNEL
@pytest.mark.parametrize("kind", ["random", "near-identical queries", "trained", "integer"])
@pytest.mark.parametrize("shape", [(1, 33, 17), (1, 17, 17), (1, 12, 65), (2, 1, 5), (2, 5, 1), (1, 1, 1)])
def test_assignment_of_larger_and_of_single_sides(kernels: Any, kind: str, shape: tuple[int, int, int]) -> None:
    check_solution(kernels, problems(kind, shape).float(), [shape[2]] * shape[0])


@EACH_KERNEL
def test_more_columns_than_a_thread_block_has_threads(kernels: Any) -> None:
    check_solution(kernels, problems("trained", (1, 1030, 3)).float(), [3])
    check_solution(kernels, problems("random", (1, 2, 1025)).float(), [1025])


@EACH_KERNEL
@pytest.mark.parametrize(("dtype", "maximize"), [(torch.int32, False), (torch.int64, True)])
@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (3, 6), (1, 4), (4, 1)])
def test_each_problem_has_its_own_count(
    kernels: Any, rows: int, columns: int, maximize: bool, dtype: torch.dtype
) -> None:
    counts = [*range(columns + 1), columns]
    cost = problems("random", (len(counts), rows, columns)).float()
    for problem, count in enumerate(counts):
        cost[problem, :, count:] = (math.nan, -math.inf, -1e30)[problem % 3]
    given_counts = torch.tensor([*counts[:-1], columns + 3], dtype=dtype, device=DEVICE)  # one too many is all
    check_solution(kernels, cost, counts, maximize, given_counts)
    given_counts[1] = -2
    assert (assign(cost.to(DEVICE), given_counts, backend=kernels)[1] == -1).all()


@EACH_KERNEL
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64],
)
def test_assignment_of_every_type(kernels: Any, dtype: torch.dtype) -> None:
    cost = (problems("random", (2, 7, 5)) * (2 if dtype == torch.bool else 100)).to(dtype)
    check_solution(kernels, cost, [5, 5])


@EACH_KERNEL
def test_large_integers_are_not_rounded(kernels: Any) -> None:
    cost = torch.tensor([[[2**30, 2**30 + 1], [2**30 + 2, 2**30 + 1]]], dtype=torch.int32)
    assert assign(cost.to(DEVICE), backend=kernels).tolist() == [[0, 1]]
    assert assign(cost.to(DEVICE), backend=kernels, maximize=True).tolist() == [[1, 0]]


@EACH_KERNEL
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (2, 0, 3), (0, 0, 0), (3, 0, 0)])
def test_empty_problems_assign_nothing(kernels: Any, shape: tuple[int, int, int]) -> None:
    check_solution(kernels, torch.zeros(shape), [shape[2]] * shape[0])


@EACH_KERNEL
def test_any_strides_do(kernels: Any) -> None:
    wide = problems("random", (4, 8, 11)).float().to(DEVICE)
    for view in (wide.mT, wide[::2, 1::3, ::4], wide.flip(1)[:1].expand(3, -1, -1), wide.transpose(0, 1)):
        got, wanted = assign(view, backend=kernels), assign(view.contiguous(), backend=kernels)
        assert torch.equal(got, wanted)
        check_solution(kernels, view.cpu(), [view.shape[2]] * view.shape[0])


# Entries that are not finite

# The fixture that poisons memory need not be made anew for each example, and the interpreter takes its time.
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

entries = st.one_of(st.integers(-4, 4).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))


@EACH_KERNEL
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(st.integers(1, 4), st.integers(1, 4), st.booleans(), st.sampled_from([torch.float32, torch.float64]), st.data())
def test_not_finite_entries_are_taken_only_where_nothing_else_is_left(
    kernels: Any, rows: int, columns: int, maximize: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    values = data.draw(st.lists(entries, min_size=2 * rows * columns, max_size=2 * rows * columns))
    cost = torch.tensor(values, dtype=dtype).reshape(2, rows, columns)
    solution = solve_assignment(cost.to(DEVICE), maximize=maximize, backend=kernels)
    sign = -1 if maximize else 1
    for problem in range(2):
        pairs = [(row, column) for column, row in enumerate(solution.row_of_column[problem].tolist()) if row != -1]
        assert len({row for row, _ in pairs}) == len(pairs) == min(rows, columns)
        matrix = (sign * cost[problem]).tolist()
        fewest, best = best_assignment(matrix, rows, columns)
        taken = [matrix[row][column] for row, column in pairs]
        finite = [value for value in taken if math.isfinite(value)]
        assert len(taken) - len(finite) == fewest
        assert math.fsum(finite) == pytest.approx(best, abs=1e-4 if dtype == torch.float32 else 1e-12)
        status = (not cost[problem].isfinite().all()) + 2 * (fewest > 0)
        assert solution.status[problem].item() == status


@EACH_KERNEL
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(st.integers(1, 8), st.integers(1, 8), st.booleans(), st.sampled_from([1, 2, 5, 1000]), st.randoms())
def test_drawn_integer_problems_are_solved_to_the_last_digit(
    kernels: Any, rows: int, columns: int, maximize: bool, values: int, random: Any
) -> None:
    numbers = [random.randint(-values, values) for _ in range(rows * columns)]
    cost = torch.tensor(numbers, dtype=torch.float32).reshape(1, rows, columns)
    chosen = assign(cost.to(DEVICE), maximize=maximize, backend=kernels)[0].tolist()
    pairs = [(row, column) for column, row in enumerate(chosen) if row != -1]
    assert len({row for row, _ in pairs}) == len(pairs) == min(rows, columns)
    matrix = cost[0].double().numpy()
    best = matrix[linear_sum_assignment(matrix, maximize=maximize)].sum()
    assert sum(matrix[pair] for pair in pairs) == best


@EACH_KERNEL
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_all_entries_not_finite_still_give_an_assignment(kernels: Any, bad: float, dtype: torch.dtype) -> None:
    cost = torch.full((2, 4, 3), bad, dtype=dtype, device=DEVICE)
    counts = torch.tensor([3, 1], device=DEVICE)
    solution = solve_assignment(cost, counts, backend=kernels)
    assert sorted(set(solution.row_of_column[0].tolist())) == sorted(solution.row_of_column[0].tolist())
    assert (solution.row_of_column >= 0).tolist() == [[True] * 3, [True, False, False]]
    assert solution.status.tolist() == [3, 3]


@EACH_KERNEL
def test_a_bad_problem_does_not_touch_its_neighbors(kernels: Any) -> None:
    cost = problems("random", (3, 8, 5)).float()
    clean = assign(cost.to(DEVICE), backend=kernels)
    cost[1, ::2] = math.nan
    solution = solve_assignment(cost.to(DEVICE), backend=kernels)
    assert solution.status.tolist() == [0, 3, 0]
    assert torch.equal(solution.row_of_column[::2], clean[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_check_names_the_problem(kind: Any) -> None:
    cost = torch.ones(3, 4, 2, device=DEVICE)
    assign(cost, backend=kind, check=True)
    cost[1, 0, 1] = math.nan
    counts = torch.tensor([2, 1, 2], device=DEVICE)
    assign(cost, counts, backend=kind, check=True)  # past the count
    with pytest.raises(ValueError, match=r"the cost of problem \(1,\) is not finite \(1 of 3\)"):
        assign(cost, backend=kind, check=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 3, 7), (1, 5, 5), (2, 0, 3)])
def test_both_implementations_tell_the_same(kind: Any, shape: tuple[int, int, int]) -> None:
    """Unlike everything above this also holds the reference to its duals."""
    cost = problems("random", shape)
    solution = solve_assignment(cost.to(DEVICE), maximize=shape[0] == 2, backend=kind)
    other = solve_assignment(cost, maximize=shape[0] == 2, backend="reference")
    for name in ("row_of_column", "column_of_row", "status"):
        assert torch.equal(getattr(solution, name).cpu(), getattr(other, name))
    slack = cost - solution.row_dual.cpu()[..., None] - solution.column_dual.cpu()[:, None, :]
    assert ((slack if shape[0] != 2 else -slack) >= -1e-12).all()
    assert [field.dtype for field in solution] == [field.dtype for field in other]


@EACH_KERNEL
@pytest.mark.parametrize("largest", [torch.finfo(torch.float32).max, 2.0**100, 1e-30, 2.0**-120])
def test_costs_of_any_size_still_beat_infinity(kernels: Any, largest: float) -> None:
    cost = torch.tensor([[[1.0, math.inf], [-1.0, 1.0], [math.nan, -math.inf]]]) * largest
    solution = solve_assignment(cost.to(DEVICE), backend=kernels)
    assert solution.row_of_column.tolist() == [[0, 1]]
    assert solution.status.tolist() == [1]


# Cost

PREDICTIONS = [
    # leading, queries, classes, counts, size
    ((), 12, 3, [1, 0, 3, 2], 3),
    ((2, 2), 5, 2, [2], 2),
    ((), 70, 9, [17], 17),
    ((3,), 1, 5, [3, 0], 5),
    ((1,), 17, 11, [0, 0], 1),
    ((2,), 3, 4, [7, 2], 9),
    ((), 5, 67, [3, 7], 7),  # more classes than any block has, and more targets than queries
]


@EACH_KERNEL
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize("case", PREDICTIONS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_cost_is_the_loop_over_pairs(
    kernels: Any, case: Any, class_cost: Any, dtype: torch.dtype, error: float
) -> None:
    leading, queries, classes, counts, size = case
    targets = random_targets(counts, size, classes - (class_cost == "softmax"), seed=8)
    logits = random_logits(*leading, len(counts), queries, classes, seed=8, dtype=dtype)
    boxes = random_boxes(*leading, len(counts), queries, seed=9, dtype=dtype)
    options: Any = {"weights": WEIGHTS, "class_cost": class_cost, "backend": kernels}
    got = pairwise_cost(logits.to(DEVICE), boxes.to(DEVICE), on_device(targets), **options)
    assert got.dtype == dtype
    wanted = costs(logits, boxes, targets, WEIGHTS, class_cost)
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=error, atol=error)


@EACH_KERNEL
@pytest.mark.parametrize("shape", [((), 0, 3, [0, 0], 2), ((), 3, 4, [], 2), ((2,), 3, 4, [0, 0], 0)])
def test_nothing_costs_nothing_and_matches_nothing(kernels: Any, shape: Any) -> None:
    leading, queries, classes, counts, size = shape
    targets = on_device(random_targets(counts, size, 2, seed=8))
    logits = torch.zeros(*leading, len(counts), queries, classes, device=DEVICE)
    boxes = torch.zeros(*leading, len(counts), queries, 4, device=DEVICE)
    assert pairwise_cost(logits, boxes, targets, backend=kernels).shape == (*leading, len(counts), queries, size)
    got = match(logits, boxes, targets, backend=kernels)
    assert got.shape == (*leading, len(counts), size)
    assert (got == -1).all()


@EACH_KERNEL
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_low_precision_adds_one_rounding(kernels: Any, dtype: torch.dtype, error: float, class_cost: Any) -> None:
    """Half a unit in the last place; a whole one in bfloat16, to which Triton's interpreter truncates."""
    targets = random_targets([3, 2], 3, 2, seed=23, dtype=torch.float32)
    logits, boxes = random_logits(2, 12, 3, seed=23, dtype=dtype), random_boxes(2, 12, seed=23, dtype=dtype)
    options: Any = {"class_cost": class_cost, "backend": kernels}
    got = pairwise_cost(logits.to(DEVICE), boxes.to(DEVICE), on_device(targets), **options)
    assert got.dtype == dtype
    wanted = costs(logits, boxes, targets, MatchWeights(), class_cost)
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=1.01 * error, atol=1e-5)


@EACH_KERNEL
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_extreme_logits_and_boxes_without_area_are_finite_and_the_references(kernels: Any, class_cost: Any) -> None:
    logits = torch.tensor([[[300.0, -300.0, 0.0], [-300.0, 300.0, 300.0], [0.0, -math.inf, 1.0]]])
    logits = logits if class_cost == "softmax" else logits.clamp(min=-300)
    sizes = [[0.0, 0.0], [0.5, 0.5], [-0.5, 0.5], [0.0, 1.0], [-1.0, -0.1]]
    boxes = torch.tensor([[[0.5, 0.5, *size] for size in sizes]])
    targets = Targets(torch.tensor([[0, 1, 0, 1, 0]]), boxes, torch.tensor([5], dtype=torch.int32))
    arguments = (logits.to(DEVICE), boxes[:, :3].to(DEVICE), on_device(targets))
    got = pairwise_cost(*arguments, class_cost=class_cost, backend=kernels)
    assert got.isfinite().all()
    torch.testing.assert_close(got, pairwise_cost(*arguments, class_cost=class_cost, backend="reference"))


@EACH_KERNEL
@pytest.mark.parametrize("masked", [slice(0, 64), slice(64, 128), slice(16, 32)])
def test_whole_blocks_of_classes_may_be_masked(kernels: Any, masked: slice) -> None:
    """By -inf: they have no share in a softmax. At more targets than queries, and at fewer."""
    targets = random_targets([2, 6], 6, 130, seed=36)
    targets.labels[:] = 129
    logits, boxes = random_logits(2, 3, 130, seed=36), random_boxes(2, 3, seed=36)
    logits[..., masked] = -math.inf
    got = match(logits.to(DEVICE), boxes.to(DEVICE), on_device(targets), check=True, backend=kernels)
    cost = pairwise_cost(logits.to(DEVICE), boxes.to(DEVICE), on_device(targets), backend=kernels).cpu()
    wanted = costs(logits, boxes, targets, MatchWeights(), "softmax")
    torch.testing.assert_close(cost, wanted, rtol=1e-12, atol=1e-12)
    check_match(got.cpu(), wanted, [2, 6], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_without_a_logit_costs_nan_and_is_reported(kind: Any) -> None:
    targets = random_targets([3], 3, 2, seed=30)
    targets.labels[0, 1], targets.labels[0, 2] = 3, -1
    logits, boxes = random_logits(1, 5, 3, seed=30), random_boxes(1, 5, seed=30)
    arguments = (logits.to(DEVICE), boxes.to(DEVICE), on_device(targets))
    for class_cost in ("softmax", "focal"):
        cost = pairwise_cost(*arguments, class_cost=class_cost, backend=kind)
        assert cost.isnan().all(-2).tolist() == [[False, True, True]]
        matched = match(*arguments, class_cost=class_cost, backend=kind)[0].tolist()
        assert len(set(matched)) == 3
        assert matched[0] == cost[0, :, 0].argmin()
        with pytest.raises(ValueError, match=r"^targets.labels\[0, 1\] must be 0 to 2, got 3$"):
            match(*arguments, class_cost=class_cost, backend=kind, check=True)


# Matching


def check_match(got: Tensor, cost: Tensor, counts: list[int], error: float) -> None:
    """One-to-one, complete, -1 elsewhere, and as cheap as SciPy's on the cost of the loop over pairs."""
    *leading, batch, queries, size = cost.shape
    assert got.shape == (*leading, batch, size)
    assert got.dtype == torch.int64
    for problem, (chosen, matrix) in enumerate(zip(got.flatten(0, -2).tolist(), cost.flatten(0, -3), strict=True)):
        count = counts[problem % batch]
        pairs = [(query, target) for target, query in enumerate(chosen) if query != -1]
        assert all(0 <= query < queries and target < count for query, target in pairs)
        assert len({query for query, _ in pairs}) == len(pairs) == min(queries, count)
        values = matrix[:, :count].numpy()
        best = values[linear_sum_assignment(values)].sum()
        assert math.fsum(values[pair] for pair in pairs) == pytest.approx(best, abs=error * max(len(pairs), 1))


@EACH_KERNEL
@pytest.mark.parametrize("path", ["fused", "through a cost matrix"])
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize("case", PREDICTIONS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_match_is_as_cheap_as_scipys(
    kernels: Any,
    case: Any,
    class_cost: Any,
    dtype: torch.dtype,
    error: float,
    path: str,
    allocated: Any,
    monkeypatch: Any,
) -> None:
    matching = pytest.importorskip("actdet_kernels.triton.matching")
    leading, queries, classes, counts, size = case
    if path != "fused":
        monkeypatch.setattr(matching, "FUSED_BLOCK", {dtype: 0})
    targets = random_targets(counts, size, classes - (class_cost == "softmax"), seed=13)
    logits = random_logits(*leading, len(counts), queries, classes, seed=13, dtype=dtype)
    boxes = random_boxes(*leading, len(counts), queries, seed=14, dtype=dtype)
    options: Any = {"weights": WEIGHTS, "class_cost": class_cost, "backend": kernels}
    allocated.clear()
    got = match(logits.to(DEVICE), boxes.to(DEVICE), on_device(targets), check=True, **options)
    # In one launch, which keeps the costs of the smaller side.
    if path == "fused":
        problems = (*leading, len(counts))
        kept = [(*problems, min(queries, size), matching.block_size(queries, size))] if kernels == "triton" else []
        assert allocated == [(*problems, size), problems, *kept]
    check_match(got.cpu(), costs(logits, boxes, targets, WEIGHTS, class_cost), counts, error)


@EACH_KERNEL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_match_takes_low_precision(kernels: Any, dtype: torch.dtype) -> None:
    targets = random_targets([3, 2], 3, 2, seed=31, dtype=torch.float32)
    logits, boxes = random_logits(2, 12, 3, seed=31, dtype=dtype), random_boxes(2, 12, seed=31, dtype=dtype)
    got = match(logits.to(DEVICE), boxes.to(DEVICE), on_device(targets), backend=kernels)
    check_match(got.cpu(), costs(logits, boxes, targets, MatchWeights(), "softmax"), [3, 2], 1e-5)


@EACH_KERNEL
def test_match_takes_any_strides(kernels: Any) -> None:
    targets = on_device(random_targets([2, 4, 3], 4, 2, seed=32))
    logits = random_logits(2, 3, 6, 6, seed=32).to(DEVICE)
    boxes = random_boxes(2, 6, 3, seed=33).to(DEVICE).transpose(1, 2)
    strided = targets._replace(counts=targets.counts.repeat_interleave(2)[::2], labels=targets.labels.mT.clone().mT)
    for view in (logits[..., ::2], logits.mT[..., :3], logits[:1].expand(2, -1, -1, -1)[..., 1:4]):
        got = match(view, boxes, strided, backend=kernels)
        assert torch.equal(got, match(view.contiguous(), boxes.contiguous(), targets, backend=kernels))
        cost = costs(view.cpu(), boxes.cpu(), Targets(*(field.cpu() for field in targets)), MatchWeights(), "softmax")
        check_match(got.cpu(), cost, [2, 4, 3], 1e-12)


@EACH_KERNEL
def test_bad_predictions_stay_within_their_problem(kernels: Any) -> None:
    targets = on_device(random_targets([3, 3, 3], 3, 2, seed=34))
    logits, boxes = random_logits(2, 3, 5, 3, seed=34).to(DEVICE), random_boxes(2, 3, 5, seed=34).to(DEVICE)
    clean = match(logits, boxes, targets, backend=kernels)
    logits[0, 1, :4], boxes[1, 2] = math.nan, math.inf
    got = match(logits, boxes, targets, backend=kernels)
    untouched = torch.tensor([[True, False, True], [True, True, False]], device=DEVICE)
    assert torch.equal(got[untouched], clean[untouched])
    assert (got.sort(-1).values.diff(dim=-1) > 0).all()
    assert 4 in got[0, 1].tolist()  # the one finite query
    with pytest.raises(ValueError, match=r"the cost of problem \(0, 1\) is not finite \(2 of 6\)"):
        match(logits, boxes, targets, backend=kernels, check=True)

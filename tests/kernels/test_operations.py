"""The public operations against torchvision, SciPy, brute force and plain loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import (
    MatchWeights,
    Targets,
    assign,
    batch_norm,
    explain_backend,
    frame_levels,
    gather_clips,
    giou_loss,
    match,
    pad_targets,
    pairwise_cost,
    pairwise_giou,
    set_loss,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from tests.kernels.device import HAS_CPP
from tests.kernels.oracles import (
    LossCase,
    best_assignment,
    costs,
    criterion,
    loss_case,
    random_boxes,
    random_logits,
    random_targets,
)

WEIGHTS = MatchWeights(1.5, 4.0, 3.0)  # unlike each other and unlike the defaults


def corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


def close(got: Tensor, wanted: Tensor, error: float) -> None:
    assert got.shape == wanted.shape
    torch.testing.assert_close(got.double(), wanted.double(), rtol=error, atol=error)


# Generalized IoU


@pytest.mark.parametrize(("n", "m"), [(1, 1), (12, 3), (100, 20), (3, 7), (0, 2), (2, 0)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_pairwise_giou_is_torchvisions(n: int, m: int, dtype: torch.dtype, error: float) -> None:
    a, b = random_boxes(n, seed=0), random_boxes(m, seed=1)
    got = pairwise_giou(a.to(dtype), b.to(dtype))
    assert got.dtype == dtype
    close(got, generalized_box_iou(corners(a), corners(b)), error)


def test_pairwise_giou_takes_leading_dimensions() -> None:
    a, b = random_boxes(2, 3, 5, seed=2), random_boxes(3, 4, seed=3)
    got = pairwise_giou(a, b)
    assert got.shape == (2, 3, 5, 4)
    for i in range(2):
        for j in range(3):
            close(got[i, j], generalized_box_iou(corners(a[i, j]), corners(b[j])), 1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 5), (0,)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_giou_loss_is_torchvisions(shape: tuple[int, ...], dtype: torch.dtype, error: float) -> None:
    a, b = random_boxes(*shape, seed=4), random_boxes(*shape, seed=5)
    got = giou_loss(a.to(dtype), b.to(dtype))
    assert got.dtype == dtype
    close(got, generalized_box_iou_loss(corners(a), corners(b), eps=0.0), error)


@pytest.mark.parametrize(
    ("a", "b", "giou"),
    [
        ((0.5, 0.5, 1.0, 1.0), (0.5, 0.5, 1.0, 1.0), 1.0),  # identical
        ((0.25, 0.25, 0.5, 0.5), (0.5, 0.25, 0.5, 0.5), 1 / 3),  # half shifted: union is the hull
        ((0.5, 0.5, 1.0, 1.0), (0.25, 0.25, 0.5, 0.5), 1 / 4),  # a quarter inside
        ((0.125, 0.5, 0.25, 1.0), (0.875, 0.5, 0.25, 1.0), -1 / 2),  # two stripes, half of the hull between them
        ((0.25, 0.25, 0.5, 0.5), (0.75, 0.75, 0.5, 0.5), -1 / 2),  # touch at a corner
        ((0.25, 0.25, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 1 / 7 - (9 - 7) / 9),  # overlap by a sixteenth
    ],
)
def test_giou_of_boxes_computed_by_hand(a: tuple[float, ...], b: tuple[float, ...], giou: float) -> None:
    first, second = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    for one, other in ((first, second), (second, first)):
        assert giou_loss(one, other).item() == pytest.approx(1 - giou, abs=1e-15)
        assert pairwise_giou(one[None], other[None]).item() == pytest.approx(giou, abs=1e-15)


DEGENERATE = (
    # a point on itself, two points apart, a point within a box, a line on itself, a line across a box
    ((0.5, 0.5, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0), 0.0),
    ((0.25, 0.25, 0.0, 0.0), (0.75, 0.75, 0.0, 0.0), -1.0),
    ((0.25, 0.5, 0.0, 0.0), (0.75, 0.5, 0.0, 0.0), 0.0),
    ((0.5, 0.5, 0.0, 0.0), (0.5, 0.5, 0.5, 0.5), 0.0),
    ((0.5, 0.5, 0.0, 0.5), (0.5, 0.5, 0.0, 0.5), 0.0),
    ((0.5, 0.5, 0.0, 1.0), (0.5, 0.5, 0.5, 0.5), 0.0 - 1 / 2),
    # a negative size counts as zero
    ((0.5, 0.5, -0.5, -0.5), (0.5, 0.5, 0.5, 0.5), 0.0),
    ((0.5, 0.5, -1.0, 1.0), (0.5, 0.5, 0.5, 0.5), 0.0 - 1 / 2),
    ((0.5, 0.5, -0.5, 0.5), (0.5, 0.5, -0.25, 0.5), 0.0),
)


@pytest.mark.parametrize(("a", "b", "giou"), DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_degenerate_boxes_give_finite_values_and_gradients(
    a: tuple[float, ...], b: tuple[float, ...], giou: float, dtype: torch.dtype
) -> None:
    first, second = (torch.tensor(box, dtype=dtype, requires_grad=True) for box in (a, b))
    loss = giou_loss(first, second)
    assert loss.item() == 1 - giou
    assert pairwise_giou(second[None], first[None]).item() == giou
    loss.backward(torch.tensor(-1.7, dtype=dtype))
    for box in (first, second):
        assert box.grad is not None
        assert box.grad.isfinite().all()


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ],
)
@pytest.mark.parametrize("side", [2**-8, 2**-9, 2**-10])
def test_small_boxes_give_finite_gradients(side: float, dtype: torch.dtype) -> None:
    """Boxes of one to four thousandths of the picture: small, and everyday in aerial or crowd footage."""
    a = torch.tensor([[0.5, 0.5, side, side]] * 2, dtype=dtype, requires_grad=True)
    b = torch.tensor([[0.5, 0.5, side, side], [0.25, 0.5, side, side]], dtype=dtype)
    giou_loss(a, b).backward(torch.tensor([1.3, -0.7], dtype=dtype))
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_giou_loss_gradients_in_float64() -> None:
    a, b = random_boxes(40, seed=6).requires_grad_(), random_boxes(40, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(giou_loss, (a, b))
    assert torch.autograd.gradcheck(pairwise_giou, (a[:6], b[:4]))


# Cost


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize(
    ("leading", "queries", "classes", "counts", "size"),
    [
        ((), 12, 3, [1, 0, 3, 2], 3),
        ((4,), 12, 3, [1, 2], 4),
        ((2, 3), 5, 2, [2], 2),
        ((), 100, 92, [7], 7),
        ((), 1, 5, [3, 0], 5),
        ((1,), 17, 11, [0, 0], 1),
        ((), 3, 4, [], 2),
        ((), 3, 4, [0, 0], 0),
    ],
)
def test_cost_is_the_loop_over_pairs(
    leading: tuple[int, ...], queries: int, classes: int, counts: list[int], size: int, class_cost: Any
) -> None:
    labels = classes - (class_cost == "softmax")
    targets = random_targets(counts, size, labels, seed=8)
    logits = random_logits(*leading, len(counts), queries, classes, seed=8)
    boxes = random_boxes(*leading, len(counts), queries, seed=9)
    for weights in (WEIGHTS, MatchWeights()):
        got = pairwise_cost(logits, boxes, targets, weights=weights, class_cost=class_cost)
        close(got, costs(logits, boxes, targets, weights, class_cost), 1e-12)


def test_the_defaults_are_the_reports() -> None:
    assert MatchWeights() == (2.0, 5.0, 2.0)
    targets = random_targets([2], 2, 2, seed=10)
    logits, boxes = random_logits(1, 4, 3, seed=10), random_boxes(1, 4, seed=10)
    close(pairwise_cost(logits, boxes, targets), costs(logits, boxes, targets, MatchWeights(2, 5, 2), "softmax"), 1e-12)


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_extreme_logits_keep_the_cost_finite(class_cost: Any) -> None:
    logits = torch.tensor([[[300.0, -300.0, 0.0], [-300.0, 300.0, 300.0]]])
    targets = random_targets([2], 2, 2, seed=11, dtype=torch.float32)
    cost = pairwise_cost(logits, random_boxes(1, 2, seed=11, dtype=torch.float32), targets, class_cost=class_cost)
    assert cost.isfinite().all()


# Assignment


def check_assignment(cost: Tensor, got: Tensor, counts: list[int], *, maximize: bool = False) -> None:
    """`got` is one-to-one, complete, -1 elsewhere, and as cheap as SciPy's."""
    batch, rows, columns = cost.shape
    assert got.shape == (batch, columns)
    assert got.dtype == torch.int64
    for problem, count in enumerate(counts):
        chosen = got[problem].tolist()
        pairs = [(row, column) for column, row in enumerate(chosen) if row != -1]
        assert all(0 <= row < rows and column < count for row, column in pairs)
        assert len({row for row, _ in pairs}) == len(pairs) == min(rows, count)
        matrix = cost[problem, :, :count].double().numpy()
        wanted = matrix[linear_sum_assignment(matrix, maximize=maximize)].sum()
        assert math.fsum(matrix[row, column] for row, column in pairs) == pytest.approx(wanted, rel=1e-12, abs=1e-12)


SHAPES = [(1, 1, 1), (8, 12, 3), (2, 100, 20), (3, 7, 7), (4, 3, 9), (2, 1, 5), (2, 5, 1), (1, 64, 64), (2, 300, 13)]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("kind", ["random", "integer", "tied", "duplicate", "negative", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_assignment_costs_what_scipys_does(shape: tuple[int, int, int], kind: str, maximize: bool) -> None:
    rng = np.random.default_rng([*shape, len(kind)])
    values = {
        "random": lambda: rng.random(shape),
        "integer": lambda: rng.integers(0, 10, shape).astype(float),
        "tied": lambda: np.full(shape, 3.0),
        "duplicate": lambda: np.repeat(rng.random((shape[0], 1, shape[2])), shape[1], axis=1),
        "negative": lambda: -1e6 * rng.random(shape),
        "float32": lambda: rng.standard_normal(shape).astype(np.float32),
    }[kind]()
    cost = torch.from_numpy(values)
    check_assignment(cost, assign(cost, maximize=maximize), [shape[2]] * shape[0], maximize=maximize)
    counts = rng.integers(0, shape[2] + 1, shape[0]).tolist()
    got = assign(cost, torch.tensor(counts, dtype=torch.int32), maximize=maximize)
    check_assignment(cost, got, counts, maximize=maximize)


def test_a_unique_assignment_comes_out_as_it_is() -> None:
    cost = torch.tensor(
        [[[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]], [[9.0, 9.0, 0.0]] * 2 + [[0.0, 9.0, 9.0]]]
    )
    assert assign(cost[:1]).tolist() == [[1, 0, 2]]
    assert assign(cost[:1], maximize=True).tolist() == [[0, 2, 1]]
    assert assign(cost, torch.tensor([3, 1])).tolist() == [[1, 0, 2], [2, -1, -1]]


def test_columns_past_the_count_may_hold_anything() -> None:
    cost = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    counts = torch.tensor([2, 0, 5], dtype=torch.int32)
    clean = assign(cost, counts)
    dirty = cost.clone()
    dirty[0, :, 2:], dirty[1] = -1e9, math.nan
    assert torch.equal(assign(dirty, counts), clean)
    assert clean[1].tolist() == [-1] * 5


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (2, 0, 3), (0, 0, 0), (3, 1, 1)])
def test_empty_problems_assign_what_there_is(shape: tuple[int, int, int]) -> None:
    got = assign(torch.zeros(shape))
    assert got.tolist() == [[0] * shape[2] if shape[1] else [-1] * shape[2] for _ in range(shape[0])]


def test_assignment_leaves_the_cost_and_its_graph_alone() -> None:
    cost = torch.tensor([[[1.0, math.nan], [0.0, 2.0]]], requires_grad=True)
    before = cost.detach().clone()
    assert not assign(cost, maximize=True).requires_grad
    torch.testing.assert_close(cost.detach(), before, equal_nan=True)


entries = st.one_of(st.integers(-4, 4).map(float), st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30]))
problems = st.tuples(st.integers(0, 4), st.integers(0, 4)).flatmap(
    lambda shape: st.tuples(
        st.lists(
            st.lists(st.lists(entries, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]),
            min_size=1,
            max_size=3,
        ),
        st.just(shape),
    )
)


@settings(max_examples=200, deadline=None)
@given(problems, st.booleans(), st.data())
def test_not_finite_entries_are_taken_only_where_nothing_else_is_left(
    problem: tuple[list[list[list[float]]], tuple[int, int]], maximize: bool, data: st.DataObject
) -> None:
    matrices, (rows, columns) = problem
    counts = data.draw(st.lists(st.integers(0, columns), min_size=len(matrices), max_size=len(matrices)))
    cost = torch.tensor(matrices, dtype=torch.float64).reshape(len(matrices), rows, columns)
    got = assign(cost, torch.tensor(counts, dtype=torch.int32), maximize=maximize).tolist()
    sign = -1 if maximize else 1
    for matrix, count, chosen in zip(matrices, counts, got, strict=True):
        taken = [(row, column) for column, row in enumerate(chosen) if row != -1]
        assert all(column < count for _, column in taken)
        assert len({row for row, _ in taken}) == len(taken) == min(rows, count)
        bad, best = best_assignment([[sign * value for value in row[:count]] for row in matrix], rows, count)
        values = [sign * matrix[row][column] for row, column in taken]
        finite = [value for value in values if math.isfinite(value)]
        assert len(values) - len(finite) == bad
        largest = max((abs(value) for row in matrix for value in row if math.isfinite(value)), default=0)
        assert math.fsum(finite) == pytest.approx(best, abs=1e-12 * max(largest, 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_all_entries_not_finite_still_give_an_assignment(bad: float, dtype: torch.dtype) -> None:
    got = assign(torch.full((2, 4, 3), bad, dtype=dtype), torch.tensor([3, 1]))
    assert sorted(set(got[0].tolist())) == sorted(got[0].tolist())
    assert (got[0] >= 0).all()
    assert (got[1] >= 0).tolist() == [True, False, False]


def test_the_largest_float32_costs_still_beat_infinity() -> None:
    largest = torch.finfo(torch.float32).max
    cost = torch.tensor([[[largest, math.inf], [-largest, largest], [math.nan, -math.inf]]])
    assert assign(cost).tolist() == [[0, 1]]


# Matching


@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize(
    ("leading", "queries", "counts", "size"),
    [((), 5, [2, 0, 3, 1], 3), ((3,), 4, [1, 3], 4), ((2, 2), 6, [2], 2), ((), 2, [4, 1, 0], 4), ((1,), 1, [2], 3)],
)
def test_match_is_the_cheapest_of_all_assignments(
    leading: tuple[int, ...], queries: int, counts: list[int], size: int, class_cost: Any
) -> None:
    batch = len(counts)
    targets = random_targets(counts, size, 2, seed=13)
    logits = random_logits(*leading, batch, queries, 3, seed=13)
    boxes = random_boxes(*leading, batch, queries, seed=14)
    got = match(logits, boxes, targets, weights=WEIGHTS, class_cost=class_cost)
    assert got.shape == (*leading, batch, size)
    assert got.dtype == torch.int64
    cost = costs(logits, boxes, targets, WEIGHTS, class_cost)
    flat = zip(cost.reshape(-1, queries, size).tolist(), got.reshape(-1, size).tolist(), strict=True)
    for problem, (matrix, chosen) in enumerate(flat):
        count = counts[problem % batch]
        taken = [(row, column) for column, row in enumerate(chosen) if row != -1]
        assert all(column < count for _, column in taken)
        assert len({row for row, _ in taken}) == len(taken) == min(queries, count)
        _, best = best_assignment([row[:count] for row in matrix], queries, count)
        assert math.fsum(matrix[row][column] for row, column in taken) == pytest.approx(best, abs=1e-10)


def test_every_layer_is_matched_on_its_own() -> None:
    targets = pad_targets([{"labels": torch.tensor([0, 1]), "boxes": random_boxes(2, seed=15)}])
    boxes = torch.stack([targets.boxes, targets.boxes.flip(1)])  # the second layer found them the other way round
    assert match(torch.zeros(2, 1, 2, 3).double(), boxes, targets).tolist() == [[[0, 1]], [[1, 0]]]


# Set loss

LOSS_CASES: list[LossCase] = [
    ((), 12, 3, [1, 0, 3, 2], 3),
    ((4,), 12, 3, [1, 2], 4),
    ((2, 3), 5, 2, [2], 2),
    ((), 100, 92, [7, 3], 9),
    ((2,), 2, 5, [4, 1, 0], 4),  # more targets than queries: some go without
    ((3,), 4, 3, [0, 0], 2),  # no targets at all
    ((), 4, 3, [0, 0], 0),
]


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("case", LOSS_CASES)
def test_set_loss_and_its_gradients_are_the_loops(case: LossCase, class_loss: Any) -> None:
    logits, boxes, targets, matched = loss_case(*case, class_loss)
    inputs, others = ((logits.clone().requires_grad_(), boxes.clone().requires_grad_()) for _ in range(2))
    got = set_loss(*inputs, targets, matched, weights=WEIGHTS, no_object_weight=0.3, class_loss=class_loss)
    cls, l1, giou = criterion(*others, targets, matched, 0.3, class_loss)
    wanted = (WEIGHTS.cls * cls + WEIGHTS.l1 * l1 + WEIGHTS.giou * giou, cls, l1, giou)
    cotangents = torch.randn(4, generator=torch.Generator().manual_seed(19), dtype=torch.float64)
    zeros = [torch.zeros_like(value) for value in inputs]
    for mine, theirs, cotangent in zip(got, wanted, cotangents, strict=True):
        assert mine.shape == ()
        close(mine, theirs, 1e-12)
        found = torch.autograd.grad(mine, inputs, cotangent, retain_graph=True, allow_unused=True)
        if theirs.requires_grad:
            expected = torch.autograd.grad(theirs, others, cotangent, retain_graph=True, allow_unused=True)
        else:
            expected = [None, None]
        for one, other, zero in zip(found, expected, zeros, strict=True):
            close(zero if one is None else one, zero if other is None else other, 1e-12)
    mine = torch.autograd.grad(got, inputs, list(cotangents))
    used = [(value, cotangent) for value, cotangent in zip(wanted, cotangents, strict=True) if value.requires_grad]
    theirs = torch.autograd.grad([value for value, _ in used], others, [c for _, c in used], allow_unused=True)
    for one, other, zero in zip(mine, theirs, zeros, strict=True):
        close(one, zero if other is None else other, 1e-12)


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_set_loss_gradients_by_finite_differences(class_loss: Any) -> None:
    logits, boxes, targets, matched = loss_case((2,), 3, 3, [2, 0, 1], 2, class_loss)

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(set_loss(logits, boxes, targets, matched, class_loss=class_loss))

    assert torch.autograd.gradcheck(terms, (logits.requires_grad_(), boxes.requires_grad_()))


def test_set_loss_by_hand() -> None:
    """One target, two queries with logits of zero: every figure follows on paper."""
    targets = pad_targets([{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.25, 0.25, 0.5, 0.5]])}])
    boxes = torch.tensor([[[0.9, 0.9, 0.1, 0.1], [0.5, 0.25, 0.5, 0.5]]])
    loss = set_loss(torch.zeros(1, 2, 3), boxes, targets, torch.tensor([[1]]))
    assert loss.cls.item() == pytest.approx(math.log(3))
    assert loss.l1.item() == pytest.approx(0.25)
    assert loss.giou.item() == pytest.approx(2 / 3)
    assert loss.total.item() == pytest.approx(2 * math.log(3) + 5 * 0.25 + 2 * 2 / 3)
    logits = torch.tensor([[[0.0, 0.0, math.log(2)], [0.0, math.log(2), 0.0]]])
    wanted = torch.tensor([[[0.0, 0.0, math.log(2)], [math.log(8), math.log(2), 0.0]]])
    assert set_loss(logits, boxes, targets, torch.tensor([[1]])).cls.item() == pytest.approx(math.log(2))
    # p(1) = 2/11 at weight 1, p(no_object) = 1/2 at weight 0.1
    cls = (math.log(11 / 2) + 0.1 * math.log(2)) / 1.1
    assert set_loss(wanted, boxes, targets, torch.tensor([[1]])).cls.item() == pytest.approx(cls)


def test_no_target_at_all_trains_the_class_alone() -> None:
    logits, boxes = random_logits(1, 2, 4, 3, seed=20).requires_grad_(), random_boxes(1, 2, 4, seed=20).requires_grad_()
    targets = pad_targets([{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}] * 2)
    loss = set_loss(logits, boxes, targets, match(logits, boxes, targets))
    assert (loss.l1.item(), loss.giou.item()) == (0, 0)
    assert loss.cls.item() == pytest.approx(-logits.log_softmax(-1)[..., -1].mean().item())
    loss.total.backward(torch.tensor(0.3, dtype=torch.float64))
    assert boxes.grad is not None
    assert (boxes.grad == 0).all()


def test_a_focal_label_may_be_the_last_logit() -> None:
    logits, boxes = random_logits(1, 2, 3, seed=21), random_boxes(1, 2, seed=21)
    targets = Targets(torch.tensor([[2]]), random_boxes(1, 1, seed=22), torch.tensor([1], dtype=torch.int32))
    matched = match(logits, boxes, targets, class_cost="focal")
    got = set_loss(logits, boxes, targets, matched, class_loss="focal").cls
    close(got, criterion(logits, boxes, targets, matched, 0.1, "focal")[0], 1e-12)


# Low precision: inputs are rounded first, so what is left is what the operation itself adds


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7), (torch.float32, 2**-23)])
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
def test_low_precision_costs_stay_near_float64(dtype: torch.dtype, eps: float, class_cost: Any) -> None:
    targets = random_targets([3, 2], 3, 2, seed=23, dtype=torch.float32)
    logits, boxes = random_logits(2, 12, 3, seed=23, dtype=dtype), random_boxes(2, 12, seed=23, dtype=dtype)
    rounded = targets._replace(boxes=targets.boxes.to(dtype).double())
    got = pairwise_cost(logits, boxes, targets, class_cost=class_cost)
    assert got.dtype == dtype
    wanted = costs(logits, boxes, rounded, MatchWeights(), class_cost)
    error = (got.double() - wanted).abs().max().item()
    assert error <= 4 * eps * wanted.abs().max().item()


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7), (torch.float32, 2**-23)])
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_low_precision_losses_stay_near_float64(dtype: torch.dtype, eps: float, class_loss: Any) -> None:
    logits, boxes, targets, matched = loss_case((2,), 12, 3, [3, 1, 2], 3, class_loss)
    mine = (logits.to(dtype).requires_grad_(), boxes.to(dtype).requires_grad_())
    exact = (mine[0].detach().double().requires_grad_(), mine[1].detach().double().requires_grad_())
    rounded = targets._replace(boxes=targets.boxes.to(dtype))
    got = set_loss(*mine, rounded, matched, class_loss=class_loss)
    wanted = criterion(*exact, rounded._replace(boxes=rounded.boxes.double()), matched, 0.1, class_loss)
    for name, value in zip(("cls", "l1", "giou"), wanted, strict=True):
        assert getattr(got, name).item() == pytest.approx(value.item(), rel=4 * eps)
    cotangent = torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64)
    found = torch.autograd.grad(got[1:], mine, list(cotangent.to(dtype)))
    expected = torch.autograd.grad(wanted, exact, list(cotangent))
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= 4 * eps * other.norm()


# Padding: NaN boxes and impossible labels past the count


@pytest.mark.parametrize("kind", ["softmax", "focal"])
def test_padding_never_reaches_values_or_gradients(kind: Any) -> None:
    class_loss: Any = {"softmax": "cross_entropy", "focal": "focal"}[kind]
    dirty = random_targets([1, 0, 2], 3, 2, seed=24)
    clean = Targets(
        torch.where(dirty.valid, dirty.labels, 0), torch.where(dirty.valid[..., None], dirty.boxes, 0.5), dirty.counts
    )
    assert dirty.boxes.isnan().any()
    assert not clean.boxes.isnan().any()
    results = []
    for targets in (dirty, clean):
        logits, boxes = random_logits(2, 3, 5, 3, seed=24).requires_grad_(), random_boxes(2, 3, 5, seed=24)
        boxes.requires_grad_()
        cost = pairwise_cost(logits, boxes, targets, class_cost=kind)
        matched = match(logits, boxes, targets, class_cost=kind)
        loss = set_loss(logits, boxes, targets, matched, class_loss=class_loss)
        gradients = torch.autograd.grad(loss, [logits, boxes], list(torch.tensor([0.3, -1.1, 0.8, 2.0]).double()))
        results.append([cost, matched, *loss, *gradients])
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    assert (results[0][0].movedim(-2, -1)[:, ~dirty.valid] == 0).all()
    assert (results[0][1][:, ~dirty.valid] == -1).all()


def test_a_matching_past_the_count_counts_for_nothing() -> None:
    targets = random_targets([1], 3, 2, seed=25)
    logits, boxes = random_logits(1, 4, 3, seed=25), random_boxes(1, 4, seed=25)
    one = set_loss(logits, boxes, targets, torch.tensor([[2, -1, -1]]))
    other = set_loss(logits, boxes, targets, torch.tensor([[2, 0, 3]]))
    assert [value.item() for value in one] == [value.item() for value in other]


def test_cost_and_matching_carry_no_graph() -> None:
    targets = random_targets([1], 1, 2, seed=26)
    logits, boxes = random_logits(1, 4, 3, seed=26).requires_grad_(), random_boxes(1, 4, seed=26).requires_grad_()
    assert not pairwise_cost(logits, boxes, targets).requires_grad
    assert not match(logits, boxes, targets).requires_grad


# Errors

GOOD = random_targets([1, 2], 2, 2, seed=27, dtype=torch.float32, garbage=False)
LOGITS, BOXES = torch.zeros(2, 4, 3), torch.full((2, 4, 4), 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(4, 3)}, r"logits \(..., B, N, C\) and boxes .* must agree, got \(4, 3\)"),
        ({"boxes": torch.zeros(2, 4, 5)}, r"must agree, got \(2, 4, 3\) and \(2, 4, 5\)"),
        ({"boxes": torch.zeros(2, 5, 4)}, "must agree"),
        ({"logits": torch.zeros(3, 2, 4, 3)}, "must agree"),
        (
            {"logits": torch.zeros(3, 4, 3), "boxes": torch.zeros(3, 4, 4)},
            r"targets.labels must be \(3, 2\) for a batch",
        ),
        ({"targets": GOOD._replace(labels=GOOD.labels[:1])}, r"targets.labels must be \(2, 2\) .*got \(1, 2\)"),
        ({"targets": GOOD._replace(boxes=GOOD.boxes[:, :1])}, r"targets.boxes must be \(2, 2, 4\)"),
        ({"targets": GOOD._replace(boxes=GOOD.boxes[..., :3])}, r"targets.boxes must be \(2, 2, 4\)"),
        ({"targets": GOOD._replace(counts=GOOD.counts[None])}, r"targets.counts must be \(2,\)"),
        ({"targets": GOOD._replace(counts=torch.tensor(1))}, r"targets.counts must be \(2,\)"),
        ({"targets": GOOD._replace(labels=GOOD.labels.int())}, "targets.labels must be int64, got torch.int32"),
        ({"targets": GOOD._replace(labels=GOOD.labels.float())}, "targets.labels must be int64"),
        ({"targets": GOOD._replace(labels=torch.tensor(1))}, r"targets.labels must be \(2, 0\) .*got \(\)"),
        ({"logits": LOGITS.long()}, "must be floating point, got torch.int64"),
        ({"boxes": BOXES.int()}, "must be floating point"),
        ({"targets": GOOD._replace(boxes=GOOD.boxes.long())}, "targets.boxes torch.int64"),
        ({"targets": GOOD.to("meta")}, "targets.labels is on meta, logits on cpu"),
        ({"targets": GOOD._replace(boxes=GOOD.boxes.to("meta"))}, "targets.boxes is on meta, logits on cpu"),
        ({"targets": GOOD._replace(counts=GOOD.counts.to("meta"))}, "targets.counts is on meta, logits on cpu"),
        ({"boxes": BOXES.to("meta")}, "boxes (is|are) on meta"),
    ],
)
def test_what_disagrees_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"logits": LOGITS, "boxes": BOXES, "targets": GOOD} | changes
    for operation in (pairwise_cost, match, lambda **kept: set_loss(**kept, matched=torch.zeros(2, 2).long())):
        with pytest.raises(ValueError, match=message):
            operation(**arguments)


@pytest.mark.parametrize("shape", [(2, 3), (2,), (1, 2), (3, 2, 2), (2, 2, 1)])
def test_a_matching_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"matched must be \(2, 2\), got \("):
        set_loss(LOGITS, BOXES, GOOD, torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("matched", [torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64, device="meta")])
def test_a_matching_of_another_kind_is_refused(matched: Tensor) -> None:
    with pytest.raises(ValueError, match="matched"):
        set_loss(LOGITS, BOXES, GOOD, matched)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: assign(torch.zeros(3, 2)), r"cost must be \(B, N, M\), got \(3, 2\)"),
        (lambda: assign(torch.zeros(1, 1, 3, 2)), r"cost must be \(B, N, M\)"),
        (lambda: assign(torch.zeros(2, 3, 2), torch.tensor([1])), r"counts must be \(2,\) for 2 problems, got \(1,\)"),
        (lambda: assign(torch.zeros(2, 3, 2), torch.tensor(1)), r"counts must be \(2,\)"),
        (lambda: giou_loss(torch.zeros(3), torch.zeros(4)), r"boxes must be \(..., 4\), got \(3,\) and \(4,\)"),
        (lambda: giou_loss(torch.zeros(2, 4), torch.zeros(2, 5)), r"boxes must be \(..., 4\)"),
        (lambda: pairwise_giou(torch.zeros(4), torch.zeros(1, 4)), r"boxes must be \(..., N, 4\)"),
        (lambda: pairwise_giou(torch.zeros(1, 4), torch.zeros(4)), r"boxes must be \(..., N, 4\)"),
        (lambda: pairwise_giou(torch.zeros(2, 3), torch.zeros(2, 4)), r"boxes must be \(..., N, 4\)"),
        (lambda: pairwise_giou(torch.zeros(2, 4), torch.zeros(2, 3)), r"boxes must be \(..., N, 4\)"),
        (
            lambda: giou_loss(torch.ones(4).int(), torch.ones(4)),
            "must be floating point, got torch.int32 and torch",
        ),
        (
            lambda: giou_loss(torch.ones(4).byte(), torch.ones(4).byte()),
            "must be floating point, got torch.uint8",
        ),
        (lambda: pairwise_giou(torch.ones(1, 4), torch.ones(1, 4).long()), "boxes must be floating point"),
        (
            lambda: giou_loss(torch.ones(4), torch.ones(4, device="meta")),
            "must be on one device, got cpu and meta",
        ),
        (
            lambda: pairwise_cost(LOGITS, BOXES, GOOD, class_cost="sigmoid"),  # pyright: ignore[reportArgumentType]
            "class_cost must be .*got 'sigmoid'",
        ),
        (
            lambda: match(LOGITS, BOXES, GOOD, class_cost="l2"),  # pyright: ignore[reportArgumentType]
            "class_cost must be one of 'softmax', 'focal', 'varifocal', 'quality_focal', got 'l2'",
        ),
        (
            lambda: set_loss(LOGITS, BOXES, GOOD, torch.zeros(2, 2).long(), class_loss="softmax"),  # pyright: ignore[reportArgumentType]
            "class_loss must be one of 'cross_entropy', 'focal', 'varifocal', 'quality_focal', got 'softmax'",
        ),
    ],
)
def test_other_shapes_and_choices_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


POOL = torch.arange(48, dtype=torch.uint8).view(2, 2, 4, 3)

OPERATIONS: dict[str, Callable[..., Any]] = {
    "pairwise_giou": lambda **kept: pairwise_giou(BOXES, BOXES, **kept),
    "giou_loss": lambda **kept: giou_loss(BOXES, BOXES, **kept),
    "pairwise_cost": lambda **kept: pairwise_cost(LOGITS, BOXES, GOOD, **kept),
    "assign": lambda **kept: assign(torch.zeros(1, 2, 2), **kept),
    "match": lambda **kept: match(LOGITS, BOXES, GOOD, **kept),
    "set_loss": lambda **kept: set_loss(LOGITS, BOXES, GOOD, torch.tensor([[0, -1], [0, 1]]), **kept),
    "batch_norm": lambda **kept: batch_norm(
        torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.ones(2), torch.ones(2), relu=True, **kept
    ),
    "gather_clips": lambda **kept: gather_clips(
        POOL, torch.tensor([[1, 0]]), torch.ones(1, 4), torch.ones(1, 3), frame_levels(POOL), **kept
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_backend_that_cannot_run_raises(operation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run on cpu: "):
        operation(backend="triton")
    with pytest.raises(ValueError, match="backend must be 'auto', 'triton', 'cpu' or 'reference', got 'cuda'"):
        operation(backend="cuda")
    torch.testing.assert_close(operation(backend="auto"), operation(backend="reference"))


def test_the_automatic_choice_is_explained_in_one_line() -> None:
    text = explain_backend(torch.device("cpu"))
    assert text.startswith("cpu: C++ kernels, " if HAS_CPP else "reference: the C++ kernels were not built")
    assert "\n" not in text

"""Tubelets: cost, matching and set loss of both implementations against loops over pairs and frames in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from actdet_kernels import MatchWeights, Targets, Tubelets, match, pairwise_cost, set_loss, solve_matching
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.kernels.checks import low_precision_is_near
from tests.kernels.device import DEVICE, EACH_KERNEL, KINDS, POISONED
from tests.kernels.oracles import (
    loss_case,
    random_boxes,
    random_logits,
    random_targets,
    random_tubelets,
    tubelet_costs,
    tubelet_criterion,
    weighted_sum,
)

pytestmark = POISONED
WEIGHTS = MatchWeights(1.3, 4.1, 0.7)

# leading, queries, classes, counts, size, frames
CASES = [
    ((), 5, 3, [3, 0, 4], 4, 1),
    ((2,), 17, 3, [2], 2, 2),
    ((), 3, 5, [7, 2], 9, 5),
    ((3,), 1, 2, [2, 1], 2, 5),
    ((), 4, 3, [0, 0], 0, 2),
    ((), 4, 3, [], 2, 2),
]


def make(case: Any, kind: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tubelets, Tensor]:
    leading, queries, classes, counts, size, frames = case
    class_loss = {"softmax": "cross_entropy"}.get(kind, kind)
    logits, _, plain, matched = loss_case(leading, queries, classes, counts, size, class_loss)
    targets = random_tubelets(counts, size, frames, classes - (class_loss == "cross_entropy"), seed=5)
    boxes = random_boxes(*leading, len(counts), queries, frames, seed=6)
    targets = targets._replace(labels=plain.labels)
    return logits.to(DEVICE, dtype), boxes.to(DEVICE, dtype), targets.to(DEVICE), matched.to(DEVICE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cost_and_matching_are_the_loops(case: Any, class_cost: Any, kind: Any) -> None:
    logits, boxes, targets, _ = make(case, class_cost)
    wanted = tubelet_costs(logits.cpu(), boxes.cpu(), targets.to("cpu"), WEIGHTS, class_cost)
    options: Any = {"weights": WEIGHTS, "class_cost": class_cost, "backend": kind}
    torch.testing.assert_close(pairwise_cost(logits, boxes, targets, **options).cpu(), wanted, rtol=1e-12, atol=1e-12)
    matched, status = solve_matching(logits, boxes, targets, **options)
    assert not status.any()
    counts = case[3] * math.prod(case[0])
    problems = zip(wanted.flatten(0, -3).numpy(), matched.flatten(0, -2).tolist(), counts, strict=True)
    for matrix, queries, count in problems:
        pairs = [(query, target) for target, query in enumerate(queries) if query != -1]
        assert len({query for query, _ in pairs}) == len(pairs) == min(count, case[1])
        best = matrix[:, :count][linear_sum_assignment(matrix[:, :count])].sum()
        assert math.fsum(matrix[pair] for pair in pairs) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_losses_and_gradients_are_the_loops(case: Any, class_loss: Any, kind: Any) -> None:
    logits, boxes, targets, matched = make(case, class_loss)
    leaves = (logits.clone().requires_grad_(), boxes.clone().requires_grad_())
    options: Any = {"no_object_weight": 0.3, "class_loss": class_loss}
    got = set_loss(*leaves, targets, matched, weights=WEIGHTS, backend=kind, **options)
    others = (logits.cpu().clone().requires_grad_(), boxes.cpu().clone().requires_grad_())
    terms = tubelet_criterion(*others, targets.to("cpu"), matched.cpu(), **options)
    cotangents = torch.tensor([0.7, -1.3, 0.4, 2.1], dtype=torch.float64)
    total = weighted_sum(WEIGHTS, terms)
    for one, other in zip(got, (total, *terms), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad(got, leaves, list(cotangents.to(DEVICE)))
    weighted = weighted_sum(cotangents, (total, *terms))
    theirs = torch.autograd.grad(weighted, others, materialize_grads=True, allow_unused=True)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_visible_frame_makes_a_box(kind: Any) -> None:
    """The very same numbers as with plain boxes, in everything."""
    logits, boxes, targets, _ = loss_case((2,), 5, 3, [2, 0, 3], 3, "cross_entropy")
    tubelets = Tubelets(*targets[:1], targets.boxes[:, :, None], targets.counts, torch.ones(3, 3, 1).bool())
    results = []
    for goals, places in ((targets, boxes), (tubelets, boxes[..., None, :])):
        leaves = (logits.clone().to(DEVICE).requires_grad_(), places.clone().to(DEVICE).requires_grad_())
        matched = match(*leaves, goals.to(DEVICE), backend=kind)
        loss = set_loss(*leaves, goals.to(DEVICE), matched, backend=kind)
        cost = pairwise_cost(*leaves, goals.to(DEVICE), backend=kind)
        d_logits, d_boxes = torch.autograd.grad(loss.total, leaves)
        results.append([cost, matched, *loss, d_logits, d_boxes.view(boxes.shape)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_frames_that_are_not_visible_do_not_matter_and_get_no_gradient(kind: Any, dtype: torch.dtype) -> None:
    """Predictions are finite everywhere, targets are NaN and infinite where they are not visible."""
    case = ((2,), 5, 3, [3, 2], 3, 5)
    logits, boxes, targets, matched = make(case, "cross_entropy", dtype)
    assert not targets.boxes.isfinite().all()
    hidden = ~(targets.visible & targets.valid[..., None])
    results = []
    for value in (None, 0.5):
        goals = (
            targets if value is None else targets._replace(boxes=targets.boxes.masked_fill(hidden[..., None], value))
        )
        leaves = (logits.clone().requires_grad_(), boxes.clone().requires_grad_())
        loss = set_loss(*leaves, goals, matched, backend=kind)
        cost = pairwise_cost(*leaves, goals, backend=kind)
        results.append([cost, match(*leaves, goals, backend=kind), *loss, *torch.autograd.grad(loss.total, leaves)])
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    seen = torch.zeros(boxes.shape[:-1], dtype=torch.bool)
    for layer, sample, target in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        if target < case[3][sample]:
            seen[layer, sample, matched[layer, sample, target]] = targets.visible[sample, target].cpu()
    gradient = results[0][-1].cpu()
    assert (gradient[~seen] == 0).all()
    assert (gradient[seen] != 0).any(-1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tubelet_visible_nowhere_has_a_class_and_no_boxes(kind: Any) -> None:
    targets = random_targets([1], 1, 2, seed=1)
    tubelets = Tubelets(targets.labels, torch.full((1, 1, 3, 4), math.nan), targets.counts, torch.zeros(1, 1, 3).bool())
    logits, boxes = random_logits(1, 4, 3, seed=1).to(DEVICE), random_boxes(1, 4, 3, seed=1).to(DEVICE)
    wanted = -WEIGHTS.cls * logits.softmax(-1)[..., targets.labels[0]]
    cost = pairwise_cost(logits, boxes, tubelets.to(DEVICE), weights=WEIGHTS, backend=kind)
    torch.testing.assert_close(cost, wanted)
    matched = match(logits, boxes, tubelets.to(DEVICE), weights=WEIGHTS, backend=kind)
    assert matched.tolist() == wanted.argmin(1).tolist()
    loss = set_loss(logits, boxes.requires_grad_(), tubelets.to(DEVICE), matched, backend=kind)
    assert (loss.l1, loss.giou) == (0, 0)
    assert not torch.autograd.grad(loss.total, boxes)[0].any()


@pytest.mark.parametrize("frames", [1, 2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_finite_differences(frames: int, kind: Any) -> None:
    logits, boxes, targets, matched = make(((2,), 3, 3, [2, 1], 2, frames), "cross_entropy")

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(set_loss(logits, boxes, targets, matched, backend=kind))

    assert torch.autograd.gradcheck(terms, (logits.requires_grad_(), boxes.requires_grad_()), fast_mode=True)


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_at_most_twice_as_far_off_as_the_reference(
    kernels: Any, dtype: torch.dtype, class_loss: Any
) -> None:
    low_precision_is_near(make(((3,), 5, 3, [2, 3], 3, 5), class_loss, dtype), kernels, class_loss)


@pytest.mark.parametrize("wrong", ["visible", "boxes", "predictions", "dtype"])
def test_tubelets_of_other_shapes_are_refused(wrong: str) -> None:
    logits, boxes, targets, matched = make(((), 5, 3, [2, 1], 2, 3), "cross_entropy")
    if wrong == "visible":
        targets, message = targets._replace(visible=targets.visible[..., :2]), r"targets.visible must be \(2, 2, 3\)"
    elif wrong == "boxes":
        targets, message = targets._replace(boxes=targets.boxes[:, :, 0]), r"targets.boxes must be \(2, 2, 3, 4\)"
    elif wrong == "predictions":
        boxes, message = boxes[:, :, 0], r"boxes \(..., B, N, T, 4\) must agree, got \(2, 5, 3\) and \(2, 5, 4\)"
    else:
        targets, message = (
            targets._replace(visible=targets.visible.int()),
            "targets.visible must be bool, got torch.int32",
        )
    with pytest.raises(ValueError, match=message):
        match(logits, boxes, targets)
    with pytest.raises(ValueError, match=message):
        set_loss(logits, boxes, targets, matched)


def test_plain_targets_refuse_tubelets() -> None:
    logits, boxes, targets, _ = make(((), 5, 3, [2, 1], 2, 3), "cross_entropy")
    with pytest.raises(ValueError, match=r"boxes \(..., B, N, 4\) must agree, got \(2, 5, 3\) and \(2, 5, 3, 4\)"):
        match(logits, boxes, Targets(targets.labels, targets.boxes[:, :, 0], targets.counts))

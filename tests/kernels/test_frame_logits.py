"""Tubelets with logits of each frame: cost, matching and loss against loops over pairs and frames in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from actdet_kernels import MatchWeights, Tubelets, match, pairwise_cost, set_loss, solve_matching
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.kernels.checks import low_precision_is_near
from tests.kernels.device import DEVICE, EACH_KERNEL, KINDS, POISONED
from tests.kernels.oracles import (
    frame_costs,
    frame_criterion,
    loss_case,
    random_boxes,
    random_logits,
    random_tubelets,
    weighted_sum,
    with_frame_labels,
)

pytestmark = POISONED
WEIGHTS = MatchWeights(1.3, 4.1, 0.7)
WIDER = (torch.bfloat16, torch.float32)

# leading, queries, classes, counts, size, frames
CASES = [
    ((), 5, 3, [3, 0, 4], 4, 1),
    ((2,), 17, 3, [2], 2, 2),
    ((), 3, 19, [7, 2], 9, 5),
    ((3,), 1, 2, [2, 1], 2, 5),
    ((), 4, 3, [0, 0], 0, 2),
    ((), 4, 3, [], 2, 2),
]


def make(
    case: Any, kind: str, dtype: torch.dtype = torch.float64, most: int = 0
) -> tuple[Tensor, Tensor, Tubelets, Tensor]:
    """Some tubelets are visible nowhere, and frames that are not visible hold NaN.

    `most`: In each frame so many labels at most. By default they are those of the whole tubelet.
    """
    leading, queries, classes, counts, size, frames = case
    class_loss = {"softmax": "cross_entropy"}.get(kind, kind)
    _, _, plain, matched = loss_case(leading, queries, classes, counts, size, class_loss)
    targets = random_tubelets(counts, size, frames, classes - (class_loss == "cross_entropy"), seed=5)
    targets = targets._replace(labels=plain.labels)
    if most:
        targets = with_frame_labels(targets, classes - (class_loss == "cross_entropy"), most)
    boxes = random_boxes(*leading, len(counts), queries, frames, seed=6)
    logits = random_logits(*leading, len(counts), queries, frames, classes, seed=7)
    return logits.to(DEVICE, dtype), boxes.to(DEVICE, dtype), targets.to(DEVICE), matched.to(DEVICE)


# A case, and how many labels there are in each frame.
LABELED = [(case, 0) for case in CASES] + [(case, 3) for case in CASES[2:4]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_cost", ["softmax", "focal"])
@pytest.mark.parametrize(("case", "most"), LABELED, ids=str)
def test_cost_and_matching_are_the_loops(case: Any, class_cost: Any, most: int, kind: Any) -> None:
    most = min(most, 1) if class_cost == "softmax" else most
    logits, boxes, targets, _ = make(case, class_cost, most=most)
    wanted = frame_costs(logits.cpu(), boxes.cpu(), targets.to("cpu"), WEIGHTS, class_cost)
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
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize(("case", "most"), [given for given in LABELED if given[0] != CASES[-1]], ids=str)
def test_losses_and_gradients_are_the_loops(case: Any, class_loss: Any, most: int, weighted: bool, kind: Any) -> None:
    most = min(most, 1) if class_loss == "cross_entropy" else most
    logits, boxes, targets, matched = make(case, class_loss, most=most)
    leaves = (logits.clone().requires_grad_(), boxes.clone().requires_grad_())
    class_weights = torch.linspace(0.5, 2, case[2], device=DEVICE, dtype=torch.float64) if weighted else None
    options: Any = {"no_object_weight": 0.3, "class_loss": class_loss}
    got = set_loss(*leaves, targets, matched, weights=WEIGHTS, backend=kind, class_weights=class_weights, **options)
    others = (logits.cpu().clone().requires_grad_(), boxes.cpu().clone().requires_grad_())
    cpu_weights = None if class_weights is None else class_weights.cpu()
    terms = frame_criterion(*others, targets.to("cpu"), matched.cpu(), class_weights=cpu_weights, **options)
    cotangents = torch.tensor([0.7, -1.3, 0.4, 2.1], dtype=torch.float64)
    total = weighted_sum(WEIGHTS, terms)
    for one, other in zip(got, (total, *terms), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad(got, leaves, list(cotangents.to(DEVICE)))
    weighted_terms = weighted_sum(cotangents, (total, *terms))
    theirs = torch.autograd.grad(weighted_terms, others, materialize_grads=True, allow_unused=True)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("visible", [True, False])
def test_one_frame_is_one_row_of_logits(kind: Any, visible: bool) -> None:
    """If it is visible, the very same numbers as without the dimension; otherwise a query without a target."""
    logits, boxes, targets, matched = make(((2,), 5, 3, [2, 0, 3], 3, 1), "cross_entropy")
    targets = targets._replace(visible=torch.full_like(targets.visible, visible), boxes=targets.boxes.nan_to_num(0.4))
    of_tubelet = set_loss(logits[..., 0, :], boxes, targets, matched, backend=kind)
    of_frame = set_loss(logits, boxes, targets, matched, backend=kind)
    nothing = set_loss(logits[..., 0, :], boxes, targets, torch.full_like(matched, -1), backend=kind)
    assert of_frame.cls == (of_tubelet.cls if visible else nothing.cls)
    assert of_frame[2:] == of_tubelet[2:]
    cost = pairwise_cost(logits, boxes, targets, backend=kind)
    if visible:
        assert torch.equal(cost, pairwise_cost(logits[..., 0, :], boxes, targets, backend=kind))
    else:
        assert not cost.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_a_label_without_a_logit_is_nan_where_it_is_visible(kind: Any, class_loss: Any) -> None:
    logits, boxes, targets, _ = make(((), 3, 3, [1, 1], 1, 2), class_loss)
    targets = targets._replace(
        labels=torch.full_like(targets.labels, 7),
        visible=torch.tensor([[[True, False]], [[False, False]]], device=DEVICE),
        boxes=targets.boxes.nan_to_num(0.4),
    )
    cost = pairwise_cost(logits, boxes, targets, class_cost="focal", backend=kind)
    assert cost[0].isnan().all()
    assert not cost[1].any()

    matched = torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)
    logits.requires_grad_()
    loss = set_loss(logits, boxes, targets, matched, class_loss=class_loss, backend=kind)
    assert loss.cls.isnan()
    (gradient,) = torch.autograd.grad(loss.cls, logits)
    assert gradient[0, 0, 0].isnan().any()
    assert gradient[0, 0, 1].isfinite().all()
    assert gradient[1].isfinite().all()
    with pytest.raises(ValueError, match=r"targets.labels\[0, 0\] must be 0 to 2, got 7"):
        match(logits, boxes, targets, check=True, backend=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("class_loss", "most"), [("cross_entropy", 1), ("focal", 2)])
def test_the_same_labels_in_all_frames_are_those_of_the_tubelet(class_loss: Any, most: int, kind: Any) -> None:
    """Bit for bit."""
    logits, boxes, targets, matched = make(((2,), 6, 4, [3, 1], 3, 3), class_loss)
    labels = targets.labels[..., None]
    if most == 2:
        labels = torch.cat([labels, (labels + 1) % 4], -1)
    of_tubelet = targets._replace(labels=labels)
    of_frames = targets._replace(labels=labels[:, :, None].expand(-1, -1, 3, -1))
    class_cost: Any = "softmax" if class_loss == "cross_entropy" else "focal"
    results = []
    for each in (of_tubelet, of_frames):
        leaves = (logits.clone().requires_grad_(), boxes.clone().requires_grad_())
        losses = set_loss(*leaves, each, matched, class_loss=class_loss, backend=kind)
        cost = pairwise_cost(logits, boxes, each, class_cost=class_cost, backend=kind)
        results.append((*losses, cost, *torch.autograd.grad(losses.total, leaves)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_each_frame_are_checked_where_they_count(kind: Any) -> None:
    logits, boxes, targets, matched = make(((2,), 4, 3, [2, 1], 2, 3), "focal", most=2)
    targets = targets._replace(visible=torch.ones_like(targets.visible), boxes=torch.full_like(targets.boxes, 0.4))
    labels = torch.zeros_like(targets.labels)
    labels[..., 1] = -1
    fine = targets._replace(labels=labels)
    match(logits, boxes, fine, class_cost="focal", check=True, backend=kind)

    wrong = labels.clone()
    wrong[1, 0, 2, 0] = 3
    with pytest.raises(ValueError, match=r"targets.labels\[1, 0, 2, 0\] must be 0 to 2, got 3"):
        match(logits, boxes, fine._replace(labels=wrong), class_cost="focal", check=True, backend=kind)
    assert set_loss(logits, boxes, fine._replace(labels=wrong), matched, class_loss="focal", backend=kind).cls.isnan()
    hidden = fine._replace(labels=wrong, visible=targets.visible.index_fill(2, torch.tensor(2, device=DEVICE), False))
    match(logits, boxes, hidden, class_cost="focal", check=True, backend=kind)

    twice = labels.clone()
    twice[0, 1, 0] = 2
    with pytest.raises(ValueError, match=r"targets.labels\[0, 1, 0\] has label 2 twice"):
        match(logits, boxes, fine._replace(labels=twice), class_cost="focal", check=True, backend=kind)

    # They are for logits of each frame, one label at a time where classes exclude each other, and for all frames.
    with pytest.raises(ValueError, match=r"targets.labels must be \(2, 2\) for a batch of 2, got \(2, 2, 3, 2\)"):
        match(logits[..., 0, :], boxes, fine, class_cost="focal", backend=kind)
    with pytest.raises(ValueError, match=r"class_cost='softmax' takes one label per target"):
        match(logits, boxes, fine, backend=kind)
    with pytest.raises(ValueError, match=r"targets.labels must be \(2, 2, 3, 2\) for a batch of 2, got \(2, 2, 2, 2\)"):
        match(logits, boxes, fine._replace(labels=labels[:, :, :2]), class_cost="focal", backend=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_several_labels_of_a_target_add_up(kind: Any) -> None:
    logits, boxes, targets, matched = make(((2,), 4, 5, [3, 1], 3, 3), "focal")
    first = targets._replace(labels=targets.labels * 0)
    second = targets._replace(labels=targets.labels * 0 + 3)
    labels = torch.stack([first.labels, second.labels, second.labels * 0 - 1], -1)
    both = targets._replace(labels=labels)
    only_class = MatchWeights(1, 0, 0)
    options: Any = {"weights": only_class, "class_cost": "focal", "backend": kind}
    of_one, of_other, of_both = (pairwise_cost(logits, boxes, each, **options) for each in (first, second, both))
    torch.testing.assert_close(of_both, of_one + of_other, rtol=1e-12, atol=1e-12)

    nobody = torch.full_like(matched, -1)
    losses = [
        set_loss(logits, boxes, each, found, class_loss="focal", backend=kind).cls
        for each, found in ((first, matched), (second, matched), (both, matched), (first, nobody))
    ]
    torch.testing.assert_close(losses[2] - losses[3], losses[0] + losses[1] - 2 * losses[3], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_finite_differences(frames: int, kind: Any) -> None:
    logits, boxes, targets, matched = make(((2,), 3, 3, [2, 1], 2, frames), "cross_entropy", most=1)

    def terms(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return tuple(set_loss(logits, boxes, targets, matched, backend=kind))

    assert torch.autograd.gradcheck(terms, (logits.requires_grad_(), boxes.requires_grad_()), fast_mode=True)


@EACH_KERNEL
@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("dtype", [torch.float16, *(pytest.param(each, marks=pytest.mark.slow) for each in WIDER)])
def test_low_precision_is_at_most_twice_as_far_off_as_the_reference(
    kernels: Any, dtype: torch.dtype, class_loss: Any
) -> None:
    low_precision_is_near(make(((3,), 5, 3, [2, 3], 3, 5), class_loss, dtype), kernels, class_loss)


@pytest.mark.parametrize("kind", ["varifocal", "quality_focal"])
def test_soft_class_terms_take_logits_of_whole_tubelets(kind: Any) -> None:
    logits, boxes, targets, matched = make(((), 5, 3, [2, 1], 2, 3), "focal")
    problem = rf"='{kind}' takes logits \(..., B, N, C\) of whole tubelets, got \(2, 5, 3, 3\)"
    with pytest.raises(ValueError, match="class_cost" + problem):
        match(logits, boxes, targets, class_cost=kind)
    with pytest.raises(ValueError, match="class_loss" + problem):
        set_loss(logits, boxes, targets, matched, class_loss=kind)


def test_logits_of_another_number_of_frames_are_refused() -> None:
    logits, boxes, targets, _ = make(((), 5, 3, [2, 1], 2, 3), "cross_entropy")
    problem = (
        r"logits \(..., B, N, C\) or \(..., B, N, T, C\) and boxes \(..., B, N, T, 4\) must agree, got \(2, 5, 2, 3\)"
    )
    with pytest.raises(ValueError, match=problem):
        match(logits[:, :, :2], boxes, targets)

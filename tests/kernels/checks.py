"""What holds of every option of cost and loss: every implementation against an oracle, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import MatchWeights, Tubelets, match, pairwise_cost, set_loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.kernels.device import DEVICE, KINDS
from tests.kernels.oracles import (
    LossCase,
    costs,
    loss_case,
    random_boxes,
    random_tubelets,
    sigmoid_class_costs,
    tubelet_costs,
    weighted_sum,
)

WEIGHTS = MatchWeights(1.3, 4.1, 0.7)

CASES: list[LossCase] = [((2,), 12, 3, [1, 0, 3], 3), ((), 5, 65, [7, 3], 9)]


def on_device(logits: Tensor, boxes: Tensor, targets: Any, matched: Tensor) -> tuple[Tensor, Tensor, Any, Tensor]:
    logits, boxes = (value.detach().clone().to(DEVICE).requires_grad_() for value in (logits, boxes))
    return logits, boxes, targets.to(DEVICE), matched.to(DEVICE)


def check_loss(case: tuple[Any, ...], terms: Any, kind: Any, **options: Any) -> None:
    """The losses, and the gradients of a weighted sum of them, are those of `terms` (cls, l1, giou), to 1e-12."""
    leaves = [value.detach().clone().requires_grad_() for value in case[:2]]
    wanted = terms(*leaves)
    total = weighted_sum(WEIGHTS, wanted)
    cotangents = torch.tensor([0.7, -1.3, 0.4, 2.1], dtype=torch.float64)
    weighted = weighted_sum(cotangents, (total, *wanted))
    theirs = torch.autograd.grad(weighted, leaves, allow_unused=True, materialize_grads=True)

    arguments = on_device(*case)
    got = set_loss(*arguments, weights=WEIGHTS, backend=kind, **options)
    for one, other in zip(got, (total, *wanted), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad(got, arguments[:2], list(cotangents.to(DEVICE)))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)


def same_in_all(*arguments: Any, error: float, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """The kernels' losses and gradients, which are finite and the reference's to within `error` of the largest."""
    results = []
    for kind in KINDS:
        got = set_loss(*arguments, backend=kind, **options)
        results.append((got, torch.autograd.grad(got.total, arguments[:2])))
    *ours, (their_losses, their_gradients) = results
    for losses, gradients in ours:
        assert all(value.isfinite().all() for value in (*losses, *gradients))
        pairs = zip((*losses, *gradients), (*their_losses, *their_gradients), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=error, atol=error * max(other.abs().max().item(), 1e-30))
    return ours[0]


def check_cost(case: tuple[Any, ...], wanted: Tensor, kind: Any, **options: Any) -> None:
    """The costs are those, and the matching is the cheapest by them."""
    arguments = [part.to(DEVICE) for part in case]
    options |= {"weights": WEIGHTS, "backend": kind}
    torch.testing.assert_close(pairwise_cost(*arguments, **options).cpu(), wanted, rtol=1e-12, atol=1e-12)

    counts = case[2].counts.tolist()
    problems = wanted.flatten(0, -3).numpy()
    for index, queries in enumerate(match(*arguments, **options).flatten(0, -2).tolist()):
        matrix = problems[index][:, : counts[index % len(counts)]]
        pairs = [(query, target) for target, query in enumerate(queries) if query != -1]
        assert len({query for query, _ in pairs}) == len(pairs) == min(matrix.shape)
        best = matrix[linear_sum_assignment(matrix)].sum()
        assert math.fsum(matrix[pair] for pair in pairs) == pytest.approx(best, rel=1e-12)


def sigmoid_cost_case(
    queries: int, counts: list[int], frames: int | None, most: int, class_cost: str, alpha: float, gamma: float
) -> tuple[tuple[Tensor, Tensor, Any], Tensor]:
    """logits, boxes and targets, of boxes or of tubelets, which have up to `most` labels; and their cost."""
    logits, boxes, targets, _ = loss_case((2,), queries, 5, counts, 4, "focal")
    of_boxes: Any = costs
    if frames is not None:
        of_boxes = tubelet_costs
        targets = random_tubelets(counts, 4, frames, 5, seed=5)._replace(labels=targets.labels)
        boxes = random_boxes(2, 3, queries, frames, seed=6)
    wanted = of_boxes(logits, boxes, targets, WEIGHTS._replace(cls=0), "softmax")
    targets = several_labels(targets, 5, most) if most > 1 else targets
    wanted += WEIGHTS.cls * sigmoid_class_costs(logits, boxes, targets, class_cost, alpha, gamma)
    return (logits, boxes, targets), wanted


def several_labels(targets: Any, classes: int, most: int, seed: int = 3) -> Any:
    """One to `most` different labels for each real target, and in the other rows what must never be looked at."""
    rng = np.random.default_rng(seed)
    labels = np.full((*targets.labels.shape, most), 10**6)
    for sample, count in enumerate(targets.counts.tolist()):
        for target in range(count):
            number = rng.integers(1, most + 1)
            labels[sample, target] = -1
            labels[sample, target, :number] = rng.permutation(classes)[:number]
    return targets._replace(labels=torch.from_numpy(labels))


def low_precision_is_near(problem: tuple[Tensor, Tensor, Tubelets, Tensor], kernels: Any, class_loss: Any) -> None:
    """Loss and gradients of tubelets are at most twice as far off as the reference's, and one rounding of the output.

    The truth is that of the same rounded logits, boxes and targets in float64.
    """
    logits, boxes, targets, matched = problem
    dtype = logits.dtype
    targets = targets._replace(boxes=targets.boxes.float())
    exact = (logits.double().requires_grad_(), boxes.double().requires_grad_())
    wanted = set_loss(*exact, targets, matched, class_loss=class_loss, backend="reference")
    slopes = torch.autograd.grad(wanted.total, exact)
    off = {}
    for kind in (kernels, "reference"):
        leaves = (logits.clone().requires_grad_(), boxes.clone().requires_grad_())
        got = set_loss(*leaves, targets, matched, class_loss=class_loss, backend=kind)
        found = torch.autograd.grad(got.total, leaves)
        assert [value.dtype for value in found] == [dtype] * 2
        off[kind] = [
            (one.double() - other).abs() for one, other in zip((*got, *found), (*wanted, *slopes), strict=True)
        ]
    relative = [(error / value).item() for error, value in zip(off["reference"][:4], wanted, strict=True)]
    for mine, value in zip(off[kernels][:4], wanted, strict=True):
        assert mine <= (2 * max(relative) + torch.finfo(torch.float32).eps) * value
    for mine, theirs, slope in zip(off[kernels][4:], off["reference"][4:], slopes, strict=True):
        assert (mine <= 2 * theirs.max() + torch.finfo(dtype).eps * slope.abs()).all()

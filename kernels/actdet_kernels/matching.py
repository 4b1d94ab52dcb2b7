"""Matching: the query of each target under the cheapest assignment, which is that of the pairwise costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.assignment import check_status, too_large
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.cost import OPTIONS, BoxTerm, ClassCost, MatchWeights, check_cost_options
from actdet_kernels.operators import LIBRARY, TARGETS, flat, operator, targets_of
from actdet_kernels.options import CostOptions
from actdet_kernels.reference import FOCAL_ALPHA, FOCAL_GAMMA
from actdet_kernels.targets import Targets, Tubelets, check_predictions, check_values


class Matching(NamedTuple):
    """matched: (..., B, M) int64, the query of each target, -1 for none.
    status: (..., B) int32, of each problem, as in `Assignment`.
    """

    matched: Tensor
    status: Tensor


def match(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    *,
    weights: MatchWeights = MatchWeights(),
    class_cost: ClassCost = "softmax",
    alpha: float = FOCAL_ALPHA,
    gamma: float = FOCAL_GAMMA,
    box_term: BoxTerm = "giou",
    check: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """The query of each target under the cheapest matching (eq. 10 and 11): (..., B, M) int64, -1 past the count.

    Arguments and errors as `pairwise_cost` and `assign`; every leading index (decoder layer) is matched on its own.
    check: raise ValueError, too, naming the sample, for a count that is not in [0, M] and a label that no logit has.
    """
    matched, status = solve_matching(
        logits,
        boxes,
        targets,
        weights=weights,
        class_cost=class_cost,
        alpha=alpha,
        gamma=gamma,
        box_term=box_term,
        backend=backend,
    )
    if check:
        check_values(targets, logits.shape[-1])
        check_status(status)
    return matched


@torch.no_grad()
def solve_matching(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    *,
    weights: MatchWeights = MatchWeights(),
    class_cost: ClassCost = "softmax",
    alpha: float = FOCAL_ALPHA,
    gamma: float = FOCAL_GAMMA,
    box_term: BoxTerm = "giou",
    backend: Backend = "auto",
) -> Matching:
    """`match` with the status of each problem, for who wants to know without waiting for the device."""
    check_predictions(logits, boxes, targets)
    options = CostOptions(weights, class_cost, alpha, gamma, box_term)
    check_cost_options(targets, options)
    return Matching(*_match(logits, boxes, *flat(targets), *options, backend))


@operator(f"match(Tensor logits, Tensor boxes, {TARGETS}, {OPTIONS}) -> (Tensor, Tensor)")
def _match(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    """The query of each target (..., B, M) and the status of each problem (..., B)."""
    *options, backend = rest
    compute = implementation(
        backend,
        logits.device,
        kernels=_by_kernels,
        reference=_by_reference,
        obstacle=too_large(logits.shape[-2], labels.shape[1]),
    )
    targets = targets_of(labels, target_boxes, counts, visible)
    return compute(logits, boxes, targets, CostOptions(*options))


def _by_kernels(chosen: str, *arguments: Any) -> tuple[Tensor, Tensor]:
    return kernel_module(chosen, "matching").match(*arguments)


def _by_reference(
    logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, options: CostOptions
) -> tuple[Tensor, Tensor]:
    cost = reference.pairwise_cost(logits, boxes, targets, options)
    problems = cost.shape[:-2]
    counts = targets.counts.expand(problems).reshape(-1)
    matched, *_, status = reference.solve_assignment(cost.flatten(0, -3), counts, maximize=False, duals=False)
    return matched.view(*problems, cost.shape[-1]), status.view(problems)


@torch.library.register_fake("actdet_kernels::match", lib=LIBRARY)
def _shapes(logits: Tensor, boxes: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    problems = logits.shape[:-2]
    matched = logits.new_empty((*problems, labels.shape[1]), dtype=torch.int64)
    return matched, logits.new_empty(problems, dtype=torch.int32)

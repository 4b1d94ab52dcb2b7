"""Matching: the query of each target in the cheapest assignment of queries to targets by their pairwise costs.

From top to bottom: the public functions, their operator with the two implementations, and the operator's shapes.
"""

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
from actdet_kernels.targets import Targets, Tubelets, check_predictions, check_values, query_shape


class Matching(NamedTuple):
    """The cheapest matching of every sample under every leading index.

    Args:
        matched: (..., B, M) int64, the query of each target, or -1.
        status: (..., B) int32, one for each problem. Bit 0: a cost is not finite. Bit 1: such a cost had to be taken.
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
    """Find the query of each target in the cheapest matching (eq. 10 and 11).

    This is `assign` of `pairwise_cost`. Every sample is matched on its own under every leading index (decoder layer).
    On a GPU all of them take one launch, or two for tubelets and above 1,024 queries or targets (256 in float64). There
    is no gradient.

    Args:
        logits: (..., B, N, C), or (..., B, N, T, C) with `Tubelets`, as in `pairwise_cost`.
        boxes: (..., B, N, 4), or (..., B, N, T, 4) with `Tubelets`, as there.
        targets: B samples of M padded rows, as there.
        weights: Of the three terms of the cost, as there.
        class_cost: The class term of the cost, as there.
        alpha: Of the class term, as there.
        gamma: Of the class term, as there.
        box_term: "giou", "diou" or "ciou", as there.
        check: Raise ValueError if a cost is not finite, a count is not in [0, M], or there is no logit for a label.
            This waits for the device.
        backend: See `explain_backend`.

    Returns:
        (..., B, M) int64, the query of each target. It is -1 past the count, and for the targets that are left over if
        there are more of them than queries.

    Raises:
        ValueError: Shapes, dtypes or devices disagree, an option is unknown or out of its range, or `check` found
            something; the text then names the sample.
        RuntimeError: The backend that was asked for by name cannot run.
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
    """Do what `match` does, and return the status of each problem as well, without waiting for the device.

    Args:
        logits: (..., B, N, C), or (..., B, N, T, C) with `Tubelets`, as in `pairwise_cost`.
        boxes: (..., B, N, 4), or (..., B, N, T, 4) with `Tubelets`, as there.
        targets: B samples of M padded rows, as there.
        weights: Of the three terms of the cost, as there.
        class_cost: The class term of the cost, as there.
        alpha: Of the class term, as there.
        gamma: Of the class term, as there.
        box_term: "giou", "diou" or "ciou", as there.
        backend: See `explain_backend`.

    Returns:
        The query of each target, and the status of each problem.

    Raises:
        ValueError: Shapes, dtypes or devices disagree, or an option is unknown or out of its range.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    check_predictions(logits, boxes, targets)
    options = CostOptions(weights, class_cost, alpha, gamma, box_term)
    check_cost_options(logits, boxes, targets, options)
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
    """Return the query of each target (..., B, M) and the status of each problem (..., B)."""
    *options, backend = rest
    compute = implementation(
        backend,
        logits.device,
        kernels=_by_kernels,
        reference=_by_reference,
        obstacle=too_large(query_shape(boxes, visible is not None)[-1], labels.shape[1]),
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
    problems = query_shape(boxes, rest[2] is not None)[:-1]
    matched = logits.new_empty((*problems, labels.shape[1]), dtype=torch.int64)
    return matched, logits.new_empty(problems, dtype=torch.int32)

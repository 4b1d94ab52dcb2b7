"""The matching cost of every query with every target of its sample."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.operators import LIBRARY, TARGETS, WEIGHTS, flat, operator, targets_of
from actdet_kernels.options import CostOptions
from actdet_kernels.reference import BOX_TERMS, FOCAL_ALPHA, FOCAL_GAMMA
from actdet_kernels.targets import Targets, Tubelets, check_predictions

ClassCost = Literal["softmax", "focal", "varifocal", "quality_focal"]
BoxTerm = Literal["giou", "diou", "ciou"]

OPTIONS = f"{WEIGHTS}, str class_cost, float alpha, float gamma, str box_term, str backend"


class MatchWeights(NamedTuple):
    """The weights of the three terms in the matching cost (eq. 10) and in the loss (eq. 12)."""

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@torch.no_grad()
def pairwise_cost(
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
) -> Tensor:
    """The matching cost of every query with every target of its sample (eq. 10).

    cost[i, j] = cls * class_term + l1 * |b_i - b_j|_1 + giou * (1 - GIoU(b_i, b_j))

    logits: (..., B, N, C). boxes: (..., B, N, 4). Returns (..., B, N, M), 0 past a sample's count.
    class_cost: "softmax": -p_i[label_j], the last logit being no_object. With the others every logit is a class, and
        the term is what `set_loss` with that class loss changes by when query i gets target j: "focal", which is
        Deformable DETR's; "varifocal" and "quality_focal", whose target for the label is the IoU of the boxes. Of a
        target with several labels it is the sum over them, which "softmax" refuses.
    alpha, gamma: of these, as in `set_loss`.
    box_term: "giou", or in its place "diou" or "ciou" (Zheng et al. 2020), with the weight of giou.
    A label that no logit has costs NaN. Raises ValueError where shapes, dtypes or devices disagree.
    """
    check_predictions(logits, boxes, targets)
    options = CostOptions(weights, class_cost, alpha, gamma, box_term)
    check_cost_options(targets, options)
    return _pairwise_cost(logits, boxes, *flat(targets), *options, backend).mT


@operator(f"pairwise_cost(Tensor logits, Tensor boxes, {TARGETS}, {OPTIONS}) -> Tensor")
def _pairwise_cost(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor | None,
    *rest: Any,
) -> Tensor:
    """The cost as (..., B, M, N): so the assignment reads it, a target after the other."""
    *options, backend = rest
    targets = targets_of(labels, target_boxes, counts, visible)
    dtype = torch.promote_types(logits.dtype, boxes.dtype)
    compute = implementation(backend, logits.device, kernels=_by_kernels, reference=_by_reference)
    return compute(logits, boxes, targets, CostOptions(*options), dtype)


def _by_kernels(chosen: str, *arguments: Any) -> Tensor:
    return kernel_module(chosen, "cost").pairwise_cost(*arguments)


def _by_reference(
    logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, options: CostOptions, dtype: torch.dtype
) -> Tensor:
    cost = reference.pairwise_cost(logits, boxes, targets, options)
    return cost.mT.to(dtype).contiguous()


@torch.library.register_fake("actdet_kernels::pairwise_cost", lib=LIBRARY)
def _shape(logits: Tensor, boxes: Tensor, labels: Tensor, *rest: Any) -> Tensor:
    shape = (*logits.shape[:-2], labels.shape[1], logits.shape[-2])
    return logits.new_empty(shape, dtype=torch.promote_types(logits.dtype, boxes.dtype))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming the choices, for a value that is none of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_cost_options(targets: Targets | Tubelets, options: CostOptions) -> None:
    """Raise ValueError, naming the value, for an option of the cost that there is not, or not with these targets."""
    check_choice("class_cost", options.class_cost, get_args(ClassCost))
    check_focal(options.alpha, options.gamma, options.class_cost)
    check_choice("box_term", options.box_term, BOX_TERMS)
    check_one_label(targets, "class_cost", options.class_cost, "softmax")


def check_one_label(targets: Targets | Tubelets, name: str, value: str, exclusive: str) -> None:
    """Raise ValueError for several labels of a target where the classes of `value` exclude each other."""
    if value == exclusive and targets.labels.ndim == 3 and targets.labels.shape[2] > 1:
        raise ValueError(
            f"{name}={value!r} takes one label a target: take 'focal' for targets.labels {tuple(targets.labels.shape)}"
        )


def check_focal(alpha: float, gamma: float, kind: str = "focal") -> None:
    """Raise ValueError, naming the value, for what is no weight of a label or no exponent of that kind."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and at least 0, got {gamma}")
    if kind == "quality_focal" and gamma < 1:
        raise ValueError(f"gamma must be at least 1 with quality_focal, whose derivative is infinite, got {gamma}")

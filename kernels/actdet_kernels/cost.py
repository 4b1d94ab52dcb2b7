"""The matching cost of every query with every target of its sample.

From top to bottom: the public function, its operator with the two implementations, the operator's shapes, and the
checks of options, which matching.py and loss.py share.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.operators import LIBRARY, TARGETS, WEIGHTS, flat, operator, targets_of
from actdet_kernels.options import CostOptions
from actdet_kernels.reference import BOX_TERMS, FOCAL_ALPHA, FOCAL_GAMMA, SOFT_KINDS
from actdet_kernels.targets import (
    Targets,
    Tubelets,
    check_predictions,
    has_frame_logits,
    labels_each,
    query_shape,
)

ClassCost = Literal["softmax", "focal", "varifocal", "quality_focal"]
BoxTerm = Literal["giou", "diou", "ciou"]

# The part of an operator's schema that the fields of `CostOptions` fill, with the backend behind them.
OPTIONS = f"{WEIGHTS}, str class_cost, float alpha, float gamma, str box_term, str backend"


class MatchWeights(NamedTuple):
    """The weights of the three terms in the matching cost (eq. 10) and in the loss (eq. 12).

    Args:
        cls: The weight of the class term.
        l1: The weight of the L1 distance of the boxes.
        giou: The weight of 1 - GIoU, or of the box term in its place.
    """

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
    """Compute the matching cost of every query with every target of its sample (eq. 10).

    cost[i, j] = cls * class_term + l1 * |b_i - b_j|_1 + giou * (1 - GIoU(b_i, b_j))

    For tubelets, the L1 and GIoU terms and the IoU are means over the visible frames, and so is the class term if there
    are logits of each frame. There is no gradient.

    Args:
        logits: (..., B, N, C) floating point; for tubelets also (..., B, N, T, C), for what they are in each frame,
            with the class costs "softmax" and "focal".
        boxes: (..., B, N, 4) floating point, cxcywh in [0, 1]; (..., B, N, T, 4) with `Tubelets`.
        targets: B samples of M padded rows, on the device of the logits.
        weights: cls, l1 and giou of the formula.
        class_cost: The class term. "softmax" is -softmax(logits_i)[label_j], and the last logit is no_object. With the
            others every logit is a class, and the term is by how much that class loss of `set_loss` changes when query
            i gets target j: "focal" as in Deformable DETR (Zhu et al. 2021), "varifocal" as in RT-DETR (Zhao et al.
            2023), and "quality_focal" (Li et al. 2020). The last two have the IoU of the boxes as the label's target.
            If a target has several labels, their terms are added up; "softmax" takes only one label per target.
        alpha: The weight of a label with "focal", and of all other classes with "varifocal"; as in `set_loss`.
        gamma: The exponent of "focal", "varifocal" and "quality_focal"; as in `set_loss`.
        box_term: "giou", or "diou" or "ciou" (Zheng et al. 2020) in its place, which have the weight of giou.
        backend: See `explain_backend`.

    Returns:
        (..., B, N, M) in the wider dtype of logits and boxes; 0 past a sample's count, and NaN for a target with a
        label for which there is no logit.

    Raises:
        ValueError: Shapes, dtypes or devices disagree, or an option is unknown or out of its range.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    check_predictions(logits, boxes, targets)
    options = CostOptions(weights, class_cost, alpha, gamma, box_term)
    check_cost_options(logits, boxes, targets, options)
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
    """Return the cost as (..., B, M, N), because the assignment reads it target by target."""
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
    *problems, queries = query_shape(boxes, rest[2] is not None)
    shape = (*problems, labels.shape[1], queries)
    return logits.new_empty(shape, dtype=torch.promote_types(logits.dtype, boxes.dtype))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the choices if `value` is not one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_cost_options(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, options: CostOptions) -> None:
    """Raise a ValueError that names the value if an option of the cost is unknown, or impossible with these tensors."""
    check_choice("class_cost", options.class_cost, get_args(ClassCost))
    check_frame_logits(logits, boxes, targets, "class_cost", options.class_cost)
    check_focal(options.alpha, options.gamma, options.class_cost)
    check_choice("box_term", options.box_term, BOX_TERMS)
    check_one_label(targets, "class_cost", options.class_cost, "softmax")


def check_one_label(targets: Targets | Tubelets, name: str, value: str, exclusive: str) -> None:
    """Raise ValueError if targets have several labels and `value` is `exclusive`, whose classes exclude each other.

    Args:
        targets: A batch of targets.
        name: The argument that `value` is of, for the error's text.
        value: The class cost or class loss of a call.
        exclusive: The one whose targets have a single class.
    """
    if value == exclusive and labels_each(targets) > 1:
        raise ValueError(
            f"{name}={value!r} takes one label per target: use 'focal' for targets.labels {tuple(targets.labels.shape)}"
        )


def check_frame_logits(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, name: str, value: str) -> None:
    """Raise ValueError if logits are those of each frame, and `value` is a soft class cost or class loss.

    The target of a soft one is the IoU of whole tubelets.

    Args:
        logits: The predicted logits.
        boxes: The predicted boxes.
        targets: A batch of targets.
        name: The argument that `value` is of, for the error's text.
        value: The class cost or class loss of a call.
    """
    if value in SOFT_KINDS and has_frame_logits(logits, boxes, isinstance(targets, Tubelets)):
        raise ValueError(f"{name}={value!r} takes logits (..., B, N, C) of whole tubelets, got {tuple(logits.shape)}")


def check_focal(alpha: float, gamma: float, kind: str = "focal") -> None:
    """Raise a ValueError that names the value if alpha is no weight, or gamma no exponent of that class loss."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and at least 0, got {gamma}")
    if kind == "quality_focal" and gamma < 1:
        raise ValueError(f"gamma must be at least 1 with quality_focal, or its derivative is infinite, got {gamma}")

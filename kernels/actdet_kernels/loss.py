"""The loss over matched pairs and unmatched queries, and its gradient.

From top to bottom: the public function, its checks, the implementation by the reference, and that by the kernels, with
its autograd function, the operators of loss and gradient, and the operators' shapes.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.cost import (
    BoxTerm,
    MatchWeights,
    check_choice,
    check_focal,
    check_frame_logits,
    check_one_label,
)
from actdet_kernels.operators import LIBRARY, TARGETS, WEIGHTS, flat, operator, targets_of
from actdet_kernels.options import LossOptions
from actdet_kernels.reference import BOX_TERMS, FOCAL_ALPHA, FOCAL_GAMMA
from actdet_kernels.targets import Targets, Tubelets, check_predictions, check_values, query_shape, valid_rows

ClassLoss = Literal["cross_entropy", "focal", "varifocal", "quality_focal"]

# The part of an operator's schema that the fields of `LossOptions` fill, with the chosen backend behind them.
OPTIONS = (
    f"{WEIGHTS}, float no_object_weight, str class_loss, float alpha, float gamma, str box_term, bool per_layer, "
    "str chosen"
)


class SetLoss(NamedTuple):
    """The total of a set loss, and its three terms without their weights.

    All are 0-d, or (...) with one loss for each leading index; float32, or float64 if logits or boxes are float64. All
    are differentiable, by the kernels only once.

    Args:
        total: weights.cls * cls + weights.l1 * l1 + weights.giou * giou.
        cls: The class loss.
        l1: The L1 distance of matched boxes.
        giou: 1 - GIoU of matched boxes, or the loss of the box term in its place.
    """

    total: Tensor
    cls: Tensor
    l1: Tensor
    giou: Tensor


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    *,
    weights: MatchWeights = MatchWeights(),
    no_object_weight: float = 0.1,
    class_weights: Tensor | None = None,
    class_loss: ClassLoss = "cross_entropy",
    alpha: float = FOCAL_ALPHA,
    gamma: float = FOCAL_GAMMA,
    box_term: BoxTerm = "giou",
    per_layer: bool = False,
    check: bool = False,
    backend: Backend = "auto",
) -> SetLoss:
    """Compute the loss over matched pairs and unmatched queries (eq. 12), summed over the leading (layer) dimensions.

    With p = sigmoid(logits), n counting queries, c classes, and w_c the class weight of class c, or 1:

    cls, "cross_entropy":  sum_n w_n (-log softmax(logits_n)[label_n]) / sum_n w_n
    cls, "focal":          sum_nc w_c alpha_t (1 - p_t)^gamma (-log p_t) / targets
    cls, "varifocal":      sum_nc w_c f_nc BCE(p_nc, q_nc) / targets,  f_nc = q_nc for a label, else alpha p_nc^gamma
    cls, "quality_focal":  sum_nc w_c |q_nc - p_nc|^gamma BCE(p_nc, q_nc) / targets
    l1:                    sum over matched n of |b_n - target|_1 / targets
    giou:                  sum over matched n of (1 - GIoU(b_n, target)) / targets

    `targets` is the number of targets in the batch, at least 1, as in DETR. In the cross entropy, label_n is the last
    class (no_object) for a query without a target, and w_n is the class weight of label_n; without class weights it is
    `no_object_weight` for no_object and 1 otherwise. With the other class losses every logit is a class: p_t is p_nc
    for a label and 1 - p_nc for every other class, and alpha_t is alpha or 1 - alpha in the same way. q_nc is the IoU
    of the matched boxes for a label, otherwise 0. No gradient passes through q_nc, or through f_nc.

    Box terms and IoU of tubelets are means over the visible frames. If there are none, box terms are 0, and q_nc is 1.
    With logits of each frame, n counts the frames of all queries, a query has a target only in frames in which that is
    visible, and the class losses other than the cross entropy are divided by T times the number of targets.

    Sources: focal, Lin et al. 2017; varifocal, Zhang et al. 2021 as in RT-DETR (Zhao et al. 2023); quality focal, Li et
    al. 2020; GIoU, Rezatofighi et al. 2019.

    Args:
        logits: (..., B, N, C) floating point; with `Tubelets` also (..., B, N, T, C), of each frame, with the class
            losses "cross_entropy" and "focal".
        boxes: (..., B, N, 4) floating point, cxcywh in [0, 1]; (..., B, N, T, 4) with `Tubelets`.
        targets: B samples of M padded rows, which get no gradient. A target with several labels has all of them;
            "cross_entropy" takes only one label per target.
        matched: (..., B, M) int64, the query of each target as `match` finds it, and -1 for none. Any other number
            that is no query counts as -1, and a query that is given twice belongs to the last of its targets.
        weights: cls, l1 and giou in the total.
        no_object_weight: The weight of no_object in the cross entropy. Ignored with `class_weights`.
        class_weights: (C,) floating point, or None. They get no gradient. In the cross entropy, where the last one is
            that of no_object, they mean the same as in torch.nn.functional.cross_entropy.
        class_loss: "cross_entropy", "focal", "varifocal" or "quality_focal".
        alpha: In [0, 1], of "focal" and "varifocal". RT-DETR has 0.75.
        gamma: The exponent of all but "cross_entropy", at least 0, and at least 1 with "quality_focal".
        box_term: "giou", or "diou" or "ciou" (Zheng et al. 2020) in its place, whose loss is then called giou, and has
            its weight.
        per_layer: Return the losses of each leading index instead of their sums.
        check: Raise ValueError if a count is not in [0, M], there is no logit for a label, `matched` holds a number
            that is neither a query nor -1, or it holds a query twice. This waits for the device.
        backend: See `explain_backend`. The kernels add up in a fixed order, so two runs give the same bits. They have
            no second derivative, and raise RuntimeError when asked for one; the reference has it.

    Returns:
        The total and its terms. A matched target with a label for which there is no logit makes cls NaN, and the
        gradient of its query's logits.

    Raises:
        ValueError: Shapes, dtypes or devices disagree, an option is unknown or out of its range, or `check` found
            something; the text then names the sample.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    check_predictions(logits, boxes, targets)
    check_choice("class_loss", class_loss, get_args(ClassLoss))
    check_focal(alpha, gamma, class_loss)
    check_choice("box_term", box_term, BOX_TERMS)
    check_one_label(targets, "class_loss", class_loss, "cross_entropy")
    check_frame_logits(logits, boxes, targets, "class_loss", class_loss)

    *problems, queries = query_shape(boxes, isinstance(targets, Tubelets))
    shape = (*problems, targets.labels.shape[1])
    if matched.shape != shape:
        raise ValueError(f"matched must be {tuple(shape)}, got {tuple(matched.shape)}")
    if matched.dtype != torch.int64 or matched.device != logits.device:
        raise ValueError(f"matched must be int64 on {logits.device}, got {matched.dtype} on {matched.device}")
    if class_weights is not None:
        _check_class_weights(class_weights, logits)
        class_weights = class_weights.detach()

    if check:
        check_values(targets, logits.shape[-1])
        _check_matched(matched, targets, queries)

    compute = implementation(backend, logits.device, kernels=_by_kernels, reference=_by_reference)
    options = LossOptions(weights, no_object_weight, class_loss, alpha, gamma, box_term, per_layer)
    return compute(logits, boxes, targets, matched, class_weights, options)


def _check_class_weights(class_weights: Tensor, logits: Tensor) -> None:
    wanted = (logits.shape[-1],)
    if class_weights.shape != wanted or not class_weights.is_floating_point():
        raise ValueError(
            f"class_weights must be {wanted} floating point, got {tuple(class_weights.shape)} {class_weights.dtype}"
        )
    if class_weights.device != logits.device:
        raise ValueError(f"class_weights are on {class_weights.device}, logits on {logits.device}")


def _check_matched(matched: Tensor, targets: Targets | Tubelets, queries: int) -> None:
    """Raise ValueError if a real target has neither a query nor -1, or if two targets have the same query."""
    valid = valid_rows(targets)
    wrong = (valid & ((matched < -1) | (matched >= queries))).nonzero()
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(
            f"matched{list(place)} must be one of {queries} queries or -1 for none, got {matched[place].item()}"
        )

    in_order = torch.where(valid, matched, -1).sort(-1).values
    twice = ((in_order[..., 1:] == in_order[..., :-1]) & (in_order[..., 1:] >= 0)).nonzero()
    if len(twice):
        place = tuple(twice[0].tolist())
        raise ValueError(f"matched gives query {in_order[place].item()} of problem {place[:-1]} twice")


def _by_reference(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    class_weights: Tensor | None,
    options: LossOptions,
) -> SetLoss:
    """Compute the losses by PyTorch's operators alone, which have derivatives of every order."""
    terms = reference.set_loss(logits, boxes, targets, matched, class_weights, options)
    cls, l1, giou = terms if options.per_layer else (term.sum() for term in terms)
    by_cls, by_l1, by_giou = options.weights
    return SetLoss(by_cls * cls + by_l1 * l1 + by_giou * giou, cls, l1, giou)


def _by_kernels(
    chosen: str,
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    class_weights: Tensor | None,
    options: LossOptions,
) -> SetLoss:
    labels, target_boxes, counts, visible = flat(targets)
    goals = (labels, target_boxes.detach(), counts, visible)
    return SetLoss(*DifferentiableSetLoss.apply(logits, boxes, *goals, matched, class_weights, *options, chosen))


class DifferentiableSetLoss(torch.autograd.Function):
    """`set_loss` by the kernels, with its gradient. It returns total, cls, l1 and giou."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        tensors = rest[:6]
        ctx.options = rest[6:]
        *losses, divisors = _set_loss(logits, boxes, *rest)
        ctx.save_for_backward(logits, boxes, *tensors, divisors)

        # Losses that are not used then have the cotangent None, and the kernels skip them.
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = _set_loss_gradient(*ctx.saved_tensors, *cotangents, *ctx.options)
        return *gradients, *[None] * (len(ctx.needs_input_grad) - 2)


@operator(
    f"set_loss(Tensor logits, Tensor boxes, {TARGETS}, Tensor matched, Tensor? class_weights, {OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def _set_loss(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor | None,
    matched: Tensor,
    class_weights: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Return total, cls, l1, giou, and the divisors that the gradient needs. The last argument chooses the kernels."""
    *options, chosen = rest
    targets = targets_of(labels, target_boxes, counts, visible)
    compute = kernel_module(chosen, "loss").set_loss
    return compute(logits, boxes, targets, matched, class_weights, LossOptions(*options))


@torch.library.register_fake("actdet_kernels::set_loss", lib=LIBRARY)
def _loss_shapes(logits: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    per_layer = rest[-2]
    leading = query_shape(boxes, rest[3] is not None)[:-2]
    dtype = torch.promote_types(torch.promote_types(logits.dtype, boxes.dtype), torch.float32)
    losses = (logits.new_empty(leading if per_layer else (), dtype=dtype) for _ in range(4))
    return *losses, logits.new_empty((2, leading.numel()), dtype=dtype)


@operator(
    f"set_loss_gradient(Tensor logits, Tensor boxes, {TARGETS}, Tensor matched, Tensor? class_weights, "
    f"Tensor divisors, Tensor? d_total, Tensor? d_cls, Tensor? d_l1, Tensor? d_giou, {OPTIONS}) -> (Tensor, Tensor)"
)
def _set_loss_gradient(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor | None,
    matched: Tensor,
    class_weights: Tensor | None,
    divisors: Tensor,
    d_total: Tensor | None,
    d_cls: Tensor | None,
    d_l1: Tensor | None,
    d_giou: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of logits and boxes, from those of the four losses, of which some may be None."""
    *options, chosen = rest
    targets = targets_of(labels, target_boxes, counts, visible)
    cotangents = (d_total, d_cls, d_l1, d_giou)
    compute = kernel_module(chosen, "loss").set_loss_gradient
    return compute(logits, boxes, targets, matched, class_weights, divisors, cotangents, LossOptions(*options))


@torch.library.register_fake("actdet_kernels::set_loss_gradient", lib=LIBRARY)
def _gradient_shapes(logits: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape), boxes.new_empty(boxes.shape)


def _no_second_derivative(ctx: Any, *cotangents: Tensor | None) -> Any:
    raise RuntimeError(
        "set_loss has no second derivative with the kernels: use backend='reference' to differentiate its gradient"
    )


# The error is the operator's, and does not come from `once_differentiable`. That decorator lets a gradient pass for a
# constant if the cotangent needs no gradient, so a penalty on the gradient would be dropped without a word.
torch.library.register_autograd("actdet_kernels::set_loss_gradient", _no_second_derivative, lib=LIBRARY)

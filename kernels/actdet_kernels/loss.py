"""The loss over matched pairs and unmatched queries, and its gradient."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.cost import BoxTerm, MatchWeights, check_choice, check_focal, check_one_label
from actdet_kernels.operators import LIBRARY, TARGETS, WEIGHTS, flat, operator, targets_of
from actdet_kernels.options import LossOptions
from actdet_kernels.reference import BOX_TERMS, FOCAL_ALPHA, FOCAL_GAMMA
from actdet_kernels.targets import Targets, Tubelets, check_predictions, check_values, valid_rows

ClassLoss = Literal["cross_entropy", "focal", "varifocal", "quality_focal"]

OPTIONS = (
    f"{WEIGHTS}, float no_object_weight, str class_loss, float alpha, float gamma, str box_term, bool per_layer, "
    "str chosen"
)


class SetLoss(NamedTuple):
    """`total = weights.cls * cls + weights.l1 * l1 + weights.giou * giou`, all differentiable, by the kernels once.

    0-d tensors, or (...), one for each layer; float32, or float64 where logits or boxes are float64.
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
    """The loss over matched pairs and unmatched queries (eq. 12), summed over the leading (layer) dimensions.

    logits: (..., B, N, C). boxes: (..., B, N, 4). matched: (..., B, M) from `match`, -1 for no query; no query twice.
        Any other number that is no query is as -1, and a query given twice belongs to the last of its targets.
    per_layer: give the losses of each leading index, not their sums.
    cls: with "cross_entropy" the weighted mean over all queries, a query without a target being of the last class
        (no_object) at weight `no_object_weight`; with "focal" the sigmoid-focal sum over all logits, every one a
        class, divided by the number of targets. "varifocal" and "quality_focal" are such sums, too, of binary cross
        entropies whose target for the label is q, the IoU of the matched boxes, in place of 1: with RT-DETR's factors q
        and alpha p^gamma, constants to the gradient, and with |q - p|^gamma (Li et al. 2020). Nothing differentiates q,
        which is a tubelet's mean IoU over its visible frames, and 1 for one that is visible nowhere. A target with
        several labels has all of them, which "cross_entropy" refuses.
    class_weights: (C,) floating point, the weight of each logit's class, which gets no gradient. With "cross_entropy"
        they take the place of `no_object_weight`, the last one being that of no_object, and the mean is weighted by
        them, as in torch.nn.functional.cross_entropy; the others multiply the terms of each logit by its own.
    alpha, gamma: of "focal", the weight of the label in [0, 1] and the exponent, at least 0; of "varifocal", where
        RT-DETR has 0.75 and 2; and the gamma of "quality_focal", at least 1.
    l1, giou: sums over the matched pairs, divided by the number of targets in the batch (at least 1), as in DETR.
    box_term: "giou", or in its place "diou" or "ciou" (Zheng et al. 2020), whose loss is then `giou`, and its weight.
    A matched label that no logit has makes cls NaN, and the gradient of its query's logits.
    Deterministic: the kernels add up in a fixed order. Targets get no gradient. The kernels have no second derivative:
    to ask for one is a RuntimeError. The reference has it.
    check: raise ValueError, naming the sample, for a count that is not in [0, M], a label that no logit has, and what
        `matched` must not hold. It waits for the device.
    Raises ValueError where shapes, dtypes or devices disagree.
    """
    check_predictions(logits, boxes, targets)
    check_choice("class_loss", class_loss, get_args(ClassLoss))
    check_focal(alpha, gamma, class_loss)
    check_choice("box_term", box_term, BOX_TERMS)
    check_one_label(targets, "class_loss", class_loss, "cross_entropy")
    shape = (*logits.shape[:-2], targets.labels.shape[1])
    if matched.shape != shape:
        raise ValueError(f"matched must be {tuple(shape)}, got {tuple(matched.shape)}")
    if matched.dtype != torch.int64 or matched.device != logits.device:
        raise ValueError(f"matched must be int64 on {logits.device}, got {matched.dtype} on {matched.device}")
    if class_weights is not None:
        _check_class_weights(class_weights, logits)
        class_weights = class_weights.detach()
    if check:
        check_values(targets, logits.shape[-1])
        _check_matched(matched, targets, logits.shape[-2])
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
    """PyTorch's own operators all through, and so its own derivatives."""
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
    """`set_loss` with its gradient: total, cls, l1, giou."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        tensors, ctx.options = rest[:6], rest[6:]
        *losses, divisors = _set_loss(logits, boxes, *rest)
        ctx.save_for_backward(logits, boxes, *tensors, divisors)
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
    """total, cls, l1, giou, and the divisors that the gradient needs; by the kernels chosen last, as what follows."""
    *options, chosen = rest
    targets = targets_of(labels, target_boxes, counts, visible)
    compute = kernel_module(chosen, "loss").set_loss
    return compute(logits, boxes, targets, matched, class_weights, LossOptions(*options))


@torch.library.register_fake("actdet_kernels::set_loss", lib=LIBRARY)
def _loss_shapes(logits: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    per_layer, leading = rest[-2], logits.shape[:-3]
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
    """The gradients of logits and boxes, from those of the four losses."""
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
        "set_loss has no second derivative with the kernels: take backend='reference' to differentiate its gradient"
    )


# Of the operator, not by `once_differentiable`: that one lets a gradient pass for a constant where what it was given
# wants no gradient, so that a penalty on it would be dropped without a word.
torch.library.register_autograd("actdet_kernels::set_loss_gradient", _no_second_derivative, lib=LIBRARY)

"""The public operations: cost, assignment, matching and loss of set prediction, and clips to train on.

Each checks shapes and calls an operator of `dispatch`, which chooses the implementation. Shapes: L (any number of
leading dimensions, usually the supervised decoder layers), B samples, N queries, M padded targets, C logits, T frames.
Wherever boxes are (..., B, N, 4) with `Targets`, they may be (..., B, N, T, 4) with `Tubelets`. Equations are those of
the fight-and-collapse technical report (Saun and Sharma 2026), which follows DETR (Carion et al. 2020).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from actdet_kernels import dispatch, reference
from actdet_kernels.backend import Backend, choose_backend
from actdet_kernels.targets import Targets, Tubelets, check_counts, check_predictions, check_values, valid_rows

# The largest side of a picture that is stretched: the middles of its pixels are float32 numbers.
LARGEST_SIDE = 2**23
NO_KERNEL = "no kernel computes this operation yet"

ClassCost = Literal["softmax", "focal"]
ClassLoss = Literal["cross_entropy", "focal"]


class MatchWeights(NamedTuple):
    """The weights of the three terms in the matching cost (eq. 10) and in the loss (eq. 12)."""

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


class Assignment(NamedTuple):
    """The solutions of B assignment problems `cost (B, N, M)`.

    row_of_column: (B, M) int64, column_of_row: (B, N) int64; -1 for none.
    row_dual: (B, N), column_dual: (B, M), 0 past the count. They prove the solution optimal:
        row_dual[i] + column_dual[j] <= cost[i, j] (>= under `maximize`), equal on the pairs, and on the larger side
        0 for who is left over; so the total cost equals their sum. For costs that are all finite.
    status: (B,) int32. Bit 0: an entry is not finite; bit 1: such an entry had to be taken.
    """

    row_of_column: Tensor
    column_of_row: Tensor
    row_dual: Tensor
    column_dual: Tensor
    status: Tensor


class Matching(NamedTuple):
    """matched: (..., B, M) int64, the query of each target, -1 for none.
    status: (..., B) int32, of each problem, as in `Assignment`.
    """

    matched: Tensor
    status: Tensor


class SetLoss(NamedTuple):
    """`total = weights.cls * cls + weights.l1 * l1 + weights.giou * giou`, all differentiable, by the kernels once.

    0-d tensors, or (...), one for each layer; float32, or float64 where logits or boxes are float64.
    """

    total: Tensor
    cls: Tensor
    l1: Tensor
    giou: Tensor


def pairwise_giou(a: Tensor, b: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Generalized IoU of every pair: `a (..., N, 4)`, `b (..., M, 4)` cxcywh to `(..., N, M)` in [-1, 1] (eq. 13).

    A quotient with a zero denominator (boxes without an area) is 0. Raises ValueError for other shapes and dtypes.
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != 4 or b.shape[-1] != 4:
        raise ValueError(f"boxes must be (..., N, 4) and (..., M, 4), got {tuple(a.shape)} and {tuple(b.shape)}")
    _check_boxes(a, b)
    choose_backend(backend, a.device, NO_KERNEL)
    return reference.pairwise_giou(a, b)


def giou_loss(a: Tensor, b: Tensor, *, backend: Backend = "auto") -> Tensor:
    """1 - GIoU, element by element: `(..., 4)` and `(..., 4)` cxcywh to `(...)` in [0, 2] (eq. 14). Differentiable.

    Raises ValueError for boxes whose last dimension is not 4, and for those that are not floating point.
    """
    if a.shape[-1:] != (4,) or b.shape[-1:] != (4,):
        raise ValueError(f"boxes must be (..., 4), got {tuple(a.shape)} and {tuple(b.shape)}")
    _check_boxes(a, b)
    choose_backend(backend, a.device, NO_KERNEL)
    return reference.giou_loss(a, b)


@torch.no_grad()
def pairwise_cost(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    *,
    weights: MatchWeights = MatchWeights(),
    class_cost: ClassCost = "softmax",
    backend: Backend = "auto",
) -> Tensor:
    """The matching cost of every query with every target of its sample (eq. 10).

    cost[i, j] = cls * class_term + l1 * |b_i - b_j|_1 + giou * (1 - GIoU(b_i, b_j))

    logits: (..., B, N, C). boxes: (..., B, N, 4). Returns (..., B, N, M), 0 past a sample's count.
    class_cost: "softmax": -p_i[label_j], the last logit being no_object; "focal": the sigmoid-focal
        difference of Deformable DETR (alpha 0.25, gamma 2), where every logit is a class.
    A label that no logit has costs NaN. Raises ValueError where shapes, dtypes or devices disagree.
    """
    check_predictions(logits, boxes, targets)
    _check_choice("class_cost", class_cost, ("softmax", "focal"))
    return dispatch.pairwise_cost(logits, boxes, *dispatch.flat(targets), weights, class_cost, backend).mT


@torch.no_grad()
def assign(
    cost: Tensor,
    counts: Tensor | None = None,
    *,
    maximize: bool = False,
    check: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Exact linear assignment of B independent problems (eq. 11): `cost (B, N, M)` to `(B, M)` int64.

    The result holds, for each column, the row that it got, and -1 for a column past `counts (B,)` or left over
    because there are more columns than rows. Where several assignments cost the same, any of them may come out.
    An entry that is not finite (NaN, either infinity) is never chosen while an assignment without it exists.
    A count below 0 is as 0, one above M as M.
    check: raise ValueError, naming the problem, for such an entry and such a count. It waits for the device.
    Kernels compute in float32, and in float64 for float64, int32 and int64 costs.
    Raises ValueError for other shapes.
    """
    row_of_column, *_, status = _solve(cost, counts, maximize, backend, duals=False)
    if check:
        if counts is not None:
            check_counts("counts", counts, cost.shape[2])
        _check_status(status)
    return row_of_column


@torch.no_grad()
def solve_assignment(
    cost: Tensor, counts: Tensor | None = None, *, maximize: bool = False, backend: Backend = "auto"
) -> Assignment:
    """`assign` with all that is known of the solution: both sides, the dual prices that prove it, and the status."""
    return Assignment(*_solve(cost, counts, maximize, backend, duals=True))


def _solve(cost: Tensor, counts: Tensor | None, maximize: bool, backend: Backend, duals: bool) -> tuple[Tensor, ...]:
    if cost.ndim != 3:
        raise ValueError(f"cost must be (B, N, M), got {tuple(cost.shape)}")
    if counts is not None and counts.shape != cost.shape[:1]:
        raise ValueError(f"counts must be ({cost.shape[0]},) for {cost.shape[0]} problems, got {tuple(counts.shape)}")
    if counts is not None and (counts.device != cost.device or counts.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"counts must be int32 or int64 on {cost.device}, got {counts.dtype} on {counts.device}")
    return dispatch.assign(cost, counts, maximize, duals, backend)


def match(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    *,
    weights: MatchWeights = MatchWeights(),
    class_cost: ClassCost = "softmax",
    check: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """The query of each target under the cheapest matching (eq. 10 and 11): (..., B, M) int64, -1 past the count.

    Arguments and errors as `pairwise_cost` and `assign`; every leading index (decoder layer) is matched on its own.
    check: raise ValueError, too, naming the sample, for a count that is not in [0, M] and a label that no logit has.
    """
    matched, status = solve_matching(logits, boxes, targets, weights=weights, class_cost=class_cost, backend=backend)
    if check:
        check_values(targets, logits.shape[-1])
        _check_status(status)
    return matched


@torch.no_grad()
def solve_matching(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    *,
    weights: MatchWeights = MatchWeights(),
    class_cost: ClassCost = "softmax",
    backend: Backend = "auto",
) -> Matching:
    """`match` with the status of each problem, for who wants to know without waiting for the device."""
    check_predictions(logits, boxes, targets)
    _check_choice("class_cost", class_cost, ("softmax", "focal"))
    return Matching(*dispatch.match(logits, boxes, *dispatch.flat(targets), weights, class_cost, backend))


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    *,
    weights: MatchWeights = MatchWeights(),
    no_object_weight: float = 0.1,
    class_loss: ClassLoss = "cross_entropy",
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
        class, divided by the number of targets.
    l1, giou: sums over the matched pairs, divided by the number of targets in the batch (at least 1), as in DETR.
    A matched label that no logit has makes cls NaN, and the gradient of its query's logits.
    Deterministic: the kernels add up in a fixed order. Targets get no gradient. The kernels have no second derivative:
    to ask for one is a RuntimeError. The reference has it.
    check: raise ValueError, naming the sample, for a count that is not in [0, M], a label that no logit has, and what
        `matched` must not hold. It waits for the device.
    Raises ValueError where shapes, dtypes or devices disagree.
    """
    check_predictions(logits, boxes, targets)
    _check_choice("class_loss", class_loss, ("cross_entropy", "focal"))
    shape = (*logits.shape[:-2], targets.labels.shape[1])
    if matched.shape != shape:
        raise ValueError(f"matched must be {tuple(shape)}, got {tuple(matched.shape)}")
    if matched.dtype != torch.int64 or matched.device != logits.device:
        raise ValueError(f"matched must be int64 on {logits.device}, got {matched.dtype} on {matched.device}")
    if check:
        check_values(targets, logits.shape[-1])
        _check_matched(matched, targets, logits.shape[-2])
    if choose_backend(backend, logits.device) == "triton":
        options = (weights, no_object_weight, class_loss, per_layer)
        labels, target_boxes, counts, visible = dispatch.flat(targets)
        flat = (labels, target_boxes.detach(), counts, visible)
        return SetLoss(*dispatch.DifferentiableSetLoss.apply(logits, boxes, *flat, matched, *options))
    terms = reference.set_loss(logits, boxes, targets, matched, no_object_weight, class_loss)
    cls, l1, giou = terms if per_layer else (term.sum() for term in terms)
    return SetLoss(weights.cls * cls + weights.l1 * l1 + weights.giou * giou, cls, l1, giou)


@torch.no_grad()
def gather_clips(
    frames: Tensor,
    indices: Tensor,
    windows: Tensor | None = None,
    colour: Tensor | None = None,
    levels: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> Tensor:
    """Clips of cached frames, changed and normalised (ImageNet's mean and standard deviation) for a network.

    frames: (F, H, W, 3) uint8, contiguous RGB, of any number of videos. indices: (B, T) int64, the frame that is frame
        t of clip b.
    windows: (B, 4) float32 left, top, width, height of the part that is stretched to the whole picture, in [0, 1] of
        it. A negative width mirrors, left being the right edge then. Bilinear; what lies outside of the picture is as
        its border, as in `grid_sample(padding_mode="border", align_corners=False)`. None leaves every pixel as it is.
        Places are float32, so that a side of such a picture has at most 2^23 pixels.
    colour: (B, 3) float32 factors of brightness (everything), contrast (the distance from the mean of the clip, as it
        was before window and colour) and saturation (the distance from grey, the mean of the channels), in this order;
        clamped to [0, 1] at the end.
    levels: (F,) float32 from `frame_levels`; where there is `colour` only.
    dtype: float16, bfloat16, float32, or float64, which only the reference computes.
    Returns (B, 3, T, H, W), channels_last_3d. A frame is NaN where its index is not in [0, F), or its clip's window,
    colour or mean level is not finite. No gradient. Raises ValueError where shapes, dtypes or devices disagree.
    """
    _check_clips(frames, indices, windows, colour, levels)
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    return dispatch.gather_clips(frames, indices, windows, colour, None if colour is None else levels, dtype, backend)


def frame_levels(frames: Tensor) -> Tensor:
    """The mean of every frame over its pixels and channels, in [0, 1]: (F, H, W, 3) uint8 to (F,) float32.

    Of the exact sum. Raises ValueError for other frames than `gather_clips` takes.
    """
    _check_frames(frames)
    return reference.frame_levels(frames)


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ValueError(f"frames must be (F, H, W, 3) and not empty, got {tuple(frames.shape)}")
    if frames.dtype != torch.uint8 or not frames.is_contiguous():
        raise ValueError(f"frames must be uint8 and contiguous, got {frames.dtype} with strides {frames.stride()}")


def _check_clips(
    frames: Tensor, indices: Tensor, windows: Tensor | None, colour: Tensor | None, levels: Tensor | None
) -> None:
    _check_frames(frames)
    if indices.ndim != 2:
        raise ValueError(f"indices must be (B, T), got {tuple(indices.shape)}")
    height, width = frames.shape[1:3]
    if windows is not None and max(height, width) > LARGEST_SIDE:
        raise ValueError(f"with windows, frames may have at most {LARGEST_SIDE} pixels a side, got {height} x {width}")
    if colour is not None and levels is None:
        raise ValueError("colour needs the levels of the frames: frame_levels(frames)")
    batch = indices.shape[0]
    for name, tensor, shape, dtype in (
        ("indices", indices, tuple(indices.shape), torch.int64),
        ("windows", windows, (batch, 4), torch.float32),
        ("colour", colour, (batch, 3), torch.float32),
        ("levels", levels, (frames.shape[0],), torch.float32),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != dtype or tensor.device != frames.device:
            raise ValueError(f"{name} must be {dtype} on {frames.device}, got {tensor.dtype} on {tensor.device}")


def _check_boxes(a: Tensor, b: Tensor) -> None:
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"boxes must be floating point, got {a.dtype} and {b.dtype}")
    if a.device != b.device:
        raise ValueError(f"boxes must be on one device, got {a.device} and {b.device}")


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


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_status(status: Tensor) -> None:
    bad = (status & reference.NOT_FINITE).nonzero()
    if len(bad):
        raise ValueError(f"the cost of problem {tuple(bad[0].tolist())} is not finite ({len(bad)} of {status.numel()})")

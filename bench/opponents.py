"""Everything that can do the same work, each at its best settings, under one signature for each kind of work.

assign:    cost (B, N, M) -> (B, M) row of each column
cost:      Problem -> (L, B, N, M) matching cost
match:     Problem -> (L, B, M) query of each target
criterion: Problem -> total loss and the gradients of logits and boxes
clips:     Clips -> (B, 3, T, H, W) normalized clips of cached frames
centers:   CenterProblem -> total center loss, and the gradients of the maps
attention: Attention -> deformable attention, and the gradients of values, points and weights
peaks:     CenterMaps -> pixels, channels, scores, boxes and class logits of the ten highest peaks
overlaps:  Overlaps -> (B, N, C) which boxes are kept as one of each class
norm:      Features -> BatchNorm, sum and ReLU of them, and the gradients of features, weight, bias and shortcut
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from actdet_kernels import (
    CenterMaps,
    MatchWeights,
    assign,
    batch_norm,
    center_loss,
    center_peaks,
    deformable_attention,
    gather_clips,
    match,
    pairwise_cost,
    reference,
    set_loss,
    suppress_overlaps,
)
from actdet_kernels.options import CostOptions
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import batched_nms

from bench.cases import Attention, CenterProblem, Clips, Features, Overlaps, Problem

WEIGHTS = MatchWeights()
NO_OBJECT_WEIGHT = 0.1


class Absent(Exception):
    """This opponent is not installed, or cannot do this."""


# Assignment


def ours_assign(cost: Tensor) -> Tensor:
    return assign(cost)


def scipy_assign(cost: Tensor) -> Tensor:
    """DETR's way: to the host, a loop over problems, and back."""
    result = np.full((cost.shape[0], cost.shape[2]), -1)
    for problem, matrix in enumerate(cost.cpu().numpy()):
        rows, columns = linear_sum_assignment(matrix)
        result[problem, columns] = rows
    return torch.from_numpy(result).to(cost.device)


def lapx_assign(cost: Tensor) -> Tensor:
    """lapx.lapjvr_batch, its fastest, which takes float64."""
    solve = _peer("lap").lapjvr_batch
    matrices = cost.cpu().numpy().astype(np.float64)
    _, rows, columns = solve(matrices, extend_cost=True, return_cost=True, n_threads=torch.get_num_threads())
    return _of_pairs(cost, rows, columns)


def lapcpp_assign(cost: Tensor) -> Tensor:
    return _successor_of_lapx("lapcpp", cost)


def laprust_assign(cost: Tensor) -> Tensor:
    return _successor_of_lapx("laprust", cost)


def _successor_of_lapx(name: str, cost: Tensor) -> Tensor:
    """In float32, as they come."""
    solve = _peer(name).lapjv_batch
    matrices = cost.cpu().numpy()
    rows, columns = solve(matrices, extend_cost=True, return_cost=False, n_threads=torch.get_num_threads())
    return _of_pairs(cost, rows, columns)


def _of_pairs(cost: Tensor, rows: Any, columns: Any) -> Tensor:
    result = np.full((cost.shape[0], cost.shape[2]), -1)
    for problem, (row, column) in enumerate(zip(rows, columns, strict=True)):
        result[problem, column] = row
    return torch.from_numpy(result).to(cost.device)


def tla_assign(cost: Tensor) -> Tensor:
    """torch-linear-assignment: on a CPU it is SciPy in a loop, and not asked."""
    peer = _peer("torch_linear_assignment")
    if not cost.is_cuda:
        raise Absent("torch-linear-assignment has nothing of its own on a CPU")
    return peer.batch_linear_assignment(cost.mT)


ASSIGN: dict[str, Callable[[Tensor], Tensor]] = {
    "actdet": ours_assign,
    "scipy": scipy_assign,
    "lapx": lapx_assign,
    "lapcpp": lapcpp_assign,
    "laprust": laprust_assign,
    "torch-linear-assignment": tla_assign,
}

# torch-linear-assignment allocates by cudaMalloc and launches on the legacy stream. Neither can be captured, and
# PyTorch does not see either of them beforehand.
NEVER_CAPTURED = {"torch-linear-assignment"}


# The matching cost


def ours_cost(problem: Problem) -> Tensor:
    return pairwise_cost(*problem)


def eager_cost(problem: Problem) -> Tensor:
    return _reference_cost(*problem)


def compiled_cost(problem: Problem) -> Tensor:
    return _compiled(_reference_cost)(*problem)


COST: dict[str, Callable[[Problem], Tensor]] = {
    "actdet": ours_cost,
    "eager PyTorch": eager_cost,
    "torch.compile": compiled_cost,
}


def _reference_cost(logits: Tensor, boxes: Tensor, targets: Any) -> Tensor:
    return reference.pairwise_cost(logits, boxes, targets, CostOptions(WEIGHTS, "softmax", 0.0, 0.0, "giou"))


# Matching


def ours_match(problem: Problem) -> Tensor:
    return match(*problem)


def eager_match(problem: Problem) -> Tensor:
    return reference_match(problem)


def reference_match(problem: Problem) -> Tensor:
    return match(*problem, backend="reference")


def huggingface_match(problem: Problem) -> Tensor:
    """The matcher of transformers, layer by layer."""
    matcher = _huggingface_matcher()
    result = torch.full(problem.logits.shape[:2] + problem.targets.labels.shape[1:], -1)
    wanted = _list_of_targets(problem)
    for layer, (logits, boxes) in enumerate(zip(problem.logits, problem.boxes, strict=True)):
        for sample, (query, target) in enumerate(matcher({"logits": logits, "pred_boxes": boxes}, wanted)):
            result[layer, sample, target] = query
    return result.to(problem.logits.device)


MATCH: dict[str, Callable[[Problem], Tensor]] = {
    "actdet": ours_match,
    "eager PyTorch + scipy": eager_match,
    "huggingface": huggingface_match,
}


# Matching, losses and gradients

Outcome = tuple[Tensor, Tensor, Tensor]
Normed = tuple[Tensor, ...]
Attended = tuple[Tensor, ...]
Found = tuple[Tensor, ...]


def ours_criterion(problem: Problem) -> Outcome:
    return _with_gradients(problem, _ours)


def eager_criterion(problem: Problem) -> Outcome:
    return _with_gradients(problem, _reference)


def compiled_criterion(problem: Problem) -> Outcome:
    """torch.compile of the eager code; the matching within it is an operator that goes through SciPy."""
    return _with_gradients(problem, _compiled(_reference))


def huggingface_criterion(problem: Problem) -> Outcome:
    """transformers' ImageLoss over all layers, which matches each of them, and the sum under DETR's weights."""
    loss = _huggingface_loss(problem.logits.shape[-1] - 1).to(problem.logits.device)
    wanted = _list_of_targets(problem)

    def total(logits: Tensor, boxes: Tensor, _: Any) -> Tensor:
        layers = [{"logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
        terms = loss({**layers[-1], "auxiliary_outputs": layers[:-1]}, wanted)
        weights = {"loss_ce": WEIGHTS.cls, "loss_bbox": WEIGHTS.l1, "loss_giou": WEIGHTS.giou}
        weighted = (weights[key] * terms[name] for name in terms for key in weights if name.startswith(key))
        # Only a sum of nothing would be a number.
        return cast(Tensor, sum(weighted))

    return _with_gradients(problem, total)


CRITERION: dict[str, Callable[[Problem], Outcome]] = {
    "actdet": ours_criterion,
    "eager PyTorch + scipy": eager_criterion,
    "torch.compile + scipy": compiled_criterion,
    "huggingface": huggingface_criterion,
}

MATCHER_OF = {  # the matching within each criterion
    "actdet": ours_match,
    "eager PyTorch + scipy": eager_match,
    "torch.compile + scipy": reference_match,
    "huggingface": huggingface_match,
}


def _ours(logits: Tensor, boxes: Tensor, targets: Any) -> Tensor:
    return set_loss(logits, boxes, targets, match(logits, boxes, targets)).total


def _reference(logits: Tensor, boxes: Tensor, targets: Any) -> Tensor:
    matched = match(logits, boxes, targets, backend="reference")
    return set_loss(logits, boxes, targets, matched, backend="reference").total


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def _with_gradients(problem: Problem, total: Callable[..., Tensor]) -> Outcome:
    logits, boxes = (value.detach().requires_grad_() for value in (problem.logits, problem.boxes))
    loss = total(logits, boxes, problem.targets)
    d_logits, d_boxes = torch.autograd.grad(loss, [logits, boxes])
    return loss, d_logits, d_boxes


# The loss of centers


def ours_centers(problem: CenterProblem) -> tuple[Tensor, ...]:
    return _of_maps(problem, lambda maps, targets: center_loss(maps, targets).total)


def eager_centers(problem: CenterProblem) -> tuple[Tensor, ...]:
    return _of_maps(problem, _reference_centers)


def compiled_centers(problem: CenterProblem) -> tuple[Tensor, ...]:
    return _of_maps(problem, _compiled(_reference_centers))


CENTER_LOSS: dict[str, Callable[[CenterProblem], tuple[Tensor, ...]]] = {
    "actdet": ours_centers,
    "eager PyTorch": eager_centers,
    "torch.compile": compiled_centers,
}


def _reference_centers(maps: CenterMaps, targets: Any) -> Tensor:
    return center_loss(maps, targets, backend="reference").total


def _of_maps(problem: CenterProblem, total: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    """The total, and the gradients of all maps that there are."""
    leaves = [None if each is None else each.detach().requires_grad_() for each in problem.maps]
    loss = total(CenterMaps(*cast(Any, leaves)), problem.targets)
    return loss.detach(), *torch.autograd.grad(loss, [each for each in leaves if each is not None])


# Clips


def ours_clips(clips: Clips) -> Tensor:
    return gather_clips(*clips)


def eager_clips(clips: Clips) -> Tensor:
    return gather_clips(*clips, backend="reference")


GATHER: dict[str, Callable[[Clips], Tensor]] = {"actdet": ours_clips, "eager PyTorch": eager_clips}


# Deformable attention


def ours_attention(problem: Attention) -> Attended:
    return _attended(problem, lambda *inputs: deformable_attention(*inputs, sizes=problem.sizes))


def unordered_attention(problem: Attention) -> Attended:
    """Ours without deterministic gradients, which on a CPU they always are."""
    if problem.values.device.type == "cpu":
        raise Absent("on a CPU it is the same as with an order")
    return _attended(problem, lambda *inputs: deformable_attention(*inputs, sizes=problem.sizes, deterministic=False))


def eager_attention(problem: Attention) -> Attended:
    return _attended(problem, lambda *inputs: deformable_attention(*inputs, sizes=problem.sizes, backend="reference"))


def huggingface_attention(problem: Attention) -> Attended:
    """transformers' module in PyTorch, which all of its deformable detectors share."""
    return _attended(problem, _huggingface_attention(problem))


def compiled_attention(problem: Attention) -> Attended:
    """torch.compile of transformers' module."""
    return _attended(problem, _compiled(_huggingface_attention(problem)))


ATTENTION: dict[str, Callable[[Attention], Attended]] = {
    "actdet": ours_attention,
    "actdet, any order": unordered_attention,
    "eager PyTorch": eager_attention,
    "huggingface": huggingface_attention,
    "torch.compile": compiled_attention,
}


def _huggingface_attention(problem: Attention) -> Callable[..., Tensor]:
    device = problem.values.device
    return _huggingface_attention_of(tuple(problem.sizes), device)


@cache
def _huggingface_attention_of(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Callable[..., Tensor]:
    name = "transformers.models.deformable_detr.modeling_deformable_detr"
    module = _peer(name).MultiScaleDeformableAttention()
    shapes = torch.tensor(sizes, device=device)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    return lambda values, points, weights: module(values, shapes, list(sizes), starts, points, weights, 64)


def _attended(problem: Attention, attend: Callable[..., Tensor]) -> Attended:
    """The result, and the gradients of all that is given."""
    inputs = [value.detach().requires_grad_() for value in problem[:3]]
    out = attend(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, problem.d_out)


# Peaks of maps of centers


def ours_peaks(maps: CenterMaps) -> Found:
    return center_peaks(maps)


def eager_peaks(maps: CenterMaps) -> Found:
    return center_peaks(maps, backend="reference")


def centernet_peaks(maps: CenterMaps) -> Found:
    """CenterNet's decoding, with MOC's boxes. Ties are in any order, and what is not finite is not looked at."""
    centers, movement, sizes, classes = maps
    batch, _, height, width = centers.shape
    frames = movement.shape[1]
    peaks = 10
    scores = centers.sigmoid()
    scores = scores * (F.max_pool2d(scores, 3, 1, 1) == scores)
    scores, pixels = scores.flatten(2).topk(peaks)
    scores, place = scores.flatten(1).topk(peaks)
    pixels = pixels.flatten(1).gather(1, place)

    middle = torch.stack([pixels % width, pixels // width], -1) + 0.5
    index = pixels[:, None, None].expand(-1, frames, 2, -1)
    moved = middle[:, :, None] + movement.flatten(3).gather(3, index).permute(0, 3, 1, 2)
    u = moved[..., 0].long().clamp(0, width - 1)
    v = moved[..., 1].long().clamp(0, height - 1)
    index = (v * width + u).transpose(1, 2)[:, :, None].expand(-1, -1, 4, -1)
    left, top, right, bottom = sizes.flatten(3).gather(3, index).permute(2, 0, 3, 1)
    center_x = u + 0.5 + (right - left) / 2
    center_y = v + 0.5 + (bottom - top) / 2
    boxes = torch.stack([center_x / width, center_y / height, (left + right) / width, (top + bottom) / height], -1)

    logits = scores.new_zeros(batch, peaks, 0)
    if classes is not None:
        rows, columns = classes.shape[2:]
        cell = pixels // width * rows // height * columns + pixels % width * columns // width
        logits = classes.flatten(2).gather(2, cell[:, None].expand(-1, classes.shape[1], -1)).transpose(1, 2)
    return pixels, place // peaks, scores, boxes, logits


def compiled_peaks(maps: CenterMaps) -> Found:
    """torch.compile of CenterNet's."""
    return _compiled(centernet_peaks)(maps)


DECODE: dict[str, Callable[[CenterMaps], Found]] = {
    "actdet": ours_peaks,
    "eager PyTorch": eager_peaks,
    "CenterNet": centernet_peaks,
    "torch.compile": compiled_peaks,
}


# Suppression of boxes that overlap


IOU_THRESHOLD = 0.5
SCORE_THRESHOLD = 0.05


def ours_suppress(problem: Overlaps) -> Tensor:
    return suppress_overlaps(*problem, iou_threshold=IOU_THRESHOLD, score_threshold=SCORE_THRESHOLD)


def eager_suppress(problem: Overlaps) -> Tensor:
    return suppress_overlaps(
        *problem, iou_threshold=IOU_THRESHOLD, score_threshold=SCORE_THRESHOLD, backend="reference"
    )


def torchvision_suppress(problem: Overlaps) -> Tensor:
    """As torchvision's detectors do it: a loop over samples, of which each keeps what is sure enough."""
    boxes, scores = problem
    if boxes.ndim == 4:
        raise Absent("boxes alone")
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for mine, of_sample, found in zip(boxes, scores, kept, strict=True):
        rows, labels = (of_sample > SCORE_THRESHOLD).nonzero(as_tuple=True)
        numbers = batched_nms(mine[rows], of_sample[rows, labels], labels, IOU_THRESHOLD)
        found[rows[numbers], labels[numbers]] = True
    return kept


SUPPRESS: dict[str, Callable[[Overlaps], Tensor]] = {
    "actdet": ours_suppress,
    "eager PyTorch": eager_suppress,
    "torchvision": torchvision_suppress,
}


# Batch normalization


def ours_norm(features: Features) -> Normed:
    return _normed(_pictures_of(features), _own_norm)


def pictures_norm(features: Features) -> Normed:
    """PyTorch's over B*T pictures, for which it has channels-last kernels."""
    return _normed(_pictures_of(features), _plain_norm)


def video_norm(features: Features) -> Normed:
    """PyTorch's as torchvision calls it."""
    return _normed(features, _plain_norm)


def compiled_norm(features: Features) -> Normed:
    return _normed(features, _compiled(_plain_norm))


NORM: dict[str, Callable[[Features], Normed]] = {
    "actdet": ours_norm,
    "eager PyTorch, pictures": pictures_norm,
    "eager PyTorch": video_norm,
    "torch.compile": compiled_norm,
}


def _own_norm(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None = None) -> Tensor:
    return batch_norm(x, weight, bias, shortcut=shortcut, relu=True)


def _plain_norm(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None = None) -> Tensor:
    y = F.batch_norm(x, None, None, weight, bias, training=True)
    if shortcut is not None:
        y += shortcut
    return F.relu_(y)


def _pictures_of(features: Features) -> Features:
    """The same as B*T pictures, which are views."""
    changed = {
        name: value.transpose(1, 2).flatten(0, 1)
        for name, value in features._asdict().items()
        if value is not None and value.ndim > 1
    }
    return features._replace(**changed)


def _normed(features: Features, norm: Callable[..., Tensor]) -> Normed:
    """The output, and the gradients of all that is given."""
    given = [value for value in features[:4] if value is not None]
    leaves = [value.detach().requires_grad_() for value in given]
    y = norm(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, features.d_y)


@cache
def _huggingface_matcher() -> Any:
    return _peer("transformers.loss.loss_for_object_detection").HungarianMatcher(
        class_cost=WEIGHTS.cls, bbox_cost=WEIGHTS.l1, giou_cost=WEIGHTS.giou
    )


@cache
def _huggingface_loss(labels: int) -> Any:
    module = _peer("transformers.loss.loss_for_object_detection")
    losses = ["labels", "boxes"]
    return module.ImageLoss(
        matcher=_huggingface_matcher(), num_classes=labels, eos_coef=NO_OBJECT_WEIGHT, losses=losses
    )


def _list_of_targets(problem: Problem) -> list[dict[str, Tensor]]:
    """Every row of a benchmark's targets is real."""
    if problem.boxes.ndim != problem.logits.ndim:
        raise Absent("no tubelets")
    pairs = zip(problem.targets.labels, problem.targets.boxes, strict=True)
    return [{"class_labels": labels, "boxes": boxes} for labels, boxes in pairs]


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of a problem or of an outcome."""
    if value is None or isinstance(value, int):
        return []
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in tensors_of(part)]


def _peer(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Absent(f"{module} cannot be imported: {error}") from None

"""What the operations should give, one pair and one sample at a time, in Python floats or float64 autograd."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from itertools import permutations
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from actdet_kernels import CenterMaps, MatchWeights, Targets, Tubelets
from scipy.optimize import brentq
from torch import Tensor
from torchvision.ops import box_convert, box_iou, distance_box_iou_loss, generalized_box_iou, sigmoid_focal_loss

# The leading dimensions of a case of `loss_case`, its numbers of queries and classes, the counts, the padded size.
LossCase = tuple[tuple[int, ...], int, int, list[int], int]


def random_boxes(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Boxes of 5 to 60 percent of the picture, some across its edge, as a detector's sigmoid gives them."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    size = 0.05 + 0.55 * torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return torch.cat([center, size], -1).to(dtype)


def random_logits(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def random_targets(
    counts: list[int], size: int, labels: int, *, seed: int, dtype: torch.dtype = torch.float64, garbage: bool = True
) -> Targets:
    """Targets of `labels` classes; the rows past a sample's count hold what must never be looked at."""
    generator = torch.Generator().manual_seed(seed + 2000)
    classes = torch.randint(labels, (len(counts), size), generator=generator)
    boxes = random_boxes(len(counts), size, seed=seed + 3000, dtype=dtype)
    targets = Targets(classes, boxes, torch.tensor(counts, dtype=torch.int32))
    if garbage:
        for sample, count in enumerate(counts):
            for row in range(count, size):
                classes[sample, row] = (-1, 10**6, -(2**63))[row % 3]
                boxes[sample, row] = torch.tensor([math.nan, math.inf, -math.inf, -1.0])
    return targets


def loss_case(
    leading: tuple[int, ...], queries: int, classes: int, counts: list[int], size: int, class_loss: str
) -> tuple[Tensor, Tensor, Targets, Tensor]:
    """logits, boxes, targets and any one-to-one matching: the loss does not ask for the best."""
    labels = classes - (class_loss == "cross_entropy")
    targets = random_targets(counts, size, labels, seed=16)
    logits = random_logits(*leading, len(counts), queries, classes, seed=16)
    boxes = random_boxes(*leading, len(counts), queries, seed=17)
    generator = torch.Generator().manual_seed(18)
    matched = torch.full((*leading, len(counts), size), -1)
    for place in np.ndindex(*leading, len(counts)):
        count = min(counts[place[-1]], queries)
        columns = torch.randperm(counts[place[-1]], generator=generator)[:count]
        matched[(*place, columns)] = torch.randperm(queries, generator=generator)[:count]
    return logits, boxes, targets, matched


def weighted_sum(weights: Iterable[float | Tensor], values: Iterable[Tensor]) -> Tensor:
    """The sum of as many products, in the dtype of the values."""
    return functools.reduce(operator.add, (weight * value for weight, value in zip(weights, values, strict=True)))


def giou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of two boxes (4,), differentiable, by torchvision."""
    first, second = (box_convert(box[None], "cxcywh", "xyxy") for box in (a, b))
    return generalized_box_iou(first, second)[0, 0]


def box_loss(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """1 - GIoU, DIoU or CIoU of two boxes (4,), differentiable, by torchvision, nothing added to denominators."""
    if kind == "giou":
        return 1 - giou(a, b)
    first, second = (box_convert(box, "cxcywh", "xyxy") for box in (a, b))
    loss = distance_box_iou_loss(first, second, eps=0.0)
    if kind == "ciou":
        v = 4 / math.pi**2 * (torch.atan(b[2] / b[3]) - torch.atan(a[2] / a[3])) ** 2
        with torch.no_grad():
            alpha = v / (1 - box_iou(first[None], second[None])[0, 0] + v)
        loss = loss + alpha * v
    return loss


def pair_cost(
    logits: list[float],
    box: list[float],
    label: int,
    target: list[float],
    weights: MatchWeights,
    class_cost: str,
    alpha: float,
    gamma: float,
    box_term: str,
) -> float:
    """Equation 10 for one query and one target."""
    if class_cost == "softmax":
        top = max(logits)
        cls = -math.exp(logits[label] - top) / sum(math.exp(value - top) for value in logits)
    else:
        found, missed = math.log1p(math.exp(-logits[label])), math.log1p(math.exp(logits[label]))
        cls = alpha * math.exp(-gamma * missed) * found - (1 - alpha) * math.exp(-gamma * found) * missed
    l1 = sum(abs(one - other) for one, other in zip(box, target, strict=True))
    if box_term != "giou":
        mine, wanted = (torch.tensor(values, dtype=torch.float64) for values in (box, target))
        return weights.cls * cls + weights.l1 * l1 + weights.giou * box_loss(mine, wanted, box_term).item()
    spans = [[(b[i] - b[i + 2] / 2, b[i] + b[i + 2] / 2) for b in (box, target)] for i in (0, 1)]
    inter = math.prod(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in spans)
    hull = math.prod(max(a[1], b[1]) - min(a[0], b[0]) for a, b in spans)
    union = box[2] * box[3] + target[2] * target[3] - inter
    return weights.cls * cls + weights.l1 * l1 + weights.giou * (1 - (inter / union - (hull - union) / hull))


def costs(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    weights: MatchWeights,
    class_cost: str,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_term: str = "giou",
) -> Tensor:
    """The cost (..., B, N, M), pair by pair, zero past a sample's count."""
    *leading, batch, queries, _ = logits.shape
    result = torch.zeros(*leading, batch, queries, targets.labels.shape[1], dtype=torch.float64)
    layers = math.prod(leading)
    flat = result.view(layers, batch, *result.shape[-2:])
    rows = logits.double().reshape(layers, batch, queries, logits.shape[-1]).tolist()
    places = boxes.double().reshape(layers, batch, queries, 4).tolist()
    for layer in range(layers):
        for sample, count in enumerate(targets.counts.tolist()):
            for query in range(queries):
                for target in range(count):
                    flat[layer, sample, query, target] = pair_cost(
                        rows[layer][sample][query],
                        places[layer][sample][query],
                        int(targets.labels[sample, target]),
                        targets.boxes[sample, target].double().tolist(),
                        weights,
                        class_cost,
                        alpha,
                        gamma,
                        box_term,
                    )
    return result


def best_assignment(cost: list[list[float]], rows: int, columns: int) -> tuple[int, float]:
    """The fewest non-finite entries that an assignment of all min(rows, columns) can have, and its cheapest sum."""

    def price(pairs: list[tuple[int, int]]) -> tuple[int, float]:
        values = [cost[row][column] for row, column in pairs]
        finite = [value for value in values if math.isfinite(value)]
        return len(values) - len(finite), math.fsum(finite)

    if rows >= columns:
        options = (
            [(row, column) for column, row in enumerate(chosen)] for chosen in permutations(range(rows), columns)
        )
    else:
        options = (
            [(row, column) for row, column in enumerate(chosen)] for chosen in permutations(range(columns), rows)
        )
    return min(map(price, options))


def criterion(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    matched: Tensor,
    no_object_weight: float,
    class_loss: str,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_term: str = "giou",
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """DETR's criterion, sample by sample and pair by pair: cls, l1 and giou, differentiable, summed over layers."""
    *leading, batch, queries, classes = logits.shape
    layers = math.prod(leading)
    counts = targets.counts.tolist()
    number = max(sum(counts), 1)
    cls = l1 = overlap = torch.zeros((), dtype=logits.dtype)
    fields = (field.view(layers, *field.shape[-3:]) for field in (logits, boxes))
    for layer_logits, layer_boxes, layer_matched in zip(
        *fields, matched.view(layers, *matched.shape[-2:]), strict=True
    ):
        wanted: list[list[int | None]] = [[None] * queries for _ in range(batch)]
        for sample, count in enumerate(counts):
            for target in range(count):
                query = int(layer_matched[sample, target])
                if query >= 0:
                    wanted[sample][query] = int(targets.labels[sample, target])
                    box, real = layer_boxes[sample, query], targets.boxes[sample, target].to(boxes.dtype)
                    l1 = l1 + F.l1_loss(box, real, reduction="sum") / number
                    overlap = overlap + box_loss(box, real, box_term) / number
        flat = [label for sample in wanted for label in sample]
        if class_loss == "cross_entropy":
            labels = torch.tensor([classes - 1 if label is None else label for label in flat])
            weight = torch.ones(classes, dtype=logits.dtype)
            weight[-1] = no_object_weight
            weight = weight if class_weights is None else class_weights.to(logits.dtype)
            cls = cls + F.cross_entropy(layer_logits.flatten(0, 1), labels, weight)
        elif class_loss == "focal":
            one_hot = torch.tensor([[float(label == index) for index in range(classes)] for label in flat])
            one_hot = one_hot.to(logits.dtype)
            loss = sigmoid_focal_loss(layer_logits.flatten(0, 1), one_hot, alpha, gamma)
            loss = loss if class_weights is None else loss * class_weights.to(logits.dtype)
            cls = cls + loss.sum() / number
    return cls, l1, overlap


def labels_of(targets: Targets | Tubelets, sample: int, target: int) -> list[int]:
    """The labels of one target: the first, and those behind it that are not -1."""
    first, *others = targets.labels[sample, target].reshape(-1).tolist()
    return [first, *(label for label in others if label != -1)]


def sigmoid_class_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    class_loss: str,
    alpha: float,
    gamma: float,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Query by query: focal as torchvision, varifocal as RT-DETR's loss_labels_vfl, quality focal as its paper."""
    wanted = torch.zeros_like(logits)
    label = torch.zeros_like(logits)
    for place in np.ndindex(*matched.shape):
        *problem, target = place
        sample, query = problem[-1], int(matched[place])
        if query >= 0 and target < targets.counts[sample]:
            pair = (boxes[(*problem, query)].detach(), targets.boxes[sample, target])
            mine, real = (box_convert(box.reshape(-1, 4).double(), "cxcywh", "xyxy") for box in pair)
            ious = box_iou(mine, real).diag()
            visible = targets.visible[sample, target].tolist() if isinstance(targets, Tubelets) else [True]
            seen = [iou for iou, here in zip(ious, visible, strict=True) if here]
            for index in labels_of(targets, sample, target):
                wanted[(*problem, query, index)] = torch.stack(seen).mean() if seen else 1.0
                label[(*problem, query, index)] = 1.0
    if class_loss == "focal":
        terms = sigmoid_focal_loss(logits, label, alpha, gamma)
    else:
        weight = (wanted - logits.sigmoid()).abs().pow(gamma)
        if class_loss == "varifocal":
            weight = alpha * logits.detach().sigmoid().pow(gamma) * (1 - label) + wanted
        terms = weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    if class_weights is not None:
        terms = terms * class_weights.to(terms.dtype)
    return terms.sum() / max(int(targets.counts.sum()), 1)


def sigmoid_class_costs(
    logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, class_cost: str, alpha: float, gamma: float
) -> Tensor:
    """(..., B, N, M): what the class loss changes by when one query gets one target, zero past a sample's count."""
    *leading, batch, queries, _ = logits.shape
    size = targets.labels.shape[1]
    result = torch.zeros(*leading, batch, queries, size, dtype=torch.float64)
    number = max(int(targets.counts.sum()), 1)
    options = (class_cost, alpha, gamma)
    for place in np.ndindex(*result.shape):
        *problem, query, target = place
        if target >= targets.counts[problem[-1]]:
            continue
        none = torch.full((*leading, batch, size), -1)
        one = none.clone()
        one[(*problem, target)] = query
        rest = (logits.double(), boxes, targets)
        with_it, without = (sigmoid_class_loss(*rest, matched, *options) for matched in (one, none))
        result[place] = number * (with_it - without)
    return result


# Tubelets: the class terms of plain boxes, and box terms frame by frame


def random_tubelets(
    counts: list[int], size: int, frames: int, labels: int, *, seed: int, dtype: torch.dtype = torch.float64
) -> Tubelets:
    """As `random_targets`; frames in which a tubelet is not visible hold what must never be looked at, too."""
    plain = random_targets(counts, size, labels, seed=seed, dtype=dtype)
    visible = torch.rand(len(counts), size, frames, generator=torch.Generator().manual_seed(seed)) < 0.6
    visible[:, 1::3] = False  # nowhere
    boxes = random_boxes(len(counts), size, frames, seed=seed + 4000, dtype=dtype)
    boxes[~visible] = torch.tensor([math.nan, math.inf, -math.inf, -1e30], dtype=dtype)
    boxes = torch.where(plain.valid[..., None, None], boxes, math.nan)
    return Tubelets(plain.labels, boxes, plain.counts, visible)


def with_frame_labels(targets: Tubelets, classes: int, most: int) -> Tubelets:
    """One to `most` different labels in each visible frame; in the others, and in padding, what must never be read."""
    rng = np.random.default_rng(8)
    labels = np.full((*targets.visible.shape, most), 10**6)
    for place in np.ndindex(*targets.visible.shape):
        if place[1] < targets.counts[place[0]] and targets.visible[place]:
            number = rng.integers(1, min(most, classes) + 1)
            labels[place] = -1
            labels[place][:number] = rng.permutation(classes)[:number]
    return targets._replace(labels=torch.from_numpy(labels))


def frame_mean(values: list[Tensor], visible: list[bool]) -> Tensor:
    """The mean of the visible ones, 0 where there is none."""
    seen = [value for value, here in zip(values, visible, strict=True) if here]
    return sum(seen, torch.zeros((), dtype=torch.float64)) / max(len(seen), 1)


def tubelet_costs(
    logits: Tensor,
    boxes: Tensor,
    targets: Tubelets,
    weights: MatchWeights,
    class_cost: str,
    box_term: str = "giou",
) -> Tensor:
    """The cost (..., B, N, M), pair by pair and frame by frame, zero past a sample's count."""
    places = torch.full((*boxes.shape[:-2], 4), 0.5)
    cls = costs(logits, places, plain(targets), MatchWeights(weights.cls, 0.0, 0.0), class_cost)
    result = cls.clone()
    for place in np.ndindex(*cls.shape):
        *problem, query, target = place
        if target < targets.counts[problem[-1]]:
            l1, overlap = tube_terms(boxes[(*problem, query)], targets, problem[-1], target, box_term)
            result[place] += weights.l1 * l1 + weights.giou * overlap
    return result


def tube_terms(
    tube: Tensor, targets: Tubelets, sample: int, target: int, box_term: str = "giou"
) -> tuple[Tensor, Tensor]:
    """The L1 term of one tubelet (T, 4) and that of its overlap, differentiable."""
    tube, real = tube.double(), targets.boxes[sample, target].double()
    visible = targets.visible[sample, target].tolist()
    l1 = [(mine - wanted).abs().sum() for mine, wanted in zip(tube, real, strict=True)]
    overlap = [box_loss(mine, wanted, box_term) for mine, wanted in zip(tube, real, strict=True)]
    return frame_mean(l1, visible), frame_mean(overlap, visible)


def plain(targets: Tubelets) -> Targets:
    """The same labels and counts, with some box."""
    return Targets(targets.labels, torch.full((*targets.labels.shape, 4), 0.5), targets.counts)


def tubelet_criterion(
    logits: Tensor,
    boxes: Tensor,
    targets: Tubelets,
    matched: Tensor,
    no_object_weight: float,
    class_loss: str,
    box_term: str = "giou",
) -> tuple[Tensor, Tensor, Tensor]:
    """`criterion` of tubelets."""
    places = torch.full((*logits.shape[:-1], 4), 0.5, dtype=logits.dtype)
    cls = criterion(logits, places, plain(targets), matched, no_object_weight, class_loss)[0]
    l1 = overlap = torch.zeros((), dtype=torch.float64)
    number = max(int(targets.counts.sum()), 1)
    for place in np.ndindex(*matched.shape):
        *problem, target = place
        if matched[place] >= 0 and target < targets.counts[problem[-1]]:
            terms = tube_terms(boxes[(*problem, int(matched[place]))], targets, problem[-1], target, box_term)
            l1, overlap = l1 + terms[0] / number, overlap + terms[1] / number
    return cls, l1, overlap


def in_frame(targets: Tubelets, frame: int) -> Tubelets:
    """With the labels that targets have in a frame; 0 for those of each frame where they are not visible."""
    if targets.labels.ndim < 4:
        return targets
    return targets._replace(labels=torch.where(targets.visible[:, :, frame, None], targets.labels[:, :, frame], 0))


def frame_costs(logits: Tensor, boxes: Tensor, targets: Tubelets, weights: MatchWeights, class_cost: str) -> Tensor:
    """`tubelet_costs` with logits of each frame (..., B, N, T, C)."""
    any_label = targets._replace(labels=torch.zeros(targets.labels.shape[:2], dtype=torch.int64))
    no_class = tubelet_costs(logits[..., 0, :], boxes, any_label, weights._replace(cls=0.0), class_cost)
    places = torch.full((*boxes.shape[:-2], 4), 0.5)
    only_class = MatchWeights(weights.cls, 0.0, 0.0)
    of_frames = []
    for frame in range(logits.shape[-2]):
        of_frame = torch.zeros_like(no_class)
        labels = in_frame(targets, frame).labels
        for of_one in labels.unbind(-1) if labels.ndim > 2 else [labels]:
            one_label = plain(targets._replace(labels=of_one.clamp(min=0)))
            term = costs(logits[..., frame, :], places, one_label, only_class, class_cost)
            of_frame += torch.where((of_one >= 0)[:, None], term, 0)
        of_frames.append(of_frame)
    for place in np.ndindex(*no_class.shape):
        *problem, _, target = place
        if target < targets.counts[problem[-1]]:
            visible = targets.visible[problem[-1], target].tolist()
            no_class[place] += frame_mean([cost[place] for cost in of_frames], visible)
    return no_class


def frame_criterion(
    logits: Tensor,
    boxes: Tensor,
    targets: Tubelets,
    matched: Tensor,
    no_object_weight: float,
    class_loss: str,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`tubelet_criterion` with logits of each frame (..., B, N, T, C): frame by frame, each query a row of logits."""
    classes = logits.shape[-1]
    any_label = targets._replace(labels=torch.zeros(targets.labels.shape[:2], dtype=torch.int64))
    _, l1, overlap = tubelet_criterion(logits[..., 0, :], boxes, any_label, matched, no_object_weight, class_loss)
    cls = torch.zeros((), dtype=torch.float64)
    for layer in np.ndindex(*matched.shape[:-2]):
        rows = []
        wanted = []
        for sample, of_sample in enumerate(matched[layer].tolist()):
            owner = {query: target for target, query in enumerate(of_sample) if query >= 0}
            for query, frame in np.ndindex(*logits.shape[-3:-1]):
                target = owner.get(query, -1)
                shown = 0 <= target < targets.counts[sample] and targets.visible[sample, target, frame]
                rows.append(logits[(*layer, sample, query, frame)])
                wanted.append(labels_of(in_frame(targets, frame), sample, target) if shown else [])
        if class_loss == "cross_entropy":
            weight = torch.ones(classes, dtype=torch.float64) if class_weights is None else class_weights.double()
            if class_weights is None:
                weight[-1] = no_object_weight
            labels = torch.tensor([found[0] if found else classes - 1 for found in wanted])
            cls = cls + F.cross_entropy(torch.stack(rows).double(), labels, weight)
        else:
            yes = torch.zeros(len(rows), classes, dtype=torch.float64)
            for row, found in enumerate(wanted):
                yes[row, found] = 1
            terms = sigmoid_focal_loss(torch.stack(rows).double(), yes, 0.25, 2.0)
            terms = terms if class_weights is None else terms * class_weights.double()
            cls = cls + terms.sum() / max(int(targets.counts.sum()), 1) / logits.shape[-2]
    return cls, l1, overlap


def random_clips(
    shape: tuple[int, int, int], clips: int, frames: int, *, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A pool of noise (F, H, W, 3), indices (B, T), crops within and across the border, colors."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)
    indices = torch.randint(shape[0], (clips, frames), generator=generator)
    crops = torch.rand(clips, 4, generator=generator) * 1.2 - 0.1
    crops[1::2, 2] *= -1
    return pool, indices, crops, 0.5 + torch.rand(clips, 3, generator=generator)


def changed_clips(
    pool: Tensor, indices: Tensor, crops: Tensor | None = None, color: Tensor | None = None
) -> np.ndarray:
    """(B, 3, T, H, W) in float64, one frame at a time."""
    _, height, width, _ = pool.shape
    out = np.full((*indices.shape, height, width, 3), math.nan)
    for clip, chosen in enumerate(indices.tolist()):
        known = [index for index in chosen if 0 <= index < len(pool)]
        mean = np.mean([pool[index].double().mean() / 255 for index in known]) if known else 0.0
        for place, index in enumerate(chosen):
            if index not in known:
                continue
            pixels = pool[index].double().numpy() / 255
            if crops is not None:
                left, top, across, down = crops[clip].double().tolist()
                for side, first, extent in ((1, left, across), (0, top, down)):
                    size = pixels.shape[side]
                    at = np.clip((first + (np.arange(size) + 0.5) / size * extent) * size - 0.5, 0, size - 1)
                    low = np.floor(at).astype(int)
                    share = (at - low).reshape(-1, 1) if side else (at - low).reshape(-1, 1, 1)
                    behind = pixels.take(np.minimum(low + 1, size - 1), side)
                    pixels = (1 - share) * pixels.take(low, side) + share * behind
            if color is not None:
                brightness, contrast, saturation = color[clip].double().tolist()
                pixels = mean * brightness + contrast * (pixels - mean) * brightness
                gray = pixels.mean(-1, keepdims=True)
                pixels = np.clip(gray + saturation * (pixels - gray), 0, 1)
            out[clip, place] = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return out.transpose(0, 4, 1, 2, 3)


def clip_error(pool: Tensor, crops: Tensor | None, color: Tensor | None) -> float:
    """By how much `changed_clips` may be missed in float32.

    16 roundings of values up to 1, and as much as neighbors may differ, 1, for every rounding of a coordinate, of
    which there are 8 at the scale of a side; all multiplied by the factors of color, and divided by the least std.
    """
    eps = torch.finfo(torch.float32).eps
    roundings = 16 + (8 * sum(pool.shape[1:3]) if crops is not None else 0)
    factor = 1.0 if color is None or len(color) == 0 else 3 * color.abs().clamp(min=1).prod(1).max().item()
    return eps * roundings * factor / 0.224


# Heights and widths of levels.
Sizes = list[tuple[int, int]]


def sum_over_pixels(values: Tensor, points: Tensor, weights: Tensor, sizes: Sizes, mask: Tensor | None) -> Tensor:
    """Every pixel counts by its distance to the point: by 1 - distance along both sides, if that is above 0."""
    if mask is not None:
        values = values.where(mask[:, :, None, None], 0.0)
    outs = []
    start = 0
    for level, (height, width) in enumerate(sizes):
        part = values[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        x = points[:, :, :, level, :, 0, None] * width - 0.5 - torch.arange(width)
        y = points[:, :, :, level, :, 1, None] * height - 0.5 - torch.arange(height)
        shares = (1 - y.abs()).clamp(min=0)[..., :, None] * (1 - x.abs()).clamp(min=0)[..., None, :]
        outs.append(torch.einsum("bqhp,bqhpij,bijhd->bqhd", weights[:, :, :, level], shares, part))
    return torch.stack(outs).sum(0).flatten(2)


# Centers: actor by actor, and pixel by pixel


class Around(NamedTuple):
    """A rectangle of pixels around one of the grid, and how much each of them counts before anything is divided."""

    x: int
    y: int
    across: int
    down: int

    def pixels(self, width: int, height: int) -> dict[tuple[int, int], float]:
        """G at each (x, y) that is in the grid."""
        s_across = (2 * self.across + 1) / 6
        s_down = (2 * self.down + 1) / 6
        found = {}
        for y in range(self.y - self.down, self.y + self.down + 1):
            for x in range(self.x - self.across, self.x + self.across + 1):
                if 0 <= x < width and 0 <= y < height:
                    off_x = (x - self.x) ** 2 / (2 * s_across**2)
                    off_y = (y - self.y) ** 2 / (2 * s_down**2)
                    found[x, y] = math.exp(-off_x - off_y)
        return found


class Actor(NamedTuple):
    """An actor who counts: its label, and its boxes cxcywh in pixels of the grid, None where it is not visible."""

    sample: int
    label: int
    boxes: list[list[float] | None]
    key_box: list[float]

    @property
    def area(self) -> float:
        return self.key_box[2] * self.key_box[3]


def actors_of(maps: CenterMaps, targets: Tubelets, key: int) -> list[Actor]:
    """Those who count, in the order of the rows."""
    height, width = maps.centers.shape[2:]
    size, frames = targets.visible.shape[1:]
    actors = []
    for sample, count in enumerate(targets.counts.tolist()):
        for row in range(max(0, min(count, size))):
            seen = targets.visible[sample, row].tolist()
            if not seen[key]:
                continue

            given = targets.boxes[sample, row].double().tolist()
            boxes = [[x * width, y * height, w * width, h * height] for x, y, w, h in given]
            visible_boxes = [boxes[frame] if seen[frame] else None for frame in range(frames)]
            actors.append(Actor(sample, int(targets.labels[sample, row]), visible_boxes, boxes[key]))
    return actors


def corner_radius(width: int, height: int, kind: str) -> int:
    """How far a box's corners may be moved (CornerNet, section 3.2) so that at least 0.7 of IoU is left.

    The "corrected" one is searched for on the IoU itself, in the three cases that CornerNet has: both corners are moved
    in one direction, both inward, or both outward. The "published" one is as in `gaussian_radius` of CornerNet's code.
    """
    least = 0.7
    area = width * height
    around = width + height
    if area == 0:
        return 0

    if kind == "corrected":

        def aside(r: float) -> float:
            both = (width - r) * (height - r)
            return both / (2 * area - both) - least

        def inward(r: float) -> float:
            return (width - 2 * r) * (height - 2 * r) / area - least

        def outward(r: float) -> float:
            return area / ((width + 2 * r) * (height + 2 * r)) - least

        short = min(width, height)
        ends = ((aside, short), (inward, short / 2), (outward, max(width, height)))
        return int(min(cast(float, brentq(function, 0, end, xtol=1e-14)) for function, end in ends))

    roots = []
    for a, b, c in (
        (1, around, area * (1 - least) / (1 + least)),
        (4, 2 * around, (1 - least) * area),
        (4 * least, -2 * least * around, (least - 1) * area),
    ):
        roots.append((b + math.sqrt(b**2 - 4 * a * c)) / 2)
    return max(0, int(min(roots)))


def center_pixel(box: list[float], width: int, height: int) -> tuple[int, int]:
    """The pixel (x, y) of a grid that the center of a box is in, or the nearest one."""
    x, y, *_ = box
    return min(max(math.floor(x), 0), width - 1), min(max(math.floor(y), 0), height - 1)


def reach_of(actor: Actor, area: str, radius: int) -> tuple[int, int]:
    """How far an actor's area reaches to the sides, and above and below."""
    if area == "center":
        return 0, 0
    if area == "circle":
        return radius, radius
    return int(0.54 * actor.key_box[2] / 2), int(0.54 * actor.key_box[3] / 2)


def giou_of_edges(a: list[float], b: list[float]) -> float:
    """GIoU of two boxes (left, top, right, bottom); a quotient by 0 is 0."""
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = across * down
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = both / union if union else 0.0
    return iou - ((hull - union) / hull if hull else 0.0)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def focal_loss_of_centers(
    centers: list[Any], actors: list[Actor], radii: list[int], alpha: float, beta: float
) -> float:
    """Equation 3 without 1/n, of all samples, channels and pixels."""
    channels, height, width = len(centers[0]), len(centers[0][0]), len(centers[0][0][0])
    losses = []
    for sample, channel in np.ndindex(len(centers), channels):
        peaks = set()
        heat: dict[tuple[int, int], float] = {}
        for actor, r in zip(actors, radii, strict=True):
            if actor.sample != sample or (channels > 1 and actor.label != channel):
                continue
            place = center_pixel(actor.key_box, width, height)
            peaks.add(place)
            for pixel, value in Around(*place, r, r).pixels(width, height).items():
                heat[pixel] = max(value, heat.get(pixel, 0.0))

        for y, x in np.ndindex(height, width):
            logit = centers[sample][channel][y][x]
            log_p = log_sigmoid(logit)
            log_rest = log_sigmoid(-logit)
            if (x, y) in peaks:
                losses.append(-math.exp(alpha * log_rest) * log_p)
            else:
                losses.append(-((1 - heat.get((x, y), 0.0)) ** beta) * math.exp(alpha * log_p) * log_rest)
    return math.fsum(losses)


def center_terms(
    maps: CenterMaps,
    targets: Tubelets,
    *,
    key: int | None = None,
    radius: str = "published",
    movement_area: str = "ellipse",
    size_area: str = "ellipse",
    moved: bool = True,
    stride: int = 4,
    alpha: float = 2.0,
    beta: float = 4.0,
) -> tuple[list[float], list[float]]:
    """classes, centers, movement and sizes of `center_loss`; and the three numbers that they are divided by.

    Of targets in which nothing is wrong. A sum of weights may be 0.
    """
    batch, _, height, width = maps.centers.shape
    frames = maps.movement.shape[1]
    key = frames // 2 if key is None else key
    actors = actors_of(maps, targets, key)
    radii = [corner_radius(math.ceil(actor.key_box[2]), math.ceil(actor.key_box[3]), radius) for actor in actors]
    number = max(len(actors), 1)
    movement = maps.movement.double().numpy()
    sides = maps.sizes.double().numpy()

    def owned(sample: int, frame: int, area: str, follow: bool) -> dict[tuple[int, int], tuple[Actor, float]]:
        """Who owns which pixel in a frame, and the pixel's weight."""
        owners: dict[tuple[int, int], tuple[Actor, float]] = {}
        for actor, r in zip(actors, radii, strict=True):
            box = actor.boxes[frame]
            if actor.sample != sample or box is None:
                continue
            place = center_pixel(box if follow else actor.key_box, width, height)
            pixels = Around(*place, *reach_of(actor, area, r)).pixels(width, height)
            share = math.log(max(actor.area * stride**2, math.e)) / math.fsum(pixels.values())
            for pixel, value in pixels.items():
                if pixel not in owners or actor.area < owners[pixel][0].area:
                    owners[pixel] = (actor, share * value)
        return owners

    distances = []
    movement_weights = []
    dissimilarities = []
    size_weights = []
    for sample, frame in np.ndindex(batch, frames):
        for (x, y), (actor, weight) in owned(sample, frame, movement_area, False).items():
            box = actor.boxes[frame]
            assert box is not None
            start = center_pixel(actor.key_box, width, height)
            dx = movement[sample, frame, 0, y, x] - (box[0] - (start[0] + 0.5))
            dy = movement[sample, frame, 1, y, x] - (box[1] - (start[1] + 0.5))
            distances.append(weight * (abs(dx) + abs(dy)) / 2)
            movement_weights.append(weight)

        for (x, y), (actor, weight) in owned(sample, frame, size_area, moved).items():
            box = actor.boxes[frame]
            assert box is not None
            left, top, right, bottom = sides[sample, frame, :, y, x].tolist()
            mine = [x + 0.5 - left, y + 0.5 - top, x + 0.5 + right, y + 0.5 + bottom]
            real = [box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2]
            dissimilarities.append(weight * (1 - giou_of_edges(mine, real)))
            size_weights.append(weight)

    entropies = []
    if maps.classes is not None:
        rows, columns = maps.classes.shape[2:]
        for actor in actors:
            # From pixels of the grid to those of the coarser one.
            coarse_box = [actor.key_box[0] / width * columns, actor.key_box[1] / height * rows]
            x, y = center_pixel(coarse_box, columns, rows)
            logits = maps.classes[actor.sample, :, y, x].double().tolist()
            top_logit = max(logits)
            total = math.fsum(math.exp(logit - top_logit) for logit in logits)
            entropies.append(math.log(total) - (logits[actor.label] - top_logit))

    centers = focal_loss_of_centers(maps.centers.double().tolist(), actors, radii, alpha, beta)
    of_movement = math.fsum(movement_weights)
    of_sizes = math.fsum(size_weights)
    terms = [
        math.fsum(entropies) / number,
        centers / number,
        math.fsum(distances) / of_movement if of_movement else 0.0,
        math.fsum(dissimilarities) / of_sizes if of_sizes else 0.0,
    ]
    return terms, [float(number), of_movement, of_sizes]

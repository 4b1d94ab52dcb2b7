"""The operations in plain PyTorch and SciPy: their definition, the oracle of every test, and the fallback.

They take any floating-point dtype, device and number of leading dimensions, and compute half precision in float32.
Notation: B samples, N queries, M padded targets, C logits, T frames; boxes are cxcywh in [0, 1].

From top to bottom: boxes, the matching cost and the terms that it shares with the loss, the assignment, the loss, batch
normalization, deformable attention, suppression, and clips; those of centers are in `reference_centers.py`. Arguments
are those of the public functions, in which they are described and checked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from actdet_kernels.options import CostOptions, LossOptions
from actdet_kernels.targets import Targets, Tubelets, has_frame_labels, has_frame_logits, query_shape, valid_rows

# The defaults of the focal loss: those of RetinaNet (Lin et al. 2017), as in Deformable DETR.
FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0

BOX_TERMS = ("giou", "diou", "ciou")

# The class costs and class losses in which the target of a label is the IoU.
SOFT_KINDS = ("varifocal", "quality_focal")

# Denominators that are no larger than this count as zero. The reciprocal of a smaller one, times a side, would leave
# the range of float32.
SMALLEST_AREA = 2.0**-100

# ImageNet's statistics of pixels in [0, 1], which pretrained networks expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The bits of a problem's status: it has entries that are not finite, and one of them had to be taken.
NOT_FINITE = 1
FORCED = 2


def box_corners(boxes: Tensor) -> Tensor:
    """Convert boxes (..., 4) from cxcywh to x1y1x2y2. A negative width or height counts as zero."""
    center = boxes[..., :2]
    half = _not_negative(boxes[..., 2:]) / 2
    return torch.cat([center - half, center + half], dim=-1)


def box_giou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the generalized IoU (eq. 13; Rezatofighi et al. 2019) of boxes that broadcast.

    giou = intersection / union - (hull - union) / hull,  areas of a pair; the hull is the smallest box around both

    Each quotient is 0 if its denominator is (boxes without an area), so values and gradients are finite.

    Args:
        a: (..., 4) floating point, cxcywh.
        b: (..., 4) floating point, cxcywh, on the same device.

    Returns:
        (...) in [-1, 1], in the wider of the two dtypes.
    """
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = map(box_corners, _at_least_float32(a, b))

    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    overlap = _not_negative(torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]))
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    inter = overlap[..., 0] * overlap[..., 1]
    union = area_a + area_b - inter
    enclosing = hull[..., 0] * hull[..., 1]
    return (_divide(inter, union) - _divide(enclosing - union, enclosing)).to(dtype)


def box_similarity(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """Compute the similarity of boxes that broadcast, of which the loss is 1 - similarity.

    diou = iou - |distance of the centers|^2 / |diagonal of the hull|^2
    ciou = diou - alpha v,  v = (2 / pi)^2 (angle_b - angle_a)^2,  angle = atan(w / h),  alpha = v / (1 - iou + v)

    These are those of Zheng et al. (2020), where alpha is a constant to the derivative. A quotient is 0 if its
    denominator is, and v is 0 if one of the boxes is a point, which has no angle.

    Args:
        a: (..., 4) floating point, cxcywh.
        b: (..., 4) floating point, cxcywh, on the same device.
        kind: "iou", "giou", "diou" or "ciou".

    Returns:
        (...) in the wider of the two dtypes.
    """
    if kind == "giou":
        return box_giou(a, b)

    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = _at_least_float32(a, b)
    sides_a = _not_negative(a[..., 2:])
    sides_b = _not_negative(b[..., 2:])
    corners_a = box_corners(a)
    corners_b = box_corners(b)

    low = torch.maximum(corners_a[..., :2], corners_b[..., :2])
    high = torch.minimum(corners_a[..., 2:], corners_b[..., 2:])
    hull = torch.maximum(corners_a[..., 2:], corners_b[..., 2:]) - torch.minimum(corners_a[..., :2], corners_b[..., :2])
    inter = _not_negative(high - low).prod(-1)
    areas = [(c[..., 2] - c[..., 0]) * (c[..., 3] - c[..., 1]) for c in (corners_a, corners_b)]
    iou = _divide(inter, areas[0] + areas[1] - inter)

    distance = (a[..., :2] - b[..., :2]).square().sum(-1)
    similarity = iou if kind == "iou" else iou - _divide(distance, hull.square().sum(-1))

    if kind == "ciou":
        angles = []
        points = torch.zeros_like(iou, dtype=torch.bool)
        for sides in (sides_a, sides_b):
            point = sides.square().sum(-1) <= SMALLEST_AREA
            angles.append(torch.atan2(*torch.where(point[..., None], 1, sides).unbind(-1)))
            points = points | point
        v = 4 / math.pi**2 * torch.where(points, 0, angles[1] - angles[0]).square()
        alpha = _divide(v, _not_negative(1 - iou) + v).detach()
        similarity = similarity - alpha * v
    return similarity.to(dtype)


def _not_negative(values: Tensor) -> Tensor:
    """Replace negative values by 0, and keep NaN.

    The derivative at 0 is 1. That of `clamp` depends on the version of PyTorch.
    """
    return torch.where(values < 0, 0, values)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 0 for a denominator that counts as zero. The inner `where` keeps NaN out of the gradient."""
    none = denominator <= SMALLEST_AREA
    return torch.where(none, 0, numerator / torch.where(none, 1, denominator))


def _at_least_float32(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype), b.to(dtype)


def widest(*tensors: Tensor | None) -> torch.dtype:
    """Return the widest dtype of those tensors that there are, and at least float32."""
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Return the GIoU (..., N, M) of boxes (..., N, 4) and (..., M, 4)."""
    return box_giou(a[..., :, None, :], b[..., None, :, :])


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - GIoU (...) of boxes (..., 4)."""
    return 1 - box_giou(a, b)


def pairwise_cost(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets, options: CostOptions) -> Tensor:
    """Return the matching cost (..., B, N, M) in float32 or float64. See `cost.pairwise_cost`."""
    weights, class_cost, alpha, gamma, box_term = options
    logits, boxes = _at_least_float32(logits, boxes)
    valid = valid_rows(targets)

    # Predicted boxes (..., B, N, 1, 4) or (..., B, N, 1, T, 4) meet target boxes (B, 1, M, 4) or (B, 1, M, T, 4).
    shape = query_shape(boxes, isinstance(targets, Tubelets))
    queries_first = boxes.unsqueeze(len(shape))
    goals = _clean_boxes(targets, boxes)[:, None]
    l1, giou = _box_terms(queries_first, targets, goals, box_term)

    # The labels (B, M, K) are gathered from each query's logits or probabilities, as (..., B, N, M, K); with logits of
    # each frame (B, T, M, K), as (..., B, N, T, M, K).
    of_frames = has_frame_logits(logits, boxes, isinstance(targets, Tubelets))
    labels, known, absent = _labels(targets, logits.shape[-1], boxes.shape[-2] if of_frames else None)
    index = torch.where(known, labels, 0).flatten(-2)[:, None]
    index = index.expand(*logits.shape[:-1], index.shape[-1])
    if class_cost == "softmax":
        terms = -logits.softmax(-1).gather(-1, index).unflatten(-1, labels.shape[-2:])
    else:
        chosen = logits.gather(-1, index).unflatten(-1, labels.shape[-2:])
        yes = torch.ones_like(chosen, dtype=torch.bool)
        no = torch.zeros_like(chosen, dtype=torch.bool)
        if class_cost == "focal":
            terms = _focal_loss(chosen, yes, alpha, gamma) - _focal_loss(chosen, no, alpha, gamma)
        else:
            iou = 1 - _box_terms(queries_first, targets, goals, "iou")[1]
            found = _soft_loss(chosen, iou[..., None].expand_as(chosen), yes, class_cost, alpha, gamma)
            terms = found - _soft_loss(chosen, torch.zeros_like(chosen), no, class_cost, alpha, gamma)
    cls = terms.masked_fill(~known[:, None], math.nan).masked_fill(absent[:, None], 0).sum(-1)
    if of_frames and isinstance(targets, Tubelets):
        # (..., B, N, T, M) to the mean over the frames in which a target is visible.
        visible = targets.visible.mT[:, None]
        cls = torch.where(visible, cls, 0).sum(-2) / visible.sum(2).clamp(min=1)

    cost = weights[0] * cls + weights[1] * l1 + weights[2] * giou
    return cost.masked_fill(~valid[:, None, :], 0)


def _labels(targets: Targets | Tubelets, classes: int, frames: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the labels of targets (B, M, K), which of them have a logit, and which are no labels, but padding.

    With a number of frames they are (B, T, M, K).
    """
    labels = targets.labels if targets.labels.ndim > 2 else targets.labels[..., None]
    if frames is not None:
        labels = labels.transpose(1, 2) if has_frame_labels(targets) else labels[:, None].expand(-1, frames, -1, -1)
    absent = (labels == -1) & (torch.arange(labels.shape[-1], device=labels.device) > 0)
    return labels, (labels >= 0) & (labels < classes), absent


def _focal_loss(logits: Tensor, is_label: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return alpha_t (1 - p_t)^gamma (-log p_t) of every logit (Lin et al. 2017)."""
    share = torch.full_like(logits, 1 - alpha).masked_fill(is_label, alpha)

    # p_t is the sigmoid of this.
    right = torch.where(is_label, logits, -logits)
    return share * _power((-right).sigmoid(), F.logsigmoid(-right), gamma) * -F.logsigmoid(right)


def _soft_loss(logits: Tensor, quality: Tensor, is_label: Tensor, kind: str, alpha: float, gamma: float) -> Tensor:
    """Return the varifocal or quality focal loss of every logit.

    It is a factor times the binary cross entropy with the quality, which must be 0 for classes that are no label.
    """
    if kind == "varifocal":
        sure = logits.detach()
        unwanted = alpha * _power(sure.sigmoid(), F.logsigmoid(sure), gamma)
        factor = torch.where(is_label, quality, unwanted)
    else:
        factor = (quality - logits.sigmoid()).abs() ** gamma
    return factor * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def _power(p: Tensor, log_p: Tensor, exponent: float) -> Tensor:
    """Return p ** exponent. For most exponents it is computed from log p, because the derivative divides by p."""
    return p**exponent if exponent in (0, 1, 2) else (exponent * log_p).exp()


def _clean_boxes(targets: Targets | Tubelets, like: Tensor) -> Tensor:
    """Return the target boxes in the dtype of the predicted ones, and zeros for padding and invisible frames."""
    valid = valid_rows(targets)
    if isinstance(targets, Tubelets):
        valid = valid[..., None] & targets.visible
    return targets.boxes.detach().masked_fill(~valid[..., None], 0).to(like.dtype)


def _box_terms(
    boxes: Tensor, targets: Targets | Tubelets, target_boxes: Tensor, box_term: str
) -> tuple[Tensor, Tensor]:
    """Return L1 and 1 - similarity of boxes (..., 4) that broadcast, or their means over a tubelet's visible frames."""
    l1 = (boxes - target_boxes).abs().sum(-1)
    giou = 1 - box_similarity(boxes, target_boxes, box_term)
    if isinstance(targets, Tubelets):
        visible = targets.visible.reshape(target_boxes.shape[:-1])
        seen = visible.sum(-1).clamp(min=1)
        l1, giou = (torch.where(visible, term, 0).sum(-1) / seen for term in (l1, giou))
    return l1, giou


def solve_assignment(cost: Tensor, counts: Tensor | None, maximize: bool, duals: bool) -> tuple[Tensor, ...]:
    """Return the fields of `assignment.Assignment`. The duals are empty if they are not asked for."""
    # SciPy takes half a second to import, and only matching without kernels needs it.
    from scipy.optimize import linear_sum_assignment

    # SciPy converts each problem to float64 itself.
    values = cost.detach().to("cpu", dual_dtype(cost.dtype)).numpy()
    values = -values if maximize else values
    batch, size_n, size_m = values.shape
    sizes = [size_m] * batch if counts is None else [min(max(c, 0), size_m) for c in counts.tolist()]

    row_of_column = np.full((batch, size_m), -1, dtype=np.int64)
    column_of_row = np.full((batch, size_n), -1, dtype=np.int64)
    row_dual = np.zeros((batch, size_n if duals else 0))
    column_dual = np.zeros((batch, size_m if duals else 0))
    status = np.zeros(batch, dtype=np.int32)

    # One sum tells quickly that all entries are finite, as they nearly always are.
    with np.errstate(all="ignore"):
        all_finite = np.isfinite(values.sum(dtype=np.float64))

    for problem, count in enumerate(sizes):
        matrix = values[problem, :, :count]
        bounded = matrix if all_finite else _bounded(matrix.astype(np.float64))
        rows, columns = linear_sum_assignment(bounded)
        row_of_column[problem, columns] = rows
        column_of_row[problem, rows] = columns
        if not all_finite:
            finite = np.isfinite(matrix)
            status[problem] = NOT_FINITE * (not finite.all()) + FORCED * (not finite[rows, columns].all())
        if duals and len(rows):
            row_dual[problem], column_dual[problem, :count] = _duals(bounded.astype(np.float64), rows, columns)

    sign = -1 if maximize else 1
    dtype = dual_dtype(cost.dtype)
    fields = (row_of_column, column_of_row, sign * row_dual, sign * column_dual, status)
    return tuple(
        torch.from_numpy(field).to(cost.device, dtype if field.dtype == np.float64 else None) for field in fields
    )


def dual_dtype(cost: torch.dtype) -> torch.dtype:
    """Return the dtype in which an assignment is computed. It is float64 for integers, which float32 would round."""
    return torch.float64 if cost in (torch.float64, torch.int32, torch.int64) else torch.float32


def _duals(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return prices with u[i] + v[j] <= matrix[i, j], and with equality on the pairs.

    They are 0 for unassigned rows or columns on the larger side. v is the shortest distance to each column in the graph
    of re-assignments, by the algorithm of Bellman and Ford.
    """
    if matrix.shape[0] > matrix.shape[1]:
        v, u = _duals(matrix.T, columns, rows)
        return u, v

    # Rows are the smaller side, so each of them has a column.
    order = np.argsort(rows)
    columns = columns[order]
    tight = matrix[np.arange(len(rows)), columns]

    v = np.zeros(matrix.shape[1])
    for _ in range(len(rows)):
        v = np.minimum(v, (matrix - (tight - v[columns])[:, None]).min(0))
    return tight - v[columns], v


def _bounded(matrix: np.ndarray) -> np.ndarray:
    """Replace entries that are not finite by a value so high that any assignment with fewer of them is cheaper.

    With k = min(N, M) pairs, finite entries in [low, high], and b pairs of the value s, an assignment costs at most
    b s + (k - b) high, and one with b + 1 such pairs at least (b + 1) s + (k - b - 1) low. So it is enough that
    s > high + (k - 1) (high - low).
    """
    finite = np.isfinite(matrix)
    if finite.all():
        return matrix

    low, high = (matrix[finite].min(), matrix[finite].max()) if finite.any() else (0.0, 0.0)
    margin = (high - low) or abs(high) or 1.0
    return np.where(finite, matrix, high + (min(matrix.shape) - 1) * (high - low) + margin)


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets | Tubelets,
    matched: Tensor,
    class_weights: Tensor | None,
    options: LossOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three terms (cls, l1, giou) of every layer, (...) each, without their weights. See `loss.set_loss`."""
    _, no_object_weight, class_loss, alpha, gamma, box_term, _ = options
    logits, boxes = _at_least_float32(logits, boxes)
    *leading, batch, queries = query_shape(boxes, isinstance(targets, Tubelets))
    classes = logits.shape[-1]
    if queries == 0:
        # A zero that depends on both, so that they get gradients as ever.
        nothing = logits.flatten(len(leading)).sum(-1) + boxes.flatten(len(leading)).sum(-1)
        return nothing, nothing, nothing

    # Targets without a query write to one place behind the queries, which is cut off again.
    size = targets.labels.shape[1]
    pairs = (matched >= 0) & (matched < queries) & valid_rows(targets)
    query = torch.where(pairs, matched, queries)

    # A query that is given twice belongs to the last of its targets.
    target = torch.arange(size, device=logits.device).expand_as(query)
    owner = torch.full((*leading, batch, queries + 1), -1, device=logits.device)
    owner = owner.scatter_reduce(-1, query, target, "amax")
    pairs = pairs & (owner.gather(-1, query) == target)
    query = torch.where(pairs, matched, queries)
    owner = owner[..., :queries]

    # The labels of each query, (..., B, N, K). Queries without a target read a row behind the targets without labels.
    frames = 1
    row = torch.where(owner >= 0, owner, size)
    if isinstance(targets, Tubelets) and has_frame_logits(logits, boxes, True):
        # A frame of a query counts as a query, (..., B, N * T, C), which has a target only if that is visible there.
        frames = boxes.shape[-2]
        logits = logits.flatten(-3, -2)
        shown = _rows(targets.visible, row, leading)
        owner = torch.where(shown, owner[..., None], -1).flatten(-2)
        each_row = row[..., None, :].expand(*row.shape[:-1], frames, queries)
        read = _labels(targets, classes, frames)
        labels, known, absent = (_rows(each, each_row, leading).transpose(-3, -2).flatten(-3, -2) for each in read)
        known = known & (owner >= 0)[..., None]
    else:
        labels, known, absent = (_rows(each, row, leading) for each in _labels(targets, classes, None))

    # The loss is multiplied by the flaw, so that the gradient is NaN as well. Otherwise a step with a wrong label would
    # pass for a right one.
    wrong = (owner >= 0) & ~(known | absent).all(-1)
    flaw = torch.where(wrong, math.nan, 1.0).to(logits.dtype)
    normalizer = targets.counts.clamp(0, size).sum().clamp(min=1)

    # The predicted boxes of the pairs, (..., B, M, 4) or (..., B, M, T, 4).
    index = torch.where(pairs, matched, 0).view(*matched.shape, *[1] * (boxes.ndim - matched.ndim))
    chosen = boxes.gather(matched.ndim - 1, index.expand(*matched.shape, *boxes.shape[matched.ndim :]))
    goals = _clean_boxes(targets, boxes)

    if class_loss == "cross_entropy":
        no_object = classes - 1
        wanted = torch.where(owner >= 0, torch.where(known, labels, 0)[..., 0], no_object)
        loss = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0] * flaw
        if class_weights is None:
            weight = torch.ones_like(loss).masked_fill(wanted == no_object, no_object_weight)
        else:
            weight = class_weights.to(loss.dtype)[wanted]
        weights = weight.sum((-2, -1))
        cls = (weight * loss).sum((-2, -1)) / torch.where(weights > 0, weights, 1)
    else:
        is_label = torch.zeros_like(logits, dtype=torch.bool)
        for label, there in zip(labels.unbind(-1), known.unbind(-1), strict=True):
            is_label |= there[..., None] & (label[..., None] == torch.arange(classes, device=logits.device))
        if class_loss == "focal":
            loss = _focal_loss(logits, is_label, alpha, gamma)
        else:
            ious = 1 - _box_terms(chosen.detach(), targets, goals, "iou")[1]
            quality = logits.new_zeros(*leading, batch, queries + 1).scatter(-1, query, ious)[..., :queries, None]
            loss = _soft_loss(logits, torch.where(is_label, quality, 0), is_label, class_loss, alpha, gamma)
        loss = loss * flaw[..., None]
        if class_weights is not None:
            loss = class_weights.to(loss.dtype) * loss
        cls = loss.sum((-3, -2, -1)) / (normalizer * frames)

    terms = _box_terms(chosen, targets, goals, box_term)
    l1, giou = (term.masked_fill(~pairs, 0).sum((-2, -1)) / normalizer for term in terms)
    return cls, l1, giou


def _rows(values: Tensor, row: Tensor, leading: Sequence[int]) -> Tensor:
    """Return the given rows (*leading, ..., N) of values (..., M, K), of which row M is all 0."""
    padded = F.pad(values, (0, 0, 0, 1))
    index = row[..., None].expand(*row.shape, values.shape[-1])
    return padded.expand(*leading, *padded.shape).gather(-2, index)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    shortcut: Tensor | None,
    relu: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Return the features normalized, (B, C, ...). See `norm.batch_norm`."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    if shortcut is not None:
        y = y + shortcut
    return F.relu(y) if relu else y


def deformable_attention(
    values: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: Sequence[tuple[int, int]],
    mask: Tensor | None,
    deterministic: bool,
) -> Tensor:
    """Return the features at the points, weighted and added up, (B, Q, H * D). See `deformable.deformable_attention`.

    On a GPU it is never deterministic, because `grid_sample` is not.
    """
    batch, _, heads, width = values.shape
    queries = points.shape[1]
    dtype = torch.promote_types(torch.promote_types(values.dtype, points.dtype), weights.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    features = values.to(dtype)
    if mask is not None:
        features = features.masked_fill(~mask[:, :, None, None], 0)

    # Far outside is as good as anywhere outside.
    places = 2 * points.to(dtype).nan_to_num(-2.0).clamp(-2, 3) - 1

    sampled = []
    pixels = [height * width for height, width in sizes]
    for level, (size, part) in enumerate(zip(sizes, features.split(pixels, dim=1), strict=True)):
        pictures = part.permute(0, 2, 3, 1).reshape(batch * heads, width, *size)
        grid = places[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(pictures, grid, padding_mode="zeros", align_corners=False))

    # Both are (B*H, ., Q, L, P).
    samples = torch.stack(sampled, dim=-2)
    shares = weights.to(dtype).transpose(1, 2).flatten(0, 1)[:, None]
    out = (samples * shares).flatten(-2).sum(-1)
    return out.view(batch, heads * width, queries).transpose(1, 2).to(values.dtype)


def suppress_overlaps(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """Return which boxes are kept, (B, N, C). See `suppression.suppress_overlaps`."""
    dtype = widest(boxes, scores)
    scores = scores.to(dtype).transpose(1, 2)
    is_candidate = scores > score_threshold
    # (B, C, N), where number r says of the r-th surest box of each class which it is.
    order = scores.masked_fill(~is_candidate, -math.inf).argsort(dim=-1, descending=True, stable=True)
    ranked = is_candidate.gather(-1, order)

    # (B, C, N, N): whether the box that is surer by rank, the row, suppresses the other one, the column.
    tubelets = boxes.to(dtype) if boxes.ndim == 4 else boxes.to(dtype)[:, :, None]
    classes, rows = order.shape[1:]
    is_near = (_mean_iou(tubelets) > iou_threshold)[:, None].expand(-1, classes, -1, -1)
    is_near = is_near.gather(2, order[..., None].expand(-1, -1, -1, rows))
    is_near = is_near.gather(3, order[:, :, None].expand(-1, -1, rows, -1)).triu(1)
    for rank in range(rows):
        ranked = ranked & ~(ranked[..., rank, None] & is_near[..., rank, :])

    # Back from ranks to rows.
    return ranked.gather(-1, order.argsort(-1)).transpose(1, 2)


def _mean_iou(boxes: Tensor) -> Tensor:
    """Return the mean IoU over T frames of all pairs of N tubelets: (B, N, T, 4) x1 y1 x2 y2 to (B, N, N)."""
    # A box that is not finite has no area, and overlaps nothing.
    low, high = boxes.where(boxes.isfinite().all(-1, keepdim=True), 0).split(2, -1)
    sides = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    shared = _not_negative(sides).prod(-1)
    area = _not_negative(high - low).prod(-1)
    whole = area[:, :, None] + area[:, None] - shared
    return torch.where(whole > 0, shared / whole, 0.0).mean(-1)


def frame_levels(frames: Tensor) -> Tensor:
    """Return the mean of every frame, (F,) float32 in [0, 1]. See `clips.frame_levels`."""
    size = frames[0].numel()
    if frames.device.type == "cpu":
        # PyTorch takes 20 times as long as NumPy to add up bytes.
        rows = frames.numpy().reshape(*frames.shape[:2], -1).sum(2, dtype=np.uint32)
        sums = torch.from_numpy(rows.sum(1, dtype=np.int64))
    else:
        # PyTorch copies all that it adds up to int64, so only some frames are added up at a time.
        at_a_time = max(2**24 // size, 1)
        sums = torch.cat([part.sum((1, 2, 3), dtype=torch.int64) for part in frames.split(at_a_time)])
    return (sums.double() / (255 * size)).float()


def gather_clips(
    frames: Tensor,
    indices: Tensor,
    crops: Tensor | None,
    color: Tensor | None,
    frame_means: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the clips, (B, 3, T, H, W) of `dtype`, channels_last_3d. See `clips.gather_clips`."""
    batch, length = indices.shape
    height, width = frames.shape[1:3]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    mean, std = (
        torch.cat([torch.full((1,), value, dtype=compute, device=frames.device) for value in values])
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )

    # The flaw is added to the pixels: 0, or NaN if there is no such frame or, see below, if a change is not finite.
    known = (indices >= 0) & (indices < len(frames))
    indices = torch.where(known, indices, 0)
    flaw = torch.where(known, 0.0, math.nan)
    if crops is None and color is None:
        rows = frames.index_select(0, indices.flatten()).to(compute).view(batch, length, height, width * 3)
        rows.sub_((255 * mean).repeat(width) + flaw[..., None, None]).div_((255 * std).repeat(width))
        return rows.to(dtype).view(batch, length, height, width, 3).permute(0, 4, 1, 2, 3)

    mean = mean[:, None, None]
    std = std[:, None, None]
    clip_means = None
    if crops is not None:
        flaw = flaw + (0 * crops).sum(1, keepdim=True)
    if color is not None and frame_means is not None:
        sums = torch.where(known, frame_means[indices].to(compute), 0).sum(1, keepdim=True)
        clip_means = sums / known.sum(1, keepdim=True)
        flaw = flaw + (0 * color).sum(1, keepdim=True)

    # One clip is changed at a time, because that fits into a cache, and as planes of one channel each, which every
    # operator handles well.
    out = frames.new_empty((batch, length, height, width, 3), dtype=dtype)
    for clip in range(batch):
        pixels = frames.index_select(0, indices[clip]).permute(0, 3, 1, 2)
        pixels = pixels.to(compute, memory_format=torch.contiguous_format).div_(255)
        if crops is not None:
            pixels = _stretch(pixels, crops[clip])
        if color is not None and clip_means is not None:
            pixels = _change_color(pixels, clip_means[clip], color[clip])
        out[clip].permute(0, 3, 1, 2).copy_(pixels.sub_(mean + flaw[clip, :, None, None, None]).div_(std).to(dtype))
    return out.permute(0, 4, 1, 2, 3)


def _stretch(pixels: Tensor, crop: Tensor) -> Tensor:
    """Scale one crop of all frames (T, 3, H, W) to the whole picture."""
    crop = crop.to(pixels.dtype)
    left, top, across, down = crop
    y, x = ((torch.arange(size, dtype=crop.dtype, device=crop.device) + 0.5) / size for size in pixels.shape[2:])
    grid = torch.stack(torch.meshgrid(left + x * across, top + y * down, indexing="xy"), dim=-1)[None] * 2 - 1
    flat = pixels.flatten(0, 1)[None]
    return F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False).view_as(pixels)


def _change_color(pixels: Tensor, clip_mean: Tensor, factors: Tensor) -> Tensor:
    """Apply the factors of brightness, contrast and saturation to a clip (T, 3, H, W), and clamp it to [0, 1]."""
    brightness, contrast, saturation = factors.to(pixels.dtype)
    pixels = torch.lerp(clip_mean * brightness, pixels.mul_(brightness), contrast)
    return torch.lerp(pixels.mean(1, keepdim=True), pixels, saturation).clamp_(0, 1)

"""The loss of tubelet centers and the tubelets at their peaks in plain PyTorch: their definition, as in `reference.py`.

Notation: B samples, M padded actors, K frames, a grid of H x W pixels. Arguments are those of the public functions, in
which they are described and checked.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from actdet_kernels.options import CenterOptions
from actdet_kernels.reference import box_giou, widest
from actdet_kernels.targets import Tubelets, valid_rows

# Corners of a center's box may be moved so far that the IoU is this (CornerNet, Law and Deng 2018).
HEAT_MAP_IOU = 0.7

# The share of a box's sides that an elliptic area has (TTFNet, Liu et al. 2020).
AREA_SHARE = 0.54


def center_loss(
    centers: Tensor,
    movement: Tensor,
    sizes: Tensor,
    classes: Tensor | None,
    targets: Tubelets,
    options: CenterOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the four terms (classes, centers, movement, sizes) and the divisors. See `centers.center_loss`."""
    if targets.labels.shape[1] == 0:
        # A row behind the count, since there is no largest of nothing.
        labels, boxes, counts, visible = targets
        targets = Tubelets(
            F.pad(labels, (0, 1)), F.pad(boxes, (0, 0, 0, 0, 0, 1)), counts * 0, F.pad(visible, (0, 0, 0, 1))
        )

    dtype = widest(centers, movement, sizes, classes)
    centers, movement, sizes = (each.to(dtype) for each in (centers, movement, sizes))
    height, width = centers.shape[2:]
    actors = _actors(targets, options, (height, width), dtype)
    flaw = _flaw_of_actors(actors, targets, centers, classes)
    number = actors.used.sum().clamp(min=1).to(dtype)

    # The rows and columns of the grid, and how far each is from every center, (B, M, K, H) and (B, M, K, W).
    rows = torch.arange(height, device=centers.device, dtype=dtype)
    columns = torch.arange(width, device=centers.device, dtype=dtype)
    dy = rows - actors.pixel[..., 1, None]
    dx = columns - actors.pixel[..., 0, None]

    centers_loss = _heat_map_loss(centers, targets, actors, dx[:, :, options.key], dy[:, :, options.key], options)

    # Movement is learned in the pixels of the key frame's area, for all frames.
    area = _half_sides(actors, options.movement_area)
    key_dx = dx[:, :, options.key, None].expand_as(dx)
    key_dy = dy[:, :, options.key, None].expand_as(dy)
    owned, weight = _areas(actors, area, key_dx, key_dy)
    middle = actors.pixel[:, :, options.key, None] + 0.5
    wanted = _of_owner(actors.boxes[..., :2] - middle, owned)
    distance = (movement.movedim(2, -1) - wanted).abs().sum(-1) / 2
    movement_loss, movement_weight = _weighted_mean(distance, weight)

    # The sides are learned around the center in each frame, unless areas stay where they are.
    area = _half_sides(actors, options.size_area)
    owned, weight = _areas(actors, area, dx, dy) if options.moved else _areas(actors, area, key_dx, key_dy)
    left, top, right, bottom = sizes.unbind(2)
    x = columns + 0.5
    y = rows[:, None] + 0.5
    box = torch.stack([x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom], -1)
    similarity = box_giou(box, _of_owner(actors.boxes, owned))
    size_loss, size_weight = _weighted_mean(1 - similarity, weight)

    class_loss = centers_loss.new_zeros(())
    if classes is not None:
        class_loss = _class_loss(classes.to(dtype), targets, actors, options.key) / number
    return (
        class_loss * flaw,
        centers_loss / number * flaw,
        movement_loss * flaw,
        size_loss * flaw,
        torch.stack([number, movement_weight, size_weight]),
    )


class _Actors(NamedTuple):
    """Where the actors of a sample are on a grid."""

    used: Tensor
    """(B, M) bool, those who count."""
    seen: Tensor
    """(B, M, K) bool, the frames in which they are visible."""
    boxes: Tensor
    """(B, M, K, 4) cxcywh in pixels of the grid; 0 where they are not seen."""
    pixel: Tensor
    """(B, M, K, 2) x and y of the pixel that the center is in."""
    radius: Tensor
    """(B, M) of the heat map."""
    half: Tensor
    """(B, M, 2) how far the elliptic area reaches to the sides, and up and down."""
    log_area: Tensor
    """(B, M) of the box in the key frame."""
    order: Tensor
    """(B, M) int64, the rows from the smallest box in the key frame to the largest one."""


def _actors(targets: Tubelets, options: CenterOptions, grid: tuple[int, int], dtype: torch.dtype) -> _Actors:
    height, width = grid
    used = valid_rows(targets) & targets.visible[:, :, options.key]
    seen = targets.visible & used[..., None]
    scale = torch.tensor([width, height, width, height], dtype=dtype, device=targets.boxes.device)
    boxes = torch.where(seen[..., None], targets.boxes.detach().to(dtype), 0) * scale

    last = scale[:2] - 1
    pixel = torch.minimum(boxes[..., :2].nan_to_num().floor().clamp(min=0), last)
    sides = boxes[:, :, options.key, 2:].nan_to_num().clamp(min=0)
    area = sides[..., 0] * sides[..., 1]
    return _Actors(
        used,
        seen,
        boxes,
        pixel,
        _heat_map_radius(sides.ceil(), options.radius),
        (sides / 2 * AREA_SHARE).floor(),
        (area * options.stride**2).clamp(min=math.e).log(),
        torch.where(used, area, math.inf).argsort(dim=-1, stable=True),
    )


def _flaw_of_actors(actors: _Actors, targets: Tubelets, centers: Tensor, classes: Tensor | None) -> Tensor:
    """Return 1, 0-d, or NaN if an actor has a box that is not finite, or a label for which there is no class."""
    impossible = ~actors.boxes.isfinite().flatten(2).all(-1)
    count = centers.shape[1] if classes is None else classes.shape[1]
    if classes is not None or count > 1:
        impossible |= (targets.labels < 0) | (targets.labels >= count)
    return torch.where((impossible & actors.used).any(), math.nan, 1.0).to(centers.dtype)


def _heat_map_radius(sides: Tensor, kind: str) -> Tensor:
    """Return how far a center (B, M, 2) may be moved so that the IoU is 0.7, rounded down, (B, M) (CornerNet)."""
    width, height = sides.unbind(-1)
    around = width + height
    area = width * height
    # Both corners are moved in one direction, both inward, and both outward. All are quadratic equations.
    equations = (
        (1.0, around, area * (1 - HEAT_MAP_IOU) / (1 + HEAT_MAP_IOU), -1),
        (4.0, 2 * around, (1 - HEAT_MAP_IOU) * area, -1),
        (4 * HEAT_MAP_IOU, -2 * HEAT_MAP_IOU * around, (HEAT_MAP_IOU - 1) * area, 1),
    )
    roots = []
    for a, b, c, sign in equations:
        root = (b**2 - 4 * a * c).clamp(min=0).sqrt()
        roots.append((b + root) / 2 if kind == "published" else (b + sign * root) / (2 * a))
    return torch.stack(roots).amin(0).floor().clamp(min=0)


def _heat_map_loss(
    centers: Tensor, targets: Tubelets, actors: _Actors, dx: Tensor, dy: Tensor, options: CenterOptions
) -> Tensor:
    """Return the sum of the focal loss over all pixels. The distances to centers are (B, M, W) and (B, M, H)."""
    radius = actors.radius[..., None]
    spread = 2 * ((2 * radius + 1) / 6) ** 2
    across = torch.where(dx.abs() <= radius, (-(dx**2) / spread).exp(), 0)
    down = torch.where(dy.abs() <= radius, (-(dy**2) / spread).exp(), 0)

    # (B, M, C): the channel of each actor.
    channels = torch.arange(centers.shape[1], device=centers.device)
    of_channel = actors.used[..., None]
    if len(channels) > 1:
        of_channel = of_channel & (targets.labels[..., None] == channels)
    bumps = of_channel[..., None, None] * (down[..., :, None] * across[..., None, :])[:, :, None]
    is_center = of_channel[..., None, None] & ((dy[..., :, None] == 0) & (dx[..., None, :] == 0))[:, :, None]
    wanted = torch.cat([bumps.new_zeros(len(bumps), 1, *bumps.shape[2:]), bumps], 1).amax(1)
    positive = is_center.any(1)

    log_yes = F.logsigmoid(centers)
    log_no = F.logsigmoid(-centers)
    found = (options.alpha * log_no).exp() * log_yes
    missing = (1 - wanted) ** options.beta * (options.alpha * log_yes).exp() * log_no
    return -torch.where(positive, found, missing).sum()


def _half_sides(actors: _Actors, area: str) -> Tensor:
    """Return how far an area reaches from its center, (B, M, 2) to the sides, and up and down."""
    if area == "ellipse":
        return actors.half
    if area == "circle":
        return actors.radius[..., None].expand_as(actors.half)
    return torch.zeros_like(actors.half)


def _areas(actors: _Actors, half: Tensor, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Find whose area each pixel is in.

    Args:
        actors: The actors.
        half: (B, M, 2) how far their areas reach.
        dx: (B, M, K, W) how far columns are from their centers in each frame.
        dy: (B, M, K, H) the same of rows.

    Returns:
        (B, K, H, W) int64, the row of the actor, any if it is nobody's; and its weight there, 0 if it is nobody's.
    """
    reach = half[:, :, None, :, None]
    spread = 2 * ((2 * reach + 1) / 6) ** 2
    across = torch.where(dx.abs() <= reach[..., 0, :], (-(dx**2) / spread[..., 0, :]).exp(), 0)
    down = torch.where(dy.abs() <= reach[..., 1, :], (-(dy**2) / spread[..., 1, :]).exp(), 0)
    whole = across.sum(-1) * down.sum(-1)
    share = actors.log_area[..., None] / whole
    weights = down[..., :, None] * across[..., None, :] * share[..., None, None]
    weights = torch.where(actors.seen[..., None, None], weights, 0)

    # The smallest actor comes first; argmax finds the first of equals. Of bytes, PyTorch's compiler (2.14) makes code
    # that finds places that are not there.
    order = actors.order[..., None, None, None].expand_as(weights)
    # An actor who is not visible in a frame keeps no pixel of it from others.
    first = (weights.gather(1, order) > 0).to(torch.int32).argmax(1, keepdim=True)
    owned = order.gather(1, first)
    return owned[:, 0], weights.gather(1, owned)[:, 0]


def _of_owner(values: Tensor, owned: Tensor) -> Tensor:
    """Return values (B, M, K, N) of the actor to whom each pixel belongs, (B, K, H, W, N)."""
    index = owned.flatten(2).movedim(-1, 1)[..., None].expand(-1, -1, -1, values.shape[-1])
    return values.gather(1, index).movedim(1, 2).unflatten(2, owned.shape[2:])


def _weighted_mean(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of what has a weight, and what it was divided by; a sum of no weights is 0."""
    total = weights.sum()
    divisor = torch.where(total > 0, total, 1)
    return torch.where(weights > 0, values * weights, 0).sum() / divisor, divisor


def _class_loss(classes: Tensor, targets: Tubelets, actors: _Actors, key: int) -> Tensor:
    """Return the sum of the cross entropy at the actors' centers in the key frame."""
    height, width = classes.shape[2:]
    size = torch.tensor([width, height], device=classes.device)
    shares = torch.where(actors.used[..., None], targets.boxes[:, :, key, :2], 0).nan_to_num()
    # It is clamped before it is made whole, because a huge number has no integer.
    cell = torch.minimum((shares.to(classes.dtype) * size).floor().clamp(min=0), size - 1).long()
    place = cell[..., 1] * width + cell[..., 0]

    logits = classes.flatten(2).movedim(1, 2).gather(1, place[..., None].expand(-1, -1, classes.shape[1]))
    labels = targets.labels.clamp(0, classes.shape[1] - 1)
    losses = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    return torch.where(actors.used, losses, 0).sum()


def center_peaks(
    centers: Tensor, movement: Tensor, sizes: Tensor, classes: Tensor | None, peaks: int, moved: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of `peaks.Peaks`. See `peaks.center_peaks`."""
    batch, _, height, width = centers.shape
    frames = movement.shape[1]
    dtype = widest(centers, movement, sizes, classes)
    heights = centers.to(dtype)
    heights = torch.where(heights.isnan(), -math.inf, heights)
    is_peak = (heights == F.max_pool2d(heights, 3, 1, 1)) & (heights > -math.inf)

    # A stable sort keeps equals in their order.
    flat = torch.where(is_peak, heights, -math.inf).flatten(1)
    flat = F.pad(flat, (0, max(peaks - flat.shape[1], 0)), value=-math.inf)
    height_of, place = (each[:, :peaks] for each in flat.sort(dim=-1, descending=True, stable=True))
    found = height_of > -math.inf
    place = torch.where(found, place, 0)
    channel = place // (height * width)
    pixel = place % (height * width)
    x = pixel % width
    y = pixel // width

    # (B, N, K, 2): where the center is in each frame.
    index = pixel[:, None, None].expand(batch, frames, 2, peaks)
    moves = movement.to(dtype).flatten(3).gather(3, index).permute(0, 3, 1, 2)
    moves = torch.where(moves.isfinite(), moves, 0)
    middle = torch.stack([x, y], -1)[:, :, None] + 0.5
    last = torch.tensor([width - 1, height - 1], device=centers.device, dtype=dtype)
    place_of = middle.to(dtype) + (moves if moved else 0 * moves)
    column, row = torch.minimum(place_of.floor().clamp(min=0), last).unbind(-1)

    index = (row * width + column).long().transpose(1, 2)[:, :, None].expand(-1, -1, 4, -1)
    left, top, right, bottom = sizes.to(dtype).flatten(3).gather(3, index).permute(2, 0, 3, 1)
    box = torch.stack(
        [
            (column + 0.5 + (right - left) / 2) / width,
            (row + 0.5 + (bottom - top) / 2) / height,
            (left + right) / width,
            (top + bottom) / height,
        ],
        -1,
    )

    logits = heights.new_zeros(batch, peaks, 0)
    if classes is not None:
        rows, columns = classes.shape[2:]
        cell = (2 * y + 1) * rows // (2 * height) * columns + (2 * x + 1) * columns // (2 * width)
        logits = classes.to(dtype).flatten(2).movedim(1, 2).gather(1, cell[..., None].expand(-1, -1, classes.shape[1]))
    return (
        torch.where(found, pixel, -1),
        torch.where(found, channel, 0),
        torch.where(found, height_of.sigmoid(), 0),
        torch.where(found[..., None, None], box, 0),
        torch.where(found[..., None], logits, 0),
    )

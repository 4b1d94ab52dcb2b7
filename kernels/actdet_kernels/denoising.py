"""More to learn from one batch: denoising queries, and queries in groups that are matched apart from each other.

Denoising (DN-DETR, Li et al. 2022; contrastive: DINO, Zhang et al. 2023) tells the decoder the targets, spoiled, in
queries of their own, and asks for the targets back. Which query stands for which is known, so nothing is matched:

    noisy = denoising_queries(targets, classes=80, queries=300, groups=5)
    logits, boxes = decoder(..., noisy.labels, noisy.boxes, attention_mask=noisy.mask)
    told = noisy.labels.shape[1]
    groups = split_groups(logits[..., :told, :], boxes[..., :told, :], 5)
    loss = set_loss(*groups, targets, noisy.matched.expand(L, 5, -1, -1)).total / 5

Groups (Group DETR, Chen et al. 2023): `split_groups` makes of G groups of queries one more leading dimension, over
which every operation works anyway, so that each group is matched with all targets. In plain PyTorch: a few launches,
fixed shapes, nothing read back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from actdet_kernels.targets import Targets, Tubelets, valid_rows


class DenoisingQueries(NamedTuple):
    """G groups of 2 M queries in front of the decoder's own, of which there are N.

    Of each group the first M are near their targets and should give them back; the other M are farther from the same
    targets, and should be no object.

    labels: (B, G * 2 * M) int64, the class that each query is told; the number of classes in rows past the count, so
        that an embedding has one more row than there are classes.
    boxes: (B, G * 2 * M, 4), or (B, G * 2 * M, T, 4) of tubelets, cxcywh in [0, 1], that each is told; 0 past the
        count and where a tubelet is not visible.
    mask: (G * 2 * M + N, G * 2 * M + N) bool, as `torch.nn.MultiheadAttention` takes it: True where the query of the
        row must not look at that of the column. A group sees itself and the decoder's own, who see no group.
    matched: (B, M) int64, the query of each target within its group, as `match` would say it.
    """

    labels: Tensor
    boxes: Tensor
    mask: Tensor
    matched: Tensor


@torch.no_grad()
def denoising_queries(
    targets: Targets | Tubelets,
    *,
    classes: int,
    queries: int,
    groups: int = 5,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    generator: torch.Generator | None = None,
) -> DenoisingQueries:
    """Spoiled targets for the decoder to mend, as DINO makes them.

    Args:
        targets: B samples of M rows.
        classes: How many there are, at least 1; a class that is told wrongly is drawn from all of them.
        queries: N, how many the decoder has of its own.
        groups: G, how often every target is told.
        label_noise: In [0, 2], as DINO counts it: half of it is the probability that another class is drawn.
        box_noise: How far the corners of a box are moved, in halves of its sides: up to once as far for the queries
            that should give the target back, once to twice as far for the others. At least 0. A tubelet is moved as a
            whole.
        generator: Where the random numbers come from, of the targets' device; by default PyTorch's own.

    Returns:
        The queries, on the targets' device.

    Raises:
        ValueError: For a number out of these bounds, and for targets with several labels.
    """
    _check_at_least("classes", classes, 1)
    _check_at_least("queries", queries, 0)
    _check_at_least("groups", groups, 1)
    _check_at_least("box_noise", box_noise, 0)
    if not 0 <= label_noise <= 2:
        raise ValueError(f"label_noise must be 0 to 2, got {label_noise}")
    if targets.labels.ndim != 2:
        raise ValueError(f"targets.labels must be (B, M) here, one label a target, got {tuple(targets.labels.shape)}")

    batch, size = targets.labels.shape
    valid = valid_rows(targets)
    shape = (batch, groups, 2, size)

    labels = targets.labels[:, None, None].expand(shape)
    drawn = torch.randint(classes, shape, device=labels.device, generator=generator)
    is_wrong = torch.rand(shape, device=labels.device, generator=generator) < label_noise / 2
    labels = torch.where(is_wrong, drawn, labels)
    labels = torch.where(valid[:, None, None], labels, classes)

    boxes = _moved(targets, shape, box_noise, generator)
    is_shown = valid
    if isinstance(targets, Tubelets):
        is_shown = valid[..., None] & targets.visible
    boxes = torch.where(is_shown[:, None, None, ..., None], boxes, 0.0)

    rows = torch.arange(size, device=labels.device)
    return DenoisingQueries(
        labels=labels.flatten(1, 3),
        boxes=boxes.flatten(1, 3),
        mask=_mask(groups, 2 * size, queries, labels.device),
        matched=torch.where(valid, rows, -1),
    )


def split_groups(logits: Tensor, boxes: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Queries in G groups, one after the other, as one more leading dimension, for every operation here.

    logits (..., B, G * N, C) to (..., G, B, N, C), boxes (..., B, G * N, 4) or (..., B, G * N, T, 4) likewise. Views.
    Losses are sums over the leading dimensions: divide by G for the mean over the groups.
    Raises ValueError where the queries do not make so many groups, or boxes and logits disagree.
    """
    dim = logits.ndim - 2
    if logits.ndim < 3 or boxes.shape[: dim + 1] != logits.shape[:-1]:
        raise ValueError(
            f"logits (..., B, G * N, C) and boxes (..., B, G * N, 4) must agree, "
            f"got {tuple(logits.shape)} and {tuple(boxes.shape)}"
        )
    if groups < 1 or logits.shape[dim] % groups:
        raise ValueError(f"{logits.shape[dim]} queries do not make {groups} groups of the same size")
    sizes = (groups, logits.shape[dim] // groups)
    logits, boxes = (tensor.unflatten(dim, sizes).movedim(dim, dim - 1) for tensor in (logits, boxes))
    return logits, boxes


def _moved(
    targets: Targets | Tubelets, shape: tuple[int, int, int, int], box_noise: float, generator: torch.Generator | None
) -> Tensor:
    """(B, G, 2, M, ..., 4) cxcywh: the target boxes, each corner moved in each direction by a share of half a side."""
    device = targets.boxes.device
    frames = targets.boxes.ndim - 3
    corners = (*shape, *[1] * frames, 4)

    # In (0, 1) for the queries that should give the target back, in (1, 2) for the others, either way.
    share = torch.rand(corners, device=device, generator=generator)
    share[:, :, 1] += 1
    is_negative = torch.rand(corners, device=device, generator=generator) < 0.5
    share = torch.where(is_negative, -share, share)

    boxes = targets.boxes[:, None, None]
    center = boxes[..., :2]
    side = boxes[..., 2:]
    half = torch.cat([side, side], dim=-1) / 2
    exact = torch.cat([center - side / 2, center + side / 2], dim=-1)
    low, high = (exact + share.to(boxes.dtype) * half * box_noise).clamp(0, 1).split(2, dim=-1)

    # A corner may have passed the one opposite: they change places.
    least = torch.minimum(low, high)
    most = torch.maximum(low, high)
    return torch.cat([(least + most) / 2, most - least], dim=-1)


def _mask(groups: int, size: int, queries: int, device: torch.device) -> Tensor:
    """(Q, Q) bool of `groups` groups of `size` and the decoder's own `queries`: who must not look at whom."""
    group = torch.arange(groups, device=device).repeat_interleave(size)
    own = torch.full((queries,), groups, device=device)
    number = torch.cat([group, own])
    return (number[None] != number[:, None]) & (number[None] != groups)


def _check_at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")

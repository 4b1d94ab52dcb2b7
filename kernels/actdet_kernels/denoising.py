"""Denoising queries, and queries in groups that are matched separately: more to learn from one batch.

Denoising (DN-DETR, Li et al. 2022; contrastive: DINO, Zhang et al. 2023) gives the decoder additional queries that hold
noisy copies of the targets, and asks it for the targets themselves. Which target a query belongs to is known, so
nothing has to be matched:

    noisy = denoising_queries(targets, classes=80, queries=300, groups=5)
    logits, boxes = decoder(..., noisy.labels, noisy.boxes, attention_mask=noisy.mask)
    noisy_queries = noisy.labels.shape[1]
    groups = split_groups(logits[..., :noisy_queries, :], boxes[..., :noisy_queries, :], 5)
    loss = set_loss(*groups, targets, noisy.matched.expand(L, 5, -1, -1)).total / 5

Groups (Group DETR, Chen et al. 2023): `split_groups` turns G groups of queries into one more leading dimension, over
which every operation works anyway, so each group is matched with all targets.

All of it is plain PyTorch: a few launches, fixed shapes, and nothing is read back to the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from actdet_kernels.targets import Targets, Tubelets, valid_rows


class DenoisingQueries(NamedTuple):
    """G groups of 2 M noisy queries, which go in front of the N queries that the decoder has of its own.

    In each group the first M queries are near their targets, and should predict them. The other M are farther from the
    same targets, and should predict no object.

    Args:
        labels: (B, G * 2 * M) int64, the noisy class of each query. In rows past the count it is the number of classes,
            so an embedding of the labels needs one more row than there are classes.
        boxes: (B, G * 2 * M, 4), or (B, G * 2 * M, T, 4) of tubelets, the noisy box of each query, cxcywh in [0, 1]; 0
            past the count and in frames in which a tubelet is not visible.
        mask: (G * 2 * M + N, G * 2 * M + N) bool, as `torch.nn.MultiheadAttention` takes it: True if the query of the
            row must not attend to that of the column. A group attends to itself and to the decoder's own queries, and
            those attend to no group.
        matched: (B, M) int64, the query of each target within its group, in the form of `match`.
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
    """Make noisy copies of the targets for the decoder to correct, as DINO does (Zhang et al. 2023).

    Args:
        targets: B samples of M rows, with one label per target.
        classes: The number of classes, at least 1. A wrong class is drawn from all of them.
        queries: N, the number of queries that the decoder has of its own.
        groups: G, the number of copies of every target, each of them one near and one farther query.
        label_noise: In [0, 2]. As in DINO, half of it is the probability that the class is drawn at random.
        box_noise: How far each coordinate of a corner is moved, in halves of the box's side, at least 0. For the near
            queries it is moved by 0 to 1 times that, for the others by 1 to 2 times. A tubelet is moved as a whole.
        generator: The source of random numbers, on the targets' device. The default is PyTorch's own.

    Returns:
        The queries, on the targets' device.

    Raises:
        ValueError: A number is out of these bounds, or targets have several labels.
    """
    _check_at_least("classes", classes, 1)
    _check_at_least("queries", queries, 0)
    _check_at_least("groups", groups, 1)
    _check_at_least("box_noise", box_noise, 0)
    if not 0 <= label_noise <= 2:
        raise ValueError(f"label_noise must be 0 to 2, got {label_noise}")
    if targets.labels.ndim != 2:
        raise ValueError(f"targets.labels must be (B, M) here, one label per target, got {tuple(targets.labels.shape)}")

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
    """Turn G groups of queries, one after the other, into one more leading dimension, as every operation here takes it.

    Losses are sums over the leading dimensions. Divide them by G for the mean over the groups.

    Args:
        logits: (..., B, G * N, C).
        boxes: (..., B, G * N, 4), or (..., B, G * N, T, 4) of tubelets.
        groups: G.

    Returns:
        Views of the logits (..., G, B, N, C) and of the boxes (..., G, B, N, 4) or (..., G, B, N, T, 4).

    Raises:
        ValueError: The queries do not make G groups of the same size, or boxes and logits disagree.
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
    """Return the target boxes (B, G, 2, M, ..., 4) cxcywh, with the coordinates of their corners moved at random."""
    device = targets.boxes.device
    frames = targets.boxes.ndim - 3
    corners = (*shape, *[1] * frames, 4)

    # Coordinates are moved by [0, 1) halves of a side for the near queries and by [1, 2) for the others, either way.
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

    # A corner may have passed the opposite one. They then change places, so that no side is negative.
    least = torch.minimum(low, high)
    most = torch.maximum(low, high)
    return torch.cat([(least + most) / 2, most - least], dim=-1)


def _mask(groups: int, size: int, queries: int, device: torch.device) -> Tensor:
    """Return which query (row) must not attend to which other (column), as in `DenoisingQueries.mask`.

    `size` is the number of queries of a group. The decoder's own queries are numbered like one more group.
    """
    group = torch.arange(groups, device=device).repeat_interleave(size)
    own = torch.full((queries,), groups, device=device)
    number = torch.cat([group, own])
    return (number[None] != number[:, None]) & (number[None] != groups)


def _check_at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")

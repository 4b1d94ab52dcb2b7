"""From decoded clips to what the network takes, on the clips' own device: augmentation and normalisation.

Every draw is one per clip, the same for all its frames, and comes from a NumPy generator on the host, so a run is
the same on every device and nothing waits for the device. Boxes move with the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from actdet_kernels import Targets
from torch import Tensor

from actdet.config import AugmentConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_VISIBLE = 1 / 64  # a box of which a crop leaves less than this share of the picture's side is dropped


class Batch(NamedTuple):
    """What one training step takes.

    clips: (B, 3, T, S, S) floating point, normalised, channels_last_3d.
    targets: of the B clips, boxes in the coordinates of the augmented picture.
    """

    clips: Tensor
    targets: Targets


def normalise(clips: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (B, T, H, W, 3) RGB to (B, 3, T, H, W) with ImageNet's mean and standard deviation (section 4.3).

    The result is channels_last_3d without a copy: (B, T, H, W, C) in memory is exactly that layout.
    """
    return _standardise(clips.to(torch.float32).div_(255)).to(dtype).permute(0, 4, 1, 2, 3)


@dataclass(frozen=True)
class Changes:
    """What is drawn for each of B clips, float32; None where nothing of the kind is to change.

    size, origin: (B, 2) width and height, left and top of what a crop leaves, in [0, 1] of the picture.
    flip: (B,) bool. colour: (B, 3) factors of brightness, contrast and saturation.
    share: (B,) of the clip itself when it is blended with its neighbour.
    """

    size: np.ndarray | None
    origin: np.ndarray | None
    flip: np.ndarray | None
    colour: np.ndarray | None
    share: np.ndarray | None

    def __getitem__(self, clips: slice) -> Changes:
        values = (getattr(self, field.name) for field in fields(self))
        return Changes(*(None if value is None else value[clips] for value in values))


def draw_changes(clips: int, config: AugmentConfig, rng: np.random.Generator) -> Changes:
    """The changes of a batch. The same state of `rng` gives the same."""
    size = origin = flip = colour = share = None
    if config.crop or config.flip:
        size = 1 - config.crop * rng.random((clips, 2), dtype=np.float32)
        origin = (1 - size) * rng.random((clips, 2), dtype=np.float32)
        flip = rng.random(clips) < config.flip
    if config.colour:
        colour = rng.uniform(1 - config.colour, 1 + config.colour, (3, clips)).astype(np.float32).T
    if config.mixup and clips > 1:
        share = rng.beta(config.mixup, config.mixup, clips).astype(np.float32)
    return Changes(size, origin, flip, colour, share)


def augment(clips: Tensor, targets: Targets, changes: Changes) -> Batch:
    """uint8 (B, T, H, W, 3) RGB and its targets to a normalised, changed `Batch`."""
    pixels = clips.to(torch.float32).div_(255)
    if changes.size is not None and changes.origin is not None and changes.flip is not None:
        pixels, targets = _crop_and_flip(pixels, targets, changes.size, changes.origin, changes.flip)
    if changes.colour is not None:
        pixels = _change_colour(pixels, changes.colour)
    if changes.share is not None and len(pixels) > 1:
        pixels, targets = _mix(pixels, targets, changes.share)
    return Batch(_standardise(pixels).permute(0, 4, 1, 2, 3), targets)


def _crop_and_flip(
    pixels: Tensor, targets: Targets, sizes: np.ndarray, origins: np.ndarray, flips: np.ndarray
) -> tuple[Tensor, Targets]:
    """One axis-aligned window (centre and size, in [0, 1] of the picture) a clip, mirrored where drawn."""
    batch, frames, height, width, _ = pixels.shape
    size, origin, flip = (_to(array, pixels.device) for array in (sizes, origins, flips))

    sign = torch.stack([torch.where(flip, -1.0, 1.0), torch.ones_like(size[:, 1])], dim=1)
    matrix = torch.zeros(batch, 2, 3, device=pixels.device)
    matrix[:, :, :2] = torch.diag_embed(size * sign)
    matrix[:, :, 2] = 2 * origin + size - 1
    grid = F.affine_grid(matrix, [batch, 1, height, width], align_corners=False)
    flat = pixels.permute(0, 1, 4, 2, 3).reshape(batch, frames * 3, height, width)
    flat = F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
    pixels = flat.reshape(batch, frames, 3, height, width).permute(0, 1, 3, 4, 2).contiguous()

    size, origin = size[:, None], origin[:, None]
    centre, half = targets.boxes[..., :2], targets.boxes[..., 2:] / 2
    low, high = ((centre - half - origin) / size).clamp(0, 1), ((centre + half - origin) / size).clamp(0, 1)
    centre, extent = (low + high) / 2, high - low
    centre = torch.stack([torch.where(flip[:, None], 1 - centre[..., 0], centre[..., 0]), centre[..., 1]], dim=-1)
    boxes = torch.cat([centre, extent], dim=-1)
    return pixels, _keep(targets._replace(boxes=boxes), (extent > MIN_VISIBLE).all(-1))


def _keep(targets: Targets, kept: Tensor) -> Targets:
    """Only the valid rows where `kept` (B, M), moved to the front."""
    kept = kept & targets.valid
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    boxes = targets.boxes.gather(1, order[..., None].expand_as(targets.boxes))
    return Targets(targets.labels.gather(1, order), boxes, kept.sum(1, dtype=torch.int32))


def _change_colour(pixels: Tensor, factors: np.ndarray) -> Tensor:
    brightness, contrast, saturation = _to(factors, pixels.device).T[..., None, None, None, None]
    pixels = pixels * brightness
    mean = pixels.mean((1, 2, 3, 4), keepdim=True)
    pixels = mean + (pixels - mean) * contrast
    grey = pixels.mean(-1, keepdim=True)
    return (grey + (pixels - grey) * saturation).clamp(0, 1)


def _mix(pixels: Tensor, targets: Targets, shares: np.ndarray) -> tuple[Tensor, Targets]:
    """Blend every clip with its neighbour in the batch; the targets are those of both (M doubles)."""
    share = _to(shares, pixels.device)[:, None, None, None, None]
    other = Targets(*(field.roll(1, dims=0) for field in targets))
    both = Targets(
        torch.cat([targets.labels, other.labels], dim=1),
        torch.cat([targets.boxes, other.boxes], dim=1),
        torch.full_like(targets.counts, 2 * targets.labels.shape[1]),
    )
    return share * pixels + (1 - share) * pixels.roll(1, dims=0), _keep(
        both, torch.cat([targets.valid, other.valid], 1)
    )


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _standardise(pixels: Tensor) -> Tensor:
    mean, std = _statistics(pixels.device)
    return (pixels - mean) / std


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(IMAGENET_MEAN, device=device), torch.tensor(IMAGENET_STD, device=device)

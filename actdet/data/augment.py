"""From decoded frames to what the network takes, on the frames' own device: augmentation and normalisation.

The pixels go through one operation, `actdet_kernels.gather_clips`, which on a GPU is one launch.
Every draw is one per clip, the same for all its frames, and comes from a NumPy generator on the host, so a run is
the same on every device and nothing waits for the device. Boxes move with the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from actdet_kernels import Targets, gather_clips
from torch import Tensor

from actdet.data.config import AugmentConfig

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

    The result is channels_last_3d: (B, T, H, W, C) in memory is exactly that layout.
    """
    rows = torch.arange(clips.shape[0] * clips.shape[1], device=clips.device).view(clips.shape[:2])
    return gather_clips(clips.flatten(0, 1), rows, dtype=dtype)


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


def augment(
    frames: Tensor,
    rows: Tensor,
    targets: Targets,
    changes: Changes,
    *,
    levels: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Clips of `frames`, changed and normalised, and what is to be found in them.

    frames: (F, S, S, 3) uint8 RGB, of which `rows` (B, T) int64 are the clips. levels: (F,) float32, mean of each frame
    in [0, 1], needed where colours change.
    """
    device = frames.device
    windows = None
    if changes.size is not None and changes.origin is not None and changes.flip is not None:
        left, mirrored = changes.origin[:, 0] + changes.size[:, 0] * changes.flip, 1 - 2 * changes.flip
        window = np.stack([left, changes.origin[:, 1], changes.size[:, 0] * mirrored, changes.size[:, 1]], axis=1)
        windows = _to(window.astype(np.float32), device)
        targets = _crop_and_flip(targets, *(_to(v, device) for v in (changes.size, changes.origin, changes.flip)))
    colour = None if changes.colour is None else _to(changes.colour, device)
    share = changes.share if len(rows) > 1 else None
    clips = gather_clips(frames, rows, windows, colour, levels, dtype=dtype if share is None else torch.float32)
    if share is not None:
        clips, targets = _mix(clips, targets, _to(share, device))
    return Batch(clips.to(dtype), targets)


def halve_pixels(batch: Batch) -> Batch:
    """The batch with pictures of half as many pixels: (B, 3, T, S, S) to a side of S / sqrt(2), rounded.

    Boxes are shares of the picture, so they stay.
    """
    clips = batch.clips
    side = round(clips.shape[-1] / 2**0.5)
    pictures = clips.transpose(1, 2).flatten(0, 1).float()
    small = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    small = small.to(clips.dtype, memory_format=torch.channels_last)
    return batch._replace(clips=small.unflatten(0, (len(clips), -1)).transpose(1, 2))


def _crop_and_flip(targets: Targets, size: Tensor, origin: Tensor, flip: Tensor) -> Targets:
    """What is left of the boxes in one window a clip, mirrored where drawn."""
    size, origin = size[:, None], origin[:, None]
    centre, half = targets.boxes[..., :2], targets.boxes[..., 2:] / 2
    low, high = ((centre - half - origin) / size).clamp(0, 1), ((centre + half - origin) / size).clamp(0, 1)
    centre, extent = (low + high) / 2, high - low
    centre = torch.stack([torch.where(flip[:, None], 1 - centre[..., 0], centre[..., 0]), centre[..., 1]], dim=-1)
    boxes = torch.cat([centre, extent], dim=-1)
    return _keep(targets._replace(boxes=boxes), (extent > MIN_VISIBLE).all(-1))


def _keep(targets: Targets, kept: Tensor) -> Targets:
    """Only the valid rows where `kept` (B, M), moved to the front."""
    kept = kept & targets.valid
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    boxes = targets.boxes.gather(1, order[..., None].expand_as(targets.boxes))
    return Targets(targets.labels.gather(1, order), boxes, kept.sum(1, dtype=torch.int32))


def _mix(clips: Tensor, targets: Targets, share: Tensor) -> tuple[Tensor, Targets]:
    """Blend every clip with its neighbour in the batch; the targets are those of both (M doubles)."""
    share = share[:, None, None, None, None]
    other = Targets(*(field.roll(1, dims=0) for field in targets))
    both = Targets(
        torch.cat([targets.labels, other.labels], dim=1),
        torch.cat([targets.boxes, other.boxes], dim=1),
        torch.full_like(targets.counts, 2 * targets.labels.shape[1]),
    )
    return clips.roll(1, dims=0).lerp_(clips, share), _keep(both, torch.cat([targets.valid, other.valid], 1))


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

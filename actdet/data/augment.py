"""From decoded frames to what the network takes, on the frames' own device: augmentation and normalization.

The pixels go through one operation, `actdet_kernels.gather_clips`, which is a single launch on a GPU. Every random
change is drawn once per clip and applies to all its frames, and boxes move with the pixels. The draws come from a NumPy
generator on the host, so a run sees the same changes on every device and never waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from actdet_kernels import gather_clips
from torch import Tensor

from actdet.data.config import AugmentConfig
from actdet.data.truth import AnyTargets, TubeTargets

# A box is dropped if a crop leaves less of it than this share of the picture's side.
MIN_VISIBLE = 1 / 64


_Some = TypeVar("_Some", bound=AnyTargets)


class Batch(NamedTuple):
    """What one training step takes.

    clips: (B, 3, T, S, S) floating point, normalized, channels_last_3d.
    targets: The actions in the B clips, with boxes in the coordinates of the augmented pictures.
    """

    clips: Tensor
    targets: AnyTargets


def normalize(clips: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map uint8 RGB (B, T, H, W, 3) to (B, 3, T, H, W), by ImageNet's mean and standard deviation (section 4.3).

    The result is channels_last_3d, which in memory is exactly (B, T, H, W, C).
    """
    rows = torch.arange(clips.shape[0] * clips.shape[1], device=clips.device).view(clips.shape[:2])
    return gather_clips(clips.flatten(0, 1), rows, dtype=dtype)


@dataclass(frozen=True)
class AugmentParams:
    """The random changes of B clips; None for a kind of change that is turned off."""

    size: np.ndarray | None
    """(B, 2) float32 width and height of the crop, in (0, 1] of the picture."""
    origin: np.ndarray | None
    """(B, 2) float32 left and top of the crop, in [0, 1] of the picture."""
    flip: np.ndarray | None
    """(B,) bool, whether the crop is mirrored."""
    color: np.ndarray | None
    """(B, 3) float32 factors of brightness, contrast and saturation."""
    share: np.ndarray | None
    """(B,) float32 share of the clip itself when it is blended with its neighbor, in [0, 1]."""

    def __getitem__(self, clips: slice) -> AugmentParams:
        """Return the changes of some of the clips."""
        values = (getattr(self, field.name) for field in fields(self))
        return AugmentParams(*(None if value is None else value[clips] for value in values))


def draw_params(clips: int, config: AugmentConfig, rng: np.random.Generator) -> AugmentParams:
    """Draw the changes of a batch of `clips` clips. The same state of `rng` gives the same changes."""
    size = None
    origin = None
    flip = None
    if config.crop or config.flip:
        size = 1 - config.crop * rng.random((clips, 2), dtype=np.float32)
        origin = (1 - size) * rng.random((clips, 2), dtype=np.float32)
        flip = rng.random(clips) < config.flip

    color = None
    if config.color:
        color = rng.uniform(1 - config.color, 1 + config.color, (3, clips)).astype(np.float32).T

    share = None
    if config.mixup and clips > 1:
        share = rng.beta(config.mixup, config.mixup, clips).astype(np.float32)
    return AugmentParams(size, origin, flip, color, share)


def augment(
    frames: Tensor,
    rows: Tensor,
    targets: AnyTargets,
    params: AugmentParams,
    *,
    frame_means: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Make a training batch: clips of `frames`, changed and normalized, and the actions in them.

    Args:
        frames: (F, S, S, 3) uint8 RGB.
        rows: (B, T) int64, the number in `frames` of each frame of each clip.
        targets: The actions in the B clips, with boxes in the coordinates of the unchanged pictures.
        params: The changes of the B clips.
        frame_means: (F,) float32, the mean of each frame in [0, 1]; needed if colors change.
        dtype: Of the resulting clips.

    Returns:
        The batch. If clips are blended, each has room for the targets of two clips.
    """
    device = frames.device

    crops = None
    if params.size is not None and params.origin is not None and params.flip is not None:
        crops = _to_device(_signed_crops(params.size, params.origin, params.flip), device)
        size, origin, flip = (_to_device(value, device) for value in (params.size, params.origin, params.flip))
        targets = _crop_and_flip(targets, size, origin, flip)
    color = None if params.color is None else _to_device(params.color, device)

    # Of several processes one may have a single clip of the batch, and no neighbor to blend it with.
    share = params.share if len(rows) > 1 else None

    # Clips are blended in float32, so that they are rounded to `dtype` only once.
    clips = gather_clips(frames, rows, crops, color, frame_means, dtype=dtype if share is None else torch.float32)
    if share is not None:
        clips, targets = _mix(clips, targets, _to_device(share, device))
    return Batch(clips.to(dtype), targets)


def halve_pixels(batch: Batch) -> Batch:
    """Scale the pictures of a batch to half as many pixels: (B, 3, T, S, S) to a side of S / sqrt(2), rounded.

    The targets stay the same, because boxes are in shares of the picture.
    """
    clips = batch.clips
    side = round(clips.shape[-1] / 2**0.5)
    pictures = clips.transpose(1, 2).flatten(0, 1).float()
    small = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    small = small.to(clips.dtype, memory_format=torch.channels_last)
    return batch._replace(clips=small.unflatten(0, (len(clips), -1)).transpose(1, 2))


def _signed_crops(size: np.ndarray, origin: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Return the crops in the form of `gather_clips`: (B, 4) float32 left, top, width and height.

    A mirrored crop starts at its right edge and has a negative width.
    """
    left = np.where(flip, origin[:, 0] + size[:, 0], origin[:, 0])
    width = np.where(flip, -size[:, 0], size[:, 0])
    return np.stack([left, origin[:, 1], width, size[:, 1]], axis=1)


def _crop_and_flip(targets: _Some, size: Tensor, origin: Tensor, flip: Tensor) -> _Some:
    """Cut the boxes to the crop of their clip, mirror them if it is flipped, and drop those that became too small.

    An actor whose box became too small in a frame is not visible there.

    Args:
        targets: Boxes (B, M, 4) or (B, M, T, 4) in the coordinates of the whole picture.
        size: (B, 2), see `AugmentParams`.
        origin: (B, 2), see `AugmentParams`.
        flip: (B,), see `AugmentParams`.
    """
    clips = (len(flip), *[1] * (targets.boxes.ndim - 2))
    size = size.view(*clips, 2)
    origin = origin.view(*clips, 2)
    center = targets.boxes[..., :2]
    half = targets.boxes[..., 2:] / 2
    low = ((center - half - origin) / size).clamp(0, 1)
    high = ((center + half - origin) / size).clamp(0, 1)

    center = (low + high) / 2
    extent = high - low
    x = torch.where(flip.view(clips), 1 - center[..., 0], center[..., 0])
    center = torch.stack([x, center[..., 1]], dim=-1)
    boxes = torch.cat([center, extent], dim=-1)
    large = (extent > MIN_VISIBLE).all(-1)
    if isinstance(targets, TubeTargets):
        visible = targets.visible & large
        return _keep(targets._replace(boxes=boxes, visible=visible), visible.any(-1))
    return _keep(targets._replace(boxes=boxes), large)


def _keep(targets: _Some, kept: Tensor) -> _Some:
    """Keep only the valid targets for which `kept` (B, M) is true, moved to the front in their order."""
    kept = kept & targets.valid
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    rows = {name: _take_rows(getattr(targets, name), order) for name in _rows_of(targets)}
    return targets._replace(counts=kept.sum(1, dtype=torch.int32), **rows)


def _take_rows(field: Tensor, order: Tensor) -> Tensor:
    """Return the rows (B, M) of a field (B, M, ...)."""
    return field.gather(1, order.view(*order.shape, *[1] * (field.ndim - 2)).expand_as(field))


def _rows_of(targets: AnyTargets) -> list[str]:
    """The names of the fields that have a row for each target."""
    return [name for name in targets._fields if name not in ("counts", "annotated")]


def _mix(clips: Tensor, targets: _Some, share: Tensor) -> tuple[Tensor, _Some]:
    """Blend every clip with its neighbor in the batch, and join the targets of both, which doubles M.

    A frame in which nobody knows what happens in one of both is one in which nobody knows, and so nobody is visible.
    Whoever is visible in no other frame is dropped.
    """
    neighbor = type(targets)(*(field.roll(1, dims=0) for field in targets))
    joined = {name: torch.cat([getattr(targets, name), getattr(neighbor, name)], 1) for name in _rows_of(targets)}
    both = targets._replace(counts=torch.full_like(targets.counts, 2 * targets.labels.shape[1]), **joined)
    valid = torch.cat([targets.valid, neighbor.valid], dim=1)
    if isinstance(both, TubeTargets) and isinstance(neighbor, TubeTargets) and both.is_sparse:
        known = both.annotated & neighbor.annotated
        both = both._replace(annotated=known, visible=both.visible & known[:, None])
        valid = valid & both.visible.any(-1)

    blended = clips.roll(1, dims=0).lerp_(clips, share[:, None, None, None, None])
    return blended, _keep(both, valid)


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to the device. A GPU is not waited for: the copy goes through pinned memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

"""What the peaks of a map of centers are, pixel by pixel, in Python floats; and maps to look for them in."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from actdet_kernels import CenterMaps, Peaks
from torch import Tensor


class MapShape(NamedTuple):
    """Samples, channels, height, width, frames, and the classes with the height and width of their grid."""

    batch: int
    channels: int
    height: int
    width: int
    frames: int
    classes: tuple[int, int, int] | None = None


def random_maps(shape: MapShape, *, values: int = 0, seed: int = 0, dtype: torch.dtype = torch.float64) -> CenterMaps:
    """Maps in which actors move up to a few pixels.

    Args:
        shape: Of the maps.
        values: How many different logits of centers there are, so that there are ties and plateaus; 0 for any.
        seed: Of the random numbers.
        dtype: Of all maps.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width, frames, classes = shape

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    centers = 3 * normal(batch, channels, height, width)
    if values:
        centers = torch.randint(values, centers.shape, generator=generator).double() - values // 2
    movement = 3 * normal(batch, frames, 2, height, width)
    sizes = 1 + 4 * normal(batch, frames, 4, height, width)
    logits = None if classes is None else normal(batch, *classes)
    return converted(CenterMaps(centers, movement, sizes, logits), dtype)


def converted(maps: CenterMaps, to: torch.dtype | torch.device) -> CenterMaps:
    """All maps of this dtype, or on this device."""
    centers, movement, sizes, classes = maps
    return CenterMaps(centers.to(to), movement.to(to), sizes.to(to), None if classes is None else classes.to(to))


def peaks_by_loops(maps: CenterMaps, peaks: int, moved: bool) -> Peaks:
    """What `center_peaks` should give, in float64."""
    centers, movement, sizes = (each.detach().double().numpy() for each in maps[:3])
    classes = None if maps.classes is None else maps.classes.detach().double().numpy()
    batch, _, height, width = centers.shape
    frames = movement.shape[1]
    count = 0 if classes is None else classes.shape[1]

    pixels = np.full((batch, peaks), -1)
    channels = np.zeros((batch, peaks), int)
    scores = np.zeros((batch, peaks))
    boxes = np.zeros((batch, peaks, frames, 4))
    logits = np.zeros((batch, peaks, count))
    for i in range(batch):
        found = sorted(
            (-centers[(i, *place)], *place) for place in np.ndindex(centers.shape[1:]) if is_peak(centers[i], *place)
        )
        for n, (_, channel, y, x) in enumerate(found[:peaks]):
            pixels[i, n] = y * width + x
            channels[i, n] = channel
            scores[i, n] = 1 / (1 + math.exp(-max(centers[i, channel, y, x], -700)))
            for j in range(frames):
                boxes[i, n, j] = box_of(movement[i, j, :, y, x], sizes[i, j], x, y, moved)
            if classes is not None:
                row = math.floor((y + 0.5) / height * classes.shape[2])
                column = math.floor((x + 0.5) / width * classes.shape[3])
                logits[i, n] = classes[i, :, row, column]
    return Peaks(*map(torch.from_numpy, (pixels, channels, scores, boxes, logits)))


def is_peak(centers: np.ndarray, channel: int, y: int, x: int) -> bool:
    """Whether no neighbor of a logit (channel, y, x) is higher. Both may be anything."""
    logit = centers[channel, y, x]
    if math.isnan(logit) or logit == -math.inf:
        return False
    around = centers[channel, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
    return all(math.isnan(other) or other <= logit for other in around.flat)


def box_of(movement: np.ndarray, sizes: np.ndarray, x: int, y: int, moved: bool) -> list[float]:
    """The box (4,) of the center in pixel (x, y) in a frame, of whose sides there is a map (4, H, W)."""
    height, width = sizes.shape[1:]
    if moved:
        x, y = (
            min(max(math.floor(pixel + 0.5 + (move if math.isfinite(move) else 0)), 0), size - 1)
            for pixel, move, size in ((x, movement[0], width), (y, movement[1], height))
        )
    left, top, right, bottom = (float(side) for side in sizes[:, y, x])
    x1 = x + 0.5 - left
    y1 = y + 0.5 - top
    x2 = x + 0.5 + right
    y2 = y + 0.5 + bottom
    return [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]


def check_peaks(got: Peaks, wanted: Peaks, maps: CenterMaps) -> None:
    """The results are those, within the roundings of the dtype in which they are computed."""
    dtype = torch.float64 if any(each is not None and each.dtype == torch.float64 for each in maps) else torch.float32
    error = 8 * torch.finfo(dtype).eps
    for name, mine, true in zip(Peaks._fields, got, wanted, strict=True):
        assert mine.dtype == (torch.int64 if name in ("pixels", "channels") else dtype)
        if name in ("scores", "boxes"):
            scale = true[true.isfinite()].abs().max().item() if true.isfinite().any() else 1.0
            torch.testing.assert_close(mine.cpu().double(), true, rtol=error, atol=error * scale, equal_nan=True)
        else:
            torch.testing.assert_close(mine.cpu().double(), true.double(), rtol=0, atol=0, equal_nan=True)

"""What suppression keeps, pair by pair, in Python floats; and tubelets of which some overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def kept_by_loops(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """What `suppress_overlaps` should give, in float64: the best of those left stays, and those that overlap it go."""
    if boxes.ndim == 3:
        boxes = boxes[:, :, None]
    samples, rows, classes = scores.shape
    kept = torch.zeros(samples, rows, classes, dtype=torch.bool)
    for sample in range(samples):
        corners = boxes[sample].double().tolist()
        for label in range(classes):
            values = scores[sample, :, label].double().tolist()
            left = [row for row in range(rows) if values[row] > score_threshold]
            left.sort(key=lambda row: (-values[row], row))
            while left:
                best, *others = left
                kept[sample, best, label] = True
                left = [row for row in others if not mean_iou(corners[best], corners[row]) > iou_threshold]
    return kept


def mean_iou(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    return sum(map(iou, one, other)) / len(one)


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    if not all(map(math.isfinite, [*one, *other])):
        return 0.0
    shared = max(min(one[2], other[2]) - max(one[0], other[0]), 0.0)
    shared *= max(min(one[3], other[3]) - max(one[1], other[1]), 0.0)
    areas = [max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0) for box in (one, other)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def random_overlaps(
    shape: tuple[int, int, int, int], *, seed: int, values: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, T, 4) near few places and scores (B, N, C), of which `values` differ; all of them if it is 0.

    Corners are multiples of 1/64, so that overlaps are quotients of small integers, far from each other.
    """
    samples, rows, frames, classes = shape
    rng = np.random.default_rng(seed)
    place = rng.integers(0, 14, (samples, rows, 1, 2)) + rng.integers(0, 7, (samples, rows, frames, 2))
    side = rng.integers(6, 32, (samples, rows, frames, 2))
    boxes = torch.from_numpy(np.concatenate([place, place + side], -1) / 64)
    if values:
        scores = rng.integers(0, values, (samples, rows, classes)) / values
    else:
        count = samples * rows * classes
        scores = rng.permutation(count).reshape(samples, rows, classes) / max(count, 1)
    return boxes.to(dtype), torch.from_numpy(scores).to(dtype)

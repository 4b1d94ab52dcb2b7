"""Finds the boxes of each class that no surer one of that class overlaps (src/suppression.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import back_on, head, in_memory, pointer
from actdet_kernels.reference import widest


def suppress_overlaps(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """Return which boxes are kept, as `actdet_kernels.suppress_overlaps` does."""
    dtype = widest(boxes, scores)
    given = (in_memory(boxes, dtype), in_memory(scores, dtype))
    batch, rows, classes = scores.shape
    frames = boxes.shape[2] if boxes.ndim == 4 else 1
    kept = arguments.empty((batch, rows, classes), torch.int8)
    native.suppress_overlaps(
        *head(dtype),
        *map(pointer, given),
        *(batch, rows, frames, classes),
        *(iou_threshold, score_threshold),
        pointer(kept),
    )
    (kept,) = back_on(scores, (kept,))
    return kept.view(torch.bool)

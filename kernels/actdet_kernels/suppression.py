"""Non-maximum suppression of boxes or tubelets, class by class, of a whole batch, with results of fixed shape.

From top to bottom: the public function, its checks, the implementation by the kernels, and the operator with its shape.
There is no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.operators import LIBRARY, operator

# The most boxes of a sample whose scores a program of the Triton kernel holds in registers.
MAX_BOXES = 2048


@torch.no_grad()
def suppress_overlaps(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float,
    score_threshold: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Find the boxes of each class that no surer one of that class overlaps.

    In each sample and class, the box of the highest score is kept, and those whose IoU with it is more than a threshold
    are suppressed; the next one of those that are left is kept, and so on. Among equals, the earlier row is first. The
    IoU of tubelets is the mean of that of their boxes, frame by frame (ACT, Kalogeiton et al. 2017).

    What torchvision's `batched_nms` does for one sample, this does for a batch in one launch. Nothing is read back: the
    answers of the samples are `scores.where(kept, 0).flatten(1).topk(k)`.

    Computed in float32, to which thresholds are rounded, too, or in float64 if one of the tensors is. A box that is not
    finite, or has no area, overlaps nothing. A score that is NaN is not kept.

    Args:
        boxes: (B, N, 4) x1 y1 x2 y2 in any unit, or (B, N, T, 4) of tubelets, floating point.
        scores: (B, N, C) floating point.
        iou_threshold: Above this, a box is suppressed by a surer one.
        score_threshold: Only boxes of higher scores are kept, or suppress others.
        backend: See `explain_backend`.

    Returns:
        (B, N, C) bool, whether each box is kept as one of each class.

    Raises:
        ValueError: Shapes, dtypes or devices disagree, or a threshold is NaN.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    _check(boxes, scores)
    for name, value in (("iou_threshold", iou_threshold), ("score_threshold", score_threshold)):
        if value != value:
            raise ValueError(f"{name} must be a number, got nan")
    rows = boxes.shape[1]
    compute = implementation(
        backend,
        boxes.device,
        kernels=_by_kernels,
        reference=reference.suppress_overlaps,
        obstacle=f"{rows} boxes of a sample are more than {MAX_BOXES}" if rows > MAX_BOXES else None,
    )
    return compute(boxes.detach(), scores.detach(), float(iou_threshold), float(score_threshold))


def _check(boxes: Tensor, scores: Tensor) -> None:
    if boxes.ndim not in (3, 4) or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (B, N, 4) or (B, N, T, 4), got {tuple(boxes.shape)}")
    if boxes.ndim == 4 and boxes.shape[2] == 0:
        raise ValueError(f"boxes must be of one frame at least, got {tuple(boxes.shape)}")
    if scores.ndim != 3 or scores.shape[:2] != boxes.shape[:2]:
        batch, rows = boxes.shape[:2]
        raise ValueError(f"scores must be ({batch}, {rows}, C), got {tuple(scores.shape)}")
    for name, tensor in (("boxes", boxes), ("scores", scores)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    if scores.device != boxes.device:
        raise ValueError(f"scores are on {scores.device}, boxes on {boxes.device}")


def _by_kernels(chosen: str, *arguments: Any) -> Tensor:
    return _suppress_overlaps(*arguments, chosen)


@operator(
    "suppress_overlaps(Tensor boxes, Tensor scores, float iou_threshold, float score_threshold, str chosen) -> Tensor"
)
def _suppress_overlaps(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, chosen: str
) -> Tensor:
    return kernel_module(chosen, "suppression").suppress_overlaps(boxes, scores, iou_threshold, score_threshold)


@torch.library.register_fake("actdet_kernels::suppress_overlaps", lib=LIBRARY)
def _shape(boxes: Tensor, scores: Tensor, *rest: Any) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)

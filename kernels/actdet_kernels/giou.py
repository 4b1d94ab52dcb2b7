"""Generalized IoU of pairs of boxes, and the loss that it makes."""

from __future__ import annotations

from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation


def pairwise_giou(a: Tensor, b: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Generalized IoU of every pair: `a (..., N, 4)`, `b (..., M, 4)` cxcywh to `(..., N, M)` in [-1, 1] (eq. 13).

    A quotient with a zero denominator (boxes without an area) is 0. Raises ValueError for other shapes and dtypes.
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != 4 or b.shape[-1] != 4:
        raise ValueError(f"boxes must be (..., N, 4) and (..., M, 4), got {tuple(a.shape)} and {tuple(b.shape)}")
    _check_boxes(a, b)
    return implementation(backend, a.device, kernels=None, reference=reference.pairwise_giou)(a, b)


def giou_loss(a: Tensor, b: Tensor, *, backend: Backend = "auto") -> Tensor:
    """1 - GIoU, element by element: `(..., 4)` and `(..., 4)` cxcywh to `(...)` in [0, 2] (eq. 14). Differentiable.

    Raises ValueError for boxes whose last dimension is not 4, and for those that are not floating point.
    """
    if a.shape[-1:] != (4,) or b.shape[-1:] != (4,):
        raise ValueError(f"boxes must be (..., 4), got {tuple(a.shape)} and {tuple(b.shape)}")
    _check_boxes(a, b)
    return implementation(backend, a.device, kernels=None, reference=reference.giou_loss)(a, b)


def _check_boxes(a: Tensor, b: Tensor) -> None:
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"boxes must be floating point, got {a.dtype} and {b.dtype}")
    if a.device != b.device:
        raise ValueError(f"boxes must be on one device, got {a.device} and {b.device}")

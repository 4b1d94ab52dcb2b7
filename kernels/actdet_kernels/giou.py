"""Generalized IoU of pairs of boxes, and the loss that it makes. Both are plain PyTorch on every device."""

from __future__ import annotations

from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.backend import Backend, implementation


def pairwise_giou(a: Tensor, b: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Compute the generalized IoU of every pair of boxes (eq. 13; Rezatofighi et al. 2019). Differentiable.

    giou = intersection / union - (hull - union) / hull,  areas of a pair; the hull is the smallest box around both

    Each quotient is 0 if its denominator is zero, so boxes without an area give finite values and gradients.

    Args:
        a: (..., N, 4) floating point, cxcywh.
        b: (..., M, 4) floating point, cxcywh, on the same device, with leading dimensions that broadcast.
        backend: "auto" and "reference" are PyTorch; the others have no kernel for this, and raise RuntimeError.

    Returns:
        (..., N, M) in [-1, 1], in the wider of the two dtypes.

    Raises:
        ValueError: The boxes have other shapes or dtypes, or are on two devices.
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != 4 or b.shape[-1] != 4:
        raise ValueError(f"boxes must be (..., N, 4) and (..., M, 4), got {tuple(a.shape)} and {tuple(b.shape)}")
    _check_boxes(a, b)
    return implementation(backend, a.device, kernels=None, reference=reference.pairwise_giou)(a, b)


def giou_loss(a: Tensor, b: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Compute 1 - GIoU of boxes element by element (eq. 14). Differentiable.

    Args:
        a: (..., 4) floating point, cxcywh.
        b: (..., 4) floating point, cxcywh, on the same device, of a shape that broadcasts with that of `a`.
        backend: "auto" and "reference" are PyTorch; the others have no kernel for this, and raise RuntimeError.

    Returns:
        (...) in [0, 2], in the wider of the two dtypes.

    Raises:
        ValueError: The boxes have other shapes or dtypes, or are on two devices.
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

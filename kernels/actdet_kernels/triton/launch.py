"""What every launch says the same way: tensors and compile-time constants, as kernels take them."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from actdet_kernels.targets import Targets, Tubelets


def inputs(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> list[Any]:
    """logits, boxes, labels, target_boxes, counts, visible; the last is None for boxes."""
    visible = targets.visible.contiguous() if isinstance(targets, Tubelets) else None
    return [*(tensor.contiguous() for tensor in (logits, boxes, *targets[:3])), visible]


def frames(targets: Targets | Tubelets) -> int:
    """How many boxes a query has."""
    return targets.boxes.shape[2] if isinstance(targets, Tubelets) else 1


def compute_dtype(logits: Tensor, boxes: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(logits.dtype, boxes.dtype), torch.float32)


def triton_dtype(compute: torch.dtype) -> Any:
    return tl.float64 if compute == torch.float64 else tl.float32


def weight_options(weights: tuple[float, float, float]) -> dict[str, float]:
    """Compile-time constants, because a Python float would reach a kernel as float32."""
    return dict(zip(("CLS", "L1", "GIOU"), map(float, weights), strict=True))


def cost_options(compute: torch.dtype, weights: tuple[float, float, float], class_cost: str) -> dict[str, Any]:
    return {**weight_options(weights), "CLASS_COST": class_cost, "DTYPE": triton_dtype(compute)}


def block_of_classes(classes: int, largest: int) -> int:
    """How many logits of a query are looked at together: all, or the largest block, one after the other."""
    return min(max(power_of_2(classes), 4), largest)


def power_of_2(size: int) -> int:
    """The least that is not smaller. Triton's own takes 4 microseconds, which is a fifth of a launch."""
    return 1 << max(size - 1, 0).bit_length()


def tile_count(size: int, block: int) -> int:
    return -(-size // block)


def compiler_options(warps: int = 4, fused: bool = False) -> dict[str, Any]:
    """The register limit is the hardware's own: some versions of ptxas spill rather than go near it.

    Without fused multiply-adds, near ties fall the same way with every compiler.
    """
    return {"num_warps": warps, "maxnreg": min(255, 65536 // (32 * warps)), "enable_fp_fusion": fused}

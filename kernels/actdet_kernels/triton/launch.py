"""How kernels are launched, and what every launch says the same way: tensors, sizes and compile-time constants."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from actdet_kernels.options import CostOptions
from actdet_kernels.targets import Targets, Tubelets

REDUX_CAPABILITY = (8, 0)


def launch(kernel: Any, programs: int, **arguments: Any) -> None:
    """Run a kernel of one-dimensional grid on the device of its first tensor, unless there is nothing to do.

    Everything has its name, as several tensors of one shape, or sizes, would be taken for one another without notice.
    """
    if programs > 0:
        first = next(value for value in arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(first):
            kernel[(programs,)](**arguments)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where a kernel writes. Tests replace this by memory full of NaN or -7, which shows what nobody wrote."""
    return torch.empty(shape, dtype=dtype, device=device)


def empty_like(tensor: Tensor) -> Tensor:
    """The same for what lies in memory as `tensor` does. Nobody's view, so that it may be changed in place later on."""
    return torch.empty_like(tensor)


def has_redux(device: torch.device) -> bool:
    """Whether a warp of that GPU reduces 32-bit integers in one instruction, for which a kernel is compiled."""
    return capability(device) >= REDUX_CAPABILITY


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU, and for other devices, as the interpreter's, that of the newest GPUs.

    Gates and tests replace this by the architecture that they compile for.
    """
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (12, 0)


def inputs(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> dict[str, Tensor | None]:
    """Predictions and targets; `visible` is None for boxes."""
    return {
        "logits": logits.contiguous(),
        "boxes": boxes.contiguous(),
        "labels": targets.labels.contiguous(),
        "target_boxes": targets.boxes.contiguous(),
        "counts": targets.counts.contiguous(),
        "visible": targets.visible.contiguous() if isinstance(targets, Tubelets) else None,
    }


def sizes(logits: Tensor, targets: Targets | Tubelets) -> dict[str, int]:
    """Of one problem, and how many boxes a query has."""
    batch, queries, classes = logits.shape[-3:]
    frames = targets.boxes.shape[2] if isinstance(targets, Tubelets) else 1
    return {
        "batch": batch,
        "queries": queries,
        "size": targets.labels.shape[1],
        "classes": classes,
        "frames": frames,
        "labels_each": labels_each(targets),
    }


def labels_each(targets: Targets | Tubelets) -> int:
    """How many labels lie behind each target."""
    return targets.labels.shape[2] if targets.labels.ndim == 3 else 1


def compute_dtype(logits: Tensor, boxes: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(logits.dtype, boxes.dtype), torch.float32)


def triton_dtype(compute: torch.dtype) -> Any:
    return tl.float64 if compute == torch.float64 else tl.float32


def weight_options(weights: tuple[float, float, float]) -> dict[str, float]:
    """Compile-time constants, because a Python float would reach a kernel as float32."""
    return dict(zip(("CLS", "L1", "GIOU"), map(float, weights), strict=True))


def focal_options(focal: bool, alpha: float, gamma: float) -> dict[str, float]:
    """Compile-time constants, and so 0 where nothing is focal, lest a kernel is compiled for what it does not use."""
    return {"ALPHA": float(alpha) if focal else 0.0, "GAMMA": float(gamma) if focal else 0.0}


def cost_options(compute: torch.dtype, targets: Targets | Tubelets, options: CostOptions) -> dict[str, Any]:
    return {
        "CLASS_COST": options.class_cost,
        "BOX_TERM": options.box_term,
        "SEVERAL": labels_each(targets) > 1,
        "DTYPE": triton_dtype(compute),
        **weight_options(options.weights),
        **focal_options(options.class_cost != "softmax", options.alpha, options.gamma),
    }


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

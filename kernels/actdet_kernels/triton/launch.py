"""Launches kernels, and prepares what all launches share: tensors, sizes and compile-time constants."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from actdet_kernels.options import CostOptions
from actdet_kernels.targets import (
    Targets,
    Tubelets,
    has_frame_labels,
    has_frame_logits,
    labels_each,
    query_shape,
)

REDUX_CAPABILITY = (8, 0)


def launch(kernel: Any, programs: int, **arguments: Any) -> None:
    """Run a kernel with a one-dimensional grid on the device of its first tensor.

    Args:
        kernel: The kernel.
        programs: The size of the grid. With 0 there is nothing to do, and nothing is launched.
        arguments: The kernel's arguments and Triton's options. All have names, because nobody would notice if two
            tensors of one shape, or two sizes, were swapped.
    """
    if programs > 0:
        first = next(value for value in arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(first):
            kernel[(programs,)](**arguments)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate what a kernel writes. Tests return memory full of NaN or -7 instead, to find what was never written."""
    return torch.empty(shape, dtype=dtype, device=device)


def empty_like(tensor: Tensor) -> Tensor:
    """Allocate what a kernel writes, in the memory layout of `tensor`. It is no view, so it may be changed in place."""
    return torch.empty_like(tensor)


def has_redux(device: torch.device) -> bool:
    """Tell whether a warp of this GPU reduces 32-bit integers in one instruction. Kernels are compiled accordingly."""
    return capability(device) >= REDUX_CAPABILITY


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU. For other devices, as the interpreter's, it is that of the newest GPUs.

    Gates and tests replace this function by the architecture that they compile for.
    """
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (12, 0)


def inputs(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> dict[str, Tensor | None]:
    """Return predictions and targets under the names of the kernels' arguments. Without tubelets `visible` is None."""
    return {
        "logits": logits.contiguous(),
        "boxes": boxes.contiguous(),
        "labels": targets.labels.contiguous(),
        "target_boxes": targets.boxes.contiguous(),
        "counts": targets.counts.contiguous(),
        "visible": targets.visible.contiguous() if isinstance(targets, Tubelets) else None,
    }


def sizes(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> dict[str, int]:
    """Return the sizes of a problem, and the number of samples, under the names of the kernels' arguments."""
    *_, batch, queries = query_shape(boxes, isinstance(targets, Tubelets))
    classes = logits.shape[-1]
    frames = targets.boxes.shape[2] if isinstance(targets, Tubelets) else 1
    return {
        "batch": batch,
        "queries": queries,
        "size": targets.labels.shape[1],
        "classes": classes,
        "frames": frames,
        "labels_each": labels_each(targets),
    }


def may_have_several_labels(targets: Targets | Tubelets) -> bool:
    """Return whether labels lie in rows: a row of each target, or of each in each frame."""
    return labels_each(targets) > 1 or has_frame_labels(targets)


def is_of_each_frame(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> bool:
    """Return whether there are logits of each frame of a tubelet, instead of the whole."""
    return has_frame_logits(logits, boxes, isinstance(targets, Tubelets))


def compute_dtype(logits: Tensor, boxes: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(logits.dtype, boxes.dtype), torch.float32)


def triton_dtype(compute: torch.dtype) -> Any:
    return tl.float64 if compute == torch.float64 else tl.float32


def weight_options(weights: tuple[float, float, float]) -> dict[str, float]:
    """Return the weights as compile-time constants, because a Python float would reach a kernel as float32."""
    return dict(zip(("CLS", "L1", "GIOU"), map(float, weights), strict=True))


def focal_options(focal: bool, alpha: float, gamma: float) -> dict[str, float]:
    """Return alpha and gamma as compile-time constants.

    Both are 0 if nothing is focal, so that a kernel is not compiled again for values that it does not use.
    """
    return {"ALPHA": float(alpha) if focal else 0.0, "GAMMA": float(gamma) if focal else 0.0}


def cost_options(compute: torch.dtype, targets: Targets | Tubelets, options: CostOptions) -> dict[str, Any]:
    return {
        "CLASS_COST": options.class_cost,
        "BOX_TERM": options.box_term,
        "SEVERAL": may_have_several_labels(targets),
        "DTYPE": triton_dtype(compute),
        **weight_options(options.weights),
        **focal_options(options.class_cost != "softmax", options.alpha, options.gamma),
    }


def block_of_classes(classes: int, largest: int) -> int:
    """Return how many logits of a query are read at a time: all of them, or the largest block."""
    return min(max(power_of_2(classes), 4), largest)


def power_of_2(size: int) -> int:
    """Return the least power of two that is not smaller. Triton's own function takes 4 us, a fifth of a launch."""
    return 1 << max(size - 1, 0).bit_length()


def tile_count(size: int, block: int) -> int:
    return -(-size // block)


def compiler_options(warps: int = 4, fused: bool = False) -> dict[str, Any]:
    """Return Triton's options.

    Args:
        warps: The warps of a program.
        fused: Whether multiplications and additions may be fused. Without fusion, near ties are resolved in the same
            way by every compiler.
    """
    # The register limit is the hardware's own. Without it, some versions of ptxas spill rather than go near the limit.
    return {"num_warps": warps, "maxnreg": min(255, 65536 // (32 * warps)), "enable_fp_fusion": fused}

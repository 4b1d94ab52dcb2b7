"""What the compiled code is called with: pointers and sizes of tensors in main memory, contiguous and of one type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from actdet_kernels.operators import flat
from actdet_kernels.options import CostOptions, LossOptions
from actdet_kernels.targets import Targets, Tubelets

CPU = torch.device("cpu")

# The enumerations in src/classes.hpp and src/boxes.hpp.
KINDS = {"softmax": 0, "cross_entropy": 0, "focal": 1, "varifocal": 2, "quality_focal": 3}
BOX_TERMS = {"giou": 0, "diou": 1, "ciou": 2}


class Predictions(NamedTuple):
    """logits, boxes and targets for a call.

    head: whether they are float64, and the threads that may be used: what every call begins with.
    numbers: the fields of `Predictions` in src/operations.hpp.
    tensors: what the pointers among them point to, to be kept until the call returns.
    """

    head: tuple[bool, int]
    numbers: tuple[int, ...]
    tensors: tuple[Tensor | None, ...]
    dtype: torch.dtype


def predictions(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> Predictions:
    """Copies of what is on another device, of another type or not contiguous."""
    dtype = compute_dtype(torch.promote_types(logits.dtype, boxes.dtype))
    labels, target_boxes, counts, visible = flat(targets)
    tensors = (
        in_memory(logits, dtype),
        in_memory(boxes, dtype),
        in_memory(labels, torch.int64),
        in_memory(target_boxes, dtype),
        in_memory(counts, torch.int64),
        None if visible is None else in_memory(visible, torch.bool),
    )
    batch, size, *several = labels.shape
    queries, classes = logits.shape[-2:]
    layers = logits.shape[:-3].numel()
    frames = 1 if visible is None else visible.shape[2]
    sizes = (layers, batch, queries, classes, size, frames, several[0] if several else 1)
    return Predictions(head(dtype), (*map(pointer, tensors), *sizes), tensors, dtype)


def cost_numbers(options: CostOptions) -> tuple[float, ...]:
    """The fields of `CostOptions` in src/operations.hpp."""
    weights, class_cost, alpha, gamma, box_term = options
    return (*weights, KINDS[class_cost], alpha, gamma, BOX_TERMS[box_term])


def loss_numbers(options: LossOptions) -> tuple[float, ...]:
    """The first fields of `LossOptions` there."""
    _, no_object_weight, class_loss, alpha, gamma, box_term, _ = options
    return no_object_weight, KINDS[class_loss], alpha, gamma, BOX_TERMS[box_term]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for itself, float32 for all else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def head(dtype: torch.dtype) -> tuple[bool, int]:
    return dtype == torch.float64, torch.get_num_threads()


def in_memory(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Itself where it is so already, which nearly all are, and which is quicker to ask than to do nothing."""
    if tensor.dtype == dtype and tensor.is_cpu and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(CPU, dtype).contiguous()


def back_on(device: torch.device, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What was written, on the device that the inputs are on."""
    return tuple(tensors) if device.type == "cpu" else tuple(tensor.to(device) for tensor in tensors)


def pointer(tensor: Tensor | None) -> int:
    """0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What the compiled code writes, every element of it. Tests put memory full of NaN or -7 in its place."""
    return torch.empty(shape, dtype=dtype)

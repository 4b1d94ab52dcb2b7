"""Prepares what the compiled code is called with: pointers and sizes of contiguous tensors of one dtype in main memory.

`native` knows nothing of PyTorch. It takes the fields of the structures in src/operations.hpp as numbers, one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from actdet_kernels.operators import flat
from actdet_kernels.options import CostOptions, LossOptions
from actdet_kernels.targets import (
    Targets,
    Tubelets,
    has_frame_labels,
    has_frame_logits,
    labels_each,
    query_shape,
)

CPU = torch.device("cpu")

# The values of `Kind` in src/classes.hpp and of `BoxTerm` in src/boxes.hpp.
KINDS = {"softmax": 0, "cross_entropy": 0, "focal": 1, "varifocal": 2, "quality_focal": 3}
BOX_TERMS = {"giou": 0, "diou": 1, "ciou": 2}


class Predictions(NamedTuple):
    """Logits, boxes and targets for a call.

    Args:
        head: What every call begins with: whether numbers are float64, and how many threads may be used.
        numbers: The fields of `Predictions` in src/operations.hpp.
        tensors: The tensors to which the pointers among `numbers` point. They must live until the call returns.
        dtype: The dtype of logits, boxes, and everything that is computed.
    """

    head: tuple[bool, int]
    numbers: tuple[int, ...]
    tensors: tuple[Tensor | None, ...]
    dtype: torch.dtype


def predictions(logits: Tensor, boxes: Tensor, targets: Targets | Tubelets) -> Predictions:
    """Prepare predictions and targets. Tensors on another device, of another dtype or not contiguous are copied."""
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

    *leading, batch, queries = query_shape(boxes, visible is not None)
    layers = torch.Size(leading).numel()
    classes = logits.shape[-1]
    frames = 1 if visible is None else visible.shape[2]
    each_frame = has_frame_logits(logits, boxes, visible is not None)
    of_labels = (labels_each(targets), int(each_frame), frames if has_frame_labels(targets) else 1)
    sizes = (layers, batch, queries, classes, labels.shape[1], frames, *of_labels)
    return Predictions(head(dtype), (*map(pointer, tensors), *sizes), tensors, dtype)


def cost_numbers(options: CostOptions) -> tuple[float, ...]:
    """Return the fields of `CostOptions` in src/operations.hpp."""
    weights, class_cost, alpha, gamma, box_term = options
    return (*weights, KINDS[class_cost], alpha, gamma, BOX_TERMS[box_term])


def loss_numbers(options: LossOptions) -> tuple[float, ...]:
    """Return the fields of `LossOptions` in src/operations.hpp, except for its pointers, which are the last."""
    _, no_object_weight, class_loss, alpha, gamma, box_term, _ = options
    return no_object_weight, KINDS[class_loss], alpha, gamma, BOX_TERMS[box_term]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 for float64, and float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def head(dtype: torch.dtype) -> tuple[bool, int]:
    """Return whether numbers are float64, and how many threads may be used."""
    return dtype == torch.float64, torch.get_num_threads()


def in_memory(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor as a contiguous one of `dtype` in main memory, copied only if it is not that already."""
    # Nearly all tensors are, and asking is quicker than conversions that do nothing.
    if tensor.dtype != dtype or not tensor.is_cpu:
        tensor = tensor.detach().to(CPU, dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def back_on(like: Tensor, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the results on the device of an input."""
    return results if like.is_cpu else tuple(tensor.to(like.device) for tensor in results)


def pointer(tensor: Tensor | None) -> int:
    """Return the address of a tensor's first element, or 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate what the compiled code writes. Tests return memory full of NaN or -7 instead, as in `triton.launch`."""
    return torch.empty(shape, dtype=dtype)

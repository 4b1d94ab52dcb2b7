"""Computes the loss of maps of centers, movement, sizes and classes, and its gradient (src/centers.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels import reference
from actdet_kernels.centers import CenterMaps
from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import back_on, in_memory, pointer
from actdet_kernels.options import CenterOptions
from actdet_kernels.targets import Tubelets

# The values of `Area` in src/actors.hpp.
AREAS = {"ellipse": 0, "circle": 1, "center": 2}


def center_loss(maps: CenterMaps, targets: Tubelets, options: CenterOptions) -> tuple[Tensor, ...]:
    """Return total, classes, centers, movement and sizes, all 0-d, and what they were divided by, (3,)."""
    dtype = reference.widest(*maps)
    given = _in_memory(maps, targets, dtype)
    losses = [arguments.empty((), dtype) for _ in range(5)]
    divisors = arguments.empty((3,), dtype)

    native.center_loss(
        *arguments.head(dtype),
        *map(pointer, given),
        *_numbers(maps, targets, options),
        *options.weights,
        *map(pointer, losses),
        pointer(divisors),
    )
    return back_on(maps.centers, (*losses, divisors))


def center_loss_gradient(
    maps: CenterMaps,
    targets: Tubelets,
    divisors: Tensor,
    cotangents: tuple[Tensor | None, ...],
    options: CenterOptions,
) -> tuple[Tensor, ...]:
    """Return the gradients of the maps, of which the last is empty if there are no classes.

    The cotangents are those of the five losses, and None for unused ones.
    """
    dtype = reference.widest(*maps)
    given = _in_memory(maps, targets, dtype)
    divisors = in_memory(divisors, dtype)
    slopes = [None if slope is None else in_memory(slope, dtype) for slope in cotangents]
    gradients = [None if each is None else arguments.empty(tuple(each.shape), dtype) for each in maps]

    native.center_loss_gradient(
        *arguments.head(dtype),
        *map(pointer, given),
        *_numbers(maps, targets, options),
        *options.weights,
        pointer(divisors),
        *map(pointer, slopes),
        *map(pointer, gradients),
    )
    return tuple(
        maps.centers.new_empty(0) if each is None or gradient is None else gradient.to(each.device, each.dtype)
        for each, gradient in zip(maps, gradients, strict=True)
    )


def _in_memory(maps: CenterMaps, targets: Tubelets, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """Return the tensors that a call reads, the maps and the boxes in the dtype of its arithmetic."""
    labels, boxes, counts, visible = targets
    return (
        *(None if each is None else in_memory(each, dtype) for each in maps),
        in_memory(labels, torch.int64),
        in_memory(boxes, dtype),
        in_memory(counts, torch.int64),
        in_memory(visible, torch.bool),
    )


def _numbers(maps: CenterMaps, targets: Tubelets, options: CenterOptions) -> tuple[float, ...]:
    """Return the fields of `CenterArguments` in src/operations.hpp that are no pointers."""
    _, key, radius, movement_area, size_area, moved, stride, alpha, beta = options
    frames = maps.movement.shape[1]
    of_classes = (0, 0, 0) if maps.classes is None else maps.classes.shape[1:]
    sizes = (*maps.centers.shape, frames, *of_classes, targets.labels.shape[1])
    areas = (AREAS[movement_area], AREAS[size_area])
    return (*sizes, key, radius == "corrected", *areas, moved, stride, alpha, beta)

"""Finds the highest peaks of a map of centers, and gathers the tubelet of each (src/peaks.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from actdet_kernels.centers import CenterMaps
from actdet_kernels.cpu import arguments, native
from actdet_kernels.cpu.arguments import CPU, head, pointer
from actdet_kernels.peaks import flat_map
from actdet_kernels.reference import widest


def center_peaks(maps: CenterMaps, peaks: int, moved: bool) -> tuple[Tensor, ...]:
    """Return the fields of `actdet_kernels.Peaks`."""
    centers, _, _, classes = maps
    batch, channels, height, width = centers.shape
    frames = maps.movement.shape[1]
    count, rows, columns = (0, 0, 0) if classes is None else classes.shape[1:]
    dtype = widest(*maps)

    # The code reads tensors of one dtype, in the strides that they have.
    given = [None if values is None else flat_map(values.detach().to(CPU, dtype)) for values in maps]
    results = (
        arguments.empty((batch, peaks), torch.int64),
        arguments.empty((batch, peaks), torch.int64),
        arguments.empty((batch, peaks), dtype),
        arguments.empty((batch, peaks, frames, 4), dtype),
        arguments.empty((batch, peaks, count), dtype),
    )
    native.center_peaks(
        *head(dtype),
        *(number for values in given for number in _map_numbers(values)),
        *(batch, channels, height, width, frames, count, rows, columns, peaks, moved),
        *map(pointer, results),
    )
    return arguments.back_on(centers, results)


def _map_numbers(values: Tensor | None) -> tuple[int, ...]:
    """Return the fields of `Map` in src/operations.hpp."""
    return (pointer(values), *((0, 0, 0) if values is None else values.stride()))

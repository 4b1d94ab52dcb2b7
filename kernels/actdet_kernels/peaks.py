"""The tubelets at the highest peaks of a map of centers: what a detector of centers answers.

From top to bottom: the result, the public function, its checks, the implementation by the kernels, and the operator
with its shapes. There is no gradient, as what is found here is not trained.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from actdet_kernels import reference, reference_centers
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.centers import CenterMaps, check_maps
from actdet_kernels.operators import LIBRARY, operator

# The most logits of a sample, the most numbers found in one, and the largest product of two grids' rows or columns that
# the Triton kernel can count in 32 bits.
MAX_NUMBERS = 2**30


class Peaks(NamedTuple):
    """The tubelets at the N highest peaks of each of B samples, the highest first.

    If a sample has fewer peaks, the last rows are 0, and their pixels -1. All but `pixels` and `channels` are float32,
    or float64 if one of the maps is.

    Args:
        pixels: (B, N) int64, the pixels of the peaks, counted row by row.
        channels: (B, N) int64, the channel of the map of centers that each peak is in.
        scores: (B, N), the probabilities of the centers, sigmoid(centers).
        boxes: (B, N, K, 4) cxcywh in units of the picture's sides.
        classes: (B, N, A), the class logits at the peaks; without `maps.classes` A is 0.
    """

    pixels: Tensor
    channels: Tensor
    scores: Tensor
    boxes: Tensor
    classes: Tensor


@torch.no_grad()
def center_peaks(maps: CenterMaps, *, peaks: int = 10, moved: bool = True, backend: Backend = "auto") -> Peaks:
    """Find the highest peaks of the map of centers, and gather the tubelet of each (STMA, section 2.5).

    A pixel is a peak if none of its eight neighbors in its channel is higher (CenterNet, Zhou et al. 2019); beyond the
    edge there is nothing. Of equally high peaks, the one of the lower channel comes first, then that of the lower
    number of a pixel. A logit that is NaN or minus infinity is no peak, and no neighbor.

    The center of a peak in frame j is the middle of its pixel, moved by `movement` there. The sides are those in the
    pixel of the grid in which the moved center is, clamped to the grid, and the box is around that pixel's middle; if
    not `moved`, around the peak's. Movement that is not finite counts as 0.

    The class logits are those of the pixel of the coarser grid in which the middle of the peak's pixel is.

    Args:
        maps: As `center_loss` trains them.
        peaks: N.
        moved: Whether the sides are read where the actor is in each frame, as they were learned.
        backend: See `explain_backend`.

    Raises:
        ValueError: Shapes, dtypes or devices disagree, or `peaks` is below 1.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    check_maps(maps)
    if peaks < 1:
        raise ValueError(f"peaks must be at least 1, got {peaks}")
    compute = implementation(
        backend,
        maps.centers.device,
        kernels=_by_kernels,
        reference=reference_centers.center_peaks,
        obstacle=_obstacle(maps, peaks),
    )
    return Peaks(*compute(*maps, peaks, moved))


def flat_map(values: Tensor) -> Tensor:
    """Return a map (B, ..., H, W) as (B, channels, pixels), for kernels, which take its strides.

    Networks give maps whose channels or whose pixels lie side by side, and only a few pixels of most maps are read. So
    nothing is copied, unless the pixels do not have one distance in memory.
    """
    return values.flatten(-2).flatten(1, -2)


def _obstacle(maps: CenterMaps, peaks: int) -> str | None:
    """Return why the Triton kernel cannot compute this, or None if it can."""
    centers, movement, _, classes = maps
    count, rows, columns = (0, 1, 1) if classes is None else classes.shape[1:]
    height, width = centers.shape[2:]
    logits = centers.shape[1:].numel()
    if logits > MAX_NUMBERS:
        return f"a sample has {logits} logits of centers, more than {MAX_NUMBERS}"
    numbers = peaks * max(4 * movement.shape[1], count)
    if numbers > MAX_NUMBERS:
        return f"{peaks} peaks have {numbers} numbers, more than {MAX_NUMBERS}"
    if max(height * rows, width * columns) > MAX_NUMBERS:
        return f"grids of {height} x {width} and {rows} x {columns} are too large to be compared in 32 bits"
    return None


def _by_kernels(chosen: str, *arguments: Any) -> tuple[Tensor, ...]:
    return _center_peaks(*arguments, chosen)


@operator(
    "center_peaks(Tensor centers, Tensor movement, Tensor sizes, Tensor? classes, int peaks, bool moved, str chosen)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def _center_peaks(
    centers: Tensor, movement: Tensor, sizes: Tensor, classes: Tensor | None, peaks: int, moved: bool, chosen: str
) -> tuple[Tensor, ...]:
    """Return the fields of `Peaks`."""
    return kernel_module(chosen, "peaks").center_peaks(CenterMaps(centers, movement, sizes, classes), peaks, moved)


@torch.library.register_fake("actdet_kernels::center_peaks", lib=LIBRARY)
def _shapes(
    centers: Tensor, movement: Tensor, sizes: Tensor, classes: Tensor | None, peaks: int, *rest: Any
) -> tuple[Tensor, ...]:
    dtype = reference.widest(centers, movement, sizes, classes)
    batch, frames = movement.shape[:2]
    count = 0 if classes is None else classes.shape[1]
    return (
        centers.new_empty((batch, peaks), dtype=torch.int64),
        centers.new_empty((batch, peaks), dtype=torch.int64),
        centers.new_empty((batch, peaks), dtype=dtype),
        centers.new_empty((batch, peaks, frames, 4), dtype=dtype),
        centers.new_empty((batch, peaks, count), dtype=dtype),
    )

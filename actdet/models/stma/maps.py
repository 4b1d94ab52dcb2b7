"""What STMA predicts for each snippet of a clip, and which frames the snippets have."""

from __future__ import annotations

from typing import NamedTuple

from actdet_kernels import CenterMaps
from torch import Tensor

from actdet.models.stma.config import StmaConfig


class SnippetMaps(NamedTuple):
    """The maps of n snippets of K frames of each of B clips; `actdet_kernels.CenterMaps` describes them."""

    centers: Tensor
    """(B, n, C, H, W) float32."""
    movement: Tensor
    """(B, n, K, 2, H, W) float32."""
    sizes: Tensor
    """(B, n, K, 4, H, W) float32."""
    classes: Tensor
    """(B, n, A, h, w) float32; (B, n, 1, 1, 1) zeros if the channels of the centers are the classes."""

    def final(self) -> SnippetMaps:
        return self

    def as_samples(self) -> CenterMaps:
        """Return the maps of B * n samples, as the kernels take them."""
        centers, movement, sizes, classes = (maps.flatten(0, 1) for maps in self)
        return CenterMaps(centers, movement, sizes, None if centers.shape[1] > 1 else classes)


def snippet_starts(config: StmaConfig) -> tuple[int, ...]:
    """Return the first frame of each snippet, among the T frames of a clip.

    As few snippets as cover the clip are spread evenly over it, so neighbors may have frames in common.
    """
    last = config.frames - config.snippet
    if config.snippets == "middle":
        return (last // 2,)
    if config.snippets == "last":
        return (last,)
    gaps = -(-config.frames // config.snippet) - 1
    return tuple(round(number * last / gaps) for number in range(gaps + 1)) if gaps else (0,)


def key_frame(config: StmaConfig) -> int:
    """Return which frame of a snippet the centers are found in."""
    return config.snippet // 2 if config.key == "middle" else config.snippet - 1

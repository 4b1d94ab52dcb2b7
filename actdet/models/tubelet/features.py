"""Features of every frame at several scales, from a backbone whose stages may see fewer and fewer frames.

    stages of the backbone -> 1x1x1 projections -> from coarse to fine, added up in space and time -> every frame

The finer levels take what the coarser ones know by a feature pyramid (Lin et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actdet.models.backbones.efficientnet_lite import EfficientNetLite0
from actdet.models.backbones.r2plus1d import STAGE_FEATURES, Backbone
from actdet.models.tubelet.config import TubeletConfig

HIDDEN = 256

# The levels of a pyramid: the last three stages of the backbone.
LEVELS = 3

# The channels of a projection are normalized in so many groups.
_GROUPS = 32

# How many times as long the longest wave of the positions is as the shortest one.
_TEMPERATURE = 20


class FrameBackbone(Backbone):
    """R(2+1)D-18 up to its last block: clips (B, 3, T, H, W) to the features of its last stages, from fine to coarse.

    Args:
        levels: How many stages.
        temporal_strides: How many of the last three stages halve the number of frames, the earlier ones first.
    """

    def __init__(self, levels: int, temporal_strides: int) -> None:
        super().__init__(temporal_strides=temporal_strides)
        self.widths = STAGE_FEATURES[-levels:]

    def forward(self, input: Tensor) -> list[Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return list(self.stages(input))[-len(self.widths) :]


def frame_backbone(config: TubeletConfig) -> FrameBackbone | EfficientNetLite0:
    """Make the backbone: clips (B, 3, T, H, W) to a list of features, whose channels are its `widths`."""
    levels = LEVELS if config.pyramid else 1
    if config.backbone == "r2plus1d-18":
        return FrameBackbone(levels, config.temporal_strides)
    # Its fifth stage, whose pixels are 32 of the picture's, is left out: R(2+1)D-18 ends with 16, too.
    return EfficientNetLite0(tuple(range(4 - levels, 4)))


class FrameFeatures(NamedTuple):
    """What the decoder reads of B clips of T frames."""

    pixels: Tensor
    """(B, T, P, 256), of all levels, from fine to coarse, each row by row."""
    places: Tensor | None
    """(P, 256), which says of a pixel where in the picture it is, and on which level, if that was asked for."""
    sizes: list[tuple[int, int]]
    """Height and width of each level, which have P pixels together."""


class Pyramid(nn.Module):
    """The features of the backbone's stages, (B, C, T', H', W') each, from fine to coarse, to `FrameFeatures`.

    Args:
        widths: C of each stage.
        frames: T.
        with_places: Whether what reads the features has to be told where they are.
    """

    def __init__(self, widths: Sequence[int], frames: int, *, with_places: bool) -> None:
        super().__init__()
        self.frames = frames
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv3d(channels, HIDDEN, kernel_size=1), nn.GroupNorm(_GROUPS, HIDDEN))
            for channels in widths
        )
        self.levels = nn.Parameter(torch.randn(len(widths), HIDDEN) * 0.1) if with_places else None

    def forward(self, stages: list[Tensor]) -> FrameFeatures:
        projected = [project(stage) for project, stage in zip(self.projections, stages, strict=True)]

        # From coarse to fine: each level gets what the coarser ones know.
        for fine in range(len(projected) - 2, -1, -1):
            coarse = projected[fine + 1]
            projected[fine] = projected[fine] + resize(coarse, projected[fine].shape[2:])

        sizes = [(level.shape[3], level.shape[4]) for level in projected]
        pixels = [resample_frames(level, self.frames).permute(0, 2, 3, 4, 1).flatten(2, 3) for level in projected]
        return FrameFeatures(torch.cat(pixels, 2), self._places(sizes), sizes)

    def _places(self, sizes: list[tuple[int, int]]) -> Tensor | None:
        if self.levels is None:
            return None
        places = [
            picture_positions(*size, device=self.levels.device).flatten(0, 1) + level
            for size, level in zip(sizes, self.levels, strict=True)
        ]
        return torch.cat(places)


def resize(features: Tensor, size: torch.Size) -> Tensor:
    """(B, C, T', H', W') to (B, C, *size), linearly in time and to the nearest pixel in space."""
    frames, *sides = size
    resampled = resample_frames(features, frames).transpose(1, 2)
    resized = F.interpolate(resampled.flatten(0, 1), sides, mode="nearest")
    return resized.unflatten(0, resampled.shape[:2]).transpose(1, 2)


def resample_frames(features: Tensor, frames: int) -> Tensor:
    """Interpolate features (B, C, T', H, W) linearly in time to (B, C, T, H, W), as F.interpolate would.

    A product with a small matrix has a gradient that is the same in every run on a GPU, and every exporter knows it.
    """
    given = features.shape[2]
    if given == frames:
        return features
    weights = _time_weights(given, frames, features.device).to(features.dtype)
    # (B, T', H, W, C), which is how channels-last features lie in memory.
    by_frame = features.permute(0, 2, 3, 4, 1)
    resampled = (weights @ by_frame.flatten(2)).unflatten(2, by_frame.shape[2:])
    return resampled.permute(0, 4, 1, 2, 3)


def _time_weights(given: int, frames: int, device: torch.device) -> Tensor:
    """(T, T') float32, how much of each given frame is in each of T frames; both are spread evenly over the clip.

    It is computed on the device, since no CUDA graph can hold a copy from the host.
    """
    where = ((torch.arange(frames, device=device) + 0.5) * given / frames - 0.5).clamp(0, given - 1)
    distance = (where[:, None] - torch.arange(given, device=device)).abs()
    return (1 - distance).clamp(min=0)


def picture_positions(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """(H, W, 256) float32, sines and cosines of where a pixel is, as DAB-DETR has them (Liu et al. 2022)."""
    quarter = HIDDEN // 4
    frequencies = 2 * math.pi * _TEMPERATURE ** (-torch.arange(quarter, device=device) / quarter)
    y = ((torch.arange(height, device=device) + 0.5) / height)[:, None] * frequencies
    x = ((torch.arange(width, device=device) + 0.5) / width)[:, None] * frequencies
    rows = torch.cat([y.sin(), y.cos()], -1)[:, None].expand(-1, width, -1)
    columns = torch.cat([x.sin(), x.cos()], -1)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1)

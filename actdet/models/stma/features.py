"""The two backbones of STMA: one sees each frame by itself, the other the whole clip.

    clip (B, 3, T, S, S) -> picture backbone, frame by frame -> (B, T, c, S / 4, S / 4), where things are
                         -> clip backbone -> mean over time  -> (B, C, S / R, S / R),    what is done

A frame's features do not depend on other frames, so those of a stream are computed once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actdet.errors import ActdetError
from actdet.models.backbones import resnext3d
from actdet.models.backbones.dla import DLA34
from actdet.models.backbones.efficientnet_lite import EfficientNetLite0
from actdet.models.backbones.r2plus1d import FEATURES, SPATIAL_STRIDE, Backbone
from actdet.models.backbones.resnet import ResNet18
from actdet.models.stma.config import StmaConfig

# The channels of the features of a frame.
WIDTH = 64

# The source of published weights that each backbone has, and none for those whose weights are files.
_PUBLISHED = {"efficientnet-lite0": "imagenet", "resnet-18": "imagenet", "r2plus1d-18": "kinetics"}


class ClipFeatures(NamedTuple):
    """What the backbones see in B clips of T frames."""

    pictures: Tensor
    """(B, T, 64, S / 4, S / 4), of each frame by itself."""
    clip: Tensor | None
    """(B, C, h, w), of the whole clip, if there is a backbone for it."""


class FrameFeatures(NamedTuple):
    """All that depends on single frames alone, of N frames. What follows needs K of them."""

    pictures: Tensor
    """(N, 64, H, W), of the backbone."""
    sides: Tensor
    """(N, 4, H, W) float32, how far the sides of a box are from each pixel."""
    reduced: Tensor
    """(N, 64, h, w), on the grid of the clip's features; without channels if nothing reads them."""


class TwoBackbones(nn.Module):
    """Clips (B, 3, T, S, S) to `ClipFeatures`.

    Attributes:
        pictures: The backbone of single frames: (N, 3, S, S) to (N, 64, S / 4, S / 4).
        clips: The backbone of clips: (B, 3, T, S, S) to (B, C, T', h, w); None without aggregation.
    """

    def __init__(self, config: StmaConfig) -> None:
        super().__init__()
        self._names = (config.picture_backbone, config.clip_backbone if config.aggregation else None)
        self.pictures: _Pyramid | DLA34 = _picture_backbone(config.picture_backbone)
        self.clips = _ClipBackbone(config.clip_backbone) if config.aggregation else None

    def forward(self, clips: Tensor) -> ClipFeatures:
        frames = clips.shape[2]
        pictures = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = self.pictures(pictures).unflatten(0, (-1, frames))
        return ClipFeatures(features, None if self.clips is None else self.clips(clips))

    def load_weights(self, source: str) -> None:
        """Take weights; what cannot be used leaves both backbones as they were.

        Args:
            source: "imagenet" or "kinetics" for the published weights of each backbone that has those; "none"; or a
                file for the backbone of frames and one for that of clips, with a comma between them, either of which
                may be one of these words instead.

        Raises:
            ActdetError: If there are no such weights, or they cannot be had.
            DataError: If a file cannot be read, or holds other weights.
        """
        sources = source.split(",")
        if len(sources) == 1 and source in ("imagenet", "kinetics"):
            sources = [source if _PUBLISHED.get(name or "") == source else "none" for name in self._names]
            if set(sources) == {"none"}:
                named = " and ".join(name for name in self._names if name)
                raise ActdetError(f"{named} have no published weights of {source}: give files, or none")
        elif source == "none":
            return
        if len(sources) != 2:
            raise ActdetError(
                f"--backbone-weights {source}: two backbones take imagenet, kinetics, none, or two files with a comma "
                "between them, the first for single frames and the second for clips"
            )
        if self.clips is None and sources[1] != "none":
            raise ActdetError(f"--backbone-weights {source}: without aggregation there is no backbone of clips")

        before = {name: value.clone() for name, value in self.state_dict().items()}
        try:
            for part, of_part in zip((self.pictures, self.clips), sources, strict=True):
                if part is not None and of_part != "none":
                    part.load_weights(of_part)
        except ActdetError:
            self.load_state_dict(before)
            raise


class _Pyramid(nn.Module):
    """The stages of a backbone, from fine to coarse, added up to the finest of them (Lin et al. 2017).

    Args:
        backbone: Pictures (N, 3, S, S) to stages, of which the pixels of the finest are 4 of the picture's.
    """

    def __init__(self, backbone: EfficientNetLite0 | ResNet18) -> None:
        super().__init__()
        self.backbone = backbone
        self.laterals = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in backbone.widths)
        self.smooth = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        stages = self.backbone(pictures)
        *finer, summed = (lateral(stage) for lateral, stage in zip(self.laterals, stages, strict=True))
        for features in reversed(finer):
            summed = features + F.interpolate(summed, features.shape[2:], mode="nearest")
        return self.smooth(summed)

    def load_weights(self, source: str) -> None:
        self.backbone.load_weights(source)


class _ClipBackbone(nn.Module):
    """A backbone of clips, whose last stage is averaged over time.

    Attributes:
        width: The channels of the features.
        stride: The sides of their pixels in pixels of the picture.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name == "efficientnet-lite0":
            # Without its fifth stage, whose pixels are 32 of the picture's.
            self.backbone = EfficientNetLite0((3,))
            self.width = self.backbone.widths[-1]
            self.stride = 16
        elif name == "r2plus1d-18":
            self.backbone = Backbone()
            self.width = FEATURES
            self.stride = SPATIAL_STRIDE
        else:
            self.backbone = resnext3d.ResNeXt101()
            self.width = resnext3d.FEATURES
            self.stride = 32

    def forward(self, clips: Tensor) -> Tensor:
        features = self.backbone(clips)
        last = features[-1] if isinstance(features, list) else features
        return last.mean(2)

    def load_weights(self, source: str) -> None:
        self.backbone.load_weights(source)


def _picture_backbone(name: str) -> _Pyramid | DLA34:
    if name == "efficientnet-lite0":
        return _Pyramid(EfficientNetLite0((1, 2, 3), temporal=False))
    if name == "resnet-18":
        return _Pyramid(ResNet18())
    return DLA34(deformable=name == "dla-34")

"""The backbones of the detector: what a clip is turned into before the Transformer sees it.

clip (B, 3, T, S, S) -> R(2+1)D-18         -> (B, 512, T / 8, S / 16, S / 16), as in the technical report
                     -> EfficientNet-Lite0 -> (B, 112, T / 2, S / 16, S / 16)
"""

from __future__ import annotations

from torch import Tensor

from actdet.models.backbones.efficientnet_lite import EfficientNetLite0
from actdet.models.backbones.r2plus1d import Backbone
from actdet.models.detr.config import ModelConfig


class FramePairs(EfficientNetLite0):
    """EfficientNet-Lite0, whose features of two frames each are averaged, so that what follows sees motion, too.

    Its fifth stage, whose pixels are 32 of the picture's, is left out: R(2+1)D-18 ends with 16, too.

    Attributes:
        width: The channels of the features.
    """

    temporal_stride = 2

    def __init__(self) -> None:
        super().__init__((3,))
        self.width = self.widths[-1]

    def forward(self, input: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (features,) = super().forward(input)
        return features.unflatten(2, (-1, self.temporal_stride)).mean(3)


def clip_backbone(config: ModelConfig) -> Backbone | FramePairs:
    """Make the backbone that `config` names. It says how many channels it gives, and of how many frames each."""
    return Backbone() if config.backbone == "r2plus1d-18" else FramePairs()

"""actdet with backbones of two or three convolutions, so that a test of all that is around them takes a second.

Run as a program it is the command `actdet`, so that a test can send it signals.
"""

from __future__ import annotations

import os
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import actdet.cli.main
import actdet.models.detr.features
import actdet.models.tubelet.features
import actdet.training.trainer
from actdet.models.backbones.r2plus1d import Backbone, load_backbone_weights

MODEL_OPTIONS = ["--image-size", "32", "--frames", "8", "--encoder-layers", "0", "--decoder-layers", "1"]
TUBELET_OPTIONS = [
    "--family",
    "tubelet",
    "--image-size",
    "32",
    "--frames",
    "8",
    "--decoder-layers",
    "1",
    "--slots",
    "3",
]
TRAIN_OPTIONS = ["--backbone-weights", "none", "--workers", "0", "--precision", "fp32"]


class TinyBackbone(nn.Sequential):
    """Maps clips (B, 3, T, H, W) to features (B, 512, T / 8, H / 16, W / 16), as R(2+1)D-18 does for the detector.

    While it is shallow it trains no BatchNorm. Checkpointing changes nothing.
    """

    width = 512
    temporal_stride = 8
    checkpointing = False
    shallow = False

    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(3, 16, (8, 16, 16), stride=(8, 16, 16), bias=False),
            nn.BatchNorm3d(16),
            nn.ReLU(),
            nn.Conv3d(16, 512, 1),
        )

    def load_weights(self, source: str) -> None:
        load_backbone_weights(cast(Backbone, self), source)

    def forward(self, input: Tensor) -> Tensor:
        input = input.contiguous()
        for part in self.children():
            if not (self.shallow and self.training and isinstance(part, _BatchNorm)):
                input = part(input)
        return input


class TinyFrameBackbone(nn.Sequential):
    """Maps clips (B, 3, T, H, W) to the features of three stages, as R(2+1)D-18 does for the tubelet detector.

    They are (B, 128, T / 2, H / 4, W / 4) and so on, of which the last `levels` are given. While it is shallow it
    trains no BatchNorm. Checkpointing changes nothing.
    """

    checkpointing = False
    shallow = False

    def __init__(self, levels: int, temporal_strides: int) -> None:
        stages = []
        for number, (inputs, outputs, side) in enumerate(((3, 128, 4), (128, 256, 2), (256, 512, 2))):
            size = (2 if number < temporal_strides else 1, side, side)
            stages.append(
                nn.Sequential(
                    nn.Conv3d(inputs, outputs, size, stride=size, bias=False), nn.BatchNorm3d(outputs), nn.ReLU()
                )
            )
        super().__init__(*stages)
        self.widths = (128, 256, 512)[-levels:]

    def load_weights(self, source: str) -> None:
        load_backbone_weights(cast(Backbone, self), source)

    def forward(self, input: Tensor) -> list[Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features = []
        input = input.contiguous()
        for stage in self.children():
            for part in stage.children():
                if not (self.shallow and self.training and isinstance(part, _BatchNorm)):
                    input = part(input)
            features.append(input)
        return features[-len(self.widths) :]


if __name__ == "__main__":
    torch.set_num_threads(1)
    actdet.models.detr.features.Backbone = TinyBackbone  # pyright: ignore[reportAttributeAccessIssue]
    actdet.models.tubelet.features.FrameBackbone = TinyFrameBackbone  # pyright: ignore[reportAttributeAccessIssue]
    actdet.training.trainer.SAVE_SECONDS = float(os.environ.get("TINY_SAVE_SECONDS", "300"))
    actdet.cli.main.main()

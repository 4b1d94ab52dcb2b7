"""actdet with a backbone of two convolutions, so that a test of all that is around it takes a second.

Run as a program it is the command `actdet`, so that a test can send it signals.
"""

from __future__ import annotations

import os
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import actdet.cli.main
import actdet.models.detr.detector
import actdet.training.trainer
from actdet.models.backbones.r2plus1d import Backbone, load_backbone_weights

MODEL_OPTIONS = ["--image-size", "32", "--frames", "8", "--encoder-layers", "0", "--decoder-layers", "1"]
TRAIN_OPTIONS = ["--backbone-weights", "none", "--workers", "0", "--precision", "fp32"]


class TinyBackbone(nn.Sequential):
    """Maps clips (B, 3, T, H, W) to features (B, 512, T / 8, H / 16, W / 16), as R(2+1)D-18 does for the detector.

    While it is shallow it trains no BatchNorm. Checkpointing changes nothing.
    """

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


if __name__ == "__main__":
    torch.set_num_threads(1)
    actdet.models.detr.detector.Backbone = TinyBackbone  # pyright: ignore[reportAttributeAccessIssue]
    actdet.training.trainer.SAVE_SECONDS = float(os.environ.get("TINY_SAVE_SECONDS", "300"))
    actdet.cli.main.main()

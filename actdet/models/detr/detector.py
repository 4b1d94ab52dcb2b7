"""The action detector: a clip goes in, a set of N (class, box) predictions comes out.

    clip -> R(2+1)D-18 -> 1x1x1 projection + learned positions -> encoder -> decoder of N queries -> two heads

Sections 3.2.1 to 3.2.4 of the technical report. With the defaults it has the report's 40.5 M parameters;
`encoder_layers=0` is the model of the report's text, which names no encoder, though its parameter count holds two
layers of one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actdet.models.backbones.r2plus1d import FEATURES, SPATIAL_STRIDE, TEMPORAL_STRIDE, Backbone
from actdet.models.detr.config import ModelConfig

HIDDEN, HEADS, FEEDFORWARD = 256, 8, 2048
MAX_GRID = 7  # the report pools its 14 x 14 features (224-pixel clips) to 7 x 7


class Predictions(NamedTuple):
    """What the detector says of B clips, for each of the L supervised decoder layers, the last one last.

    logits: (L, B, N, C) float32; C = number of action classes + 1, the last being no_object.
    boxes: (L, B, N, 4) float32, cxcywh in [0, 1].
    """

    logits: Tensor
    boxes: Tensor

    def final(self) -> Predictions:
        """The last layer's predictions alone, without the leading dimension: (B, N, C) and (B, N, 4)."""
        return Predictions(self.logits[-1], self.boxes[-1])


class ActionDetector(nn.Module):
    """Clips (B, 3, T, S, S), normalised as `actdet.data.augment.normalise` does, to `Predictions`."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        side = min(config.image_size // SPATIAL_STRIDE, MAX_GRID)
        self.grid = (-(-config.frames // TEMPORAL_STRIDE), side, side)
        self.backbone = Backbone()
        self.projection = nn.Conv3d(FEATURES, HIDDEN, kernel_size=1)
        self.positions = nn.Parameter(torch.randn(self.grid[0] * side * side, HIDDEN) * 0.5)
        self.queries = nn.Parameter(torch.randn(config.queries, HIDDEN))
        layer = {
            "d_model": HIDDEN,
            "nhead": HEADS,
            "dim_feedforward": FEEDFORWARD,
            "dropout": config.dropout,
            "batch_first": True,
        }
        self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(**layer) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(**layer) for _ in range(config.decoder_layers))
        self.class_head = _head(len(config.class_names) + 1)
        self.box_head = _head(4)
        self._initialise()

    def _initialise(self) -> None:
        """A start from which every query sees the whole clip, where a random one sees noise for an epoch or two.

        Each sublayer adds nothing yet, except the decoder's attention to the features: its value and output projections
        are identities, so a query begins as itself plus an average of the features, and the heads learn from there.
        """
        for layer in (*self.encoder, *self.decoder):
            nn.init.zeros_(layer.get_parameter("self_attn.out_proj.weight"))
            nn.init.zeros_(layer.get_parameter("linear2.weight"))
            nn.init.zeros_(layer.get_parameter("linear2.bias"))
        for layer in self.decoder:
            attention = layer.get_submodule("multihead_attn")
            nn.init.eye_(attention.get_parameter("in_proj_weight")[2 * HIDDEN :])
            nn.init.eye_(attention.get_parameter("out_proj.weight"))

    def forward(self, clips: Tensor) -> Predictions:
        size, frames = self.config.image_size, self.config.frames
        if clips.ndim != 5 or clips.shape[1:] != (3, frames, size, size):
            raise ValueError(f"clips must be (B, 3, {frames}, {size}, {size}), got {tuple(clips.shape)}")
        return self.detect(self.backbone(clips))

    def detect(self, features: Tensor) -> Predictions:
        """What follows the backbone: features (B, 512, T/8, S/16, S/16) to `Predictions`."""
        pooled = F.adaptive_avg_pool3d(features, self.grid)
        memory = self.projection(pooled).flatten(2).transpose(1, 2) + self.positions  # (B, T'H'W', 256)
        for layer in self.encoder:
            memory = layer(memory)
        decoded = self.queries.expand(len(features), -1, -1)
        outputs = []
        for layer in self.decoder:
            decoded = layer(decoded, memory)
            outputs.append(decoded)
        supervised = torch.stack(outputs if self.config.deep_supervision else outputs[-1:])
        with torch.autocast(features.device.type, enabled=False):  # 8 bits of mantissa are too few for a coordinate
            supervised = supervised.float()
            return Predictions(self.class_head(supervised), self.box_head(supervised).sigmoid())


def _head(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))

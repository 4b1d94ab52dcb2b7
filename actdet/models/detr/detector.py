"""The action detector: a clip goes in, a set of N (class, box) predictions comes out.

    clip -> backbone -> 1x1x1 projection + learned positions -> encoder -> decoder of N queries -> two heads

These are sections 3.2.1 to 3.2.4 of the technical report. The defaults give the report's 40.5 M parameters, which
include two encoder layers. The report's text names no encoder; `encoder_layers=0` is the model of the text.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from actdet_kernels import Targets
from torch import Tensor, nn

from actdet.detections import THRESHOLD
from actdet.distributed import ALONE, Processes
from actdet.models.backbones.r2plus1d import SPATIAL_STRIDE
from actdet.models.detr.assessment import assess
from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.detr.decision import actions, decide
from actdet.models.detr.exportable import ExportableDetector
from actdet.models.detr.features import clip_backbone
from actdet.models.detr.losses import LOSSES, AuxiliaryHead, detector_losses
from actdet.models.family import Assessment, Detections, FamilyNetwork

HIDDEN = 256
HEADS = 8
FEEDFORWARD = 2048

# The report averages its 14 x 14 features (of clips of 224 pixels) to 7 x 7.
MAX_GRID = 7


class Predictions(NamedTuple):
    """What the detector predicts for B clips, for each of the L supervised decoder layers, the last one last."""

    logits: Tensor
    """(L, B, N, C) float32; C is the number of action classes + 1, and the last class is no_object."""
    boxes: Tensor
    """(L, B, N, 4) float32, cxcywh in [0, 1]."""

    def final(self) -> Predictions:
        """The predictions of the last layer alone, without the leading dimension: (B, N, C) and (B, N, 4)."""
        return Predictions(self.logits[-1], self.boxes[-1])


class ActionDetector(FamilyNetwork[ModelConfig, Predictions]):
    """Clips (B, 3, T, S, S), normalized as `actdet.data.augment` does, to `Predictions`.

    Args:
        config: The shape of the network; by default that of the report.
    """

    truth = "clip_box"
    loss_names = LOSSES
    rule = (
        "A box is the mean of those of its most confident queries. "
        "The score is how many actions of the class are expected in the clip, at most 1."
    )

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.backbone = clip_backbone(config)
        side = min(config.image_size // SPATIAL_STRIDE, MAX_GRID)
        self.grid = (config.frames // self.backbone.temporal_stride, side, side)

        self.pool = nn.AdaptiveAvgPool3d(self.grid)
        self.projection = nn.Conv3d(self.backbone.width, HIDDEN, kernel_size=1)
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
        self._initialize()

    def _initialize(self) -> None:
        """Start so that every query sees the whole clip; with random weights it sees noise for an epoch or two.

        Each sublayer adds nothing at first, except the decoder's attention to the features. The value and output
        projections of that attention start as identities, so a query starts as itself plus an average of the features,
        and the heads learn from there.
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
        size = self.config.image_size
        frames = self.config.frames
        if clips.ndim != 5 or clips.shape[1:] != (3, frames, size, size):
            raise ValueError(f"clips must be (B, 3, {frames}, {size}, {size}), got {tuple(clips.shape)}")
        return self.detect(self.backbone(clips))

    def detect(self, features: Tensor, hints: None = None) -> Predictions:
        """Compute what follows the backbone: its features to `Predictions`."""
        pooled = self.pool(features)

        # (B, T'H'W', 256)
        memory = self.projection(pooled).flatten(2).transpose(1, 2) + self.positions
        for layer in self.encoder:
            memory = layer(memory)

        decoded = self.queries.expand(features.shape[0], -1, -1)
        outputs = []
        for layer in self.decoder:
            decoded = layer(decoded, memory)
            outputs.append(decoded)
        supervised = torch.stack(outputs if self.config.deep_supervision else outputs[-1:])

        # The 8 bits of mantissa that bf16 has are too few for a coordinate.
        with torch.autocast(features.device.type, enabled=False):
            supervised = supervised.float()
            return Predictions(self.class_head(supervised), self.box_head(supervised).sigmoid())

    def auxiliary_head(self) -> AuxiliaryHead:
        return AuxiliaryHead(self.config, self.backbone.width)

    def losses(
        self,
        outputs: Predictions,
        targets: Targets,
        weights: LossConfig,
        *,
        auxiliary_output: Tensor | None = None,
        auxiliary_weight: float = 0.0,
        processes: Processes = ALONE,
    ) -> dict[str, Tensor]:
        return detector_losses(
            *outputs,
            targets,
            weights,
            auxiliary_output=auxiliary_output,
            auxiliary_weight=auxiliary_weight,
            processes=processes,
        )

    def detections(self, final: Predictions, weights: LossConfig, *, threshold: float = THRESHOLD) -> Detections:
        weight = weights.no_object_weight
        return Detections(
            decide(*final, no_object_weight=weight, threshold=threshold),
            actions(*final, no_object_weight=weight, threshold=threshold),
        )

    def assess(self, final: Predictions, targets: Targets, weights: LossConfig) -> Assessment:
        return assess(*final, targets, weights)

    def exportable(self, weights: LossConfig, *, threshold: float = THRESHOLD) -> ExportableDetector:
        return ExportableDetector(self, no_object_weight=weights.no_object_weight, threshold=threshold)


def _head(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))

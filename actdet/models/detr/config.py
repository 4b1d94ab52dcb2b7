"""The settings of the detector, and of the loss that trains it.

The command line shows them, with the text under a field as its help, and a checkpoint records them. Defaults are those
of the technical report if it prints a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actdet.models.config import FamilyConfig, SetLossSettings


@dataclass(frozen=True)
class ModelConfig(FamilyConfig):
    """The shape of the detector."""

    family = "detr"
    of_training = ("dropout", "deep_supervision")

    queries: int = 12
    """How many predictions a clip gets: more than the most actions in any clip."""
    encoder_layers: int = 2
    """Transformer encoder layers; 0 is what the report's text says, 2 what its parameter count says."""
    decoder_layers: int = 4
    """Transformer decoder layers."""
    dropout: float = 0.1
    """Dropout in the Transformer (the report's section 6.4 advises 0.2 for little data)."""
    deep_supervision: bool = False
    """Train every decoder layer with the loss, as DETR does, instead of only the last one."""
    backbone: Literal["r2plus1d-18", "efficientnet-lite0"] = "r2plus1d-18"
    """What makes the features: the report's R(2+1)D-18, whose weights are Kinetics-400's; or EfficientNet-Lite0 with
    filters in time, with a fortieth of the arithmetic, whose weights are ImageNet's (--backbone-weights imagenet)."""

    def max_actions(self) -> int:
        # Each query is matched with one action at most.
        return self.queries


@dataclass(frozen=True)
class LossConfig(SetLossSettings):
    """Weights of the matching cost (eq. 10) and of the loss (eq. 12)."""

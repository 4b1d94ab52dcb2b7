"""The settings of the detector, and of the loss that trains it.

The command line shows them, with the text under a field as its help, and a checkpoint records them. Defaults are those
of the technical report if it prints a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actdet.models.config import FamilyConfig, LossSettings

if TYPE_CHECKING:
    from actdet_kernels import MatchWeights


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

    def max_actions(self) -> int:
        # Each query is matched with one action at most.
        return self.queries


@dataclass(frozen=True)
class LossConfig(LossSettings):
    """Weights of the matching cost (eq. 10) and of the loss (eq. 12)."""

    cls_weight: float = 2.0
    """Weight of the classification term."""
    l1_weight: float = 5.0
    """Weight of the L1 distance of the boxes."""
    giou_weight: float = 2.0
    """Weight of the generalized-IoU loss of the boxes."""
    no_object_weight: float = 0.1
    """Weight of a query without a target in the cross-entropy."""

    @property
    def match_weights(self) -> MatchWeights:
        """The three weights that cost and loss share."""
        # The kernels import PyTorch. The command line reads this module before it knows whether that is needed.
        from actdet_kernels import MatchWeights

        return MatchWeights(self.cls_weight, self.l1_weight, self.giou_weight)

    def term_weights(self) -> dict[str, float]:
        return {"cls": self.cls_weight, "l1": self.l1_weight, "giou": self.giou_weight}

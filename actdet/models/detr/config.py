"""The settings of the detector, and of the loss that trains it.

The command line shows them, with the text under a field as its help, and a checkpoint records them. Defaults are those
of the technical report if it prints a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actdet.bounds import check, check_bounds
from actdet.data.classes import CLASS_NAMES, NO_ACTION

if TYPE_CHECKING:
    from actdet_kernels import MatchWeights

# An action counts as found if at least so many actions of its class are expected in the clip.
THRESHOLD = 0.5


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the detector."""

    class_names: tuple[str, ...] = CLASS_NAMES
    """Names of the action classes, in the order of their ids in the annotation files. A data set with a classes.txt,
    which has one name per line, brings its own."""
    image_size: int = 224
    """Side of the square picture that the network sees, in pixels; a multiple of 16."""
    frames: int = 16
    """Frames sampled from a clip; a multiple of 8."""
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

    def __post_init__(self) -> None:
        check_bounds(vars(self))
        check(self.image_size % 16 == 0, f"image_size must be a multiple of 16, got {self.image_size}")
        check(self.frames % 8 == 0, f"frames must be a multiple of 8, got {self.frames}")
        check(
            len(self.class_names) >= 1 and len(set(self.class_names)) == len(self.class_names),
            f"class_names must be one or more different names, got {self.class_names}",
        )
        check(
            NO_ACTION not in self.class_names,
            f"class_names must not contain {NO_ACTION!r}, which stands for a clip without any action",
        )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the matching cost (eq. 10) and of the loss (eq. 12)."""

    cls_weight: float = 2.0
    """Weight of the classification term."""
    l1_weight: float = 5.0
    """Weight of the L1 distance of the boxes."""
    giou_weight: float = 2.0
    """Weight of the generalized-IoU loss of the boxes."""
    no_object_weight: float = 0.1
    """Weight of a query without a target in the cross-entropy."""

    def __post_init__(self) -> None:
        check_bounds(vars(self))

    @property
    def match_weights(self) -> MatchWeights:
        """The three weights that cost and loss share."""
        # The kernels import PyTorch. The command line reads this module before it knows whether that is needed.
        from actdet_kernels import MatchWeights

        return MatchWeights(self.cls_weight, self.l1_weight, self.giou_weight)

"""What the settings of all families have in common; each family's own are in its folder, in `config.py`.

Nothing here imports PyTorch: the command line reads all settings before it knows whether PyTorch is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from actdet.bounds import check, check_bounds
from actdet.data.classes import CLASS_NAMES, NO_ACTION

if TYPE_CHECKING:
    from actdet_kernels import MatchWeights


@dataclass(frozen=True)
class FamilyConfig:
    """The settings of a network. A family's own class adds to them, and each field becomes an option of `train`."""

    family: ClassVar[str]
    """The name of the family in `actdet.models.families`."""
    of_training: ClassVar[tuple[str, ...]] = ()
    """The settings that belong to the training, not to the weights: a detector may be trained on with others."""

    class_names: tuple[str, ...] = CLASS_NAMES
    """Names of the action classes, in the order of their ids in the annotation files. A data set with a classes.txt,
    which has one name per line, brings its own."""
    image_size: int = 224
    """Side of the square picture that the network sees, in pixels; a multiple of 16."""
    frames: int = 16
    """Frames sampled from a clip; a multiple of 8."""

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

    def max_actions(self) -> int | None:
        """Return how many actions of a clip the network can learn from at most; None if any number."""
        return None


@dataclass(frozen=True)
class LossSettings(ABC):
    """The settings of a family's losses. A family's own class has them, and each field becomes an option of `train`."""

    @abstractmethod
    def term_weights(self) -> dict[str, float]:
        """Return the weight of each term in the total loss, by the term's name among the network's `loss_names`."""

    def __post_init__(self) -> None:
        check_bounds(vars(self))


@dataclass(frozen=True)
class SetLossSettings(LossSettings):
    """The weights of a set loss, which are those of the matching cost, too (eq. 10 and 12 of the technical report)."""

    cls_weight: float = 2.0
    """Weight of the classification term."""
    l1_weight: float = 5.0
    """Weight of the L1 distance of the boxes."""
    giou_weight: float = 2.0
    """Weight of the generalized-IoU loss of the boxes."""
    no_object_weight: float = 0.1
    """Weight, in the cross-entropy, of a query (for tubelet: of a slot in a frame) without a target."""

    @property
    def match_weights(self) -> MatchWeights:
        """The three weights that cost and loss share."""
        # The kernels import PyTorch. The command line reads this module before it knows whether that is needed.
        from actdet_kernels import MatchWeights

        return MatchWeights(self.cls_weight, self.l1_weight, self.giou_weight)

    def term_weights(self) -> dict[str, float]:
        return {"cls": self.cls_weight, "l1": self.l1_weight, "giou": self.giou_weight}

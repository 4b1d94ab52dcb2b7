"""What the settings of all families have in common; each family's own are in its folder, in `config.py`.

Nothing here imports PyTorch: the command line reads all settings before it knows whether PyTorch is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from actdet.bounds import check, check_bounds
from actdet.data.classes import CLASS_NAMES, NO_ACTION


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

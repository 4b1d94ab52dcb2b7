"""The settings of the augmentation: what the command line shows, and what a checkpoint records.

A text under a field is its help.
"""

from __future__ import annotations

from dataclasses import dataclass

from actdet.bounds import check_bounds


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training clips; boxes move with the pixels."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    crop: float = 0.2
    """A crop takes away up to this share of the width and of the height; 0 turns it off."""
    jitter: bool = True
    """Take each frame at a random time within its segment of the clip, instead of at its middle."""
    colour: float = 0.3
    """Strength of the change of brightness, contrast and saturation, one draw a clip; 0 turns it off."""
    mixup: float = 0.0
    """Parameter of the Beta distribution that blends pairs of clips and keeps both's targets; 0 turns it off."""

    def __post_init__(self) -> None:
        check_bounds(vars(self))


NO_AUGMENTATION = AugmentConfig(flip=0.0, crop=0.0, jitter=False, colour=0.0)

"""The settings of the training data: the size of the clips, and their augmentation.

The command line shows the augmentation's settings, with the text under a field as its help, and a checkpoint records
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from actdet.bounds import check_bounds


@dataclass(frozen=True)
class ClipSize:
    """How much of a clip the network sees."""

    frames: int
    """Frames that are sampled from the clip."""
    image_size: int
    """Side of the square picture to which each frame is scaled, in pixels."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training clips; boxes move with the pixels."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    crop: float = 0.2
    """A crop takes away up to this share of the width and of the height; 0 turns it off."""
    jitter: bool = True
    """Take each frame at a random time within its segment of the clip, instead of at its middle."""
    color: float = 0.3
    """Strength of the change of brightness, contrast and saturation, drawn once per clip; 0 turns it off."""
    mixup: float = 0.0
    """Parameter of the Beta distribution by which pairs of clips are blended, with the targets of both; 0 turns it
    off."""

    def __post_init__(self) -> None:
        check_bounds(vars(self))


NO_AUGMENTATION = AugmentConfig(flip=0.0, crop=0.0, jitter=False, color=0.0)

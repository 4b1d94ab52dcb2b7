"""The settings of the tubelet detector, and of the losses that train it.

The command line shows them, with the text under a field as its help, and a checkpoint records them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actdet.bounds import check
from actdet.models.config import FamilyConfig, SetLossSettings


@dataclass(frozen=True)
class TubeletConfig(FamilyConfig):
    """The shape of the detector."""

    family = "tubelet"
    of_training = ("dropout", "denoising_groups")

    backbone: Literal["r2plus1d-18", "efficientnet-lite0"] = "r2plus1d-18"
    """What makes the features: the report's R(2+1)D-18, whose weights are Kinetics-400's; or EfficientNet-Lite0 with
    filters in time, with a fortieth of the arithmetic, whose weights are ImageNet's (--backbone-weights imagenet)."""
    slots: int = 10
    """How many actors a clip can have: each slot follows one of them through all frames."""
    query_form: Literal["factorized", "free"] = "factorized"
    """Whether the query of a slot in a frame is the sum of one for the slot and one for the frame, or learned alone."""
    decoder_layers: int = 3
    """Decoder layers."""
    attention: Literal["deformable", "plain"] = "deformable"
    """How queries read the features: at a few points about the box of the layer before, or everywhere."""
    pyramid: bool = True
    """Let queries read the last three stages of the backbone, each with what the coarser ones know, instead of the last
    stage alone."""
    temporal_strides: int = 3
    """How many of the last three stages of R(2+1)D-18 halve the number of frames. What they leave is interpolated to
    every frame."""
    all_frames: bool = False
    """Let the queries of a frame read the features of all frames, instead of that frame alone."""
    multi_label: bool = False
    """Whether an actor may do several things at once: each class has a probability of its own (sigmoid), and no class
    stands for no action."""
    dropout: float = 0.0
    """Dropout in the decoder."""
    denoising_groups: int = 2
    """How many noisy copies of the actors the decoder learns to clean up in training, which teaches it sooner where to
    look; 0 turns it off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.backbone == "r2plus1d-18" or self.temporal_strides == TubeletConfig.temporal_strides,
            f"temporal_strides is not for the backbone {self.backbone}, which keeps all frames: leave it out",
        )

    def max_actions(self) -> int:
        # Each slot is matched with one action at most.
        return self.slots


@dataclass(frozen=True)
class TubeletLoss(SetLossSettings):
    """How slots are matched with actors, and what the loss is made of."""

    matching: Literal["tubelet", "frame"] = "tubelet"
    """Match each slot with one actor for a whole clip, or anew in every frame, where a slot may change its actor."""

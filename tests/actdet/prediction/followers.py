"""A detector that finds the same actors, at the same places, in every video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from actdet.models.checkpoints import CheckpointInfo, save_checkpoint
from actdet.models.tubelet.config import TubeletConfig, TubeletLoss
from actdet.models.tubelet.detector import TubeletDetector

# Two actors who stand apart: center, width and height as shares of the picture.
LEFT = (0.25, 0.5, 0.25, 0.5)
RIGHT = (0.75, 0.5, 0.25, 0.5)


def save_follower(
    path: Path, seconds: float, *, boxes: Sequence[tuple[float, ...]] = (LEFT, RIGHT), label: int = 0, odds: float = 4.0
) -> Path:
    """Save the checkpoint of a detector for clips of `seconds`, which must be made with the small backbone.

    Args:
        path: Of the checkpoint.
        seconds: How long its windows are.
        boxes: Where an actor is; each has a slot.
        label: What all of them do.
        odds: How probable that is, as a logit.
    """
    torch.manual_seed(0)
    config = TubeletConfig(image_size=32, frames=8, slots=len(boxes), decoder_layers=1)
    detector = TubeletDetector(config)
    with torch.no_grad():
        detector.first_boxes.copy_(torch.tensor(boxes)[:, None].logit())
        last = detector.class_heads[-1].get_submodule("2")
        last.get_parameter("weight").zero_()
        # The score takes the small weight of no action back.
        last.get_parameter("bias").copy_(torch.tensor([-30.0, -30.0, torch.tensor(0.1).log().item()]))
        last.get_parameter("bias")[label] = odds
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    save_checkpoint(path, tensors, CheckpointInfo(config, "pyav", seconds, TubeletLoss()))
    return path

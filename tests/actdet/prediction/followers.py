"""A detector that finds the same actors, at the same places, in every video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from actdet.models.checkpoints import CheckpointInfo, save_checkpoint
from actdet.models.family import Assessment, Detections, Tracks
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


# Parts of the eight frames of a clip: the first frame and the number of frames of each.
PARTS = {
    "overlap": [(0, 4), (2, 4), (4, 4)],
    "touch": [(0, 4), (4, 4)],
    "gaps": [(0, 2), (3, 3), (7, 1)],
    "one in the middle": [(3, 2)],
    "frames": [(frame, 1) for frame in range(8)],
}


def answer_in_parts(monkeypatch: pytest.MonkeyPatch, parts: Sequence[tuple[int, int]]) -> None:
    """Let detectors that follow actors say the same as ever, but only of parts, with an order of actors in each."""
    detections = TubeletDetector.detections
    assess = TubeletDetector.assess

    def cut(found: Detections) -> Detections:
        (whole,) = found.tracks
        tracks = []
        for number, (first, length) in enumerate(parts):
            inside = slice(first, first + length)
            scores = whole.scores[:, :, inside].roll(number, 1)
            boxes = whole.boxes[:, :, inside].roll(number, 1)
            tracks.append(Tracks(scores, boxes, first))
        return found._replace(tracks=tuple(tracks))

    def detections_of_parts(*arguments: Any, **options: Any) -> Detections:
        return cut(detections(*arguments, **options))

    def assess_parts(*arguments: Any) -> Assessment:
        assessment = assess(*arguments)
        return assessment._replace(detections=cut(assessment.detections))

    monkeypatch.setattr(TubeletDetector, "detections", detections_of_parts)
    monkeypatch.setattr(TubeletDetector, "assess", assess_parts)

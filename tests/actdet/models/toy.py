"""A family as small as one can be: a convolution, and one answer for a whole clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from actdet_kernels import Targets
from torch import Tensor, nn

from actdet.detections import THRESHOLD, Action
from actdet.distributed import ALONE, Processes
from actdet.models.config import FamilyConfig, LossSettings
from actdet.models.family import Assessment, Candidates, Decision, Detections, FamilyNetwork


@dataclass(frozen=True)
class ToyConfig(FamilyConfig):
    """The shape of the network."""

    family = "toy"

    width: int = 8
    """Channels of the convolution."""

    def max_actions(self) -> int:
        return 1


@dataclass(frozen=True)
class ToyLoss(LossSettings):
    """The weights of the loss."""

    box_weight: float = 3.0
    """Weight of the distance of the boxes."""

    def term_weights(self) -> dict[str, float]:
        return {"cls": 1.0, "box": self.box_weight}


class ToyOutputs(NamedTuple):
    """The class logits (B, C), no action last, and the box (B, 4) cxcywh in [0, 1] of each clip."""

    logits: Tensor
    boxes: Tensor

    def final(self) -> ToyOutputs:
        return self


class MiddleFrame(nn.Sequential):
    """Its layers see the middle frame alone: (B, 3, T, S, S) to (B, width, S / 8, S / 8)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input[:, :, input.shape[2] // 2])


class Toy(FamilyNetwork[ToyConfig, ToyOutputs]):
    """The mean features of a convolution over one frame, and one linear layer."""

    truth = "clip_box"
    loss_names = ("total", "cls", "box")
    rule = "Its score is the softmax of a linear layer."

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = MiddleFrame(nn.Conv2d(3, config.width, 8, stride=8))
        self.head = nn.Linear(config.width, len(config.class_names) + 1 + 4)

    def detect(self, features: Tensor, hints: None = None) -> ToyOutputs:
        output = self.head(features.float().mean((2, 3)))
        return ToyOutputs(output[:, :-4], output[:, -4:].sigmoid())

    def losses(
        self,
        outputs: ToyOutputs,
        targets: Targets,
        weights: ToyLoss,
        *,
        processes: Processes = ALONE,
        **_: Any,
    ) -> dict[str, Tensor]:
        is_action = (targets.counts > 0).float()
        label = torch.where(targets.counts > 0, targets.labels[:, 0], len(self.config.class_names))

        # The loss of a batch is divided by what all processes have of it, and averaged over them.
        clips, boxes = processes.sum(torch.stack([torch.ones_like(is_action).sum(), is_action.sum()])) / processes.count
        cls = F.cross_entropy(outputs.logits, label, reduction="sum") / clips
        distance = (outputs.boxes - targets.boxes[:, 0]).abs().sum(-1)
        box = (distance * is_action).sum() / boxes.clamp(min=1 / processes.count)
        return {"total": cls + weights.box_weight * box, "cls": cls, "box": box}

    def detections(self, final: ToyOutputs, weights: ToyLoss, *, threshold: float = THRESHOLD) -> Detections:
        score, likeliest = final.logits.softmax(-1)[:, :-1].max(-1)
        label = torch.where(score >= threshold, likeliest, len(self.config.class_names))
        center, side = final.boxes.split(2, -1)
        corners = torch.cat([center - side / 2, center + side / 2], -1).clamp(0, 1).tolist()
        found = [
            (Action(clip_label, clip_score, tuple(box)),) if clip_score >= threshold else ()
            for clip_label, clip_score, box in zip(likeliest.tolist(), score.tolist(), corners, strict=True)
        ]
        return Detections(Decision(label, score, final.boxes, likeliest), found)

    def assess(self, final: ToyOutputs, targets: Targets, weights: ToyLoss) -> Assessment:
        detections = self.detections(final, weights)
        candidates = Candidates(*(value[:, None] for value in (*detections.decision[-1:], *detections.decision[1:3])))
        matched = torch.where(targets.valid, 0, -1)
        losses = {name: value.item() for name, value in self.losses(final, targets, weights).items()}
        return Assessment(detections, candidates, targets, matched, losses)

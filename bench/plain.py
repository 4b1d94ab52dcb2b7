"""The plain way to train the same detector, which the training step is measured against.

torchvision's R(2+1)D-18 as it is, contiguous tensors, float32; DETR's matcher (github.com/facebookresearch/detr,
models/matcher.py), which copies its costs to the host for SciPy, and DETR's criterion; PyTorch's AdamW at its defaults.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from actdet_kernels import Targets, deformable_attention
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models.video import r2plus1d_18
from torchvision.ops import box_convert, generalized_box_iou

from actdet.data.augment import Batch
from actdet.data.truth import TubeTargets
from actdet.models.config import FamilyConfig
from actdet.models.families import build_network
from actdet.models.tubelet import decoder

CLS, L1, GIOU, NO_OBJECT = 2.0, 5.0, 2.0, 0.1
CLIP_NORM = 0.5


class PlainStep:
    """`run(batch)` is one training step; `loss` is the last one's."""

    def __init__(self, model: FamilyConfig, device: torch.device) -> None:
        self.detector = build_network(model)
        self.detector.backbone = self.backbone(self.detector.backbone.state_dict())
        self.detector.to(device).train()
        weight = torch.ones(len(model.class_names) + 1, device=device)
        weight[-1] = NO_OBJECT
        self.class_weight = weight
        self.optimizer = torch.optim.AdamW(self.detector.parameters(), lr=1e-4)
        self.loss = torch.zeros(())

    def backbone(self, state: dict[str, Tensor]) -> nn.Module:
        """torchvision's, with these weights."""
        network = r2plus1d_18(weights=None)
        backbone = nn.Sequential(network.stem, network.layer1, network.layer2, network.layer3, network.layer4)
        backbone.load_state_dict(state)
        return backbone

    def run(self, batch: Batch) -> None:
        logits, boxes = self.forward(batch.clips)
        self.loss = self.criterion(logits, boxes, batch.targets)
        self.optimizer.zero_grad()
        self.loss.backward()
        self.update()

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.detector(clips)
        return outputs.logits, outputs.boxes

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.detector.parameters(), CLIP_NORM)
        self.optimizer.step()

    def criterion(self, logits: Tensor, boxes: Tensor, targets: Any) -> Tensor:
        """The sum over the decoder layers."""
        assert isinstance(targets, Targets)
        counts = targets.counts.tolist()
        labels = [row[:count] for row, count in zip(targets.labels, counts, strict=True)]
        wanted = [row[:count] for row, count in zip(targets.boxes, counts, strict=True)]
        return torch.stack([self.layer_loss(*layer, labels, wanted) for layer in zip(logits, boxes, strict=True)]).sum()

    def layer_loss(self, logits: Tensor, boxes: Tensor, labels: list[Tensor], wanted: list[Tensor]) -> Tensor:
        pairs = match(logits, boxes, labels, wanted)
        batch = torch.cat([torch.full_like(queries, sample) for sample, (queries, _) in enumerate(pairs)])
        queries = torch.cat([queries for queries, _ in pairs])
        classes = torch.full(logits.shape[:2], logits.shape[-1] - 1, device=logits.device)
        classes[batch, queries] = torch.cat([label[rows] for label, (_, rows) in zip(labels, pairs, strict=True)])
        cls = F.cross_entropy(logits.transpose(1, 2), classes, self.class_weight)
        number = max(sum(map(len, labels)), 1)
        found = boxes[batch, queries]
        truth = torch.cat([box[rows] for box, (_, rows) in zip(wanted, pairs, strict=True)])
        l1 = F.l1_loss(found, truth, reduction="sum") / number
        giou = (1 - torch.diag(generalized_box_iou(corners(found), corners(truth)))).sum() / number
        return CLS * cls + L1 * l1 + GIOU * giou


class PlainTubeletStep(PlainStep):
    """The same of the tubelet detector, with points read by grid_sample, and matching and loss in loops."""

    def backbone(self, state: dict[str, Tensor]) -> nn.Module:
        return _LastStages(super().backbone(state))

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        with mock.patch.object(decoder, "deformable_attention", by_grid_sample):
            return super().forward(clips)

    def criterion(self, logits: Tensor, boxes: Tensor, targets: Any) -> Tensor:
        """The sum over the decoder layers, of logits (L, B, S, T, C) and boxes (L, B, S, T, 4)."""
        assert isinstance(targets, TubeTargets)
        return torch.stack([self.tubelet_loss(*layer, targets) for layer in zip(logits, boxes, strict=True)]).sum()

    def tubelet_loss(self, logits: Tensor, boxes: Tensor, targets: TubeTargets) -> Tensor:
        wanted = torch.full(logits.shape[:3], logits.shape[-1] - 1, device=logits.device)
        l1 = boxes.new_zeros(())
        giou = boxes.new_zeros(())
        for clip, count in enumerate(targets.counts.tolist()):
            cost = tubelet_cost(logits[clip], boxes[clip], targets, clip, count)
            for slot, actor in zip(*linear_sum_assignment(cost.cpu()), strict=True):
                seen = targets.visible[clip, actor]
                wanted[clip, slot, seen] = targets.labels[clip, actor]
                found = boxes[clip, slot, seen]
                truth = targets.boxes[clip, actor, seen]
                l1 = l1 + (found - truth).abs().sum(-1).mean()
                giou = giou + (1 - torch.diag(generalized_box_iou(corners(found), corners(truth)))).mean()
        cls = F.cross_entropy(logits.movedim(-1, 1), wanted, self.class_weight)
        number = targets.counts.sum().clamp(min=1)
        return CLS * cls + L1 * l1 / number + GIOU * giou / number


class _LastStages(nn.Module):
    """The outputs of the last three stages."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.stages = backbone

    def forward(self, input: Tensor) -> list[Tensor]:
        outputs = []
        for stage in self.stages.children():
            input = stage(input)
            outputs.append(input)
        return outputs[-3:]


by_grid_sample = partial(deformable_attention, backend="reference")


@torch.no_grad()
def tubelet_cost(logits: Tensor, boxes: Tensor, targets: TubeTargets, clip: int, count: int) -> Tensor:
    """(S, m): the mean cost of each slot with each actor over the frames in which that is seen."""
    columns = []
    for actor in range(count):
        seen = targets.visible[clip, actor]
        cls = -logits[:, seen].softmax(-1)[..., targets.labels[clip, actor]]
        truth = targets.boxes[clip, actor, seen]
        l1 = (boxes[:, seen] - truth).abs().sum(-1)
        giou = torch.stack(
            [
                generalized_box_iou(corners(boxes[:, frame]), corners(targets.boxes[clip, actor, frame])[None])[:, 0]
                for frame in seen.nonzero()[:, 0].tolist()
            ],
            1,
        )
        columns.append((CLS * cls + L1 * l1 - GIOU * giou).mean(1))
    return torch.stack(columns, 1) if columns else logits.new_zeros(len(logits), 0)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, labels: list[Tensor], wanted: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """One layer: the pairs (queries, targets) of each sample."""
    batch, queries = logits.shape[:2]
    all_labels, all_boxes = torch.cat(labels), torch.cat(wanted)
    cls = -logits.flatten(0, 1).softmax(-1)[:, all_labels]
    l1 = torch.cdist(boxes.flatten(0, 1), all_boxes, p=1)
    giou = -generalized_box_iou(corners(boxes.flatten(0, 1)), corners(all_boxes))
    cost = (CLS * cls + L1 * l1 + GIOU * giou).view(batch, queries, -1).cpu()
    found = [linear_sum_assignment(part[sample]) for sample, part in enumerate(cost.split(list(map(len, labels)), -1))]
    device = logits.device
    return [(torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)) for rows, columns in found]


def corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")

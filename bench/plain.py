"""The plain way to train the same detector, which the training step is measured against.

torchvision's R(2+1)D-18 as it is, contiguous tensors, float32; DETR's matcher (github.com/facebookresearch/detr,
models/matcher.py), which copies its costs to the host for SciPy, and DETR's criterion; PyTorch's AdamW at its defaults.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from actdet_kernels import Targets
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models.video import r2plus1d_18
from torchvision.ops import box_convert, generalized_box_iou

from actdet.data.augment import Batch
from actdet.models.detr.config import ModelConfig
from actdet.models.detr.detector import ActionDetector

CLS, L1, GIOU, NO_OBJECT = 2.0, 5.0, 2.0, 0.1
CLIP_NORM = 0.5


class PlainStep:
    """`run(batch)` is one training step; `loss` is the last one's."""

    def __init__(self, model: ModelConfig, device: torch.device) -> None:
        self.detector = ActionDetector(model)
        state = self.detector.backbone.state_dict()
        network = r2plus1d_18(weights=None)
        backbone = nn.Sequential(network.stem, network.layer1, network.layer2, network.layer3, network.layer4)
        backbone.load_state_dict(state)
        self.detector.backbone = backbone  # pyright: ignore[reportAttributeAccessIssue]
        self.detector.to(device).train()
        weight = torch.ones(len(model.class_names) + 1, device=device)
        weight[-1] = NO_OBJECT
        self.class_weight = weight
        self.optimizer = torch.optim.AdamW(self.detector.parameters(), lr=1e-4)
        self.loss = torch.zeros(())

    def run(self, batch: Batch) -> None:
        assert isinstance(batch.targets, Targets)
        logits, boxes = self.forward(batch.clips)
        self.loss = self.criterion(logits, boxes, batch.targets)
        self.optimizer.zero_grad()
        self.loss.backward()
        self.update()

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        return self.detector(clips)

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.detector.parameters(), CLIP_NORM)
        self.optimizer.step()

    def criterion(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """The sum over the decoder layers."""
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

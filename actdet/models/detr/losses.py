"""The losses that train the detector: the set loss of its queries, and an auxiliary loss of the backbone alone.

The set loss matches queries with annotated actions and compares each pair (sections 3.3 and 3.4 of the technical
report). For the auxiliary loss, one linear layer has to tell from the backbone's averaged features what happens in the
clip and where. This teaches a backbone without pretrained weights in half the time; the layer is not part of the
detector and is thrown away with the rest of the training's state.
"""

from __future__ import annotations

import torch
from actdet_kernels import MatchWeights, SetLoss, Targets, match, set_loss
from torch import Tensor, nn

from actdet.distributed import ALONE, Processes
from actdet.models.detr.config import LossConfig, ModelConfig

# The losses by name. The first one is what is minimized.
LOSSES = (*SetLoss._fields, "auxiliary")

# Classes are slower to learn than boxes, so they weigh more here than in the set loss of the queries (docs/LOG.md).
AUXILIARY_WEIGHTS = MatchWeights(8.0, 5.0, 2.0)


class AuxiliaryHead(nn.Linear):
    """Tells a clip's action from the backbone's features: (B, F, T', H', W') to (B, 1, C + 4) float32.

    The output is that of a single query: C class logits, the last one of no_object, and the logits of its box.

    Args:
        config: The shape of the detector, which names the classes.
        width: F, the channels of the features.
    """

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__(width, len(config.class_names) + 1 + 4)

    def forward(self, input: Tensor) -> Tensor:
        averaged = input.float().mean((2, 3, 4))
        return super().forward(averaged)[:, None]


def detector_losses(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    config: LossConfig,
    *,
    auxiliary_output: Tensor | None = None,
    auxiliary_weight: float = 0.0,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """Compute the losses of a batch. On a GPU the host reads nothing back.

    Args:
        logits: (L, B, N, C) of the L supervised decoder layers, the last class being no_object.
        boxes: (L, B, N, 4), cxcywh in [0, 1].
        targets: The annotated actions of the B clips.
        config: Weights of the matching cost and of the set loss.
        auxiliary_output: (B, 1, C + 4) of `AuxiliaryHead`. It is not needed if `auxiliary_weight` is 0.
        auxiliary_weight: Weight of the auxiliary loss in the total.
        processes: The processes that share the batch. The losses are then of this process's share, and their mean over
            the processes is that of the whole batch.

    Returns:
        0-d tensors by the names in `LOSSES`.
    """
    total, cls, l1, giou = _shared_set_loss(
        logits, boxes, targets, config.match_weights, config.no_object_weight, processes
    )

    # The auxiliary loss is the set loss of a single query, in which a missing action weighs as much as any other class.
    auxiliary = torch.zeros_like(total)
    if auxiliary_weight:
        assert auxiliary_output is not None
        auxiliary_logits = auxiliary_output[..., :-4]
        auxiliary_boxes = auxiliary_output[..., -4:].sigmoid()
        auxiliary, *_ = _shared_set_loss(auxiliary_logits, auxiliary_boxes, targets, AUXILIARY_WEIGHTS, 1.0, processes)

    values = (total + auxiliary_weight * auxiliary, cls, l1, giou, auxiliary)
    return dict(zip(LOSSES, values, strict=True))


def _shared_set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    weights: MatchWeights,
    no_object_weight: float,
    processes: Processes,
) -> SetLoss:
    """The set loss of this process's share of a batch, divided by the sums over all processes' shares.

    Args:
        logits: (..., B, N, C).
        boxes: (..., B, N, 4).
        targets: The annotated actions of the B clips.
        weights: Weights of the terms in the matching cost and in the loss.
        no_object_weight: Weight of a query without a target in the cross-entropy.
        processes: The processes that share the batch.
    """
    matched = match(logits, boxes, targets, weights=weights)
    losses = set_loss(logits, boxes, targets, matched, weights=weights, no_object_weight=no_object_weight)
    if processes.count == 1:
        return losses

    # Each process has divided by the sums of its own share (of the queries' weights, and of the boxes). The loss of the
    # whole batch divides by those of all processes, which also average their gradients.
    queries = logits.shape[-2]
    pairs = targets.counts.clamp(max=queries).sum()
    weight = pairs + no_object_weight * (len(targets.counts) * queries - pairs)
    own = torch.stack([weight, targets.counts.sum().clamp(min=1).to(weight.dtype)])
    every = processes.sum(torch.stack([weight, targets.counts.sum().to(weight.dtype)]))
    cls_share, box_share = (own / every.clamp(min=1e-9) * processes.count).unbind()
    cls = losses.cls * cls_share
    l1 = losses.l1 * box_share
    giou = losses.giou * box_share
    return SetLoss(weights.cls * cls + weights.l1 * l1 + weights.giou * giou, cls, l1, giou)

"""What predictions come to beside the truth: the actions found, the matched queries, and the losses."""

from __future__ import annotations

import torch
from actdet_kernels import Targets, match, set_loss
from torch import Tensor

from actdet.models.detr.config import LossConfig
from actdet.models.detr.decision import action_scores, actions, decide
from actdet.models.family import Assessment, Candidates, Detections


def assess(logits: Tensor, boxes: Tensor, targets: Targets, weights: LossConfig) -> Assessment:
    """Compare the predictions for n clips with the truth. Everything is computed on the CPU in float32.

    Args:
        logits: (n, N, C), the last class being no_object.
        boxes: (n, N, 4), cxcywh in [0, 1].
        targets: The annotations of the n clips.
        weights: The weights of the loss, and of no_object in the rule that decides.
    """
    logits, boxes = (tensor.detach().to("cpu", torch.float32) for tensor in (logits, boxes))
    targets = targets.to("cpu")
    no_object_weight = weights.no_object_weight
    terms = weights.match_weights

    matched = match(logits, boxes, targets, weights=terms)
    losses = set_loss(logits, boxes, targets, matched, weights=terms, no_object_weight=no_object_weight)
    confidence, label = action_scores(logits)
    return Assessment(
        detections=Detections(
            decide(logits, boxes, no_object_weight=no_object_weight),
            actions(logits, boxes, no_object_weight=no_object_weight),
        ),
        candidates=Candidates(label, confidence, boxes),
        targets=targets,
        matched=matched,
        losses={name: value.item() for name, value in losses._asdict().items()},
    )

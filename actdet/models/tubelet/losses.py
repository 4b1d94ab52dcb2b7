"""The losses that train the tubelet detector.

A slot is matched with an actor for the whole clip: at the mean, over the frames in which the actor is visible, of the
matching cost of class and box (eq. 10 of the technical report in each frame). In these frames the slot should be what
the actor does and where, and no action in all other frames.

The kernels see each frame as a sample of its own, whose targets are the actors in it: the cost of all frames takes one
launch, and so does the loss.
"""

from __future__ import annotations

import torch
from actdet_kernels import Targets, assign, pairwise_cost, set_loss
from torch import Tensor

from actdet.data.truth import TubeTargets
from actdet.distributed import ALONE, Processes
from actdet.models.tubelet.config import TubeletLoss
from actdet.models.tubelet.slots import Slots

# The losses by name. The first one is what is minimized.
LOSSES = ("total", "cls", "l1", "giou")

# A logit whose probability is 0 in any floating-point type.
_NEVER = -1e4


def tubelet_losses(
    slots: Slots, targets: TubeTargets, config: TubeletLoss, *, multi_label: bool, processes: Processes = ALONE
) -> dict[str, Tensor]:
    """Compute the losses of a batch. On a GPU the host reads nothing back.

    Args:
        slots: What the supervised decoder layers say.
        targets: The actors in the B clips.
        config: The weights, and how slots are matched.
        multi_label: Whether every class has a probability of its own.
        processes: The processes that share the batch. The losses are then of this process's share, and their mean over
            the processes is that of the whole batch.

    Returns:
        0-d tensors by the names in `LOSSES`.
    """
    matched = match_slots(slots, targets, config, multi_label=multi_label)

    # Nobody knows what happens in a frame that is not annotated, so it gets the answer that costs nothing.
    free = torch.full_like(slots.logits[0, 0, 0, 0], _NEVER)
    if not multi_label:
        free[-1] = 0
    logits = torch.where(targets.annotated[..., None, None], slots.logits, free)

    terms = set_loss(
        logits.flatten(1, 2),
        slots.boxes.flatten(1, 2),
        frame_targets(targets),
        matched.flatten(1, 2),
        weights=config.match_weights,
        no_object_weight=config.no_object_weight,
        class_loss="focal" if multi_label else "cross_entropy",
    )
    own, wanted = _divisors(slots, targets, matched, config.no_object_weight, multi_label)
    cls_share, box_share = (own / processes.sum(wanted).clamp(min=1e-9) * processes.count).unbind()
    cls = terms.cls * cls_share
    l1 = terms.l1 * box_share
    giou = terms.giou * box_share
    weights = config.match_weights
    values = (weights.cls * cls + weights.l1 * l1 + weights.giou * giou, cls, l1, giou)
    return dict(zip(LOSSES, values, strict=True))


def match_slots(slots: Slots, targets: TubeTargets, config: TubeletLoss, *, multi_label: bool) -> Tensor:
    """Find the slot of each actor in each frame.

    Args:
        slots: What L decoder layers say.
        targets: The actors in the B clips.
        config: Whether an actor keeps the same slot in all frames.
        multi_label: Whether every class has a probability of its own.

    Returns:
        (L, B, T, M) int64; -1 in frames in which the actor is not visible.
    """
    layers, clips, frames, count, _ = slots.logits.shape
    rows = targets.labels.shape[1]
    cost = pairwise_cost(
        slots.logits.flatten(1, 2),
        slots.boxes.flatten(1, 2),
        frame_targets(targets),
        weights=config.match_weights,
        class_cost="focal" if multi_label else "softmax",
    )
    cost = cost.view(layers, clips, frames, count, rows)

    visible = targets.visible.transpose(1, 2)
    if config.matching == "frame":
        # An actor who is not visible takes any slot that is left, since all cost the same.
        cost = cost * visible[:, :, None]
        counts = targets.counts[:, None].expand(layers, clips, frames)
    else:
        share = visible / visible.sum(1, keepdim=True).clamp(min=1)
        cost = torch.einsum("lbtsm,btm->lbsm", cost, share.to(cost.dtype))
        counts = targets.counts.expand(layers, clips)
    matched = assign(cost.flatten(0, -3), counts.flatten()).view(*counts.shape, rows)
    if config.matching == "tubelet":
        matched = matched[:, :, None]
    return torch.where(visible, matched, -1)


def frame_targets(targets: TubeTargets) -> Targets:
    """Return the actors of B clips as targets of B * T samples, one for each frame, whether they are visible or not."""
    frames = targets.visible.shape[2]
    return Targets(
        targets.labels[:, None].expand(-1, frames, -1).flatten(0, 1),
        targets.boxes.transpose(1, 2).flatten(0, 1),
        targets.counts[:, None].expand(-1, frames).flatten(),
    )


def _divisors(
    slots: Slots, targets: TubeTargets, matched: Tensor, no_object_weight: float, multi_label: bool
) -> tuple[Tensor, Tensor]:
    """Return by what the kernel has divided the class loss and the losses of boxes, and by what they are to be divided.

    The kernel counts every actor in every frame, and every slot in frames that are not annotated. Neither counts here:
    boxes are divided by the number of boxes, and the cross-entropy by the weights of the slots in annotated frames.

    Args:
        slots: What L decoder layers say.
        targets: The actors in the B clips.
        matched: (L, B, T, M), as of `match_slots`. Every layer has as many pairs.
        no_object_weight: As in the settings of the loss.
        multi_label: Whether every class has a probability of its own.
    """
    clips, frames, count = slots.logits.shape[1:4]
    pairs = (matched[0] >= 0).sum().float()
    counted = (targets.counts.sum() * frames).float()
    boxes = (targets.visible & targets.valid[..., None]).sum().float()
    if multi_label:
        return torch.stack([counted, counted]).clamp(min=1), torch.stack([boxes, boxes])

    def weight(frames_counted: Tensor | int) -> Tensor:
        return pairs + no_object_weight * (frames_counted * count - pairs)

    own = torch.stack([weight(clips * frames), counted.clamp(min=1)])
    return own, torch.stack([weight(targets.annotated.sum()), boxes])

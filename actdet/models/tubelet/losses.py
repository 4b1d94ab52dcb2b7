"""The losses that train the tubelet detector.

A slot is matched with an actor for the whole clip: at the mean, over the frames in which the actor is visible, of the
matching cost of class and box (eq. 10 of the technical report in each frame). In these frames the slot should be what
the actor does and where, and no action in all other frames. The kernels do both for all layers at once: four launches,
and one for the gradient.

With `matching="frame"`, each frame is a problem of its own, as in detectors of single frames.

In training the decoder also has noisy copies of the actors (DN-DETR, Li et al. 2022; DINO, Zhang et al. 2023), of which
it is known whose they are. Their loss is the same, the mean over the groups of copies.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from actdet_kernels import SetLoss, Targets, Tubelets, match, set_loss
from torch import Tensor

from actdet.data.truth import TubeTargets
from actdet.distributed import ALONE, Processes
from actdet.models.tubelet.auxiliary import pixel_loss
from actdet.models.tubelet.config import TubeletLoss
from actdet.models.tubelet.frames import seen_in_frames
from actdet.models.tubelet.slots import NEVER, Slots

# The losses by name. The first one is what is minimized.
LOSSES = (*SetLoss._fields, "denoising", "auxiliary")


def tubelet_losses(
    slots: Slots,
    targets: TubeTargets,
    config: TubeletLoss,
    *,
    multi_label: bool,
    pixels: Tensor | None = None,
    auxiliary_weight: float = 0.0,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """Compute the losses of a batch. On a GPU the host reads nothing back.

    Args:
        slots: What the supervised decoder layers say.
        targets: The actors in the B clips.
        config: The weights, and how slots are matched.
        multi_label: Whether every class has a probability of its own.
        pixels: What `PixelHead` returned. It is not needed if `auxiliary_weight` is 0.
        auxiliary_weight: Weight of the auxiliary loss in the total.
        processes: The processes that share the batch. The losses are then of this process's share, and their mean over
            the processes is that of the whole batch.

    Returns:
        0-d tensors by the names in `LOSSES`.
    """
    matched = match_slots(slots, targets, config, multi_label=multi_label)
    terms = _matched_loss(slots, targets, matched, config, multi_label=multi_label, processes=processes)
    total = terms.total
    denoising = torch.zeros_like(total)
    if slots.noisy:
        denoising = _denoising_loss(slots.noisy, targets, config, multi_label=multi_label, processes=processes)
        total = total + denoising
    auxiliary = torch.zeros_like(total)
    if auxiliary_weight:
        assert pixels is not None
        auxiliary = pixel_loss(pixels, targets, config, processes)
        total = total + auxiliary_weight * auxiliary
    return {**terms._asdict(), "total": total, "denoising": denoising, "auxiliary": auxiliary}


def _denoising_loss(
    noisy: tuple[Tensor, ...], targets: TubeTargets, config: TubeletLoss, *, multi_label: bool, processes: Processes
) -> Tensor:
    """Compare what the decoder made of noisy copies with the actors whose copies they are.

    Args:
        noisy: As in `Slots`.
        targets: The actors in the B clips.
        config: The weights.
        multi_label: Whether every class has a probability of its own.
        processes: The processes that share the batch.
    """
    *predicted, matched = noisy
    layers = len(predicted[0])
    copies = 2 * matched.shape[-1]

    # (L, B, G * copies, T, ...) to (L * G, B, copies, T, ...).
    logits, boxes = (each.unflatten(2, (-1, copies)).movedim(2, 1).flatten(0, 1) for each in predicted)
    groups = len(logits) // layers
    whole = replace(config, matching="tubelet")
    matched = matched.expand(len(logits), -1, -1)
    slots = Slots(logits, boxes)
    terms = _matched_loss(slots, targets, matched, whole, multi_label=multi_label, processes=processes)
    return terms.total / groups


def _matched_loss(
    slots: Slots,
    targets: TubeTargets,
    matched: Tensor,
    config: TubeletLoss,
    *,
    multi_label: bool,
    processes: Processes,
) -> SetLoss:
    """The loss of slots of which it is known whom they should follow: `matched` is as `match_slots` returns it."""
    logits = slots.logits
    if targets.is_sparse:
        # Nobody knows what happens in a frame that is not annotated, so it gets the answer that costs nothing.
        free = torch.full_like(logits[0, 0, 0, 0], NEVER)
        if not multi_label:
            free[-1] = 0
        logits = torch.where(targets.annotated[:, None, :, None], logits, free)

    boxes = slots.boxes
    wanted: Targets | Tubelets = targets.tubelets
    if config.matching == "frame":
        wanted, order = seen_in_frames(targets)
        matched = matched.gather(-1, order.expand_as(matched))
        logits, boxes = map(_frames_as_samples, (logits, boxes))

    is_whole = processes.count == 1 and not targets.is_sparse
    terms = set_loss(
        logits,
        boxes,
        wanted,
        matched,
        weights=config.match_weights,
        no_object_weight=config.no_object_weight,
        class_loss="focal" if multi_label else "cross_entropy",
        per_layer=not is_whole,
    )
    if is_whole:
        return terms

    # Where there are no actors, sums are divided as if there were one, as in DETR.
    pairs = wanted.counts.sum().float()
    box_share = pairs.clamp(min=1) / processes.sum(pairs).clamp(min=1) * processes.count
    cls_share = box_share
    if not multi_label:
        own, counted = _slot_weights(slots, targets, matched, config)
        cls_share = own / processes.sum(counted).clamp(min=1e-9) * processes.count
    cls = (terms.cls * cls_share).sum()
    l1 = terms.l1.sum() * box_share
    giou = terms.giou.sum() * box_share
    weights = config.match_weights
    return SetLoss(weights.cls * cls + weights.l1 * l1 + weights.giou * giou, cls, l1, giou)


def match_slots(slots: Slots, targets: TubeTargets, config: TubeletLoss, *, multi_label: bool) -> Tensor:
    """Find the slot of each actor.

    Args:
        slots: What L decoder layers say.
        targets: The actors in the B clips.
        config: Whether an actor keeps the same slot in all frames.
        multi_label: Whether every class has a probability of its own.

    Returns:
        (L, B, M) int64, or (L, B * T, M) if each frame is matched anew; then -1 in frames in which an actor is not
        visible.
    """
    weights = config.match_weights
    class_cost = "focal" if multi_label else "softmax"
    if config.matching == "tubelet":
        return match(slots.logits, slots.boxes, targets.tubelets, weights=weights, class_cost=class_cost)

    logits, boxes = map(_frames_as_samples, (slots.logits, slots.boxes))
    seen = seen_in_frames(targets)
    matched = match(logits, boxes, seen.targets, weights=weights, class_cost=class_cost)
    return torch.empty_like(matched).scatter_(-1, seen.order.expand_as(matched), matched)


def _frames_as_samples(values: Tensor) -> Tensor:
    """(L, B, S, T, ...) to (L, B * T, S, ...)."""
    return values.transpose(2, 3).flatten(1, 2)


def _slot_weights(slots: Slots, targets: TubeTargets, matched: Tensor, config: TubeletLoss) -> tuple[Tensor, Tensor]:
    """Return what the cross-entropy of each layer was divided by, and what of that counts, (L,) each.

    It was divided by the weights of the slots in all frames, and those in frames that are not annotated do not count.

    Args:
        slots: What L decoder layers say.
        targets: The actors in the B clips.
        matched: The slots of the targets that the loss compared them with.
        config: The weights, and how slots were matched.
    """
    clips, count, frames = slots.logits.shape[1:4]

    # If there are more actors than slots, layers may leave out different ones, who are seen in more or fewer frames.
    is_pair = matched >= 0
    if config.matching == "tubelet":
        is_pair = is_pair[..., None] & targets.visible
    pairs = is_pair.flatten(1).sum(1)

    def weights(counted: Tensor | int) -> Tensor:
        return pairs + config.no_object_weight * (counted * count - pairs)

    annotated = targets.annotated.sum() if targets.is_sparse else clips * frames
    return weights(clips * frames), weights(annotated)

"""The rule that turns slots into actions: when each begins and ends, how sure it is, and where.

    p_st(c) = probability that slot s stands for an action of class c in frame t

An action of class c lasts for the frames about the peak of p_s(c) in which p is at least half of the peak. Its score is
the mean of p in these frames, so an action that is sure for its whole time is surer than one that flashes. What a clip
holds is one such action for each slot and class whose score reaches the threshold.

Training gives no action a small weight, which the probabilities take back, as `actdet.models.detr.decision` explains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from actdet.data.truth import TubeTargets
from actdet.detections import Action
from actdet.models.detr.decision import action_probabilities
from actdet.models.family import Assessment, Candidates, Decision, Detections, Tracks
from actdet.models.tubelet.config import TubeletLoss
from actdet.models.tubelet.losses import match_slots, tubelet_losses
from actdet.models.tubelet.slots import FinalSlots, Slots


class _Spans(NamedTuple):
    """The action that each of S slots of B clips would stand for, of each class."""

    score: Tensor
    """(B, S, C), in [0, 1]."""
    box: Tensor
    """(B, S, C, 4) x1 y1 x2 y2, around all boxes of its time."""


def probabilities(logits: Tensor, weights: TubeletLoss, *, multi_label: bool) -> Tensor:
    """Logits (..., C) to the probability of each action class, (..., A)."""
    return logits.float().sigmoid() if multi_label else action_probabilities(logits, weights.no_object_weight)


def detections(final: FinalSlots, weights: TubeletLoss, *, multi_label: bool, threshold: float) -> Detections:
    """Find the actions of B clips, as the contract of the families says it."""
    likely = probabilities(final.logits, weights, multi_label=multi_label)
    corners = box_convert(final.boxes, "cxcywh", "xyxy").clamp(0, 1)
    tracks = Tracks(scores=likely, boxes=corners)
    spans = _spans(tracks)

    # The surest action of each clip.
    classes = spans.score.shape[-1]
    score, place = spans.score.flatten(1).max(-1)
    label = place % classes
    clip = torch.arange(len(place), device=place.device)
    box = box_convert(spans.box.flatten(1, 2)[clip, place], "xyxy", "cxcywh")
    decision = Decision(torch.where(score >= threshold, label, classes), score, box, label)
    return Detections(decision, _actions(spans, threshold), (tracks,))


def _spans(tracks: Tracks) -> _Spans:
    """Find the time about each peak, and what slots say in it."""
    # (B, S, C, T)
    likely = tracks.scores.transpose(2, 3)
    peak, when = likely.max(-1, keepdim=True)
    outside = likely < peak / 2

    # Frames with as many frames outside before them as the peak has are of one run with it.
    breaks = outside.cumsum(-1)
    inside = ~outside & (breaks == breaks.gather(-1, when))
    score = (likely * inside).sum(-1) / inside.sum(-1)

    corners = tracks.boxes[:, :, None]
    shown = inside[..., None]
    low = torch.where(shown, corners[..., :2], 1.0).amin(-2)
    high = torch.where(shown, corners[..., 2:], 0.0).amax(-2)
    return _Spans(score, torch.cat([low, high], -1))


def _actions(spans: _Spans, threshold: float) -> list[tuple[Action, ...]]:
    """Return the actions of each clip whose score reaches the threshold, the surest first."""
    scores = spans.score.cpu()
    boxes = spans.box.cpu()
    found: list[list[Action]] = [[] for _ in scores]
    for clip, slot, label in (scores >= threshold).nonzero().tolist():
        x1, y1, x2, y2 = boxes[clip, slot, label].tolist()
        found[clip].append(Action(label, scores[clip, slot, label].item(), (x1, y1, x2, y2)))
    return [tuple(sorted(of_clip, key=lambda action: -action.score)) for of_clip in found]


def assess(
    final: FinalSlots, targets: TubeTargets, weights: TubeletLoss, *, multi_label: bool, threshold: float
) -> Assessment:
    """Compare what the last layer says of n clips with the truth, on the CPU in float32."""
    final = FinalSlots(*(tensor.detach().to("cpu", torch.float32) for tensor in final))
    targets = targets.to("cpu")
    answers = detections(final, weights, multi_label=multi_label, threshold=threshold)

    # Each slot is a candidate for the action that it is surest of.
    (tracks,) = answers.tracks
    spans = _spans(tracks)
    confidence, label = spans.score.max(-1)
    of_label = label[..., None, None].expand(-1, -1, 1, 4)
    box = box_convert(spans.box.gather(2, of_label)[:, :, 0], "xyxy", "cxcywh")

    one_layer = Slots(final.logits[None], final.boxes[None])
    matched = match_slots(one_layer, targets, weights, multi_label=multi_label)[0]
    losses = tubelet_losses(one_layer, targets, weights, multi_label=multi_label)

    # An actor who does several things counts for each of them.
    by_action, rows = targets.by_action()
    of_clip = matched.view(len(label), -1, matched.shape[-1]).amax(1)
    return Assessment(
        detections=answers,
        candidates=Candidates(label, confidence, box),
        targets=by_action.clip_boxes,
        matched=torch.where(by_action.valid, of_clip.gather(1, rows), -1),
        losses={name: value.item() for name, value in losses.items()},
    )

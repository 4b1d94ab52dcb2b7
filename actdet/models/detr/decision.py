"""The rule that turns the N predictions of a clip into its actions, or into one class and one box.

Training gives no_object a weight w (0.1), so a query's softmax says an action 1/w times too loudly:

    p_q(c) = exp(l_qc) / (sum over actions a of exp(l_qa) + exp(l_q,no_object) / w)

is the probability that query q stands for an action of class c. Summed over the queries it is the number of such
actions to be expected in the clip, however many queries share the answer. The report leaves the rule open: its eq. 16
takes the arg max of one prediction a clip, and there are twelve.

**The score** of an answer is that number, at most 1: the probability that the clip holds such an action, as long as it
holds no more than one of a class. Of several actions of one class, the k-th has what is expected beyond k - 1: the
probability that there are k.

**The box** of an answer is the mean of the boxes that mean it: of those that overlap the surest query's by an IoU of
0.5 or more, each weighted by its p_q(c) (weighted boxes fusion, Solovyev et al. 2021). Queries that share an answer err
apart from each other, so their mean lies closer than the surest of them (docs/LOG.md has the figures).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from actdet.models.detr.config import THRESHOLD

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2

SAME_PLACE = 0.5  # the IoU from which two boxes of one class are the same action


class Decision(NamedTuple):
    """One answer a clip.

    label: (B,) int64, class of the action; the number of action classes where there is none.
    score: (B,) expected number of actions of the likeliest class, at most 1, whether it passed the threshold or not.
    box: (B, 4) cxcywh in [0, 1], where the queries surest of that class say it is.
    """

    label: Tensor
    score: Tensor
    box: Tensor


class Action(NamedTuple):
    """One action that a clip is said to hold.

    label: its class, counted from 0.
    score: in [0, 1], the probability that the clip holds it.
    box: x1, y1, x2, y2 in shares of the picture, within [0, 1].
    """

    label: int
    score: float
    box: Corners


def action_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and class of each query's likeliest action: logits (..., N, C) to (..., N) twice.

    The confidence is the plain softmax of DETR, by which average precision ranks all queries, so that AP is comparable
    with that of other detectors. It is not the score of an action (see above): it is of one query, and louder.
    """
    score, label = logits.softmax(-1)[..., :-1].max(-1)
    return score, label


def decide(logits: Tensor, boxes: Tensor, *, no_object_weight: float, threshold: float = THRESHOLD) -> Decision:
    """The class of which most actions are expected, if `threshold` or more, and the box where its surest queries say.

    logits: (B, N, C), the last class being no_object. boxes: (B, N, 4). no_object_weight: the one in training.
    """
    probabilities = _action_probabilities(logits, no_object_weight)
    expected, chosen = probabilities.sum(1).max(-1)

    clips = torch.arange(len(chosen), device=chosen.device)
    probability = probabilities[clips, :, chosen]
    here = _same_place(boxes)[clips, probability.argmax(-1)]
    box = _mean_box(probability, boxes, here)

    no_action = logits.shape[-1] - 1
    return Decision(torch.where(expected >= threshold, chosen, no_action), expected.clamp(max=1.0), box)


def actions(
    logits: Tensor,
    boxes: Tensor,
    *,
    no_object_weight: float,
    threshold: float = THRESHOLD,
) -> list[tuple[Action, ...]]:
    """The set of actions of each clip, the surest first; the first is what `decide` says, where there is any.

    A class is in the set if `threshold` or more actions of it are expected, and has the box where its surest queries
    say. It is in it a k-th time if `threshold` or more are expected beyond k - 1, and only at another place: boxes that
    overlap a surer one by an IoU of 0.5 or more are the same action, and what is left there must add up to `threshold`.

    Args:
        logits: (B, N, C), the last class being no_object.
        boxes: (B, N, 4), cxcywh in [0, 1].
        no_object_weight: The one in training.
        threshold: The expected number from which an action is in the set.

    Returns:
        For each of the B clips its actions, none where it has none.
    """
    boxes = boxes.detach().float()
    probabilities = _action_probabilities(logits.detach(), no_object_weight)
    expected = probabilities.sum(1)
    # (B, C - 1): how many actions of each class there are.
    ranks = torch.arange(logits.shape[1], device=logits.device)
    counts = (expected[..., None] - ranks >= threshold).sum(-1)
    same_place = _same_place(boxes)

    # On the host from here on: a handful of queries, whose number differs from clip to clip.
    probabilities = probabilities.cpu()
    expected = expected.cpu()
    boxes = boxes.cpu()
    same_place = same_place.cpu()

    result = []
    for clip, by_class in enumerate(counts.tolist()):
        found = []
        for label, count in enumerate(by_class):
            if not count:
                continue
            number = expected[clip, label].item()
            probability = probabilities[clip, :, label]
            places = _distinct(probability, same_place[clip], count, threshold)
            for rank, here in enumerate(places):
                box = _corners(_mean_box(probability, boxes[clip], here))
                found.append(Action(label, number - rank, box))

        # Scores are cut to 1 only when they are in order, so that the class of which most are expected comes first.
        found.sort(key=lambda action: -action.score)
        result.append(tuple(action._replace(score=min(action.score, 1.0)) for action in found))
    return result


def _action_probabilities(logits: Tensor, no_object_weight: float) -> Tensor:
    """(B, N, C - 1) float32: the probability that each query stands for an action of each class."""
    weighted = logits.float().clone()
    weighted[..., -1] -= math.log(no_object_weight)
    return weighted.softmax(-1)[..., :-1]


def _same_place(boxes: Tensor) -> Tensor:
    """(B, N, N) bool: which of the N boxes (B, N, 4) cxcywh mean one place with which. Each does with itself."""
    centers, sides = boxes.float().split(2, dim=-1)
    low = (centers - sides / 2).clamp(0, 1)
    high = (centers + sides / 2).clamp(0, 1)

    overlap = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    shared = overlap.clamp(min=0).prod(-1)
    area = (high - low).prod(-1)
    union = area[:, :, None] + area[:, None] - shared

    # A box without an area does not even overlap itself.
    itself = torch.eye(boxes.shape[1], dtype=torch.bool, device=boxes.device)
    return (shared >= SAME_PLACE * union) & (union > 0) | itself


def _mean_box(probability: Tensor, boxes: Tensor, here: Tensor) -> Tensor:
    """The mean (..., 4) of the boxes (..., N, 4) that are `here`, (..., N) bool, weighted by `probability` (..., N).

    Their plain mean where none of them is probable at all.
    """
    weight = torch.where(here, probability, 0.0)
    total = weight.sum(-1, keepdim=True)
    weight = torch.where(total > 0, weight / total, here / here.sum(-1, keepdim=True))
    return (weight[..., None] * boxes.float()).sum(-2)


def _distinct(probability: Tensor, same_place: Tensor, count: int, threshold: float) -> list[Tensor]:
    """Up to `count` places, the surest first: (N,) bool each, which queries mean it, none of them twice.

    probability: (N,), of one class. same_place: (N, N) bool.
    """
    left = torch.ones_like(probability, dtype=torch.bool)
    places = []
    while left.any() and len(places) < count:
        surest = torch.where(left, probability, -1.0).argmax()
        here = left & same_place[surest]
        left = left & ~here
        if not places or probability[here].sum() >= threshold:
            places.append(here)
    return places


def _corners(box: Tensor) -> Corners:
    """x1, y1, x2, y2 within [0, 1] of a box (4,) cxcywh."""
    center, side = box.split(2)
    return tuple(torch.cat([center - side / 2, center + side / 2]).clamp(0, 1).tolist())

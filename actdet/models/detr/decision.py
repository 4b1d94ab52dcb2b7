"""The rule that turns the N predictions of a clip into a set of actions, or into one class and one box.

Training gives no_object a small weight w (0.1), so the softmax of a query overstates an action by a factor of 1/w. The
rule takes this back:

    p_q(c) = exp(l_qc) / (sum over actions a of exp(l_qa) + exp(l_q,no_object) / w)

is the probability that query q stands for an action of class c. Summed over the queries it is the expected number of
such actions in the clip, however many queries share the answer. The report leaves the rule open: its eq. 16 takes the
arg max of one prediction per clip, and there are twelve.

**The score** of an answer is that number, at most 1: the probability that the clip holds such an action, as long as it
holds no more than one of a class. If there are several actions of one class, the k-th has the expected number beyond
k - 1 as its score: the probability that there are k.

**The box** of an answer is the mean of the boxes that stand for it: those that overlap the box of the most confident
query by an IoU of 0.5 or more, each weighted by its p_q(c) (weighted boxes fusion, Solovyev et al. 2021). Queries that
share an answer err independently, so their mean is closer than the best of them (docs/LOG.md has the figures).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actdet.detections import THRESHOLD, Action, Corners
from actdet.models.family import Decision

# Two boxes of one class that overlap by at least this IoU are the same action.
SAME_PLACE = 0.5


def action_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and class of each query's most likely action: logits (..., N, C) to (..., N) twice.

    The confidence is the plain softmax of DETR. Average precision ranks all queries by it, so that it is comparable
    with that of other detectors. It is not the score of an action (see above): it is that of one query, and too large.
    """
    score, label = logits.softmax(-1)[..., :-1].max(-1)
    return score, label


def action_probabilities(logits: Tensor, no_object_weight: float) -> Tensor:
    """The probability that each query stands for an action of each class: logits (B, N, C) to (B, N, C - 1) float32.

    Args:
        logits: (B, N, C), the last class being no_object.
        no_object_weight: The weight of no_object in training, w in the formula above.
    """
    logits = logits.float()
    no_object = logits[..., -1:] - math.log(no_object_weight)
    return torch.cat([logits[..., :-1], no_object], dim=-1).softmax(-1)[..., :-1]


def decide(logits: Tensor, boxes: Tensor, *, no_object_weight: float, threshold: float = THRESHOLD) -> Decision:
    """Choose the class with the largest expected number of actions, and the box where its queries say it is.

    Args:
        logits: (B, N, C), the last class being no_object.
        boxes: (B, N, 4), cxcywh in [0, 1].
        no_object_weight: The weight of no_object in training.
        threshold: The expected number from which on there is an action.
    """
    queries = logits.shape[1]
    probabilities = action_probabilities(logits, no_object_weight)
    expected, chosen = probabilities.sum(1).max(-1)

    # Gathering along one dimension, instead of indexing with several tensors, is what every exporter understands.
    of_chosen = chosen[:, None, None].expand(-1, queries, 1)
    probability = probabilities.gather(2, of_chosen).squeeze(2)
    surest = probability.argmax(-1)[:, None, None].expand(-1, 1, queries)
    here = _same_place(boxes).gather(1, surest).squeeze(1)
    box = _mean_box(probability, boxes, here)

    no_action = logits.shape[-1] - 1
    return Decision(
        label=torch.where(expected >= threshold, chosen, no_action),
        score=expected.clamp(max=1.0),
        box=box,
        likeliest=chosen,
    )


def actions(
    logits: Tensor,
    boxes: Tensor,
    *,
    no_object_weight: float,
    threshold: float = THRESHOLD,
) -> list[tuple[Action, ...]]:
    """Find the set of actions of each clip, the surest first; the first one is what `decide` says, if there is any.

    A class is in the set if its expected number of actions is at least `threshold`, and its box is the mean box of its
    surest place. It is in the set a k-th time if at least `threshold` actions are expected beyond k - 1, but only at
    another place: boxes that overlap a surer one by an IoU of 0.5 or more are the same action, and what is
    left at the other place must add up to `threshold`.

    Args:
        logits: (B, N, C), the last class being no_object.
        boxes: (B, N, 4), cxcywh in [0, 1].
        no_object_weight: The weight of no_object in training.
        threshold: The expected number from which on an action is in the set.

    Returns:
        For each of the B clips its actions, none if it has none.
    """
    boxes = boxes.detach().float()
    probabilities = action_probabilities(logits.detach(), no_object_weight)
    expected = probabilities.sum(1)
    # (B, C - 1): how many actions of each class there are.
    ranks = torch.arange(logits.shape[1], device=logits.device)
    counts = (expected[..., None] - ranks >= threshold).sum(-1)
    same_place = _same_place(boxes)

    # The rest runs on the host: it handles a few queries, whose number differs from clip to clip.
    probabilities = probabilities.cpu()
    expected = expected.cpu()
    boxes = boxes.cpu()
    same_place = same_place.cpu()

    result = []
    for clip, count_of_class in enumerate(counts.tolist()):
        found = []
        for label, count in enumerate(count_of_class):
            if not count:
                continue
            number = expected[clip, label].item()
            probability = probabilities[clip, :, label]
            places = _distinct_places(probability, same_place[clip], count, threshold)
            for rank, here in enumerate(places):
                box = _corners(_mean_box(probability, boxes[clip], here))
                found.append(Action(label, number - rank, box))

        # Scores are limited to 1 only after sorting, so that the class with the largest expected number comes first.
        found.sort(key=lambda action: -action.score)
        result.append(tuple(action._replace(score=min(action.score, 1.0)) for action in found))
    return result


def _same_place(boxes: Tensor) -> Tensor:
    """Which boxes overlap which by an IoU of `SAME_PLACE` or more: (B, N, 4) cxcywh to (B, N, N) bool.

    Every box is in the same place as itself.
    """
    centers, sides = boxes.float().split(2, dim=-1)
    low = (centers - sides / 2).clamp(0, 1)
    high = (centers + sides / 2).clamp(0, 1)

    overlap = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    shared = overlap.clamp(min=0).prod(-1)
    area = (high - low).prod(-1)
    union = area[:, :, None] + area[:, None] - shared

    # A box without an area would not even overlap itself.
    itself = torch.eye(boxes.shape[1], dtype=torch.bool, device=boxes.device)
    return (shared >= SAME_PLACE * union) & (union > 0) | itself


def _mean_box(probability: Tensor, boxes: Tensor, here: Tensor) -> Tensor:
    """The mean (..., 4) of some boxes, weighted by their probability; their plain mean if all probabilities are 0.

    Args:
        probability: (..., N) of one class.
        boxes: (..., N, 4).
        here: (..., N) bool, which boxes to take.
    """
    weight = torch.where(here, probability, 0.0)
    total = weight.sum(-1, keepdim=True)
    weight = torch.where(total > 0, weight / total, here / here.sum(-1, keepdim=True))
    return (weight[..., None] * boxes.float()).sum(-2)


def _distinct_places(probability: Tensor, same_place: Tensor, count: int, threshold: float) -> list[Tensor]:
    """Find the places of one class: (N,) bool each, which queries are there, no query in two places.

    Args:
        probability: (N,) of the class.
        same_place: (N, N) bool.
        count: How many places there are at most.
        threshold: What the probabilities at a place must add up to, except at the first one.

    Returns:
        The places, the surest first.
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
    """x1, y1, x2, y2, limited to [0, 1], of a box (4,) cxcywh."""
    center, side = box.split(2)
    return tuple(torch.cat([center - side / 2, center + side / 2]).clamp(0, 1).tolist())

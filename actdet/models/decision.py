"""The rule that turns the N predictions of a clip into its actions, or into one class and one box.

Training gives no_object a weight w (0.1), so a query's softmax says an action 1/w times too loudly:

    p_q(c) = exp(l_qc) / (sum over actions a of exp(l_qa) + exp(l_q,no_object) / w)

is the probability that query q stands for an action of class c. Summed over the queries it is the number of such
actions to be expected in the clip, however many queries share the answer. The report leaves the rule open: its eq. 16
takes the arg max of one prediction a clip, and there are twelve.

**The score** of an answer is that number, at most 1: the probability that the clip holds such an action, as long as it
holds no more than one of a class. Of several actions of one class, the k-th has what is expected beyond k - 1: the
probability that there are k.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from actdet.config import THRESHOLD
from actdet.errors import ActdetError

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2

SAME_PLACE = 0.5  # the IoU from which two boxes of one class are the same action


class Decision(NamedTuple):
    """One answer a clip.

    label: (B,) int64, class of the action; the number of action classes where there is none.
    score: (B,) expected number of actions of the likeliest class, at most 1, whether it passed the threshold or not.
    box: (B, 4) cxcywh in [0, 1] of the query surest of that class.
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
    """The class of which most actions are expected, if `threshold` or more, and the box of its surest query.

    logits: (B, N, C), the last class being no_object. boxes: (B, N, 4). no_object_weight: the one in training.
    """
    probabilities = _action_probabilities(logits, no_object_weight)
    expected, chosen = probabilities.sum(1).max(-1)
    query = probabilities.gather(2, chosen[:, None, None].expand(-1, logits.shape[1], 1))[..., 0].argmax(-1)
    box = boxes.gather(1, query[:, None, None].expand(-1, 1, 4))[:, 0]
    no_action = logits.shape[-1] - 1
    return Decision(torch.where(expected >= threshold, chosen, no_action), expected.clamp(max=1.0), box)


def actions(
    logits: Tensor,
    boxes: Tensor,
    *,
    no_object_weight: float,
    threshold: float = THRESHOLD,
    temperature: float = 1.0,
) -> list[tuple[Action, ...]]:
    """The set of actions of each clip, the surest first; the first is what `decide` says, where there is any.

    A class is in the set if `threshold` or more actions of it are expected, and has the box of its surest query. It is
    in it a k-th time if `threshold` or more are expected beyond k - 1, and only at another place: boxes that overlap a
    surer one by an IoU of 0.5 or more are the same action, and what is left there must add up to `threshold`.

    Args:
        logits: (B, N, C), the last class being no_object.
        boxes: (B, N, 4), cxcywh in [0, 1].
        no_object_weight: The one in training.
        threshold: The expected number from which an action is in the set.
        temperature: Divides the logits: above 1 all scores become less sure.

    Returns:
        For each of the B clips its actions, none where it has none.

    Raises:
        ActdetError: For a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ActdetError(f"temperature must be above 0, got {temperature}")

    logits = logits.detach().float()
    boxes = boxes.detach().float()
    probabilities = _action_probabilities(logits / temperature, no_object_weight)
    expected = probabilities.sum(1)
    surer = torch.arange(logits.shape[1], device=logits.device)
    counts = (expected[..., None] - surer >= threshold).sum(-1)  # (B, C - 1)
    centers, sides = boxes.split(2, dim=-1)
    corners = torch.cat([centers - sides / 2, centers + sides / 2], dim=-1).clamp(0, 1).tolist()

    result = []
    for clip, by_class in enumerate(counts.tolist()):
        found = []
        for label, count in enumerate(by_class):
            if not count:
                continue
            number = expected[clip, label].item()
            places = _distinct(probabilities[clip, :, label].tolist(), corners[clip], count, threshold)
            for rank, query in enumerate(places):
                found.append(Action(label, number - rank, tuple(corners[clip][query])))

        # Scores are cut to 1 only when they are in order, so that the class of which most are expected comes first.
        found.sort(key=lambda action: -action.score)
        result.append(tuple(action._replace(score=min(action.score, 1.0)) for action in found))
    return result


def _action_probabilities(logits: Tensor, no_object_weight: float) -> Tensor:
    """(B, N, C - 1) float32: the probability that each query stands for an action of each class."""
    weighted = logits.float().clone()
    weighted[..., -1] -= math.log(no_object_weight)
    return weighted.softmax(-1)[..., :-1]


def _distinct(probability: list[float], boxes: list[Corners], count: int, threshold: float) -> list[int]:
    """The numbers of up to `count` of the N queries, the surest at each place, the surest first.

    `probability` is that of one class.
    """
    left = sorted(range(len(probability)), key=lambda query: -probability[query])
    places = []
    while left and len(places) < count:
        surest = left[0]
        # A box without an area does not even overlap itself.
        here = {query for query in left if query == surest or _overlap(boxes[surest], boxes[query]) >= SAME_PLACE}
        left = [query for query in left if query not in here]
        if not places or math.fsum(probability[query] for query in here) >= threshold:
            places.append(surest)
    return places


def _overlap(one: Corners, other: Corners) -> float:
    """Intersection over union, 0 for two boxes without an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)) - shared
    return shared / union if union > 0 else 0.0

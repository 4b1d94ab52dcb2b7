"""The rule that turns the N predictions of a clip into one class and one box.

Training gives no_object a weight w (0.1), so a query's softmax says an action 1/w times too loudly:

    p_q(c) = exp(l_qc) / (sum over actions a of exp(l_qa) + exp(l_q,no_object) / w)

is the probability that query q stands for an action of class c. Summed over the queries it is the number of such
actions to be expected in the clip, however many queries share the answer. The report leaves the rule open: its eq. 16
takes the arg max of one prediction a clip, and there are twelve.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

THRESHOLD = 0.5


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
    """One action of a clip: its class, the expected number of them, at most 1, and x1 y1 x2 y2 in [0, 1]."""

    label: int
    score: float
    box: tuple[float, float, float, float]


def action_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax probability and class of each query's likeliest action: logits (..., N, C) to (..., N) twice."""
    score, label = logits.softmax(-1)[..., :-1].max(-1)
    return score, label


def decide(logits: Tensor, boxes: Tensor, *, no_object_weight: float, threshold: float = THRESHOLD) -> Decision:
    """The class of which most actions are expected, if `threshold` or more, and the box of its surest query.

    logits: (B, N, C), the last class being no_object. boxes: (B, N, 4). no_object_weight: the one in training.
    """
    weighted = logits.float().clone()
    weighted[..., -1] -= math.log(no_object_weight)
    probabilities = weighted.softmax(-1)[..., :-1]  # (B, N, C - 1)
    expected, chosen = probabilities.sum(1).max(-1)
    query = probabilities.gather(2, chosen[:, None, None].expand(-1, logits.shape[1], 1))[..., 0].argmax(-1)
    box = boxes.gather(1, query[:, None, None].expand(-1, 1, 4))[:, 0]
    no_action = logits.shape[-1] - 1
    return Decision(torch.where(expected >= threshold, chosen, no_action), expected.clamp(max=1.0), box)


def actions(
    logits: Tensor, boxes: Tensor, *, no_object_weight: float, threshold: float = THRESHOLD, temperature: float = 1.0
) -> list[tuple[Action, ...]]:
    """For each clip the set of its actions, surest first: the classes of which `threshold` or more are expected.

    logits: (B, N, C), the last class being no_object. boxes: (B, N, 4) cxcywh in [0, 1].
    """
    weighted = logits.float() / temperature
    weighted[..., -1] -= math.log(no_object_weight)
    probabilities = weighted.softmax(-1)[..., :-1]
    expected, surest = probabilities.sum(1), probabilities.argmax(1)
    found = []
    for scores, queries, clip_boxes in zip(expected.tolist(), surest.tolist(), boxes.float().tolist(), strict=True):
        likely = [label for label, score in enumerate(scores) if score >= threshold]
        likely.sort(key=lambda label: -scores[label])
        found.append(tuple(Action(n, min(scores[n], 1.0), _corners(clip_boxes[queries[n]])) for n in likely))
    return found


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, w, h = box
    x1, y1, x2, y2 = (min(max(side, 0.0), 1.0) for side in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return x1, y1, x2, y2

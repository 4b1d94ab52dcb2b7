"""The rule that turns the N predictions of a clip into one class and one box."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

THRESHOLD = 0.5


class Decision(NamedTuple):
    """One answer a clip.

    label: (B,) int64, class of the action; the number of action classes where there is none.
    score: (B,) probability of the likeliest action, whether it passed the threshold or not.
    box: (B, 4) cxcywh in [0, 1] of the query that gave the score.
    """

    label: Tensor
    score: Tensor
    box: Tensor


def action_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and class of each query's likeliest action: logits (..., N, C) to (..., N) twice."""
    score, label = logits.softmax(-1)[..., :-1].max(-1)
    return score, label


def decide(logits: Tensor, boxes: Tensor, threshold: float = THRESHOLD) -> Decision:
    """The clip's action is that of the query surest of an action, if at least `threshold` sure; else there is none.

    logits: (B, N, C), the last class being no_object. boxes: (B, N, 4). The report leaves this rule open
    (its eq. 16 takes the arg max of one prediction a clip, and there are twelve).
    """
    score, label = action_scores(logits)
    best_score, query = score.max(-1)
    chosen = label.gather(1, query[:, None])[:, 0]
    box = boxes.gather(1, query[:, None, None].expand(-1, 1, 4))[:, 0]
    no_action = logits.shape[-1] - 1
    return Decision(torch.where(best_score >= threshold, chosen, no_action), best_score, box)

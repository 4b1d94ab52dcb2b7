"""What the tubelet detector predicts: for each slot and frame the logits of the classes, and a box."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

# A logit whose probability is 0 in any floating-point type.
NEVER = -1e4

# A logit whose probability is 0.01. Classes with a focal loss start there, since nearly everything is of nobody.
RARE = -math.log(99)


class FinalSlots(NamedTuple):
    """What the last decoder layer says of S slots in the T frames of B clips."""

    logits: Tensor
    """(B, S, T, C) float32. The last class is no action, unless every class has a probability of its own."""
    boxes: Tensor
    """(B, S, T, 4) float32, cxcywh in [0, 1]."""


class Slots(NamedTuple):
    """The same of each of the L decoder layers, all of which are trained with the loss, the last one last."""

    logits: Tensor
    """(L, B, S, T, C) float32."""
    boxes: Tensor
    """(L, B, S, T, 4) float32, cxcywh in [0, 1]."""
    noisy: tuple[Tensor, ...] = ()
    """Logits and boxes of the same form that the decoder made of noisy copies of the actors in training, if it had any,
    and (B, M) int64, which copy in its group each actor should be."""

    def final(self) -> FinalSlots:
        """Return what the last layer says."""
        return FinalSlots(self.logits[-1], self.boxes[-1])

"""What the tubelet detector predicts: for each slot and frame the logits of the classes, and a box."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FinalSlots(NamedTuple):
    """What the last decoder layer says of S slots in the T frames of B clips."""

    logits: Tensor
    """(B, S, T, C) float32. The last class is no action, unless every class has a probability of its own."""
    boxes: Tensor
    """(B, S, T, 4) float32, cxcywh in [0, 1]."""


class Slots(NamedTuple):
    """The same of each of the L supervised decoder layers, the last one last."""

    logits: Tensor
    """(L, B, S, T, C) float32."""
    boxes: Tensor
    """(L, B, S, T, 4) float32, cxcywh in [0, 1]."""

    def final(self) -> FinalSlots:
        """Return what the last layer says."""
        return FinalSlots(self.logits[-1], self.boxes[-1])

"""Frames as samples of their own, for what compares predictions with truth frame by frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from actdet_kernels import Targets
from torch import Tensor

from actdet.data.truth import TubeTargets


class SeenInFrames(NamedTuple):
    """The actors whom each frame shows."""

    targets: Targets
    """Those of B * T samples, one for each frame."""
    order: Tensor
    """(B * T, M) int64, which row of the clip's targets each row is."""


def seen_in_frames(targets: TubeTargets) -> SeenInFrames:
    """Return the actors of B clips as targets of B * T frames.

    Whoever is not visible in a frame lies behind its count, and takes no prediction from anybody who is.
    """
    frames = targets.visible.shape[2]
    visible = (targets.visible & targets.valid[..., None]).transpose(1, 2).flatten(0, 1)
    order = (~visible).to(torch.uint8).argsort(dim=-1, stable=True)
    if targets.labels.ndim == 2:
        labels = targets.labels[:, None].expand(-1, frames, -1).flatten(0, 1).gather(1, order)
    else:
        by_frame = targets.labels.transpose(1, 2).flatten(0, 1)
        labels = by_frame.gather(1, order[..., None].expand_as(by_frame))
    boxes = targets.boxes.transpose(1, 2).flatten(0, 1).gather(1, order[..., None].expand(-1, -1, 4))
    return SeenInFrames(Targets(labels, boxes, visible.sum(-1, dtype=torch.int32)), order)

"""What is said about actions in a video: truth, as tubes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tube:
    """One actor's action: where it is in each frame that it lasts.

    A line `class x1 y1 x2 y2` of a clip's annotation file is a tube with the same box in every frame.
    """

    label: int
    """Class, counted from 0."""
    frames: np.ndarray
    """(n,) int64, ascending numbers of the video's frames, counted from 0. They may have gaps."""
    boxes: np.ndarray
    """(n, 4) float32, x1 y1 x2 y2 in pixels of the video as displayed. (0, 4) for a span of time without boxes."""

"""What is said about actions in a video: truth, as tubes, and what was found in a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Corners = tuple[float, float, float, float]
"""x1, y1, x2, y2."""

# An action counts as found if its score is at least this.
THRESHOLD = 0.5


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


class Action(NamedTuple):
    """One action that was found in a clip."""

    label: int
    """Its class, counted from 0."""
    score: float
    """The probability that the clip holds it, in [0, 1]."""
    box: Corners
    """x1, y1, x2, y2 as shares of the picture, in [0, 1]."""

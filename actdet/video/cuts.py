"""Tells whether a clip is cut together from two scenes, which no training clip is."""

from __future__ import annotations

import numpy as np

# Cells across and down a picture. Six are fine enough to tell places apart, and too coarse for people who move.
CELLS = 6

# At a cut the cells change by at least so much on average, out of 255.
_LEAST_CHANGE = 22.0

# The change at a cut is at least so many times the usual change between two frames of the clip.
_LEAST_RATIO = 2.5


def has_cut(clip: np.ndarray) -> bool:
    """Whether the picture changes abruptly somewhere in a clip, and stays changed.

    A person who runs past changes few cells, a moving camera changes all of them little by little, and after a flash
    the picture is as it was before.

    Args:
        clip: (T, H, W, 3), frames at equal distances in time, from 0 to 255. Their cells, (T, 6, 6, 3), suffice.
    """
    frames = len(clip)
    if frames < 2:
        return False

    cells = _shrink(clip)
    changes = np.abs(np.diff(cells, axis=0)).mean((1, 2, 3))
    at = int(changes.argmax())

    # Medians over the frames on each side, because a single flash does not change them.
    before = np.median(cells[: at + 1], axis=0)
    after = np.median(cells[at + 1 :], axis=0)
    lasting = np.abs(after - before).mean()

    usual = np.median(np.delete(changes, at)) if frames > 2 else 0.0
    return bool(min(changes[at], lasting) >= max(_LEAST_CHANGE, _LEAST_RATIO * usual))


def _shrink(clip: np.ndarray) -> np.ndarray:
    """The mean of each cell: (T, H, W, 3) to (T, 6, 6, 3) float32."""
    rows = []
    for band in np.array_split(clip.astype(np.float32), CELLS, axis=1):
        cells = np.array_split(band.mean(1, keepdims=True), CELLS, axis=2)
        rows.append(np.concatenate([cell.mean(2, keepdims=True) for cell in cells], axis=2))
    return np.concatenate(rows, axis=1)

"""Tells whether a clip is cut from two scenes, of which a detector has learned nothing."""

from __future__ import annotations

import numpy as np

# Cells across and down a picture. Six are fine enough to tell places apart, and too coarse for people who move.
_CELLS = 6

# At a cut the cells change by at least so much on average, out of 255.
_LEAST_CHANGE = 22.0

# The change at a cut is at least so many times the usual one between two frames of the clip.
_LEAST_RATIO = 2.5


def has_cut(clip: np.ndarray) -> bool:
    """Whether the picture changes at once, and stays changed, somewhere in a clip.

    A person who runs past changes few cells, a camera that moves changes all of them little by little, and after a
    flash the picture is as it was before.

    Args:
        clip: (T, H, W, 3) uint8, frames of equal distance in time.
    """
    frames = len(clip)
    if frames < 2:
        return False
    cells = _shrink(clip)
    changes = np.abs(np.diff(cells, axis=0)).mean((1, 2, 3))
    at = int(changes.argmax())
    # The median does not see a flash.
    before = np.median(cells[: at + 1], axis=0)
    after = np.median(cells[at + 1 :], axis=0)
    lasting = np.abs(after - before).mean()
    usual = np.median(np.delete(changes, at)) if frames > 2 else 0.0
    return bool(min(changes[at], lasting) >= max(_LEAST_CHANGE, _LEAST_RATIO * usual))


def _shrink(clip: np.ndarray) -> np.ndarray:
    """(T, 6, 6, 3) float32: the mean of each cell."""
    rows = np.array_split(clip.astype(np.float32), _CELLS, axis=1)
    means = [np.array_split(row.mean(1, keepdims=True), _CELLS, axis=2) for row in rows]
    return np.concatenate(
        [np.concatenate([cell.mean(2, keepdims=True) for cell in row], axis=2) for row in means], axis=1
    )

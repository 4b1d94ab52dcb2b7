"""Intersection over union (IoU) of boxes, for many pairs at once.

    IoU(a, b) = area of (a and b) / (area of a + area of b - area of (a and b))

Sources disagree about what x2 and y2 are. In the ACT scripts (`ACT_utils.iou2d`) and in YOWO's `pascalvoc.py` they are
the last pixel inside the box, so a side is x2 - x1 + 1 long ("inclusive"). In AVA, and where YOWO links boxes, they are
the edge, so a side is x2 - x1 long.
"""

from __future__ import annotations

import numpy as np


def box_iou(first: np.ndarray, second: np.ndarray, *, inclusive: bool) -> np.ndarray:
    """Compare boxes pair by pair.

    Args:
        first: (..., 4) x1 y1 x2 y2, in any unit.
        second: (..., 4), of a shape that broadcasts with that of `first`.
        inclusive: Whether x2 and y2 are the last pixel inside the box, which makes each side longer by 1.

    Returns:
        (...) float64 in [0, 1]. A box with a negative side has no area, and two boxes without an area have an IoU of 0.
    """
    first = np.asarray(first, dtype=np.float64)
    second = np.asarray(second, dtype=np.float64)
    extra = 1.0 if inclusive else 0.0

    width = np.minimum(first[..., 2], second[..., 2]) + extra - np.maximum(first[..., 0], second[..., 0])
    height = np.minimum(first[..., 3], second[..., 3]) + extra - np.maximum(first[..., 1], second[..., 1])
    shared = np.maximum(width, 0.0) * np.maximum(height, 0.0)

    covered = _area(first, extra) + _area(second, extra) - shared
    return np.divide(shared, covered, out=np.zeros_like(shared), where=covered > 0)


def _area(boxes: np.ndarray, extra: float) -> np.ndarray:
    width = np.maximum(boxes[..., 2] - boxes[..., 0] + extra, 0.0)
    height = np.maximum(boxes[..., 3] - boxes[..., 1] + extra, 0.0)
    return width * height

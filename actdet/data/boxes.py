"""What may stand in the columns of a box: numbers, in pixels, in the right order, inside the picture.

And `to_centers`, from these to what detectors learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from actdet.wording import short_repr

# No picture is so wide and no video so long, and sums of a few such numbers are exact enough in float32.
MOST_NUMBER = 1e9

# Tools that round a box outward end up to one pixel outside the picture. Such a box is clipped; a box that reaches
# further out is a mistake.
SLACK = 1.0

Box = tuple[float, float, float, float]


def parse_number(name: str, text: str) -> float:
    """Return the number that a field spells.

    Args:
        name: Of the field, for the error.
        text: The field.

    Raises:
        ValueError: If it is not a finite number.
    """
    try:
        # Python reads 1_0 as 10, but in a data file it is a slip.
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    return check_number(name, value, text)


def check_number(name: str, value: float, shown: object) -> float:
    """Check a coordinate, an angle or a time of a data file.

    Args:
        name: Of the field, for the error.
        value: The number.
        shown: What the error shows of it: what the file says.

    Returns:
        The number.

    Raises:
        ValueError: If it is not finite, or so large that arithmetic in float32 could overflow.
    """
    if not math.isfinite(value):
        raise ValueError(f"{name} = {short_repr(shown)} is not a finite number")
    if abs(value) > MOST_NUMBER:
        raise ValueError(f"{name} = {short_repr(shown)} is beyond {MOST_NUMBER:g}")
    return value


def parse_box(texts: Sequence[str], width: int, height: int) -> Box:
    """Return the box that four fields spell, clipped to the picture.

    Args:
        texts: x1, y1, x2 and y2.
        width: Of the picture in pixels.
        height: Of the picture in pixels.

    Raises:
        ValueError: If they are not a box inside the picture.
    """
    x1, y1, x2, y2 = (parse_number(name, text) for name, text in zip(("x1", "y1", "x2", "y2"), texts, strict=True))
    for low, high, first, second in ((x1, x2, "x1", "x2"), (y1, y2, "y1", "y2")):
        if high <= low:
            raise ValueError(f"{second} = {high:g} must be greater than {first} = {low:g}")

    box = " ".join(texts)
    if max(x2, y2) <= 1 and min(x1, y1) >= 0:
        raise ValueError(f"box {box} looks like fractions; expected pixels of a picture of {width}x{height}")

    left = max(x1, 0.0)
    top = max(y1, 0.0)
    right = min(x2, float(width))
    bottom = min(y2, float(height))
    beyond = max(left - x1, top - y1, x2 - right, y2 - bottom)
    if beyond > SLACK or right <= left or bottom <= top:
        raise ValueError(f"box {box} is outside the picture of {width}x{height} pixels")
    return left, top, right, bottom


def to_centers(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return boxes (..., 4), x1 y1 x2 y2 in pixels of such a picture, as float32 cxcywh in shares of its sides."""
    low, high = np.split(boxes.astype(np.float64), 2, axis=-1)
    size = np.array([width, height])
    return np.concatenate([(low + high) / 2 / size, (high - low) / size], -1).astype(np.float32)

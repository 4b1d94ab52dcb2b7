"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, one: str, several: str = "") -> str:
    """Return for instance "1 box" or "2 boxes".

    Args:
        number: How many.
        one: The word for one of them.
        several: The word for any other number; by default `one` with an s.
    """
    return f"{number} {one if number == 1 else several or one + 's'}"

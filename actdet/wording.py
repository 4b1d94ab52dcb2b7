"""Numbers and values in sentences."""

from __future__ import annotations

from reprlib import Repr

_SHORT = Repr()
_SHORT.maxstring = 60
_SHORT.maxother = 60


def counted(number: int, one: str, several: str = "") -> str:
    """Return for instance "1 box" or "2 boxes".

    Args:
        number: How many.
        one: The word for one of them.
        several: The word for any other number; by default `one` with an s.
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


def short_repr(value: object) -> str:
    """Return what a file or a user says, as an error quotes it: its `repr`, of which long ones lack the middle."""
    return _SHORT.repr(value)

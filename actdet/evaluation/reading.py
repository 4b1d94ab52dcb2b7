"""What the readers of other programs' files share: lines of text, and what comes out of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actdet.data.reading import open_regular
from actdet.errors import DataError
from actdet.evaluation.arrays import TubeBoxes, TubeletBoxes

# A line that is longer than this many bytes is no line of text. A tube of 100,000 frames takes 10 MB.
_MOST_BYTES = 2**26


class Found(NamedTuple):
    """The answers of a detector, in the numbers of a `Truth`."""

    tubelets: Iterable[TubeletBoxes]
    """Those that are not linked yet, one table for each video that has some, by ascending video."""
    tubes: TubeBoxes | None
    """Those that the detector has linked itself; then there are no tubelets."""
    lengths: np.ndarray
    """(videos,) int64, how many frames each video has, or up to which frame something is known of it."""
    notes: list[str]
    """What was passed over, a line each."""


def read_lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file of any size, with their line ends, and their numbers from 1.

    Args:
        path: The file.
        expected: What it should be, for the error.

    Raises:
        DataError: It cannot be read or is not text.
    """
    with open_regular(path, None, expected) as file:
        number = 1
        while line := file.readline(_MOST_BYTES):
            if len(line) == _MOST_BYTES:
                raise DataError(path, f"has a line of more than {_MOST_BYTES} bytes; expected text", number)
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(path, "is not UTF-8 text", number) from None
            number += 1


def describe_some(names: Iterable[str], most: int = 3) -> str:
    """A few names, and a sign if there are more."""
    shown = sorted(names)
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")

"""What the readers of other programs' files share: opening them safely, and what comes out of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

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


def open_file(path: Path) -> BinaryIO:
    """Open a file to read it.

    Raises:
        DataError: There is no such file, or it is something else than a file.
    """
    try:
        # To open a FIFO would block until something writes to it, and a device may never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(path, "is not a file")
        return open(path, "rb")
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file, with their line ends, and their numbers from 1.

    Raises:
        DataError: It cannot be read or is not text.
    """
    with open_file(path) as file:
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

"""Reads files that people or other tools wrote: only regular files, only up to a size, text only as UTF-8."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from actdet.errors import DataError


@contextmanager
def open_regular(path: str | os.PathLike[str], most_bytes: int | None, expected: str) -> Iterator[BinaryIO]:
    """Context manager: opens a file to read its bytes.

    Args:
        path: The file.
        most_bytes: How large it may be; None for a file of any size, which must be read piece by piece.
        expected: What it should be, for the error.

    Raises:
        DataError: If it does not exist, is not a regular file, is too large, or if the system refuses to read it.
    """
    try:
        # Opening a FIFO would block until something writes to it, and a device may never end.
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            raise DataError(path, f"cannot be read: it is not a regular file; expected {expected}")
        if most_bytes is not None and facts.st_size > most_bytes:
            raise DataError(path, f"has more than {most_bytes} bytes; expected {expected}")

        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError(path, f"file not found; expected {expected}") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from None


def read_bytes(path: str | os.PathLike[str], most_bytes: int, expected: str) -> bytes:
    """Read a whole file; arguments and errors are those of `open_regular`."""
    with open_regular(path, most_bytes, expected) as file:
        data = file.read(most_bytes + 1)

    # The system says of some files that they are empty, and others grow while they are read.
    if len(data) > most_bytes:
        raise DataError(path, f"has more than {most_bytes} bytes; expected {expected}")
    return data


def read_text_lines(path: str | os.PathLike[str], most_bytes: int, most_lines: int, expected: str) -> list[str]:
    """Read a text file.

    Args:
        path: The file.
        most_bytes: How large it may be.
        most_lines: How many lines it may have.
        expected: What it should be, for the error.

    Returns:
        Its lines without their line ends.

    Raises:
        DataError: As `open_regular`, and if the file is not UTF-8 or has too many lines.
    """
    data = read_bytes(path, most_bytes, expected)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, f"byte {error.start} is not UTF-8 text; save the file as UTF-8") from None

    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.count("\n") > most_lines:
        raise DataError(path, f"has more than {most_lines} lines; expected {expected}")
    return text.split("\n")

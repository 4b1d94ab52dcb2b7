"""Reads files that people or other tools wrote: only regular files, only up to a size, text only as UTF-8."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from actdet.errors import DataError
from actdet.wording import short_repr

# Integers of fewer digits have 64 bits.
_MOST_DIGITS = 20


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
    text = _decode(path, read_bytes(path, most_bytes, expected))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.count("\n") > most_lines:
        raise DataError(path, f"has more than {most_lines} lines; expected {expected}")
    return text.split("\n")


def read_json_file(path: str | os.PathLike[str], most_bytes: int, expected: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        most_bytes: How large it may be.
        expected: What it should be, for the error.

    Returns:
        Its content. Integers of 20 digits and more are floats, perhaps infinite ones; there are no NaN.

    Raises:
        DataError: As `open_regular`, and if the file is not UTF-8 or not JSON, or an object has two fields of a name.
    """
    text = _decode(path, read_bytes(path, most_bytes, expected))
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=parse_integer)
    except json.JSONDecodeError as error:
        raise DataError(path, f"is not JSON ({error.msg}); expected {expected}", error.lineno) from None
    except RecursionError:
        raise DataError(path, f"has too many values inside of others; expected {expected}") from None
    except ValueError as error:
        raise DataError(path, f"{error}; expected {expected}") from None


def parse_integer(text: str) -> int | float:
    """Return the integer that JSON spells; Python itself refuses thousands of digits, in words that help nobody."""
    return int(text) if len(text) < _MOST_DIGITS else float(text)


def _decode(path: str | os.PathLike[str], data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, f"byte {error.start} is not UTF-8 text; save the file as UTF-8") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the fields of an object; Python itself would take the last one of a name."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two fields {short_repr(twice)}")
    return fields


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")

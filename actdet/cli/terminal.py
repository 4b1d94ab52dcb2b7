"""What is printed: the name of a file or a class must not move the cursor, or look like a line of its own.

Commands print by `print_line` alone, and never by Python's `print`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, MutableMapping
from typing import Any, TextIO

import tqdm as progress

# Control characters, newline and ESC among them, and Unicode's separators of lines and of paragraphs.
_CATEGORIES = {"Cc", "Zl", "Zp"}

# What turns the direction of text around. Other format characters belong to the spelling of many languages.
_DIRECTIONS = {"\u061c", *map(chr, (*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))}


def printable(text: str) -> str:
    r"""`text` with every character that does not show as itself escaped as in Python: \n, \x1b, \u202e."""
    return "".join(_escape(char) if _misleads(char) else char for char in text)


def print_line(value: object, *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print `value`, which may hold any name, as exactly one line.

    Args:
        value: What to print, as `str` gives it.
        file: Where to print it; by default to stdout.
        flush: Whether it must show at once, even in a pipe.
    """
    print(printable(str(value)), file=file, flush=flush)


def print_lines(values: Iterable[object]) -> None:
    """Print each of `values` as exactly one line."""
    for value in values:
        print_line(value)


class tqdm(progress.tqdm):
    """A progress bar whose description may hold any name."""

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        """What is shown, by name, with the description escaped."""
        shown = super().format_dict
        shown["prefix"] = printable(shown["prefix"] or "")
        return shown


def _misleads(char: str) -> bool:
    return unicodedata.category(char) in _CATEGORIES or char in _DIRECTIONS


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")

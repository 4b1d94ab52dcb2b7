"""What is printed: a name that holds control characters must not move the cursor, or look like a line of its own."""

from __future__ import annotations

import unicodedata
from collections.abc import MutableMapping
from typing import Any, TextIO

import tqdm as progress

# Control characters, newline and ESC among them, and Unicode's separators of lines and of paragraphs.
_CATEGORIES = {"Cc", "Zl", "Zp"}
# What turns the direction of text around. Other format characters belong to the spelling of many languages.
_DIRECTIONS = {"\u061c", *map(chr, (*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))}


def printable(text: str) -> str:
    r"""`text` with what does not show as itself written as Python would: \n, \x1b, \u202e."""
    return "".join(_escape(char) if _misleads(char) else char for char in text)


def print_line(value: object, *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print `value`, which may hold any name, as exactly one line."""
    print(printable(str(value)), file=file, flush=flush)


class tqdm(progress.tqdm):
    """A progress bar whose description may hold any name."""

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        """What is shown."""
        shown = super().format_dict
        shown["prefix"] = printable(shown["prefix"] or "")
        return shown


def _misleads(char: str) -> bool:
    return unicodedata.category(char) in _CATEGORIES or char in _DIRECTIONS


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")

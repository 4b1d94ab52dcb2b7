"""Writing files so that a crash, an interruption or a full disk never leaves half a file under its final name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from actdet.errors import DataError

NAME_BYTES = 255  # in the name of a file: the most that Linux's file systems take


def any_within(paths: Iterable[Path], places: Iterable[Path]) -> bool:
    """Whether one of `paths` is one of `places` or lies in one, symbolic links seen through."""
    kept = {place.resolve() for place in places}
    return any(not kept.isdisjoint((path, *path.parents)) for path in (path.resolve() for path in paths))


def short_name(stem: str, end: str) -> str:
    """`stem` + `end`, the stem cut to what a file system takes in a name.

    A cut stem ends in a digest of the whole one, so that names that differ stay different.
    """
    if len(os.fsencode(stem + end)) <= NAME_BYTES:
        return stem + end
    tail = "~" + hashlib.sha256(os.fsencode(stem)).hexdigest()[:12] + end

    # A character that the cut would leave half is left out, as is what was no character.
    head = os.fsencode(stem)[: max(NAME_BYTES - len(os.fsencode(tail)), 0)].decode(errors="ignore")
    return head + tail


def temporary_name(path: Path) -> str:
    """The name under which this process writes `path`, beside it, before it takes its place."""
    return short_name(f".{path.stem}", f".{os.getpid()}.partial{path.suffix}")


def is_temporary(path: Path) -> bool:
    """Whether it has such a name, of any process."""
    return re.fullmatch(r"\..*\.\d+\.partial(\.\w+)?", path.name) is not None


def is_abandoned(path: Path) -> bool:
    """Whether it is a temporary file whose process has ended."""
    if not is_temporary(path):
        return False
    try:
        os.kill(int(path.stem.removesuffix(".partial").rpartition(".")[2]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # somebody else's
        pass
    return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place when the block ends without an error.

    Raises DataError, and leaves what `path` held, where the disk refuses.
    """
    temporary = path.with_name(temporary_name(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(path, f"cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all of it or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, all of it or nothing."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())

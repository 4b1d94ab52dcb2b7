"""Writing files so that a crash, an interruption or a full disk never leaves half a file under its final name."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from actdet.errors import ActdetError, DataError

_LOCK = ".actdet-lock"

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


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed have left of files that they were writing into `folder`."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_abandoned(path):
                path.unlink(missing_ok=True)


def check_own(paths: Iterable[Path], is_own: Callable[[Path], bool]) -> None:
    """Raise ActdetError for the first of `paths` that is there and that, as `is_own` says, not this program wrote."""
    for path in paths:
        if os.path.lexists(path) and not is_own(path):
            raise ActdetError(f"{path} was not written by this command, and would be replaced: give another folder")


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Within: no other process is the writer of `folder`, which is made where it is missing.

    Raises ActdetError where another one is. The lock ends with the process that holds it, even when that is killed.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    descriptor = _lock(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
            if made:
                # Which it is not where anything was written.
                folder.rmdir()
        os.close(descriptor)


def _lock(path: Path) -> int:
    """The open file `path`, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed it meanwhile: then this is no longer the file that others see.
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise ActdetError(
                    f"{path.parent}: another actdet process is writing there: wait for its end, or give another folder"
                ) from None
            # A file system without locks.
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)


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
    """Write `value` as indented JSON to `path`, all of it or nothing. Raises DataError for a number that JSON lacks."""
    write_bytes(path, (to_json(path, value, indent=2) + "\n").encode())


def to_json(path: Path, value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON for the file `path`. Raises DataError for NaN and infinity, which JSON does not have."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise DataError(path, "cannot be written: one of its numbers is not finite") from error


def read_json(path: Path) -> Any:
    """The JSON in `path`; None where there is no file, or none that holds JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None

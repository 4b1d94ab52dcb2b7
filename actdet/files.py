"""Writes files so that a crash, an interruption or a full disk never leaves half a file under its final name.

A file is written under a temporary name beside its final one and then renamed, which the system does at once or not at
all. A folder that a command fills has one writer at a time (`sole_writer`), or each result in it has
(`sole_writer_of`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from actdet.errors import ActdetError, DataError

# The longest name of a file, in bytes, that Linux's file systems take.
NAME_BYTES = 255

# The file that is locked while a folder has its writer. That of a single result has the result's name before it.
_LOCK = ".actdet-lock"

# Temporary names. Those of earlier versions have no machine.
_TEMPORARY = re.compile(r"\..*\.((?P<machine>[0-9a-f]{8})-)?(?P<process>\d+)\.partial(\.\w+)?", re.DOTALL)
_DAY = 86_400


def any_within(paths: Iterable[Path], places: Iterable[Path]) -> bool:
    """Whether one of `paths` is one of `places` or lies in one of them, after following symbolic links."""
    resolved_places = {place.resolve() for place in places}
    for path in paths:
        resolved = path.resolve()
        if not resolved_places.isdisjoint((resolved, *resolved.parents)):
            return True
    return False


def short_name(stem: str, end: str) -> str:
    """Join `stem` and `end` into a file name, and cut the stem if the name would be too long for a file system.

    A stem that was cut ends in a digest of the whole stem, so different names stay different.
    """
    if len(os.fsencode(stem + end)) <= NAME_BYTES:
        return stem + end
    tail = "~" + hashlib.sha256(os.fsencode(stem)).hexdigest()[:12] + end

    # The cut may fall in the middle of a character, and a stem may hold bytes that are no characters at all: both are
    # left out.
    room = max(NAME_BYTES - len(os.fsencode(tail)), 0)
    head = os.fsencode(stem)[:room].decode(errors="ignore")
    return head + tail


def temporary_name(path: Path) -> str:
    """The name, in the folder of `path`, under which this process writes before it renames the file to `path`."""
    return short_name(f".{path.stem}", f".{_machine()}-{os.getpid()}.partial{path.suffix}")


@cache
def _machine() -> str:
    """What tells the process numbers of this machine, or of this container, from those of others: 8 digits."""
    with suppress(OSError):
        numbering = os.readlink("/proc/self/ns/pid")
        return hashlib.sha256(f"{os.uname().nodename} {numbering}".encode()).hexdigest()[:8]
    return "0" * 8


def is_temporary(path: Path) -> bool:
    """Whether `path` has a temporary name, of any process."""
    return _TEMPORARY.fullmatch(path.name) is not None


def is_abandoned(path: Path) -> bool:
    """Whether `path` is a temporary file whose process has ended.

    What goes on on another machine that shares the folder is not known here: its files count as abandoned a day after
    they were last written to.
    """
    found = _TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    machine = found["machine"]
    process = int(found["process"])
    if machine is not None and machine != _machine():
        with suppress(FileNotFoundError):
            return time.time() - path.lstat().st_mtime > _DAY
        return False

    try:
        # Signal 0 is never delivered; sending it only tells whether the process exists.
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        # The process exists, but belongs to somebody else.
        pass
    return False


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in `folder` whose processes were killed while they wrote."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_abandoned(path):
                path.unlink(missing_ok=True)


def check_own(paths: Iterable[Path], is_own: Callable[[Path], bool]) -> None:
    """Refuse to replace files that this program did not write.

    Args:
        paths: Files that are about to be written. Those that do not exist yet are fine.
        is_own: Whether this program wrote the file.

    Raises:
        ActdetError: For the first file that exists and that is not this program's own.
    """
    for path in paths:
        if os.path.lexists(path) and not is_own(path):
            raise ActdetError(f"{path} was not written by this command and would be replaced: choose another folder")


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Context manager: while active, no other process becomes the sole writer of `folder`.

    The folder is made if it does not exist, and removed at the end if it is still empty. What killed processes left
    half-written in it, or in a folder that lies in it, is removed at the start. The lock ends with the process that
    holds it, even if that process is killed.

    Raises:
        DataError: If another process is the writer now.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder / _LOCK, folder):
            with suppress(OSError):
                for place in (folder, *filter(Path.is_dir, folder.iterdir())):
                    remove_abandoned(place)
            yield
    finally:
        if is_new:
            # The system refuses to remove a folder that something was written to, and so keeps it.
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def sole_writer_of(path: Path) -> Iterator[None]:
    """Context manager: while active, no other process becomes the sole writer of the result `path`.

    For folders in which several processes may write different results at a time.

    Raises:
        DataError: If another process is the writer now.
    """
    with _locked(path.with_name(short_name(f".{path.name}", _LOCK)), path):
        yield


@contextmanager
def _locked(lock: Path, place: Path) -> Iterator[None]:
    """Context manager: while active, the file `lock` is locked. It is removed at the end.

    Raises:
        DataError: If another process holds the lock, and so writes to `place`.
    """
    descriptor = _lock(lock, place)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def _lock(path: Path, place: Path) -> int:
    """Open the file `path` and lock it.

    Returns:
        The descriptor of the open file. Closing it gives the lock back.

    Raises:
        DataError: If another process holds the lock, and so writes to `place`.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

            # The process that held the lock before may have removed the file since it was opened here. Then the lock is
            # on a file that nobody else can see, and the next round opens the new one.
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                problem = "another actdet process is writing there: wait until it ends, or choose another folder"
                raise DataError(place, problem) from None

            # Some file systems, mostly of networks, have no locks. Then commands are not kept apart.
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager: yields a temporary path to write to, which takes the place of `path` if no error is raised.

    Raises:
        DataError: If the disk refuses. `path` is then as it was before.
    """
    temporary = path.with_name(temporary_name(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary

        # The content has to be on the disk before the name is, or a power failure could leave an empty file.
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
    """Write `value` to `path` as indented JSON, all of it or nothing.

    Raises:
        DataError: If the disk refuses, or if a number is NaN or infinite.
    """
    text = to_json(path, value, indent=2)
    write_bytes(path, (text + "\n").encode())


def to_json(path: Path, value: Any, *, indent: int | None = None) -> str:
    """Format `value` as JSON for the file `path`.

    Raises:
        DataError: If a number is NaN or infinite, which JSON cannot express.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise DataError(path, "cannot be written: one of its numbers is not finite") from error


def read_own_json(path: Path) -> Any:
    """Read the JSON that this program may have written to `path`; None if there is none that can be read.

    `actdet.data.reading.read_json_file` reads what users give.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None

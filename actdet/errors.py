"""The errors that actdet raises for what a user typed, downloaded or recorded: one line that says what to do."""

from __future__ import annotations

import errno
import os


class ActdetError(Exception):
    """Something outside the program is wrong; its text is one line for the user."""


class ReadError(ActdetError):
    """What decodes has failed, whatever it was to decode."""


class Stopped(ActdetError):
    """The user asked a run to stop, and it has saved its state."""


class DataError(ActdetError):
    """A file cannot be used: `DataError(path, problem, line)` reads `path:line: problem`."""

    def __init__(self, path: str | os.PathLike[str], problem: str, line: int | None = None) -> None:
        self.path, self.problem, self.line = os.fspath(path), problem, line
        where = self.path if line is None else f"{self.path}:{line}"
        super().__init__(f"{where}: {problem}")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, int | None]]:
        """So that it can be sent from one process to another."""
        return type(self), (self.path, self.problem, self.line)


# What the system, the C++ library and PyTorch say where memory or threads run out.
_SHORT_OF_MEMORY = (
    "Cannot allocate memory",
    "DefaultCPUAllocator",
    "bad_alloc",
    "can't start new thread",
    "failed to map segment",
    "out of memory",
)


def shortage(error: BaseException) -> str | None:
    """What the system has too little of, and what to do, where that is what `error` says."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open for the limit that is set: raise it (ulimit -n), or use fewer --workers"
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _SHORT_OF_MEMORY):
        return "too little memory: end other programs, raise the limit that is set (ulimit -v), or ask for less"
    return None

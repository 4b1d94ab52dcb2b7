"""The errors that actdet raises for what a user typed, downloaded or recorded.

Each carries a message of one line that says what is wrong and what to do about it.
"""

from __future__ import annotations

import errno
import os


class ActdetError(Exception):
    """Something outside the program is wrong. The message is one line for the user."""


class ReadError(ActdetError):
    """Decoding itself failed, whichever file it was working on."""


class Stopped(ActdetError):
    """The user asked a run to stop, and the run has saved its state."""


class SettingError(ActdetError, ValueError):
    """A setting has a value that it cannot have. Python code that expects a ValueError gets one."""


class DataError(ActdetError):
    """A file cannot be used. The message reads `path: problem`, or `path:line: problem` if there is a line.

    Args:
        path: The file or folder.
        problem: What is wrong with it and what to do, as a sentence that goes on from the file's name.
        line: Number of the line in the file that is wrong, from 1.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, line: int | None = None) -> None:
        self.path = os.fspath(path)
        self.problem = problem
        self.line = line

        place = self.path if line is None else f"{self.path}:{line}"
        super().__init__(f"{place}: {problem}")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, int | None]]:
        """Let the error be sent from one process to another."""
        return type(self), (self.path, self.problem, self.line)


# What the system, the C++ library and PyTorch say when memory or threads run out.
_SHORT_OF_MEMORY = (
    "Cannot allocate memory",
    "DefaultCPUAllocator",
    "bad_alloc",
    "can't start new thread",
    "failed to map segment",
    "out of memory",
)


def shortage(error: BaseException) -> str | None:
    """Say what the system has too little of, and what to do, if that is what `error` is about.

    Args:
        error: Any error.

    Returns:
        One line for the user; None if neither the error nor what it was raised from is about that.
    """
    cause: BaseException | None = error
    while cause is not None:
        problem = _shortage_of(cause)
        if problem is not None:
            return problem
        cause = cause.__cause__
    return None


def _shortage_of(error: BaseException) -> str | None:
    """What `shortage` says of an error by itself."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open: close other programs, or raise the limit (ulimit -n)"
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _SHORT_OF_MEMORY):
        return "too little memory: close other programs, raise the memory limit (ulimit -v), or ask for less"
    return None

"""The errors that actdet raises for what a user typed, downloaded or recorded: one line that says what to do."""

from __future__ import annotations

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

"""What running the command `actdet` leaves behind, its processes, and a disk on which it may run out of space."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a run of the command left behind."""

    code: int
    """Its exit status."""
    out: str
    """Its stdout."""
    err: str
    """Its stderr."""

    @property
    def complaints(self) -> list[str]:
        """The lines on stderr that are no progress bar."""
        return lines_without_bars(self.err)

    def complaint(self) -> str:
        """The one line of an error, after checking that there is one and nothing else."""
        assert self.code == 1, (self.code, self.err)
        assert "Traceback" not in self.err + self.out
        assert len(self.complaints) == 1, self.complaints
        assert self.complaints[0].startswith("actdet: ")
        return self.complaints[0].removeprefix("actdet: ")


Actdet = Callable[..., Outcome]


def lines_without_bars(text: str) -> list[str]:
    """The lines of what was printed that are neither empty nor a progress bar."""
    lines = [line.strip() for line in re.split("[\r\n]", text)]
    return [line for line in lines if line and not re.search(r"\[\d\d:\d\d[^]]*\]$", line)]


def leftovers(folder: Path) -> list[Path]:
    """Temporary files that should have taken another's place or been removed."""
    return [path for path in folder.rglob("*") if "partial" in path.name or path.suffix == ".tmp"]


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Context manager: files can grow to `size` bytes only, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def group_ends(group: int) -> bool:
    """Whether within seconds no process of the group is left: those that tidy up end last."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False

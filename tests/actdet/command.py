"""What running the command `actdet` leaves behind, its processes, and a disk on which it may run out of space."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines on stderr that are no progress bar."""
        lines = (line.strip() for line in re.split("[\r\n]", self.err))
        return [line for line in lines if line and not re.search(r"\[\d\d:\d\d[^]]*\]$", line)]

    def complaint(self) -> str:
        """The one line of an error, and that it is one."""
        assert self.code == 1, (self.code, self.err)
        assert "Traceback" not in self.err + self.out
        assert len(self.complaints) == 1, self.complaints
        assert self.complaints[0].startswith("actdet: ")
        return self.complaints[0].removeprefix("actdet: ")


Actdet = Callable[..., Outcome]


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Within: files can grow to so many bytes only, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def group_ends(group: int) -> bool:
    """Whether no process of the group is left, within seconds: those that tidy up end last."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False

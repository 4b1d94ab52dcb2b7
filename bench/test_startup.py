"""How long the command `actdet` takes before it does anything: what its imports cost, in seconds of a core.

Each command line ends where its work would begin, so nothing else is counted, and no file is read.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

ROUNDS = 3
ABSENT = "no/such/place"

# Each with its status, and the most seconds of a core that it may take.
STARTS = {
    ("--help",): (0, 1.0),
    ("--version",): (0, 1.0),
    ("train", "--help"): (0, 1.0),
    ("train", "data", "--epoch", "3"): (2, 1.0),
    ("check", ABSENT): (1, 2.5),
    ("predict", ABSENT, "video.mp4"): (1, None),
    ("train", ABSENT): (1, None),
}


@pytest.mark.parametrize("words", STARTS, ids=" ".join)
def test_startup(words: tuple[str, ...], record: Callable[..., None]) -> None:
    code, limit = STARTS[words]
    seconds = min(cpu_seconds(words, code) for _ in range(ROUNDS))
    record(kind="start", command=" ".join(("actdet", *words)), cpu_s=seconds, limit_s=limit)
    assert limit is None or seconds <= limit


def cpu_seconds(words: tuple[str, ...], code: int) -> float:
    """Seconds of a core, of user and system, that the command takes until it ends with `code`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "actdet", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == code
    return usage.ru_utime + usage.ru_stime

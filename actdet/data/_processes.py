"""What every spawned process needs, whatever it does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Within: processes that are started never see SIGINT and SIGTERM, which reach the whole group.

    Ending them is for the parent to do, which sees the signals afterwards.
    """
    resource_tracker.ensure_running()  # which unblocks them when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

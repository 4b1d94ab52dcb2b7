"""What every spawned process needs, whatever it does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from threading import Thread


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


def obey_parent() -> None:
    """In a process that was started with `signals_blocked`: SIGTERM ends it if its parent sent it.

    Without, the parent could not end: Python terminates what is still running, then waits for it.
    """
    Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(1)

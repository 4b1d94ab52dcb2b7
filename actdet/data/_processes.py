"""What every spawned process needs, whatever it does, and work spread over such processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from threading import Thread, current_thread, main_thread
from typing import Any

from actdet.errors import ActdetError


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Within: processes that are started never see SIGINT and SIGTERM, which reach the whole group.

    Ending them is for the parent to do, whose own handlers wait until the end of this: an exception in the middle of
    starting a process leaves locks held.
    """
    resource_tracker.ensure_running()  # which unblocks them when it starts
    numbers = (signal.SIGINT, signal.SIGTERM)
    noted: list[int] = []
    handlers = {}
    if current_thread() is main_thread():  # in which the handlers run, whatever thread a signal reaches
        handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, frame: noted.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


def obey_parent() -> None:
    """In a process that was started with `signals_blocked`: SIGTERM ends it if its parent sent it.

    Without, the parent could not end: Python terminates what is still running, then waits for it.
    """
    Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(1)


def run_all(
    function: Callable[..., object], jobs: Sequence[tuple[Any, ...]], workers: int, progress: Callable[[int], None]
) -> None:
    """`function(*job)` for all jobs, in that many spawned processes (0: one per CPU core); `progress(done)` after each.

    Raises what the first that failed raised, or an ActdetError where a process died, and leaves none running.
    """
    spawn = multiprocessing.get_context("spawn")
    stopping = spawn.RawValue(ctypes.c_bool, False)  # without a lock, which a killed process would keep
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    try:
        with ProcessPoolExecutor(workers, spawn, _start_worker, (stopping,)) as pool:
            try:
                with signals_blocked():
                    waiting = [pool.submit(function, *job) for job in jobs]
                for done, job in enumerate(as_completed(waiting), 1):
                    job.result()
                    progress(done)
            except BaseException:
                stopping.value = True
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise ActdetError("a process died; use fewer --workers if memory ran out") from None


_stopping: ctypes.c_bool


def _start_worker(stopping: ctypes.c_bool) -> None:
    global _stopping
    _stopping = stopping
    obey_parent()


class UnwantedError(Exception):
    """Nobody waits for this work any more."""


def check_wanted() -> None:
    """To be called now and then by the function that `run_all` runs; raises UnwantedError where it may stop."""
    if _stopping.value:
        raise UnwantedError

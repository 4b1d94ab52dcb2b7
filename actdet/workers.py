"""Spreads work over spawned processes, and gives every spawned process what it needs, whatever it does.

A spawned process must not see the signals that the user sends to the whole group, must end when its parent ends, and
must not be interrupted while it starts. `run_all` does all of that for a list of jobs.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from threading import Thread, current_thread, main_thread
from typing import Any, TypeVar

from actdet.errors import ActdetError

T = TypeVar("T")

# The signals by which a user or a system asks a program to end.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# How often a spawned process looks whether its parent is still there, in seconds.
_PARENT_CHECK = 2


@contextmanager
def signals_deferred(note: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Context manager: while active, a SIGINT or SIGTERM is only noted, and it is handled at the end.

    An exception raised by a handler in the middle of starting or ending a process, or of handing work to a thread,
    would leave locks held.

    Args:
        note: Called whenever a signal is noted.
    """
    noted: list[int] = []

    # Python runs handlers in the main thread, whichever thread a signal reaches, and only there can they be replaced.
    handlers = {}
    if current_thread() is main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler

    def defer(number: int, frame: object) -> None:
        noted.append(number)
        note()

    for number in handlers:
        signal.signal(number, defer)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Context manager: processes that are started while it is active never see SIGINT and SIGTERM.

    Such signals reach every process of a group. The parent, which sees them after the block, ends its children itself.
    """
    with signals_deferred():
        # The resource tracker unblocks signals when it starts, so it has to be running before they are blocked.
        resource_tracker.ensure_running()

        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Make this process, which was started with `signals_blocked`, end when its parent ends or sends it SIGTERM.

    Without this the parent could not end: Python sends SIGTERM to the processes that are still running, and then waits
    for them.
    """
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    """Wait until the parent is gone or sends SIGTERM, and end this process then."""
    parent = multiprocessing.parent_process()
    while parent and os.getppid() == parent.pid:
        received = signal.sigtimedwait({signal.SIGTERM}, _PARENT_CHECK)
        if received and received.si_pid == parent.pid:
            break
    os._exit(1)


def run_all(
    function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int, progress: Callable[[int], None]
) -> list[T]:
    """Run `function(*job)` for every job in spawned processes, of which none is left at the end.

    A signal is handled when the work has ended. The work ends soon after a signal if `function` iterates through
    `while_wanted`; a second signal kills the processes.

    Args:
        function: What to run. It must be importable, and its results picklable.
        jobs: The arguments of each call.
        workers: Number of processes; 0 for one per CPU core.
        progress: Called with the number of finished jobs after each of them.

    Returns:
        The results, in the order of the jobs.

    Raises:
        ActdetError: If a process died.
        Exception: Whatever the first job that failed raised.
    """
    spawn = multiprocessing.get_context("spawn")

    # It has no lock, because a process that is killed would keep the lock forever.
    stopping = spawn.RawValue(ctypes.c_bool, False)
    children: list[BaseProcess] = []

    def stop() -> None:
        # The first signal only asks the jobs to stop. The second one kills those that do not.
        if stopping.value:
            for child in children:
                child.kill()
        stopping.value = True

    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    try:
        with signals_deferred(stop), ProcessPoolExecutor(workers, spawn, _start_worker, (stopping,)) as pool:
            try:
                others = set(multiprocessing.active_children())
                with signals_blocked():
                    waiting = [pool.submit(function, *job) for job in jobs]

                    # The pool's thread waits for the processes that it knew when it was last woken. One more job wakes
                    # it, so that it notices if the process that was started last dies.
                    pool.submit(int)
                children += set(multiprocessing.active_children()) - others

                for done, job in enumerate(as_completed(waiting), 1):
                    job.result()
                    progress(done)
                return [job.result() for job in waiting]
            except BaseException:
                stopping.value = True
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise ActdetError("a process died: if memory ran out, fewer processes need less") from None


# In a process that `run_all` started: the flag that all of them share. It says whether the work should stop.
_stopping = ctypes.c_bool(False)


def _start_worker(stopping: ctypes.c_bool) -> None:
    """Prepare a process of `run_all`."""
    global _stopping
    _stopping = stopping
    exit_with_parent()


class UnwantedError(ActdetError):
    """Nobody waits for this work any more."""

    def __init__(self, text: str = "stopped") -> None:
        super().__init__(text)


def while_wanted(items: Iterable[T]) -> Iterator[T]:
    """Give the items one by one, inside a function that `run_all` runs, as long as its work is wanted.

    Raises:
        UnwantedError: If the work should stop.
    """
    for item in items:
        if _stopping.value:
            raise UnwantedError
        yield item

"""What every spawned process needs, whatever it does, and work spread over such processes."""

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
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_deferred(note: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within: a SIGINT or SIGTERM is only noted, and handled at the end.

    What raises in the middle of starting or ending a process, or of handing work to a thread, leaves locks held.
    """
    noted: list[int] = []
    handlers = {}
    if current_thread() is main_thread():  # in which the handlers run, whatever thread a signal reaches
        handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

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
    """Within: processes that are started never see SIGINT and SIGTERM, which reach the whole group.

    Ending them is for the parent to do, which sees the signals afterwards.
    """
    with signals_deferred():
        resource_tracker.ensure_running()  # which unblocks them when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent() -> None:
    """In a process that was started with `signals_blocked`: SIGTERM of its parent ends it, and the parent's end.

    Without, the parent could not end: Python terminates what is still running, then waits for it.
    """
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent and os.getppid() == parent.pid:
        received = signal.sigtimedwait({signal.SIGTERM}, 2)
        if received and received.si_pid == parent.pid:
            break
    os._exit(1)


def run_all(
    function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int, progress: Callable[[int], None]
) -> list[T]:
    """`function(*job)` of all jobs, in that many spawned processes (0: one per CPU core); `progress(done)` after each.

    Raises what the first that failed raised, or an ActdetError where a process died, and leaves none running. A signal
    is handled when the work has ended, which it makes end soon where `function` uses `while_wanted`. A second one kills
    the processes.
    """
    spawn = multiprocessing.get_context("spawn")
    stopping = spawn.RawValue(ctypes.c_bool, False)  # without a lock, which a killed process would keep

    children: list[BaseProcess] = []

    def stop() -> None:
        if stopping.value:  # asked for a second time
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
                    pool.submit(int)  # wakes its thread, which may not know the last process yet and miss its death
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
        raise ActdetError("a process died; use fewer --workers if memory ran out") from None


_stopping = ctypes.c_bool(False)


def _start_worker(stopping: ctypes.c_bool) -> None:
    global _stopping
    _stopping = stopping
    obey_parent()


class UnwantedError(ActdetError):
    """Nobody waits for this work any more."""

    def __init__(self, text: str = "stopped") -> None:
        super().__init__(text)


def while_wanted(items: Iterable[T]) -> Iterator[T]:
    """The items, within the function that `run_all` runs; raises UnwantedError where that may stop."""
    for item in items:
        if _stopping.value:
            raise UnwantedError
        yield item

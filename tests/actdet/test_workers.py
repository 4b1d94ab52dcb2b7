"""All work in spawned processes is done, or no process is left, whatever happens to one of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from actdet.errors import ActdetError
from actdet.workers import run_all, signals_blocked
from tests.actdet.command import group_ends

# What processes run: the one never ends, the other ends when it is no longer wanted.
FOR_EVER = "import threading; threading.Event().wait()"
AS_LONG_AS_WANTED = (
    "import itertools\nfrom actdet.workers import while_wanted\nfor _ in while_wanted(itertools.count()): pass"
)


@pytest.mark.parametrize(("jobs", "workers"), [(1, 1), (1, 4), (7, 2), (3, 0)])
def test_every_job_is_done_and_counted(jobs: int, workers: int) -> None:
    done: list[int] = []
    run_all(time.sleep, [(0.01,)] * jobs, workers, done.append)
    assert done == list(range(1, jobs + 1))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("others", [[], [FOR_EVER], [AS_LONG_AS_WANTED, FOR_EVER]])
def test_a_process_that_dies_is_reported_and_takes_the_others_with_it(others: list[str]) -> None:
    died = "import os, time; time.sleep(1); os.kill(os.getpid(), 9)"
    began = time.monotonic()
    with pytest.raises(ActdetError, match=r"^a process died: if memory ran out, fewer processes need less$"):
        run_all(exec, [(died,), *((other,) for other in others)], 3, lambda done: None)
    assert time.monotonic() - began < 30
    assert multiprocessing.active_children() == []


def test_what_fails_first_is_raised_and_the_rest_is_left() -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match=r"^this one$"):
        run_all(exec, [("",), ("raise ValueError('this one')",), (AS_LONG_AS_WANTED,), ("",)], 2, done.append)
    assert len(done) <= 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_for_the_parent_ends_no_work(number: signal.Signals) -> None:
    done: list[int] = []
    run_all(exec, [(f"import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(0.2)",)] * 3, 2, done.append)
    assert done == [1, 2, 3]


def test_an_interrupted_parent_leaves_none() -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(exec, [("",), (AS_LONG_AS_WANTED,)], 2, interrupt)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_processes_have_started(number: signal.Signals) -> None:
    """A mask of this thread would not make it wait if another thread, such as that of a progress bar, takes it."""
    over = threading.Event()
    reached = []
    other = threading.Thread(target=over.wait)
    other.start()
    before = signal.signal(number, signal.default_int_handler)

    def start() -> None:
        with signals_blocked():
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            reached.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert reached
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
        over.set()
        other.join()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs two jobs that never end, once both have begun."""
    text = f"""
import signal
from actdet.workers import run_all
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jobs = [(f"open({str(tmp_path)!r} + '/{{name}}', 'w'); {FOR_EVER}",) for name in "ab"]
    run_all(exec, jobs, 2, lambda done: None)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", text], start_new_session=True, env=environment)
    try:
        while len(list(tmp_path.iterdir())) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_processes_end_when_their_parent_was_killed(script: subprocess.Popen[bytes]) -> None:
    script.kill()
    script.wait()
    assert group_ends(script.pid)


def test_a_second_signal_ends_work_that_does_not_stop(script: subprocess.Popen[bytes]) -> None:
    script.send_signal(signal.SIGINT)
    time.sleep(1)
    assert script.poll() is None
    script.send_signal(signal.SIGINT)
    assert script.wait(20) == -signal.SIGINT
    assert group_ends(script.pid)

"""Times on a GPU, with a clock and a device that are none: how often a call runs, and when a capture is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from bench import measure as measuring
from bench.measure import LEAST_ROUNDS, MOST_REPEATS, MOST_ROUNDS, CaptureFailed, measure


class Machine:
    """In place of the GPU: a call takes `seconds`, and what waits raises while that is forbidden."""

    def __init__(self, seconds: float, *, waits: bool, captures: bool = True) -> None:
        self.seconds, self.waits, self.captures = seconds, waits, captures
        self.now = 0.0
        self.calls = 0
        self.refuses = self.captured = self.captures_now = False
        self.in_graph = 0

    def run(self) -> None:
        if self.captures_now:
            self.in_graph += 1
            return
        if self.refuses and self.waits:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.calls += 1
        self.now += self.seconds

    def replay(self) -> None:
        for _ in range(self.in_graph):
            self.run()

    def forbid(self, mode: str) -> None:
        self.refuses = mode == "error"

    @contextmanager
    def capture(self, graph: Any) -> Iterator[None]:
        self.captured = self.captures_now = True
        yield
        self.captures_now = False
        if not self.captures:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")


class Event:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.at = 0.0

    def record(self) -> None:
        self.at = self.machine.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at)


class Stream:
    def wait_stream(self, other: Any) -> None:
        pass


@contextmanager
def nothing(*_: Any) -> Iterator[None]:
    yield


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], Machine]:
    def install(machine: Machine) -> Machine:
        graph = type("Graph", (), {"replay": lambda self: machine.replay()})
        for name, value in {
            "synchronize": lambda: None,
            "reset_peak_memory_stats": lambda: None,
            "memory_allocated": lambda: 0,
            "max_memory_allocated": lambda: 7,
            "Event": lambda enable_timing: Event(machine),
            "Stream": Stream,
            "current_stream": Stream,
            "stream": nothing,
            "CUDAGraph": graph,
            "graph": machine.capture,
            "set_sync_debug_mode": machine.forbid,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(measuring.time, "perf_counter", lambda: machine.now)
        monkeypatch.setattr(measuring, "count_launches", lambda run: run() or {"launches": 1, "synchronizations": 0})
        monkeypatch.setattr(measuring, "copy_rate", lambda: 1.0)
        return machine

    return install


@pytest.mark.parametrize(("seconds", "most"), [(2.0, 3), (0.5, 5), (0.1, 5), (0.01, 30), (1e-4, 700)])
def test_calls_that_wait_are_not_captured_and_run_few_times(
    seconds: float, most: int, install: Callable[[Machine], Machine]
) -> None:
    """One for the peak, the rounds, and one to count launches: what SciPy does for seconds is done three times."""
    machine = install(Machine(seconds, waits=True))
    row = measure(machine.run)
    assert row["graph_us"] is None
    assert not machine.captured
    assert not machine.refuses
    assert machine.calls <= most
    for figure in ("eager_us", "host_us"):
        assert row[figure]["median"] == pytest.approx(1e6 * seconds)
        assert row[figure]["rounds"] >= (1 if seconds > measuring.PATIENCE else LEAST_ROUNDS)


def test_calls_that_do_not_wait_are_captured(install: Callable[[Machine], Machine]) -> None:
    machine = install(Machine(1e-5, waits=False))
    row = measure(machine.run)
    assert row["graph_us"]["median"] == pytest.approx(10)
    assert row["graph_us"]["rounds"] == MOST_ROUNDS
    assert machine.in_graph == MOST_REPEATS
    assert machine.calls <= 5 + 2 * MOST_ROUNDS * MOST_REPEATS
    assert not machine.refuses


def test_what_is_known_not_to_be_capturable_is_not_tried(install: Callable[[Machine], Machine]) -> None:
    machine = install(Machine(1e-3, waits=False, captures=False))
    assert measure(machine.run, capturable=False)["graph_us"] is None
    assert not machine.captured


def test_a_capture_that_fails_is_no_row(install: Callable[[Machine], Machine]) -> None:
    machine = install(Machine(1e-3, waits=False, captures=False))
    with pytest.raises(CaptureFailed, match="operation failed due to a previous error during capture") as caught:
        measure(machine.run)
    assert "\n" not in str(caught.value)

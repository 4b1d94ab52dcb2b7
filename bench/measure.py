"""Time on a GPU that is not the host's: in a CUDA graph, launch by launch, and what the host spends on it."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch._C._autograd import DeviceType

# A round times so many calls together; quantiles are over rounds.
MOST_REPEATS = 20
MOST_ROUNDS = 30

# Seconds for each figure, but so many rounds at least, unless they take longer than PATIENCE.
SECONDS = 0.15
LEAST_ROUNDS = 3
PATIENCE = 1.0


class CaptureFailed(Exception):
    """A call that waits for nothing could not be captured: what this process measures from now on is wrong."""


def measure(run: Callable[[], Any], *, capturable: bool = True) -> dict[str, Any]:
    """What one call of `run`, which has run before, takes on the device and on the host.

    Args:
        run: the call.
        capturable: whether a capture may be tried where the call waits for nothing that PyTorch knows of.

    Returns:
        Microseconds (median, 10th and 90th percentile), launches, synchronizations, and bytes at the peak. graph_us is
        None where the call cannot be captured, because it waits for the device or its shapes depend on values.

    Raises:
        CaptureFailed: the capture was tried and failed.
    """
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    repeats = min(max(int(0.01 / (time.perf_counter() - start)), 1), MOST_REPEATS)
    peak = torch.cuda.max_memory_allocated() - before

    graph = None
    if capturable and not waits(run):
        # All of them in one graph: to replay one takes the host longer than a small kernel takes the device.
        graph, _ = _times(capture(run, repeats), repeats=1, calls=repeats)
    eager, host = _times(run, repeats)
    return {
        "graph_us": graph,
        "eager_us": eager,
        "host_us": host,
        **count_launches(run),
        "peak_bytes": peak,
        "copy_bytes_per_s": copy_rate(),
    }


def waits(run: Callable[[], Any]) -> bool:
    """Whether a call that runs otherwise waits for the device, which ends it there."""
    with _refuse_waiting():
        try:
            run()
        except RuntimeError:
            return True
    return False


@contextmanager
def _refuse_waiting() -> Iterator[None]:
    """While active, PyTorch raises where the host waits for the device."""
    with warnings.catch_warnings():
        # The mode says of itself that it is a prototype.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(run: Callable[[], Any], calls: int = 1) -> Callable[[], None]:
    """A function that replays so many calls of `run`, which waits for nothing, from a CUDA graph.

    A capture that fails leaves PyTorch's allocator, generator and stream in capture mode.

    Raises:
        CaptureFailed: it did.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                run()
    except RuntimeError as error:
        first = error.__context__ or error
        raise CaptureFailed(str(first).partition("\n")[0]) from error
    return graph.replay


@cache
def copy_rate() -> float:
    """Bytes read and written in a second by a large copy: what this card's memory gives."""
    source = torch.empty(2**29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    device, _ = _times(lambda: target.copy_(source), repeats=5)
    return 2 * source.numel() / (1e-6 * device["median"])


def count_launches(run: Callable[[], Any]) -> dict[str, int]:
    """What CUPTI sees of one call: kernels, copies and fills on the device, and waits of the host."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
    events = profile.events()
    assert events is not None
    on_device = [event for event in events if event.device_type == DeviceType.CUDA]
    waits = [event for event in events if event.name in ("cudaStreamSynchronize", "cudaEventSynchronize")]
    return {"launches": len(on_device), "synchronizations": len(waits)}


def quantiles(times: list[float]) -> dict[str, float]:
    """The median, and the 10th and 90th percentile."""
    deciles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    return {"median": statistics.median(times), "p10": deciles[0], "p90": deciles[-1], "rounds": len(times)}


def _times(run: Callable[[], Any], repeats: int, calls: int = 1) -> tuple[dict[str, float], dict[str, float]]:
    """Quantiles of microseconds a call: on the device, and of the host, from the same rounds.

    Each round runs `run`, which makes `calls` calls, `repeats` times, and begins when the device is idle.
    """
    on_device: list[float] = []
    of_host: list[float] = []
    start = time.perf_counter()
    while True:
        torch.cuda.synchronize()
        first = torch.cuda.Event(enable_timing=True)
        last = torch.cuda.Event(enable_timing=True)
        first.record()
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        of_host.append(1e6 * (time.perf_counter() - began) / (repeats * calls))
        last.record()
        last.synchronize()
        on_device.append(1e3 * first.elapsed_time(last) / (repeats * calls))

        rounds = len(on_device)
        spent = time.perf_counter() - start
        if spent > (SECONDS if rounds >= LEAST_ROUNDS else PATIENCE) or rounds == MOST_ROUNDS:
            return quantiles(on_device), quantiles(of_host)

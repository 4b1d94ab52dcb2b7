"""Time on a GPU that is not the host's: in a CUDA graph, launch by launch, and what the host spends on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

MOST_ROUNDS, MOST_REPEATS = 30, 20  # a round times so many calls together; quantiles are over rounds
SECONDS = 0.15  # for each figure; slow calls are timed one by one, three times at least


def measure(run: Callable[[], Any]) -> dict[str, Any]:
    """Microseconds a call (median, 10th and 90th percentile), launches, synchronisations, and bytes at the peak.

    graph_us is None where the call cannot be captured, because it waits for the device or its shapes depend on values.
    """
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    repeats = min(max(int(0.01 / (time.perf_counter() - start)), 1), MOST_REPEATS)
    peak = torch.cuda.max_memory_allocated() - before
    replay = capture(run)
    return {
        "graph_us": None if replay is None else _device_time(replay, repeats),
        "eager_us": _device_time(run, repeats),
        "host_us": _host_time(run, repeats),
        **count_launches(run),
        "peak_bytes": peak,
        "copy_bytes_per_s": copy_rate(),
    }


def capture(run: Callable[[], Any]) -> Callable[[], None] | None:
    """A function that replays `run` from a CUDA graph, or None."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


@cache
def copy_rate() -> float:
    """Bytes read and written in a second by a large copy: what this card's memory gives."""
    source = torch.empty(2**29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (1e-6 * _device_time(lambda: target.copy_(source), repeats=5)["median"])


def count_launches(run: Callable[[], Any]) -> dict[str, int]:
    """What CUPTI sees of one call: kernels, copies and fills on the device, and waits of the host."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
    events = profile.events()
    on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    waits = [event for event in events if event.name in ("cudaStreamSynchronize", "cudaEventSynchronize")]
    return {"launches": len(on_device), "synchronisations": len(waits)}


def _device_time(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    def once() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end) / repeats

    return _quantiles(once)


def _host_time(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    def once() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return 1e6 * (time.perf_counter() - start) / repeats

    return _quantiles(once)


def quantiles(times: list[float]) -> dict[str, float]:
    """The median, and the 10th and 90th percentile."""
    deciles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    return {"median": statistics.median(times), "p10": deciles[0], "p90": deciles[-1], "rounds": len(times)}


def _quantiles(once: Callable[[], float]) -> dict[str, float]:
    """Those of many rounds, each begun when the device is idle."""
    times, stop = [], time.perf_counter() + SECONDS
    while len(times) < 3 or (len(times) < MOST_ROUNDS and time.perf_counter() < stop):
        torch.cuda.synchronize()
        times.append(once())
    return quantiles(times)

"""Time on a GPU that is not the host's: in a CUDA graph, launch by launch, and what the host spends on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

ROUNDS, REPEATS = 30, 20  # a round times so many calls together; quantiles are over rounds


def measure(run: Callable[[], Any]) -> dict[str, Any]:
    """Microseconds a call (median, 10th and 90th percentile), launches, synchronisations, and bytes at the peak.

    graph_us is None where the call cannot be captured, because it waits for the device or its shapes depend on values.
    """
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    replay = capture(run)
    return {
        "graph_us": None if replay is None else _device_time(replay),
        "eager_us": _device_time(run),
        "host_us": _host_time(run),
        **count_launches(run),
        "peak_bytes": peak,
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


def _device_time(run: Callable[[], Any]) -> dict[str, float]:
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(REPEATS):
            run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / REPEATS)
    return _quantiles(times)


def _host_time(run: Callable[[], Any]) -> dict[str, float]:
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(REPEATS):
            run()
        times.append(1e6 * (time.perf_counter() - start) / REPEATS)
    return _quantiles(times)


def _quantiles(times: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(times, n=10)
    return {"median": statistics.median(times), "p10": deciles[0], "p90": deciles[-1]}

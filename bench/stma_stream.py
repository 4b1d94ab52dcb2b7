"""What a frame of a stream costs STMA with the features that it keeps, and without: milliseconds and arithmetic.

python -m bench.stma_stream [--image-size 224] [--frames 60] [--results FILE]

Without keeping anything, each frame has the last T frames computed anew, as the detector of clips does. The ways take
turns, frame by frame, so that all of them see the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from actdet.files import write_json
from actdet.models.stma.config import StmaConfig
from actdet.models.stma.detector import StmaDetector
from actdet.models.stma.stream import SnippetStream
from bench.conftest import about
from bench.rows import Row

# From how many frames to how many the backbone of clips runs.
INTERVALS = (1, 4, 16)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stma_stream")
    parser.add_argument("--image-size", type=int, default=224, help="the side of the pictures (default: 224)")
    parser.add_argument("--frames", type=int, default=64, help="how many frames are measured (default: 64)")
    parser.add_argument("--results", type=Path, help="write the rows as JSON")
    given = parser.parse_args(words)

    config = StmaConfig(image_size=given.image_size, snippets="last", key="last")
    rows = measure(StmaDetector(config).eval(), given.frames)
    if given.results:
        write_json(given.results, rows)
    print(table(rows))


def measure(network: StmaDetector, frames: int) -> list[Row]:
    """Return a row for each way."""
    size = network.config.image_size
    video = torch.randn(frames + network.config.frames, 3, size, size)
    ways: dict[str, Callable[[Tensor], object]] = {"computed anew": _Anew(network)}
    for interval in INTERVALS:
        ways[f"kept, clip every {interval}"] = SnippetStream(network, clip_every=interval).push

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    flops = dict.fromkeys(ways, 0)
    length = network.config.frames
    with torch.no_grad():
        # The first T frames fill what is kept, and their arithmetic is counted.
        for name, push in ways.items():
            for frame in video[:length]:
                with FlopCounterMode(display=False) as counter:
                    push(frame)
                flops[name] += counter.get_total_flops()

        for frame in video[length:]:
            for name, push in ways.items():
                start = time.perf_counter()
                push(frame)
                seconds[name].append(time.perf_counter() - start)

    return [
        {
            "name": name,
            "image_size": size,
            "median_ms": 1e3 * statistics.median(seconds[name]),
            # A clip is looked at in some frames alone, which a median would not show.
            "mean_ms": 1e3 * statistics.fmean(seconds[name]),
            "gflop": flops[name] / length / 1e9,
        }
        | about()
        for name in ways
    ]


class _Anew:
    """The last T frames, of which nothing is kept but the pixels."""

    def __init__(self, network: StmaDetector) -> None:
        self.network = network
        self.frames: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> object:
        length = self.network.config.frames
        self.frames = [*(self.frames or [frame] * length)[1:], frame]
        return self.network(torch.stack(self.frames, 1)[None])


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| | ms a frame, mean | median | GFLOP |", "| --- | --- | --- | --- |"]
    for row in rows:
        lines.append(f"| {row['name']} | {row['mean_ms']:.1f} | {row['median_ms']:.1f} | {row['gflop']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

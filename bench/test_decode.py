"""Reading video: which frame each reader gives, and how fast; and how long training waits for its clips.

A reader is timed only where it gives the frames that were asked for. The readers of a line take turns, so that whatever
else the machine does slows all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest

from actdet.video.decoding import ClipRequest
from actdet.video.info import probe
from actdet.video.sampling import sample_frames
from bench.decoders import NAMES, OURS, difference_of, fault_of, open_decoder, open_torchcodec, pyav
from bench.measure import quantiles
from bench.numbered import FRAMES as LENGTH
from bench.numbered import VIDEOS, Video, make_videos

SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 3.0, 3, 15  # of each reader of a line
CORES = len(os.sched_getaffinity(0))
CLIPS = 4  # at once for each core, where all are used
FRAMES = 16
WINDOW = (200, 264, 4)  # of 64 frames
Record = Callable[..., None]


class Line(NamedTuple):
    """One line of the table: 16 frames, over all of the file or out of 64 frames, of S x S."""

    video: Video
    regime: str = "uniform"
    size: int = 224
    cores: int = 1

    @property
    def key(self) -> dict[str, str]:
        how = f"{self.regime}, {self.cores} cores" if self.cores > 1 else self.regime
        return {"size": f"{self.video}, to {self.size}x{self.size}", "regime": how}

    def __str__(self) -> str:
        return ", ".join(self.key.values())


LINES = [Line(video, regime) for video in VIDEOS if video.steady for regime in ("uniform", "window")]
LINES += [Line(Video("H.264", 30, steady=False)), Line(Video("H.264", 250), size=112)]
LINES += [Line(Video(codec, 250), cores=CORES) for codec in ("H.264", "VP9") if CORES > 1]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[Video, Path]:
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("line", LINES, ids=str)
def test_decode(record: Record, paths: dict[Video, Path], line: Line) -> None:
    path, size = paths[line.video], (line.size, line.size)
    info = probe(path)
    indices = sample_frames(info, FRAMES) if line.regime == "uniform" else np.arange(*WINDOW)
    at_once = CLIPS * line.cores if line.cores > 1 else 1
    clips = [ClipRequest(info, indices)] * at_once
    reference = pyav(ClipRequest(info, indices), size)
    runs, differences, whys = {}, {}, {}
    with on_cores(line.cores), ExitStack() as stack:
        for name in NAMES:
            try:
                decode = stack.enter_context(open_decoder(name, info, size, line.cores))
                found = decode(clips)
            except Exception as error:
                whys[name] = reason(error, info.path)
                continue
            faults = [fault for clip in found if (fault := fault_of(clip, indices, reference))]
            if faults:
                whys[name] = faults[0]
                continue
            differences[name] = difference_of(found[0], reference)
            runs[name] = lambda decode=decode: decode(clips)
        seconds = in_turns(runs)
    for name in NAMES:
        if name in whys:
            record(kind="time", operation="decode", **line.key, name=name, why=whys[name])
            continue
        times = quantiles([1e6 * each / at_once for each in seconds[name]])
        record(kind="time", operation="decode", **line.key, name=name, wall_us=times)
        rate = 1e6 / times["median"]
        record(
            kind="decode", **line.key, name=name, clips_per_s=rate, bytes_per_s=rate * path.stat().st_size,
            frames_per_s=rate * FRAMES, difference=differences[name],
        )  # fmt: skip
    assert OURS in runs, whys[OURS]


FINDERS: dict[str, Callable[[str], int]] = {
    OURS: lambda path: len(probe(path).pts),
    "PyAV": lambda path: len(packet_times(path)),
    "torchcodec": lambda path: open_torchcodec(path, seek_mode="exact").metadata.num_frames,
}


@pytest.mark.parametrize("video", VIDEOS, ids=str)
def test_index(record: Record, paths: dict[Video, Path], video: Video) -> None:
    """Where are a file's frames? actdet asks once for each file, torchcodec whenever it opens one."""
    path = str(paths[video])
    runs, whys = {}, {}
    with on_cores(1):
        for name, find in FINDERS.items():
            try:
                found = find(path)
            except Exception as error:
                whys[name] = reason(error, path)
                continue
            if found == LENGTH:
                runs[name] = lambda find=find: find(path)
            else:
                whys[name] = f"finds {found} of {LENGTH} frames"
        seconds = in_turns(runs)
    for name in FINDERS:
        times = {"why": whys[name]} if name in whys else {"wall_us": quantiles([1e6 * s for s in seconds[name]])}
        record(kind="time", operation="index", size=str(video), regime="whole file", name=name, **times)
    assert OURS in runs, whys[OURS]


def packet_times(path: str) -> list[int | None]:
    with av.open(path) as container:
        return [packet.pts for packet in container.demux(video=0) if packet.size]


def reason(error: Exception, *paths: str) -> str:
    """Of an opponent's failure, without this machine's paths."""
    if isinstance(error, ImportError):
        return "not installed"
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    for path in paths:
        text = text.replace(path, "the file")
    return text


@contextmanager
def on_cores(cores: int) -> Iterator[None]:
    """On one core, whatever threads a reader starts."""
    allowed = os.sched_getaffinity(0)
    if cores == 1:
        os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def in_turns(runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of calls: a slow one has fewer."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(MOST_ROUNDS):
        for name, run in runs.items():
            if len(seconds[name]) < LEAST_ROUNDS or sum(seconds[name]) < SECONDS:
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    return seconds


@pytest.mark.timeout(900)
def test_stall(record: Record, tmp_path: Path) -> None:
    """Of the demo's training: in its first epoch clips are decoded, which are kept for the others."""
    command = [sys.executable, "-m", "bench.stall", str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for epoch, figures in enumerate(found["epochs"], 1):
        record(kind="stall", size=found["size"], reader=found["reader"], epoch=epoch, **figures)

"""Readers turn lists of (video, frame indices) into uint8 tensors, in order and ahead of time.

Two of them stand behind one interface: PyAV in processes of its own, here, and NVIDIA DALI, in `dali.py`.
Their pixels differ slightly: a detector is evaluated with the reader that it was trained with.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from typing import Protocol, Self

import numpy as np
import torch
import torch.multiprocessing  # so that a tensor sent between processes travels as shared memory

from actdet.data.video import ClipRequest, VideoInfo, decode_frames
from actdet.errors import ActdetError, DataError

# Batches that each process may be asked for before the first of them is taken.
_AHEAD = 2

# Decoded clips that a process keeps: each up to the first size, together up to the second.
_SHORT_BYTES, _KEPT_BYTES = 64 * 2**20, 2**30

# What DALI decodes: on a CPU its wheels leave out all but the first three.
_CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
_GPU_CODECS = _CPU_CODECS | {"h264", "hevc", "av1", "mpeg4"}


class Reader(Protocol):
    """Decodes batches; `close` it, or use it as a context, to end its processes."""

    name: str  # pyav, dali-cpu or dali-gpu

    def read(self, batches: Iterable[Sequence[ClipRequest]]) -> Iterator[torch.Tensor]:
        """One uint8 (B, T, H, W, 3) tensor for each batch, in order; DataError for a file that fails.

        The clips of a batch have the same number of frames.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def choose_reader(name: str, device: torch.device, videos: Iterable[VideoInfo] = ()) -> tuple[str, str]:
    """The reader for `name` (auto, pyav or dali) as pyav, dali-cpu or dali-gpu, and why in a few words.

    Raises ActdetError where DALI is asked for by name and cannot do it.
    """
    if name == "pyav":
        return "pyav", "asked for"
    if name == "auto" and device.type != "cuda":
        return "pyav", "DALI decodes few codecs on a CPU"
    reader = "dali-gpu" if device.type == "cuda" else "dali-cpu"
    problem = _dali_problem(reader, videos)
    if name == "auto":
        return ("pyav", problem) if problem else (reader, "decodes on the GPU")
    if problem:
        raise ActdetError(f"reader dali cannot be used: {problem}; use reader pyav")
    return reader, "asked for"


def open_reader(name: str, size: tuple[int, int], *, workers: int = 1) -> Reader:
    """The reader that `choose_reader` named, giving clips of `size` (height, width).

    `workers` are processes of PyAV (0 decodes in this one) or threads of DALI.
    """
    if name == "pyav":
        return PyAVReader(size, workers)
    from actdet.data.dali import DALIReader  # only here is DALI needed

    return DALIReader(name, size, max(1, workers))


def _dali_problem(reader: str, videos: Iterable[VideoInfo]) -> str:
    """Why DALI cannot read these videos; empty if it can."""
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        return "DALI is not installed (pip install 'actdet[cuda13]')"
    codecs = _GPU_CODECS if reader == "dali-gpu" else _CPU_CODECS
    for video in videos:
        if video.codec not in codecs:
            return f"{reader} decodes only {', '.join(sorted(codecs))}, and {video.path} is {video.codec}"
        # DALI numbers frames by packets and their timestamps.
        if video.skipped:
            return f"{video.path} has {video.skipped} packets without a frame, which DALI would count as frames"
        if not video.timed and video.codec != "mjpeg":
            return f"{video.path} has no timestamps, so DALI would mix up its frames"
    return ""


class PyAVReader:
    """Decodes with PyAV: whole batches, each in one of `workers` processes that live until `close`.

    The processes are spawned, not forked, at the first `read`: a script that reads with workers > 0 keeps its
    own start under `if __name__ == "__main__":`.
    """

    name = "pyav"

    def __init__(self, size: tuple[int, int], workers: int = 1) -> None:
        self._size = size
        self._count = workers
        self._workers: list[_Worker] = []
        self._decoder: _Decoder | None = None
        self._ticket = 0

    def read(self, batches: Iterable[Sequence[ClipRequest]]) -> Iterator[torch.Tensor]:
        if not self._count:
            self._decoder = self._decoder or _Decoder(self._size)
            yield from map(self._decoder.decode, batches)
            return
        if not self._workers:
            self._workers = [_Worker(self._size) for _ in range(self._count)]
        waiting: deque[tuple[_Worker, int]] = deque()
        for batch in batches:
            worker = self._workers[self._ticket % self._count]
            waiting.append((worker, self._ticket))
            worker.ask(self._ticket, batch)
            self._ticket += 1
            if len(waiting) == _AHEAD * self._count:
                yield self._answer(*waiting.popleft())
        while waiting:
            yield self._answer(*waiting.popleft())

    def _answer(self, worker: _Worker, ticket: int) -> torch.Tensor:
        answer = worker.answer(ticket)
        if isinstance(answer, torch.Tensor):
            return answer
        raise DataError(*answer)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []
        self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_Failure = tuple[str, str, int | None]  # what a DataError is made of; the exception itself does not pickle


class _Worker:
    """A decoding process and the pipe to it. It answers in the order in which it was asked."""

    def __init__(self, size: tuple[int, int]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, size), daemon=True)
        self._process.start()
        # With this end closed, a dead process reads as the end of the pipe.
        theirs.close()

    def ask(self, ticket: int, batch: Sequence[ClipRequest]) -> None:
        # A process that has died is reported where its answer is missed.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send((ticket, batch))

    def answer(self, ticket: int) -> torch.Tensor | _Failure:
        """The answer to that ticket; those to earlier ones, which nobody waits for any more, are dropped."""
        try:
            while True:
                wait([self._pipe, self._process.sentinel])
                if not self._pipe.poll():
                    raise EOFError
                answered, answer = self._pipe.recv()
                if answered == ticket:
                    return answer
        except (EOFError, OSError):
            self._process.join(1)
            how = f"exit code {self._process.exitcode}"
            raise ActdetError(f"a decoding process died ({how}); use fewer workers if memory ran out") from None

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, size: tuple[int, int]) -> None:
    """Runs in the process: decodes what comes through the pipe until its other end is closed."""
    # Ctrl-C, and a supervisor's SIGTERM, reach the whole group; ending the workers is for the parent to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    decoder = _Decoder(size)
    with suppress(EOFError, OSError):
        while True:
            ticket, batch = pipe.recv()
            try:
                answer = decoder.decode(batch)
            except DataError as error:
                answer = (error.path, error.problem, error.line)
            pipe.send((ticket, answer))


class _Decoder:
    """Decodes batches, and keeps short clips whole, at their small size, for the epochs to come.

    What is kept is at most _KEPT_BYTES; the clip that was not asked for the longest goes first.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bytes = 0

    def decode(self, batch: Sequence[ClipRequest]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self._frames(video, indices) for video, indices in batch]))

    def _frames(self, video: VideoInfo, indices: np.ndarray) -> np.ndarray:
        if len(video.pts) * math.prod(self._size) * 3 > _SHORT_BYTES:
            return decode_frames(video, indices, self._size)
        if video.path not in self._kept:
            frames = decode_frames(video, np.arange(len(video.pts)), self._size)
            self._kept[video.path] = frames
            self._bytes += frames.nbytes
            while self._bytes > _KEPT_BYTES:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return frames[indices]
        self._kept.move_to_end(video.path)
        return self._kept[video.path][indices]

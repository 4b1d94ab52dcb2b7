"""Readers turn requests, (video, frame indices), into uint8 tensors, clip by clip, in order and ahead of time.

Two of them stand behind one interface: PyAV in processes of its own, here, and NVIDIA DALI, in `dali.py`.
Their pixels differ slightly: a detector is evaluated with the reader that it was trained with.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import resource
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.util import get_temp_dir
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, Self

import torch
import torch.multiprocessing  # so that a tensor sent between processes travels as shared memory

from actdet.errors import ActdetError, DataError, ReadError
from actdet.video.decoding import ClipRequest, VideoInfo, decode_frames
from actdet.video.disk_cache import DiskCache
from actdet.workers import obey_parent, signals_blocked

# Seconds without any work after which a decoding process counts as hung.
PATIENCE = 120.0

# Decoded clips that may lie in shared memory (/dev/shm), where there is at least one for each process.
_MOST_AHEAD = 2**28

# A clip whose frames take more than this is decoded anew each time, and not kept whole on the disk.
_MOST_KEPT = 2**30

# What DALI decodes: on a CPU its wheels leave out all but the first three.
_CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
_GPU_CODECS = _CPU_CODECS | {"h264", "hevc", "av1", "mpeg4"}


class Reader(Protocol):
    """Decodes clips; `close` it, or use it as a context, to end its processes."""

    name: str  # pyav, dali-cpu or dali-gpu

    def read(self, requests: Iterable[ClipRequest], ahead: int = 8) -> Iterator[torch.Tensor | DataError]:
        """For each request, in order, one uint8 (T, H, W, 3) tensor, or what is wrong with its file.

        ahead: clips that may be decoded before the first of them is taken. Raises ActdetError where it cannot go on.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def choose_reader(
    name: str, device: torch.device, videos: Iterable[VideoInfo] = (), *, disk_cache: bool = False
) -> tuple[str, str]:
    """The reader for `name` (auto, pyav or dali) as pyav, dali-cpu or dali-gpu, and why in a few words.

    Raises ActdetError where DALI is asked for by name and cannot do it.
    """
    if name == "pyav":
        return "pyav", "asked for"
    if disk_cache:
        if name == "dali":
            raise ActdetError("reader dali keeps nothing on the disk: use reader pyav, or no --disk-cache")
        return "pyav", "it keeps decoded clips on the disk"
    if name == "auto" and device.type != "cuda":
        return "pyav", "DALI decodes few codecs on a CPU"
    reader = "dali-gpu" if device.type == "cuda" else "dali-cpu"
    problem = _dali_problem(reader, list(videos))
    if name == "auto":
        return ("pyav", problem) if problem else (reader, "decodes on the GPU")
    if problem:
        raise ActdetError(f"reader dali cannot be used: {problem}; use reader pyav")
    return reader, "asked for"


def open_reader(name: str, size: tuple[int, int], *, workers: int = 1, disk_cache: DiskCache | None = None) -> Reader:
    """The reader that `choose_reader` named, giving clips of `size` (height, width).

    workers: processes of PyAV (0 decodes in this one) or threads of DALI. disk_cache: where PyAV keeps what it decoded.
    """
    if name == "pyav":
        return PyAVReader(size, workers, disk_cache)
    from actdet.video.dali import DALIReader  # only here is DALI needed

    return DALIReader(name, size, max(1, workers))


def _dali_problem(reader: str, videos: Sequence[VideoInfo]) -> str:
    """Why DALI cannot read these videos on this machine; empty if it can."""
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        return "DALI is not installed (pip install 'actdet[cuda13]')"
    codecs = _GPU_CODECS if reader == "dali-gpu" else _CPU_CODECS
    for video in videos:
        if video.codec not in codecs:
            return f"{reader} decodes only {', '.join(sorted(codecs))}, and {video.path} is {video.codec}"
        # DALI numbers frames by packets and their timestamps.
        if video.skipped:
            return f"{video.path} has {video.skipped} packets without a frame, which DALI would count as frames"
        if len(video.places):
            return f"{video.path} has timestamps that repeat or go back, so DALI would mix up its frames"
        if not video.alone:
            return f"{video.path} has several video streams, of which DALI may take another"
        if not video.timed and video.codec != "mjpeg":
            return f"{video.path} has no timestamps, so DALI would mix up its frames"
    if reader == "dali-cpu":
        return ""

    if not _has_video_decoder():
        return (
            "the driver's video decoder, libnvcuvid.so.1, is not found (in a container it needs "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
        )
    try:
        from actdet.video.dali import refused
    except ActdetError as error:
        return str(error)
    return refused(reader, videos)


def _has_video_decoder() -> bool:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return False
    return True


def _allow_open_files() -> None:
    """As many as the system permits: every tensor that another process sends holds one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class PyAVReader:
    """Decodes with PyAV, in `workers` processes of one codec thread each, which live until `close`.

    The processes are spawned, not forked, at the first `read`: a script that reads with workers > 0 keeps its
    own start under `if __name__ == "__main__":`.
    """

    name = "pyav"

    def __init__(self, size: tuple[int, int], workers: int = 1, disk_cache: DiskCache | None = None) -> None:
        self._size = size
        self._disk_cache = disk_cache
        self._count = workers
        self._workers: list[_Worker] = []

    def read(self, requests: Iterable[ClipRequest], ahead: int = 8) -> Iterator[torch.Tensor | DataError]:
        if not self._count:
            yield from (_decode(request, self._size, self._disk_cache) for request in requests)
            return
        if not self._workers:
            _allow_open_files()
            self._workers = [_Worker(self._size, self._disk_cache) for _ in range(self._count)]
        for worker in self._workers:
            worker.drop()  # what a pass that was given up has left
        waiting: deque[tuple[_Worker, int]] = deque()
        todo = deque(requests)
        room = _MOST_AHEAD
        while todo or waiting:
            while todo and (len(waiting) < self._count or (len(waiting) < ahead and room > 0)):
                request = todo.popleft()
                worker, size = min(self._workers, key=_Worker.busy), len(request.indices) * math.prod(self._size) * 3
                worker.ask(request)
                waiting.append((worker, size))
                room -= size
            worker, size = waiting.popleft()
            yield worker.answer()
            room += size

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Worker:
    """A decoding process and the pipe to it. It answers in the order in which it was asked."""

    def __init__(self, size: tuple[int, int], disk_cache: DiskCache | None) -> None:
        spawn = multiprocessing.get_context("spawn")
        get_temp_dir()  # which the process needs to send tensors, and could not remove: it is killed
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, size, disk_cache), daemon=True)
        with signals_blocked():
            self._process.start()
        # With this end closed, a dead process reads as the end of the pipe.
        theirs.close()
        self._outbox: SimpleQueue[ClipRequest | None] = SimpleQueue()
        Thread(target=self._send, daemon=True).start()
        self._asked: deque[str] = deque()  # files of the requests that have no answer yet
        self._answers: deque[torch.Tensor | DataError | ReadError] = deque()
        self._dropped = 0

    def ask(self, request: ClipRequest) -> None:
        self._asked.append(request.video.path)
        self._outbox.put(request)

    def _send(self) -> None:
        """In a thread: a full pipe to a process that hangs must not keep the others waiting."""
        # A process that has died is reported where its answer is missed.
        with suppress(OSError):
            while (request := self._outbox.get()) is not None:
                self._pipe.send(request)

    def busy(self) -> int:
        """How many requests it has still to answer."""
        with suppress(EOFError, OSError):
            while self._pipe.poll():
                self._receive()
        return len(self._asked)

    def answer(self) -> torch.Tensor | DataError:
        """The answer to the oldest request whose answer was not taken."""
        while not self._answers:
            self._wait()
            try:
                self._receive()
            except (EOFError, OSError):
                self._process.join(1)
                how = f"exit code {self._process.exitcode}"
                raise ReadError(
                    f"{self._asked[0]}: the process that decoded it died ({how}); use fewer --workers if memory ran out"
                ) from None
        answer = self._answers.popleft()
        if isinstance(answer, ReadError):
            raise answer
        return answer

    def drop(self) -> None:
        """Nobody waits any more for what was asked."""
        self._dropped = len(self._asked)
        self._answers.clear()

    def _receive(self) -> None:
        answer = self._pipe.recv()
        self._asked.popleft()
        if self._dropped:
            self._dropped -= 1
            return
        self._answers.append(answer)

    def _wait(self) -> None:
        """Until there is an answer, or the process has ended; an error where it does nothing any more."""
        work, idle = self._work(), 0
        # Waits are counted, since a clock goes on while everything is suspended.
        while not wait([self._pipe, self._process.sentinel], timeout=PATIENCE / 10):
            now = self._work()
            work, idle = now, idle + 1 if now == work else 0
            if idle >= 10:
                raise ReadError(
                    f"{self._asked[0]}: no progress in decoding it for {PATIENCE:.0f} s: is its disk or network gone?"
                )

    def _work(self) -> float:
        """Processor time that the process has taken; where that cannot be known it always counts as working."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return float(int(fields[11]) + int(fields[12]))
        except (OSError, ValueError, IndexError):
            return time.monotonic()

    def close(self) -> None:
        self._outbox.put(None)
        self._process.kill()
        self._process.join(5)  # which one that waits for a dead disk outlives
        self._pipe.close()


def _serve(pipe: Connection, size: tuple[int, int], disk_cache: DiskCache | None) -> None:
    """Runs in the process: decodes what comes through the pipe until its other end is closed."""
    obey_parent()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            request = pipe.recv()
            try:
                pipe.send(_decode(request, size, disk_cache))
            except (RuntimeError, MemoryError, OSError) as error:
                what = (str(error).strip() or "out of memory").splitlines()[0]
                advice = "is /dev/shm or /tmp full? --workers 0 needs neither"
                pipe.send(ReadError(f"{request.video.path}: decoded, but not handed over ({what}); {advice}"))


def _decode(request: ClipRequest, size: tuple[int, int], disk_cache: DiskCache | None) -> torch.Tensor | DataError:
    video, indices = request
    try:
        if disk_cache is None or len(video.pts) * math.prod(size) * 3 > _MOST_KEPT:
            return torch.from_numpy(decode_frames(video, indices, size))
        return torch.from_numpy(disk_cache.frames(video, size)[indices])
    except DataError as error:
        return error

"""Reads clips with PyAV, in processes of its own that decode ahead of time, or in this process."""

from __future__ import annotations

import math
import multiprocessing
import resource
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.util import get_temp_dir
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Self

import torch

# With this module imported, tensors travel between processes as shared memory.
import torch.multiprocessing

from actdet.errors import DataError, ReadError
from actdet.video.decoding import ClipRequest, decode_frames
from actdet.video.disk_cache import DiskCache
from actdet.workers import exit_with_parent, signals_blocked

# A decoding process that has not worked for this many seconds counts as hung.
PATIENCE = 120.0

# How many times in that span the process is looked at.
_CHECKS = 10

# How many bytes of decoded clips may lie in shared memory (/dev/shm), unless one clip per process takes more.
_MOST_PREFETCHED = 2**28

# A clip whose frames take more bytes than this is decoded again each time, and not kept on the disk as a whole.
_MOST_KEPT = 2**30


class PyAVReader:
    """Decodes with PyAV, in processes of one codec thread each, which live until `close`.

    The processes are spawned, not forked, at the first `read`. A script that uses them keeps its own start under
    `if __name__ == "__main__":`.

    Args:
        size: Height and width of the clips.
        workers: Number of processes; 0 decodes in this process.
        disk_cache: Where decoded clips are kept, if anywhere.
    """

    name = "pyav"

    def __init__(self, size: tuple[int, int], workers: int = 1, disk_cache: DiskCache | None = None) -> None:
        self._size = size
        self._disk_cache = disk_cache
        self._count = workers
        self._workers: list[_Worker] = []

    def read(self, requests: Iterable[ClipRequest], prefetch: int = 8) -> Iterator[torch.Tensor | DataError]:
        """Decode clips in the order of their requests; see `Reader.read`."""
        if not self._count:
            for request in requests:
                yield _decode(request, self._size, self._disk_cache)
            return

        if not self._workers:
            _allow_open_files()
            self._workers = [_Worker(self._size, self._disk_cache) for _ in range(self._count)]
        for worker in self._workers:
            # An earlier pass may have been given up before it was over.
            worker.drop()

        waiting: deque[tuple[_Worker, int]] = deque()
        todo = deque(requests)
        room = _MOST_PREFETCHED
        while todo or waiting:
            # Every process gets a request, and then more as far as they may be prefetched.
            while todo and (len(waiting) < self._count or (len(waiting) < prefetch and room > 0)):
                request = todo.popleft()
                worker = min(self._workers, key=_Worker.busy)
                size = len(request.indices) * math.prod(self._size) * 3
                worker.ask(request)
                waiting.append((worker, size))
                room -= size

            worker, size = waiting.popleft()
            yield worker.answer()
            room += size

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _allow_open_files() -> None:
    """Let this process open as many files as the system permits.

    Every tensor that another process has sent keeps a file open, and a data set may have thousands of clips in memory.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Worker:
    """A decoding process and the pipe to it. It answers requests in their order.

    Args:
        size: Height and width of the clips.
        disk_cache: Where decoded clips are kept, if anywhere.
    """

    def __init__(self, size: tuple[int, int], disk_cache: DiskCache | None) -> None:
        spawn = multiprocessing.get_context("spawn")

        # The process needs a folder for temporary files to send tensors. If it made one itself it could not remove it,
        # because it is killed, so it inherits this process's folder.
        get_temp_dir()

        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, size, disk_cache), daemon=True)
        with signals_blocked():
            self._process.start()

        # Since this end is closed here, a process that dies is noticed as the end of the pipe.
        theirs.close()

        self._outbox: SimpleQueue[ClipRequest | None] = SimpleQueue()
        Thread(target=self._send, daemon=True).start()

        # The files of the requests that have no answer yet.
        self._asked: deque[str] = deque()
        self._answers: deque[torch.Tensor | DataError | ReadError] = deque()

        # How many answers will still come that nobody waits for.
        self._dropped = 0

    def ask(self, request: ClipRequest) -> None:
        """Send a request to the process."""
        self._asked.append(request.video.path)
        self._outbox.put(request)

    def _send(self) -> None:
        """Run in a thread, so that a full pipe to a process that hangs does not hold up the other processes."""
        # The death of a process is reported by `answer`.
        with suppress(OSError):
            while (request := self._outbox.get()) is not None:
                self._pipe.send(request)

    def busy(self) -> int:
        """Count the requests that the process has yet to answer."""
        with suppress(EOFError, OSError):
            while self._pipe.poll():
                self._receive()
        return len(self._asked)

    def answer(self) -> torch.Tensor | DataError:
        """Wait for the answer to the oldest request whose answer was not taken.

        Raises:
            ReadError: If the process died, hangs, or could not send its answer.
        """
        while not self._answers:
            self._wait()
            try:
                self._receive()
            except (EOFError, OSError):
                self._process.join(1)
                how = f"exit code {self._process.exitcode}"
                raise ReadError(
                    f"{self._asked[0]}: the process that decoded it died ({how}): if memory ran out, fewer processes "
                    "need less"
                ) from None

        answer = self._answers.popleft()
        if isinstance(answer, ReadError):
            raise answer
        return answer

    def drop(self) -> None:
        """Give up the answers to everything that was asked."""
        self._dropped = len(self._asked)
        self._answers.clear()

    def _receive(self) -> None:
        """Take the next answer out of the pipe."""
        answer = self._pipe.recv()
        self._asked.popleft()
        if self._dropped:
            self._dropped -= 1
            return
        self._answers.append(answer)

    def _wait(self) -> None:
        """Wait until there is an answer or the process has ended.

        Raises:
            ReadError: If the process no longer does anything.
        """
        work = self._work()
        idle = 0

        # The checks are counted rather than the seconds, since a clock goes on while the machine is suspended.
        while not wait([self._pipe, self._process.sentinel], timeout=PATIENCE / _CHECKS):
            now = self._work()
            idle = idle + 1 if now == work else 0
            work = now
            if idle >= _CHECKS:
                raise ReadError(
                    f"{self._asked[0]}: no progress in decoding it for {PATIENCE:.0f} s: is its disk or network gone?"
                )

    def _work(self) -> float:
        """Read how much processor time the process has used, in clock ticks."""
        try:
            # Behind the name of the process, fields 11 and 12 are the times in user and in system mode (proc(5)).
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return float(int(fields[11]) + int(fields[12]))
        except (OSError, ValueError, IndexError):
            # If the time is unknown, the process counts as working.
            return time.monotonic()

    def close(self) -> None:
        """Kill the process."""
        self._outbox.put(None)
        self._process.kill()

        # A process that waits for a dead disk outlives even that.
        self._process.join(5)
        self._pipe.close()


def _serve(pipe: Connection, size: tuple[int, int], disk_cache: DiskCache | None) -> None:
    """Run in the process: decode what comes through the pipe until its other end is closed."""
    exit_with_parent()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            request = pipe.recv()
            try:
                pipe.send(_decode(request, size, disk_cache))
            except (RuntimeError, MemoryError, OSError) as error:
                what = (str(error).strip() or "out of memory").splitlines()[0]
                advice = "is /dev/shm or /tmp full?"
                pipe.send(ReadError(f"{request.video.path}: decoded, but not handed over ({what}); {advice}"))


def _decode(request: ClipRequest, size: tuple[int, int], disk_cache: DiskCache | None) -> torch.Tensor | DataError:
    """Decode a clip; the answer is a uint8 (T, H, W, 3) tensor, or what is wrong with the file."""
    video, indices = request
    frame_bytes = math.prod(size) * 3
    try:
        if disk_cache is None or len(video.pts) * frame_bytes > _MOST_KEPT:
            return torch.from_numpy(decode_frames(video, indices, size))
        return torch.from_numpy(disk_cache.frames(video, size)[indices])
    except DataError as error:
        return error

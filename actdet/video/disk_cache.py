"""Decoded clips kept on a disk from run to run: a folder of .npy files, bounded, shared by any number of processes.

A file's name is a digest of the video's bytes, the size of the pictures and what decides their pixels, so that nothing
in it can be out of date. Files come whole or not at all, and go when there is no more room, the longest unused first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import av
import numpy as np

from actdet.errors import DataError
from actdet.files import is_abandoned, is_temporary, temporary_name
from actdet.video.decoding import VideoInfo, decode_frames

_FORMAT = 2  # to be raised when decoding or resizing changes


def cache_folder() -> Path:
    """Where decoded clips are kept: $ACTDET_CACHE, or actdet in $XDG_CACHE_HOME or ~/.cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "actdet")
    return Path(os.environ.get("ACTDET_CACHE") or default) / "clips"


class DiskCache:
    """At most `limit` bytes of decoded clips in `folder`, which is made where it is missing.

    Raises DataError where the folder cannot be written to.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._make_room()
        except OSError as error:
            raise DataError(folder, f"cannot be written to: {error.strerror or error}") from error

    def frames(self, video: VideoInfo, size: tuple[int, int]) -> np.ndarray:
        """All frames of `video`, uint8 (frames, height, width, 3): kept ones, read as they are used, or decoded ones.

        What is decoded is kept if the limit and the disk allow it. Raises DataError where the video cannot be read.
        """
        path = self._path(video, size)
        with suppress(OSError, ValueError, EOFError):  # not there, or no such file as this writes
            kept = np.load(path, mmap_mode="r", allow_pickle=False)
            if kept.shape == (len(video.pts), *size, 3) and kept.dtype == np.uint8:
                os.utime(path)
                return kept
        frames = decode_frames(video, np.arange(len(video.pts)), size)
        if self._path(video, size) == path:  # the video did not change meanwhile
            self._keep(path, frames)
        return frames

    def _keep(self, path: Path, frames: np.ndarray) -> None:
        if frames.nbytes + 4096 > self.limit:
            return
        temporary = path.with_name(temporary_name(path))
        with suppress(OSError):  # a full disk, or a process that took this one's file for a dead one's
            try:
                with open(temporary, "wb") as file:
                    np.save(file, frames, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
                with self._lock():
                    self._make_room()
                    os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def _path(self, video: VideoInfo, size: tuple[int, int]) -> Path:
        try:
            stat = os.stat(video.path)
            digest = _digest(video.path, stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise DataError(video.path, f"cannot be read: {error.strerror}") from None
        return self.folder / f"{digest}-{size[0]}x{size[1]}.npy"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Within: no other process adds or removes clips. The system gives it back when a process dies."""
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self) -> None:
        """Remove what a crash left, and the clips that were not used for longest, until all is within the limit."""
        kept, total = [], 0
        for entry in os.scandir(self.folder):
            path = Path(entry.path)
            if is_abandoned(path):
                path.unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):
                stat = entry.stat()
                total += stat.st_size
                if path.suffix == ".npy" and not is_temporary(path):
                    kept.append((stat.st_mtime_ns, stat.st_size, path))
        for _, size, path in sorted(kept):
            if total <= self.limit:
                break
            path.unlink()
            total -= size


@cache
def _digest(path: str, size: int, changed: int) -> str:
    """Of the file's bytes, and of what decodes them."""
    digest = hashlib.blake2b(f"{_FORMAT} {av.__version__} {av.library_versions}".encode(), digest_size=20)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()

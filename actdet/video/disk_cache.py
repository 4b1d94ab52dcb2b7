"""Keeps decoded clips on a disk from run to run: a folder of .npy files that any number of processes share.

A file's name is a digest of the video's bytes, the size of the pictures and everything that decides their pixels, so
nothing in the folder can be out of date. Files are written completely or not at all. The folder has a limit; beyond it,
the files that have been unused for longest are removed.
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
from actdet.video.decoding import decode_frames
from actdet.video.info import VideoInfo

# To be raised when decoding or resizing changes.
_FORMAT = 2

# More than the header of a .npy file takes.
_HEADER_BYTES = 4096


def cache_folder() -> Path:
    """Where decoded clips are kept: in $ACTDET_CACHE, or in `actdet` in $XDG_CACHE_HOME or ~/.cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "actdet")
    return Path(os.environ.get("ACTDET_CACHE") or default) / "clips"


class DiskCache:
    """Decoded clips in a folder.

    Args:
        folder: The folder. It is made if it does not exist.
        limit: How many bytes the clips in it may take.

    Raises:
        DataError: If the folder cannot be written to.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._make_room()
        except OSError as error:
            raise DataError(folder, f"cannot be written to: {error.strerror or error}") from error

    def frames(self, video: VideoInfo, size: tuple[int, int]) -> np.ndarray:
        """Return all frames of a video: kept ones, which are read as they are used, or else decoded ones.

        Decoded frames are kept if the limit and the disk allow it.

        Args:
            video: The video.
            size: Height and width of the pictures.

        Returns:
            uint8 (frames, height, width, 3).

        Raises:
            DataError: If the video cannot be read.
        """
        path = self._path(video, size)

        # The file may not exist, or something else may have written it.
        with suppress(OSError, ValueError, EOFError):
            kept = np.load(path, mmap_mode="r", allow_pickle=False)
            if kept.shape == (len(video.pts), *size, 3) and kept.dtype == np.uint8:
                os.utime(path)
                return kept

        frames = decode_frames(video, np.arange(len(video.pts)), size)

        # If the video changed while it was decoded, the frames do not belong under this name.
        if self._path(video, size) == path:
            self._keep(path, frames)
        return frames

    def _keep(self, path: Path, frames: np.ndarray) -> None:
        """Write frames to the cache if there is room."""
        if frames.nbytes + _HEADER_BYTES > self.limit:
            return
        temporary = path.with_name(temporary_name(path))

        # The disk may be full, or another process may have removed the file because it took this process for dead.
        with suppress(OSError):
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
        """The file for the frames of a video. It depends on what the video contains now."""
        try:
            stat = os.stat(video.path)
            digest = _digest(video.path, stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise DataError(video.path, f"cannot be read: {error.strerror}") from None
        return self.folder / f"{digest}-{size[0]}x{size[1]}.npy"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Context manager: while active, no other process adds or removes clips.

        The system gives the lock back if the process dies.
        """
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self) -> None:
        """Remove what a crash left behind, then the clips that were unused for longest, until the limit is kept."""
        clips = []
        total = 0
        for entry in os.scandir(self.folder):
            path = Path(entry.path)
            if is_abandoned(path):
                path.unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):
                stat = entry.stat()
                total += stat.st_size
                if path.suffix == ".npy" and not is_temporary(path):
                    clips.append((stat.st_mtime_ns, stat.st_size, path))

        for _, size, path in sorted(clips):
            if total <= self.limit:
                break
            path.unlink()
            total -= size


@cache
def _digest(path: str, size: int, changed: int) -> str:
    """Compute a digest of a file's bytes and of what decodes them, once for each size and time of change."""
    digest = hashlib.blake2b(f"{_FORMAT} {av.__version__} {av.library_versions}".encode(), digest_size=20)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()

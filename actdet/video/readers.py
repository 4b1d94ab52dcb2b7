"""Readers turn requests, (video, frame indices), into uint8 tensors, clip by clip, in order and ahead of time.

Two readers have the same interface: PyAV in processes of its own (`pyav`) and NVIDIA DALI (`dali`). Their pixels differ
slightly, so a detector is evaluated with the reader that it was trained with.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Protocol, Self

import torch

from actdet.errors import ActdetError, DataError
from actdet.video.decoding import ClipRequest
from actdet.video.disk_cache import DiskCache
from actdet.video.info import VideoInfo
from actdet.video.pyav import PyAVReader

# What DALI decodes. Its wheels leave out all codecs but the first three on a CPU.
_CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
_GPU_CODECS = _CPU_CODECS | {"h264", "hevc", "av1", "mpeg4"}


class Reader(Protocol):
    """Decodes clips. Use it as a context manager, or `close` it, to end its processes."""

    name: str
    """pyav, dali-cpu or dali-gpu."""

    def read(self, requests: Iterable[ClipRequest], prefetch: int = 8) -> Iterator[torch.Tensor | DataError]:
        """Decode clips in the order of their requests.

        Args:
            requests: Which frames of which videos.
            prefetch: How many clips may be decoded before the first of them is taken.

        Yields:
            For each request a uint8 (T, H, W, 3) tensor, or what is wrong with its file.

        Raises:
            ActdetError: If the reader cannot go on.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def choose_reader(
    name: str, device: torch.device, videos: Iterable[VideoInfo] = (), *, disk_cache: bool = False
) -> tuple[str, str]:
    """Choose what decodes.

    Args:
        name: `auto`, `pyav` or `dali`.
        device: Where the network runs.
        videos: What is to be decoded.
        disk_cache: Whether decoded clips are to be kept on the disk.

    Returns:
        `pyav`, `dali-cpu` or `dali-gpu`, and the reason in a few words.

    Raises:
        ActdetError: If DALI is asked for by name and cannot do it.
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
    """Make the reader that `choose_reader` named.

    Args:
        name: `pyav`, `dali-cpu` or `dali-gpu`.
        size: Height and width of the clips.
        workers: Number of processes of PyAV (0 decodes in this process) or of threads of DALI.
        disk_cache: Where PyAV keeps what it has decoded.

    Raises:
        ActdetError: If DALI is named and cannot be imported.
    """
    if name == "pyav":
        return PyAVReader(size, workers, disk_cache)

    # Everything else works without DALI.
    try:
        from actdet.video.dali import DALIReader
    except ImportError as error:
        raise ActdetError(f"DALI cannot be used ({error}): pip install {_dali_package()}, or use reader pyav") from None
    return DALIReader(name, size, max(1, workers))


def _dali_problem(reader: str, videos: Sequence[VideoInfo]) -> str:
    """Say why DALI cannot read these videos on this machine; empty if it can."""
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        return f"DALI is not installed (pip install {_dali_package()})"

    codecs = _GPU_CODECS if reader == "dali-gpu" else _CPU_CODECS
    for video in videos:
        if video.codec not in codecs:
            return f"{reader} decodes only {', '.join(sorted(codecs))}, and {video.path} is {video.codec}"

        # DALI numbers frames by their packets and timestamps.
        if video.skipped:
            return f"{video.path} has {video.skipped} packets without a frame, which DALI would count as frames"
        if len(video.places):
            return f"{video.path} has timestamps that repeat or go back, so DALI would mix up its frames"
        if not video.alone:
            return f"{video.path} has several video streams, and DALI may read another one"
        if not video.has_timestamps and video.codec != "mjpeg":
            return f"{video.path} has no timestamps, so DALI would mix up its frames"
    if reader == "dali-cpu":
        return ""

    if not _has_video_decoder():
        return (
            "the driver's video decoder, libnvcuvid.so.1, is not found (in a container it needs "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
        )
    try:
        from actdet.video.dali import find_refusal
    except ImportError as error:
        return f"DALI cannot be imported ({error})"
    return find_refusal(reader, videos)


def _dali_package() -> str:
    """Return the name of DALI's package for the CUDA version that PyTorch was built with."""
    major, *_ = (torch.version.cuda or "13").split(".")
    return f"nvidia-dali-cuda{major}0"


def _has_video_decoder() -> bool:
    """Whether the driver's library for decoding video can be loaded."""
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return False
    return True

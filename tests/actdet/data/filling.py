"""What a process does that shares a disk cache with others; a spawned one must find it by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actdet.video.decoding import VideoInfo, decode_frames
from actdet.video.disk_cache import DiskCache

SIZE = (32, 32)
CLIP_BYTES = 40 * 32 * 32 * 3


def fill(folder: Path, clips: Sequence[VideoInfo], rounds: int) -> None:
    """Ask for all clips, of 40 frames, again and again, of a cache that holds three."""
    cache = DiskCache(folder, 3 * (CLIP_BYTES + 4096))
    for _ in range(rounds):
        for video in clips:
            assert np.array_equal(cache.frames(video, SIZE), decode_frames(video, range(40), SIZE))

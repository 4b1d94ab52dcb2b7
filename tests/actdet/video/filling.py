"""What each of several processes does that share a disk cache; a module of its own, so that spawned ones find it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actdet.video.decoding import decode_frames
from actdet.video.disk_cache import DiskCache
from actdet.video.info import VideoInfo

SIZE = (32, 32)
CLIP_BYTES = 40 * 32 * 32 * 3


def fill(folder: Path, clips: Sequence[VideoInfo], rounds: int) -> None:
    """Ask a cache with room for three clips for all these clips of 40 frames, again and again."""
    cache = DiskCache(folder, 3 * (CLIP_BYTES + 4096))
    for _ in range(rounds):
        for video in clips:
            assert np.array_equal(cache.frames(video, SIZE), decode_frames(video, range(40), SIZE))

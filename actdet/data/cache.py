"""Decoded clips in the training device's memory, so that each is decoded only once.

`FrameCache` is one pool of uint8 frames for a whole data set; `choose_cache` decides whether to have one.
"""

from __future__ import annotations

import numpy as np
import torch
from actdet_kernels import frame_levels
from torch import Tensor

from actdet.data.clips import ClipIndex
from actdet.data.config import ClipSize
from actdet.device import free_memory
from actdet.errors import ActdetError
from actdet.video.decoding import ClipRequest

# The largest share of the free memory that "auto" takes. On a GPU the network still needs its memory, and a CPU's
# memory is not ours alone.
_SHARE = {"cuda": 0.5, "cpu": 0.25}

# In a long video about so many frames are decoded on the way to one that is asked for.
_ON_THE_WAY = 30


class FrameCache:
    """The frames that may be asked for of all clips of a data set, filled in clip by clip.

    Attributes:
        pool: (F, S, S, 3) uint8, the frames of all clips, one clip after the other.
        frame_means: (F,) float32, the mean of each frame in [0, 1].
    """

    def __init__(self, index: ClipIndex, size: ClipSize, device: torch.device, *, jitter: bool) -> None:
        """Reserve the memory.

        Args:
            index: The data set.
            size: Of the clips that will be asked for.
            device: Where the frames are kept.
            jitter: Whether any frame of a clip may be asked for, or only those at the middle of its segments.

        Raises:
            ActdetError: If there is not enough memory.
        """
        self._requests = [
            ClipRequest(clip.video, np.array(clip.frames) if jitter else np.unique(clip.sample(size.frames)))
            for clip in index.clips
        ]
        self._first = np.cumsum([0, *(len(request.indices) for request in self._requests)])
        self._filled = np.zeros(len(index.clips), bool)

        count = int(self._first[-1])
        try:
            self.pool = torch.empty((count, size.image_size, size.image_size, 3), dtype=torch.uint8, device=device)
        except RuntimeError as error:
            needed = _readable(cache_bytes(index, size, jitter=jitter))
            raise ActdetError(f"no memory for {needed} of decoded clips: choose cache none") from error
        self.frame_means = torch.empty(count, device=device)

    def __contains__(self, clip: int) -> bool:
        return bool(self._filled[clip])

    def request(self, clip: int) -> ClipRequest:
        """Return what to read of a clip in order to `fill` it in."""
        return self._requests[clip]

    def fill(self, clip: int, frames: Tensor) -> None:
        """Keep the frames (N, S, S, 3) uint8 that `request` asked for."""
        span = slice(self._first[clip], self._first[clip + 1])
        self.pool[span].copy_(frames, non_blocking=True)
        self.frame_means[span] = frame_levels(self.pool[span])
        self._filled[clip] = True

    def rows(self, clip: int, indices: np.ndarray) -> np.ndarray:
        """Return where in the pool the frames of a clip with the numbers `indices` are."""
        return self._first[clip] + np.searchsorted(self._requests[clip].indices, indices)


def cache_bytes(index: ClipIndex, size: ClipSize, *, jitter: bool) -> int:
    """Return the most bytes that a `FrameCache` with these arguments takes."""
    frames = sum(len(clip.frames) if jitter else min(len(clip.frames), size.frames) for clip in index.clips)
    return frames * (size.image_size**2 * 3 + 4)


def most_kept(device: torch.device) -> float:
    """Return how many bytes of decoded clips "auto" keeps at most on `device`, by the memory that is free now."""
    return _SHARE[device.type] * free_memory(device)


def choose_cache(
    cache: str,
    index: ClipIndex,
    size: ClipSize,
    device: torch.device,
    *,
    jitter: bool,
    epochs: int,
    processes: int = 1,
) -> tuple[bool, str]:
    """Decide whether decoded clips are kept in memory.

    Args:
        cache: The setting: auto, memory or none.
        index: The data set.
        size: Of the clips that will be asked for.
        device: Where the frames would be kept.
        jitter: See `FrameCache`.
        epochs: How often each clip will be asked for.
        processes: How many processes train. On a CPU each keeps its own clips in the same memory.

    Returns:
        The decision, and the reason in a few words.
    """
    if cache == "none":
        return False, "decoded again each epoch, asked for"

    needed = cache_bytes(index, size, jitter=jitter)
    what = f"{_readable(needed)} of decoded clips"
    if cache == "memory":
        return True, f"{what} kept in memory, asked for"

    # To keep a clip, all frames that jitter may ask for are decoded. Of long videos that are more frames than a short
    # training ever decodes without a cache.
    decoded = sum(len(clip.frames) for clip in index.clips)
    if jitter and decoded > epochs * len(index.clips) * size.frames * _ON_THE_WAY:
        return False, f"decoded again each epoch: all {decoded} frames are more than will be asked for"

    most = most_kept(device) / (processes if device.type == "cpu" else 1)
    if needed <= most:
        return True, f"{what} kept in memory"
    share = f"{_SHARE[device.type]:.0%}"
    return False, f"decoded again each epoch: {what} are more than {_readable(most)}, {share} of the free memory"


def _readable(bytes_: float) -> str:
    return f"{bytes_ / 2**30:.1f} GiB" if bytes_ >= 2**30 else f"{bytes_ / 2**20:.0f} MiB"

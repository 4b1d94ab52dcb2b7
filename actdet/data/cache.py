"""Decoded clips in the training device's memory: read once, then only augmented.

`FrameCache` is one pool of uint8 frames for a whole data set; `choose_cache` says whether it fits.
"""

from __future__ import annotations

import numpy as np
import torch
from actdet_kernels import frame_levels
from torch import Tensor

from actdet.data.index import ClipIndex
from actdet.device import free_memory
from actdet.errors import ActdetError
from actdet.models.detr.config import ModelConfig
from actdet.video.decoding import ClipRequest, sample_frames

# Of the free memory, what "auto" takes at most: on a GPU the network comes later, a CPU's memory is not ours alone.
_SHARE = {"cuda": 0.5, "cpu": 0.25}

# Frames that are decoded, about, for one that is asked for in a long video.
_ON_THE_WAY = 30


class FrameCache:
    """The frames of all clips of `index` that may be asked for, (F, S, S, 3) uint8 in `pool`, as clips get filled in.

    jitter: whether any frame may be asked for, or only those in the middle of the segments.
    levels: (F,) float32, mean of each frame. Raises ActdetError where there is no memory for it.
    """

    def __init__(self, index: ClipIndex, model: ModelConfig, device: torch.device, *, jitter: bool) -> None:
        videos = [clip.video for clip in index.clips]
        self._requests = [
            ClipRequest(video, np.arange(len(video.pts)) if jitter else np.unique(sample_frames(video, model.frames)))
            for video in videos
        ]
        self._first = np.cumsum([0, *(len(request.indices) for request in self._requests)])
        self._filled = np.zeros(len(videos), bool)
        shape = int(self._first[-1]), model.image_size, model.image_size, 3
        try:
            self.pool = torch.empty(shape, dtype=torch.uint8, device=device)
        except RuntimeError as error:
            raise ActdetError(
                f"no memory for {_size(cache_bytes(index, model, jitter=jitter))} of decoded clips: use --cache none"
            ) from error
        self.levels = torch.empty(shape[0], device=device)

    def __contains__(self, clip: int) -> bool:
        return bool(self._filled[clip])

    def request(self, clip: int) -> ClipRequest:
        """What to read of a clip, to `fill` it in."""
        return self._requests[clip]

    def fill(self, clip: int, frames: Tensor) -> None:
        """Keep the `frames` that were requested of a clip."""
        span = slice(self._first[clip], self._first[clip + 1])
        self.pool[span].copy_(frames, non_blocking=True)
        self.levels[span] = frame_levels(self.pool[span])
        self._filled[clip] = True

    def rows(self, clip: int, indices: np.ndarray) -> np.ndarray:
        """Where in the pool the frames `indices` of a clip lie."""
        return self._first[clip] + np.searchsorted(self._requests[clip].indices, indices)


def cache_bytes(index: ClipIndex, model: ModelConfig, *, jitter: bool) -> int:
    """What a `FrameCache` of these takes at most."""
    frames = sum(len(clip.video.pts) if jitter else min(len(clip.video.pts), model.frames) for clip in index.clips)
    return frames * (model.image_size**2 * 3 + 4)


def most_kept(device: torch.device) -> float:
    """Bytes of decoded clips that "auto" keeps at most on `device`, as it is now."""
    return _SHARE[device.type] * free_memory(device)


def choose_cache(
    cache: str,
    index: ClipIndex,
    model: ModelConfig,
    device: torch.device,
    *,
    jitter: bool,
    epochs: int,
    processes: int = 1,
) -> tuple[bool, str]:
    """Whether decoded clips are kept in memory for `cache` (auto, memory or none), and why in a few words.

    epochs: how often each is asked for. processes: how many keep them on one CPU.
    """
    if cache == "none":
        return False, "decoded anew each epoch, asked for"
    size, most = (
        cache_bytes(index, model, jitter=jitter),
        most_kept(device) / (processes if device.type == "cpu" else 1),
    )
    what, share = f"{_size(size)} of decoded clips", _SHARE[device.type]
    if cache == "memory":
        return True, f"{what} kept in memory, asked for"
    decoded = sum(len(clip.video.pts) for clip in index.clips)
    if jitter and decoded > epochs * len(index.clips) * model.frames * _ON_THE_WAY:
        return False, f"decoded anew each epoch: all {decoded} frames are more than will be asked for"
    if size <= most:
        return True, f"{what} kept in memory"
    return (
        False,
        f"decoded anew each epoch: {what} are more than {_size(most)}, {share:.0%} of what is free",
    )


def _size(bytes_: float) -> str:
    return f"{bytes_ / 2**30:.1f} GiB" if bytes_ >= 2**30 else f"{bytes_ / 2**20:.0f} MiB"

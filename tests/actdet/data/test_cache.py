"""The cache in memory gives the frames that decoding gives, and is used if it fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actdet.data import cache as caching
from actdet.data.cache import FrameCache, cache_bytes, choose_cache
from actdet.data.clips import Clip, ClipIndex
from actdet.data.config import ClipSize
from actdet.errors import ActdetError
from actdet.video.decoding import decode_frames
from actdet.video.info import probe
from actdet.video.sampling import sample_frames
from tests.actdet.video.videos import write_video

CPU = torch.device("cpu")
CLIP_SIZE = ClipSize(frames=8, image_size=32)
SIZE = (32, 32)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    """Four videos of 40 frames."""
    folder = tmp_path_factory.mktemp("clips")
    videos = [probe(write_video(folder / f"{n}.mp4", frames=40, size=(64, 48 + 2 * n))) for n in range(4)]
    return ClipIndex(Path(), ("fight",), tuple(Clip(str(n), video, ()) for n, video in enumerate(videos)))


@pytest.mark.parametrize("jitter", [False, True])
def test_rows_lead_to_the_frames_that_were_filled_in(index: ClipIndex, jitter: bool) -> None:
    cache = FrameCache(index, CLIP_SIZE, CPU, jitter=jitter)
    assert len(cache.pool) == 4 * (40 if jitter else 8)
    for clip in (2, 0, 3):
        assert clip not in cache
        cache.fill(clip, torch.from_numpy(decode_frames(*cache.request(clip), SIZE)))
        assert clip in cache
    assert 1 not in cache
    for clip in (0, 2, 3):
        video = index.clips[clip].video
        indices = sample_frames(video, 8, rng=np.random.default_rng(clip) if jitter else None)
        rows = cache.rows(clip, indices)
        frames = decode_frames(video, indices, SIZE)
        np.testing.assert_array_equal(cache.pool[rows].numpy(), frames)
        np.testing.assert_allclose(cache.frame_means[rows].numpy(), frames.mean((1, 2, 3)) / 255, rtol=1e-6)


def test_a_cache_takes_what_it_said(index: ClipIndex) -> None:
    for jitter in (False, True):
        cache = FrameCache(index, CLIP_SIZE, CPU, jitter=jitter)
        assert cache.pool.nbytes + cache.frame_means.nbytes == cache_bytes(index, CLIP_SIZE, jitter=jitter)


def test_clips_are_kept_if_they_fit(index: ClipIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    size = cache_bytes(index, CLIP_SIZE, jitter=True)

    def choose(cache: str, free: int, processes: int = 1, epochs: int = 1) -> tuple[bool, str]:
        monkeypatch.setattr(caching, "free_memory", lambda device: free)
        return choose_cache(cache, index, CLIP_SIZE, CPU, jitter=True, epochs=epochs, processes=processes)

    assert choose("auto", 4 * size) == (True, "0 MiB of decoded clips kept in memory")
    assert choose("auto", 4 * size - 4)[0] is False
    assert choose("auto", 4 * size, processes=2)[0] is False
    assert "more than" in choose("auto", size)[1]
    assert choose("memory", 0)[0] is True
    assert choose("none", 100 * size)[0] is False


def test_long_videos_are_not_decoded_whole_for_a_few_frames(index: ClipIndex) -> None:
    hour = replace(index.clips[0].video, pts=np.arange(90_000), end=90_000)
    long = replace(index, clips=(Clip("hour", hour, ()),))
    for cache, jitter, epochs, expected in (
        # Each epoch asks for 8 other frames.
        ("auto", True, 50, False),
        ("auto", True, 500, True),
        # Each epoch asks for the same 8 frames.
        ("auto", False, 50, True),
        ("memory", True, 50, True),
    ):
        assert choose_cache(cache, long, CLIP_SIZE, CPU, jitter=jitter, epochs=epochs)[0] is expected


def test_too_large_a_cache_that_was_asked_for_is_refused(index: ClipIndex) -> None:
    video = replace(index.clips[0].video, pts=np.arange(2**36 // 2**10), end=2**26)
    large = replace(index, clips=(Clip("large", video, ()),))
    with pytest.raises(ActdetError, match=r"no memory for .* GiB of decoded clips: choose cache none"):
        FrameCache(large, ClipSize(frames=16, image_size=2048), CPU, jitter=True)

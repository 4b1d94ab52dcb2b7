"""Clips for the tests of readers: what is asked for, and whether an answer has the right frames."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from actdet.errors import DataError
from actdet.video.decoding import ClipRequest
from actdet.video.info import VideoInfo, probe
from actdet.video.sampling import sample_frames
from tests.actdet.video.videos import shown_number, write_video

# Height and width of the clips.
SIZE = (40, 56)

HAS_DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="needs DALI")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def write_clips(folder: Path) -> list[VideoInfo]:
    """Write files that all readers decode, of different sizes, lengths, containers and rotations."""
    vp9 = "libvpx-vp9"
    vp8 = "libvpx"
    uneven = [40 * i + 13 * (i % 2) for i in range(24)]
    paths = [
        write_video(folder / "a.webm", vp9, frames=40),
        write_video(folder / "b.webm", vp9, frames=9, size=(97, 55)),
        write_video(folder / "c.mp4", vp9, frames=30, size=(80, 120), rotation=90),
        write_video(folder / "d.mkv", vp9, frames=24, size=(96, 64), rotation=180, pts=uneven),
        write_video(folder / "e.mkv", vp8, frames=20, size=(64, 64), options={"deadline": "realtime"}),
        write_video(folder / "f.avi", "mjpeg", frames=12, rotation=0),
        write_video(folder / "g.webm", vp9, frames=1),
    ]
    return [probe(path) for path in paths]


def requests_of(clips: list[VideoInfo]) -> list[ClipRequest]:
    """Ask for all clips, some of them again: 16 frames, all their frames, and one."""
    spread = [ClipRequest(info, sample_frames(info, 16)) for info in clips]
    all_frames = [ClipRequest(info, np.arange(len(info.pts))) for info in clips[::-1]]
    return [*spread, *all_frames, ClipRequest(clips[0], np.array([39])), *spread[2:4]]


def _numbers(info: VideoInfo, clip: torch.Tensor) -> list[int]:
    """Read the numbers that the frames show. In rotated videos they lie as they were coded."""
    return [shown_number(np.rot90(picture, -info.rotation // 90)) for picture in clip.cpu().numpy()]


def check_answers(requests: list[ClipRequest], answers: list[torch.Tensor | DataError]) -> None:
    """Assert that each answer is a clip of the frames that were asked for."""
    assert len(answers) == len(requests)
    for (info, indices), clip in zip(requests, answers, strict=True):
        assert isinstance(clip, torch.Tensor), clip
        assert clip.shape == (len(indices), *SIZE, 3)
        assert clip.dtype == torch.uint8
        assert clip.is_contiguous()
        assert _numbers(info, clip) == indices.tolist()

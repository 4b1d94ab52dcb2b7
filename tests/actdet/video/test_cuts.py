"""Clips cut together from two scenes are told apart from those in which people, cameras and lights move."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from actdet.video.cuts import has_cut
from actdet.video.decoding import decode_frames
from actdet.video.info import probe
from actdet.video.sampling import sample_frames


def _place(seed: int) -> np.ndarray:
    """A place, (48, 64, 3): a few large areas of different brightness."""
    rng = np.random.default_rng(seed)
    areas = rng.integers(20, 236, (3, 4, 3)).astype(np.float32)
    return areas.repeat(16, axis=0).repeat(16, axis=1)


def _still(seed: int, frames: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed + 100)
    noise = rng.normal(0, 4, (frames, 48, 64, 3))
    return (_place(seed) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("at", [1, 2, 4, 6, 7])
@pytest.mark.parametrize("frames", [8, 16])
def test_a_cut_is_found_wherever_it_is(at: int, frames: int) -> None:
    one = _still(1, frames)
    other = _still(2, frames)
    assert has_cut(np.concatenate([one[:at], other[at:]]))
    assert not has_cut(one)
    assert not has_cut(other)


def test_an_empty_wall_after_a_scene_is_a_cut() -> None:
    clip = _still(3)
    clip[5:] = 230
    assert has_cut(clip)


def test_a_person_who_runs_through_is_no_cut() -> None:
    clip = _still(4)
    for frame in range(8):
        clip[frame, 8:46, 8 * frame : 8 * frame + 10] = 10
    assert not has_cut(clip)


def test_a_panning_camera_is_no_cut() -> None:
    wide = np.concatenate([_place(seed) for seed in range(5, 9)], axis=1).astype(np.uint8)
    assert not has_cut(np.stack([wide[:, 20 * frame : 20 * frame + 64] for frame in range(8)]))


def test_a_flash_and_a_fading_light_are_no_cut() -> None:
    clip = _still(9)
    flash = clip.copy()
    flash[3] = 255
    assert not has_cut(flash)
    fading = clip * np.linspace(1, 0.3, 8)[:, None, None, None]
    assert not has_cut(fading.astype(np.uint8))


@pytest.mark.parametrize("frames", [1, 2])
def test_clips_of_few_frames(frames: int) -> None:
    assert not has_cut(_still(1, frames))
    if frames == 2:
        assert has_cut(np.stack([_still(1)[0], _still(2)[0]]))


def test_rendered_clips_have_no_cut_and_joined_ones_do(rendered: Path) -> None:
    videos = [probe(path) for path in sorted((rendered / "videos").iterdir())]
    clips = [decode_frames(video, sample_frames(video, 8), (48, 48)) for video in videos]
    assert not any(map(has_cut, clips))
    joined = [np.concatenate([one[:4], other[4:]]) for one, other in pairwise(clips)]
    assert np.mean([has_cut(clip) for clip in joined]) >= 0.8

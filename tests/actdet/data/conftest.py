"""A small data set of videos, made anew for each test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actdet.data import probe_cache
from tests.actdet.video.videos import set_matrix, write_video


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four clips: one of two fights, one of a collapse, and two without any action."""
    videos = tmp_path / "videos"
    videos.mkdir()
    set_matrix(write_video(videos / "a.mp4", frames=3, size=(64, 32)), 0, 1, -1, 0)
    write_video(videos / "b.x.webm", "libvpx-vp9", frames=4)
    write_video(videos / "c.avi", "mpeg4", frames=5)
    write_video(videos / "d.mkv", frames=6)

    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "a.txt").write_text("0 8 16 24 64\n0 0 0 32 64\n")
    (annotations / "b.x.txt").write_text("1 0 0 32 12\n")
    (annotations / "c.txt").write_text("")
    return tmp_path


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are probed, in the order in which they are."""
    probed: list[str] = []
    real = probe_cache.probe

    def counting(path: Path) -> Any:
        probed.append(path.name)
        return real(path)

    monkeypatch.setattr(probe_cache, "probe", counting)
    return probed

"""The clips that the tests of readers decode."""

from __future__ import annotations

import pytest

from actdet.video.info import VideoInfo
from tests.actdet.video.clips import write_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[VideoInfo]:
    """Files that all readers decode."""
    return write_clips(tmp_path_factory.mktemp("clips"))

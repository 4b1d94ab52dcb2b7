"""Which frames of a clip the snippets have."""

from __future__ import annotations

from itertools import pairwise

import pytest

from actdet.models.stma.config import StmaConfig
from actdet.models.stma.maps import key_frame, snippet_starts


@pytest.mark.parametrize("frames", [8, 16, 24, 32])
@pytest.mark.parametrize("snippet", [1, 2, 3, 5, 7, 8])
def test_as_few_snippets_as_can_be_cover_a_clip_evenly(frames: int, snippet: int) -> None:
    starts = snippet_starts(StmaConfig(frames=frames, snippet=snippet))
    assert len(starts) == -(-frames // snippet)
    assert {frame for start in starts for frame in range(start, start + snippet)} == set(range(frames))
    gaps = [after - before for before, after in pairwise(starts)]
    assert all(0 < gap <= snippet for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_single_snippet_is_in_the_middle_or_at_the_end() -> None:
    assert snippet_starts(StmaConfig(snippets="middle")) == (5,)
    assert snippet_starts(StmaConfig(snippets="last")) == (11,)
    assert snippet_starts(StmaConfig(frames=8, snippet=8, snippets="middle")) == (0,)


def test_the_key_frame_is_in_the_middle_or_the_last() -> None:
    assert [key_frame(StmaConfig(snippet=size)) for size in (1, 2, 5, 6)] == [0, 1, 2, 3]
    assert [key_frame(StmaConfig(snippet=size, key="last")) for size in (1, 5)] == [0, 4]

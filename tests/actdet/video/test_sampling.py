"""Which frames are sampled, against their definition in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actdet.video.sampling import sample_frames

timestamps = st.lists(st.integers(1, 10**12), min_size=1, max_size=40).map(
    lambda gaps: np.cumsum(np.array(gaps, np.int64)) - gaps[0] // 2
)


@given(timestamps, st.integers(1, 64), st.integers(1, 10**12))
def test_evaluation_takes_the_frame_shown_at_the_middle_of_each_segment(pts: np.ndarray, count: int, last: int) -> None:
    start = int(pts[0])
    end = int(pts[-1]) + last
    got = sample_frames(pts, count, start=start, end=end)
    middles = [start + Fraction(2 * k + 1, 2 * count) * (end - start) for k in range(count)]
    assert got.dtype == np.int64
    assert got.tolist() == [sum(int(t) <= middle for t in pts) - 1 for middle in middles]


@given(timestamps, st.integers(1, 64), st.integers(1, 10**12), st.integers(0, 2**32))
def test_training_takes_a_frame_shown_within_each_segment(pts: np.ndarray, count: int, last: int, seed: int) -> None:
    start = int(pts[0])
    end = int(pts[-1]) + last
    got = sample_frames(pts, count, end=end, rng=np.random.default_rng(seed))
    ends = [*pts[1:].tolist(), end]
    for k, index in enumerate(got):
        low = start + Fraction(k, count) * (end - start)
        high = start + Fraction(k + 1, count) * (end - start)
        assert pts[index] < high
        assert ends[index] > low


def test_random_moments_are_uniform_in_time() -> None:
    pts = np.array([0, 10, 40], np.int64)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([sample_frames(pts, 1, end=100, rng=rng) for _ in range(4000)])
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, [0.1, 0.3, 0.6], atol=0.025)


def test_few_frames_repeat_in_order_and_a_window_clamps() -> None:
    pts = np.array([5, 6, 7], np.int64)
    assert sample_frames(pts, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert sample_frames(np.array([5]), 4).tolist() == [0, 0, 0, 0]
    assert sample_frames(pts, 4, start=0, end=20).tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize(("count", "start", "end"), [(0, 0, 9), (4, 9, 9), (4, 10, 9)])
def test_empty_spans_are_refused(count: int, start: int, end: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sample_frames(np.array([0, 5]), count, start=start, end=end)

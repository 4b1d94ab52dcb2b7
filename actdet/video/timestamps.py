"""Gives times that ascend to frames whose timestamps repeat or go back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Continued(NamedTuple):
    """Times made of timestamps, and at which frames they differ in kind."""

    times: np.ndarray  # (frames,) int64, strictly ascending
    back: np.ndarray  # (n,) int64: frames whose timestamp lies before the one of the frame that they follow
    repeated: np.ndarray  # (n,) int64: frames whose timestamp is that of the frame that they follow


def is_orderly(pts: np.ndarray, dts: Sequence[int | None], wrap: int) -> bool:
    """Whether the timestamps of packets, in the order of the file, tell the order in which their frames are shown.

    They do not where some repeat, nor where a decoder's clock goes back: what follows is another recording.
    """
    decoding = np.array([time for time in dts if time is not None], np.int64)
    if len(np.unique(pts)) < len(pts) or (np.diff(decoding) < 0).any():
        return False
    return not (_steps(decoding, wrap) < 0).any()


def continued(timestamps: np.ndarray, durations: np.ndarray, usual: int, wrap: int) -> Continued:
    """Times that ascend, of frames in the order in which they are shown.

    A frame whose timestamp goes back begins where the one before it ends, and what follows keeps its distance to it.
    Frames of one timestamp share the time up to the next one.

    Args:
        timestamps: (frames,) int64, when each frame begins to show, in ticks.
        durations: (frames,) int64, for how many ticks each is shown; 0 where that is not known.
        usual: Ticks for which a frame is shown where nothing else tells.
        wrap: Ticks after which the clock begins anew, a power of two; 0 if it never does.
    """
    steps = _steps(timestamps, wrap)
    ahead = steps[steps > 0]
    usual = int(np.median(ahead)) if len(ahead) else usual
    lasting = np.where(durations > 0, durations, usual)

    back, repeated = steps < 0, steps == 0
    steps[back] = lasting[:-1][back]
    _share(steps, usual)

    times = timestamps[0] + np.concatenate([[0], np.cumsum(steps)])
    return Continued(times, np.flatnonzero(back) + 1, np.flatnonzero(repeated) + 1)


def _steps(times: np.ndarray, wrap: int) -> np.ndarray:
    """From each time to the next, on a clock that begins anew after `wrap` ticks (0: never)."""
    if not wrap:
        return np.diff(times)
    # FFmpeg may have added `wrap` where it took a step back for the end of the clock. That is where little is missing
    # to a whole turn; from a whole turn ahead it is a step back.
    steps, turn = np.diff(times % wrap), wrap - wrap // 16
    return steps + wrap * (steps < -turn) - wrap * (steps > turn)


def _share(steps: np.ndarray, usual: int) -> None:
    """Makes each step that is 0 a part of the next one that is not, in place."""
    place = 0
    zeros = np.flatnonzero(steps == 0).tolist()
    for first in zeros:
        if first < place:
            continue
        place = first
        while place < len(steps) and steps[place] == 0:
            place += 1

        # Each frame takes a tick at least, and no more than is usual.
        count = place - first + 1
        gap = int(steps[place]) if place < len(steps) else count * usual
        shared = max(count, min(gap, count * usual))
        for k in range(first, place):
            steps[k] = shared * (k - first + 1) // count - shared * (k - first) // count
        if place < len(steps):
            steps[place] = max(gap, shared) - shared * (count - 1) // count

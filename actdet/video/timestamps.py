"""Gives ascending times to frames whose timestamps repeat or go back, as in recordings that were joined.

Pure functions on arrays of integers, in ticks of a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ContinuedTimes(NamedTuple):
    """Times made of timestamps, and the frames whose timestamps were not usable."""

    times: np.ndarray
    """(frames,) int64, strictly ascending."""
    back: np.ndarray
    """(n,) int64: indices of frames whose timestamp lies before that of the preceding frame."""
    repeated: np.ndarray
    """(n,) int64: indices of frames whose timestamp equals that of the preceding frame."""


def is_orderly(pts: np.ndarray, dts: Sequence[int | None], wrap: int) -> bool:
    """Whether the timestamps of packets tell the order in which their frames are shown.

    They do not if some of them repeat, nor if the decoder's clock goes back: what follows is another recording.

    Args:
        pts: (frames,) int64, presentation timestamps in the order of the file.
        dts: Decoding timestamps of the same packets, None if a packet has none.
        wrap: After how many ticks the clock starts again from zero, a power of two; 0 if it never does.
    """
    decoding = np.array([time for time in dts if time is not None], np.int64)
    if len(np.unique(pts)) < len(pts) or (np.diff(decoding) < 0).any():
        return False
    return not (_steps(decoding, wrap) < 0).any()


def continue_times(timestamps: np.ndarray, durations: np.ndarray, usual: int, wrap: int) -> ContinuedTimes:
    """Make ascending times of the timestamps of frames, which are in the order in which they are shown.

    A frame whose timestamp goes back begins when the preceding frame ends, and later frames keep their distances to it.
    Frames with the same timestamp share the time up to the next timestamp.

    Args:
        timestamps: (frames,) int64, when each frame begins to show.
        durations: (frames,) int64, for how long each frame is shown; 0 if that is not known.
        usual: For how long a frame is shown if nothing else tells.
        wrap: After how many ticks the clock starts again from zero, a power of two; 0 if it never does.
    """
    steps = _steps(timestamps, wrap)
    forward = steps[steps > 0]
    if len(forward):
        usual = int(np.median(forward))
    known_durations = np.where(durations > 0, durations, usual)

    goes_back = steps < 0
    repeats = steps == 0
    steps[goes_back] = known_durations[:-1][goes_back]
    _share(steps, usual)

    times = timestamps[0] + np.concatenate([[0], np.cumsum(steps)])
    return ContinuedTimes(times, np.flatnonzero(goes_back) + 1, np.flatnonzero(repeats) + 1)


def _steps(times: np.ndarray, wrap: int) -> np.ndarray:
    """Compute the step from each time to the next, on a clock that starts again after `wrap` ticks (0: never)."""
    if not wrap:
        return np.diff(times)

    # FFmpeg may have added `wrap` because it took a step back for the end of the clock, so the times are first put back
    # on the clock. There a step back of nearly a whole turn is the clock starting again, and a step forward of nearly a
    # whole turn is a step back across zero.
    steps = np.diff(times % wrap)
    nearly_a_turn = wrap - wrap // 16
    starts_again = steps < -nearly_a_turn
    goes_back_across_zero = steps > nearly_a_turn
    return steps + wrap * starts_again - wrap * goes_back_across_zero


def _share(steps: np.ndarray, usual: int) -> None:
    """Make each step that is 0 a part of the next step that is not, in place."""
    place = 0
    zeros = np.flatnonzero(steps == 0).tolist()
    for first in zeros:
        # This zero belongs to a run that was already shared.
        if first < place:
            continue
        place = first
        while place < len(steps) and steps[place] == 0:
            place += 1

        # Each frame takes at least a tick, and no more than is usual.
        count = place - first + 1
        gap = int(steps[place]) if place < len(steps) else count * usual
        shared = max(count, min(gap, count * usual))

        # The parts are rounded so that they add up to what is shared.
        for k in range(first, place):
            steps[k] = shared * (k - first + 1) // count - shared * (k - first) // count
        if place < len(steps):
            steps[place] = max(gap, shared) - shared * (count - 1) // count

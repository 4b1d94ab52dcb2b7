"""Windows: the parts of untrimmed videos that a detector of whole clips can learn from.

A detector looks at a few frames spread over a clip. In a video of minutes, of which an action takes seconds, these
would hardly meet it; so such a video is cut into clips, and what its table of tubes says is divided among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from actdet.data.clips import Clip, ClipIndex
from actdet.data.tubes import clip_annotations, frame_times
from actdet.detections import Tube
from actdet.errors import ActdetError


def cut_windows(index: ClipIndex, seconds: float) -> ClipIndex:
    """Cut the videos that have a table of tubes into windows.

    All windows of a video are equally long, as near to `seconds` as that is possible. They cover the video and do not
    overlap. A video whose annotation file has lines of actions, or is missing, stays whole, since nobody has said when
    its actions happen.

    A window's table holds the part of each tube that is in it. Its annotations, from which detectors of whole clips
    learn, leave out a part that is less than half of what could be: of the action or, if that is longer, of the window.
    So each action is annotated in one window at least, and no window shows only a trace of what it is said to hold.

    Args:
        index: The videos of a data set.
        seconds: The length of a window; 0 leaves all videos whole.

    Returns:
        The same data set with a clip for each window. The name of a window is that of its video and the second in which
        it begins: `door@12.50`.
    """
    if seconds == 0:
        return index

    clips: list[Clip] = []
    for clip in index.clips:
        clips += [clip] if clip.table is None else _windows(clip, clip.table, seconds)

    clips.sort(key=lambda clip: clip.name)
    for clip, following in pairwise(clips):
        if clip.name == following.name:
            raise ActdetError(f"windows of {seconds:g} seconds are too short: there would be two called {clip.name}")
    return replace(index, clips=tuple(clips))


def _windows(clip: Clip, table: Sequence[Tube], seconds: float) -> Iterator[Clip]:
    """Yield the windows of a video, without those in which no frame begins to show."""
    count = max(round(clip.seconds / seconds), 1)
    if count == 1:
        yield clip
        return

    # Where the clock of a recording jumped, there is no frame for many windows.
    times = frame_times(clip.video)
    length = clip.seconds / count
    window_of_frame = np.minimum((times / length).astype(np.int64), count - 1)
    numbers, firsts = np.unique(window_of_frame, return_index=True)
    stops = np.append(firsts[1:], len(times))

    # A video may have thousands of tubes and windows, so each tube is compared only with those that it reaches.
    parts: list[list[_Part]] = [[] for _ in numbers]
    for tube in table:
        first_window = int(np.searchsorted(firsts, tube.frames[0], side="right")) - 1
        last_window = int(np.searchsorted(firsts, tube.frames[-1], side="right")) - 1
        for window in range(first_window, last_window + 1):
            part = _part(tube, int(firsts[window]), int(stops[window]))
            if part is not None:
                parts[window].append(part)

    for number, first, stop, found in zip(numbers.tolist(), firsts.tolist(), stops.tolist(), parts, strict=True):
        large = [part.tube for part in found if part.is_large]
        annotations = clip_annotations(large, clip.video.width, clip.video.height)
        yield replace(
            clip,
            name=f"{clip.name}@{number * length:.2f}",
            annotations=annotations,
            table=tuple(part.tube for part in found),
            span=(first, stop),
            cut_from=clip.name,
            whole_table=clip.table,
        )


class _Part(NamedTuple):
    """What a window holds of a tube, and whether that is at least half of what could be."""

    tube: Tube
    is_large: bool


def _part(tube: Tube, first: int, stop: int) -> _Part | None:
    """Return what the frames from `first` to before `stop` hold of a tube; None if it is nothing."""
    inside = (first <= tube.frames) & (tube.frames < stop)
    if not inside.any():
        return None

    # Its length is from its first to its last frame, since truth may be sparse: one frame for each second, say.
    begin = int(tube.frames[0])
    end = int(tube.frames[-1]) + 1
    common = min(stop, end) - max(first, begin)
    part = Tube(tube.label, tube.frames[inside], tube.boxes[inside] if len(tube.boxes) else tube.boxes)
    return _Part(part, 2 * common >= min(end - begin, stop - first))

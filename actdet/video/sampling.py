"""Chooses which frames of a video to take, by their timestamps and in integer arithmetic."""

from __future__ import annotations

import numpy as np

from actdet.video.info import VideoInfo


def sample_frames(
    video: VideoInfo | np.ndarray,
    count: int,
    *,
    start: int | None = None,
    end: int | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Choose frames that are spread evenly in time over `[start, end)`.

    The span is cut into `count` equal segments. From each segment comes the frame that is shown at its middle or, with
    `rng`, at a uniformly random moment in it. A frame that shows for long is repeated.

    Args:
        video: The video, or only the ascending timestamps of its frames, (frames,) int64. The last frame then shows as
            long as the one before it.
        count: How many frames to choose, at least 1.
        start: The start of the span, in the video's ticks; by default that of the video.
        end: The end of the span; by default that of the video.
        rng: Draws the random moments.

    Returns:
        Indices (count,) int64 of frames, in ascending order.

    Raises:
        ValueError: If the span is empty, or no frame is asked for.
    """
    if isinstance(video, VideoInfo):
        pts = video.pts
        video_end = video.end
    else:
        pts = video
        video_end = 2 * int(pts[-1]) - int(pts[-2]) if len(pts) > 1 else int(pts[-1]) + 1
    start = int(pts[0]) if start is None else start
    span = (video_end if end is None else end) - start
    if count < 1 or span < 1:
        raise ValueError(f"{count} frames out of a span of {span} ticks: both must be at least 1")

    if rng is None:
        times = [start + (2 * k + 1) * span // (2 * count) for k in range(count)]
    else:
        # In units of 1/count of a tick, every segment is `span` units long, whatever the remainder of span / count is.
        offsets = rng.integers(span, size=count)
        times = [start + (k * span + int(offset)) // count for k, offset in enumerate(offsets)]

    # A time before the first frame gets the first frame.
    shown = np.searchsorted(pts, np.array(times, dtype=np.int64), side="right") - 1
    return np.maximum(shown, 0).astype(np.int64)

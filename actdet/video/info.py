"""What is known of a video file before its frames are decoded: when each frame shows, its size, where one can seek.

`probe` reads a file once, without decoding it, and notes the presentation timestamps of all frames. Nothing here or in
`sampling` and `decoding` divides by a frame rate, so variable rates, late starts and reordered frames need no special
care. If timestamps repeat or go back, frames are identified by the places of their packets in the file, and their times
are continued (`timestamps`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from actdet.errors import DataError
from actdet.video.container import clock_period, open_video, video_streams
from actdet.video.demuxing import (
    Demuxed,
    check_complete,
    demux,
    find_display_order,
    find_joined_file,
    rotation_of,
)
from actdet.video.timestamps import continue_times, is_orderly

# Limits of the sides of a picture, in pixels, and of how many times as long as the other one a side is. Only damaged or
# hostile files exceed them, and enlarging their pictures would take all memory.
_LEAST_SIDE = 8
_MOST_SIDE = 16384
_MOST_ASPECT = 64


def _no_indices() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What `probe` tells of a video. Times are in ticks of `time_base` seconds."""

    path: str
    width: int
    """In pixels, as displayed: after rotation. The sample aspect ratio is ignored."""
    height: int
    rotation: int
    """By how many degrees, counterclockwise, a decoded picture is turned upright: 0, 90, 180 or 270."""
    time_base: Fraction
    pts: np.ndarray
    """(frames,) int64, ascending: when each frame begins to show."""
    end: int
    """When the last frame ceases to show."""
    codec: str
    """FFmpeg's name of the codec, such as h264."""
    has_timestamps: bool
    """Whether the container has presentation timestamps. Without them, frames are identified by their order."""
    skipped: int
    """Packets that give no frame: hidden ones, those cut off by an edit list, those before the first keyframe."""
    bytes: int = 0
    """The size of the file."""
    seek_points: np.ndarray = field(default_factory=_no_indices)
    """(n,) int64, ascending: indices of frames at which decoding can begin and give exactly what it gives from the
    start of the file. Only frames for which that is certain are listed."""
    remarks: tuple[str, ...] = ()
    """What is unusual in the file, but no error; a line each."""
    alone: bool = True
    """Whether the file has no other video stream. Cover art counts as one."""
    places: np.ndarray = field(default_factory=_no_indices)
    """(packets,) int64: the index of the frame of each packet that is shown, in the order of the file, or -1 if it has
    none. Empty if the timestamps of the packets, which are then `pts`, tell."""
    pixel_format: str = ""
    """FFmpeg's name of how the codec stores a pixel, such as yuv420p10le. A hardware decoder may refuse it."""

    @property
    def seconds(self) -> float:
        """How long the video is."""
        return float((self.end - int(self.pts[0])) * self.time_base)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Find out what is known of the video stream that players show.

    Reads the file to its end, but decodes only its first frame, for size and rotation. If timestamps repeat or go back,
    and so do not tell in which order the frames are shown, the whole file is decoded.

    Args:
        path: The file.

    Raises:
        DataError: If the file is not a complete video.
    """
    path = os.fspath(path)
    with open_video(path) as (container, stream):
        size = os.path.getsize(path)
        # Extreme sizes are refused before anything is decoded, if the header tells the size.
        if stream.width and stream.height:
            _check_shape(path, stream.width, stream.height)

        found = demux(path, container, stream)
        check_complete(path, container, stream, found)
        time_base = stream.time_base or Fraction(1, 25)
        rate = stream.guessed_rate or Fraction(25)
        clock = clock_period(container)

        # Older versions of PyAV have no canonical name.
        codec = getattr(stream.codec, "canonical_name", stream.codec.name)

        # AVI stores frames in decoding order and nothing else: FFmpeg's timestamps for B-frames are guesses.
        has_timestamps = container.format.name != "avi" and None not in found.pts

        alone = len(container.streams.video) == 1
        candidates = [each.index for each in video_streams(container)]
        number = 1 + candidates.index(stream.index)
        joined = find_joined_file(path, found.bytes_read)

    if found.first_frame is None or not found.pts:
        raise DataError(path, f"none of its {found.complete} frames can be decoded; convert it again or remove it")
    if not has_timestamps and None in found.dts:
        # Not even decoding timestamps: the frames are counted, each as long as the frame rate says.
        found.dts = [*range(len(found.dts))]
        found.durations = [1] * len(found.dts)
        time_base = 1 / rate

    rotation = rotation_of(path, found.first_frame)
    width = found.first_frame.width
    height = found.first_frame.height
    _check_shape(path, width, height)
    if rotation % 180:
        width, height = height, width

    order, pts, remarks = _order_frames(path, found, has_timestamps, time_base, rate, clock)
    gap = int(pts[-1] - pts[-2]) if len(pts) > 1 else 1
    end = int(pts[-1]) + (found.durations[order[-1]] or gap)

    seek_points = _no_indices()
    places = _no_indices()
    if has_timestamps and np.array_equal(pts, np.sort(np.array(found.pts, np.int64))):
        seek_points = np.searchsorted(pts, np.array(found.seek_points, np.int64))
    elif has_timestamps:
        # The times were continued, so they are not those that a decoder gives with its frames.
        places = np.full(len(found.pts), -1)
        places[order] = np.arange(len(order))

    if len(candidates) > 1:
        remarks.append(f"has {len(candidates)} video streams; only number {number}, which players show, is read")
    if joined is not None:
        remarks.append(f"another recording begins at byte {joined} and is not read: split the file there")
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        rotation=rotation,
        time_base=time_base,
        pts=pts,
        end=end,
        codec=codec,
        has_timestamps=has_timestamps,
        skipped=found.packets - len(pts),
        bytes=size,
        seek_points=seek_points,
        remarks=tuple(remarks),
        alone=alone,
        places=places,
        pixel_format=found.first_frame.format.name,
    )


class _OrderedFrames(NamedTuple):
    """The frames of a video in the order in which they are shown."""

    order: list[int]
    """For each frame, the place of its packet among those that are shown, in the order of the file."""
    pts: np.ndarray
    """(frames,) int64, ascending: when each frame begins to show."""
    remarks: list[str]
    """What is unusual in the timestamps."""


def _order_frames(
    path: str, found: Demuxed, has_timestamps: bool, time_base: Fraction, rate: Fraction, clock: int
) -> _OrderedFrames:
    """Find the order in which frames are shown, and when.

    Args:
        path: The file.
        found: What demuxing it found.
        has_timestamps: Whether the container has presentation timestamps.
        time_base: Seconds per tick.
        rate: Frames per second, roughly.
        clock: After how many ticks the clock starts again from zero; 0 if it never does.

    Raises:
        DataError: If the timestamps are no times.
    """
    stamps = np.array(found.pts if has_timestamps else found.dts, np.int64)
    if is_orderly(stamps, found.dts, clock):
        order = np.argsort(stamps)
        return _OrderedFrames(order.tolist(), stamps[order], [])

    # Frames that are not reordered, or have no timestamps of their own, are shown as they lie in the file.
    order = list(range(len(stamps)))
    if has_timestamps and found.pts != found.dts:
        order = find_display_order(path, len(stamps))

    durations = np.array(found.durations, np.int64)
    usual = max(1, round(1 / (rate * time_base)))
    pts, back, repeated = continue_times(stamps[order], durations[order], usual, clock)
    if (np.diff(pts) <= 0).any():
        raise DataError(path, "has timestamps that are too far apart to be times; convert it again or remove it")

    remarks = []
    for frames, what, done in ((back, "go back", "continued"), (repeated, "repeat", "spread")):
        if len(frames):
            often = "" if len(frames) == 1 else f" {len(frames)} times, first"
            seconds = float((int(pts[frames[0]]) - int(pts[0])) * time_base)
            remarks.append(f"its timestamps {what}{often} at frame {frames[0]} ({seconds:.2f} s); they were {done}")
    return _OrderedFrames(order, pts, remarks)


def _check_shape(path: str, width: int, height: int) -> None:
    """Raise DataError for pictures that are too small, too large or too long."""
    shorter, longer = sorted((width, height))
    if shorter < _LEAST_SIDE or longer > _MOST_SIDE or longer > _MOST_ASPECT * shorter:
        expected = (
            f"sides of {_LEAST_SIDE} to {_MOST_SIDE}, neither more than {_MOST_ASPECT} times as long as the other"
        )
        raise DataError(path, f"has pictures of {width} x {height} pixels; expected {expected}")

"""Reads videos through PyAV: the timestamps of every frame, which frames to take, and their pixels.

A file is demuxed once (`probe`) for the presentation timestamps of all its frames; `sample_frames` chooses
among them in integer arithmetic; `decode_frames` and `stream_frames` decode in order and pick by timestamp.
Nothing divides by a frame rate, so variable rates, late starts and reordered frames need no special care.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from actdet.data._container import check_whole, demux, is_empty, opened, rotation_of
from actdet.errors import DataError

# SWS_BILINEAR | SWS_FULL_CHR_H_INT | SWS_ACCURATE_RND | SWS_BITEXACT, as numbers because older PyAV names
# only the first. Bilinear widens its triangle when it shrinks: it is antialiased. Without full chroma a small
# picture gets half its columns of colour: 3.6 of 255 off on average instead of 0.2, for 0.07 ms less a frame.
# The last two flags cost nothing and keep the result the same on every processor.
_INTERPOLATION = 0x2 | 0x2000 | 0x40000 | 0x80000


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What demuxing tells of a video. Times are in ticks of `time_base` seconds."""

    path: str
    width: int  # as displayed: after rotation, ignoring the sample aspect ratio
    height: int
    rotation: int  # degrees counter-clockwise that turn a decoded picture upright: 0, 90, 180 or 270
    time_base: Fraction
    pts: np.ndarray  # (frames,) int64, ascending: when each frame begins to show
    end: int  # when the last frame ceases to show
    codec: str
    timed: bool  # False where the container has no presentation timestamps: frames then go by their order
    skipped: int  # packets that give no frame: hidden, cut off by an edit list, or before the first keyframe

    @property
    def seconds(self) -> float:
        return float((self.end - int(self.pts[0])) * self.time_base)


class ClipRequest(NamedTuple):
    """Frames of a video to decode, by their place in `video.pts`."""

    video: VideoInfo
    indices: np.ndarray


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """The facts of the first video stream in `path`; a DataError for anything that is not a whole video.

    Reads the file to its end but decodes only one frame of it, for its size and rotation.
    """
    path = os.fspath(path)
    with opened(path) as (container, stream):
        found = demux(path, container, stream)
        check_whole(path, container, stream, found)
        time_base = stream.time_base or Fraction(1, 25)
        rate = stream.guessed_rate or Fraction(25)
        codec = getattr(stream.codec, "canonical_name", stream.codec.name)
        # AVI stores frames in decoding order and nothing else: FFmpeg's timestamps for B-frames are guesses.
        timed = container.format.name != "avi" and None not in found.pts
    if found.first is None or not found.pts:
        raise DataError(path, f"none of its {found.whole} frames decodes; convert it again or remove it")
    times, durations = (found.pts if timed else found.dts), found.durations
    if None in times:
        times, durations, time_base = range(len(times)), [1] * len(times), 1 / rate
    pts, order = np.unique(np.array(times, dtype=np.int64), return_index=True)
    gap = int(pts[-1] - pts[-2]) if len(pts) > 1 else 1
    end = int(pts[-1]) + (durations[order[-1]] or gap)
    rotation = rotation_of(path, found.first)
    width, height = found.first.width, found.first.height
    if rotation % 180:
        width, height = height, width
    skipped = found.packets - len(pts)
    return VideoInfo(path, width, height, rotation, time_base, pts, end, codec, timed, skipped)


def sample_frames(
    video: VideoInfo | np.ndarray,
    count: int,
    *,
    start: int | None = None,
    end: int | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Indices (count,) int64 of frames spread evenly in time over `[start, end)`, in ascending order.

    The span, by default the whole video, is cut into `count` equal segments. Of each comes the frame shown at
    its middle or, with `rng`, at a uniformly random moment in it. A frame that shows for long is repeated.
    `video` may be the ascending timestamps alone; their last frame then shows as long as the one before it.
    """
    if isinstance(video, VideoInfo):
        pts, until = video.pts, video.end
    else:
        pts = video
        until = 2 * int(pts[-1]) - int(pts[-2]) if len(pts) > 1 else int(pts[-1]) + 1
    start = int(pts[0]) if start is None else start
    span = (until if end is None else end) - start
    if count < 1 or span < 1:
        raise ValueError(f"{count} frames out of a span of {span} ticks: both must be at least 1")
    if rng is None:
        times = [start + (2 * k + 1) * span // (2 * count) for k in range(count)]
    else:
        # In units of 1/count tick every segment is `span` units long, whatever the remainder of span / count.
        times = [start + (k * span + int(u)) // count for k, u in enumerate(rng.integers(span, size=count))]
    shown = np.searchsorted(pts, np.array(times, dtype=np.int64), side="right") - 1
    return np.maximum(shown, 0).astype(np.int64)


def decode_frames(
    info: VideoInfo, indices: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
) -> np.ndarray:
    """As `stream_frames`, of indices in any order, in one array: uint8 (len(indices), height, width, 3)."""
    wanted, where = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    height, width = size or (info.height, info.width)
    pictures = np.empty((len(wanted), height, width, 3), np.uint8)
    for slot, (_, picture) in zip(pictures, stream_frames(info, wanted, size), strict=True):
        slot[:] = picture
    return pictures if np.array_equal(where, np.arange(len(where))) else pictures[where]


def stream_frames(
    info: VideoInfo, indices: Iterable[int], size: tuple[int, int] | None = None, *, threads: int = 1
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Each of the ascending `indices` with its frame: uint8 (height, width, 3), RGB, upright, sized `size`.

    Decodes in order from the start, in constant memory, up to the last index asked for, on `threads` codec threads
    (0: one per core); their number changes neither the frames of a whole file nor what is said of a damaged one.
    `size` is (height, width), by default the video's own. Resizing is FFmpeg's antialiased bilinear, straight
    from the decoded planes and before rotation.
    """
    height, width = size or (info.height, info.width)
    if info.rotation % 180:
        height, width = width, height
    reformatter = VideoReformatter()
    frames = _decode(info, threads)
    current, picture = -1, np.empty(0)
    for index in indices:
        if not max(current, 0) <= index < len(info.pts):
            raise ValueError(f"frame {index} after frame {current}, of {len(info.pts)} frames")
        if index != current:
            try:
                frame = _seek(info, frames, index, current)
            except DataError:
                if threads == 1:
                    raise
                # Several threads lose sound frames beside a damaged one: one thread says how far the file is whole.
                threads, frames = 1, _decode(info, 1)
                frame = _seek(info, frames, index, -1)
            current = int(index)
            frame = reformatter.reformat(frame, width, height, "rgb24", interpolation=_INTERPOLATION)
            picture = np.ascontiguousarray(np.rot90(frame.to_ndarray(), info.rotation // 90))
        yield current, picture


def _seek(info: VideoInfo, frames: Iterator[tuple[int, VideoFrame]], index: int, current: int) -> VideoFrame:
    """The frame of that index out of what the decoder gives, in order, after frame `current`."""
    whole, reason = current + 1, "a frame is missing or corrupt"
    try:
        for position, frame in frames:
            if position == index and not frame.is_corrupt:
                return frame
            if position >= index:
                break
            whole = position + 1
    except FFmpegError as error:
        reason = error.strerror.lower() if error.strerror else str(error)
    seconds = float((int(info.pts[whole]) - int(info.pts[0])) * info.time_base)
    what = f"only the first {whole} of its {len(info.pts)} frames decode: {reason} at {seconds:.2f} s"
    raise DataError(info.path, f"{what}; the file is damaged: convert it again or remove it")


def _decode(info: VideoInfo, threads: int) -> Iterator[tuple[int, VideoFrame]]:
    """Every frame of the index that the decoder gives, with its index."""
    with opened(info.path, threads) as (container, stream):
        started, count = False, 0
        for packet in container.demux(stream):
            started = started or packet.is_keyframe
            if not started or is_empty(packet):
                continue
            for frame in packet.decode():
                index = count if not info.timed else int(np.searchsorted(info.pts, frame.pts or 0))
                count += 1
                if not info.timed or (index < len(info.pts) and info.pts[index] == frame.pts):
                    yield index, frame

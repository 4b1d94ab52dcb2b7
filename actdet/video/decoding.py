"""Decodes the frames that are asked for, and as few others as possible.

`decode_frames` gives them in one array, `stream_frames` one by one. Frames are found by their timestamps, or by the
places of their packets if the timestamps repeat or go back. What cannot be decoded is an error here; `damage` goes on
behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from actdet.errors import DataError
from actdet.video.container import is_empty, is_shown, open_video, packets_of
from actdet.video.info import VideoInfo

# SWS_BILINEAR | SWS_FULL_CHR_H_INT | SWS_ACCURATE_RND | SWS_BITEXACT, as numbers because older versions of PyAV name
# only the first. Bilinear widens its triangle when it shrinks a picture, so it is antialiased. Without full chroma, a
# small picture gets half its columns of color: it is off by 3.6 of 255 on average instead of 0.2, for 0.07 ms less per
# frame. The last two flags cost nothing and keep the result the same on every processor.
_INTERPOLATION = 0x2 | 0x2000 | 0x40000 | 0x80000

# A seek costs about as much as decoding four frames, so that many are decoded rather than sought past.
_SEEK_PAST = 4


class ClipRequest(NamedTuple):
    """Frames of a video to decode."""

    video: VideoInfo
    indices: np.ndarray
    """(T,) int64 indices into `video.pts`, in any order."""


def decode_frames(
    info: VideoInfo, indices: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode frames into one array.

    Args:
        info: The video.
        indices: Indices of the frames, in any order; they may repeat.
        size: Height and width of the pictures; by default the video's own.

    Returns:
        uint8 (len(indices), height, width, 3), RGB, upright; resized as `stream_frames` does it.

    Raises:
        DataError: If a frame cannot be decoded.
        ValueError: If an index is not that of a frame.
    """
    wanted, rows = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    height, width = size or (info.height, info.width)
    pictures = np.empty((len(wanted), height, width, 3), np.uint8)
    for slot, (_, picture) in zip(pictures, stream_frames(info, wanted, size), strict=True):
        slot[:] = picture

    # Indices that ascend without repeating, which is the usual case, need no copy.
    if np.array_equal(rows, np.arange(len(rows))):
        return pictures
    return pictures[rows]


def stream_frames(
    info: VideoInfo, indices: Iterable[int], size: tuple[int, int] | None = None, *, threads: int = 1
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Decode frames one by one, in constant memory, up to the last index that is asked for.

    A frame that nobody asked for is not decoded if no other frame refers to it, or if decoding can begin behind it.
    Resizing is FFmpeg's antialiased bilinear, straight from the decoded planes and before rotation.

    Args:
        info: The video.
        indices: Ascending indices of the frames; they may repeat.
        size: Height and width of the pictures; by default the video's own.
        threads: Number of codec threads; 0 for one per core. It changes neither the frames of an intact file nor the
            message about a damaged one.

    Yields:
        Each index with its picture: uint8 (height, width, 3), RGB, upright.

    Raises:
        DataError: If a frame cannot be decoded.
        ValueError: If the indices do not ascend, or if one is not that of a frame.
    """
    wanted = np.fromiter(indices, np.int64)
    if len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(info.pts) or (np.diff(wanted) < 0).any()):
        raise ValueError(f"frames {wanted} of a video of {len(info.pts)} frames; expected ascending indices of frames")

    make_picture = picture_maker(info, size)
    distinct = np.unique(wanted)
    frames = wanted_frames(info, distinct, threads)
    current = -1
    picture = np.empty(0)
    for index in wanted.tolist():
        if index != current:
            try:
                frame = next(frames)
            except DataError:
                if threads == 1:
                    raise

                # Several threads also lose intact frames beside a damaged one. One thread finds out how far the file
                # is intact.
                threads = 1
                frames = wanted_frames(info, distinct, threads)
                given = int(np.searchsorted(distinct, index))
                frame = next(islice(frames, given, None))
            picture = make_picture(frame)
            current = index
        yield current, picture


def picture_maker(info: VideoInfo, size: tuple[int, int] | None) -> Callable[[VideoFrame], np.ndarray]:
    """Make a function that turns a decoded frame into a picture.

    Args:
        info: The video.
        size: Height and width of the pictures; by default the video's own.

    Returns:
        A function from a frame to uint8 (height, width, 3), RGB, upright.
    """
    height, width = size or (info.height, info.width)
    if info.rotation % 180:
        height, width = width, height
    reformatter = VideoReformatter()

    def make_picture(frame: VideoFrame) -> np.ndarray:
        resized = reformatter.reformat(frame, width, height, "rgb24", interpolation=_INTERPOLATION)
        return np.ascontiguousarray(np.rot90(resized.to_ndarray(), info.rotation // 90))

    return make_picture


def wanted_frames(info: VideoInfo, wanted: np.ndarray, threads: int, *, at_once: bool = False) -> Iterator[VideoFrame]:
    """Decode the frames of ascending, different indices, and seek past others if that is worth it.

    Args:
        info: The video.
        wanted: (n,) int64 indices.
        threads: Number of codec threads; 0 for one per core.
        at_once: Whether damage is an error as soon as the decoder meets it. Otherwise it is one when its turn to be
            shown comes, and frames that are shown before it may refer to it. FFmpeg then also fails for small faults
            that spoil no picture.

    Raises:
        DataError: If a frame cannot be decoded.
    """
    with open_video(info.path, threads) as (container, stream):
        if at_once:
            stream.codec_context.options = {"err_detect": "explode"}
        asked = frozenset(info.pts[wanted].tolist())
        frames = _decoded_frames(info, container, stream, asked)

        # The index of the frame that the decoder gives next, unless it is left out.
        reached = 0

        # How many seek points lie at or before each wanted frame.
        points_before = np.searchsorted(info.seek_points, wanted, side="right").tolist()

        for place, index in enumerate(wanted.tolist()):
            points = info.seek_points[: points_before[place]]
            last_point = int(points[-1]) if len(points) else 0
            if last_point < reached + _SEEK_PAST:
                yield _take(info, frames, index, reached)
                reached = index + 1
                continue

            sought = _seek(info, container, stream, asked, index, points)
            if sought is None:
                # Neither the seek points nor the container's own index can be trusted: the rest is decoded from the
                # start of the file.
                without_points = replace(info, seek_points=info.seek_points[:0])
                yield from wanted_frames(without_points, wanted[place:], threads, at_once=at_once)
                return
            frames, frame = sought
            yield frame
            reached = index + 1


def _seek(
    info: VideoInfo,
    container: InputContainer,
    stream: VideoStream,
    asked: Set[int],
    index: int,
    points: np.ndarray,
) -> tuple[Iterator[tuple[int, VideoFrame]], VideoFrame] | None:
    """Seek to the last seek point before a frame, and decode up to that frame.

    Args:
        info: The video.
        container: Its open container.
        stream: Its open stream.
        asked: The pts of all frames that are asked for.
        index: The index of the frame.
        points: The seek points at or before it.

    Returns:
        The decoder's further frames, and the frame; None if seeking failed or ended at a wrong place.
    """
    last_point = int(points[-1])

    # Some containers are searched by presentation times and some by decoding times, so either the time of the frame or
    # that of the seek point leads to the right place.
    for time in info.pts[[index, last_point]].tolist():
        try:
            container.seek(time, stream=stream)
        except FFmpegError:
            continue
        frames = _decoded_frames(info, container, stream, asked, info.pts[points])
        with suppress(_AstrayError):
            return frames, _take(info, frames, index, last_point)
    return None


def _take(info: VideoInfo, frames: Iterator[tuple[int, VideoFrame]], index: int, reached: int) -> VideoFrame:
    """Take the frame with a given index out of the frames that the decoder gives.

    Args:
        info: The video.
        frames: What the decoder gives, with indices.
        index: The index of the frame.
        reached: The index of the first frame that the decoder has yet to give.

    Raises:
        DataError: If the frame is missing or corrupt. The message says how far the file decodes.
    """
    reason = "a frame is missing or corrupt"
    try:
        for position, frame in frames:
            if position == index and not frame.is_corrupt:
                return frame
            if position >= index:
                break
            reached = position + 1
    except FFmpegError as error:
        reason = error.strerror.lower() if error.strerror else str(error)

    seconds = float((int(info.pts[reached]) - int(info.pts[0])) * info.time_base)
    what = f"only the first {reached} of its {len(info.pts)} frames decode: {reason} at {seconds:.2f} s"
    raise DataError(info.path, f"{what}; the file is damaged: convert it again or remove it")


class _AstrayError(Exception):
    """A seek ended at a place at which decoding may not begin, or behind the right one."""


def _decoded_frames(
    info: VideoInfo,
    container: InputContainer,
    stream: VideoStream,
    asked: Set[int],
    seek_times: np.ndarray | None = None,
) -> Iterator[tuple[int, VideoFrame]]:
    """Give the frames that the decoder gives from where the container stands, each with its index.

    Frames that nobody asked for and that no other frame refers to are left out if that is safe. It is not safe in
    interlaced video, in which a packet may be half a frame.

    Args:
        info: The video.
        container: Its open container.
        stream: Its open stream.
        asked: The pts of the frames that are asked for.
        seek_times: After a seek, the pts of the frames at one of which the container should stand.

    Raises:
        _AstrayError: If it stands elsewhere.
        FFmpegError: If a packet cannot be decoded.
    """
    started = False
    may_skip = False
    count = 0
    place = 0
    for packet in packets_of(container, stream):
        if not started and seek_times is not None and packet.pts not in seek_times:
            raise _AstrayError
        started = started or packet.is_keyframe
        if not started or is_empty(packet):
            continue

        if len(info.places):
            shown = is_shown(packet, stream)
            packet.pts = time_at(info, place) if shown else None
            place += shown

        is_needed = not may_skip or packet.pts is None or packet.pts in asked
        stream.codec_context.skip_frame = "DEFAULT" if is_needed else "NONREF"
        for frame in packet.decode():
            may_skip = info.has_timestamps and not frame.interlaced_frame
            index = index_of(info, frame, count)
            count += 1
            if index is not None:
                yield index, frame


def index_of(info: VideoInfo, frame: VideoFrame, count: int) -> int | None:
    """Find the index of a frame that a decoder gave.

    Args:
        info: The video.
        frame: The frame.
        count: How many frames the decoder has given before, which is the index if the video has no timestamps.

    Returns:
        The index; None if no frame of the video has this timestamp.
    """
    if not info.has_timestamps:
        return count
    index = int(np.searchsorted(info.pts, frame.pts or 0))
    if index < len(info.pts) and info.pts[index] == frame.pts:
        return index
    return None


def time_at(info: VideoInfo, place: int) -> int | None:
    """Tell when the frame of a packet begins to show, if only the packet's place in the file tells that.

    Args:
        info: The video.
        place: The place of the packet among those that are shown.

    Returns:
        The time in ticks; None if the packet has no frame.
    """
    index = int(info.places[place]) if place < len(info.places) else -1
    return None if index < 0 else int(info.pts[index])

"""Reads videos through PyAV: the timestamps of every frame, which frames to take, and their pixels.

A file is demuxed once (`probe`) for the presentation timestamps of all its frames; `sample_frames` chooses
among them in integer arithmetic; `decode_frames` and `stream_frames` decode what these need and pick by timestamp.
Nothing divides by a frame rate, so variable rates, late starts and reordered frames need no special care.
Where timestamps repeat or go back, frames go by their packets' places in the file, and their times are continued.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from actdet.errors import DataError
from actdet.video.container import (
    Demuxed,
    check_whole,
    clock_of,
    decoded_order,
    demux,
    is_empty,
    is_shown,
    joined_at,
    opened,
    packets_of,
    rotation_of,
    videos_of,
)
from actdet.video.timestamps import continued, is_orderly

# SWS_BILINEAR | SWS_FULL_CHR_H_INT | SWS_ACCURATE_RND | SWS_BITEXACT, as numbers because older PyAV names
# only the first. Bilinear widens its triangle when it shrinks: it is antialiased. Without full chroma a small
# picture gets half its columns of colour: 3.6 of 255 off on average instead of 0.2, for 0.07 ms less a frame.
# The last two flags cost nothing and keep the result the same on every processor.
_INTERPOLATION = 0x2 | 0x2000 | 0x40000 | 0x80000

# Frames that are decoded rather than sought past: a seek costs about as much as decoding four.
_SEEK_PAST = 4

# Sides of a picture, in pixels, and how many times as long as the other one may be: beyond is what only a damaged or
# hostile file has, and what takes all memory to enlarge.
_LEAST_SIDE, _MOST_SIDE, _MOST_ASPECT = 8, 16384, 64


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
    bytes: int = 0  # of the file
    # Frames, ascending, from which decoding gives what it gives from the start; only where that is certain.
    entries: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    remarks: tuple[str, ...] = ()  # what is unusual in the file, but no error; a line each
    alone: bool = True  # whether the file has no other video stream; cover art is one
    # Of the packets that are shown, in the order of the file: the index of their frame, or -1 for none. Empty where
    # the packets' own timestamps, which are then `pts`, tell.
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    # FFmpeg's name of how it codes a pixel, such as yuv420p10le: what a hardware decoder may refuse.
    pixel_format: str = ""

    @property
    def seconds(self) -> float:
        return float((self.end - int(self.pts[0])) * self.time_base)


class ClipRequest(NamedTuple):
    """Frames of a video to decode, by their place in `video.pts`."""

    video: VideoInfo
    indices: np.ndarray


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """The facts of the video stream that players show of `path`; a DataError for anything that is not a whole video.

    Reads the file to its end but decodes only one frame of it, for its size and rotation; all of them where their
    timestamps repeat or go back, and so do not tell in which order they are shown.
    """
    path = os.fspath(path)
    with opened(path) as (container, stream):
        size = os.path.getsize(path)
        if stream.width and stream.height:
            _check_shape(path, stream.width, stream.height)
        found = demux(path, container, stream)
        check_whole(path, container, stream, found)
        time_base = stream.time_base or Fraction(1, 25)
        rate = stream.guessed_rate or Fraction(25)
        codec = getattr(stream.codec, "canonical_name", stream.codec.name)
        # AVI stores frames in decoding order and nothing else: FFmpeg's timestamps for B-frames are guesses.
        timed = container.format.name != "avi" and None not in found.pts
        clock = clock_of(container)
        alone = len(container.streams.video) == 1
        shown = [each.index for each in videos_of(container)]
        number = 1 + shown.index(stream.index)
        joined = joined_at(path, found.bytes)
    if found.first is None or not found.pts:
        raise DataError(path, f"none of its {found.whole} frames decodes; convert it again or remove it")
    if not timed and None in found.dts:
        found.dts = [*range(len(found.dts))]
        found.durations = [1] * len(found.dts)
        time_base = 1 / rate

    rotation = rotation_of(path, found.first)
    width, height = found.first.width, found.first.height
    _check_shape(path, width, height)
    if rotation % 180:
        width, height = height, width

    order, pts, remarks = _times(path, found, timed, time_base, rate, clock)
    gap = int(pts[-1] - pts[-2]) if len(pts) > 1 else 1
    end = int(pts[-1]) + (found.durations[order[-1]] or gap)
    entries, places = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if timed and np.array_equal(pts, np.sort(np.array(found.pts, np.int64))):
        entries = np.searchsorted(pts, np.array(found.entries, np.int64))
    elif timed:
        places = np.full(len(found.pts), -1)
        places[order] = np.arange(len(order))
    skipped = found.packets - len(pts)
    if len(shown) > 1:
        remarks = (*remarks, f"has {len(shown)} video streams; only number {number}, which players show, is read")
    if joined is not None:
        remarks = (*remarks, f"another recording begins at byte {joined} and is not read: split the file there")
    facts = path, width, height, rotation, time_base, pts, end, codec, timed, skipped, size, entries, remarks, alone
    return VideoInfo(*facts, places, found.first.format.name)


def _times(
    path: str, found: Demuxed, timed: bool, time_base: Fraction, rate: Fraction, clock: int
) -> tuple[list[int], np.ndarray, tuple[str, ...]]:
    """The packets in the order in which their frames are shown, when each begins to show, and what is unusual in it.

    clock: ticks after which the file's clock begins anew, or 0.
    """
    stamps = np.array(found.pts if timed else found.dts, np.int64)
    if is_orderly(stamps, found.dts, clock):
        order = np.argsort(stamps)
        return order.tolist(), stamps[order], ()

    # Without reordered frames, or without any timestamps of their own, they are shown as they lie in the file.
    reordered = timed and found.pts != found.dts
    order = decoded_order(path, len(stamps)) if reordered else list(range(len(stamps)))
    usual = max(1, round(1 / (rate * time_base)))
    pts, back, repeated = continued(stamps[order], np.array(found.durations, np.int64)[order], usual, clock)
    if (np.diff(pts) <= 0).any():
        raise DataError(path, "has timestamps too far apart to be times; convert it again or remove it")

    remarks = []
    for frames, what, done in ((back, "go back", "continued"), (repeated, "repeat", "spread")):
        if len(frames):
            often = "" if len(frames) == 1 else f" {len(frames)} times, first"
            seconds = float((int(pts[frames[0]]) - int(pts[0])) * time_base)
            remarks.append(f"its timestamps {what}{often} at frame {frames[0]} ({seconds:.2f} s); they were {done}")
    return order, pts, tuple(remarks)


def _check_shape(path: str, width: int, height: int) -> None:
    shorter, longer = sorted((width, height))
    if shorter < _LEAST_SIDE or longer > _MOST_SIDE or longer > _MOST_ASPECT * shorter:
        expected = f"sides of {_LEAST_SIDE} to {_MOST_SIDE}, none more than {_MOST_ASPECT} times as long as the other"
        raise DataError(path, f"has pictures of {width} x {height} pixels; expected are {expected}")


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

    Decodes in order and in constant memory, up to the last index asked for. What nobody asked for is not decoded where
    no other frame refers to it, nor where decoding can begin behind it. The number of codec threads (0: one per core)
    changes neither the frames of a whole file nor what is said of a damaged one.
    `size` is (height, width), by default the video's own. Resizing is FFmpeg's antialiased bilinear, straight
    from the decoded planes and before rotation.
    """
    wanted = np.fromiter(indices, np.int64)
    if len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(info.pts) or (np.diff(wanted) < 0).any()):
        raise ValueError(f"frames {wanted} of {len(info.pts)}: expected are ascending ones that are there")
    shown = _shower(info, size)
    distinct = np.unique(wanted)
    frames = _decode(info, distinct, threads)
    current, picture = -1, np.empty(0)
    for index in wanted.tolist():
        if index != current:
            try:
                frame = next(frames)
            except DataError:
                if threads == 1:
                    raise
                # Several threads lose sound frames beside a damaged one: one thread says how far the file is whole.
                threads, frames = 1, _decode(info, distinct, 1)
                frame = next(islice(frames, int(np.searchsorted(distinct, index)), None))
            picture = shown(frame)
            current = index
        yield current, picture


def stream_past_damage(
    info: VideoInfo, indices: Iterable[int], size: tuple[int, int] | None = None, *, threads: int = 1
) -> Generator[tuple[int, np.ndarray | None], None, None]:
    """As `stream_frames`, of different indices, but frames that are lost come as None where others raise an error.

    Behind damage it goes on at the next keyframe, on one thread: several lose sound frames beside a damaged one. From
    there on frames come as None that nobody asked for, too, if they are lost and lie before the last that is asked for.
    """
    shown = _shower(info, size)
    wanted = np.fromiter(indices, np.int64).tolist()
    given = 0
    with suppress(DataError):
        for index, frame in zip(wanted, _decode(info, np.array(wanted, np.int64), threads), strict=True):
            given += 1
            yield index, shown(frame)
    if given == len(wanted):
        return

    # Frames that go by their order have moved up where a decoder left one out: the one that failed is none.
    asked = frozenset(wanted[given + (not info.timed) :])
    index, end = (wanted[given - 1] + 1 if given else 0), wanted[-1] + 1
    for position, frame in chain(_sound_frames(info, index), [(end, None)]):
        yield from ((missing, None) for missing in range(index, min(position, end)))
        if position >= end:
            break
        if position in asked and frame:
            yield position, shown(frame)
        elif position == wanted[given]:
            yield position, None
        index = max(index, position + 1)


def _shower(info: VideoInfo, size: tuple[int, int] | None) -> Callable[[VideoFrame], np.ndarray]:
    """What makes a decoded frame a picture: uint8 (height, width, 3), RGB, upright, sized `size` = (height, width)."""
    height, width = size or (info.height, info.width)
    if info.rotation % 180:
        height, width = width, height
    reformatter = VideoReformatter()

    def shown(frame: VideoFrame) -> np.ndarray:
        frame = reformatter.reformat(frame, width, height, "rgb24", interpolation=_INTERPOLATION)
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(), info.rotation // 90))

    return shown


def _decode(info: VideoInfo, wanted: np.ndarray, threads: int) -> Iterator[VideoFrame]:
    """The frames of these ascending, different indices."""
    with opened(info.path, threads) as (container, stream):
        asked = frozenset(info.pts[wanted].tolist())
        frames, reached = _frames(info, container, stream, asked), 0
        before = np.searchsorted(info.entries, wanted, side="right")
        for place, index in enumerate(wanted.tolist()):
            entry = int(info.entries[before[place] - 1]) if before[place] else 0
            if entry < reached + _SEEK_PAST:
                yield _take(info, frames, index, reached)
                reached = index + 1
                continue
            # Containers look for either, by one order of time or the other.
            for time in info.pts[[index, entry]].tolist():
                try:
                    container.seek(time, stream=stream)
                except FFmpegError:
                    continue
                frames = _frames(info, container, stream, asked, info.pts[info.entries[: before[place]]])
                with suppress(_AstrayError):
                    yield _take(info, frames, index, entry)
                    reached = index + 1
                    break
            else:
                yield from _decode(replace(info, entries=info.entries[:0]), wanted[place:], threads)
                return


def _take(info: VideoInfo, frames: Iterator[tuple[int, VideoFrame]], index: int, reached: int) -> VideoFrame:
    """The frame of that index out of what the decoder gives, in order, from frame `reached` on."""
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
    """A seek ended where decoding may not begin, or too late."""


def _frames(
    info: VideoInfo, container: InputContainer, stream: VideoStream, asked: Set[int], entries: np.ndarray | None = None
) -> Iterator[tuple[int, VideoFrame]]:
    """The frames that the decoder gives from where the container stands, each with its index.

    Among them are those whose pts are `asked` for. entries: pts of the frames at one of which the container should
    stand. Frames that nothing refers to are left out where that is safe: packets are whole frames, which fields of
    interlaced video may not be.
    """
    started, skipping, count, place = False, False, 0, 0
    for packet in packets_of(container, stream):
        if not started and entries is not None and packet.pts not in entries:
            raise _AstrayError
        started = started or packet.is_keyframe
        if not started or is_empty(packet):
            continue
        if len(info.places):
            shown = is_shown(packet, stream)
            packet.pts = _time_at(info, place) if shown else None
            place += shown
        needed = not skipping or packet.pts is None or packet.pts in asked
        stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        for frame in packet.decode():
            skipping = info.timed and not frame.interlaced_frame
            index = count if not info.timed else int(np.searchsorted(info.pts, frame.pts or 0))
            count += 1
            if not info.timed or (index < len(info.pts) and info.pts[index] == frame.pts):
                yield index, frame


def _time_at(info: VideoInfo, place: int) -> int | None:
    """When the frame of the shown packet at that place in the file begins to show; None where it has none."""
    index = int(info.places[place]) if place < len(info.places) else -1
    return None if index < 0 else int(info.pts[index])


# Packets that are kept to be decoded again: more than a decoder can be behind on one thread.
_KEPT_PACKETS = 64


def _sound_frames(info: VideoInfo, first: int) -> Iterator[tuple[int, VideoFrame]]:
    """The frames that decode, with their indices, from the last keyframe at or before frame `first` on.

    After one that is corrupt or missing come those from the next keyframe on: what lies between may refer to it.
    """
    with opened(info.path) as (container, stream):
        keyframes = (place for place, packet in _placed(info, container, stream) if packet.is_keyframe)
        begin = max((place for place in keyframes if place <= first), default=0)

    with opened(info.path) as (container, stream):
        decoder = stream.codec_context
        packets = _placed(info, container, stream)
        again: deque[tuple[int, Packet]] = deque()
        kept: deque[tuple[int, Packet]] = deque(maxlen=_KEPT_PACKETS)
        lost = begin - 1
        counted = begin  # of files without timestamps: the index of the next frame that the decoder gives
        expected: int | None = None  # the next frame; None while a keyframe behind `lost` is looked for

        while (item := again.popleft() if again else next(packets, None)) is not None:
            place, packet = item
            if expected is None:
                if not packet.is_keyframe or place <= lost:
                    continue
                decoder.flush_buffers()
                expected = counted = place

            broken = False
            try:
                frames = packet.decode()
                kept.append(item)
            except FFmpegError:
                broken, frames = True, []
                with suppress(FFmpegError):
                    frames = decoder.decode(None)

            for frame in frames:
                index = int(np.searchsorted(info.pts, frame.pts or 0)) if info.timed else counted
                counted += 1
                known = not info.timed or (index < len(info.pts) and info.pts[index] == frame.pts)
                if not known or index < expected:  # the latter referred to what lies before the keyframe
                    continue
                if index > expected or frame.is_corrupt:
                    lost, expected = expected, None
                    break
                yield index, frame
                expected += 1
                while kept and not (kept[0][1].is_keyframe and kept[0][0] >= expected):
                    kept.popleft()

            if broken and expected is not None:
                lost, expected = place, None
            if expected is None:
                # The decoder is behind: the next keyframe may be among the packets that it was given.
                again.extendleft(reversed(kept))
                kept.clear()


def _placed(info: VideoInfo, container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, Packet]]:
    """The packets of the stream, each with the index of its frame; the last one, which is empty, ends the decoding."""
    count, started = 0, False
    with suppress(FFmpegError):
        for packet in packets_of(container, stream):
            started = started or packet.is_keyframe
            if is_empty(packet) or (packet.size and not started):
                continue
            shown = is_shown(packet, stream)
            if len(info.places):
                packet.pts = _time_at(info, count) if shown else None
            place = int(np.searchsorted(info.pts, packet.pts)) if info.timed and packet.pts is not None else count
            yield place, packet
            count += shown

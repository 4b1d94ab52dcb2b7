"""Gives as many frames of a damaged video as can be decoded exactly.

Frames refer to each other, so damage spoils all frames up to the next keyframe. Behind it, decoding starts anew. Some
frames are decoded after one that is shown later, and may refer to it, so they are given when that one was intact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from itertools import accumulate, chain

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from actdet.errors import DataError
from actdet.video.container import is_empty, is_shown, open_video, packets_of
from actdet.video.decoding import index_of, picture_maker, time_at, wanted_frames
from actdet.video.info import VideoInfo

# How many packets are kept to be decoded again: more than a decoder on one thread can lag behind.
_KEPT_PACKETS = 64


def stream_past_damage(
    info: VideoInfo, indices: Iterable[int], size: tuple[int, int] | None = None, *, threads: int = 1
) -> Generator[tuple[int, np.ndarray | None], None, None]:
    """Decode frames one by one, as `stream_frames` does, with None in place of each frame that is lost by damage.

    Behind damage, decoding goes on at the next keyframe, on one thread: several threads also lose intact frames beside
    a damaged one. From there on, lost frames that nobody asked for are given as None, too, if they lie before the last
    one that is asked for.

    Args:
        info: The video.
        indices: Ascending, different indices of the frames.
        size: Height and width of the pictures; by default the video's own.
        threads: Number of codec threads up to the damage; 0 for one per core.

    Yields:
        Each index with its picture, uint8 (height, width, 3), RGB, upright, or None.

    Raises:
        DataError: If the file can no longer be opened.
    """
    make_picture = picture_maker(info, size)
    wanted = np.fromiter(indices, np.int64).tolist()
    given = 0
    frames = wanted_frames(info, np.array(wanted, np.int64), threads, at_once=True)
    with suppress(DataError):
        for index, frame in zip(wanted, frames, strict=True):
            given += 1
            yield index, make_picture(frame)
    if given == len(wanted):
        return

    # Frames without timestamps are counted. If the decoder leaves one out, the next one takes its number, so the frame
    # that failed is not trusted then, even if a frame of that number comes.
    asked = frozenset(wanted[given:] if info.has_timestamps else wanted[given + 1 :])

    # All frames before `index` have been dealt with.
    index = wanted[given - 1] + 1 if given else 0
    end = wanted[-1] + 1
    for position, frame in chain(_intact_frames(info, index), [(end, None)]):
        for missing in range(index, min(position, end)):
            yield missing, None
        if position >= end:
            break
        if position in asked and frame is not None:
            yield position, make_picture(frame)
        elif position == wanted[given]:
            yield position, None
        index = max(index, position + 1)


def _intact_frames(info: VideoInfo, first: int) -> Iterator[tuple[int, VideoFrame]]:
    """Give the frames that decode, with their indices, from the last keyframe at or before frame `first` on.

    After a frame that is corrupt or missing come those from the next keyframe on, because the frames before it may
    refer to the lost one.
    """
    with open_video(info.path) as (container, stream):
        order = [(place, packet.is_keyframe) for place, packet in _placed_packets(info, container, stream)]
    begin = max((place for place, is_keyframe in order if is_keyframe and place <= first), default=0)

    # The last one to be shown of those that a frame may refer to, which are all that are decoded before it.
    latest = dict(zip((place for place, _ in order), accumulate((place for place, _ in order), max), strict=True))

    with open_video(info.path) as (container, stream):
        decoder = stream.codec_context
        packets = _placed_packets(info, container, stream)

        # A decoder lags behind the packets that it is given. After damage, the next keyframe may be among those that it
        # already has, so recent packets are kept, and given once more from there.
        again: deque[tuple[int, Packet]] = deque()
        kept: deque[tuple[int, Packet]] = deque(maxlen=_KEPT_PACKETS)

        # Frames that are intact, but of which one that they may refer to has yet to come.
        waiting: deque[tuple[int, VideoFrame]] = deque()

        # The index of the last frame that was lost.
        lost = begin - 1

        # The index of the next frame; None while a keyframe behind `lost` is searched for.
        expected: int | None = None

        # The index of the next frame that the decoder gives, for files without timestamps.
        counted = begin

        while (item := again.popleft() if again else next(packets, None)) is not None:
            place, packet = item
            if expected is None:
                if not packet.is_keyframe or place <= lost:
                    continue
                decoder.flush_buffers()
                expected = place
                counted = place

            is_broken = False
            try:
                frames = packet.decode()
                kept.append(item)
            except FFmpegError:
                # The decoder may still have frames from before.
                is_broken = True
                frames = []
                with suppress(FFmpegError):
                    frames = decoder.decode(None)

            for frame in frames:
                index = index_of(info, frame, counted)
                counted += 1

                # A frame that is shown before the keyframe may refer to what lies before it.
                if index is None or index < expected:
                    continue
                if index > expected or frame.is_corrupt:
                    lost = expected
                    expected = None
                    break
                waiting.append((index, frame))
                while waiting and latest.get(waiting[0][0], index) <= index:
                    yield waiting.popleft()
                expected += 1

                # Only packets from the next keyframe on can be of use once more.
                while kept and not (kept[0][1].is_keyframe and kept[0][0] >= expected):
                    kept.popleft()

            if is_broken and expected is not None:
                lost = place
                expected = None
            if expected is None:
                waiting.clear()
                again.extendleft(reversed(kept))
                kept.clear()


def _placed_packets(info: VideoInfo, container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, Packet]]:
    """Give the packets of the stream, each with the index of its frame.

    The last packet is empty. It makes the decoder give its last frames.
    """
    count = 0
    started = False
    with suppress(FFmpegError):
        for packet in packets_of(container, stream):
            started = started or packet.is_keyframe
            if is_empty(packet) or (packet.size and not started):
                continue
            shown = is_shown(packet, stream)
            if len(info.places):
                packet.pts = time_at(info, count) if shown else None

            index = count
            if info.has_timestamps and packet.pts is not None:
                index = int(np.searchsorted(info.pts, packet.pts))
            yield index, packet
            count += shown

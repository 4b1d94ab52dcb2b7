"""Opens a video file, walks its packets once, says what is wrong with it; `video.py` is what to call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from actdet.errors import DataError

# FFmpeg would write to stderr; what matters of it is in the errors raised here.
av.logging.set_level(None)

# Formats whose files name others: a playlist may name any file of the machine, or one that blocks, or have no end.
_LISTS = frozenset({"concat", "dash", "hls", "imf", "mlv", "sdp", "vobsub", "webm_dash_manifest"})
_LISTS |= {"avisynth", "dvdvideo", "vapoursynth"}  # scripts and discs
_BEGINNINGS_OF_LISTS = (b"#EXTM3U", b"ffconcat", b"# VobSub", b"v=0")

# Bytes behind the last frame that are searched for another file: an index of days of video is shorter.
_MOST_BEHIND = 2**24

_OPTIONS = {
    # Nothing but the file itself is opened: no list of others, no network, no series of pictures.
    "format_whitelist": ",".join(sorted(av.formats_available - _LISTS)),
    "protocol_whitelist": "file",
    "pattern_type": "none",
}


@contextmanager
def opened(path: str, threads: int = 1, **options: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The open container and the video stream that players show, on so many codec threads (0: one per core).

    Raises DataError where there is none.
    """
    if not os.path.exists(path):
        raise DataError(path, "no such file")
    if not os.path.isfile(path):
        raise DataError(path, "is not a file; expected is a video")
    if os.path.getsize(path) == 0:
        raise DataError(path, "is empty (0 bytes); copy or record it again, or remove it")
    advice = "it is no video, or one cut off: convert it again or remove it"
    try:
        # `file:` keeps a colon in a name from being a protocol.
        container = av.open(f"file:{path}", options=_OPTIONS | options, metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        if _is_list(path):
            raise DataError(path, "is a list of other files; expected is a video: join its parts to one file") from None
        reason = getattr(error, "strerror", None) or error
        raise DataError(path, f"cannot be opened as a video ({reason}); {advice}") from None
    with container:
        if not container.streams:
            raise DataError(path, f"holds no picture and no sound; {advice}")
        streams = videos_of(container)
        still = container.format.name == "image2" or container.format.name.endswith("_pipe")
        if not streams or still:
            kind = "a still picture" if still else "no video stream, only " + _kinds(container)
            raise DataError(path, f"holds {kind}; expected is a video")
        # The first default one, as players do; a stream of one picture may be a cover that is not marked as one.
        stream = max(streams, key=lambda s: (s.frames != 1, bool(s.disposition & Disposition.default)))
        if stream.codec_context is None:
            raise DataError(path, "is in a codec that PyAV cannot decode; convert it, to H.264 say")
        stream.codec_context.thread_count = threads
        if threads != 1:
            stream.codec_context.thread_type = "AUTO"  # whole frames in parallel, too
        yield container, stream


def videos_of(container: InputContainer) -> list[VideoStream]:
    """Its video streams but for cover art, which is a stream of one picture, mostly in a sound file."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _is_list(path: str) -> bool:
    """Whether the file begins as a playlist or another list of files does."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(4096)
    except OSError:
        return False
    return beginning.startswith(_BEGINNINGS_OF_LISTS) or b"<MPD" in beginning


def _kinds(container: InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams}))


def clock_of(container: InputContainer) -> int:
    """Ticks after which the clock of this format begins anew; 0 if it never does."""
    return 2**33 if container.format.name in ("mpegts", "mpeg") else 0


def packets_of(container: InputContainer, stream: VideoStream | None = None) -> Iterator[Packet]:
    """The packets of one stream, or of all, in the order of the file; behind them an empty one for each stream.

    PyAV does not know streams that begin midway, as in joined recordings: it fails when it has given everything else.
    """
    with suppress(IndexError):
        yield from container.demux() if stream is None else container.demux(stream)


@dataclass
class Demuxed:
    """What one pass over the packets finds; the three lists are parallel, in the order of the file."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    packets: int = 0  # packets of the video stream
    whole: int = 0  # those of them that are all there
    cut: bool = False  # whether its last packet is only partly there
    bytes: int = 0  # where in the file the last of what was read ends
    until: Fraction = Fraction(0)  # seconds: where the last packet of any stream ends
    first: VideoFrame | None = None  # the first frame that decodes
    entries: list[int] = field(default_factory=list)  # pts of the frames at which a decoder can begin


def demux(path: str, container: InputContainer, stream: VideoStream) -> Demuxed:
    found = Demuxed()
    ends = dict.fromkeys(range(len(container.streams)), 0)
    started = False
    try:
        for packet in packets_of(container):
            time = packet.dts if packet.pts is None else packet.pts
            index = packet.stream_index
            if time is not None:
                ends[index] = max(ends[index], time + (packet.duration or 0))
            found.bytes = max(found.bytes, (packet.pos or 0) + packet.size)
            if index != stream.index or is_empty(packet):
                continue
            # What precedes the first keyframe, as in a recording that began midway, cannot be decoded.
            started = started or packet.is_keyframe
            if packet.size:
                found.packets += 1
                found.cut = packet.is_corrupt
                found.whole += not packet.is_corrupt
                if started and is_shown(packet, stream):
                    found.pts.append(packet.pts)
                    found.dts.append(packet.dts)
                    found.durations.append(packet.duration or 0)
                    if packet.pts is not None and _is_entry(packet, stream):
                        found.entries.append(packet.pts)
            if started and found.first is None:
                found.first = next(iter(stream.decode(packet)), None)
    except FFmpegError as error:
        problem = f"is damaged after {found.whole} frames ({error.strerror}); convert it again or remove it"
        raise DataError(path, problem) from None
    for index, end in ends.items():
        found.until = max(found.until, end * (container.streams[index].time_base or Fraction(0)))
    return found


def is_empty(packet: Packet) -> bool:
    """Whether an AVI has a dropped frame here, which a decoder would take for the end of the stream."""
    return not packet.size and packet.dts is not None


def is_shown(packet: Packet, stream: VideoStream) -> bool:
    """Whether its frame is meant to be seen: not cut off by an edit list, nor only referred to."""
    if not packet.size or packet.is_discard:
        return False
    # Bit 4 of VP8's header says whether the frame is shown.
    return stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def decoded_order(path: str, count: int) -> list[int]:
    """The `count` packets that are shown, by their place in the file, in the order in which their frames are given.

    This decodes the whole file. Packets that give no frame are left out of a sound file. In a damaged one the frames
    that are missing count as well: reading them says so.
    """
    given: dict[int, None] = {}
    place, started, sound = 0, False, True
    with opened(path, 0) as (container, stream):
        for packet in packets_of(container, stream):
            started = started or packet.is_keyframe
            if not started or is_empty(packet):
                continue
            # A decoder hands a packet's timestamp to its frame, and does not ask what it means.
            shown = is_shown(packet, stream)
            packet.pts = place if shown else None
            place += shown
            try:
                frames = packet.decode()
            except FFmpegError:
                sound = False
                continue
            sound = sound and not any(frame.is_corrupt for frame in frames)
            given |= dict.fromkeys(frame.pts for frame in frames if frame.pts is not None)
    if sound:
        return list(given)

    # What is missing stands behind the last packet before it that gave a frame.
    ranks = {packet: rank for rank, packet in enumerate(given)}
    last, keys = -1, []
    for packet in range(count):
        last = ranks.get(packet, last)
        keys.append((last, packet))
    return [packet for _, packet in sorted(keys)]


def _is_entry(packet: Packet, stream: VideoStream) -> bool:
    """Whether nothing from here on refers to what lies before.

    Keyframes of H.264 and HEVC may only be points of recovery: certain is an IDR picture, where the container has the
    parameter sets apart (avcC and hvcC, whose NAL units begin with their lengths).
    """
    if not packet.is_keyframe:
        return False
    codec, extra = stream.codec_context.name, stream.codec_context.extradata or b""
    if codec in ("vp8", "vp9", "libvpx", "libvpx-vp9"):
        return True
    if codec == "h264" and len(extra) > 4 and extra[0] == 1:
        return any(byte & 0x1F == 5 for byte in _nal_headers(packet, (extra[4] & 3) + 1))
    if codec == "hevc" and len(extra) > 21 and extra[0] == 1:
        return any(byte >> 1 & 0x3F in (19, 20) for byte in _nal_headers(packet, (extra[21] & 3) + 1))
    return False


def _nal_headers(packet: Packet, prefix: int) -> Iterator[int]:
    """The first byte of each NAL unit."""
    data, at = memoryview(packet), 0
    while at + prefix < len(data):
        yield data[at + prefix]
        at += prefix + int.from_bytes(data[at : at + prefix], "big")


def check_whole(path: str, container: InputContainer, stream: VideoStream, found: Demuxed) -> None:
    """Raises if the header promises more than the packets give."""
    there = found.whole
    if stream.frames > there:
        # An edit list (a trim on a phone) legitimately leaves out frames that the header counts.
        with opened(path, ignore_editlist="1") as (again, video):
            there = sum(1 for packet in packets_of(again, video) if packet.size and not packet.is_corrupt)
    advice = "the file is truncated: copy or record it again, or remove it"
    if stream.frames > there:
        raise DataError(path, f"the header says {stream.frames} frames, only {there} are there: {advice}")
    if found.cut:
        raise DataError(path, f"breaks off within frame {there}: {advice}")
    claimed, until = (container.duration or 0) / av.time_base, float(found.until)
    # The last frame may be meant to show for long: a slack of twice the longest one, and of rounding.
    times = sorted(time for time in found.pts if time is not None)
    longest = max((b - a for a, b in pairwise(times)), default=0)
    slack = 0.25 + 2 * longest * float(stream.time_base or 0)
    # Formats whose clock begins anew have no header: FFmpeg guesses their length from the last timestamps.
    if not stream.frames and not clock_of(container) and claimed > until + slack:
        raise DataError(path, f"the header says {claimed:.2f} s, the frames end at {until:.2f} s: {advice}")


def joined_at(path: str, read: int) -> int | None:
    """The byte at which another file of the same kind begins behind the first `read` ones; None where none does.

    Of several files that were joined FFmpeg reads one in MP4 and FLV, two in Matroska, all in other formats.
    """
    with open(path, "rb") as file:
        beginning = file.read(16)
        if beginning.startswith((b"\x1aE\xdf\xa3", b"FLV\x01")):
            skipped = 0
        elif beginning[4:8] == b"ftyp":
            # It begins with a size, which differs from file to file.
            skipped = 4
        else:
            return None
        file.seek(read)
        place = file.read(_MOST_BEHIND).find(beginning[skipped : skipped + 8])
    return None if place < 0 else read + place - skipped


def rotation_of(path: str, frame: VideoFrame) -> int:
    """Degrees counter-clockwise from the display matrix; a mirror or an odd angle is an error."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(np.int64)
    angle = int(frame.rotation)
    if angle % 90 or a * d < b * c:
        problem = f"is to be shown mirrored or turned by {angle} degrees"
        raise DataError(path, f"{problem}; only quarter turns are read: convert it upright")
    return angle % 360

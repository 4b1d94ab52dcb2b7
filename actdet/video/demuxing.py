"""What one pass over the packets of a video file tells, without decoding more than one frame.

`demux` collects it; the other functions draw conclusions: whether the file is complete, whether another recording was
appended to it, how it is to be turned, and, by decoding all of it, in which order its frames are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from actdet.errors import DataError
from actdet.video.container import clock_period, is_empty, is_shown, open_video, packets_of

# How many bytes behind the last frame are searched for another recording. Even the index that MP4 keeps there for days
# of video is shorter.
_MOST_BEHIND = 2**24


@dataclass
class Demuxed:
    """What one pass over the packets of a video stream found.

    `pts`, `dts` and `durations` are parallel: one element for each packet whose frame is shown, in the order of the
    file, in ticks of the stream.
    """

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    """0 if the container does not say."""
    packets: int = 0
    """Packets of the video stream."""
    complete: int = 0
    """Those of them that are entirely in the file."""
    is_cut: bool = False
    """Whether the last packet is only partly in the file."""
    bytes_read: int = 0
    """Where in the file the last packet of any stream ends."""
    end_seconds: Fraction = Fraction(0)
    """When the last packet of any stream ends."""
    first_frame: VideoFrame | None = None
    """The first frame that decodes."""
    seek_points: list[int] = field(default_factory=list)
    """The pts of the frames at which a decoder can certainly begin."""


def demux(path: str, container: InputContainer, stream: VideoStream) -> Demuxed:
    """Read all packets of a file and decode the first frame of `stream`.

    Args:
        path: The file, for messages.
        container: The open file.
        stream: The video stream of interest. Of the others, only the ends are noted.

    Raises:
        DataError: If the file is damaged.
    """
    found = Demuxed()
    ends = dict.fromkeys(range(len(container.streams)), 0)
    started = False
    try:
        for packet in packets_of(container):
            time = packet.dts if packet.pts is None else packet.pts
            index = packet.stream_index
            if time is not None:
                ends[index] = max(ends[index], time + (packet.duration or 0))
            found.bytes_read = max(found.bytes_read, (packet.pos or 0) + packet.size)
            if index != stream.index or is_empty(packet):
                continue

            # A recording that began in the middle has packets before its first keyframe, which cannot be decoded.
            started = started or packet.is_keyframe

            if packet.size:
                found.packets += 1
                found.is_cut = packet.is_corrupt
                if not packet.is_corrupt:
                    found.complete += 1
                if started and is_shown(packet, stream):
                    _note_frame(found, packet, stream)
            if started and found.first_frame is None:
                found.first_frame = next(iter(stream.decode(packet)), None)
    except FFmpegError as error:
        problem = f"is damaged after {found.complete} frames ({error.strerror}); convert it again or remove it"
        raise DataError(path, problem) from None

    for index, end in ends.items():
        time_base = container.streams[index].time_base or Fraction(0)
        found.end_seconds = max(found.end_seconds, end * time_base)
    return found


def _note_frame(found: Demuxed, packet: Packet, stream: VideoStream) -> None:
    """Add a packet whose frame is shown to `found`."""
    found.pts.append(packet.pts)
    found.dts.append(packet.dts)
    found.durations.append(packet.duration or 0)
    if packet.pts is not None and _is_seek_point(packet, stream):
        found.seek_points.append(packet.pts)


def _is_seek_point(packet: Packet, stream: VideoStream) -> bool:
    """Whether no frame from this packet on refers to anything before it.

    Keyframes of H.264 and HEVC may be mere recovery points, behind which frames still refer to earlier ones. Only an
    IDR picture is certain. It is recognized if the container keeps the parameter sets apart (`avcC` and `hvcC`), since
    NAL units then begin with their lengths.
    """
    if not packet.is_keyframe:
        return False
    codec = stream.codec_context.name
    extra = stream.codec_context.extradata or b""
    if codec in ("vp8", "vp9", "libvpx", "libvpx-vp9"):
        return True

    # Two bits of the parameter sets' header give the number of bytes, less one, of a NAL unit's length (ISO/IEC
    # 14496-15). A NAL unit's first byte gives its type: in H.264, 5 is an IDR picture (ITU-T H.264, table 7-1); in
    # HEVC, 19 and 20 are (ITU-T H.265, table 7-1).
    if codec == "h264" and len(extra) > 4 and extra[0] == 1:
        return any(byte & 0x1F == 5 for byte in _nal_headers(packet, (extra[4] & 3) + 1))
    if codec == "hevc" and len(extra) > 21 and extra[0] == 1:
        return any(byte >> 1 & 0x3F in (19, 20) for byte in _nal_headers(packet, (extra[21] & 3) + 1))
    return False


def _nal_headers(packet: Packet, prefix: int) -> Iterator[int]:
    """Give the first byte of each NAL unit, whose length stands before it in `prefix` bytes."""
    data = memoryview(packet)
    place = 0
    while place + prefix < len(data):
        yield data[place + prefix]
        place += prefix + int.from_bytes(data[place : place + prefix], "big")


def find_display_order(path: str, count: int) -> list[int]:
    """Find the order in which a decoder gives the frames of packets whose timestamps do not tell. Decodes the file.

    Args:
        path: The file.
        count: How many of its packets are shown.

    Returns:
        The shown packets, as their places in the file among those that are shown, in the order of their frames. In an
        intact file, packets that give no frame are left out. In a damaged one they are included, so that reading their
        frames reports the damage.
    """
    # A dict serves as a set that keeps the order of its elements.
    given: dict[int, None] = {}
    place = 0
    started = False
    is_intact = True
    with open_video(path, 0) as (container, stream):
        for packet in packets_of(container, stream):
            started = started or packet.is_keyframe
            if not started or is_empty(packet):
                continue

            # A decoder hands the timestamp of a packet on to its frame without asking what it means, so a place in the
            # file can travel in place of a time.
            shown = is_shown(packet, stream)
            packet.pts = place if shown else None
            place += shown

            try:
                frames = packet.decode()
            except FFmpegError:
                is_intact = False
                continue
            is_intact = is_intact and not any(frame.is_corrupt for frame in frames)
            given |= dict.fromkeys(frame.pts for frame in frames if frame.pts is not None)
    if is_intact:
        return list(given)

    # A packet without a frame follows the last packet before it that gave one.
    ranks = {packet: rank for rank, packet in enumerate(given)}
    last_rank = -1
    keys = []
    for packet in range(count):
        last_rank = ranks.get(packet, last_rank)
        keys.append((last_rank, packet))
    return [packet for _, packet in sorted(keys)]


def check_complete(path: str, container: InputContainer, stream: VideoStream, found: Demuxed) -> None:
    """Check that the file contains what its header promises.

    Raises:
        DataError: If it is truncated.
    """
    advice = "the file is truncated: copy or record it again, or remove it"
    complete = found.complete
    if stream.frames > complete:
        # The header also counts frames that an edit list leaves out, as a phone does when it trims a video.
        with open_video(path, ignore_editlist="1") as (again, video):
            complete = sum(1 for packet in packets_of(again, video) if packet.size and not packet.is_corrupt)
    if stream.frames > complete:
        raise DataError(path, f"the header says {stream.frames} frames but only {complete} are there; {advice}")
    if found.is_cut:
        raise DataError(path, f"breaks off within frame {complete}; {advice}")

    # Formats whose clock starts again have no header: FFmpeg guesses their length from the last timestamps.
    if stream.frames or clock_period(container):
        return

    # The last frame may be meant to show for long. It is granted twice the longest time between two frames, and a
    # quarter of a second for rounding.
    promised = (container.duration or 0) / av.time_base
    end = float(found.end_seconds)
    times = sorted(time for time in found.pts if time is not None)
    longest = max((later - earlier for earlier, later in pairwise(times)), default=0)
    slack = 0.25 + 2 * longest * float(stream.time_base or 0)
    if promised > end + slack:
        raise DataError(path, f"the header says {promised:.2f} s but the frames end at {end:.2f} s; {advice}")


def find_joined_file(path: str, read: int) -> int | None:
    """Find another file of the same kind that was appended to this one and is not read.

    If files are joined byte by byte, FFmpeg reads the first of them in MP4 and FLV, two in Matroska, and all in other
    formats.

    Args:
        path: The file.
        read: How many of its bytes FFmpeg reads.

    Returns:
        The byte at which the other file begins; None if there is none.
    """
    with open(path, "rb") as file:
        beginning = file.read(16)
        if beginning.startswith((b"\x1aE\xdf\xa3", b"FLV\x01")):
            skipped = 0
        elif beginning[4:8] == b"ftyp":
            # An MP4 file begins with the size of its first box, which differs from file to file.
            skipped = 4
        else:
            return None
        file.seek(read)
        place = file.read(_MOST_BEHIND).find(beginning[skipped : skipped + 8])
    return None if place < 0 else read + place - skipped


def rotation_of(path: str, frame: VideoFrame) -> int:
    """Read from a frame by how many degrees, counterclockwise, its picture is to be turned: 0, 90, 180 or 270.

    Raises:
        DataError: If the picture is to be mirrored, or turned by another angle.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0

    # The matrix maps (x, y) to (a x + c y, b x + d y), up to a shift. Its determinant is negative if it mirrors.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(np.int64)
    angle = int(frame.rotation)
    if angle % 90 or a * d < b * c:
        problem = f"is to be shown mirrored or turned by {angle} degrees"
        raise DataError(path, f"{problem}; only quarter turns are supported: convert it to an upright video")
    return angle % 360

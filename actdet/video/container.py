"""Opens a video file safely, finds the stream that players show, and gives its packets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import av
import av.logging
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from actdet.errors import DataError

# Formats whose files name other files. A playlist may name any file of the machine, or one that blocks, or never end.
_LISTS = frozenset({"concat", "dash", "hls", "imf", "mlv", "sdp", "vobsub", "webm_dash_manifest"})

# Formats of scripts and discs, which can do the same.
_SCRIPTS = frozenset({"avisynth", "dvdvideo", "vapoursynth"})

# How files in such formats begin.
_BEGINNINGS_OF_LISTS = (b"#EXTM3U", b"ffconcat", b"# VobSub", b"v=0")

# Nothing but the file itself may be opened: no list of others, no network, no numbered series of pictures.
_OPTIONS = {
    "format_whitelist": ",".join(sorted(av.formats_available - _LISTS - _SCRIPTS)),
    "protocol_whitelist": "file",
    "pattern_type": "none",
}


@contextmanager
def open_video(path: str, threads: int = 1, **options: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Context manager: yields the open container of a video file, and the video stream that players show.

    Args:
        path: The file.
        threads: Number of codec threads; 0 for one per core. It is one while PyAV's log is on.
        options: Further options for FFmpeg's demuxer.

    Raises:
        DataError: If there is no such file, or if it is not a video.
    """
    if not os.path.exists(path):
        raise DataError(path, "file not found")
    if not os.path.isfile(path):
        raise DataError(path, "is not a file; expected a video")
    if os.path.getsize(path) == 0:
        raise DataError(path, "is empty (0 bytes); copy or record it again, or remove it")

    advice = "it is not a video, or it was cut off: convert it again or remove it"
    try:
        # The prefix `file:` keeps a colon in the name from being read as the end of a protocol.
        container = av.open(f"file:{path}", options=_OPTIONS | options, metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        if _is_list(path):
            problem = "is a list of other files; expected a video: join its parts into one file"
            raise DataError(path, problem) from None
        reason = getattr(error, "strerror", None) or error
        raise DataError(path, f"cannot be opened as a video ({reason}); {advice}") from None

    with container:
        if not container.streams:
            raise DataError(path, f"contains no pictures and no sound; {advice}")
        stream = _shown_stream(path, container)
        if av.logging.get_level() is not None:
            # PyAV hands messages of FFmpeg to Python, as older versions of torchvision ask it to. A codec thread that
            # has one waits for the lock of Python, which closing the file holds until that thread ends: forever.
            threads = 1
        stream.codec_context.thread_count = threads
        if threads != 1:
            # This also lets the threads decode whole frames in parallel, and not only parts of one frame.
            stream.codec_context.thread_type = "AUTO"
        yield container, stream


def _shown_stream(path: str, container: InputContainer) -> VideoStream:
    """Find the video stream that players show: the first default one.

    Raises:
        DataError: If no stream is a video, or if PyAV cannot decode it.
    """
    streams = video_streams(container)
    if container.format.name == "image2" or container.format.name.endswith("_pipe"):
        raise DataError(path, "contains a still picture; expected a video")
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams}))
        raise DataError(path, f"contains no video stream, only {kinds}; expected a video")

    # A stream of a single picture may be a cover that is not marked as one, so such a stream comes last.
    stream = max(streams, key=lambda s: (s.frames != 1, bool(s.disposition & Disposition.default)))
    if stream.codec_context is None:
        raise DataError(path, "uses a codec that PyAV cannot decode; convert it, for example to H.264")
    return stream


def video_streams(container: InputContainer) -> list[VideoStream]:
    """List the video streams, without cover art: a stream of one picture, which mostly occurs in files of sound."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _is_list(path: str) -> bool:
    """Whether the file begins as a playlist or another list of files does."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(4096)
    except OSError:
        return False
    return beginning.startswith(_BEGINNINGS_OF_LISTS) or b"<MPD" in beginning


def clock_period(container: InputContainer) -> int:
    """After how many ticks the clock of this container format starts again from zero; 0 if it never does."""
    return 2**33 if container.format.name in ("mpegts", "mpeg") else 0


def packets_of(container: InputContainer, stream: VideoStream | None = None) -> Iterator[Packet]:
    """Give the packets of one stream, or of all, in the order of the file; then an empty one for each stream."""
    # PyAV does not know streams that begin in the middle, as in recordings that were joined. It raises an IndexError
    # for them, but only after it has given everything else.
    with suppress(IndexError):
        yield from container.demux() if stream is None else container.demux(stream)


def is_empty(packet: Packet) -> bool:
    """Whether this is the mark of a frame that an AVI file dropped.

    A decoder would take it for the end of the stream.
    """
    return not packet.size and packet.dts is not None


def is_shown(packet: Packet, stream: VideoStream) -> bool:
    """Whether the packet's frame is meant to be seen: not cut off by an edit list, and not only a reference."""
    if not packet.size or packet.is_discard:
        return False

    # In VP8, bit 4 of the header says whether the frame is shown.
    return stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)

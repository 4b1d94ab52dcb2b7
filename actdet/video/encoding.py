"""Writes frames as a video file in which each of them is shown exactly when it should be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from actdet.errors import DataError
from actdet.files import replacing
from actdet.video.container import open_video
from actdet.video.info import probe

Encoder = Literal["libx264", "libvpx-vp9"]

# Options for videos that are watched once. They take a quarter to an eighth of the work of the encoders' own settings;
# H.264 files get no larger by them, VP9 files larger by half.
QUICK: Mapping[Encoder, Mapping[str, str]] = {
    "libx264": {"preset": "veryfast"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"},
}

# The average rate in the header of a file is a fraction whose terms are at most this.
_MOST_RATE = 60000


def choose_encoder(codec: Literal["h264", "vp9"] = "h264") -> Encoder:
    """Choose FFmpeg's encoder for h264 or vp9. VP9 replaces H.264 if FFmpeg was built without libx264."""
    if codec == "h264" and "libx264" in av.codecs_available:
        return "libx264"
    return "libvpx-vp9"


def write_video(
    out: Path,
    frames: Iterable[np.ndarray],
    pts: np.ndarray,
    time_base: Fraction,
    *,
    end: int | None = None,
    encoder: Encoder | None = None,
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    comment: str = "",
) -> None:
    """Write frames as an MP4 file.

    Args:
        out: The file to write.
        frames: (H, W, 3) uint8 RGB each, as many as there are `pts`; H and W are even.
        pts: (n,) int64, ascending: when each frame begins to show, in ticks.
        time_base: Seconds per tick.
        end: When the last frame ceases to show, in ticks. It is exact in H.264 without reordered frames. In VP9, FFmpeg
            reads the last frame as if it were as long as the others on average.
        encoder: The encoder; by default `choose_encoder()`.
        options: Options of the encoder; by default its own settings.
        threads: Number of the encoder's threads; 0 for as many as it likes.
        comment: A text for the file's metadata, which `read_comment` reads.

    Raises:
        DataError: If the encoder or the disk refuses, or if MP4 cannot hold the times. `out` is then as it was before.
    """
    frames = iter(frames)
    first = next(frames)
    with replacing(out) as temporary:
        try:
            with av.open(f"file:{temporary}", "w", format="mp4") as container:
                container.metadata["comment"] = comment
                rate = _average_rate(pts, time_base)
                stream = container.add_stream(encoder or choose_encoder(), rate=rate, options=dict(options or {}))
                stream.height, stream.width = first.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = time_base
                stream.codec_context.thread_count = threads

                for packet in _packets(stream, chain([first], frames), pts, time_base):
                    if end is not None and packet.pts == pts[-1]:
                        packet.duration = end - int(pts[-1])
                    container.mux(packet)
        except FFmpegError as error:
            # `replacing` reports what the disk refuses.
            if isinstance(error, OSError):
                raise
            raise DataError(out, f"cannot be encoded: {error.strerror or error}") from None
        _check_times(out, temporary, pts, time_base)


def read_comment(path: Path) -> str:
    """Read the comment that `write_video` left in `path`; empty if there is none, or no video."""
    try:
        with open_video(str(path)) as (container, _):
            return container.metadata.get("comment", "")
    except DataError:
        return ""


def _average_rate(pts: np.ndarray, time_base: Fraction) -> Fraction:
    """Compute the average number of frames per second, as a fraction of small terms."""
    seconds = int(pts[-1] - pts[0]) * time_base
    rate = (len(pts) - 1) / seconds if seconds else Fraction(1)
    bounded = min(max(rate, Fraction(1, _MOST_RATE)), Fraction(_MOST_RATE))
    return bounded.limit_denominator(_MOST_RATE)


def _packets(
    stream: VideoStream, frames: Iterable[np.ndarray], pts: np.ndarray, time_base: Fraction
) -> Iterator[Packet]:
    """Encode frames (H, W, 3) uint8 with their times."""
    for time, pixels in zip(pts.tolist(), frames, strict=True):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = time
        frame.time_base = time_base
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _check_times(out: Path, written: Path, pts: np.ndarray, time_base: Fraction) -> None:
    """Check that a file shows its frames when it should.

    Args:
        out: The file that the message is about.
        written: The file to check.
        pts: (n,) int64, when its frames should begin to show.
        time_base: Seconds per tick.

    Raises:
        DataError: If it shows them at other times.
    """
    try:
        video = probe(written)
    except DataError as error:
        raise DataError(out, f"cannot be written: what was encoded {error.problem}") from None

    # Times since the first frame are compared, in ticks that divide both clocks' ticks.
    scale = time_base / video.time_base
    found = (video.pts - video.pts[0]) * scale.denominator
    expected = (pts - pts[0]) * scale.numerator
    if not np.array_equal(found, expected):
        raise DataError(out, f"cannot be written: MP4 cannot hold its timestamps in ticks of {time_base} s")

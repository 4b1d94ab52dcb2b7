"""Writes frames as a video file in which each is shown exactly when it is said to be."""

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
from actdet.video.container import opened
from actdet.video.decoding import probe

Encoder = Literal["libx264", "libvpx-vp9"]

# Options for what is looked at once: a quarter to an eighth of the work of the encoders' own settings. H.264 gets no
# larger by it, VP9 by half.
QUICK: Mapping[Encoder, Mapping[str, str]] = {
    "libx264": {"preset": "veryfast"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"},
}


def choose_encoder(codec: Literal["h264", "vp9"] = "h264") -> Encoder:
    """FFmpeg's encoder for h264 or vp9; VP9 stands in for H.264 where FFmpeg was built without libx264."""
    return "libx264" if codec == "h264" and "libx264" in av.codecs_available else "libvpx-vp9"


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
    """Write frames (H, W, 3) uint8 RGB, H and W even, as MP4: shown at `pts` (n,) ticks of `time_base` s, ascending.

    `end` is when the last frame ceases to show: exact in H.264 without reordered frames; of VP9 FFmpeg reads it as if
    that frame were as long as the others on average. By default the encoder is `choose_encoder()`, with its own options
    and as many threads as it likes (0). `comment` goes into the file's metadata. Raises DataError, and leaves what
    `out` held, where the encoder or the disk refuses.
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
            if isinstance(error, OSError):
                raise
            raise DataError(out, f"cannot be encoded: {error.strerror or error}") from None
        _check_times(out, temporary, pts, time_base)


def read_comment(path: Path) -> str:
    """The `comment` that `write_video` left in `path`; nothing where there is none, or no video."""
    try:
        with opened(str(path)) as (container, _):
            return container.metadata.get("comment", "")
    except DataError:
        return ""


def _average_rate(pts: np.ndarray, time_base: Fraction) -> Fraction:
    seconds = int(pts[-1] - pts[0]) * time_base
    rate = (len(pts) - 1) / seconds if seconds else Fraction(1)
    return min(max(rate, Fraction(1, 60000)), Fraction(60000)).limit_denominator(60000)


def _packets(
    stream: VideoStream, frames: Iterable[np.ndarray], pts: np.ndarray, time_base: Fraction
) -> Iterator[Packet]:
    for time, pixels in zip(pts.tolist(), frames, strict=True):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = time, time_base
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _check_times(out: Path, written: Path, pts: np.ndarray, time_base: Fraction) -> None:
    """A DataError about `out` if the file `written` does not show its frames when it should."""
    try:
        video = probe(written)
    except DataError as error:
        raise DataError(out, f"cannot be written: what was encoded {error.problem}") from None
    scale = time_base / video.time_base
    found, wanted = (video.pts - video.pts[0]) * scale.denominator, (pts - pts[0]) * scale.numerator
    if not np.array_equal(found, wanted):
        raise DataError(out, f"cannot be written: MP4 cannot hold its timestamps in ticks of {time_base} s")

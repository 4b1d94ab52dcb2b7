"""Writes test videos whose every frame shows its number, and damages them as files get damaged."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

# A frame's number is a row of black and white blocks, the lowest bit first.
BITS = 8

# Always three B-frames in a row, which are decoded in another order than shown, in groups of 12 frames.
B_FRAMES = {"bf": "3", "b_strategy": "0", "g": "12"}

# How many frames `write_video` writes unless it is told otherwise.
FRAMES = 40

# Milliseconds between frames that no frame rate gives; the first frame shows late.
UNEVEN = [500 + 40 * i + 37 * (i % 2) + (1500 if i > 25 else 0) for i in range(FRAMES)]

# Good files of every container: the codec, and what else `write_video` is told.
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "h264.mp4": ("libx264", {}),
    "bframes.mp4": ("libx264", {"options": B_FRAMES}),
    "bframes.mkv": ("libx264", {"options": B_FRAMES}),
    "bframes.avi": ("libx264", {"options": B_FRAMES}),
    "bframes.ts": ("libx264", {"options": B_FRAMES}),
    "bframes.h264": ("libx264", {"options": B_FRAMES}),
    "uneven.mp4": ("libx264", {"options": B_FRAMES, "pts": UNEVEN}),
    "uneven.mkv": ("libx264", {"options": B_FRAMES, "pts": UNEVEN}),
    "uneven.webm": ("libvpx-vp9", {"pts": UNEVEN}),
    "odd.mkv": ("libx264", {"size": (98, 56), "options": {"preset": "ultrafast"}}),
    "odd.webm": ("libvpx-vp9", {"size": (97, 55)}),
    "mpeg4.avi": ("mpeg4", {"options": {"bf": "2"}}),
    "mjpeg.avi": ("mjpeg", {}),
    "sound.mp4": ("libx264", {"sound": True}),
    "fragments.mp4": (
        "libx264",
        {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": B_FRAMES},
    ),
    "short.mp4": ("libx264", {"frames": 7}),
    "single.mp4": ("libx264", {"frames": 1}),
    "single.webm": ("libvpx-vp9", {"frames": 1}),
}


def write_example(folder: Path, name: str) -> Path:
    """Write one of the `EXAMPLES` into a folder."""
    codec, settings = EXAMPLES[name]
    return write_video(folder / name, codec, **settings)


def numbered_frame(number: int, width: int, height: int) -> np.ndarray:
    """Make a picture with `number` as bars in its upper half; the ground below is gray, with a red corner."""
    picture = np.full((height, width, 3), 96, np.uint8)
    for bit in range(BITS):
        left = bit * width // BITS
        right = (bit + 1) * width // BITS
        picture[: height // 2, left:right] = 255 if number >> bit & 1 else 0
    picture[height * 3 // 4 :, : width // 4] = (220, 20, 20)
    return picture


def shown_number(picture: np.ndarray) -> int:
    """Read the number that an upright picture shows."""
    height, width = picture.shape[:2]
    columns = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(1 << bit for bit, x in enumerate(columns) if picture[height // 4, x].mean() > 128)


def shown_numbers(pictures: Iterable[np.ndarray]) -> list[int]:
    """Read the numbers that upright pictures show."""
    return [shown_number(picture) for picture in pictures]


def write_video(
    path: Path,
    codec: str = "libx264",
    frames: int = FRAMES,
    size: tuple[int, int] = (64, 48),
    *,
    pts: list[int] | None = None,
    rotation: int = 0,
    pictures: np.ndarray | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: bool = False,
) -> Path:
    """Write a video of numbered frames.

    Args:
        path: The file; its ending decides the container.
        codec: FFmpeg's name of the encoder.
        frames: How many frames to write.
        size: Width and height as coded.
        pts: When each frame begins to show, in milliseconds; by default 25 frames a second.
        rotation: What the display matrix says, in degrees.
        pictures: (frames, height, width, 3) uint8 in place of numbered frames.
        options: Options of the encoder.
        container_options: Options of the container.
        sound: Whether to add a track of sound that is three seconds longer.

    Returns:
        The file.
    """
    width, height = size
    if codec == "libvpx-vp9":
        options = {"deadline": "realtime", "cpu-used": "8"} | (options or {})
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        assert isinstance(stream, VideoStream)
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if pts:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000) if sound else None

        for number in range(frames):
            picture = numbered_frame(number, width, height) if pictures is None else pictures[number]
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            if pts:
                frame.pts = pts[number]
                frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            container.mux(_tone(audio, seconds=frames / 25 + 3))
            container.mux(audio.encode())
    return path


def write_sound(path: Path) -> Path:
    """Write a file of sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        container.mux(_tone(stream, seconds=1))
        container.mux(stream.encode())
    return path


def _tone(stream: av.AudioStream, seconds: float) -> list[av.Packet]:
    packets = []
    for start in range(0, int(48000 * seconds), 960):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        frame.pts = start
        frame.time_base = Fraction(1, 48000)
        packets += stream.encode(frame)
    return packets


def cut(path: Path, share: float) -> Path:
    """Leave the first `share` of the bytes, as an interrupted copy does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def packet_places(path: Path) -> list[slice]:
    """Find where in the file the bytes of each video packet lie, in the order of the file."""
    data = path.read_bytes()
    places = []
    start = 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size:
                start = data.index(bytes(packet), start)
                places.append(slice(start, start + packet.size))
    return places


def corrupt(path: Path, packets: range) -> Path:
    """Overwrite those packets, except for their first bytes, with noise."""
    data = bytearray(path.read_bytes())
    for place in packet_places(path)[packets.start : packets.stop]:
        size = place.stop - place.start
        data[place.start + 5 : place.stop] = np.random.default_rng(size).bytes(size - 5)
    path.write_bytes(data)
    return path


def hide(path: Path, packet: int) -> Path:
    """Clear the bit of a VP8 frame's header that says it is shown."""
    data = bytearray(path.read_bytes())
    data[packet_places(path)[packet].start] &= ~0x10
    path.write_bytes(data)
    return path


def join(out: Path, *parts: Path) -> Path:
    """Put the bytes of files one behind the other, as `cat` does."""
    out.write_bytes(b"".join(part.read_bytes() for part in parts))
    return out


def restamp(path: Path, time_of: Callable[[int], int]) -> Path:
    """Show the frames of a file at other times, in its ticks; they are decoded in the same order."""
    new = path.with_name(f"new {path.name}")
    with av.open(str(path)) as source, av.open(str(new), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        times = [time_of(packet.pts or 0) for packet in packets]
        decoding = sorted(packet.pts or 0 for packet in packets)
        lead = max(dts - pts for dts, pts in zip(decoding, times, strict=True))
        for packet, pts, dts in zip(packets, times, decoding, strict=True):
            packet.pts = pts
            packet.dts = dts - lead
            packet.stream = stream
            target.mux(packet)
    os.replace(new, path)
    return path


def turn_back_flv(path: Path, milliseconds: int, since: int) -> Path:
    """Set back the clock of an .flv from its video packet number `since` on."""
    data = bytearray(path.read_bytes())
    place = 13
    video = 0
    while place < len(data):
        size = int.from_bytes(data[place + 1 : place + 4], "big")
        # The second byte of H.264's packets tells frames (1) from settings.
        if data[place] == 9 and data[place + 12] == 1:
            if video >= since:
                time = int.from_bytes(data[place + 4 : place + 7], "big") - milliseconds
                data[place + 4 : place + 7] = time.to_bytes(3, "big")
            video += 1
        place += 11 + size + 4
    path.write_bytes(data)
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a track's display matrix: the point (x, y) is shown at (a x + c y, b x + d y), shifted."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    struct.pack_into(">9i", data, matrix, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def trim(path: Path, seconds: float) -> Path:
    """Shorten an .mp4 by its edit list, as phones do: all packets stay in the file."""
    data = bytearray(path.read_bytes())
    timescale = struct.unpack_from(">I", data, data.index(b"mvhd") + 4 + 12)[0]
    struct.pack_into(">I", data, data.index(b"elst") + 4 + 8, int(seconds * timescale))
    path.write_bytes(data)
    return path

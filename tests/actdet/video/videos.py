"""Writes test videos whose every frame shows its number, and damages them as files get damaged."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8  # a frame's number is a row of black and white blocks, the lowest bit first


def numbered_frame(number: int, width: int, height: int) -> np.ndarray:
    """A picture with `number` as bars over its full height; the ground below them is grey, the corner red."""
    picture = np.full((height, width, 3), 96, np.uint8)
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        picture[: height // 2, left:right] = 255 if number >> bit & 1 else 0
    picture[height * 3 // 4 :, : width // 4] = (220, 20, 20)
    return picture


def shown_number(picture: np.ndarray) -> int:
    """The number that an upright picture shows."""
    height, width = picture.shape[:2]
    columns = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(1 << bit for bit, x in enumerate(columns) if picture[height // 4, x].mean() > 128)


def write_video(
    path: Path,
    codec: str = "libx264",
    frames: int = 40,
    size: tuple[int, int] = (64, 48),
    *,
    pts: list[int] | None = None,
    rotation: int = 0,
    pictures: np.ndarray | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: bool = False,
) -> Path:
    """Numbered frames, 25 a second or at `pts` milliseconds; `size` is (width, height) as coded."""
    width, height = size
    if codec == "libvpx-vp9":
        options = {"deadline": "realtime", "cpu-used": "8"} | (options or {})
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = width, height
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
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            container.mux(_tone(audio, seconds=frames / 25 + 3))
            container.mux(audio.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        container.mux(_tone(stream, seconds=1))
        container.mux(stream.encode())
    return path


def _tone(stream: av.AudioStream, seconds: float) -> list[av.Packet]:
    packets = []
    for start in range(0, int(48000 * seconds), 960):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        packets += stream.encode(frame)
    return packets


def cut(path: Path, share: float) -> Path:
    """Leaves the first `share` of the bytes, as an interrupted copy does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def packet_places(path: Path) -> list[slice]:
    """Where in the file the bytes of each video packet lie, in the order of the file."""
    data, places, start = path.read_bytes(), [], 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size:
                start = data.index(bytes(packet), start)
                places.append(slice(start, start + packet.size))
    return places


def corrupt(path: Path, packets: range) -> Path:
    """Overwrites those packets, but for their first bytes, with noise."""
    data = bytearray(path.read_bytes())
    for place in packet_places(path)[packets.start : packets.stop]:
        size = place.stop - place.start
        data[place.start + 5 : place.stop] = np.random.default_rng(size).bytes(size - 5)
    path.write_bytes(data)
    return path


def hide(path: Path, packet: int) -> Path:
    """Clears the bit of a VP8 frame's header that says it is shown."""
    data = bytearray(path.read_bytes())
    data[packet_places(path)[packet].start] &= ~0x10
    path.write_bytes(data)
    return path


def join(out: Path, *parts: Path) -> Path:
    """Puts the bytes of files one behind the other, as `cat` does."""
    out.write_bytes(b"".join(part.read_bytes() for part in parts))
    return out


def restamp(path: Path, time_of: Callable[[int], int]) -> Path:
    """Shows the frames of a file at other times, in its ticks; they are decoded in the same order."""
    new = path.with_name(f"new {path.name}")
    with av.open(str(path)) as source, av.open(str(new), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        times = [time_of(packet.pts or 0) for packet in packets]
        decoding = sorted(packet.pts or 0 for packet in packets)
        lead = max(dts - pts for dts, pts in zip(decoding, times, strict=True))
        for packet, pts, dts in zip(packets, times, decoding, strict=True):
            packet.pts, packet.dts, packet.stream = pts, dts - lead, stream
            target.mux(packet)
    os.replace(new, path)
    return path


def turn_back_flv(path: Path, milliseconds: int, since: int) -> Path:
    """Sets back the clock of an .flv from its video packet number `since` on."""
    data, at, video = bytearray(path.read_bytes()), 13, 0
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        # The second byte of H.264's packets tells frames (1) from settings.
        if data[at] == 9 and data[at + 12] == 1:
            if video >= since:
                time = int.from_bytes(data[at + 4 : at + 7], "big") - milliseconds
                data[at + 4 : at + 7] = time.to_bytes(3, "big")
            video += 1
        at += 11 + size + 4
    path.write_bytes(data)
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Writes a track's display matrix: the point (x, y) is shown at (a x + c y, b x + d y), shifted."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    struct.pack_into(">9i", data, matrix, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def trim(path: Path, seconds: float) -> Path:
    """Shortens an .mp4 by its edit list, as phones do: all packets stay in the file."""
    data = bytearray(path.read_bytes())
    timescale = struct.unpack_from(">I", data, data.index(b"mvhd") + 4 + 12)[0]
    struct.pack_into(">I", data, data.index(b"elst") + 4 + 8, int(seconds * timescale))
    path.write_bytes(data)
    return path

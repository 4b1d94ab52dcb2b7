"""The files that the decoders read: one rendered scene in H.264 and VP9, whose every frame shows its number.

The number stands in binary in a strip along the lower edge, bright for 1, so that a reader that gives another frame
than the one asked for is found out whatever its colors and its way to resize.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.stream import VideoStream

from actdet.synthetic.rendered import RenderConfig, render_dataset

WIDTH, HEIGHT, FRAMES, FPS = 640, 480, 300, 30
BITS, STRIP = 10, 48  # cells of the strip, and its height in pixels
DARK, BRIGHT, GRAY = 16, 235, 128
GRAIN = 4  # of a camera, as the standard deviation of the brightness; the renderer's own is lost in its compression
GOPS = (30, 250)
# x264's default preset has three B-frames in a row; VP9 as live encoders write it, in a tenth of the time of "good".
ENCODERS = {
    "H.264": ("libx264", "mp4", {"preset": "medium", "crf": "23"}),
    "VP9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "5", "row-mt": "1", "crf": "32", "b:v": "0"}),
}


class Video(NamedTuple):
    codec: str
    gop: int
    steady: bool = True  # else a frame shows for 20 to 46 ms, as a phone's do

    def __str__(self) -> str:
        return f"{self.codec}, GOP {self.gop}{'' if self.steady else ', variable rate'}"


VIDEOS = [Video(codec, gop) for codec in ENCODERS for gop in GOPS] + [Video("H.264", 30, steady=False)]


def make_videos(folder: Path) -> dict[Video, Path]:
    """One to four megabytes each; 40 seconds in all on one core."""
    scene = scene_frames(folder / "scene")
    paths = {video: folder / f"{number}.{ENCODERS[video.codec][1]}" for number, video in enumerate(VIDEOS)}
    for video, path in paths.items():
        encode(video, scene, path)
    return paths


def scene_frames(folder: Path) -> list[np.ndarray]:
    """YUV 4:2:0 pictures (3/2 HEIGHT, WIDTH) of people fighting, with the grain of a camera, numbered."""
    config = RenderConfig(clips=1, width=WIDTH, height=HEIGHT, frames=6 * FRAMES // 5, fps=FPS)  # or a sixth fewer
    render_dataset(folder, config)
    (path,) = (folder / "videos").iterdir()
    with av.open(path) as container:
        pictures = [frame.to_ndarray(format="yuv420p") for frame in islice(container.decode(video=0), FRAMES)]
    rng = np.random.default_rng(0)
    for number, picture in enumerate(pictures):
        grain = GRAIN * rng.standard_normal((HEIGHT, WIDTH), np.float32)
        picture[:HEIGHT] = np.clip(picture[:HEIGHT] + grain, DARK, BRIGHT)
        write_number(picture, number)
    return pictures


def encode(video: Video, pictures: Sequence[np.ndarray], path: Path) -> None:
    encoder, _, options = ENCODERS[video.codec]
    milliseconds = np.random.default_rng(0).integers(20, 47, len(pictures)).cumsum()
    with av.open(path, "w") as container:
        stream = container.add_stream(encoder, rate=FPS, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", video.gop
        base = stream.codec_context.time_base = Fraction(1, FPS if video.steady else 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number if video.steady else int(milliseconds[number]), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_number(picture: np.ndarray, number: int) -> None:
    """Into a YUV 4:2:0 picture of `WIDTH` columns."""
    bits = [number >> bit & 1 for bit in range(BITS)]
    picture[HEIGHT - STRIP : HEIGHT] = np.repeat(np.where(bits, BRIGHT, DARK).astype(np.uint8), WIDTH // BITS)
    for plane in picture[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2):
        plane[-STRIP // 2 :] = GRAY


def number_of(picture: np.ndarray) -> int:
    """The number that an RGB picture of any size shows."""
    height, width = picture.shape[:2]
    strip = picture[-(height * STRIP // HEIGHT) :].mean(axis=(0, 2))
    cells = [strip[(4 * bit + 1) * width // (4 * BITS) : (4 * bit + 3) * width // (4 * BITS)] for bit in range(BITS)]
    return sum(int(cell.mean() > GRAY) << bit for bit, cell in enumerate(cells))

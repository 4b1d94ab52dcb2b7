"""What the tests of all formats need: facts of a video, and the tubes that a source tells of it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from actdet.data.formats.source import Facts, Source, facts_at_rate
from actdet.detections import Tube

PlainTube = tuple[int, list[int], list[list[float]]]


def facts(width: int = 320, height: int = 240, frames: int = 40, rate: int = 25) -> Facts:
    return facts_at_rate(width, height, frames, Fraction(rate))


def plain(tube: Tube) -> PlainTube:
    """A tube as lists, its boxes rounded to a thousandth of a pixel."""
    assert tube.boxes.dtype == np.float32
    boxes = [[round(float(value), 3) for value in box] for box in tube.boxes]
    return tube.label, [int(frame) for frame in tube.frames], boxes


def tubes_of(source: Source, name: str, about: Facts | None = None) -> list[PlainTube]:
    """What a source says of the video with this name, or whose name begins so."""
    (video,) = [video for video in source.videos if video.name.startswith(name)]
    return [plain(tube) for tube in video.tubes(about or facts())]

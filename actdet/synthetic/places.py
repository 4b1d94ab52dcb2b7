"""Where the clips of the rendered data set take place: rooms and streets.

A `Place` is little more than a seed, from which the same walls, floor and things are drawn for any camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from actdet.synthetic.figures import Camera, Color, hsv, shade, tint
from actdet.synthetic.motions import Prop, Rng
from actdet.synthetic.painting import Painter

# Height of a room, in meters.
_CEILING = 3.2


@dataclass(frozen=True)
class Place:
    """A room or a street."""

    outdoor: bool
    depth: float
    """How far its back wall is behind the actors, in meters."""
    seed: int
    """Determines all that is in it."""


def invent_place(rng: Rng) -> Place:
    """Invent a place."""
    outdoor = rng.random() < 0.45
    depth = rng.uniform(6, 12) if outdoor else rng.uniform(2, 4)
    return Place(outdoor, depth, int(rng.integers(2**62)))


def paint_place(place: Place, camera: Camera, height: int, back: float, props: list[Prop], rng: Rng) -> Image.Image:
    """Paint the canvas of a clip without its people: the place and the props.

    Args:
        place: The place.
        camera: What looks at it.
        height: Of the video in pixels.
        back: Distance of the back wall from the camera, in meters.
        props: The things on the ground.
        rng: Where the colors of the props come from.
    """
    painter = Painter(camera, height)
    own = np.random.default_rng(place.seed)
    paint = _paint_street if place.outdoor else _paint_room
    paint(painter, own, back)

    # Mats lie flat, so nothing is behind them; of the other things the farthest are painted first.
    for prop in sorted(props, key=lambda p: (p.kind != "mat", -p.y)):
        painter.prop(prop, rng)
    return _light(painter.image, own)


def _paint_room(painter: Painter, rng: Rng, back: float) -> None:
    half = painter.half * back
    color = tint(rng, (0.0, 0.32), (0.5, 0.92))
    painter.sky(shade(color, 1.05), color)
    _paint_wall(painter, rng, color, half, back)
    _paint_floor(painter, rng, half, back)

    # A baseboard, and things along the wall.
    painter.wall(shade(color, rng.choice([0.5, 1.25])), -half, 0, 2 * half, 0.12, back)
    x = -half + rng.uniform(0, 1.5)
    while x < half:
        x += _furnish_wall(painter, rng, x, back) + rng.uniform(0.4, 1.8)


def _paint_wall(painter: Painter, rng: Rng, color: Color, half: float, back: float) -> None:
    pattern = rng.choice(["plain", "stripes", "wainscot", "bricks", "tiles"])
    if pattern == "stripes":
        step = rng.uniform(0.3, 0.7)
        for x in np.arange(-half, half, step):
            painter.wall(shade(color, 0.92), x, 0, step / 2, 6, back)
    elif pattern == "wainscot":
        painter.wall(tint(rng, (0.1, 0.45), (0.3, 0.7)), -half, 0, 2 * half, 1.0, back)
        painter.wall(shade(color, 0.7), -half, 1.0, 2 * half, 0.06, back)
    elif pattern in ("bricks", "tiles"):
        high, wide = (0.16, 0.45) if pattern == "bricks" else (0.3, 0.3)
        for row, z in enumerate(np.arange(0, 4.5, high)):
            shift = wide / 2 if pattern == "bricks" and row % 2 else 0
            painter.wall(shade(color, 0.85), -half, z, 2 * half, 0.02, back)
            for x in np.arange(-half + shift, half, wide):
                painter.wall(shade(color, 0.85), x, z, 0.02, high, back)


def _paint_floor(painter: Painter, rng: Rng, half: float, back: float) -> None:
    near = painter.near
    wood = hsv(rng.uniform(0.03, 0.12), rng.uniform(0.2, 0.55), rng.uniform(0.3, 0.75))
    color = wood if rng.random() < 0.6 else tint(rng, (0.0, 0.35), (0.3, 0.8))
    painter.floor(color, -half, near, 2 * half, back - near)

    dark = shade(color, rng.uniform(0.7, 0.9))
    step = rng.uniform(0.35, 0.8)
    pattern = rng.choice(["plain", "planks", "checker", "tiles", "rug"])
    if pattern == "planks":
        for x in np.arange(-half, half, step * 0.6):
            painter.floor(dark, x, near, 0.025, back - near)
    elif pattern == "checker":
        for i, x in enumerate(np.arange(-half, half, step)):
            for y in np.arange(near + (i % 2) * step - step, back, 2 * step):
                painter.floor(dark, x, max(y, near), step, min(step, back - max(y, near)))
    elif pattern == "tiles":
        for x in np.arange(-half, half, step):
            painter.floor(dark, x, near, 0.03, back - near)
        for y in np.arange(near, back, step):
            painter.floor(dark, -half, y, 2 * half, 0.03)
    elif pattern == "rug":
        rug = tint(rng, (0.2, 0.6), (0.3, 0.75))
        x = rng.uniform(-1.8, 0.2)
        painter.floor(rug, x, back - 3.4, 2.4, 2.2)
        painter.floor(shade(rug, 1.2), x + 0.15, back - 3.25, 2.1, 1.9)


def _furnish_wall(painter: Painter, rng: Rng, x: float, back: float) -> float:
    """Put something at the wall, from x to the right; return its width in meters."""
    kind = rng.choice(["window", "picture", "picture", "door", "shelf", "cupboard", "radiator", "nothing"])
    color = tint(rng, (0.0, 0.45), (0.25, 0.95))
    width = rng.uniform(0.7, 1.4)
    if kind == "window":
        low = rng.uniform(0.8, 1.1)
        pane = (width - 0.18) / 2
        glass = hsv(rng.uniform(0.52, 0.62), rng.uniform(0.05, 0.35), rng.uniform(0.5, 1.0))
        painter.wall(color, x, low, width, _CEILING - low - 0.5, back)
        for left in (x + 0.06, x + 0.12 + pane):
            painter.wall(glass, left, low + 0.08, pane, _CEILING - low - 0.66, back)
    elif kind == "picture":
        width = 0.7 * width
        height = rng.uniform(0.3, 0.7)
        low = rng.uniform(1.2, 1.6)
        painter.wall(color, x, low, width, height, back)
        for part in (1.0, rng.uniform(0.3, 0.6)):
            inner = tint(rng, (0.1, 0.55), (0.35, 0.9))
            painter.wall(inner, x + 0.05, low + 0.05, width - 0.1, part * (height - 0.1), back)
    elif kind == "door":
        width = 0.95
        painter.wall(shade(color, 0.7), x, 0, width, 2.12, back)
        painter.wall(color, x + 0.06, 0, width - 0.12, 2.05, back)
        painter.wall(shade(color, 0.5), x + width - 0.2, 1.0, 0.08, 0.05, back)
    elif kind == "shelf":
        for z in (1.2, 1.6, 2.0):
            painter.box(color, x, back - 0.25, z, width, 0.25, 0.04)
            for left in np.arange(x + 0.05, x + width - 0.2, 0.13):
                book = tint(rng, (0.2, 0.6), (0.3, 0.85))
                painter.wall(book, left, z + 0.04, 0.1, rng.uniform(0.15, 0.3), back - 0.1)
    elif kind == "cupboard":
        height = rng.uniform(0.7, 1.9)
        painter.box(color, x, back - 0.45, 0, width, 0.45, height)
        painter.wall(shade(color, 0.6), x + width / 2, 0.06, 0.02, height - 0.12, back - 0.45)
    elif kind == "radiator":
        for left in np.arange(x, x + width, 0.1):
            painter.box((225, 225, 218), left, back - 0.1, 0.15, 0.07, 0.1, 0.6)
    return width


def _paint_street(painter: Painter, rng: Rng, back: float) -> None:
    half = 1.2 * painter.half * back
    near = painter.near
    blue = rng.uniform(0.54, 0.62)
    painter.sky(hsv(blue, rng.uniform(0.05, 0.5), rng.uniform(0.7, 0.95)), hsv(blue, 0.1, 0.95))

    grass = hsv(rng.uniform(0.2, 0.3), rng.uniform(0.3, 0.55), rng.uniform(0.35, 0.65))
    stone = tint(rng, (0.0, 0.14), (0.35, 0.75))
    lawn = rng.random() < 0.4
    ground, verge = (grass, stone) if lawn else (stone, grass)
    painter.floor(ground, -2 * half, near, 4 * half, back + 40 - near)

    # A row of houses, with or without gaps.
    if rng.random() < 0.7:
        x = -half + rng.uniform(-2, 0)
        while x < half:
            x += _paint_building(painter, rng, x, back) + rng.choice([0, rng.uniform(0.5, 3)])

    # In front of them another strip of ground, with a curb.
    strip = rng.uniform(0.8, 2.5)
    curb = back - strip
    painter.floor(verge, -2 * half, curb, 4 * half, strip)
    painter.floor(shade(stone, 1.2), -2 * half, curb - 0.15, 4 * half, 0.15)

    # The ground has joints or patches.
    if not lawn and rng.random() < 0.6:
        for y in np.arange(near, curb, rng.uniform(0.6, 1.2)):
            painter.floor(shade(stone, 0.88), -half, y, 2 * half, 0.04)
    else:
        for x, y in zip(rng.uniform(-half, half, 120), rng.uniform(near, curb - 0.3, 120), strict=True):
            patch = shade(ground, rng.uniform(0.85, 1.12))
            painter.floor(patch, x, y, rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.25))

    for _ in range(rng.integers(2, 7)):
        _furnish_street(painter, rng, rng.uniform(-half, half), back - rng.uniform(0.2, strip))


def _paint_building(painter: Painter, rng: Rng, x: float, back: float) -> float:
    """Paint the front of a house, from x to the right; return its width in meters."""
    width = rng.uniform(3, 8)
    height = rng.uniform(3, 12)
    color = hsv(rng.uniform(0.0, 0.14), rng.uniform(0.05, 0.45), rng.uniform(0.4, 0.85))
    color = color if rng.random() < 0.7 else tint(rng, (0.0, 0.3), (0.4, 0.85))
    painter.wall(color, x, 0, width, height, back)

    glass = hsv(0.58, rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.9))
    step = width / max(1, round(width / rng.uniform(1.2, 2.2)))
    for left in np.arange(x + step / 4, x + width - step / 2, step):
        for low in np.arange(0.9, height - 1.4, 2.8):
            painter.wall(shade(color, 0.7), left - 0.06, low - 0.06, step / 2 + 0.12, 1.42, back)
            painter.wall(shade(glass, rng.uniform(0.7, 1.2)), left, low, step / 2, 1.3, back)

    # A door and a cornice.
    painter.wall(shade(color, 0.55), x + rng.uniform(0.2, width - 1.2), 0, 1.0, 2.1, back)
    painter.wall(shade(color, 0.6), x, height - 0.25, width, 0.25, back)
    return width


def _furnish_street(painter: Painter, rng: Rng, x: float, y: float) -> None:
    """Put something into the street."""
    kind = rng.choice(["tree", "tree", "bush", "lamp", "car", "fence"])
    color = tint(rng, (0.1, 0.65), (0.25, 0.85))
    leaf = hsv(rng.uniform(0.2, 0.34), rng.uniform(0.3, 0.6), rng.uniform(0.25, 0.6))
    if kind == "tree":
        painter.box((92, 68, 48), x - 0.12, y, 0, 0.24, 0.2, 2.4)
        painter.leaves(rng, leaf, x, y, 2.9, 1.1)
    elif kind == "bush":
        painter.leaves(rng, leaf, x, y, 0.45, 0.5)
    elif kind == "lamp":
        painter.box((70, 74, 78), x - 0.05, y, 0, 0.1, 0.1, 4.0)
        painter.box((240, 232, 190), x - 0.2, y, 4.0, 0.4, 0.2, 0.15)
    elif kind == "car":
        painter.box(color, x - 1.9, y, 0.25, 3.8, 1.4, 0.55)
        painter.box((70, 84, 96), x - 1.0, y + 0.1, 0.8, 1.9, 1.2, 0.5)
        for wheel in (x - 1.2, x + 1.2):
            painter.disc((28, 28, 30), wheel, y - 0.01, 0.3, 0.3)
    else:
        for left in np.arange(x - 2.5, x + 2.5, 0.3):
            painter.box(color, left, y, 0, 0.09, 0.03, 1.0)
        for z in (0.3, 0.75):
            painter.wall(shade(color, 0.8), x - 2.5, z, 5.0, 0.08, y)


def _light(image: Image.Image, rng: Rng) -> Image.Image:
    """Add uneven light and grain, so that no surface has a single color."""
    width, height = image.size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    slope_x, slope_y = rng.uniform(-0.2, 0.2, 2)
    gain = 1 + slope_x * x + slope_y * y - rng.uniform(0, 0.12) * (x * x + y * y)
    blotches = Image.fromarray(rng.normal(0, 0.02, (9, 12)).astype(np.float32))
    gain += np.asarray(blotches.resize(image.size, Image.Resampling.BICUBIC))
    gain += rng.normal(0, 0.02, (height, width))
    return Image.fromarray(np.clip(np.asarray(image) * gain[..., None], 0, 255).astype(np.uint8))

"""Where the clips of the rendered data set take place: rooms, streets, and the furniture in them.

A `Place` is little more than a number, from which the same walls, floor and things are drawn for any camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from actdet.data._figures import Array, Camera, Colour, hsv, shade, tint
from actdet.data._motions import Prop

OVERSAMPLING = 2
MARGIN = 0.06  # around the picture, for the shake, in picture heights

Rng = np.random.Generator
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Place:
    """A room or a street, drawn from its own seed; `depth` is how far behind the actors its back wall stands."""

    outdoor: bool
    depth: float
    seed: int


def invent_place(rng: Rng) -> Place:
    """A new place."""
    outdoor = rng.random() < 0.45
    depth = rng.uniform(6, 12) if outdoor else rng.uniform(1.7, 4.0)
    return Place(outdoor, depth, int(rng.integers(2**62)))


class _Painter:
    """Draws flat and boxy things, given in metres, on the canvas of one clip."""

    def __init__(self, camera: Camera, height: int) -> None:
        self.camera, self.unit = camera, height * OVERSAMPLING
        self.offset = round(MARGIN * self.unit)
        size = (round(camera.aspect * self.unit) + 2 * self.offset, self.unit + 2 * self.offset)
        self.image = Image.new("RGB", size)
        self.draw = ImageDraw.Draw(self.image)
        self.near = camera.focal * camera.up / (1.1 - camera.horizon)  # the ground at the lower edge
        self.half = 0.75 * camera.aspect / camera.focal  # half of the width in sight, per metre of distance

    def pixels(self, points: Array) -> Array:
        """Canvas coordinates of points in the picture."""
        return points * self.unit + self.offset

    def face(self, colour: Colour, *corners: Point) -> None:
        """A flat polygon in the room."""
        outline, _ = self.camera.project(np.array(corners))
        self.draw.polygon(self.pixels(outline).ravel().tolist(), fill=colour)

    def wall(self, colour: Colour, x: float, z: float, width: float, height: float, y: float) -> None:
        """A rectangle that faces the camera; x and z are its lower left corner."""
        self.face(colour, (x, y, z), (x + width, y, z), (x + width, y, z + height), (x, y, z + height))

    def floor(self, colour: Colour, x: float, y: float, width: float, depth: float, z: float = 0.0) -> None:
        """A level rectangle; x and y are its near left corner."""
        self.face(colour, (x, y, z), (x + width, y, z), (x + width, y + depth, z), (x, y + depth, z))

    def box(
        self, colour: Colour, x: float, y: float, z: float, width: float, depth: float, height: float
    ) -> None:
        """A cuboid with its left, near, lower corner at (x, y, z), lit from above."""
        for side, tone in ((x, 0.62), (x + width, 0.7)):
            corners = [
                (side, y, z),
                (side, y + depth, z),
                (side, y + depth, z + height),
                (side, y, z + height),
            ]
            if (side == x) == (x > 0):
                self.face(shade(colour, tone), *corners)
        self.wall(shade(colour, 0.85), x, z, width, height, y)
        if self.camera.up > z + height:
            self.floor(shade(colour, 1.1), x, y, width, depth, z + height)


def paint_place(
    place: Place, camera: Camera, height: int, back: float, props: list[Prop], rng: Rng
) -> Image.Image:
    """The canvas of a clip without its people: the place with its back wall `back` metres away, and the props."""
    painter = _Painter(camera, height)
    own = np.random.default_rng(place.seed)
    (_paint_street if place.outdoor else _paint_room)(painter, own, back)
    for prop in sorted(props, key=lambda p: (p.kind != "mat", -p.y)):
        _paint_prop(painter, prop, rng)
    return _light(painter.image, own)


def _paint_room(painter: _Painter, rng: Rng, back: float) -> None:
    half = painter.half * back
    hue = rng.random()
    wall, top = hsv(hue, rng.uniform(0, 0.45), rng.uniform(0.45, 0.95)), 3.2
    painter.image.paste(shade(wall, 1.04), (0, 0, *painter.image.size))
    pattern = rng.choice(["plain", "stripes", "wainscot", "bricks", "tiles"])
    if pattern == "stripes":
        step = rng.uniform(0.3, 0.7)
        for x in np.arange(-half, half, step):
            painter.wall(shade(wall, 0.92), x, 0, step / 2, 6, back)
    elif pattern == "wainscot":
        painter.wall(
            hsv(hue + rng.uniform(-0.1, 0.1), 0.4, rng.uniform(0.3, 0.7)), -half, 0, 2 * half, 1.0, back
        )
        painter.wall(shade(wall, 0.7), -half, 1.0, 2 * half, 0.06, back)
    elif pattern in ("bricks", "tiles"):
        _courses(painter, wall, half, back, bricks=pattern == "bricks")
    _paint_floor(painter, rng, back)
    painter.wall(shade(wall, rng.choice([0.5, 1.25])), -half, 0, 2 * half, 0.12, back)

    x = -half + rng.uniform(0, 1.5)
    while x < half:
        width = _paint_wall_piece(painter, rng, x, back, top)
        x += width + rng.uniform(0.4, 1.8)


def _courses(painter: _Painter, colour: Colour, half: float, back: float, bricks: bool) -> None:
    """Joints of brickwork or tiles."""
    high, wide = (0.16, 0.45) if bricks else (0.3, 0.3)
    joint = shade(colour, 0.85)
    for row, z in enumerate(np.arange(0, 4.5, high)):
        painter.wall(joint, -half, z, 2 * half, 0.02, back)
        for x in np.arange(-half + (row % 2) * wide / 2 * bricks, half, wide):
            painter.wall(joint, x, z, 0.02, high, back)


def _paint_floor(painter: _Painter, rng: Rng, back: float) -> None:
    half, near = painter.half * back, painter.near
    colour = hsv(
        rng.uniform(0.02, 0.15) if rng.random() < 0.6 else rng.random(),
        rng.uniform(0.05, 0.5),
        rng.uniform(0.25, 0.8),
    )
    painter.floor(colour, -half, near, 2 * half, back - near)
    pattern, dark = (
        rng.choice(["plain", "planks", "checker", "tiles", "rug"]),
        shade(colour, rng.uniform(0.7, 0.9)),
    )
    step = rng.uniform(0.35, 0.8)
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
        rug, x = hsv(rng.random(), rng.uniform(0.2, 0.7), rng.uniform(0.3, 0.8)), rng.uniform(-1.8, 0.2)
        painter.floor(rug, x, back - 3.4, 2.4, 2.2)
        painter.floor(shade(rug, 1.2), x + 0.15, back - 3.25, 2.1, 1.9)


def _paint_wall_piece(painter: _Painter, rng: Rng, x: float, back: float, top: float) -> float:
    """A window, picture, door, shelf, cupboard or radiator at the wall; returns its width."""
    kind = rng.choice(["window", "picture", "picture", "door", "shelf", "cupboard", "radiator", "nothing"])
    frame = hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.25, 0.95))
    if kind == "window":
        width, low = rng.uniform(0.8, 1.6), rng.uniform(0.8, 1.1)
        painter.wall(frame, x, low, width, top - low - 0.5, back)
        pane, glass = (
            (width - 0.18) / 2,
            hsv(rng.uniform(0.5, 0.62), rng.uniform(0.05, 0.4), rng.uniform(0.5, 1.0)),
        )
        for i in range(2):
            painter.wall(glass, x + 0.06 + i * (pane + 0.06), low + 0.08, pane, top - low - 0.66, back)
    elif kind == "picture":
        width, height, low = rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.7), rng.uniform(1.2, 1.6)
        painter.wall(frame, x, low, width, height, back)
        painter.wall(
            hsv(rng.random(), 0.5, rng.uniform(0.4, 0.9)),
            x + 0.05,
            low + 0.05,
            width - 0.1,
            height - 0.1,
            back,
        )
        painter.wall(
            hsv(rng.random(), 0.5, 0.5), x + 0.05, low + 0.05, width - 0.1, (height - 0.1) * 0.45, back
        )
    elif kind == "door":
        width = 0.95
        painter.wall(shade(frame, 0.7), x, 0, width, 2.12, back)
        painter.wall(frame, x + 0.06, 0, width - 0.12, 2.05, back)
        painter.wall(shade(frame, 0.5), x + width - 0.2, 1.0, 0.08, 0.05, back)
    elif kind == "shelf":
        width = rng.uniform(0.7, 1.4)
        for z in (1.2, 1.6, 2.0):
            painter.box(frame, x, back - 0.25, z, width, 0.25, 0.04)
            for left in np.arange(x + 0.05, x + width - 0.2, 0.13):
                painter.wall(
                    hsv(rng.random(), 0.6, rng.uniform(0.3, 0.9)),
                    left,
                    z + 0.04,
                    0.1,
                    rng.uniform(0.15, 0.3),
                    back - 0.1,
                )
    elif kind == "cupboard":
        width, height = rng.uniform(0.6, 1.5), rng.uniform(0.7, 1.9)
        painter.box(frame, x, back - 0.45, 0, width, 0.45, height)
        painter.wall(shade(frame, 0.6), x + width / 2, 0.06, 0.02, height - 0.12, back - 0.45)
    elif kind == "radiator":
        width = rng.uniform(0.7, 1.2)
        for left in np.arange(x, x + width, 0.1):
            painter.box((225, 225, 218), left, back - 0.1, 0.15, 0.07, 0.1, 0.6)
    else:
        width = 0.5
    return width


def _paint_street(painter: _Painter, rng: Rng, back: float) -> None:
    half, near = painter.half * back * 1.2, painter.near
    height = painter.image.size[1]
    low, high = (
        hsv(rng.uniform(0.52, 0.62), 0.15, 0.95),
        hsv(rng.uniform(0.52, 0.62), rng.uniform(0.1, 0.6), rng.uniform(0.6, 0.95)),
    )
    for y in range(height):
        mix = y / height
        painter.draw.line(
            ((0, y), (painter.image.size[0], y)),
            fill=tuple(round(a + (b - a) * mix) for a, b in zip(high, low, strict=True)),
        )
    grass = hsv(rng.uniform(0.22, 0.33), rng.uniform(0.3, 0.65), rng.uniform(0.3, 0.65))
    stone = hsv(rng.random(), rng.uniform(0, 0.15), rng.uniform(0.35, 0.75))
    ground, verge = (grass, stone) if rng.random() < 0.4 else (stone, grass)
    painter.floor(ground, -2 * half, near, 4 * half, back + 40 - near)
    if rng.random() < 0.6:
        x = -half + rng.uniform(-2, 0)
        while x < half:
            x += _paint_building(painter, rng, x, back) + rng.choice([0.0, rng.uniform(0.5, 3)])
    strip = rng.uniform(0.8, 2.5)
    painter.floor(verge, -2 * half, back - strip, 4 * half, strip)
    painter.floor(shade(stone, 1.2), -2 * half, back - strip - 0.15, 4 * half, 0.15)
    if ground == stone and rng.random() < 0.6:
        step = rng.uniform(0.6, 1.2)
        for y in np.arange(near, back - strip, step):
            painter.floor(shade(stone, 0.88), -half, y, 2 * half, 0.04)
    else:
        for x, y in zip(rng.uniform(-half, half, 120), rng.uniform(near, back - strip, 120), strict=True):
            painter.floor(
                shade(ground, rng.uniform(0.85, 1.12)), x, y, rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.25)
            )
    pieces = [
        (rng.uniform(-half, half), rng.choice(["tree", "tree", "bush", "lamp", "car", "fence"]))
        for _ in range(rng.integers(2, 7))
    ]
    for x, kind in pieces:
        _paint_street_piece(painter, rng, str(kind), x, back - rng.uniform(0.2, strip))


def _paint_building(painter: _Painter, rng: Rng, x: float, back: float) -> float:
    """The front of a house; returns its width."""
    width, height = rng.uniform(3, 8), rng.uniform(3, 12)
    colour = hsv(
        rng.uniform(0, 0.15) if rng.random() < 0.6 else rng.random(),
        rng.uniform(0.05, 0.5),
        rng.uniform(0.35, 0.85),
    )
    painter.wall(colour, x, 0, width, height, back)
    glass = hsv(0.58, rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.9))
    across, floors = max(1, int(width / rng.uniform(1.2, 2.2))), max(1, int(height / 2.8))
    for i in range(across):
        for j in range(floors):
            left = x + (i + 0.25) * width / across
            painter.wall(
                shade(colour, 0.7), left - 0.06, j * 2.8 + 0.84, width / across / 2 + 0.12, 1.42, back
            )
            painter.wall(
                shade(glass, rng.uniform(0.7, 1.2)), left, j * 2.8 + 0.9, width / across / 2, 1.3, back
            )
    painter.wall(shade(colour, 0.55), x + rng.uniform(0.2, width - 1.2), 0, 1.0, 2.1, back)
    painter.wall(shade(colour, 0.6), x, height - 0.25, width, 0.25, back)
    return width


def _paint_street_piece(painter: _Painter, rng: Rng, kind: str, x: float, y: float) -> None:
    colour = hsv(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.25, 0.85))
    leaf = hsv(rng.uniform(0.2, 0.36), rng.uniform(0.35, 0.7), rng.uniform(0.25, 0.6))
    if kind == "tree":
        painter.box((92, 68, 48), x - 0.12, y, 0, 0.24, 0.2, 2.2)
        _paint_leaves(painter, rng, leaf, x, y, 2.8, 1.1)
    elif kind == "bush":
        _paint_leaves(painter, rng, leaf, x, y, 0.45, 0.5)
    elif kind == "lamp":
        painter.box((70, 74, 78), x - 0.05, y, 0, 0.1, 0.1, 4.0)
        painter.box((240, 232, 190), x - 0.2, y, 4.0, 0.4, 0.2, 0.15)
    elif kind == "car":
        painter.box(colour, x - 1.9, y, 0.25, 3.8, 1.4, 0.55)
        painter.box((70, 84, 96), x - 1.0, y + 0.1, 0.8, 1.9, 1.2, 0.5)
        for wheel in (x - 1.2, x + 1.2):
            _paint_disc(painter, (28, 28, 30), wheel, y - 0.01, 0.3, 0.3)
    else:
        for left in np.arange(x - 2.5, x + 2.5, 0.3):
            painter.box(colour, left, y, 0, 0.09, 0.03, 1.0)
        for z in (0.3, 0.75):
            painter.wall(shade(colour, 0.8), x - 2.5, z, 5.0, 0.08, y)


def _paint_leaves(
    painter: _Painter, rng: Rng, colour: Colour, x: float, y: float, z: float, size: float
) -> None:
    for tone in np.linspace(0.75, 1.2, 14):
        dx, dz = rng.normal(0, 0.45 * size, 2)
        _paint_disc(
            painter,
            shade(colour, tone),
            x + dx,
            y,
            z + 0.7 * dz + 0.4 * size * (tone - 1),
            rng.uniform(0.3, 0.55) * size,
        )


def _paint_disc(painter: _Painter, colour: Colour, x: float, y: float, z: float, radius: float) -> None:
    centre, scale = painter.camera.project(np.array((x, y, z)))
    (u, v), r = painter.pixels(centre), radius * float(scale) * painter.unit
    painter.draw.ellipse((u - r, v - r, u + r, v + r), fill=colour)


def _paint_prop(painter: _Painter, prop: Prop, rng: Rng) -> None:
    colour = hsv(rng.random(), rng.uniform(0.15, 0.7), rng.uniform(0.3, 0.85))
    x, y = prop.x, prop.y
    if prop.kind == "mat":
        painter.floor(shade(colour, 0.8), x - 1.0, y - 0.42, 2.0, 0.84)
        painter.floor(colour, x - 1.0, y - 0.40, 2.0, 0.80, 0.03)
    elif prop.kind in ("chair", "bench"):
        _paint_seat(painter, colour, x, y, 0.46 if prop.kind == "chair" else 1.3, prop.facing)
    elif prop.kind == "table":
        for left in (x - 0.55, x + 0.49):
            painter.box(shade(colour, 0.8), left, y, 0, 0.06, 0.06, 0.72)
        painter.box(colour, x - 0.6, y - 0.05, 0.72, 1.2, 0.6, 0.05)
    elif prop.kind == "crate":
        painter.box(colour, x - 0.3, y, 0, 0.6, 0.4, rng.uniform(0.3, 0.8))
    elif prop.kind == "parcel":
        painter.box(colour, x - 0.12, y, 0, 0.24, 0.14, 0.26)
    else:
        painter.box(shade(colour, 0.8), x - 0.16, y, 0, 0.32, 0.3, 0.35)
        _paint_leaves(painter, rng, (52, 110, 58), x, y, 0.75, 0.42)


def _paint_seat(painter: _Painter, colour: Colour, x: float, y: float, width: float, facing: int) -> None:
    across, deep = (width, 0.46) if facing == 0 else (0.46, width)
    left, near = x - across / 2, y - deep / 2
    legs = [(left + i * (across - 0.05), near + j * (deep - 0.05)) for j in (1, 0) for i in (0, 1)]
    for leg_x, leg_y in legs:
        painter.box(shade(colour, 0.6), leg_x, leg_y, 0, 0.05, 0.05, 0.42)
    if facing == 0:
        painter.box(colour, left, near + deep - 0.05, 0.42, across, 0.05, 0.48)
        painter.box(colour, left, near, 0.38, across, deep, 0.05)
    else:
        painter.box(colour, left, near, 0.38, across, deep, 0.05)
        painter.box(colour, left if facing > 0 else left + across - 0.05, near, 0.42, 0.05, deep, 0.48)


def _light(image: Image.Image, rng: Rng) -> Image.Image:
    """Uneven light and grain, so that no surface is flat."""
    width, height = image.size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    slope = rng.uniform(-0.2, 0.2, 2)
    gain = 1 + slope[0] * x + slope[1] * y - rng.uniform(0, 0.12) * (x * x + y * y)
    blotches = Image.fromarray(rng.normal(0, 0.05, (9, 12)).astype(np.float32)).resize(
        image.size, Image.Resampling.BICUBIC
    )
    gain += np.asarray(blotches) + rng.normal(0, 0.025, (height, width))
    return Image.fromarray(np.clip(np.asarray(image) * gain[..., None], 0, 255).astype(np.uint8))

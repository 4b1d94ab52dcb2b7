"""The brush for the places of the rendered data set: flat and boxy things in metres, seen by a `Camera`."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from actdet.synthetic.figures import Camera, Colour, shade, tint
from actdet.synthetic.motions import Prop, Rng

OVERSAMPLING = 2
MARGIN = 0.06  # around the picture, for the shake, in picture heights


class Painter:
    """Paints on the canvas of one clip: an oversampled picture with a margin."""

    def __init__(self, camera: Camera, height: int) -> None:
        self._camera, self._unit = camera, height * OVERSAMPLING
        self._offset = round(MARGIN * self._unit)
        self.image = Image.new(
            "RGB", (round(camera.aspect * self._unit) + 2 * self._offset, self._unit + 2 * self._offset)
        )
        self._draw = ImageDraw.Draw(self.image)
        self.near = camera.focal * camera.up / (1.1 - camera.horizon)  # the ground at the lower edge
        self.half = 0.75 * camera.aspect / camera.focal  # half of the width in sight, per metre of distance

    def wall(self, colour: Colour, x: float, z: float, width: float, height: float, y: float) -> None:
        """A rectangle that faces the camera; x and z are those of its lower left corner."""
        self._face(colour, (x, y, z), (x + width, y, z), (x + width, y, z + height), (x, y, z + height))

    def floor(self, colour: Colour, x: float, y: float, width: float, depth: float, z: float = 0) -> None:
        """A level rectangle; x and y are those of its near left corner."""
        self._face(colour, (x, y, z), (x + width, y, z), (x + width, y + depth, z), (x, y + depth, z))

    def box(self, colour: Colour, x: float, y: float, z: float, width: float, depth: float, height: float) -> None:
        """A cuboid with its left, near, lower corner at (x, y, z), lit from above."""
        side = x if x > 0 else x + width
        far, top = y + depth, z + height
        self._face(shade(colour, 0.66), (side, y, z), (side, far, z), (side, far, top), (side, y, top))
        self.wall(shade(colour, 0.85), x, z, width, height, y)
        if self._camera.up > top:
            self.floor(shade(colour, 1.1), x, y, width, depth, top)

    def disc(self, colour: Colour, x: float, y: float, z: float, radius: float) -> None:
        """A round that faces the camera."""
        middle, scale = self._camera.project(np.array((x, y, z)))
        u, v = middle * self._unit + self._offset
        r = radius * float(scale) * self._unit
        self._draw.ellipse((u - r, v - r, u + r, v + r), fill=colour)

    def leaves(self, rng: Rng, colour: Colour, x: float, y: float, z: float, size: float) -> None:
        """The crown of a tree or a bush."""
        for tone in np.linspace(0.75, 1.2, 14):
            dx, dz = rng.normal(0, 0.45 * size), rng.normal(0, 0.3 * size) + 0.4 * size * (tone - 1)
            self.disc(shade(colour, tone), x + dx, y, z + dz, rng.uniform(0.3, 0.55) * size)

    def sky(self, high: Colour, low: Colour) -> None:
        """Fill the picture with a colour that changes downwards."""
        width, height = self.image.size
        for y in range(height):
            r, g, b = (round(p + (q - p) * y / height) for p, q in zip(high, low, strict=True))
            self._draw.line((0, y, width, y), fill=(r, g, b))

    def prop(self, prop: Prop, rng: Rng) -> None:
        """A thing on the ground, in a colour of its own."""
        colour, x, y = tint(rng, (0.1, 0.6), (0.3, 0.85)), prop.x, prop.y
        if prop.kind == "mat":
            self.floor(shade(colour, 0.8), x - 1.0, y - 0.42, 2.0, 0.84)
            self.floor(colour, x - 1.0, y - 0.40, 2.0, 0.80, 0.03)
        elif prop.kind in ("chair", "bench"):
            self._seat(colour, x, y, 0.46 if prop.kind == "chair" else 1.3, prop.facing)
        elif prop.kind == "table":
            for left in (x - 0.55, x + 0.49):
                self.box(shade(colour, 0.8), left, y, 0, 0.06, 0.06, 0.72)
            self.box(colour, x - 0.6, y - 0.05, 0.72, 1.2, 0.6, 0.05)
        elif prop.kind == "crate":
            self.box(colour, x - 0.3, y, 0, 0.6, 0.4, rng.uniform(0.3, 0.8))
        elif prop.kind == "parcel":
            self.box(colour, x - 0.12, y, 0, 0.24, 0.14, 0.26)
        else:
            self.box(colour, x - 0.16, y, 0, 0.32, 0.3, 0.35)
            self.leaves(rng, (62, 108, 62), x, y, 0.75, 0.42)

    def _seat(self, colour: Colour, x: float, y: float, width: float, facing: int) -> None:
        across, deep = (width, 0.46) if facing == 0 else (0.46, width)
        left, near = x - across / 2, y - deep / 2
        for leg_y in (near + deep - 0.05, near):
            for leg_x in (left, left + across - 0.05):
                self.box(shade(colour, 0.6), leg_x, leg_y, 0, 0.05, 0.05, 0.42)
        if facing == 0:
            self.box(colour, left, near + deep - 0.05, 0.42, across, 0.05, 0.48)
        self.box(colour, left, near, 0.38, across, deep, 0.05)
        if facing != 0:
            self.box(colour, left if facing > 0 else left + across - 0.05, near, 0.42, 0.05, deep, 0.48)

    def _face(self, colour: Colour, *corners: tuple[float, float, float]) -> None:
        outline, _ = self._camera.project(np.array(corners))
        self._draw.polygon((outline * self._unit + self._offset).ravel().tolist(), fill=colour)

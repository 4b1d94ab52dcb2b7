"""Jointed people for the rendered data set: who they are, how their joints turn, and the shapes to draw.

A body is a skeleton in meters: x to the right of the picture, y away from the camera, z up. The joint angles of a whole
clip become, for all frames at once, the points of the skeleton, and these become thick tapered capsules as a `Camera`
sees them. `filming` paints the capsules from the farthest to the nearest.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Color = tuple[int, int, int]

# The left and the right side of a body.
SIDES = ("l", "r")

# The joints, and the column that each of them has in the array of angles.
_TRUNK = ("lean", "tilt", "bend", "sway", "twist", "nod", "turn")
_LIMB = ("shoulder", "spread", "roll", "elbow", "hip", "split", "knee")
_INDEX = {name: i for i, name in enumerate([*_TRUNK, *(f"{j}_{s}" for s in SIDES for j in _LIMB)])}

# Hues that paint and cloth often have, and colors of skin and hair.
_HUES = (0.0, 0.03, 0.07, 0.10, 0.14, 0.24, 0.37, 0.47, 0.54, 0.58, 0.61, 0.64, 0.72, 0.82, 0.93, 0.98)
_SKINS = ("#f3d3bd", "#e6b894", "#d19b72", "#b57a4f", "#8d5a35", "#5d3a24", "#40281a")
_HAIRS = ("#17130f", "#2f2018", "#5a3a22", "#8c6239", "#c9a15c", "#8a3b1d", "#9a9a98", "#d8d6d0")


@dataclass(frozen=True)
class Person:
    """What one person looks like."""

    height: float
    """In meters."""
    build: float
    """How broad the person is, relative to an average body."""
    shoulders: float
    """How broad the shoulders are, relative to an average body of this build."""
    hair_style: str
    """bald, short or long."""
    pattern: str
    """Of the shirt: plain, two-colored or striped."""
    skirt: bool
    colors: dict[str, Color]
    """The color of each part of the body, and of the parcel that the person may carry."""


@dataclass
class Track:
    """A person's motion over T frames."""

    angles: Array
    """(T, J) angles of the joints, in radians."""
    ground: Array
    """(T, 2) position on the ground, in meters."""
    yaw: Array
    """(T,) heading, in radians."""
    rooted: bool = False
    """Whether the position is the one between the feet, over which the body then tips, or the one below the pelvis."""
    parcel: tuple[str, int] | None = None
    """The side of the hand that takes a parcel, and the frame; until then the parcel lies on the ground."""


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera. Lengths in the picture are in picture heights."""

    focal: float
    """Focal length."""
    up: float
    """Height above the ground, in meters."""
    horizon: float
    """Where the horizon is in the picture, from the top."""
    aspect: float
    """Width of the picture."""

    def project(self, points: Array) -> tuple[Array, Array]:
        """Return the picture coordinates (..., 2) of points (..., 3), and the size (...) of a meter at each of them."""
        # What is closer than 0.3 m is drawn as if it were there.
        scale = self.focal / np.maximum(points[..., 1], 0.3)
        across = self.aspect / 2 + points[..., 0] * scale
        return np.stack([across, self.horizon + (self.up - points[..., 2]) * scale], -1), scale


@dataclass(frozen=True)
class Shapes:
    """What is drawn of a person in T frames: P polygons of V corners."""

    polygons: Array
    """(T, P, V, 2) corners in the picture, in picture heights."""
    distance: Array
    """(T, P) distance from the camera, in meters."""
    colors: list[Color]
    """The color of each of the P polygons."""
    shadow: Array
    """(T, 4) center and half axes of the shadow in the picture, in picture heights."""


def hsv(hue: float, saturation: float, value: float) -> Color:
    """Return the RGB color of hue, saturation and value, which are in [0, 1]."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(r * 255), round(g * 255), round(b * 255)


def tint(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    """Return a random color that paint and cloth may have, its saturation and value in the given ranges."""
    return hsv(rng.choice(_HUES) + rng.normal(0, 0.012), rng.uniform(*saturation), rng.uniform(*value))


def shade(color: Color, factor: float) -> Color:
    """Return the color made darker (factor below 1) or lighter."""
    r, g, b = (min(255, round(c * factor)) for c in color)
    return r, g, b


def invent_person(rng: np.random.Generator) -> Person:
    """Invent a person: body, skin, hair and clothes."""

    def cloth() -> Color:
        # Some clothes are black, gray or white, the others have a color.
        if rng.random() < 0.35:
            return tint(rng, (0.0, 0.15), (0.1, 0.95))
        return tint(rng, (0.3, 0.75), (0.22, 0.85))

    def natural(palette: tuple[str, ...]) -> Color:
        code = palette[rng.integers(len(palette))]
        r, g, b = (int(code[i : i + 2], 16) for i in (1, 3, 5))
        return shade((r, g, b), rng.uniform(0.9, 1.08))

    skin = natural(_SKINS)
    shirt = cloth()
    trousers = cloth()
    long_sleeves = rng.random() < 0.6
    shorts = rng.random() < 0.2
    skirt = rng.random() < 0.15
    colors = {
        "skin": skin,
        "hair": natural(_HAIRS),
        "shirt": shirt,
        "second": cloth(),
        "upper arm": shirt,
        "forearm": shirt if long_sleeves else skin,
        "hips": trousers,
        "thigh": skin if skirt else trousers,
        "shin": skin if shorts or skirt else trousers,
        "shoe": tint(rng, (0.0, 0.4), (0.08, 0.9)),
        "eye": (52, 38, 34),
        "parcel": cloth(),
    }
    return Person(
        height=rng.uniform(1.5, 1.92),
        build=rng.uniform(0.88, 1.28),
        shoulders=rng.uniform(0.9, 1.12),
        hair_style=str(rng.choice(["bald", "short", "short", "short", "long", "long"])),
        pattern=str(rng.choice(["plain", "plain", "two-colored", "striped"])),
        skirt=skirt,
        colors=colors,
    )


def overlay(angles: Array, weight: Array | float, only: str = "", **degrees: Array | float) -> None:
    """Turn joints towards given angles, in place.

    Args:
        angles: (T, J) angles of all joints, in radians.
        weight: How far to turn them, from 0, which leaves them as they are, to 1; (T,) or the same in all frames.
        only: The side, "l" or "r", on which joints of limbs are turned; by default both.
        **degrees: The angle of each joint, by its name, in degrees; (T,) or the same in all frames.
    """
    for name, target in degrees.items():
        for joint in [name] if name in _TRUNK else [f"{name}_{s}" for s in only or SIDES]:
            column = angles[:, _INDEX[joint]]
            column += weight * (np.radians(target) - column)


def rest_angles(frames: int) -> Array:
    """Return the angles (T, J) of a person who stands upright with hanging arms, over T = `frames` frames."""
    angles = np.zeros((frames, len(_INDEX)))
    overlay(angles, 1, shoulder=4, spread=9, elbow=14, roll=10, split=4, hip=3, knee=6)
    return angles


class _Part(NamedTuple):
    """A capsule of the body, from one joint to another."""

    start: str
    end: str
    start_radius: float
    """Radius at the joint `start`, in body heights."""
    end_radius: float
    color: str
    """Name of its color in `Person.colors`."""


def shape_person(person: Person, track: Track, camera: Camera, light: float) -> Shapes:
    """Return what to draw of a person in every frame; the light comes from the left (-1) or the right (1)."""
    joints = skeleton(person, track)
    parts = _parts(person)
    if track.parcel:
        parts.append(_Part("handle", "parcel", 0.035, 0.065, "parcel"))

    starts = np.stack([joints[part.start] for part in parts], 1)
    ends = np.stack([joints[part.end] for part in parts], 1)
    broad = np.array([1 if part.color in ("skin", "hair", "eye") else person.build for part in parts])
    a, scale_a = camera.project(starts)
    b, scale_b = camera.project(ends)
    ra = scale_a * broad * person.height * [part.start_radius for part in parts]
    rb = scale_b * broad * person.height * [part.end_radius for part in parts]

    # All parts of the trunk have the same distance, so that it is painted as a whole.
    distance = (starts[..., 1] + ends[..., 1]) / 2
    trunk = np.array([part.color in ("shirt", "second", "hips") for part in parts])
    distance[:, trunk] = distance[:, trunk].mean(1, keepdims=True)

    # On the side of the light each part has a lighter, smaller capsule right in front of it.
    colors = [person.colors[part.color] for part in parts]
    lit = [i for i, part in enumerate(parts) if part.color not in ("hair", "eye")]
    towards_light = np.stack([light * 0.11 * (ra + rb), -0.07 * (ra + rb)], -1)
    sheen = _capsules(a + towards_light, b + towards_light, 0.65 * ra, 0.65 * rb)
    return Shapes(
        polygons=np.concatenate([_capsules(a, b, ra, rb), sheen[:, lit]], 1),
        distance=np.concatenate([distance, distance[:, lit] - 1e-3], 1),
        colors=[shade(color, 0.84) for color in colors] + [shade(colors[i], 1.06) for i in lit],
        shadow=_shadow(joints, camera),
    )


# The trunk, from the hips up: height within it, half its width, and radius.
_BANDS = (
    (0, 0.070, 0.072),
    (0.25, 0.062, 0.070),
    (0.5, 0.066, 0.072),
    (0.75, 0.080, 0.074),
    (0.97, 0.088, 0.060),
)


def _parts(person: Person) -> list[_Part]:
    """Return what a body is made of."""
    parts = []
    for s in SIDES:
        parts += [
            _Part(f"shoulder_{s}", f"elbow_{s}", 0.036, 0.030, "upper arm"),
            _Part(f"elbow_{s}", f"wrist_{s}", 0.030, 0.023, "forearm"),
            _Part(f"wrist_{s}", f"hand_{s}", 0.025, 0.022, "skin"),
            _Part(f"hip_{s}", f"knee_{s}", 0.056, 0.041, "thigh"),
            _Part(f"knee_{s}", f"ankle_{s}", 0.041, 0.028, "shin"),
            _Part(f"ankle_{s}", f"toe_{s}", 0.030, 0.022, "shoe"),
            _Part(f"eye_{s}", f"lid_{s}", 0.0065, 0.0065, "eye"),
        ]

    if person.skirt:
        parts.append(_Part("pelvis", "hem", 0.085, 0.105, "hips"))
    for i, (_, _, radius) in enumerate(_BANDS):
        is_second = (person.pattern == "striped" and i % 2 == 0) or (person.pattern == "two-colored" and i < 3)
        color = "second" if is_second else "shirt"
        if i == 0:
            color = "hips"
        parts.append(_Part(f"band{i}_l", f"band{i}_r", radius, radius, color))

    parts.append(_Part("neck", "chin", 0.032, 0.032, "skin"))
    parts.append(_Part("face", "brow", 0.052, 0.056, "skin"))
    if person.hair_style != "bald":
        parts.append(_Part("crown", "nape", 0.062, 0.052, "hair"))
    if person.hair_style == "long":
        parts.append(_Part("nape", "mane", 0.056, 0.048, "hair"))
    return parts


def skeleton(person: Person, track: Track) -> dict[str, Array]:
    """Return the positions (T, 3) of all joints, in meters; the lowest point of the body touches the ground."""
    angle = {name: track.angles[:, i] for name, i in _INDEX.items()}
    wide = person.shoulders * person.build
    pelvis_turn = _turn("z", track.yaw) @ _turn("y", angle["lean"]) @ _turn("x", angle["tilt"])
    trunk_turn = pelvis_turn @ _turn("z", angle["twist"]) @ _turn("y", angle["bend"]) @ _turn("x", angle["sway"])
    head_turn = trunk_turn @ _turn("y", angle["nod"]) @ _turn("z", angle["turn"])

    # Positions in body heights, relative to the pelvis.
    at = {"pelvis": np.zeros((len(track.yaw), 3))}
    for i, (up, half, _) in enumerate(_BANDS):
        turn = pelvis_turn if i == 0 else trunk_turn
        for s, sign in (("l", 1), ("r", -1)):
            at[f"band{i}_{s}"] = _point(turn, 0, sign * half * 0.62 * wide, 0.285 * up)
    at["neck"] = _point(trunk_turn, 0, 0, 0.29)
    for name, offset in {
        "chin": (0.008, 0, 0.055),
        "face": (0.014, 0, 0.085),
        "brow": (0.010, 0, 0.112),
        "crown": (-0.006, 0, 0.124),
        "nape": (-0.022, 0, 0.095),
        "mane": (-0.035, 0, 0.015),
        "eye_l": (0.064, 0.022, 0.092),
        "lid_l": (0.064, 0.022, 0.100),
        "eye_r": (0.064, -0.022, 0.092),
        "lid_r": (0.064, -0.022, 0.100),
    }.items():
        at[name] = at["neck"] + _point(head_turn, *offset)

    for s, sign in (("l", 1), ("r", -1)):
        arm = trunk_turn @ _turn("y", -angle[f"shoulder_{s}"]) @ _turn("x", sign * angle[f"spread_{s}"])
        fore = arm @ _turn("z", -sign * angle[f"roll_{s}"]) @ _turn("y", -angle[f"elbow_{s}"])
        thigh = pelvis_turn @ _turn("y", -angle[f"hip_{s}"]) @ _turn("x", sign * angle[f"split_{s}"])
        shin = thigh @ _turn("y", angle[f"knee_{s}"])
        at[f"shoulder_{s}"] = _point(trunk_turn, 0, sign * 0.108 * wide, 0.262)
        at[f"elbow_{s}"] = at[f"shoulder_{s}"] + _point(arm, 0, 0, -0.168)
        at[f"wrist_{s}"] = at[f"elbow_{s}"] + _point(fore, 0, 0, -0.142)
        at[f"hand_{s}"] = at[f"wrist_{s}"] + _point(fore, 0, 0, -0.045)
        at[f"hip_{s}"] = _point(pelvis_turn, 0, sign * 0.050 * person.build, -0.02)
        at[f"knee_{s}"] = at[f"hip_{s}"] + _point(thigh, 0, 0, -0.240)
        at[f"ankle_{s}"] = at[f"knee_{s}"] + _point(shin, 0, 0, -0.232)
        at[f"toe_{s}"] = at[f"ankle_{s}"] + _point(shin, 0.085, 0, -0.012)
    at["hem"] = 0.35 * at["pelvis"] + 0.325 * (at["knee_l"] + at["knee_r"])

    # Positions in meters, moved to the place of the person.
    spread = np.stack(list(at.values()), 1) * person.height
    root = np.zeros((len(track.yaw), 3))
    root[:, :2] = track.ground
    if track.rooted:
        root[:, :2] -= person.height * (at["ankle_l"] + at["ankle_r"])[:, :2] / 2
    root[:, 2] = 0.03 * person.height - spread[..., 2].min(1)
    joints = {name: spread[:, i] + root for i, name in enumerate(at)}

    # A parcel hangs from the hand, and before it is taken it lies where the hand will be.
    if track.parcel:
        side, taken = track.parcel
        joints["handle"] = joints[f"hand_{side}"].copy()
        joints["handle"][:taken] = joints["handle"][taken]
        joints["handle"][:taken, 2] = 0.3
        joints["parcel"] = joints["handle"] - (0, 0, 0.18)
    return joints


def _point(turn: Array, x: float, y: float, z: float) -> Array:
    """Return the fixed offset (x, y, z) of a joint, turned in every frame as its limb is: (T, 3)."""
    return turn @ np.array((x, y, z))


def _turn(axis: str, angle: Array) -> Array:
    """Return rotation matrices (T, 3, 3) about one axis, for angles (T,) in radians."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.zeros((len(angle), 3, 3))
    matrix[:] = np.eye(3)
    matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
    matrix[:, j, i] = np.sin(angle)
    matrix[:, i, j] = -matrix[:, j, i]
    return matrix


def _capsules(a: Array, b: Array, ra: Array, rb: Array, arc: int = 8) -> Array:
    """Return outlines around two circles each, the shape of a limb that tapers from a to b.

    Args:
        a: (..., 2) center of the first circle.
        b: (..., 2) center of the second circle.
        ra: (...) radius of the first circle.
        rb: (...) radius of the second circle.
        arc: How many points of the outline are on each circle.

    Returns:
        (..., 2 * arc, 2) points.
    """
    along = b - a
    length = np.maximum(np.hypot(along[..., 0], along[..., 1]), 1e-6)
    heading = np.arctan2(along[..., 1], along[..., 0])[..., None]
    tangent = np.arccos(np.clip((ra - rb) / length, -1, 1))[..., None]
    u = np.linspace(0, 1, arc)
    angle_a = heading + tangent + u * (2 * np.pi - 2 * tangent)
    angle_b = heading - tangent + u * 2 * tangent
    circle_a = a[..., None, :] + ra[..., None, None] * np.stack([np.cos(angle_a), np.sin(angle_a)], -1)
    circle_b = b[..., None, :] + rb[..., None, None] * np.stack([np.cos(angle_b), np.sin(angle_b)], -1)
    return np.concatenate([circle_a, circle_b], -2)


def _shadow(joints: dict[str, Array], camera: Camera) -> Array:
    """Return the shadow that light from above casts: its center and half axes (T, 4) in the picture."""
    body = np.stack([joints[n] for n in ("neck", "pelvis", "knee_l", "knee_r", "ankle_l", "ankle_r", "brow")], 1)
    low = body.min(1) - 0.2
    high = body.max(1) + 0.2
    center = (low + high) / 2
    center[:, 2] = 0
    middle, scale = camera.project(center)
    half = (high - low)[:, :2] / 2 * scale[:, None]
    half[:, 1] *= camera.up / center[:, 1]
    return np.concatenate([middle, half], 1)

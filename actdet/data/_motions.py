"""How people move in the rendered data set: the building blocks of motions, and all everyday actions.

A motion is a function of time: it returns one `Track` per actor (joint angles and path, in metres around the middle
of the stage, x to the right and y away from the camera) and the objects the action needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from actdet.data._figures import Array, Track, overlay, rest_angles

Rng = np.random.Generator
STRIDE = 1.42  # metres per two steps
SIDES = ("l", "r")


@dataclass(frozen=True)
class Prop:
    """A thing on the ground: kind, position of its middle, and where a seat faces (-1 left, 1 right, 0 the camera)."""

    kind: str
    x: float
    y: float
    facing: int = 0


@dataclass(frozen=True)
class Act:
    """The tracks of the actors and the things they need around them."""

    tracks: list[Track]
    props: list[Prop] = field(default_factory=list)


Motion = Callable[[Array, Rng, float], Act]  # (times in seconds, random numbers, room to walk in metres)


# Building blocks: weights in 0..1 over time.


def ramp(t: Array, start: float, length: float) -> Array:
    """0 before `start`, 1 after `start + length`, smooth between."""
    u = np.clip((t - start) / max(length, 1e-3), 0, 1)
    return u * u * (3 - 2 * u)


def pulse(t: Array, start: float, rise: float, hold: float, release: float) -> Array:
    return ramp(t, start, rise) * (1 - ramp(t, start + rise + hold, release))


def wobble(t: Array, rng: Rng, hertz: float) -> Array:
    """An irregular swing within -1..1 at about the given frequency."""
    slow, fast = hertz * rng.uniform(0.8, 1.0), hertz * rng.uniform(1.25, 1.6)
    a, b = rng.uniform(0, 2 * np.pi, 2)
    return 0.65 * np.sin(2 * np.pi * slow * t + a) + 0.35 * np.sin(2 * np.pi * fast * t + b)


def still(t: Array, rng: Rng) -> Array:
    """Angles of a person at rest, in a posture of their own, who sways a little."""
    angles = rest_angles(len(t))
    overlay(angles, 1.0, bend=rng.uniform(-2, 7) + 1.5 * wobble(t, rng, 0.4), side=2 * wobble(t, rng, 0.3))
    overlay(angles, 1.0, turn=rng.uniform(-30, 30) + 12 * wobble(t, rng, 0.4), nod=rng.uniform(-5, 12))
    for s in SIDES:
        overlay(angles, 1.0, **{f"shoulder_{s}": rng.uniform(-4, 14) + 3 * wobble(t, rng, 0.4)})
        overlay(angles, 1.0, **{f"elbow_{s}": rng.uniform(8, 35), f"spread_{s}": rng.uniform(5, 14)})
    return angles


def stride(angles: Array, travelled: Array, weight: Array | float) -> None:
    """Walk: legs and arms swing with the way travelled (metres)."""
    phase = 2 * np.pi * travelled / STRIDE
    for s, p in zip(SIDES, (phase, phase + np.pi), strict=True):
        overlay(angles, weight, **{f"hip_{s}": 26 * np.sin(p) + 3})
        overlay(angles, weight, **{f"knee_{s}": 8 + 48 * np.clip(np.cos(p), 0, 1) ** 1.3})
        overlay(angles, weight, **{f"shoulder_{s}": 3 - 24 * np.sin(p), f"elbow_{s}": 22 - 10 * np.sin(p)})
    overlay(angles, weight, bend=5, twist=6 * np.sin(phase))


def along(yaw: Array | float) -> Array:
    """Unit steps (..., 2) on the ground in the direction of the heading."""
    return np.stack([np.cos(yaw), np.sin(yaw)], -1)


def any_heading(rng: Rng) -> float:
    return rng.uniform(-np.pi, np.pi)


def sideways_heading(rng: Rng, slant: float) -> float:
    """A heading to the left or right of the picture, at most `slant` radians off."""
    return rng.choice([0.0, np.pi]) + rng.uniform(-slant, slant)


LYING = ("prone", "supine", "left", "right")


def lie(angles: Array, trunk: Array, limbs: Array, way: str, rng: Rng) -> None:
    """Lie on the belly, the back or a side: the weights say how far the trunk and the limbs are on their way."""
    overlay(angles, limbs, turn=rng.uniform(-40, 40), nod=rng.uniform(-5, 10), twist=0)
    if way in ("prone", "supine"):
        sign = 1 if way == "prone" else -1
        overlay(
            angles,
            trunk,
            lean=sign * rng.uniform(86, 89),
            tilt=rng.uniform(-8, 8),
            bend=0,
            side=rng.uniform(-12, 12),
        )
        for s in SIDES:  # the arms rest flat on the ground, beside the body or beyond the head
            shoulder = rng.choice([0.0, 172.0]) if rng.random() < 0.8 else 90.0 * (way == "supine")
            target = {
                f"shoulder_{s}": shoulder,
                f"spread_{s}": rng.uniform(8, 75),
                f"elbow_{s}": rng.uniform(5, 80),
            }
            overlay(angles, limbs, **target, **{f"roll_{s}": rng.choice([-90.0, 90.0])})
            drawn_up = rng.uniform(0, 45) * (way == "supine") * (rng.random() < 0.6)
            target = {f"hip_{s}": drawn_up, f"knee_{s}": 2 * drawn_up + rng.uniform(0, 12)}
            overlay(angles, limbs, **target, **{f"split_{s}": rng.uniform(3, 22)})
    else:
        sign = 1 if way == "right" else -1
        overlay(
            angles,
            trunk,
            tilt=sign * rng.uniform(84, 89),
            lean=rng.uniform(-8, 8),
            bend=rng.uniform(-5, 30),
            side=0,
        )
        for s in SIDES:
            target = {
                f"shoulder_{s}": rng.uniform(0, 150),
                f"elbow_{s}": rng.uniform(5, 90),
                f"spread_{s}": 3.0,
            }
            overlay(
                angles, limbs, **target, **{f"hip_{s}": rng.uniform(-5, 70), f"knee_{s}": rng.uniform(0, 95)}
            )
        overlay(angles, limbs, roll=0, split=2)


def fall_heading(way: str, rng: Rng) -> float:
    """A heading from which going down that way is well seen: the body comes to lie rather across the picture."""
    return sideways_heading(rng, 0.8) + {"left": -np.pi / 2, "right": np.pi / 2}.get(way, 0.0)


# One person, nothing out of the ordinary.


def walk_or_stand(t: Array, rng: Rng, room: float) -> Act:
    if rng.random() < 0.25:
        return Act([stand(t, rng)])
    return Act([_walker(t, rng, sideways_heading(rng, 0.5), min(room, t[-1] * rng.uniform(0.7, 1.5)))])


def stand(t: Array, rng: Rng) -> Track:
    yaw = any_heading(rng) + 0.15 * wobble(t, rng, 0.2)
    return Track(still(t, rng), np.zeros((len(t), 2)), yaw, rooted=True)


def wave(t: Array, rng: Rng) -> Track:
    track = stand(t, rng)
    side = SIDES[rng.integers(2)]
    up = ramp(t, rng.uniform(-0.5, 0.4) * t[-1], 0.6)
    overlay(track.angles, up, **{f"shoulder_{side}": rng.uniform(120, 170), f"spread_{side}": 20.0})
    overlay(track.angles, up, **{f"elbow_{side}": 45 + 32 * np.sin(2 * np.pi * rng.uniform(1, 2) * t)})
    return track


def _walker(t: Array, rng: Rng, yaw: float, way: float) -> Track:
    travelled = way * (t / t[-1] - 0.5)
    angles = still(t, rng)
    stride(angles, travelled + rng.uniform(0, STRIDE), 1.0)
    return Track(angles, travelled[:, None] * along(yaw), np.full(len(t), yaw))


def stroll(t: Array, rng: Rng) -> Track:
    track = _walker(t, rng, sideways_heading(rng, 0.3), t[-1] * rng.uniform(0.6, 1.4))
    track.parcel = (SIDES[rng.integers(2)], 0) if rng.random() < 0.4 else None
    return track


def seated(t: Array, rng: Rng, facing: int) -> Track:
    angles = still(t, rng)
    _sit(angles, 1.0, rng)
    return Track(
        angles, np.zeros((len(t), 2)), np.full(len(t), _seat_heading(facing) + rng.uniform(-0.2, 0.2))
    )


def _seat_heading(facing: int) -> float:
    return {-1: np.pi, 0: -np.pi / 2, 1: 0.0}[facing]


def _sit(angles: Array, weight: Array | float, rng: Rng) -> None:
    overlay(angles, weight, hip=rng.uniform(80, 88), knee=rng.uniform(80, 92), split=rng.uniform(5, 14))
    overlay(angles, weight, shoulder=rng.uniform(25, 40), elbow=rng.uniform(35, 60), roll=25)


def sit_down(t: Array, rng: Rng, room: float) -> Act:
    facing = int(rng.integers(-1, 2))
    heading = _seat_heading(facing)
    length = rng.uniform(0.8, 1.4)
    start = rng.uniform(0.15, 0.55) * max(t[-1] - length, 0.3)
    angles = still(t, rng)
    _sit(angles, ramp(t, start, length), rng)
    overlay(angles, pulse(t, start, length * 0.5, 0, length * 0.6), bend=rng.uniform(25, 45))
    yaw = np.full(len(t), heading + rng.uniform(-0.2, 0.2))
    spot = np.zeros((len(t), 2))
    way = rng.uniform(0.0, 0.8)  # comes from the front and turns, if there is a way to go
    before = 1 - ramp(t, start - 0.75, 0.6)
    if way > 0.3 and start > 0.9:
        spot = before[:, None] * way * along(heading + rng.uniform(-0.8, 0.8))
        yaw = yaw + np.pi * before * rng.choice([-1.0, 1.0])
        stride(angles, -way * before, pulse(t, start - 0.85, 0.15, 0.4, 0.2))
    seat = -0.42 * along(heading)
    kind = "chair" if rng.random() < 0.6 else "bench"
    return Act([Track(angles, spot, yaw, rooted=True)], [Prop(kind, seat[0], seat[1], facing)])


def pick_up(t: Array, rng: Rng, room: float) -> Act:
    length = rng.uniform(1.4, 2.2)
    start = rng.uniform(0.1, 0.7) * max(t[-1] - length, 0.3)
    down = pulse(t, start, length * 0.42, length * 0.12, length * 0.42)
    angles = still(t, rng)
    yaw = np.full(len(t), sideways_heading(rng, 0.9))
    squat = rng.uniform(0, 1)
    overlay(angles, down, bend=70 - 35 * squat, lean=12, hip=50 + 55 * squat, knee=35 + 85 * squat, nod=15)
    side = SIDES[rng.integers(2)]
    overlay(angles, down, **{f"shoulder_{side}": 75.0, f"elbow_{side}": 5.0})
    overlay(angles, ramp(t, start + length * 0.55, 0.5), **{f"elbow_{side}": rng.uniform(40, 100)})
    taken = int(np.searchsorted(t, start + length * 0.5).clip(0, len(t) - 1))
    return Act([Track(angles, np.zeros((len(t), 2)), yaw, rooted=True, parcel=(side, taken))])


def lie_down(t: Array, rng: Rng, room: float) -> Act:
    """Kneels, then goes down on all fours or on the seat, then lies: slow, over more than half of the clip."""
    total = rng.uniform(0.58, 0.75) * t[-1]
    start = rng.uniform(0.04, 0.95) * (t[-1] * 0.9 - total)
    way = str(rng.choice(LYING))
    angles = still(t, rng)
    overlay(angles, ramp(t, start, 0.34 * total), hip=5, knee=92, bend=15, lean=-3)
    lower, rest = ramp(t, start + 0.3 * total, 0.36 * total), ramp(t, start + 0.62 * total, 0.38 * total)
    if way == "supine":
        overlay(angles, lower, lean=-22, hip=92, knee=62, bend=12, shoulder=-25, elbow=10)
    else:
        overlay(angles, lower, lean=74, hip=76, knee=90, bend=6, shoulder=78, elbow=8, nod=-20)
    lie(angles, rest, rest, way, rng)
    heading = fall_heading(way, rng)
    props = []
    if rng.random() < 0.5:
        props.append(Prop("mat", rng.uniform(-0.4, 0.4), rng.uniform(-0.1, 0.2)))
    return Act([Track(angles, np.zeros((len(t), 2)), np.full(len(t), heading), rooted=True)], props)


# Two people.


@dataclass
class Pair:
    """Two people who face each other: `gap` apart along an axis that points at `angle`, around `centre`."""

    centre: Array
    gap: Array
    angle: Array

    def tracks(self, first: Array, second: Array) -> list[Track]:
        """Their tracks, given the joint angles of each."""
        reach = self.gap[:, None] / 2 * along(self.angle)
        return [
            Track(first, self.centre - reach, self.angle),
            Track(second, self.centre + reach, self.angle + np.pi),
        ]


def approach(angles: Array, t: Array, gap: Array, rng: Rng) -> None:
    """Walk while the gap closes: each one goes half of the way."""
    closing = np.abs(np.gradient(gap, t)) / 2
    stride(angles, -gap / 2 + rng.uniform(0, STRIDE), np.clip(closing / 0.5, 0, 1))


def pass_by(t: Array, rng: Rng, room: float) -> Act:
    heading, lane = sideways_heading(rng, 0.25), rng.uniform(0.25, 0.55)
    tracks = []
    for turn, side in ((0.0, 1), (np.pi, -1)):
        track = _walker(t, rng, heading + turn, min(room, t[-1] * rng.uniform(0.7, 1.5)))
        track.ground += side * lane / 2 * along(heading + np.pi / 2) + rng.uniform(-0.3, 0.3) * along(heading)
        tracks.append(track)
    return Act(tracks)


def hug(t: Array, rng: Rng, room: float) -> Act:
    meet = rng.uniform(0.2, 0.45) * t[-1]
    apart = min(rng.uniform(0.7, 2.2), 0.36 + 2.4 * meet, room)
    gap = apart + (rng.uniform(0.28, 0.36) - apart) * ramp(t, -0.2 * meet, 1.2 * meet)
    angle = sideways_heading(rng, 0.6) + 0.08 * wobble(t, rng, 0.25)
    both = []
    for _ in range(2):
        angles = still(t, rng)
        approach(angles, t, gap, rng)
        hold = ramp(t, meet - rng.uniform(0.3, 0.5), rng.uniform(0.6, 0.9))
        overlay(
            angles,
            hold,
            turn=0,
            nod=rng.uniform(0, 20),
            bend=rng.uniform(4, 12),
            side=3 * wobble(t, rng, 0.4),
        )
        for s in SIDES:
            pat = rng.uniform(0, 9) * wobble(t, rng, 1.5)
            target = {f"shoulder_{s}": rng.uniform(45, 85), f"elbow_{s}": rng.uniform(55, 80) + pat}
            overlay(angles, hold, **target, **{f"roll_{s}": rng.uniform(45, 70), f"spread_{s}": 22.0})
        both.append(angles)
    return Act(Pair(np.zeros((len(t), 2)), gap, angle).tracks(*both))


def talk(t: Array, rng: Rng, room: float) -> Act:
    gap = np.full(len(t), rng.uniform(0.7, 1.3))
    angle = sideways_heading(rng, 0.7) + 0.1 * wobble(t, rng, 0.2)
    both = []
    for _ in range(2):
        angles = still(t, rng)
        overlay(angles, 1.0, turn=0, nod=6 * wobble(t, rng, 1.0), split=rng.uniform(4, 12))
        start = rng.uniform(-0.3, 0.8)
        while start < t[-1]:
            hold, side = rng.uniform(0.2, 0.9), SIDES[rng.integers(2)]
            raised = pulse(t, start, rng.uniform(0.3, 0.5), hold, rng.uniform(0.3, 0.6))
            hand = {f"elbow_{side}": rng.uniform(60, 115) + 15 * wobble(t, rng, 1.4)}
            overlay(angles, raised, **hand, **{f"shoulder_{side}": rng.uniform(10, 50)})
            overlay(angles, raised, **{f"spread_{side}": rng.uniform(5, 35)})
            start += hold + rng.uniform(0.4, 1.4)
        both.append(angles)
    centre = 0.03 * np.stack([wobble(t, rng, 0.3), wobble(t, rng, 0.3)], 1)
    return Act(Pair(centre, gap, angle).tracks(*both))


NEGATIVES: dict[str, Motion] = {
    "pass": pass_by,
    "hug": hug,
    "talk": talk,
    "sit": sit_down,
    "pickup": pick_up,
    "lie": lie_down,
    "walk": walk_or_stand,
}

"""The clips of the rendered data set: one action or look-alike each, from beginning to end, near the camera."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from actdet.synthetic.actions import collapse, fight
from actdet.synthetic.config import RenderConfig
from actdet.synthetic.figures import Array, Camera, Person, Shapes, Track, shape_person
from actdet.synthetic.filming import invent_lens
from actdet.synthetic.motions import EVERYDAY, Act, Prop, Rng, seated, stand, stroll, wave
from actdet.synthetic.stage import CAST, PLACES, Scene, aim, moved, world

# What the clips show, in turn; "none" is not a class but everyday life.
KINDS = ("fight", "collapse", "none")


@dataclass(frozen=True)
class StagedClip(Scene):
    """One clip before it is drawn."""

    actors: list[Shapes]
    """Those who act; the annotated box is around them."""
    bystanders: list[Shapes]


def stage_clip(config: RenderConfig, index: int) -> StagedClip:
    """Choose who does what, where, and how it is filmed."""
    rng = np.random.default_rng([config.seed, index, 0])
    cast, places = world(config.seed)
    frames = int(rng.integers(round(config.average_frames * 5 / 6), round(config.average_frames * 7 / 6) + 1))
    t = np.arange(frames) / config.fps
    place = places[rng.integers(PLACES)]
    people = [cast[i] for i in rng.permutation(CAST)[:4]]
    camera, distance = aim(config, rng, (0.45, 0.72))
    room = camera.aspect / camera.focal * distance - 1.0

    kind = KINDS[index % 3]
    if kind == "none":
        motion = str(rng.choice(list(EVERYDAY)))
        kind = f"none_{motion}"
        act = EVERYDAY[motion](t, rng, room)
    else:
        act = {"fight": fight, "collapse": collapse}[kind](t, rng, room)

    light = rng.choice([-1.0, 1.0])
    act = _settle(act, people, camera, distance, rng)
    extras, props = _extras(t, act, distance, room, place.depth, rng)
    return StagedClip(
        name=f"{kind}_{index:04d}",
        place=place,
        camera=camera,
        back=distance + place.depth,
        props=act.props + props,
        actors=[shape_person(p, track, camera, light) for p, track in zip(people, act.tracks, strict=False)],
        bystanders=[shape_person(p, track, camera, light) for p, track in zip(people[2:], extras, strict=False)],
        lens=invent_lens(frames, rng),
    )


def _settle(act: Act, people: list[Person], camera: Camera, distance: float, rng: Rng) -> Act:
    """Move the act away from the camera, and sideways to a random place where it fits into the picture."""

    def extent(axis: int) -> tuple[float, float]:
        figures = [shape_person(p, track, camera, 1.0) for p, track in zip(people, act.tracks, strict=False)]
        points = np.concatenate([f.polygons[..., axis].ravel() for f in figures])
        return float(points.min()), float(points.max())

    act = moved(act, 0.0, distance)

    # If somebody comes below the lower edge of the picture, the act moves further away.
    lowest = 0.97 - camera.horizon
    below = max(extent(1)[1] - camera.horizon, lowest)
    act = moved(act, 0.0, camera.focal * camera.up * (1 / lowest - 1 / below))

    low, high = extent(0)
    left = 0.03 - low
    right = camera.aspect - 0.03 - high
    shift = rng.uniform(left, right) if left < right else (left + right) / 2
    return moved(act, shift * distance / camera.focal, 0.0)


def _extras(t: Array, act: Act, distance: float, room: float, depth: float, rng: Rng) -> tuple[list[Track], list[Prop]]:
    """Return bystanders and furniture, most of them behind the act, none between it and the camera."""
    tracks = []
    props = []
    deepest = distance + min(depth, 3.5) - 0.3
    for _ in range(rng.integers(0, 3)):
        manner = str(rng.choice(["stand", "wave", "stroll", "sit"]))
        x = rng.uniform(-0.6, 0.6) * room
        y = rng.uniform(distance + 1.0, deepest)
        if manner == "sit":
            facing = int(rng.integers(-1, 2))
            track = seated(t, rng, facing)
            props.append(Prop(str(rng.choice(["chair", "bench"])), x, y, facing))
        else:
            track = {"stand": stand, "wave": wave, "stroll": stroll}[manner](t, rng)
            if manner != "stroll" and rng.random() < 0.4:
                x, y = _beside(act, distance, room, rng) or (x, y)
        tracks.append(replace(track, ground=track.ground + np.array((x, y))))

    for _ in range(rng.integers(0, 4)):
        kind = str(rng.choice(["chair", "bench", "mat", "mat", "crate", "parcel", "plant", "table"]))
        x = rng.uniform(-0.7, 0.7) * room
        y = rng.uniform(distance + (0 if kind == "mat" else 0.7), deepest)
        props.append(Prop(kind, x, y, int(rng.integers(-1, 2))))
    return tracks, props


def _beside(act: Act, distance: float, room: float, rng: Rng) -> tuple[float, float] | None:
    """Return a spot nearer to the camera than the act and clear of it on the left or right; None if there is none."""
    nearer = rng.uniform(0.75, 0.9)
    across = np.concatenate([track.ground[:, 0] for track in act.tracks])
    edge = nearer * (room / 2 + 0.4)
    clear = 1.3
    spots = []
    if -edge < nearer * across.min() - clear:
        spots.append(rng.uniform(-edge, nearer * across.min() - clear))
    if nearer * across.max() + clear < edge:
        spots.append(rng.uniform(nearer * across.max() + clear, edge))
    return (spots[rng.integers(len(spots))], nearer * distance) if spots else None

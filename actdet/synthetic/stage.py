"""What all scenes of the rendered data set share: the people and places of a seed, cameras, and moving an act about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from actdet.synthetic.config import RenderConfig
from actdet.synthetic.figures import Camera, Person, invent_person
from actdet.synthetic.filming import Lens
from actdet.synthetic.motions import Act, Prop, Rng
from actdet.synthetic.places import Place, invent_place

# The classes, in the order of their ids.
CLASSES = ("fight", "collapse")

# How many people and places a seed has.
CAST = 48
PLACES = 24

# The stream of random numbers that they come from; no clip has so high a number.
_WORLD = 2**32


@dataclass(frozen=True)
class Scene:
    """What is filmed, but for the people in it."""

    name: str
    place: Place
    camera: Camera
    back: float
    """Distance of the back wall from the camera, in meters."""
    props: list[Prop]
    lens: Lens


@cache
def world(seed: int) -> tuple[list[Person], list[Place]]:
    """Return the people and the places of a seed."""
    rng = np.random.default_rng([seed, _WORLD])
    people = [invent_person(rng) for _ in range(CAST)]
    places = [invent_place(rng) for _ in range(PLACES)]
    return people, places


def aim(config: RenderConfig, rng: Rng, sizes: tuple[float, float]) -> tuple[Camera, float]:
    """Return a camera and the distance of the actors, at which 1.7 m are as high as `sizes` say, in picture heights."""
    size = rng.uniform(*sizes)
    feet = rng.uniform(0.77, 0.91)
    horizon = rng.uniform(0.05, 0.26)
    focal = rng.uniform(1.2, 2.0)
    camera = Camera(focal, (feet - horizon) * 1.7 / size, horizon, config.width / config.height)
    return camera, focal * 1.7 / size


def moved(act: Act, x: float, y: float) -> Act:
    """Return the act, so many meters further to the right and away from the camera."""
    tracks = [replace(track, ground=track.ground + np.array((x, y))) for track in act.tracks]
    props = [replace(prop, x=prop.x + x, y=prop.y + y) for prop in act.props]
    return replace(act, tracks=tracks, props=props)

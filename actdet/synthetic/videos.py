"""The untrimmed videos of the rendered data set: several people, of whom some fight or collapse in the meantime.

Groups of one or two people are put into the scene one after the other, each where it never comes in the way of those
that are there. What a group does begins at a time of its own; before that its people stand there or walk in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from actdet.detections import Tube
from actdet.synthetic.actions import REBOUND, brawl, topple
from actdet.synthetic.config import RenderConfig
from actdet.synthetic.figures import Array, Camera, Person, Shapes, Track, shape_person, skeleton
from actdet.synthetic.filming import boxes_in_picture, invent_lens, visible_shares
from actdet.synthetic.motions import EVERYDAY, Act, Prop, Rng, seated, sideways_heading, stand, stroll, wave
from actdet.synthetic.painting import Layer
from actdet.synthetic.passages import walk_in, walk_out
from actdet.synthetic.stage import CAST, CLASSES, PLACES, Scene, aim, moved, world

# What the videos show, in turn; "several" are two or three actions of any class, "none" is everyday life.
KINDS = ("fight", "collapse", "several", "none")

# How many people an action has, and an everyday motion that takes two.
_FIGHTERS = 2
_PAIRS = ("pass", "hug", "talk")

# The longest time from losing one's balance until hitting the ground, and the shortest fight, in seconds.
_COLLAPSE = 1.6
_FIGHT = 1.2

# The least time in which any action begins and ends, in seconds.
_LEAST_SPAN = 2.2

# A frame belongs to a tube if at least this share of the actor is seen in it.
_LEAST_SEEN = 0.1

# How near two people of different groups, or somebody and a thing, come to each other, in meters.
_CLEARANCE = 0.5

# What is compared for that.
_JOINTS = ("pelvis", "neck", "brow", "knee_l", "knee_r", "ankle_l", "ankle_r")

# How often a group is invented anew, and how many places are tried each time, until it is in nobody's way.
_INVENTIONS = 12
_SPOTS = 12


@dataclass(frozen=True)
class Actor:
    """What one person does that is an action."""

    figure: int
    """The place of the person among the figures of the video."""
    label: int
    """The class."""
    frames: NDArray[np.int64]
    """(n,) the frames that the action lasts."""


@dataclass(frozen=True)
class Video(Scene):
    """A video before it is drawn."""

    figures: list[Shapes]
    actors: list[Actor]


def tubes_of(video: Video, size: tuple[int, int], layers: list[Layer]) -> list[Tube]:
    """Return the truth about a video: a tube for each actor of each action.

    A box is around all of the actor's body, even where something hides it, as far as it is in the picture. A frame in
    which less than a tenth of the body is seen is left out, and so is an actor who is seen in no frame.

    Args:
        video: The video.
        size: Width and height of its frames in pixels.
        layers: Things that may hide actors.
    """
    tubes = []
    for actor in video.actors:
        shares = visible_shares(video.figures, actor.figure, actor.frames, video.lens, size, layers)
        frames = actor.frames[shares >= _LEAST_SEEN]
        if not len(frames):
            continue
        boxes = boxes_in_picture(video.figures[actor.figure], video.lens, size)[frames].round(1)

        # Rounding makes -0.0 of what is at the left and the upper edge.
        boxes += 0.0
        tubes.append(Tube(actor.label, frames, boxes.astype(np.float32)))
    return tubes


def stage_video(config: RenderConfig, index: int) -> Video:
    """Choose who does what, when and where, and how it is filmed."""
    # The first two streams of an index belong to the clip of that index.
    rng = np.random.default_rng([config.seed, index, 2])
    cast, places = world(config.seed)
    frames = int(rng.integers(round(config.average_frames * 2 / 3), round(config.average_frames * 4 / 3) + 1))
    t = np.arange(frames) / config.fps
    place = places[rng.integers(PLACES)]
    people = [cast[i] for i in rng.permutation(CAST)[:5]]
    camera, distance = aim(config, rng, (0.38, 0.6))
    light = rng.choice([-1.0, 1.0])

    kind = KINDS[index % len(KINDS)]
    groups = _Groups(t, people, camera, distance, place.depth, rng)
    plan = _planned(kind, rng)
    # Several actions are at any time, also at once, or one after the other, for which the video must be long enough.
    in_turn = rng.random() < 0.5 and t[-1] / max(len(plan), 1) > _LEAST_SPAN
    for i, name in enumerate(plan):
        share = t[-1] / len(plan)
        span = (i * share, (i + 1) * share) if in_turn else (0.0, t[-1])
        groups.add_action(name, span)
    if kind == "none":
        groups.add_everyday(list(EVERYDAY))
    groups.fill_up(int(rng.integers(2, 6)))

    return Video(
        name=f"{kind}_{index:04d}",
        place=place,
        camera=camera,
        back=distance + place.depth,
        props=groups.props + groups.furniture(),
        figures=[shape_person(p, track, camera, light) for p, track in zip(people, groups.tracks, strict=False)],
        actors=groups.actors,
        lens=invent_lens(frames, rng),
    )


def _planned(kind: str, rng: Rng) -> list[str]:
    """Return the classes of the actions in a video of this kind."""
    if kind == "several":
        # Two fights take four of the five people.
        plans = [["fight", "collapse"], ["collapse", "collapse"], ["fight", "fight"], ["fight", "collapse", "collapse"]]
        return plans[rng.integers(len(plans))]
    return [] if kind == "none" else [kind]


class _Groups:
    """The people of a video while it is staged.

    Attributes:
        tracks: One for each person who is in the scene, in the order of the people.
        props: The things that they need.
        actors: Those of them who do an action.
    """

    def __init__(self, t: Array, people: list[Person], camera: Camera, distance: float, depth: float, rng: Rng) -> None:
        """Start with an empty scene.

        Args:
            t: (T,) times of the frames, in seconds.
            people: Those who may be in it.
            camera: What looks at it.
            distance: Where its middle is, in meters from the camera.
            depth: How far the back wall is behind that, in meters.
            rng: Where everything comes from.
        """
        self.tracks: list[Track] = []
        self.props: list[Prop] = []
        self.actors: list[Actor] = []
        self._t = t
        self._people = people
        self._width_per_meter = camera.aspect / camera.focal
        self._distance = distance
        self._deepest = distance + min(depth, 4.0) - 0.4
        self._rng = rng
        self._points: list[Array] = []

    def add_action(self, name: str, span: tuple[float, float]) -> None:
        """Let a person collapse or two people fight, if there are enough people and if there is room.

        Args:
            name: Of the class.
            span: When it may begin and when it must have ended, in seconds.
        """
        count = _FIGHTERS if name == "fight" else 1
        if len(self.tracks) + count > len(self._people):
            return
        invent = self._fight if name == "fight" else self._collapse
        first = len(self.tracks)
        act = self._place(lambda: invent(*span), 0.88, 0.5)
        if act is None or act.action is None:
            return

        begin, end = act.action
        frames = np.flatnonzero((self._t >= begin) & (self._t < end))
        label = CLASSES.index(name)
        self.actors += [Actor(first + i, label, frames) for i in range(len(act.tracks))]

    def add_everyday(self, manners: list[str]) -> None:
        """Let one or two people do one of these things, if there is room."""
        manner = str(self._rng.choice(manners))
        self._place(lambda: self._everyday(manner), 0.75, 0.5)

    def fill_up(self, count: int) -> None:
        """Add others until there are so many people, or no room for more."""
        singles = ["stroll", "stroll", "stroll", "stand", "stand", "wave", "seated", "sit", "pickup", "lie"]
        for _ in range(count):
            missing = count - len(self.tracks)
            if missing > 0:
                self.add_everyday(singles + list(_PAIRS) if missing > 1 else singles)

    def furniture(self) -> list[Prop]:
        """Return things that nobody needs, behind, between and in front of the people."""
        props = []
        for _ in range(self._rng.integers(0, 5)):
            kind = str(self._rng.choice(["chair", "bench", "mat", "crate", "parcel", "plant", "table", "pillar"]))
            y = self._rng.uniform(0.7 * self._distance, self._deepest)
            x = self._rng.uniform(-0.6, 0.6) * self._width(y)
            prop = Prop(kind, x, y, int(self._rng.integers(-1, 2)))
            if kind == "mat" or self._is_free(_footprint(prop)):
                props.append(prop)
        return props

    def _fight(self, earliest: float, latest: float) -> Act:
        """Return a fight between two times, of people who perhaps come before it and perhaps go after it."""
        t = self._t
        rng = self._rng
        length = rng.uniform(_FIGHT, max(min(4.5, 0.6 * (latest - earliest)), _FIGHT))
        begin = rng.uniform(earliest + 0.4, max(latest - length - 0.4, earliest + 0.4))
        approach = rng.uniform(0.3, 1.0)
        act = brawl(t - begin + approach, rng, np.inf, approach, approach + length)

        # They face each other, so each comes from behind and turns around to leave.
        tracks = []
        comes = rng.random() < 0.5
        arrival = begin - 1.3 * approach
        for track in act.tracks:
            if comes and arrival > 0.5:
                track = walk_in(track, t, arrival, track.yaw[0], rng)
            if rng.random() < 0.5:
                start = begin + length + rng.uniform(0.9, 1.8)
                track = walk_out(track, t, start, track.yaw[-1] + np.pi, rng)
            tracks.append(track)
        return replace(act, tracks=tracks, action=(begin, begin + length))

    def _collapse(self, earliest: float, latest: float) -> Act:
        """Return a collapse between two times."""
        drop = self._rng.uniform(0.5, 0.8)
        first = earliest + _COLLAPSE + 0.1
        landed = self._rng.uniform(first, max(latest - REBOUND - 0.1, first))
        return topple(self._t, self._rng, np.inf, drop, landed)

    def _everyday(self, manner: str) -> Act:
        """Return what people do who do no action."""
        t = self._t
        rng = self._rng
        if manner == "seated":
            facing = int(rng.integers(-1, 2))
            seat = Prop(str(rng.choice(["chair", "bench"])), 0.0, 0.0, facing)
            return Act([seated(t, rng, facing)], [seat])
        if manner == "stroll":
            return Act([stroll(t, rng)])
        if manner in ("stand", "wave"):
            track = {"stand": stand, "wave": wave}[manner](t, rng)
            if rng.random() < 0.4:
                track = walk_in(track, t, rng.uniform(0.2, 0.5) * t[-1], sideways_heading(rng, 0.3), rng)
            if rng.random() < 0.4:
                track = walk_out(track, t, rng.uniform(0.6, 0.8) * t[-1], sideways_heading(rng, 0.3), rng)
            return Act([track])

        # Those who look like actors do so for at least three seconds, if the video lasts so long.
        offset = rng.uniform(0, max(t[-1] - 3, 0))
        act = EVERYDAY[manner](t - offset, rng, np.inf)
        if manner in ("pickup", "lie", "hug", "talk") and rng.random() < 0.5 and offset > 1.2:
            tracks = [walk_in(track, t, offset - 0.5, track.yaw[0], rng) for track in act.tracks]
            act = replace(act, tracks=tracks)
        return act

    def _place(self, invent: Callable[[], Act], nearest: float, aside: float) -> Act | None:
        """Put a group where there is room for it.

        Args:
            invent: Invents what it does; called again if there is no room for that.
            nearest: The least distance from the camera, relative to the middle of the scene.
            aside: How far from the middle of the picture, in its widths.

        Returns:
            What the group does and where, or None if no room was found.
        """
        for _ in range(_INVENTIONS):
            act = invent()
            begin, end = act.action or (0.0, self._t[-1])
            during = (self._t >= begin) & (self._t <= end)
            middle = np.mean([track.ground[during].mean(0) for track in act.tracks], 0)
            people = self._people[len(self.tracks) :]
            if len(act.tracks) > len(people):
                return None

            points = np.concatenate([_ground_points(p, tr) for p, tr in zip(people, act.tracks, strict=False)], 1)
            for _ in range(_SPOTS):
                y = self._rng.uniform(nearest * self._distance, self._deepest)
                x = self._rng.uniform(-aside, aside) * self._width(y)
                shift = np.array((x, y)) - middle
                there = moved(act, *shift.tolist())
                if not self._is_within(points + shift) or not self._is_free(points + shift):
                    continue
                if not all(self._is_free(_footprint(prop)) for prop in there.props):
                    continue
                self.tracks += there.tracks
                self.props += there.props
                self._points += [points + shift, *(_footprint(prop) for prop in there.props)]
                return there
        return None

    def _width(self, y: float) -> float:
        """Return how many meters are in view at a distance."""
        return self._width_per_meter * y

    def _is_within(self, points: Array) -> bool:
        """Whether people stay away from the camera and, while they are in view, in front of the back wall."""
        x = points[..., 0]
        y = points[..., 1]
        in_view = np.abs(x) < self._width_per_meter * y / 2 + 0.5
        return bool((y > 0.7 * self._distance).all() and (y[in_view] < self._deepest + 0.3).all())

    def _is_free(self, points: Array) -> bool:
        """Whether points on the ground (T, P, 2) never come close to anything that is there."""
        for others in self._points:
            apart = points[:, :, None] - others[:, None]
            if (np.square(apart).sum(-1) < _CLEARANCE**2).any():
                return False
        return True


def _ground_points(person: Person, track: Track) -> Array:
    """Return the places (T, P, 2) on the ground below a person's body, in meters."""
    joints = skeleton(person, track)
    return np.stack([joints[name][:, :2] for name in _JOINTS], 1)


def _footprint(prop: Prop) -> Array:
    """Return points (1, P, 2) where a thing stands, in meters."""
    half = 0.5 if prop.kind in ("bench", "table") else 0.0
    along_y = prop.kind == "bench" and prop.facing != 0
    points = [(prop.x, prop.y + s) if along_y else (prop.x + s, prop.y) for s in (-half, 0.0, half)]
    return np.array([points])

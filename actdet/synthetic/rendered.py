"""The data set that the project draws itself: short clips of fights, collapses and daily life.

Everything follows from the seed. It determines a cast of people and a list of places, and clip i then depends only on
the configuration and i. Two seeds have no person and no place in common, so clips of a second seed are an honest test.
The result has the project's data format: `videos/NAME.webm`, `annotations/NAME.txt` and `classes.txt`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np

from actdet.bounds import BOUNDS, check_bounds
from actdet.data.classes import write_class_names
from actdet.errors import ActdetError
from actdet.files import read_json, remove_abandoned, replacing, sole_writer, write_bytes, write_json
from actdet.synthetic.actions import collapse, fight
from actdet.synthetic.figures import Array, Camera, Person, Shapes, Track, invent_person, shape_person
from actdet.synthetic.filming import Frame, Lens, box_of, film, invent_lens
from actdet.synthetic.motions import EVERYDAY, Act, Prop, Rng, seated, stand, stroll, wave
from actdet.synthetic.places import Place, invent_place, paint_place
from actdet.workers import run_all, while_wanted

# What the clips show, in turn; "none" is not a class but everyday life.
_CLASSES = ("fight", "collapse", "none")

# How many people and places a seed has.
_CAST = 48
_PLACES = 24

# The stream of random numbers that they come from; no clip has so high a number.
_WORLD = 2**32

_BOUNDS = BOUNDS | {"width": "[64, 4096]", "height": "[64, 4096]", "frames": "[8, 10000]", "fps": "[1, 240]"}

# Fast VP9 on one thread, because each clip is encoded in a process of its own.
_ENCODER = {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b:v": "0", "threads": "1", "row-mt": "0"}


@dataclass(frozen=True)
class RenderConfig:
    """What to render."""

    clips: int = 300
    """How many clips: a third each of fights, collapses and clips without either."""
    seed: int = 0
    """Determines people, places and all that happens; another seed has other people in other places."""
    width: int = 160
    """Width of the videos in pixels (even)."""
    height: int = 120
    """Height of the videos in pixels (even)."""
    frames: int = 48
    """Average length of a clip in frames; each clip is up to a sixth shorter or longer."""
    fps: int = 16
    """Frames per second of the videos."""
    workers: int = 0
    """Processes to render with; 0 starts one per CPU core. The result does not depend on it."""


def render_dataset(out: Path, config: RenderConfig, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Render a data set; clips that an earlier call with the same settings wrote are kept.

    Args:
        out: Folder of the data set.
        config: What to render.
        progress: Called with (clips done, clips in all) at the start and after each clip.

    Raises:
        ActdetError: If a setting is out of its range, if `out` contains other videos or annotations, or if another
            process is writing to it.
    """
    _check(config)
    with sole_writer(out):
        _claim(out, config)
        for folder in ("videos", "annotations"):
            (out / folder).mkdir(parents=True, exist_ok=True)
            remove_abandoned(out / folder)
        write_class_names(out, _CLASSES[:2])

        # A clip's video is written last, so a clip that has its video is complete.
        done = {path.stem.rpartition("_")[2] for path in (out / "videos").glob("*.webm")}
        jobs = [(config, i, out) for i in range(config.clips) if f"{i:04d}" not in done]
        kept = config.clips - len(jobs)

        def show(count: int) -> None:
            if progress:
                progress(kept + count, config.clips)

        show(0)
        if jobs:
            run_all(_render_clip, jobs, config.workers, show)


def _claim(out: Path, config: RenderConfig) -> None:
    """Note in `out` what is rendered there.

    Raises:
        ActdetError: If `out` contains anything else.
    """
    path = out / "rendered.json"
    mine = {name: value for name, value in asdict(config).items() if name != "workers"}
    found = read_json(path)
    if found == mine:
        return

    for folder in ("videos", "annotations"):
        if (out / folder).is_dir() and any((out / folder).iterdir()):
            reason = f" and was not rendered with these settings (see {path})" if path.exists() else ""
            raise ActdetError(f"{out / folder} is not empty{reason}: choose a new folder, or remove the old data first")

    is_own = isinstance(found, dict) and found.keys() == mine.keys()
    if path.exists() and not is_own:
        raise ActdetError(f"{path} was not written by this command and would be replaced: choose another folder")
    write_json(path, mine)


def _check(config: RenderConfig) -> None:
    check_bounds(vars(config), _BOUNDS)
    for name in ("width", "height"):
        if getattr(config, name) % 2:
            raise ActdetError(f"{name} must be even, got {getattr(config, name)}")


@dataclass(frozen=True)
class _Clip:
    """One clip before it is drawn."""

    name: str
    place: Place
    camera: Camera
    back: float
    """Distance of the back wall from the camera, in meters."""
    props: list[Prop]
    actors: list[Shapes]
    """Those who act; the annotated box is around them."""
    bystanders: list[Shapes]
    lens: Lens


def _render_clip(config: RenderConfig, index: int, out: Path) -> None:
    """Render one clip, in a worker process."""
    clip = _stage_clip(config, index)
    size = (config.width, config.height)
    rng = np.random.default_rng([config.seed, index, 1])
    canvas = paint_place(clip.place, clip.camera, config.height, clip.back, clip.props, rng)
    frames = while_wanted(film(canvas, clip.actors + clip.bystanders, clip.lens, size, rng))

    category = index % 3
    label = ""
    if _CLASSES[category] != "none":
        edges = [f"{edge:.1f}" for edge in box_of(clip.actors, clip.lens, size)]
        label = " ".join([str(category), *edges]) + "\n"
    write_bytes(out / "annotations" / f"{clip.name}.txt", label.encode())
    _write_video(out / "videos" / f"{clip.name}.webm", frames, config)


def _write_video(path: Path, frames: Iterable[Frame], config: RenderConfig) -> None:
    """Encode a clip, all of it or nothing."""
    with replacing(path) as temporary, av.open(str(temporary), "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=Fraction(config.fps), options=_ENCODER)
        stream.width = config.width
        stream.height = config.height
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@cache
def _world(seed: int) -> tuple[list[Person], list[Place]]:
    """Return the people and the places of a seed."""
    rng = np.random.default_rng([seed, _WORLD])
    people = [invent_person(rng) for _ in range(_CAST)]
    places = [invent_place(rng) for _ in range(_PLACES)]
    return people, places


def _stage_clip(config: RenderConfig, index: int) -> _Clip:
    """Choose who does what, where, and how it is filmed."""
    rng = np.random.default_rng([config.seed, index, 0])
    cast, places = _world(config.seed)
    frames = int(rng.integers(round(config.frames * 5 / 6), round(config.frames * 7 / 6) + 1))
    t = np.arange(frames) / config.fps
    place = places[rng.integers(_PLACES)]
    people = [cast[i] for i in rng.permutation(_CAST)[:4]]
    camera, distance = _aim(config, rng)
    room = camera.aspect / camera.focal * distance - 1.0

    kind = _CLASSES[index % 3]
    if kind == "none":
        motion = str(rng.choice(list(EVERYDAY)))
        kind = f"none_{motion}"
        act = EVERYDAY[motion](t, rng, room)
    else:
        act = {"fight": fight, "collapse": collapse}[kind](t, rng, room)

    light = rng.choice([-1.0, 1.0])
    act = _settle(act, people, camera, distance, rng)
    extras, props = _extras(t, act, distance, room, place.depth, rng)
    return _Clip(
        name=f"{kind}_{index:04d}",
        place=place,
        camera=camera,
        back=distance + place.depth,
        props=act.props + props,
        actors=[shape_person(p, track, camera, light) for p, track in zip(people, act.tracks, strict=False)],
        bystanders=[shape_person(p, track, camera, light) for p, track in zip(people[2:], extras, strict=False)],
        lens=invent_lens(frames, rng),
    )


def _aim(config: RenderConfig, rng: Rng) -> tuple[Camera, float]:
    """Return a camera and the distance of the actors, so that 1.7 m take up 45 to 72 % of the picture's height."""
    size = rng.uniform(0.45, 0.72)
    feet = rng.uniform(0.77, 0.91)
    horizon = rng.uniform(0.05, 0.26)
    focal = rng.uniform(1.2, 2.0)
    camera = Camera(focal, (feet - horizon) * 1.7 / size, horizon, config.width / config.height)
    return camera, focal * 1.7 / size


def _settle(act: Act, people: list[Person], camera: Camera, distance: float, rng: Rng) -> Act:
    """Move the act away from the camera, and sideways to a random place where it fits into the picture."""

    def extent(axis: int) -> tuple[float, float]:
        figures = [shape_person(p, track, camera, 1.0) for p, track in zip(people, act.tracks, strict=False)]
        points = np.concatenate([f.polygons[..., axis].ravel() for f in figures])
        return float(points.min()), float(points.max())

    act = _moved(act, 0.0, distance)

    # If somebody comes below the lower edge of the picture, the act moves further away.
    lowest = 0.97 - camera.horizon
    below = max(extent(1)[1] - camera.horizon, lowest)
    act = _moved(act, 0.0, camera.focal * camera.up * (1 / lowest - 1 / below))

    low, high = extent(0)
    left = 0.03 - low
    right = camera.aspect - 0.03 - high
    shift = rng.uniform(left, right) if left < right else (left + right) / 2
    return _moved(act, shift * distance / camera.focal, 0.0)


def _moved(act: Act, x: float, y: float) -> Act:
    tracks = [replace(track, ground=track.ground + np.array((x, y))) for track in act.tracks]
    return Act(tracks, [replace(prop, x=prop.x + x, y=prop.y + y) for prop in act.props])


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

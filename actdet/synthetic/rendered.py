"""The data sets that the project draws itself: short clips of fights, collapses and daily life, or untrimmed videos.

Everything follows from the seed. It determines a cast of people and a list of places, and clip i then depends only on
the configuration and i. Two seeds have no person and no place in common, so clips of a second seed are an honest test.
The result has the project's data format: `videos/NAME.webm`, `annotations/NAME.txt` (NAME.csv for the untrimmed videos
that `RenderConfig.tubes` asks for) and `classes.txt`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from actdet.bounds import BOUNDS, check_bounds
from actdet.data.classes import write_class_names
from actdet.data.tubes import write_tubes
from actdet.errors import ActdetError
from actdet.files import read_own_json, replacing, sole_writer, write_bytes, write_json
from actdet.synthetic.clips import KINDS, stage_clip
from actdet.synthetic.config import RenderConfig
from actdet.synthetic.filming import Frame, box_of, film
from actdet.synthetic.painting import paint_layers
from actdet.synthetic.places import paint_place
from actdet.synthetic.stage import CLASSES
from actdet.synthetic.videos import stage_video, tubes_of
from actdet.workers import run_all, while_wanted

_BOUNDS = BOUNDS | {"width": "[64, 4096]", "height": "[64, 4096]", "frames": "[8, 10000]", "fps": "[1, 240]"}

# The least average length of videos with tubes: an action begins and ends even in the shortest ones. In seconds.
_LEAST_SECONDS = 4

# Fast VP9 on one thread, because each clip is encoded in a process of its own.
_ENCODER = {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b:v": "0", "threads": "1", "row-mt": "0"}


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
        write_class_names(out, CLASSES)

        # A clip's video is written last, so a clip that has its video is complete.
        done = {path.stem.rpartition("_")[2] for path in (out / "videos").glob("*.webm")}
        jobs = [(config, i, out) for i in range(config.clips) if f"{i:04d}" not in done]
        kept = config.clips - len(jobs)

        def show(count: int) -> None:
            if progress:
                progress(kept + count, config.clips)

        show(0)
        if jobs:
            run_all(_render_video if config.tubes else _render_clip, jobs, config.workers, show)


def _claim(out: Path, config: RenderConfig) -> None:
    """Note in `out` what is rendered there.

    Raises:
        ActdetError: If `out` contains anything else.
    """
    path = out / "rendered.json"
    mine = asdict(config) | {"frames": config.average_frames}
    del mine["workers"]
    # Clips are noted as they were before there were videos with tubes, so that old folders can be resumed.
    if not config.tubes:
        del mine["tubes"]
    found = read_own_json(path)
    if found == mine:
        return

    is_own = isinstance(found, dict) and found.keys() | {"tubes"} == mine.keys() | {"tubes"}
    for folder in ("videos", "annotations"):
        if (out / folder).is_dir() and any((out / folder).iterdir()):
            reason = ""
            if is_own and ("tubes" in found) != config.tubes:
                reason = f" and was rendered {'without' if config.tubes else 'with'} --tubes (see {path})"
            elif path.exists():
                reason = f" and was not rendered with these settings (see {path})"
            raise ActdetError(f"{out / folder} is not empty{reason}: choose a new folder, or remove the old data first")

    if path.exists() and not is_own:
        raise ActdetError(f"{path} was not written by this command and would be replaced: choose another folder")
    write_json(path, mine)


def _check(config: RenderConfig) -> None:
    check_bounds(vars(config), _BOUNDS)
    for name in ("width", "height"):
        if getattr(config, name) % 2:
            raise ActdetError(f"{name} must be even, got {getattr(config, name)}")

    seconds = config.average_frames / config.fps
    if config.tubes and seconds < _LEAST_SECONDS:
        problem = f"frames / fps must be at least {_LEAST_SECONDS} seconds with tubes"
        raise ActdetError(f"{problem}, got {config.average_frames} / {config.fps} = {seconds:.2f}")


def _render_clip(config: RenderConfig, index: int, out: Path) -> None:
    """Render one clip, in a worker process."""
    clip = stage_clip(config, index)
    size = (config.width, config.height)
    rng = np.random.default_rng([config.seed, index, 1])
    canvas = paint_place(clip.place, clip.camera, config.height, clip.back, clip.props, rng)
    frames = while_wanted(film(canvas, clip.actors + clip.bystanders, clip.lens, size, rng))

    category = index % 3
    label = ""
    if KINDS[category] != "none":
        edges = [f"{edge:.1f}" for edge in box_of(clip.actors, clip.lens, size)]
        label = " ".join([str(category), *edges]) + "\n"
    write_bytes(out / "annotations" / f"{clip.name}.txt", label.encode())
    _write_video(out / "videos" / f"{clip.name}.webm", frames, config)


def _render_video(config: RenderConfig, index: int, out: Path) -> None:
    """Render one video with tubes, in a worker process."""
    video = stage_video(config, index)
    size = (config.width, config.height)

    # Nothing is behind a mat, so mats are part of the place.
    rng = np.random.default_rng([config.seed, index, 3])
    mats = [prop for prop in video.props if prop.kind == "mat"]
    canvas = paint_place(video.place, video.camera, config.height, video.back, mats, rng)
    things = [prop for prop in video.props if prop.kind != "mat"]
    layers = paint_layers(things, video.camera, config.height, rng)
    frames = while_wanted(film(canvas, video.figures, video.lens, size, rng, layers))

    write_tubes(out / "annotations" / f"{video.name}.csv", tubes_of(video, size, layers), CLASSES)
    _write_video(out / "videos" / f"{video.name}.webm", frames, config)


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

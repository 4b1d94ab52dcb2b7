"""`actdet demo`: from nothing to a report on a trained detector."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from actdet.bounds import check_bounds
from actdet.cli.data import read_index
from actdet.cli.progress import ProgressBar, watch
from actdet.cli.terminal import print_line, print_lines
from actdet.synthetic.rendered import RenderConfig, render_dataset

if TYPE_CHECKING:
    import torch

    from actdet.cli.demo_settings import Demo


def demo(
    out: Path = Path("runs/demo"), clips: int | None = None, epochs: int | None = None, device: str = "auto"
) -> None:
    """Render clips, train on them, evaluate on clips of other people and places, and write a report to --out.

    For instance: actdet demo --out runs/demo
    If it is interrupted, run the same command again to resume.

    Args:
        out: Folder for data, model, metrics.json, report.html and annotated videos.
        clips: How many clips to train on; by default as many as give a good detector on this kind of device.
        epochs: Passes over them; by default as many as give a good detector on this kind of device.
        device: Where the network runs: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N.
    """
    check_bounds({"clips": clips, "epochs": epochs})
    started = time.monotonic()

    from actdet.cli.demo_settings import demo_for
    from actdet.device import choose_device
    from actdet.evaluation.checkpoint import evaluate_checkpoint
    from actdet.models.families import build_network
    from actdet.training.plan import make_plan
    from actdet.training.run import describe_training, train_run
    from actdet.training.run_state import LAST, MODEL
    from actdet.training.session import open_session
    from actdet.training.start_weights import load_start_weights

    place = choose_device(device)
    settings = demo_for(place.type, clips, epochs)
    is_begun = (out / MODEL).exists() or (out / LAST).exists()
    if not is_begun:
        # Before anything is rendered: the package with the weights may be missing.
        load_start_weights(build_network(settings.model), settings.config)
        _announce_duration(settings, place)

    train_data = out / "data" / "train"
    test_data = out / "data" / "test"
    _render(train_data, settings.train_clips)
    _render(test_data, settings.test_clips)

    index = read_index(train_data, settings.model.class_names)
    plan = make_plan(index, settings.model, settings.config, place)
    with open_session(plan, index, command="demo") as session:
        print_line(plan.describe())
        every_clip = list(range(len(index.clips)))
        watch(session, lambda session: train_run(session, every_clip, [], out, "demo", resume=is_begun))

    with ProgressBar(desc="evaluate", unit="clip") as bar:
        metrics = evaluate_checkpoint(
            out / MODEL,
            test_data,
            out,
            place,
            workers=1,
            progress=bar.show,
            drawing=bar.show_drawing,
            title="actdet demo",
            notes=[describe_training(plan.model, plan.config, len(index.clips))],
            log=out / "log.jsonl",
            started=started,
        )

    print_lines(metrics.describe())
    print_line(f"{time.monotonic() - started:.0f} s; report: {out / 'report.html'}")


def _announce_duration(settings: Demo, device: torch.device) -> None:
    """Say how long the training takes, before the rendering, if that is long on this CPU."""
    from actdet.device import choose_precision
    from actdet.training.duration import in_words, is_short, seconds_per_clip, training_seconds

    clips = settings.train_clips.clips
    if device.type != "cpu" or is_short(settings.model, clips):
        return

    # The plan is not made before the clips are there, and it chooses the same.
    dtype, _ = choose_precision(settings.config.precision, device)
    epoch_seconds = clips * seconds_per_clip(settings.model, settings.config, dtype)
    print_line(f"training takes about {in_words(training_seconds(settings.config, epoch_seconds))} here")


def _render(out: Path, config: RenderConfig) -> None:
    with ProgressBar(desc=f"render {out.name}", unit="clip") as bar:
        render_dataset(out, config, progress=bar.show)

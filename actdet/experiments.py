"""Whole experiments on a data set: one training run, cross-validation, the report's ablation.

Each is a function that yields `Progress` after every training step and leaves its files in a folder of its own.
Finished parts of an experiment are recognised by their metrics.json and not run again, so an interrupted
cross-validation or ablation goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from actdet.config import ModelConfig, TrainConfig
from actdet.data.index import ClipIndex
from actdet.data.loader import ClipLoader
from actdet.data.readers import choose_reader, open_reader
from actdet.data.split import folds, hold_out
from actdet.device import choose_device
from actdet.errors import ActdetError
from actdet.evaluation import Evaluation
from actdet.files import write_json
from actdet.report import write_report
from actdet.training import LAST, MODEL, Progress, Trainer

FIGURES = ("video_accuracy", "detection_accuracy", "mean_iou", "average_precision")

# Table 3 of the report: what is left out, and its video accuracy, detection accuracy and mean IoU.
ABLATIONS = {
    "full loss": ({}, (1.000, 0.833, 0.51)),
    "no GIoU loss": ({"giou_weight": 0.0}, (1.000, 0.667, 0.43)),
    "no L1 loss": ({"l1_weight": 0.0}, (0.833, 0.500, 0.38)),
    "classification only": ({"l1_weight": 0.0, "giou_weight": 0.0}, (1.000, 0.167, 0.22)),
}


@dataclass(frozen=True)
class Setup:
    """What all runs of an experiment share: an open loader, the settings, the device."""

    loader: ClipLoader
    model: ModelConfig
    config: TrainConfig
    device: torch.device


@contextmanager
def open_setup(index: ClipIndex, model: ModelConfig, config: TrainConfig) -> Iterator[Setup]:
    """Start the reader's processes for `index`; they end with the block."""
    device = choose_device()
    most = max((len(clip.annotations) for clip in index.clips), default=0)
    if most > model.queries:
        clip = max(index.clips, key=lambda clip: len(clip.annotations))
        raise ActdetError(f"clip {clip.name} has {most} annotations, more than the {model.queries} queries of the "
                          f"model: use --queries {most} or more")
    name, _ = choose_reader(config.reader, device, [clip.video for clip in index.clips])
    size = (model.image_size, model.image_size)
    with open_reader(name, size, workers=config.workers) as reader:
        yield Setup(ClipLoader(index, model, reader, device), model, config, device)


def train_run(
    setup: Setup, train_ids: Sequence[int], val_ids: Sequence[int], out: Path, title: str, *, resume: bool = False
) -> Generator[Progress, bool | None, Evaluation | None]:
    """Train on `train_ids`, write the detector, evaluate on `val_ids` and report, all into `out`.

    Yields after every step; send True to stop there, with the state saved. Returns what was evaluated.
    Raises ActdetError for a folder that holds another run, unless it is resumed.
    """
    if not resume and ((out / MODEL).exists() or (out / LAST).exists()):
        raise ActdetError(f"{out} holds a run already: go on with it by --resume, or give another --out")
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(setup.model, setup.config, setup.loader, list(train_ids), list(val_ids), out, setup.device)
    if resume:
        trainer.restore()
    for progress in trainer.steps():
        stop = yield progress
        if stop:
            trainer.save()
            raise Stopped(f"stopped at step {progress.step} of {progress.total_steps}; "
                          f"the state is in {out / LAST}: run the same command with --resume to go on")
    evaluation = trainer.finish()
    if evaluation is not None:
        write_report(
            out, title, evaluation, setup.loader.index, list(val_ids), seconds=time.monotonic() - started,
            notes=describe(setup, len(train_ids)), log=out / "log.jsonl",
        )
    return evaluation


class Stopped(ActdetError):
    """The user asked a run to stop, and it has saved its state."""


def describe(setup: Setup, train_clips: int) -> list[str]:
    """Facts about a run for its report."""
    model, config = setup.model, setup.config
    device = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else "CPU"
    return [
        f"Trained on {train_clips} clips for {config.epochs} epochs, batches of {config.batch_size}, "
        f"{model.frames} frames of {model.image_size} x {model.image_size}; backbone weights: "
        f"{config.backbone_weights}; {device}, reader {setup.loader.reader.name}, torch {torch.__version__}."
    ]


Runs = Generator[tuple[str, Progress], bool | None, dict[str, Any]]


def cross_validate(setup: Setup, count: int, out: Path) -> Runs:
    """Stratified k-fold cross-validation (section 6.4): mean and sample standard deviation over `count` folds.

    Yields (name of the fold, progress). Writes OUT/fold_K/ for each and OUT/crossval.json, and returns the latter.
    """
    _claim(setup, out, {"folds": count})
    results = []
    for number, (train_ids, val_ids) in enumerate(folds(setup.loader.index, count, setup.config.seed), start=1):
        name = f"fold {number} of {count}"
        results.append((yield from _part(setup, train_ids, val_ids, out / f"fold_{number}", name)))
    summary = {
        figure: {"mean": mean(r[figure] for r in results), "std": stdev(r[figure] for r in results)}
        for figure in FIGURES
    }
    result = {"folds": count, **summary, "each": [{f: r[f] for f in FIGURES} for r in results]}
    write_json(out / "crossval.json", result)
    return result


def ablate(setup: Setup, val_share: float, out: Path) -> Runs:
    """The report's table 3: the same split and seed with parts of the loss, and of the matching cost, left out.

    Yields (name of the row, progress). Writes OUT/ROW/ for each and OUT/ablation.json, and returns the latter.
    """
    train_ids, val_ids = hold_out(setup.loader.index, val_share, setup.config.seed)
    if not val_ids:
        raise ActdetError("an ablation needs held-out clips: give a --val-share above 0")
    _claim(setup, out, {"val_share": val_share})
    rows = {}
    for name, (without, reported) in ABLATIONS.items():
        loss = replace(setup.config.loss, **without)
        part = replace(setup, config=replace(setup.config, loss=loss))
        metrics = yield from _part(part, train_ids, val_ids, out / name.replace(" ", "_"), name)
        rows[name] = {
            "measured": {figure: metrics[figure] for figure in FIGURES[:3]},
            "reported": dict(zip(FIGURES[:3], reported, strict=True)),
        }
    result = {"clips": len(val_ids), "rows": rows}
    write_json(out / "ablation.json", result)
    return result


def _claim(setup: Setup, out: Path, settings: dict[str, Any]) -> None:
    """Note in `out` what the experiment is; ActdetError where the folder holds parts of another one."""
    names = [clip.name for clip in setup.loader.index.clips]
    mine = {**settings, "model": asdict(setup.model), "training": asdict(setup.config), "clips": names}
    mine = json.loads(json.dumps(mine))
    path = out / "settings.json"
    if not path.exists():
        write_json(path, mine)
    elif json.loads(path.read_text()) != mine:
        raise ActdetError(f"{out} holds an experiment with other settings or clips (see {path}): give another --out")


def _part(setup: Setup, train_ids: Sequence[int], val_ids: Sequence[int], out: Path, name: str) -> Runs:
    """One run of an experiment: skipped where it is done, resumed where it was stopped."""
    done = out / "metrics.json"
    if not done.exists():
        run = train_run(setup, train_ids, val_ids, out, name, resume=(out / LAST).exists())
        stop = None
        while True:
            try:
                progress = run.send(stop)
            except StopIteration:
                break
            stop = yield name, progress
    return json.loads(done.read_text())

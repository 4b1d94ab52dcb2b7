"""Whole experiments on a data set: one training run, cross-validation, the report's ablation.

Each is a function that yields `Progress` after every training step and leaves its files in a folder of its own.
Finished parts of an experiment are recognised by their metrics.json and not run again, so an interrupted
cross-validation or ablation goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from actdet_kernels import explain_backend

from actdet.account import largest_batch
from actdet.checkpoints import load_detector
from actdet.config import ModelConfig, TrainConfig
from actdet.data.cache import FrameCache, choose_cache
from actdet.data.disk_cache import DiskCache, cache_folder
from actdet.data.index import ClipIndex, load_index
from actdet.data.loader import ClipLoader
from actdet.data.readers import choose_reader, open_reader
from actdet.data.split import folds, hold_out
from actdet.device import choose_device, choose_precision, choose_step, is_out_of_memory, memory_for
from actdet.distributed import ALONE, Processes, is_lost_process
from actdet.errors import ActdetError, DataError, ReadError
from actdet.evaluation import BATCH_SIZE, Evaluation, evaluate
from actdet.files import any_within, write_json
from actdet.metrics import Metrics
from actdet.models.backbone import choose_convolutions
from actdet.report import write_report
from actdet.training import LAST, LAUNCH, MODEL, Progress, Trainer, clip_shape

FIGURES = ("video_accuracy", "detection_accuracy", "mean_iou", "average_precision", "located_iou")

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
    processes: Processes = ALONE
    cache_reason: str = ""
    """What is kept of the decoded clips, and why."""


@contextmanager
def open_setup(
    index: ClipIndex, model: ModelConfig, config: TrainConfig, processes: Processes = ALONE
) -> Iterator[Setup]:
    """Start the reader's processes for `index`; they end with the block."""
    device = choose_device()
    most = max((len(clip.annotations) for clip in index.clips), default=0)
    if most > model.queries:
        clip = max(index.clips, key=lambda clip: len(clip.annotations))
        raise ActdetError(
            f"clip {clip.name} has {most} annotations, more than the {model.queries} queries of the "
            f"model: use --queries {most} or more"
        )
    dtype, _ = choose_precision(config.precision, device)
    videos = [clip.video for clip in index.clips]
    name, _ = choose_reader(config.reader, device, videos, disk_cache=config.disk_cache > 0)
    jitter, count = config.augment.jitter, processes.count
    kept, cache_reason = choose_cache(
        config.cache, index, model, device, jitter=jitter, epochs=config.epochs, processes=count
    )
    disk_cache = DiskCache(cache_folder(), int(config.disk_cache * 2**30)) if config.disk_cache else None
    size = (model.image_size, model.image_size)
    with open_reader(name, size, workers=config.workers, disk_cache=disk_cache) as reader:
        cache = FrameCache(index, model, device, jitter=jitter) if kept else None
        loader = ClipLoader(index, model, reader, device, dtype=dtype, cache=cache, bad_files=config.bad_files)
        yield Setup(loader, model, config, device, processes, cache_reason)


def train_run(
    setup: Setup,
    train_ids: Sequence[int],
    val_ids: Sequence[int],
    out: Path,
    title: str,
    *,
    resume: bool = False,
) -> Generator[Progress, bool | None, Evaluation | None]:
    """Train on `train_ids`, write the detector, evaluate on `val_ids` and report, all into `out`.

    Yields after every step; send True to stop there, with the state saved. Returns what was evaluated.
    Raises ActdetError for a folder among the clips or one that holds another run, unless it is resumed, and DataError,
    with the state saved, for a clip that cannot be read, where such are not left out.
    """
    _check_apart(setup.loader.index.root, out)
    if not resume and ((out / MODEL).exists() or (out / LAST).exists()):
        raise ActdetError(f"{out} holds a run already: go on with it by --resume, or give another --out")
    started, processes = time.monotonic(), setup.processes
    out.mkdir(parents=True, exist_ok=True)
    trainer = None
    try:
        trainer = Trainer(
            setup.model, setup.config, setup.loader, list(train_ids), list(val_ids), out, setup.device, processes
        )
        if resume:
            trainer.restore()
        elif processes.rank == 0:
            (out / "log.jsonl").unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        for progress in trainer.steps():
            stop = yield progress
            if processes.any(bool(stop)):  # all must stop at the same step
                trainer.save()
                raise Stopped(
                    f"stopped at step {progress.step} of {progress.total_steps}; "
                    f"the state is in {out / LAST}: run the same command with --resume to go on"
                )
        evaluation = trainer.finish()
        trainer.share_left_out()
    except (DataError, ReadError) as error:
        videos = {clip.video.path for clip in setup.loader.index.clips}
        of_data = isinstance(error, ReadError) or error.path in videos
        if trainer is None or not of_data or processes.count > 1:  # who would have to save together
            raise
        trainer.save()
        skip = " or leave it out by --bad-files skip," if isinstance(error, DataError) else ""
        raise ActdetError(
            f"{error}; mend it,{skip} and go on by the same command (train: --resume); the state is in {out / LAST}"
        ) from error
    except torch.OutOfMemoryError as error:
        raise ActdetError(_too_large(setup)) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            what = f"batches of {setup.config.batch_size} clips of {_shape(setup.model)}"
            raise ActdetError(
                f"the CPU has too little free memory for {what}: use a smaller --batch-size, --frames or --image-size"
            ) from error
        if not is_lost_process(error):
            raise
        advice = f"; the state is in {out / LAST}: run the same command with --resume to go on"
        raise ActdetError(f"another process of this job has ended{advice * (out / LAST).exists()}") from error
    if evaluation is not None and processes.rank == 0:
        write_report(
            out,
            title,
            evaluation,
            setup.loader.index,
            started=started,
            notes=[
                describe_training(setup, len(train_ids)),
                _describe_device(setup.device, setup.loader.reader.name),
                *(f"Left out: {error}." for error in setup.loader.left_out.values()),
            ],
            log=out / "log.jsonl",
        )
    return evaluation


def _too_large(setup: Setup) -> str:
    """What to do when a GPU's memory does not suffice."""
    model, memory = setup.model, torch.cuda.get_device_properties(setup.device).total_memory
    dtype, _ = choose_precision(setup.config.precision, setup.device)
    cache = setup.loader.cache.pool.nbytes if setup.loader.cache else 0
    clips = f"; decoded clips take {cache / 2**30:.1f} GiB, none with --cache none" * (cache > 0)
    kept, again = (largest_batch(model, dtype, memory - cache, checkpointing=flag) for flag in (False, True))
    return (
        f"{memory / 2**30:.0f} GiB are too little for batches of {setup.config.batch_size} clips of "
        f"{_shape(model)}: about {kept} a GPU are possible, {again} with --checkpointing{clips}"
    )


def _shape(model: ModelConfig) -> str:
    return f"{model.frames} x {model.image_size} x {model.image_size}"


def _check_apart(data: Path, out: Path, parts: Sequence[str] = ()) -> None:
    """Raises if a report in `out`, or in its sub folders `parts`, would be written among the files of `data`."""
    videos = data / "videos"
    folders = [out, *(out / part for part in parts)]
    pictures = {(folder / "videos").resolve() for folder in folders}
    linked = {path.resolve().parent for path in videos.glob("*") if path.is_symlink()}
    among = any_within([*folders, *pictures], [videos, data / "annotations"])
    if among or data.resolve() in pictures.union(folder.resolve() for folder in folders) or pictures & linked:
        raise ActdetError(f"{out}: its files would be written among those of the data set {data}: give another --out")


class Stopped(ActdetError):
    """The user asked a run to stop, and it has saved its state."""


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    held_out: bool = False,
    workers: int = 1,
    title: str | None = None,
    notes: Sequence[str] = (),
    log: Path | None = None,
    started: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Measure the detector in `checkpoint` on the data set `data` and write the report to `out`.

    The clips are decoded by the reader that the detector was trained with, or, where that cannot run here, by PyAV,
    which the report then says. held_out: only the clips that its training run held out. notes: lines for the
    report, and log: the training's log.jsonl, for its curve. started: monotonic time from which the report's seconds
    count; by default now. progress: called with (clips done, clips in all). Raises ActdetError for what cannot be read,
    and where `out` is among the clips.
    """
    _check_apart(data, out)
    if workers < 0:
        raise ActdetError(f"workers must be 0 or more, got {workers}")
    started = time.monotonic() if started is None else started
    device = choose_device()
    detector, about = load_detector(checkpoint, device)
    detector.to(memory_format=torch.channels_last_3d)
    index = load_index(data, about.model.class_names)
    ids = [i for i, clip in enumerate(index.clips) if not held_out or clip.name in about.held_out]
    if not ids:
        raise DataError(data, f"holds none of the {len(about.held_out)} clips that {checkpoint} held out in training")
    reader_name, note = _recorded_reader(about.reader, device, index)
    size = (about.model.image_size, about.model.image_size)
    dtype, _ = choose_precision("auto", device)
    memory = memory_for(f"{BATCH_SIZE} clips of {_shape(about.model)}")
    with memory, open_reader(reader_name, size, workers=workers) as reader:
        loader = ClipLoader(index, about.model, reader, device)
        evaluation = evaluate(detector, loader, ids, about.loss, dtype, progress=progress)
    write_report(
        out,
        title or f"{checkpoint} on {data}",
        evaluation,
        index,
        started=started,
        notes=[*notes, _describe_device(device, reader_name), *note],
        log=log,
    )
    return evaluation.metrics


def _recorded_reader(recorded: str, device: torch.device, index: ClipIndex) -> tuple[str, list[str]]:
    try:
        return choose_reader(recorded.partition("-")[0], device, [clip.video for clip in index.clips])[0], []
    except ActdetError as error:
        return "pyav", [f"Decoded by pyav, not by {recorded} as in training ({error}): colours differ slightly."]


def describe_setup(setup: Setup) -> list[str]:
    """One line that says which paths a training takes here, and why."""
    videos = [clip.video for clip in setup.loader.index.clips]
    config, count = setup.config, setup.processes.count
    _, reader_reason = choose_reader(config.reader, setup.device, videos, disk_cache=config.disk_cache > 0)
    dtype, precision_reason = choose_precision(config.precision, setup.device)
    step, step_reason = choose_step(config.step, setup.device, processes=count, checkpointing=config.checkpointing)
    shape = clip_shape(setup.model, config, setup.processes)
    flat, flat_reason = choose_convolutions(shape, setup.device, dtype)
    return [
        f"{f'{count} processes, each ' if count > 1 else ''}{_device_name(setup.device)}; "
        f"{str(dtype).removeprefix('torch.')} ({precision_reason}); step {step} ({step_reason}); "
        f"{2 if flat else 3}-D convolutions ({flat_reason}); "
        f"reader {setup.loader.reader.name} ({reader_reason}); {setup.cache_reason}; "
        f"matching and loss by {explain_backend(setup.device)}"
    ]


def describe_training(setup: Setup, train_clips: int) -> str:
    """One line for a report: on what and how a detector was trained."""
    model, config = setup.model, setup.config
    auxiliary = f", auxiliary loss of weight {config.auxiliary_weight:g}" if config.auxiliary_weight else ""
    return (
        f"Trained on {train_clips} clips for {config.epochs} epochs{auxiliary}, batches of {config.batch_size}, "
        f"{model.frames} frames of {model.image_size} x {model.image_size}; backbone weights: "
        f"{config.backbone_weights}."
    )


def _describe_device(device: torch.device, reader: str) -> str:
    return f"{_device_name(device)}, torch {torch.__version__}, reader {reader}."


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


Runs = Generator[tuple[str, Progress], bool | None, dict[str, Any]]


def cross_validate(setup: Setup, count: int, out: Path) -> Runs:
    """Stratified k-fold cross-validation (section 6.4): mean and sample standard deviation over `count` folds.

    A fold without a figure, such as the mean IoU where no clip has an action, is left out of both; a mean of none and a
    deviation of fewer than two are None.
    Yields (name of the fold, progress). Writes OUT/fold_K/ for each and OUT/crossval.json, and returns the latter.
    """
    _check_apart(setup.loader.index.root, out, [f"fold_{number}" for number in range(1, count + 1)])
    splits = folds(setup.loader.index, count, setup.config.seed)
    _claim(setup, out, {"folds": count})
    results = []
    for number, (train_ids, val_ids) in enumerate(splits, start=1):
        name = f"fold {number} of {count}"
        results.append((yield from _part(setup, train_ids, val_ids, out / f"fold_{number}", name)))
    # Runs that an earlier version finished lack some figures.
    each = [{figure: result.get(figure) for figure in FIGURES} for result in results]
    summary = {figure: _mean_and_deviation([figures[figure] for figures in each]) for figure in FIGURES}
    result = {"folds": count, **summary, "each": each}
    write_json(out / "crossval.json", result)
    return result


def _mean_and_deviation(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {"mean": mean(known) if known else None, "std": stdev(known) if len(known) > 1 else None}


def ablate(setup: Setup, val_share: float, out: Path) -> Runs:
    """The report's table 3: the same split and seed with parts of the loss, and of the matching cost, left out.

    Yields (name of the row, progress). Writes OUT/ROW/ for each and OUT/ablation.json, and returns the latter.
    """
    parts = {name: name.replace(" ", "_") for name in ABLATIONS}
    _check_apart(setup.loader.index.root, out, list(parts.values()))
    train_ids, val_ids = hold_out(setup.loader.index, val_share, setup.config.seed)
    if not val_ids:
        raise ActdetError("an ablation needs held-out clips: give a --val-share above 0")
    _claim(setup, out, {"val_share": val_share})
    rows = {}
    for name, (without, reported) in ABLATIONS.items():
        loss = replace(setup.config.loss, **without)
        part = replace(setup, config=replace(setup.config, loss=loss))
        metrics = yield from _part(part, train_ids, val_ids, out / parts[name], name)
        rows[name] = {
            "measured": {figure: metrics[figure] for figure in FIGURES[:3]},
            "reported": dict(zip(FIGURES[:3], reported, strict=True)),
        }
    result = {"clips": len(val_ids), "rows": rows}
    write_json(out / "ablation.json", result)
    return result


def _claim(setup: Setup, out: Path, settings: dict[str, Any]) -> None:
    """Note in `out` what the experiment is; ActdetError where the folder holds parts of another one."""
    index = setup.loader.index
    clips = {"clips": [clip.name for clip in index.clips], "labels": index.labels.tolist()}
    training = {name: value for name, value in asdict(setup.config).items() if name not in LAUNCH}
    mine = {**settings, "model": asdict(setup.model), "training": training, **clips}
    mine = json.loads(json.dumps(mine))
    path = out / "settings.json"
    if not path.exists():
        write_json(path, mine)
    elif json.loads(path.read_text()) != mine:
        raise ActdetError(
            f"{out} holds an experiment with other settings, clips or labels (see {path}): give another --out"
        )


def _part(setup: Setup, train_ids: Sequence[int], val_ids: Sequence[int], out: Path, name: str) -> Runs:
    """One run of an experiment: skipped where it is done, resumed where it was stopped."""
    done = out / "metrics.json"
    if not done.exists():
        if not (out / LAST).exists():
            (out / MODEL).unlink(missing_ok=True)  # of a run that ended before its report
        run = train_run(setup, train_ids, val_ids, out, name, resume=(out / LAST).exists())
        stop = None
        while True:
            try:
                progress = run.send(stop)
            except StopIteration:
                break
            stop = yield name, progress
    return json.loads(done.read_text())

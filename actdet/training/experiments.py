"""Whole experiments on a data set: one training run, cross-validation, the report's ablation.

Each is a function that yields `Progress` after every training step and leaves its files in a folder of its own.
A part of an experiment is finished when its report is there, and not run again, so an interrupted cross-validation or
ablation goes on where it stopped. A folder has one writer at a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from actdet_kernels import explain_backend

from actdet.data.cache import FrameCache, choose_cache
from actdet.data.index import BadFiles, ClipIndex, load_index
from actdet.data.loader import ClipLoader
from actdet.data.split import folds, hold_out
from actdet.device import choose_device, choose_precision, choose_step, is_out_of_memory, memory_for
from actdet.distributed import ALONE, Processes, is_lost_process
from actdet.errors import ActdetError, DataError, ReadError, Stopped
from actdet.evaluation.clips import BATCH_SIZE, Evaluation, evaluate
from actdet.evaluation.metrics import Metrics
from actdet.evaluation.report import write_report
from actdet.files import any_within, check_own, read_json, remove_abandoned, sole_writer, write_json
from actdet.models.backbones.r2plus1d import choose_convolutions
from actdet.models.checkpoints import About, load_detector
from actdet.models.detr.config import ModelConfig
from actdet.models.detr.detector import ActionDetector
from actdet.pictures import is_annotated
from actdet.training.config import TrainConfig
from actdet.training.cost import largest_batch
from actdet.training.trainer import (
    BEST,
    FIGURES,
    LAST,
    LAUNCH,
    LOG,
    MODEL,
    Progress,
    StoredRun,
    Trainer,
    clip_shape,
    read_log,
)
from actdet.video.disk_cache import DiskCache, cache_folder
from actdet.video.readers import choose_reader, open_reader

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
    command: str = "train"
    """The command that all this is for: what a message advises must be among its options."""
    drawing: Callable[[int, int], None] | None = None
    """Called with (frames drawn, frames in all) while the pictures and videos of a run's report are drawn."""

    @property
    def again(self) -> str:
        """What makes a run go on."""
        return "the same command with --resume" if self.command == "train" else "the same command"

    @property
    def has_options(self) -> bool:
        """Whether the settings are options of the command."""
        return self.command != "demo"


@contextmanager
def open_setup(
    index: ClipIndex,
    model: ModelConfig,
    config: TrainConfig,
    processes: Processes = ALONE,
    device: torch.device | None = None,
    *,
    command: str = "train",
) -> Iterator[Setup]:
    """Start the reader's processes for `index`; they end with the block. device: by default what is chosen here."""
    device = device or choose_device()
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
        yield Setup(loader, model, config, device, processes, cache_reason, command)


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
    resume: go on from the state in `out`; where the detector is there already, only what is missing is made.
    Raises ActdetError for a folder among the clips, one that another process writes to, one that holds another run,
    unless it is resumed, or files that would be replaced though this program did not write them, and DataError, with
    the state saved, for a clip that cannot be read, where such are not left out.
    """
    _check_apart(setup.loader.index.root, out)
    with _sole_writer(out, setup.processes):
        _check_run(setup, val_ids, out, resume=resume)
        return (yield from _train(setup, train_ids, val_ids, out, title, resume=resume))


def find_clips(index: ClipIndex, stored: StoredRun, out: Path) -> tuple[list[int], list[int]]:
    """The training and the held-out clips of the run in `out`, by their numbers in `index`.

    Raises DataError where the data set has lost or gained clips since.
    """
    numbers = {clip.name: number for number, clip in enumerate(index.clips)}
    before = {*stored.training_clips, *stored.held_out_clips}
    for names, what in ((before - numbers.keys(), "holds no more"), (numbers.keys() - before, "now also holds")):
        if names:
            raise DataError(index.root, f"{what} {min(names)}: not the data set that the run in {out} began with")
    return [numbers[name] for name in stored.training_clips], [numbers[name] for name in stored.held_out_clips]


@contextmanager
def _sole_writer(out: Path, processes: Processes = ALONE) -> Iterator[None]:
    """Within: these processes, of which the first one writes, are the only ones of `out`; its leftovers are gone."""
    refused = None
    with ExitStack() as stack:
        if processes.rank == 0:
            try:
                stack.enter_context(sole_writer(out))
                for folder in (out, out / "videos"):
                    remove_abandoned(folder)
            except ActdetError as error:
                refused = error
        refused, *_ = processes.gather(refused)
        if refused is not None:
            raise refused
        yield


def _check_run(setup: Setup, val_ids: Sequence[int], out: Path, *, resume: bool) -> None:
    """Raises where a run in `out` cannot begin, or not go on."""
    if resume:
        # An experiment looks for its reports itself.
        if setup.command == "train" and (out / MODEL).exists() and (not val_ids or is_reported(out)):
            raise DataError(out, f"nothing to resume: this run is finished, its result is {MODEL}")
    else:
        for name in (MODEL, LAST, BEST):
            if (out / name).exists():
                advice = "go on with it by --resume, or " if setup.command == "train" and name != BEST else ""
                raise ActdetError(f"{out} holds a run already ({name}): {advice}give another --out")
        for name in ("report.html", "metrics.json") if val_ids else ():
            if (out / name).exists():
                raise ActdetError(f"{out} holds a report already ({name}): give another --out")
        check_own([out / LOG], _is_log)
    if val_ids:
        _check_replaceable(out, [setup.loader.index.clips[i].name for i in val_ids])


def _check_replaceable(out: Path, names: Sequence[str]) -> None:
    """Raises if the report of clips of these names would replace in `out` what this program has not written there."""
    if (out / "videos").is_dir() and (out / "annotations").is_dir():
        raise ActdetError(f"{out} holds a data set, with which a report would be mixed: give another --out")
    check_own([out / "metrics.json"], lambda path: _metrics_in(path.parent) is not None)
    check_own([out / "report.html"], lambda path: path.is_file() and _GENERATOR in path.read_bytes()[:1000])
    check_own((out / "videos" / f"{name}.mp4" for name in names), is_annotated)


def _is_log(path: Path) -> bool:
    """Whether a training has begun the file; its first line need not be whole."""
    return path.is_file() and (read_log(path) != [] or b'{"epoch": '.startswith(path.read_bytes()[:10]))


_GENERATOR = b'<meta name="generator" content="actdet">'


def is_reported(out: Path) -> bool:
    """Whether the report in `out`, whose page is written last, is there."""
    return (out / "report.html").is_file() and _metrics_in(out) is not None


def _metrics_in(out: Path) -> dict[str, Any] | None:
    """The figures that a report has left in `out`."""
    found = read_json(out / "metrics.json")
    return found if isinstance(found, dict) and found.keys() >= {*FIGURES, "confusion"} else None


def _train(
    setup: Setup, train_ids: Sequence[int], val_ids: Sequence[int], out: Path, title: str, *, resume: bool
) -> Generator[Progress, bool | None, Evaluation | None]:
    started, processes = time.monotonic(), setup.processes
    trainer = None
    try:
        trainer = Trainer(
            setup.model,
            setup.config,
            setup.loader,
            list(train_ids),
            list(val_ids),
            out,
            setup.device,
            processes,
            to_restore=resume,
        )
        if resume:
            trainer.restore()
        elif processes.rank == 0:
            (out / LOG).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        for progress in trainer.steps():
            stop = yield progress
            if processes.any(bool(stop)):  # all must stop at the same step
                trainer.save()
                raise Stopped(
                    f"stopped at step {progress.step} of {progress.total_steps}; "
                    f"the state is in {out / LAST}: run {setup.again} to go on"
                )
        evaluation = trainer.finish()
        trainer.share_left_out()
    except (DataError, ReadError) as error:
        videos = {clip.video.path for clip in setup.loader.index.clips}
        of_data = isinstance(error, ReadError) or error.path in videos
        if trainer is None or not of_data or processes.count > 1:  # who would have to save together
            raise
        kept = trainer.keep()
        skip = " or leave it out by --bad-files skip," if isinstance(error, DataError) and setup.has_options else ""
        raise ActdetError(f"{error}; mend it,{skip} and go on by {setup.again}; the state is in {kept}") from error
    except torch.OutOfMemoryError as error:
        raise ActdetError(_too_large(setup)) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            what = f"batches of {setup.config.batch_size} clips of {_shape(setup.model)}"
            advice = "use a smaller --batch-size, --frames or --image-size"
            if not setup.has_options:
                advice = "end other programs that take it"
            raise ActdetError(f"the CPU has too little free memory for {what}: {advice}") from error
        if not is_lost_process(error):
            raise
        advice = f"; the state is in {out / LAST}: run {setup.again} to go on"
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
                *(f"Left out: {error}." for error in setup.loader.all_left_out),
            ],
            settings=asdict(setup.model) | asdict(setup.config),
            log=out / LOG,
            progress=setup.drawing,
        )
    return evaluation


def _too_large(setup: Setup) -> str:
    """What to do when a GPU's memory does not suffice."""
    model, memory = setup.model, torch.cuda.get_device_properties(setup.device).total_memory
    dtype, _ = choose_precision(setup.config.precision, setup.device)
    cache = setup.loader.cache.pool.nbytes if setup.loader.cache else 0
    clips = f"; decoded clips take {cache / 2**30:.1f} GiB, none with --cache none" * (cache > 0)
    kept, again = (largest_batch(model, dtype, memory - cache, checkpointing=flag) for flag in (False, True))
    problem = (
        f"{memory / 2**30:.0f} GiB are too little for batches of {setup.config.batch_size} clips of {_shape(model)}"
    )
    if not setup.has_options:
        return f"{problem}: end other programs that take them, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
    return f"{problem}: about {kept} a GPU are possible, {again} with --checkpointing{clips}"


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


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    held_out: bool = False,
    workers: int = 1,
    device: torch.device | None = None,
    bad_files: BadFiles = "stop",
    say: Callable[[str], object] = lambda line: None,
    title: str | None = None,
    notes: Sequence[str] = (),
    log: Path | None = None,
    started: float | None = None,
    with_videos: bool = True,
    progress: Callable[[int, int], None] | None = None,
    drawing: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Measure the detector in `checkpoint` on the data set `data` and write the report to `out`.

    The clips are decoded by the reader that the detector was trained with, or, where that cannot run here, by PyAV,
    which the report then says.

    Args:
        checkpoint: The file of a trained detector.
        data: The data set's folder.
        out: The folder of the report.
        held_out: Only the clips that its training run held out.
        workers: Processes that decode.
        device: By default what is chosen here.
        bad_files: `skip` leaves out clips that cannot be read.
        say: Called with a line for each note on the data and each clip that is left out.
        title: Of the report.
        notes: Lines for the report.
        log: The training's log.jsonl, for its curve.
        started: Monotonic time from which the report's seconds count; by default now.
        with_videos: Whether the report has annotated videos.
        progress: Called with (clips done, clips in all).
        drawing: Called, after that, with (frames drawn for the report, frames in all).

    Raises:
        ActdetError: For what cannot be read, where `out` is among the clips or another process writes to it, and where
            files would be replaced that this program did not write.
    """
    _check_apart(data, out)
    if workers < 0:
        raise ActdetError(f"workers must be 0 or more, got {workers}")
    started = time.monotonic() if started is None else started
    device = device or choose_device()
    detector, about = load_detector(checkpoint, device)
    detector.to(memory_format=torch.channels_last_3d)
    index = load_index(data, about.model.class_names, bad_files=bad_files)
    for line in index.notes:
        say(f"note: {line}")
    ids = [i for i, clip in enumerate(index.clips) if not held_out or clip.name in about.held_out]
    if not ids:
        raise DataError(data, f"holds none of the {len(about.held_out)} clips that {checkpoint} held out in training")
    with _sole_writer(out):
        _check_replaceable(out, [index.clips[i].name for i in ids])
        evaluation, described = _evaluate(detector, about, index, ids, device, workers, bad_files, say, progress)
        write_report(
            out,
            title or f"{checkpoint} on {data}",
            evaluation,
            index,
            started=started,
            notes=[*notes, *described],
            settings=asdict(about.model) | asdict(about.loss),
            log=log,
            with_videos=with_videos,
            progress=drawing,
        )
    return evaluation.metrics


def _evaluate(
    detector: ActionDetector,
    about: About,
    index: ClipIndex,
    ids: list[int],
    device: torch.device,
    workers: int,
    bad_files: BadFiles,
    say: Callable[[str], object],
    progress: Callable[[int, int], None] | None,
) -> tuple[Evaluation, list[str]]:
    """What a detector makes of the clips `ids`, and lines about where that was."""
    reader_name, note = _recorded_reader(about.reader, device, index)
    size = (about.model.image_size, about.model.image_size)
    dtype, _ = choose_precision("auto", device)
    memory = memory_for(f"{BATCH_SIZE} clips of {_shape(about.model)}")
    with memory, open_reader(reader_name, size, workers=workers) as reader:
        loader = ClipLoader(index, about.model, reader, device, bad_files=bad_files)
        evaluation = evaluate(detector, loader, ids, about.loss, dtype, progress=progress)
    left_out = list(map(str, loader.all_left_out))
    for line in left_out:
        say(f"left out: {line}")
    lines = [_describe_device(device, reader_name), *note, *(f"Left out: {line}." for line in left_out)]
    return evaluation, lines


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
    start = f"trained on from {config.init}" if config.init else f"backbone weights: {config.backbone_weights}"
    auxiliary = f", auxiliary loss of weight {config.auxiliary_weight:g}" if config.auxiliary_weight else ""
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    parts = {"of half the pixels": config.small_epochs, "of half the backbone's blocks": config.shallow_epochs}
    begun = [f"the first {count} {what}" for what, count in parts.items() if count]
    epochs += f" ({', '.join(begun)})" * bool(begun)
    return (
        f"Trained on {train_clips} clips for {epochs}{auxiliary}, batches of {config.batch_size}, "
        f"{model.frames} frames of {model.image_size} x {model.image_size}; {start}."
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
    with _sole_writer(out):
        _claim(setup, out, {"folds": count}, "crossval.json")
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
    with _sole_writer(out):
        _claim(setup, out, {"val_share": val_share}, "ablation.json")
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


def _claim(setup: Setup, out: Path, settings: dict[str, Any], result: str) -> None:
    """Note in `out` what the experiment is; ActdetError where it holds another one, or a file `result` of none."""
    index = setup.loader.index
    clips = {"clips": [clip.name for clip in index.clips], "labels": index.labels.tolist()}
    training = {name: value for name, value in asdict(setup.config).items() if name not in LAUNCH}
    mine = {**settings, "model": asdict(setup.model), "training": training, **clips}
    mine = json.loads(json.dumps(mine))
    path = out / "settings.json"
    if not path.exists():
        check_own([out / result], lambda _: False)
        write_json(path, mine)
    elif read_json(path) != mine:
        raise ActdetError(
            f"{out} holds an experiment with other settings, clips or labels (see {path}): give another --out"
        )


def _part(setup: Setup, train_ids: Sequence[int], val_ids: Sequence[int], out: Path, name: str) -> Runs:
    """One run of an experiment: skipped where its report is there, else taken to its end from where it is."""
    if not is_reported(out):
        begun = (out / MODEL).exists() or (out / LAST).exists()
        run = train_run(setup, train_ids, val_ids, out, name, resume=begun)
        stop = None
        while True:
            try:
                progress = run.send(stop)
            except StopIteration:
                break
            stop = yield name, progress
    metrics = _metrics_in(out)
    if metrics is None:
        raise DataError(out / "metrics.json", "has gone while it was needed: run the same command again")
    return metrics

"""The command `actdet`: parses, calls, prints."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import tyro
from torch.distributed import is_torchelastic_launched
from tqdm import tqdm
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from actdet.config import ModelConfig, TrainConfig
from actdet.data.index import CLASS_NAMES, ClipIndex, find_problems, load_index
from actdet.data.prepare import PrepareConfig, prepare_dataset
from actdet.data.rendered import RenderConfig, render_dataset
from actdet.data.split import hold_out
from actdet.data.video import probe
from actdet.demo import demo_for
from actdet.device import choose_device
from actdet.distributed import join_processes
from actdet.environment import describe_environment
from actdet.errors import ActdetError, DataError
from actdet.experiments import (
    FIGURES,
    Setup,
    Stopped,
    ablate,
    cross_validate,
    describe_setup,
    describe_training,
    evaluate_checkpoint,
    open_setup,
    train_run,
)
from actdet.files import any_within, write_json
from actdet.metrics import Metrics
from actdet.models.decision import THRESHOLD
from actdet.prediction import Predictor, Window, annotate_prediction
from actdet.training import MODEL, Progress

app = tyro.extras.SubcommandApp()


@app.command
def train(
    data: Positional[Path],
    /,
    out: Path = Path("runs/train"),
    model: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    val_share: float = 0.2,
    resume: bool = False,
) -> None:
    """Train a detector on the clips in DATA; evaluate it on those held out; write model and report to --out.

    For instance: actdet train data/mine --out runs/mine --epochs 30 --backbone-weights none
    On several GPUs: torchrun --nproc-per-node 2 -m actdet train data/mine --out runs/mine

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for the log, the checkpoints, the trained model and the report.
        val_share: Share of each class that is held out to evaluate on; 0 trains on everything.
        resume: Go on with the run in --out, which was stopped.
    """
    with join_processes() as processes:
        first = processes.rank == 0
        index = _index(data, model.class_names, quiet=not first)
        train_ids, val_ids = hold_out(index, val_share, config.seed)
        with open_setup(index, model, config, processes) as setup:
            if first:
                _say(describe_setup(setup))
            run = train_run(setup, train_ids, val_ids, out, f"Training on {data.name}", resume=resume)
            evaluation = _watch(run, quiet=not first)
    if not first:
        return
    _say_left_out(setup)
    print(f"model: {out / MODEL}")
    if evaluation is not None:
        _print_metrics(evaluation.metrics)
        print(f"report: {out / 'report.html'}")


@app.command(name="evaluate")
def evaluate_(
    checkpoint: Positional[Path],
    data: Positional[Path],
    /,
    out: Path = Path("runs/evaluate"),
    held_out: bool = False,
    workers: int = 1,
) -> None:
    """Measure a trained detector on the annotated clips in DATA and write a report with pictures to --out.

    For instance: actdet evaluate runs/mine/model.safetensors data/other --out runs/other

    Args:
        checkpoint: The model.safetensors (or last.safetensors) of a run.
        data: Folder with videos/ and annotations/.
        out: Folder for metrics.json, report.html and annotated videos.
        held_out: Only the clips that the training run held out, when DATA is what it was trained on.
        workers: Processes that decode.
    """
    with tqdm(desc="evaluate", unit="clip") as bar:
        metrics = evaluate_checkpoint(checkpoint, data, out, held_out=held_out, workers=workers, progress=_total(bar))
    _print_metrics(metrics)
    print(f"report: {out / 'report.html'}")


@app.command
def predict(
    checkpoint: Positional[Path],
    videos: Positional[tuple[Path, ...]],
    /,
    out: Path = Path("runs/predict"),
    threshold: float = THRESHOLD,
    annotate: bool = True,
) -> None:
    """Find actions in videos: a line for each window as it is found, and NAME.json and an annotated NAME.mp4 in --out.

    For instance: actdet predict runs/mine/model.safetensors door.mp4 yard.mkv --out found

    Args:
        checkpoint: The model.safetensors of a run.
        videos: One or more video files.
        out: Folder for the results.
        threshold: The least probability at which an action counts.
        annotate: Whether to write the annotated videos.
    """
    if not videos:
        raise ActdetError("no video given: actdet predict CHECKPOINT VIDEO [VIDEO ...]")
    if len({video.stem for video in videos}) < len(videos):
        raise ActdetError("two of the videos have the same name, so their results would overwrite each other")
    for path in videos if annotate else ():
        target = out / f"{path.stem}.mp4"
        if any_within([target], videos):
            raise ActdetError(f"{target} is one of the videos, the annotated one would replace it: give another --out")
    predictor = Predictor(checkpoint, threshold=threshold)
    failed = 0
    for path in videos:
        try:
            windows = []
            with tqdm(desc=path.name, unit="window") as bar:
                video = probe(path)
                bar.total = len(predictor.spans(video))
                for window in predictor.windows(video):
                    windows.append(window)
                    with bar.external_write_mode():
                        print(_line(path, window), flush=True)
                    bar.update()
            write_json(out / f"{path.stem}.json", {"video": str(path), "windows": [asdict(w) for w in windows]})
            if annotate:
                with tqdm(desc=f"draw {path.name}", unit="frame") as bar:
                    annotate_prediction(
                        video, windows, predictor.class_names, out / f"{path.stem}.mp4", progress=_total(bar)
                    )
        except DataError as error:
            failed += 1
            print(f"actdet: {error}", file=sys.stderr)
    print(f"results: {out}")
    if failed:
        raise ActdetError(f"{failed} of {len(videos)} videos could not be read")


def _line(path: Path, window: Window) -> str:
    box = f"  box {window.box}" if window.box else ""
    action = window.action or "no action"
    return f"{path.name}  {window.start:7.2f} to {window.end:7.2f} s  {action:12} {window.score:.2f}{box}"


@app.command
def crossval(
    data: Positional[Path],
    /,
    out: Path = Path("runs/crossval"),
    folds: int = 5,
    model: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
) -> None:
    """Cross-validate: train once for each stratified fold of DATA; print mean and standard deviation.

    For instance: actdet crossval data/mine --folds 5 --backbone-weights none. Run again to go on after a stop.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for a run for each fold, and crossval.json.
        folds: How many parts DATA is cut into.
    """
    with open_setup(_index(data, model.class_names), model, config) as setup:
        _say(describe_setup(setup))
        result = _watch(cross_validate(setup, folds, out))
    _say_left_out(setup)
    from actdet.metrics import format_figure

    for figure in FIGURES:
        center, deviation = (format_figure(result[figure][part]) for part in ("mean", "std"))
        print(f"{figure.replace('_', ' '):20} {center} +- {deviation}")
    print(f"details: {out / 'crossval.json'}")


@app.command(name="ablate")
def ablate_(
    data: Positional[Path],
    /,
    out: Path = Path("runs/ablate"),
    val_share: float = 0.2,
    model: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
) -> None:
    """Train with parts of the loss left out, as in table 3 of the technical report, and print both tables.

    For instance: actdet ablate data/mine --backbone-weights none. Run again to go on after a stop.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for a run for each row, and ablation.json.
        val_share: Share of each class that is held out to evaluate on.
    """
    with open_setup(_index(data, model.class_names), model, config) as setup:
        _say(describe_setup(setup))
        result = _watch(ablate(setup, val_share, out))
    _say_left_out(setup)
    from actdet.metrics import format_figure

    print(
        f"{'':22}{'video accuracy':>18}{'detection @0.5':>18}{'mean IoU':>18}\n{'':22}" + f"{'here (report)':>18}" * 3
    )
    for name, row in result["rows"].items():
        cells = (f"{format_figure(row['measured'][f])} ({row['reported'][f]:.3f})" for f in FIGURES[:3])
        print(f"{name:22}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"details: {out / 'ablation.json'}")


@app.command
def render(out: Positional[Path], /, config: RenderConfig = RenderConfig()) -> None:
    """Write the embedded data set: rendered people who fight, collapse, or do something that looks alike.

    For instance: actdet render data/rendered --clips 300 --seed 7

    Args:
        out: Folder to make, with videos/ and annotations/.
    """
    with tqdm(desc="render", unit="clip") as bar:
        render_dataset(out, config, progress=_total(bar))
    print(f"data set: {out}")


@app.command
def check(data: Positional[Path], /, class_names: tuple[str, ...] = CLASS_NAMES, decode: bool = True) -> None:
    """Validate a data set: list everything that is wrong with its videos and annotations.

    For instance: actdet check data/mine

    Args:
        data: Folder with videos/ and annotations/.
        class_names: Names of the action classes, in the order of their ids in the annotation files.
        decode: Whether to decode every frame, too, and not only read the containers.
    """
    with tqdm(desc="check", unit="video") as bar:
        problems = find_problems(data, class_names, decode=decode, progress=_total(bar))
    for problem in problems:
        print(problem)
    if problems:
        raise ActdetError(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {data}")
    index = load_index(data, class_names)
    counts = [int((index.labels == label).sum()) for label in range(len(class_names) + 1)]
    parts = ", ".join(f"{count} {name}" for count, name in zip(counts, (*class_names, "no action"), strict=True))
    print(f"{data}: {len(index.clips)} clips ({parts}), nothing wrong")


@app.command
def prepare(
    data: Positional[Path],
    out: Positional[Path],
    /,
    class_names: tuple[str, ...] = CLASS_NAMES,
    config: PrepareConfig = PrepareConfig(),
) -> None:
    """Re-encode the data set in DATA to OUT, small and with many keyframes, so that its frames are quick to read.

    For instance: actdet prepare data/mine data/mine_256. Run again to go on after a stop.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for the same clips, annotations in pixels of their new size, and prepared.json with what it saved.
        class_names: Names of the action classes, in the order of their ids in the annotation files.
    """
    index = _index(data, class_names)
    with tqdm(desc="prepare", unit="clip") as bar:
        prepared = prepare_dataset(index, out, config, progress=_total(bar))
    figures = {name: value for name, value in vars(prepared).items() if name != "index"}
    write_json(out / "prepared.json", figures | asdict(config))
    clips = len(prepared.index.clips)
    kept = f", {clips - prepared.encoded} of them were there already" * (prepared.encoded < clips)
    print(f"{out}: {clips} clips{kept}")
    print(f"videos: {prepared.bytes_before / 1e6:.1f} MB before, {prepared.bytes_after / 1e6:.1f} MB after")
    print(
        f"reading 16 frames of a clip: {1e3 * prepared.seconds_before:.1f} ms before, "
        f"{1e3 * prepared.seconds_after:.1f} ms after (median of {prepared.measured} clips)"
    )


@app.command
def env() -> None:
    """Say what was found on this machine, which paths will be taken on it, and why.

    For instance: actdet env
    """
    for what, finding in describe_environment():
        print(f"{what:18} {finding}")


@app.command
def demo(out: Path = Path("runs/demo"), clips: int | None = None, epochs: int | None = None) -> None:
    """Render clips, train on them, evaluate on clips of other people and places; leave a report in --out.

    For instance: actdet demo --out runs/demo

    Args:
        out: Folder for data, model, metrics.json, report.html and annotated videos.
        clips: Training clips; by default what gives a good detector on this kind of device.
        epochs: Passes over them; likewise.
    """
    started = time.monotonic()
    settings = demo_for(choose_device().type, clips, epochs)
    for name, config in (("train", settings.train_clips), ("test", settings.test_clips)):
        folder = out / "data" / name
        with tqdm(desc=f"render {name}", unit="clip") as bar:
            render_dataset(folder, config, progress=_total(bar))
    index = _index(out / "data" / "train", settings.model.class_names)
    with open_setup(index, settings.model, settings.config) as setup:
        _say(describe_setup(setup))
        trained = describe_training(setup, len(index.clips))
        _watch(train_run(setup, list(range(len(index.clips))), [], out, "demo"))
    with tqdm(desc="evaluate", unit="clip") as bar:
        metrics = evaluate_checkpoint(
            out / MODEL,
            out / "data" / "test",
            out,
            workers=1,
            progress=_total(bar),
            title="actdet demo",
            notes=[trained],
            log=out / "log.jsonl",
            started=started,
        )
    _print_metrics(metrics)
    print(f"{time.monotonic() - started:.0f} s; report: {out / 'report.html'}")


def main() -> None:
    """Entry point: exits 0 only when the work was done; 1 for what the user can mend; 130 or 143 when stopped."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        if is_torchelastic_launched() and os.environ["WORLD_SIZE"] != "1" and sys.argv[1:2] != ["train"]:
            raise ActdetError("of actdet's commands only train runs in several processes of torchrun")
        app.cli(
            prog="actdet",
            description="Set prediction for video action detection.",
            config=(OmitArgPrefixes, FlagCreatePairsOff),
        )
    except Stopped as stop:
        print(f"actdet: {stop}", file=sys.stderr)
        sys.exit(128 + _stop_signal)
    except ActdetError as error:
        print(f"actdet: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("actdet: interrupted", file=sys.stderr)
        sys.exit(128 + (_stop_signal or signal.SIGINT))
    except OSError as error:
        print(f"actdet: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


_stop_signal = 0


def _terminate(number: int, frame: FrameType | None) -> None:
    global _stop_signal
    _stop_signal = number
    raise KeyboardInterrupt


@contextmanager
def _deferred_signals() -> Iterator[Callable[[], bool]]:
    """Within: the first SIGINT or SIGTERM only makes the returned function true, a second one interrupts at once."""
    global _stop_signal

    def note(number: int, frame: FrameType | None) -> None:
        global _stop_signal
        if _stop_signal:
            raise KeyboardInterrupt
        _stop_signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: _stop_signal != 0
    except ActdetError:
        if is_torchelastic_launched():  # which sends it to the others when one has failed: they still say why
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(run: Generator[Any, bool | None, Any], *, quiet: bool = False) -> Any:
    """Drive a training to its end behind a progress bar; a signal makes it save its state and stop."""
    with tqdm(unit="step", smoothing=0.1, disable=quiet) as bar, _deferred_signals() as asked_to_stop:
        try:
            event = next(run)
            while True:
                name, progress = event if isinstance(event, tuple) else ("train", event)
                _show(bar, name, progress)
                event = run.send(asked_to_stop())
        except StopIteration as end:
            return end.value


def _show(bar: tqdm[Any], name: str, progress: Progress) -> None:
    if bar.disable:
        return
    if bar.desc != f"{name}: " or bar.total != progress.total_steps:
        bar.reset(progress.total_steps)
        bar.set_description(name)
        bar.initial = bar.n = progress.step - 1
    bar.update()
    if progress.record:
        bar.set_postfix(epoch=progress.epoch + 1, loss=f"{progress.record['loss']['total']:.3f}")


def _total(bar: tqdm[Any]) -> Callable[[int, int], None]:
    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return update


def _index(data: Path, class_names: tuple[str, ...], *, quiet: bool = False) -> ClipIndex:
    with tqdm(desc="read", unit="video", leave=False, disable=quiet) as bar:
        return load_index(data, class_names, progress=_total(bar))


def _say(lines: list[str]) -> None:
    for line in lines:
        print(line)


def _say_left_out(setup: Setup) -> None:
    for error in setup.loader.left_out.values():
        print(f"left out: {error}")


def _print_metrics(metrics: Metrics) -> None:
    _say(metrics.describe())

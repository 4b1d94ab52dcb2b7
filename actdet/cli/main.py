"""The command `actdet`: parses, calls, prints."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from tyro.conf import Positional

from actdet.bounds import check_bounds
from actdet.cli.parsing import Commands, UsageError

# Within this module every line and every progress bar may hold any name of a file or of a class.
from actdet.cli.terminal import print_line as print
from actdet.cli.terminal import tqdm
from actdet.data.classes import CLASS_NAMES, NO_ACTION
from actdet.data.index import BadFiles, ClipIndex, Survey, load_index, survey
from actdet.data.prepare import PrepareConfig, prepare_dataset
from actdet.data.split import hold_out
from actdet.errors import ActdetError, DataError, Stopped, shortage
from actdet.files import check_own, read_json, write_bytes, write_json
from actdet.models.detr.config import THRESHOLD, ModelConfig
from actdet.synthetic.rendered import RenderConfig, render_dataset
from actdet.training.config import TrainConfig
from actdet.video.decoding import probe

# PyTorch and all that needs it takes seconds to import, so each command imports what it runs when it runs.
if TYPE_CHECKING:
    from actdet.evaluation.metrics import Metrics
    from actdet.prediction.predictor import Predictor
    from actdet.prediction.results import Job
    from actdet.training.experiments import Setup
    from actdet.training.trainer import Progress, StoredRun

app = Commands("actdet", "Set prediction for video action detection.")


@app.command
def train(
    data: Positional[Path],
    /,
    out: Path = Path("runs/train"),
    model: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    val_share: float = 0.2,
    resume: bool = False,
    device: str = "auto",
) -> None:
    """Train a detector on the clips in DATA; evaluate it on those held out; write model and report to --out.

    For instance: actdet train data/mine --out runs/mine --epochs 30 --backbone-weights none
    On several GPUs: torchrun --nproc-per-node 2 -m actdet train data/mine --out runs/mine

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for the log, the checkpoints, the trained model and the report.
        val_share: Share of each class that is held out to evaluate on; 0 trains on everything. A clip with actions of
            several classes counts for the one of the lowest id.
        resume: Go on with the run in --out, which was stopped, with its settings; those that change no result, such as
            --workers, may be given anew.
        device: Where the network runs: auto (the first GPU where there is one), cpu, cuda or cuda:N.
    """
    check_bounds({"val_share": val_share})

    from actdet.device import choose_device
    from actdet.distributed import join_processes
    from actdet.training.experiments import describe_setup, find_clips, open_setup, train_run
    from actdet.training.trainer import MODEL, read_run

    stored = read_run(out) if resume else None
    given = _Given(model, config, None)
    if stored is not None or config.init is not None:
        given = _given_over(stored, config.init)
    model = given.model
    config = given.config
    with join_processes() as processes:
        if processes.count > 1 and device not in ("auto", "cpu"):
            raise ActdetError("device is auto or cpu in several processes: torchrun gives each its own GPU")
        place = choose_device(device)
        first = processes.rank == 0
        index = _index(data, model.class_names, config.bad_files, quiet=not first)
        model = replace(model, class_names=index.class_names)
        if stored is None or given.val_share is not None:
            train_ids, val_ids = hold_out(index, val_share, config.seed)
        else:
            train_ids, val_ids = find_clips(index, stored, out)
        with open_setup(index, model, config, processes, place) as setup:
            if first:
                _say(describe_setup(setup))
                _say_duration(setup, len(train_ids))

            def run(setup: Setup) -> Any:
                return train_run(setup, train_ids, val_ids, out, f"Training on {data.name}", resume=resume)

            evaluation = _watch(setup, run, quiet=not first)
    if not first:
        return
    _say_left_out(setup)
    print(f"model: {out / MODEL}")
    if evaluation is not None:
        _print_metrics(evaluation.metrics)
        print(f"report: {out / 'report.html'}")


class _Given(NamedTuple):
    """The settings of a training, where what was not typed is that of another one."""

    model: ModelConfig
    config: TrainConfig
    val_share: float | None


def _given_over(stored: StoredRun | None, init: str | None) -> _Given:
    """What was typed after `train`, over the settings of the run that goes on or of the detector to train on."""
    import tyro
    from tyro.conf import OmitArgPrefixes

    from actdet.models.checkpoints import read_about

    other_model = ModelConfig()
    other_config = TrainConfig()
    if stored is not None:
        other_model = stored.model
        other_config = stored.config
    elif init is not None:
        other_model = read_about(Path(init)).model

    def parse(
        data: Positional[Path],
        /,
        out: Path = Path(),
        model: ModelConfig = other_model,
        config: TrainConfig = other_config,
        val_share: float | None = None,
        resume: bool = False,
        device: str = "auto",
    ) -> _Given:
        return _Given(model, config, val_share)

    # Both forms of a flag are understood, whatever the setting is.
    return tyro.cli(parse, args=sys.argv[2:], config=(OmitArgPrefixes,))


@app.command(name="evaluate")
def evaluate_(
    checkpoint: Positional[Path],
    data: Positional[Path],
    /,
    out: Path = Path("runs/evaluate"),
    held_out: bool = False,
    workers: int = 1,
    device: str = "auto",
    videos: bool = True,
    bad_files: BadFiles = "stop",
) -> None:
    """Measure a trained detector on the annotated clips in DATA and write a report with pictures to --out.

    For instance: actdet evaluate runs/mine/model.safetensors data/other --out runs/other

    Args:
        checkpoint: The model.safetensors (or last.safetensors) of a run.
        data: Folder with videos/ and annotations/.
        out: Folder for metrics.json, report.html and annotated videos.
        held_out: Only the clips that the training run held out, when DATA is what it was trained on.
        workers: Processes that decode.
        device: Where the network runs: auto (the first GPU where there is one), cpu, cuda or cuda:N.
        videos: Whether to write annotated videos, which take most of the time; the report has pictures without, too.
        bad_files: What a bad file does: it stops the command, or its clip is left out and listed.
    """
    check_bounds({"workers": workers})

    from actdet.device import choose_device
    from actdet.training.experiments import evaluate_checkpoint

    place = choose_device(device)
    with tqdm(desc="evaluate", unit="clip") as bar:

        def say(line: str) -> None:
            with bar.external_write_mode():
                print(line)

        metrics = evaluate_checkpoint(
            checkpoint,
            data,
            out,
            held_out=held_out,
            workers=workers,
            device=place,
            with_videos=videos,
            bad_files=bad_files,
            say=say,
            progress=_total(bar),
            drawing=_anew(bar, "draw", "frame"),
        )
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
    device: str = "auto",
) -> None:
    """Find actions in videos: a line for each window as it is found, and results in --out.

    Those are NAME.json, a timeline NAME.png and an annotated NAME.mp4.

    For instance: actdet predict runs/mine/model.safetensors door.mp4 yard.mkv recordings --out found

    Args:
        checkpoint: The model.safetensors of a run.
        videos: One or more video files, or folders of them.
        out: Folder for the results.
        threshold: The least probability at which an action counts.
        annotate: Whether to write the annotated videos.
        device: Where the network runs: auto (the first GPU where there is one), cpu, cuda or cuda:N.
    """
    check_bounds({"threshold": threshold})

    from actdet.device import choose_device
    from actdet.prediction.predictor import Predictor
    from actdet.prediction.results import plan_jobs

    if not videos:
        raise ActdetError("no video given: actdet predict CHECKPOINT VIDEO [VIDEO ...]")
    place = choose_device(device)
    jobs = plan_jobs(videos, out, annotate=annotate)
    predictor = Predictor(checkpoint, threshold=threshold, device=place)
    failed = 0
    for job in jobs:
        try:
            _predict(predictor, job, annotate=annotate)
        except DataError as error:
            if isinstance(error.__cause__, OSError):
                raise  # where one result cannot be written the others cannot, either
            failed += 1
            print(f"actdet: {error}", file=sys.stderr)
    if any(job.json.exists() for job in jobs):
        print(f"results: {out}")
    if failed:
        raise ActdetError(f"{failed} of {len(jobs)} videos could not be read whole")


def _predict(predictor: Predictor, job: Job, *, annotate: bool) -> None:
    """Look at a video, write what is found; raises DataError, of a damaged video when all else is done."""
    from actdet.pictures import timeline
    from actdet.prediction.predictor import Window, annotate_prediction, damage_error
    from actdet.prediction.results import Result, check_ours, describe

    with tqdm(desc=job.name, unit="window") as bar:
        video = probe(job.video)
        bar.total = len(predictor.spans(video))
        # Hours may have passed since this was checked for all videos.
        check_ours(job, annotate=annotate)
        with Result(job, video) as result, closing(predictor.findings(video)) as findings:
            for finding in findings:
                result.add(finding)
                with bar.external_write_mode():
                    print(describe(job, finding), flush=True)
                bar.update(isinstance(finding, Window))

    damage = result.damage
    if result.windows:
        picture = timeline(result.windows, video.seconds, predictor.class_names)
        write_bytes(job.timeline, picture)
        result.timeline = job.timeline.name
        result.write()
    if annotate and result.windows:
        with tqdm(desc=f"draw {job.name}", unit="frame") as bar:
            lost = annotate_prediction(
                video, result.windows, predictor.class_names, job.annotated, gaps=result.gaps, progress=_total(bar)
            )
        damage = damage or lost
        result.annotated = job.annotated.name
        result.write()
    if damage:
        raise damage_error(video, damage)


@app.command
def crossval(
    data: Positional[Path],
    /,
    out: Path = Path("runs/crossval"),
    folds: int = 5,
    model: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    device: str = "auto",
) -> None:
    """Cross-validate: train once for each stratified fold of DATA; print mean and standard deviation.

    For instance: actdet crossval data/mine --folds 5 --backbone-weights none. Run again to go on after a stop.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for a run for each fold, and crossval.json.
        folds: How many parts DATA is cut into.
        device: Where the network runs: auto (the first GPU where there is one), cpu, cuda or cuda:N.
    """
    check_bounds({"folds": folds})

    from actdet.device import choose_device
    from actdet.evaluation.metrics import format_figure
    from actdet.training.experiments import cross_validate, describe_setup, open_setup
    from actdet.training.trainer import FIGURES

    place = choose_device(device)
    index = _index(data, model.class_names, config.bad_files)
    model = replace(model, class_names=index.class_names)
    with open_setup(index, model, config, device=place, command="crossval") as setup:
        _say(describe_setup(setup))
        _say_duration(setup, len(index.clips))
        result = _watch(setup, lambda setup: cross_validate(setup, folds, out))
    _say_left_out(setup)
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
    device: str = "auto",
) -> None:
    """Train with parts of the loss left out, as in table 3 of the technical report, and print both tables.

    For instance: actdet ablate data/mine --backbone-weights none. Run again to go on after a stop.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for a run for each row, and ablation.json.
        val_share: Share of each class that is held out to evaluate on.
        device: Where the network runs: auto (the first GPU where there is one), cpu, cuda or cuda:N.
    """
    check_bounds({"val_share": val_share})

    from actdet.device import choose_device
    from actdet.evaluation.metrics import format_figure
    from actdet.training.experiments import ablate, describe_setup, open_setup
    from actdet.training.trainer import FIGURES

    place = choose_device(device)
    index = _index(data, model.class_names, config.bad_files)
    model = replace(model, class_names=index.class_names)
    with open_setup(index, model, config, device=place, command="ablate") as setup:
        _say(describe_setup(setup))
        _say_duration(setup, len(index.clips))
        result = _watch(setup, lambda setup: ablate(setup, val_share, out))
    _say_left_out(setup)
    print(f"{'':22}{'video accuracy':>18}{'detection @0.5':>18}{'mean IoU':>18}")
    print(f"{'':22}" + f"{'here (report)':>18}" * 3)
    for name, row in result["rows"].items():
        cells = (f"{format_figure(row['measured'][f])} ({row['reported'][f]:.3f})" for f in FIGURES[:3])
        print(f"{name:22}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"details: {out / 'ablation.json'}")


@app.command
def render(out: Positional[Path], /, config: RenderConfig = RenderConfig()) -> None:
    """Write the embedded data set: rendered people who fight, collapse, or do something that looks alike.

    For instance: actdet render data/rendered --clips 300 --seed 7. Run again to go on after a stop.

    Args:
        out: Folder to make, with videos/ and annotations/.
    """
    with tqdm(desc="render", unit="clip") as bar:
        render_dataset(out, config, progress=_total(bar))
    print(f"data set: {out}")


@app.command
def check(data: Positional[Path], /, class_names: tuple[str, ...] = (), decode: bool = True) -> None:
    """Validate a data set: list everything that is wrong with its videos and annotations, and count its actions.

    For instance: actdet check data/mine

    Args:
        data: Folder with videos/ and annotations/.
        class_names: Names of the action classes, in the order of their ids in the annotation files; by default those in
            DATA/classes.txt, a name a line, or else fight and collapse.
        decode: Whether to decode every frame, too, and not only read the containers.
    """
    with tqdm(desc="check", unit="video") as bar:
        found = survey(data, class_names or None, decode=decode, progress=_total(bar))
    for problem in found.problems:
        print(problem)
    _say_notes(found.notes)
    if found.problems:
        raise ActdetError(f"{len(found.problems)} problem{'s' * (len(found.problems) > 1)} in {data}")
    print(f"{data}: {len(found.clips)} clips ({_counts(found)}), nothing wrong")


def _counts(found: Survey) -> str:
    """How many actions of each class there are, and how many clips without any."""
    parts = []
    for label, name in enumerate(found.class_names):
        each = [sum(annotation.label == label for annotation in clip.annotations) for clip in found.clips]
        clips = sum(count > 0 for count in each)
        parts.append(f"{sum(each)} {name}" + f" in {clips} clip{'s' * (clips > 1)}" * (sum(each) > clips))
    without = [clip.annotated for clip in found.clips if not clip.annotations]
    bare = f": {sum(without)} with an empty file, {without.count(False)} with none" * (False in without)
    return ", ".join([*parts, f"{len(without)} {NO_ACTION}{bare}"])


@app.command
def prepare(
    data: Positional[Path],
    out: Positional[Path],
    /,
    class_names: tuple[str, ...] = (),
    bad_files: BadFiles = "stop",
    config: PrepareConfig = PrepareConfig(),
) -> None:
    """Re-encode the data set in DATA to OUT, small and with many keyframes, so that its frames are quick to read.

    For instance: actdet prepare data/mine data/mine_256. Run again to go on after a stop.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for the same clips, annotations in pixels of their new size, and prepared.json with what it saved.
        class_names: Names of the action classes, in the order of their ids in the annotation files; by default those in
            DATA/classes.txt, a name a line, or else fight and collapse. OUT gets such a file.
        bad_files: What a bad file does: it stops the command, or its clip is left out and listed.
    """
    index = _index(data, class_names, bad_files)
    check_own([out / "prepared.json"], lambda path: "bytes_before" in (read_json(path) or ()))
    with tqdm(desc="prepare", unit="clip") as bar:
        prepared = prepare_dataset(index, out, config, bad_files=bad_files, progress=_total(bar))
    left_out = list(map(str, prepared.left_out))
    figures = {name: value for name, value in vars(prepared).items() if name != "index"}
    write_json(out / "prepared.json", figures | {"left_out": left_out} | asdict(config))
    for problem in left_out:
        print(f"left out: {problem}")
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
    from actdet.cli.environment import describe_environment

    for what, finding in describe_environment():
        print(f"{what:18} {finding}")


@app.command
def demo(
    out: Path = Path("runs/demo"), clips: int | None = None, epochs: int | None = None, device: str = "auto"
) -> None:
    """Render clips, train on them, evaluate on clips of other people and places; leave a report in --out.

    For instance: actdet demo --out runs/demo. Run again to go on after a stop.

    Args:
        out: Folder for data, model, metrics.json, report.html and annotated videos.
        clips: Training clips; by default what gives a good detector on this kind of device.
        epochs: Passes over them; likewise.
        device: Where the network runs: auto (the first GPU where there is one), cpu, cuda or cuda:N.
    """
    check_bounds({"clips": clips, "epochs": epochs})
    started = time.monotonic()

    from actdet.device import choose_device, choose_precision
    from actdet.synthetic.demo import demo_for
    from actdet.training.duration import in_words, is_short, seconds_per_clip, training_seconds
    from actdet.training.experiments import (
        describe_setup,
        describe_training,
        evaluate_checkpoint,
        open_setup,
        train_run,
    )
    from actdet.training.trainer import LAST, MODEL

    place = choose_device(device)
    settings = demo_for(place.type, clips, epochs)
    model = settings.model
    number = settings.train_clips.clips
    if place.type == "cpu" and not is_short(model, number) and not (out / MODEL).exists():
        dtype, _ = choose_precision(settings.config.precision, place)
        epoch_seconds = seconds_per_clip(model, settings.config, dtype) * number
        print(f"training takes about {in_words(training_seconds(settings.config, epoch_seconds))} here")
    for name, config in (("train", settings.train_clips), ("test", settings.test_clips)):
        folder = out / "data" / name
        with tqdm(desc=f"render {name}", unit="clip") as bar:
            render_dataset(folder, config, progress=_total(bar))
    index = _index(out / "data" / "train", settings.model.class_names)
    with open_setup(index, settings.model, settings.config, device=place, command="demo") as setup:
        _say(describe_setup(setup))
        trained = describe_training(setup, len(index.clips))
        begun = (out / MODEL).exists() or (out / LAST).exists()
        every = list(range(len(index.clips)))
        _watch(setup, lambda setup: train_run(setup, every, [], out, "demo", resume=begun))
    with tqdm(desc="evaluate", unit="clip") as bar:
        metrics = evaluate_checkpoint(
            out / MODEL,
            out / "data" / "test",
            out,
            workers=1,
            device=place,
            progress=_total(bar),
            drawing=_anew(bar, "draw", "frame"),
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
        if _launched_by_torchrun() and os.environ["WORLD_SIZE"] != "1" and sys.argv[1:2] != ["train"]:
            raise ActdetError("of actdet's commands only train runs in several processes of torchrun")
        run = app.parse(sys.argv[1:])
        run()
    except UsageError as error:
        print(f"actdet: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(f"actdet: {stop}", file=sys.stderr)
        sys.exit(128 + _stop_signal)
    except ActdetError as error:
        print(f"actdet: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("actdet: interrupted", file=sys.stderr)
        sys.exit(128 + (_stop_signal or signal.SIGINT))
    except Exception as error:
        if (problem := shortage(error)) is not None:
            print(f"actdet: {problem}", file=sys.stderr)
        elif isinstance(error, OSError):
            print(f"actdet: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        else:
            raise
        sys.exit(1)


def _launched_by_torchrun() -> bool:
    """What torch.distributed.is_torchelastic_launched says, without PyTorch."""
    return "TORCHELASTIC_RUN_ID" in os.environ


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
        if _launched_by_torchrun():  # which sends it to the others when one has failed: they still say why
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(setup: Setup, begin: Callable[[Setup], Generator[Any, bool | None, Any]], *, quiet: bool = False) -> Any:
    """Drive a training, up to its report, behind a progress bar; a signal makes it save its state and stop."""
    with tqdm(unit="step", smoothing=0.1, disable=quiet) as bar, _deferred_signals() as asked_to_stop:
        draw = _anew(bar, "draw", "frame")

        # By then the detector is saved, and there is no state to save.
        def drawing(done: int, total: int) -> None:
            if asked_to_stop():
                raise Stopped(f"stopped before its report was written: run {setup.again} to go on")
            draw(done, total)

        run = begin(replace(setup, drawing=drawing))
        try:
            event = next(run)
            while True:
                name, progress = event if isinstance(event, tuple) else ("train", event)
                _show(bar, name, progress)
                event = run.send(asked_to_stop())
        except StopIteration as end:
            return end.value


def _show(bar: tqdm, name: str, progress: Progress) -> None:
    if bar.disable:
        return
    if bar.desc != f"{name}: " or bar.total != progress.total_steps:
        bar.unit = "step"
        bar.reset(progress.total_steps)
        bar.set_description(name)
        bar.initial = bar.n = progress.step - 1
    bar.update()
    if progress.record:
        bar.set_postfix(epoch=progress.epoch + 1, loss=f"{progress.record['loss']['total']:.3f}")


def _total(bar: tqdm) -> Callable[[int, int], None]:
    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return update


def _anew(bar: tqdm, name: str, unit: str) -> Callable[[int, int], None]:
    """As `_total`, for another kind of work: when it begins the bar does, too."""

    def update(done: int, total: int) -> None:
        if bar.desc != f"{name}: ":
            bar.unit = unit
            bar.set_description(name, refresh=False)
            bar.set_postfix(refresh=False)
            bar.reset(total)
        bar.update(done - bar.n)

    return update


def _index(data: Path, class_names: tuple[str, ...], bad_files: BadFiles = "stop", *, quiet: bool = False) -> ClipIndex:
    """The index of `data`, with a line for each note on it. class_names: () or the default's own object for none."""
    asked = None if class_names is CLASS_NAMES else class_names or None
    with tqdm(desc="read", unit="video", leave=False, disable=quiet) as bar:
        index = load_index(data, asked, bad_files=bad_files, progress=_total(bar))
    if not quiet:
        _say_notes(index.notes)
    return index


def _say(lines: list[str]) -> None:
    for line in lines:
        print(line)


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def _say_duration(setup: Setup, clips: int) -> None:
    """Say how long it will take on a CPU, where an epoch over so many clips takes more than a minute."""
    from actdet.device import choose_precision, memory_for
    from actdet.training.duration import describe_duration, is_short, seconds_per_clip

    if setup.device.type != "cpu" or setup.processes.count > 1 or is_short(setup.model, clips):
        return
    dtype, _ = choose_precision(setup.config.precision, setup.device)
    with memory_for("a step of training"):
        epoch_seconds = clips * seconds_per_clip(setup.model, setup.config, dtype)
    if line := describe_duration(setup.model, setup.config, epoch_seconds):
        print(line)


def _say_left_out(setup: Setup) -> None:
    for error in setup.loader.all_left_out:
        print(f"left out: {error}")


def _print_metrics(metrics: Metrics) -> None:
    _say(metrics.describe())

"""One training run with its report, in a folder of its own.

A run is finished when its report is there. One that was interrupted goes on from the state in its folder.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from actdet.data.clips import ClipIndex
from actdet.device import describe_device, is_out_of_memory, prepare_device
from actdet.distributed import is_lost_process
from actdet.errors import ActdetError, DataError, ReadError, Stopped
from actdet.evaluation.clips import Evaluation
from actdet.evaluation.report import write_report
from actdet.files import check_own
from actdet.models.config import FamilyConfig
from actdet.run_folder import check_apart, check_replaceable, is_reported, sole_writers
from actdet.run_log import LOG, is_log
from actdet.training.config import TrainConfig
from actdet.training.cost import largest_batch
from actdet.training.run_state import BEST, LAST, MODEL, StoredRun
from actdet.training.session import Session
from actdet.training.trainer import Progress, Trainer

# Yields after every step; sending True asks it to save and stop. Returns the evaluation, if clips were held out.
Run = Generator[Progress, bool | None, Evaluation | None]


def train_run(
    session: Session,
    train_ids: Sequence[int],
    val_ids: Sequence[int],
    out: Path,
    title: str,
    *,
    resume: bool = False,
) -> Run:
    """Train a detector and write it, evaluate it and write a report, all into the folder `out`.

    Args:
        session: The plan, and the clips.
        train_ids: The clips to train on, by their numbers in the index.
        val_ids: The clips to evaluate on, likewise; if there are none, there is no report.
        out: The run's folder.
        title: Of the report.
        resume: Whether to go on from the state in `out`. If the detector is there already, only what is missing is
            made.

    Yields:
        The progress, after every step. Send True to stop there, with the state saved.

    Returns:
        The evaluation, if clips were held out.

    Raises:
        ActdetError: If the folder is among the clips, another process writes to it, it holds another run that is not to
            be resumed, or files would be replaced that this program did not write.
        DataError: If a clip cannot be read and bad files are not skipped; the state is saved.
        Stopped: If it was asked to stop; the state is saved.
    """
    index = session.loader.index
    check_apart(index.root, out)
    with sole_writers(out, session.plan.processes):
        if resume:
            _check_resumable(session, val_ids, out)
        else:
            _check_unused(session, val_ids, out)
        if val_ids:
            check_replaceable(out, [index.clips[i].name for i in val_ids])

        started = time.monotonic()
        evaluation = yield from _train(session, train_ids, val_ids, out, resume=resume)
        if evaluation is not None and session.plan.processes.rank == 0:
            write_report(
                out,
                title,
                evaluation,
                index,
                started=started,
                notes=[
                    describe_training(session.plan.model, session.plan.config, len(train_ids)),
                    describe_device(session.plan.device, session.loader.reader.name),
                    *(f"Left out: {error}." for error in session.loader.all_left_out),
                ],
                settings={"family": session.plan.model.family}
                | asdict(session.plan.model)
                | asdict(session.plan.config),
                log=out / LOG,
                progress=session.drawing,
            )
    return evaluation


def find_clips(index: ClipIndex, stored: StoredRun, out: Path) -> tuple[list[int], list[int]]:
    """Find the clips of a run in its data set.

    Args:
        index: The data set.
        stored: What the state of the run says.
        out: The run's folder, for messages.

    Returns:
        The training and the held-out clips, by their numbers in the index.

    Raises:
        DataError: If the data set has lost or gained clips since the run began.
    """
    numbers = {clip.name: number for number, clip in enumerate(index.clips)}
    before = {*stored.training_clips, *stored.held_out_clips, *stored.unused_clips}
    for names, change in ((before - numbers.keys(), "no longer holds"), (numbers.keys() - before, "now also holds")):
        if names:
            raise DataError(index.root, f"{change} {min(names)}: not the data set that the run in {out} began with")
    training = [numbers[name] for name in stored.training_clips]
    held_out = [numbers[name] for name in stored.held_out_clips]
    return training, held_out


def describe_training(model: FamilyConfig, config: TrainConfig, train_clips: int) -> str:
    """Say in one line of a report on what and how a detector was trained.

    Args:
        model: Its settings.
        config: The settings of its training.
        train_clips: How many clips it was trained on.
    """
    start = f"trained on from {config.init}" if config.init else f"backbone weights: {config.backbone_weights}"
    auxiliary = f", auxiliary loss of weight {config.auxiliary_weight:g}" if config.auxiliary_weight else ""

    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    partial = []
    if config.small_epochs:
        partial.append(f"the first {config.small_epochs} of half the pixels")
    if config.shallow_epochs:
        partial.append(f"the first {config.shallow_epochs} of half the backbone's blocks")
    if partial:
        epochs += f" ({', '.join(partial)})"
    return (
        f"Trained on {train_clips} clips for {epochs}{auxiliary}, batches of {config.batch_size}, "
        f"{model.frames} frames of {model.image_size} x {model.image_size}; {start}."
    )


def _check_resumable(session: Session, val_ids: Sequence[int], out: Path) -> None:
    """Raise DataError if `train` is to resume a run that is finished. Other commands look for their reports first."""
    is_finished = (out / MODEL).exists() and (not val_ids or is_reported(out))
    if session.command == "train" and is_finished:
        raise DataError(out, f"nothing to resume: this run is finished, its result is {MODEL}")


def _check_unused(session: Session, val_ids: Sequence[int], out: Path) -> None:
    """Raise ActdetError if a new run would replace files in `out`."""
    for name in (MODEL, LAST, BEST):
        if (out / name).exists():
            # The detector of the best evaluation is no state to go on from.
            resumable = session.command == "train" and name != BEST
            advice = "continue it with --resume, or " if resumable else ""
            raise ActdetError(f"{out} holds a run already ({name}): {advice}give another --out")
    if val_ids:
        for name in ("report.html", "metrics.json"):
            if (out / name).exists():
                raise ActdetError(f"{out} holds a report already ({name}): give another --out")
    check_own([out / LOG], is_log)


def _train(session: Session, train_ids: Sequence[int], val_ids: Sequence[int], out: Path, *, resume: bool) -> Run:
    """Train and evaluate, and say in one line what went wrong, and what can be done about it."""
    processes = session.plan.processes
    trainer = None
    try:
        prepare_device(session.plan.device)
        trainer = Trainer(session.plan, session.loader, list(train_ids), list(val_ids), out, to_restore=resume)
        if resume:
            trainer.restore()
        elif processes.rank == 0:
            # A run that ended before its first checkpoint has left its log.
            (out / LOG).unlink(missing_ok=True)

        for progress in trainer.steps():
            stop = yield progress
            # All processes must stop at the same step.
            if processes.any(bool(stop)):
                trainer.save()
                raise Stopped(
                    f"stopped at step {progress.step_number} of {progress.total_steps}; "
                    f"the state is in {out / LAST}: run {session.again} to go on"
                )
        evaluation = trainer.finish()
        trainer.share_left_out()
        return evaluation

    except (DataError, ReadError) as error:
        videos = {clip.video.path for clip in session.loader.index.clips}
        of_data = isinstance(error, ReadError) or error.path in videos
        # Several processes would have to save together, which this one cannot ask of the others.
        if trainer is None or not of_data or processes.count > 1:
            raise
        raise ActdetError(_unreadable(session, error, trainer.keep())) from error

    except torch.OutOfMemoryError as error:
        raise ActdetError(_too_large_for_gpu(session)) from error

    except RuntimeError as error:
        if is_out_of_memory(error):
            raise ActdetError(_too_large_for_cpu(session)) from error
        if not is_lost_process(error):
            raise
        advice = ""
        if (out / LAST).exists():
            advice = f"; the state is in {out / LAST}: run {session.again} to go on"
        raise ActdetError(f"another process of this job has failed{advice}") from error


def _unreadable(session: Session, error: ActdetError, kept: Path) -> str:
    """What to do about a clip that could not be read; the state is in `kept`."""
    remedy = "Fix or remove the file"
    if isinstance(error, DataError) and session.has_options:
        remedy += ", or pass --bad-files skip"
    return f"{error}. {remedy}, then rerun {session.again}. State saved in {kept}"


def _too_large_for_cpu(session: Session) -> str:
    """What to do if the CPU's memory does not suffice."""
    what = f"batches of {session.plan.config.batch_size} clips of {_shape(session.plan.model)}"
    advice = "close other programs that use it"
    if session.has_options:
        advice = "use a smaller --batch-size, --frames or --image-size"
    return f"the CPU has too little free memory for {what}: {advice}"


def _too_large_for_gpu(session: Session) -> str:
    """What to do if a GPU's memory does not suffice."""
    plan = session.plan
    memory = torch.cuda.get_device_properties(plan.device).total_memory
    problem = (
        f"{memory / 2**30:.0f} GiB are too little for batches of {plan.config.batch_size} clips of {_shape(plan.model)}"
    )
    if not session.has_options:
        return f"{problem}: close other programs that use them, or set CUDA_VISIBLE_DEVICES= to run on the CPU"

    cached = session.loader.cache.pool.nbytes if session.loader.cache else 0
    batch = largest_batch(plan.model, plan.dtype.value, memory - cached, checkpointing=False)
    checkpointed = largest_batch(plan.model, plan.dtype.value, memory - cached, checkpointing=True)
    clips = f"; decoded clips take {cached / 2**30:.1f} GiB, none with --cache none" if cached else ""
    return f"{problem}: about {batch} a GPU are possible, {checkpointed} with --checkpointing{clips}"


def _shape(model: FamilyConfig) -> str:
    return f"{model.frames} x {model.image_size} x {model.image_size}"

"""Evaluates the detector in a checkpoint on a data set, and writes the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from actdet.data.clips import ClipIndex
from actdet.data.config import ClipSize
from actdet.data.division import read_list
from actdet.data.index import BadFiles, load_index
from actdet.data.loader import ClipLoader
from actdet.device import choose_precision, describe_device, lay_channels_last, memory_for
from actdet.errors import ActdetError, DataError
from actdet.evaluation.clips import BATCH_SIZE, Evaluation, evaluate
from actdet.evaluation.metrics import Metrics
from actdet.evaluation.report import write_report
from actdet.models.checkpoints import CheckpointInfo, load_model
from actdet.models.family import FamilyNetwork
from actdet.run_folder import check_apart, check_replaceable, sole_writers
from actdet.video.readers import choose_reader, open_reader


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    out: Path | None,
    device: torch.device,
    *,
    held_out: bool = False,
    list_file: Path | None = None,
    workers: int = 1,
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
    """Measure the detector in a checkpoint on a data set and write the report, if there is a folder for it.

    The clips are decoded by the reader that the detector was trained with. If that reader cannot run here, PyAV decodes
    them, and the report says so.

    Args:
        checkpoint: The file of a trained detector.
        data: The data set's folder.
        out: The folder of the report; None for no report.
        device: Where the network runs.
        held_out: Whether to evaluate only the clips that the training run held out.
        list_file: A list of the clips to evaluate, one name a line; by default all.
        workers: Processes that decode.
        bad_files: `skip` leaves out clips that cannot be read.
        say: Called with a line for each note on the data and each clip that is left out.
        title: Of the report.
        notes: Lines for the report.
        log: The training's log.jsonl, for its curve.
        started: The time, by `time.monotonic()`, from which the report's seconds count; by default now.
        with_videos: Whether the report has annotated videos.
        progress: Called with (clips done, clips in all).
        drawing: Called, after that, with (frames drawn for the report, frames in all).

    Returns:
        The figures.

    Raises:
        ActdetError: If both `held_out` and `list_file` are given, something cannot be read, `out` is among the clips,
            another process writes to it, or files would be replaced that this program did not write.
    """
    if out is not None:
        check_apart(data, out)
    if held_out and list_file is not None:
        raise ActdetError("--held-out and --list both say which clips to evaluate: give one of them")
    if workers < 0:
        raise ActdetError(f"workers must be 0 or more, got {workers}")
    started = time.monotonic() if started is None else started

    detector, info = load_model(checkpoint, device)
    lay_channels_last(detector)
    index = load_index(data, info.model.class_names, window=info.window, bad_files=bad_files)
    for line in index.notes:
        say(f"note: {line}")
    ids = list(range(len(index.clips)))
    if list_file is not None:
        ids = read_list(list_file, index)
    elif held_out:
        ids = [i for i in ids if index.clips[i].name in info.held_out]
    if not ids:
        raise DataError(data, f"holds none of the {len(info.held_out)} clips that {checkpoint} held out in training")

    if out is None:
        evaluation, _ = _evaluate(detector, info, index, ids, device, workers, bad_files, say, progress)
        return evaluation.metrics

    with sole_writers(out):
        check_replaceable(out, [index.clips[i].name for i in ids])
        evaluation, described = _evaluate(detector, info, index, ids, device, workers, bad_files, say, progress)
        write_report(
            out,
            title or f"{checkpoint} on {data}",
            evaluation,
            index,
            started=started,
            notes=[*notes, *described],
            settings={"family": info.family} | asdict(info.model) | asdict(info.loss),
            log=log,
            with_videos=with_videos,
            progress=drawing,
        )
    return evaluation.metrics


def _evaluate(
    detector: FamilyNetwork,
    info: CheckpointInfo,
    index: ClipIndex,
    ids: list[int],
    device: torch.device,
    workers: int,
    bad_files: BadFiles,
    say: Callable[[str], object],
    progress: Callable[[int, int], None] | None,
) -> tuple[Evaluation, list[str]]:
    """Run the detector on the clips `ids`, and describe for the report where and how that was done."""
    reader_name, note = _recorded_reader(info.reader, device, index)
    dtype, _ = choose_precision("auto", device)
    side = info.model.image_size
    size = ClipSize(info.model.frames, side)
    memory = memory_for(f"{BATCH_SIZE} clips of {size.frames} x {side} x {side}")
    with memory, open_reader(reader_name, (side, side), workers=workers) as reader:
        loader = ClipLoader(index, size, reader, device, bad_files=bad_files, truth=detector.truth)
        evaluation = evaluate(detector, loader, ids, info.loss, dtype, progress=progress)

    left_out = list(map(str, loader.all_left_out))
    for line in left_out:
        say(f"left out: {line}")
    lines = [describe_device(device, reader_name), *note, *(f"Left out: {line}." for line in left_out)]

    cuts = sum(evaluation.cuts)
    if cuts:
        clips = f"{cuts} of {len(evaluation.cuts)} clips"
        say(f"note: {clips} {'has' if cuts == 1 else 'have'} a cut to another scene: scores are not reliable there")
        lines.append(f"Clips with a cut to another scene, where scores are not reliable: {cuts}.")
    return evaluation, lines


def _recorded_reader(recorded: str, device: torch.device, index: ClipIndex) -> tuple[str, list[str]]:
    """Choose the reader that the detector was trained with, if it can run here, or else PyAV with a note on that."""
    name = recorded.partition("-")[0]
    try:
        reader, _ = choose_reader(name, device, [clip.video for clip in index.clips])
    except ActdetError as error:
        return "pyav", [f"Decoded by pyav, not by {recorded} as in training ({error}): colors differ slightly."]
    return reader, []

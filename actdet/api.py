"""Training and evaluation as functions for scripts and notebooks: `from actdet import train, evaluate`.

They do what the commands `actdet train` and `actdet evaluate` do, but print nothing. Like the commands they decode in
spawned processes, which import the script again: with `workers` above 0 (the default is 1) a script has to call them
under `if __name__ == "__main__":`, or else every process would begin the same work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from actdet.bounds import check_bounds
from actdet.data.classes import CLASS_NAMES
from actdet.data.clips import ClipIndex
from actdet.data.division import divide
from actdet.data.index import BadFiles, load_index
from actdet.device import choose_device
from actdet.evaluation.checkpoint import evaluate_checkpoint
from actdet.evaluation.clips import Evaluation
from actdet.evaluation.metrics import Metrics
from actdet.models import checkpoints
from actdet.models.checkpoints import CheckpointInfo
from actdet.models.config import FamilyConfig
from actdet.models.detr.config import ModelConfig
from actdet.models.family import FamilyNetwork
from actdet.training.config import TrainConfig
from actdet.training.plan import make_plan
from actdet.training.run import train_run
from actdet.training.session import open_session

AnyPath = str | os.PathLike[str]
Progress = Callable[[int, int], None]


def load_dataset(folder: AnyPath, class_names: Sequence[str] | None = None) -> ClipIndex:
    """Read what a data set holds, and check it.

        for clip in load_dataset("data/mine").clips:
            print(clip.name, clip.video.seconds, clip.annotations)

    Args:
        folder: Folder with videos/ and annotations/, and perhaps classes.txt.
        class_names: Names of the classes, in the order of their ids; by default those in classes.txt, or else fight
            and collapse.

    Returns:
        The index of its clips.

    Raises:
        DataError: For the first problem. `actdet check` lists all problems.
    """
    return load_index(folder, class_names)


def load_model(path: AnyPath, device: torch.device | str = "cpu") -> tuple[FamilyNetwork, CheckpointInfo]:
    """Load the network of a checkpoint, in evaluation mode, and what the checkpoint says about it.

        detector, info = load_model("runs/mine/model.safetensors")
        found = detector.detections(detector(clips).final(), info.loss).actions

    `Predictor` does all of this for video files.

    Args:
        path: The model.safetensors (or last.safetensors) of a run.
        device: Where the network is to be.

    Raises:
        DataError: If the file is not a whole actdet checkpoint.
    """
    return checkpoints.load_model(Path(path), device)


def train(
    data: AnyPath,
    out: AnyPath,
    *,
    model: FamilyConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    val_share: float | None = None,
    groups: AnyPath | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation | None:
    """Train a detector, evaluate it on clips that are held out, and write the detector and a report.

        evaluation = train("data/mine", "runs/mine", config=TrainConfig(epochs=30, backbone_weights="none"))
        print(evaluation.metrics.video_accuracy)

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for the log, the checkpoints, model.safetensors and the report.
        model: Shape of the detector, which names its family: `ModelConfig` is that of the family detr. Class names
            other than the default must be those of the data set; by default they are taken from it. With `config.init`,
            it must be the shape of that detector: `load_model(path)[1].model`.
        config: Settings of the training.
        val_share: Share of each class that is held out for the evaluation; 0 trains on all clips. By default 0.2; or if
            `data` has the lists train.txt and test.txt, the clips in test.txt are held out.
        groups: A file with a line NAME GROUP for each clip. Clips of one group are never on both sides. By default the
            groups.txt in `data`, if there is one.
        resume: Continue the interrupted run in `out`, with the same data and settings, and the same groups and lists.
        device: Where the network runs: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N.
        progress: Called with (steps done, steps in all) after each step.

    Returns:
        The evaluation; None if no clips were held out.

    Raises:
        SettingError: If a setting has a value that it cannot have; it is a ValueError.
        DataError: If a file of the data set cannot be used and `config.bad_files` is "stop".
        ActdetError: If the settings cannot be had on this machine, or `out` holds another run or anybody else's files.
    """
    check_bounds({"val_share": val_share})
    place = choose_device(device)
    asked = None if model.class_names == CLASS_NAMES else model.class_names
    index = load_index(data, asked, window=config.window, bad_files=config.bad_files)
    model = replace(model, class_names=index.class_names)
    ((train_ids, val_ids),) = divide(index, val_share, config.seed, groups).splits

    plan = make_plan(index, model, config, place)
    with open_session(plan, index) as session:
        title = f"Training on {index.root.name}"
        run = train_run(session, train_ids, val_ids, Path(out), title, resume=resume)
        while True:
            try:
                step = next(run)
            except StopIteration as end:
                return end.value
            if progress is not None:
                progress(step.step_number, step.total_steps)


def evaluate(
    checkpoint: AnyPath,
    data: AnyPath,
    out: AnyPath | None = None,
    *,
    held_out: bool = False,
    list_file: AnyPath | None = None,
    workers: int = 1,
    device: str = "auto",
    videos: bool = True,
    bad_files: BadFiles = "stop",
    progress: Progress | None = None,
) -> Metrics:
    """Measure a trained detector on annotated clips, and write a report if there is a folder for it.

        metrics = evaluate("runs/mine/model.safetensors", "data/other")
        print(metrics.video_accuracy, metrics.average_precision)

    Args:
        checkpoint: The model.safetensors (or last.safetensors) of a run.
        data: Folder with videos/ and annotations/.
        out: Folder for metrics.json, report.html and annotated videos; by default no file is written.
        held_out: Use only the clips that the training held out, if `data` is what it was trained on.
        list_file: Use only the clips in this file, which has a name on each line, such as test.txt.
        workers: How many processes decode.
        device: Where the network runs: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N.
        videos: Whether the report has annotated videos, which take most of the time.
        bad_files: What a bad file does: "stop" raises an error, "skip" leaves out the clip.
        progress: Called with (clips done, clips in all).

    Raises:
        SettingError: If a setting has a value that it cannot have; it is a ValueError.
        DataError: If the checkpoint cannot be used, or a file of the data set cannot and `bad_files` is "stop".
        ActdetError: If the device is not there, or the report would replace anybody else's files.
    """
    check_bounds({"workers": workers})
    return evaluate_checkpoint(
        Path(checkpoint),
        Path(data),
        None if out is None else Path(out),
        choose_device(device),
        held_out=held_out,
        list_file=None if list_file is None else Path(list_file),
        workers=workers,
        with_videos=videos,
        bad_files=bad_files,
        progress=progress,
    )

"""`actdet train`: one training run, evaluated on the clips that it holds out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from actdet.bounds import check_bounds
from actdet.cli.data import print_division, print_left_out, read_index
from actdet.cli.parsing import setting_errors
from actdet.cli.progress import announce_training, watch
from actdet.cli.terminal import print_line, print_lines
from actdet.data.division import divide
from actdet.errors import ActdetError
from actdet.models.config import FamilyConfig
from actdet.models.detr.config import ModelConfig
from actdet.models.families import loss_class
from actdet.training.config import TrainConfig

if TYPE_CHECKING:
    from actdet.training.run_state import StoredRun


def train(
    data: Positional[Path],
    /,
    out: Path = Path("runs/train"),
    family: str | None = None,
    model: FamilyConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    val_share: float | None = None,
    groups: Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> None:
    """Train a detector on the clips in DATA, evaluate it on those held out, and write model and report to --out.

    For instance: actdet train data/mine --out runs/mine --epochs 30 --backbone-weights none
    On several GPUs: torchrun --nproc-per-node 2 -m actdet train data/mine --out runs/mine

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for the log, the checkpoints, the trained model and the report.
        family: What kind of detector to train; by default detr. --family NAME --help lists the options of a family.
        val_share: Share of each class that is held out for the evaluation; 0 trains on all clips. A clip with actions
            of several classes counts for the class with the lowest id. By default 0.2; or if DATA has the lists
            train.txt and test.txt, the clips in test.txt are held out. If a share is given, they are kept for later.
        groups: A file with a line NAME GROUP for each clip. Clips of one group, such as those of one camera or person,
            are never on both sides. By default DATA/groups.txt, if there is such a file.
        resume: Continue the interrupted run in --out with its settings and its division of the clips. Options that
            change no result, such as --workers, may be given again with other values.
        device: Where the network runs: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N.
    """
    check_bounds({"val_share": val_share})

    from actdet.device import choose_device
    from actdet.distributed import join_processes
    from actdet.training.plan import make_plan
    from actdet.training.run import find_clips, train_run
    from actdet.training.run_state import MODEL, read_run
    from actdet.training.session import open_session

    # --resume takes the settings of the run, and --init the shape of its detector; what was typed is put over them.
    stored = read_run(out) if resume else None
    settings = _Settings(model, config)
    if stored is not None or config.init is not None:
        settings = _settings_over(stored, config.init, family)
    model = settings.model
    config = settings.config

    with join_processes() as processes:
        if processes.count > 1 and device not in ("auto", "cpu"):
            raise ActdetError("--device must be auto or cpu for several processes: torchrun gives each its own GPU")
        place = choose_device(device)
        is_first = processes.rank == 0

        index = read_index(data, model.class_names, config.bad_files, window=config.window, quiet=not is_first)
        model = replace(model, class_names=index.class_names)
        division = None
        if stored is None or val_share is not None or groups is not None:
            division = divide(index, val_share, config.seed, groups)
            ((train_ids, val_ids),) = division.splits
        else:
            train_ids, val_ids = find_clips(index, stored, out)

        plan = make_plan(index, model, config, place, processes)
        with open_session(plan, index) as session:
            if is_first:
                announce_training(plan, len(train_ids))
                if division is not None:
                    print_division(division)
            title = f"Training on {data.name}"
            evaluation = watch(
                session,
                lambda session: train_run(session, train_ids, val_ids, out, title, resume=resume),
                quiet=not is_first,
            )

    if not is_first:
        return
    print_left_out(session.loader.all_left_out)
    print_line(f"model: {out / MODEL}")
    if evaluation is not None:
        print_lines(evaluation.metrics.describe())
        print_line(f"report: {out / 'report.html'}")


class _Settings(NamedTuple):
    """The settings of a training."""

    model: FamilyConfig
    config: TrainConfig


def _settings_over(stored: StoredRun | None, init: str | None, family: str | None) -> _Settings:
    """What was typed after `actdet train`, over settings that are there already.

    The command line is read once more, with those settings as the defaults of the options.

    Args:
        stored: The run that goes on, if one does.
        init: Otherwise the file of the detector to train on.
        family: The family that was typed, if one was.

    Returns:
        The settings of the training.

    Raises:
        ActdetError: If another family was typed than that of the run or the detector.
    """
    from actdet.models.checkpoints import read_info

    other_model: FamilyConfig = ModelConfig()
    other_config = TrainConfig()
    if stored is not None:
        other_model = stored.model
        other_config = stored.config
    elif init is not None:
        other_model = read_info(Path(init)).model
        other_config = TrainConfig(loss=loss_class(other_model.family)())
    if family not in (None, other_model.family):
        raise ActdetError(f"the detector to train on is of the family {other_model.family}, not {family}")

    def parse(
        data: Positional[Path],
        /,
        out: Path = Path(),
        family: str | None = None,
        model: FamilyConfig = other_model,
        config: TrainConfig = other_config,
        val_share: float | None = None,
        groups: Path | None = None,
        resume: bool = False,
        device: str = "auto",
    ) -> _Settings:
        return _Settings(model, config)

    # Both forms of a switch, --jitter and --no-jitter, are understood whatever its default is here.
    with setting_errors():
        return tyro.cli(parse, args=sys.argv[2:], config=(OmitArgPrefixes,))

"""`actdet crossval`: how a training does on clips that it does not see, for all clips of a data set in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tyro.conf import Positional

from actdet.bounds import check_bounds
from actdet.cli.data import print_division, print_left_out, read_index
from actdet.cli.progress import announce_training, watch
from actdet.cli.terminal import print_line
from actdet.data.division import divide_into_folds
from actdet.models.config import FamilyConfig
from actdet.models.detr.config import ModelConfig
from actdet.training.config import TrainConfig


def crossval(
    data: Positional[Path],
    /,
    out: Path = Path("runs/crossval"),
    folds: int = 5,
    groups: Path | None = None,
    family: str | None = None,
    model: FamilyConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    device: str = "auto",
) -> None:
    """Cross-validate: train once for each stratified fold of DATA; print mean and standard deviation.

    For instance: actdet crossval data/mine --folds 5 --backbone-weights none
    If it is interrupted, run the same command again to resume.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for crossval.json and for a run of each fold.
        family: What kind of detector to train; by default detr. --family NAME --help lists the options of a family.
        folds: How many parts DATA is cut into, or the clips in DATA/train.txt if there is such a list.
        groups: A file with a line NAME GROUP for each clip. Clips of one group, such as those of one camera or person,
            are never on both sides of a fold. By default DATA/groups.txt, if there is such a file.
        device: Where the network runs: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N.
    """
    check_bounds({"folds": folds})

    from actdet.device import choose_device
    from actdet.evaluation.metrics import format_figure
    from actdet.run_log import FIGURES
    from actdet.training.cross_validation import cross_validate
    from actdet.training.plan import make_plan
    from actdet.training.session import open_session

    place = choose_device(device)
    index = read_index(data, model.class_names, config.bad_files, window=config.window)
    model = replace(model, class_names=index.class_names)
    division = divide_into_folds(index, folds, config.seed, groups)

    plan = make_plan(index, model, config, place)
    with open_session(plan, index, command="crossval") as session:
        announce_training(plan, sum(map(len, division.splits[0])))
        print_division(division)
        result = watch(session, lambda session: cross_validate(session, division, out))

    print_left_out(session.loader.all_left_out)
    for figure in FIGURES:
        center = format_figure(result[figure]["mean"])
        deviation = format_figure(result[figure]["std"])
        print_line(f"{figure.replace('_', ' '):20} {center} +- {deviation}")
    print_line(f"details: {out / 'crossval.json'}")

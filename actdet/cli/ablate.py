"""`actdet ablate`: what each part of the loss is worth, beside table 3 of the technical report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tyro.conf import Positional

from actdet.bounds import check_bounds
from actdet.cli.data import print_division, print_left_out, read_index
from actdet.cli.progress import announce_training, watch
from actdet.cli.terminal import print_line
from actdet.data.division import divide
from actdet.models.detr.config import ModelConfig
from actdet.training.config import TrainConfig


def ablate(
    data: Positional[Path],
    /,
    out: Path = Path("runs/ablate"),
    val_share: float | None = None,
    groups: Path | None = None,
    model: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    device: str = "auto",
) -> None:
    """Train with parts of the loss left out, as in table 3 of the technical report, and print both tables.

    For instance: actdet ablate data/mine --backbone-weights none
    If it is interrupted, run the same command again to resume.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for ablation.json and for a run of each row.
        val_share: Share of each class that is held out for the evaluation. By default the clips in DATA/test.txt are,
            or 0.2 if there is no such list.
        groups: A file with a line NAME GROUP for each clip. Clips of one group, such as those of one camera or person,
            are never on both sides. By default DATA/groups.txt, if there is such a file.
        device: Where the network runs: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N.
    """
    check_bounds({"val_share": val_share})

    from actdet.device import choose_device
    from actdet.evaluation.metrics import format_figure
    from actdet.run_log import FIGURES
    from actdet.training import ablation
    from actdet.training.plan import make_plan
    from actdet.training.session import open_session

    place = choose_device(device)
    index = read_index(data, model.class_names, config.bad_files, window=config.window)
    model = replace(model, class_names=index.class_names)
    division = divide(index, val_share, config.seed, groups)

    plan = make_plan(index, model, config, place)
    with open_session(plan, index, command="ablate") as session:
        announce_training(plan, sum(map(len, division.splits[0])))
        print_division(division)
        result = watch(session, lambda session: ablation.ablate(session, division, out))

    print_left_out(session.loader.all_left_out)
    print_line(f"{'':22}{'video accuracy':>18}{'detection @0.5':>18}{'mean IoU':>18}")
    print_line(f"{'':22}{'here (report)':>18}{'here (report)':>18}{'here (report)':>18}")
    for name, row in result["rows"].items():
        cells = [f"{format_figure(row['measured'][figure])} ({row['reported'][figure]:.3f})" for figure in FIGURES[:3]]
        print_line(f"{name:22}" + "".join(f"{cell:>18}" for cell in cells))
    print_line(f"details: {out / 'ablation.json'}")

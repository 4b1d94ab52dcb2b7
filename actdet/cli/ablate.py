"""`actdet ablate`: what each part of a detector or of its loss is worth, beside the tables of the family's paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tyro.conf import Positional

from actdet.bounds import check_bounds
from actdet.cli.data import print_division, print_left_out, read_index
from actdet.cli.progress import announce_training, watch
from actdet.cli.terminal import print_line
from actdet.data.division import divide
from actdet.errors import ActdetError
from actdet.models.ablation import AblationTable
from actdet.models.config import FamilyConfig
from actdet.models.detr.config import ModelConfig
from actdet.models.families import FAMILIES, ablation_tables
from actdet.training.config import TrainConfig


def ablate(
    data: Positional[Path],
    /,
    out: Path = Path("runs/ablate"),
    family: str | None = None,
    table: int | None = None,
    val_share: float | None = None,
    groups: Path | None = None,
    model: FamilyConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    device: str = "auto",
) -> None:
    """Train with parts of the detector or of its loss changed, as in the tables of its paper, and print both.

    For instance: actdet ablate data/mine --backbone-weights none
                  actdet ablate data/tubes --family stma --table 2 --backbone-weights imagenet
    If it is interrupted, run the same command again to resume.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for ablation.json and for a run of each row.
        family: Whose tables; by default detr's. --family NAME --help lists the options of a family.
        table: The number of the table in the family's paper; by default all of its ablations. Rows that are the same
            training are trained once.
        val_share: Share of each class that is held out for the evaluation. By default the clips in DATA/test.txt are,
            or 0.2 if there is no such list.
        groups: A file with a line NAME GROUP for each clip. Clips of one group, such as those of one camera or person,
            are never on both sides. By default DATA/groups.txt, if there is such a file.
        device: Where the network runs: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N.
    """
    check_bounds({"val_share": val_share, "table": table})

    from actdet.device import choose_device
    from actdet.evaluation.metrics import format_figure
    from actdet.training import ablation
    from actdet.training.plan import make_plan
    from actdet.training.session import open_session

    chosen = _tables_of(model.family, table)
    place = choose_device(device)
    index = read_index(data, model.class_names, config.bad_files, window=config.window)
    model = replace(model, class_names=index.class_names)
    division = divide(index, val_share, config.seed, groups)

    plan = make_plan(index, model, config, place)
    with open_session(plan, index, command="ablate") as session:
        announce_training(plan, sum(map(len, division.splits[0])))
        print_division(division)
        result = watch(session, lambda session: ablation.ablate(session, division, out, chosen))

    print_left_out(session.loader.all_left_out)
    for each in chosen:
        print_line(f"here, and in parentheses {each.source}:")
        print_line(f"{'':22}" + "".join(f"{figure:>18}" for figure in each.figures))
        for name in each.rows:
            row = result["rows"][name]
            pairs = zip(row["measured"].values(), row["reported"].values(), strict=True)
            cells = [f"{format_figure(measured)} ({reported:.3f})" for measured, reported in pairs]
            print_line(f"{name:22}" + "".join(f"{cell:>18}" for cell in cells))
    print_line(f"details: {out / 'ablation.json'}")


def _tables_of(family: str, number: int | None) -> list[AblationTable]:
    """Return the tables of a family's paper, or the one with a number.

    Raises:
        ActdetError: If there is none.
    """
    tables = ablation_tables(family)
    if not tables:
        others = " and ".join(name for name in FAMILIES if ablation_tables(name))
        raise ActdetError(f"there is no ablation of the family {family} to repeat, only of {others}")
    if number is None:
        return list(tables.values())
    if number not in tables:
        raise ActdetError(f"--table must be {' or '.join(map(str, tables))} for the family {family}, got {number}")
    return [tables[number]]

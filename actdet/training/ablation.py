"""Ablation: the same training with parts of the detector or of its loss changed, as in the tables of a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actdet.data.division import Division
from actdet.errors import ActdetError
from actdet.files import write_json
from actdet.models.ablation import AblationTable, Row
from actdet.models.config import FamilyConfig, LossSettings
from actdet.run_folder import check_apart, sole_writers
from actdet.training.experiments import Runs, claim_folder, run_part
from actdet.training.plan import Plan
from actdet.training.session import Session


def ablate(session: Session, division: Division, out: Path, tables: Sequence[AblationTable]) -> Runs:
    """Train once for each row of the tables, with the same split and seed.

    Rows that are the same training, such as a base that two tables share, are trained once.

    Args:
        session: The plan, and the clips.
        division: Which clips to train on, and which ones to evaluate on, in its one split.
        out: The folder for OUT/ROW/ of each training, by the first row that it is, and for OUT/ablation.json.
        tables: What each row changes, and which figures are compared. Rows of one name are one row.

    Yields:
        The name of the row and its progress, after every step.

    Returns:
        What is in ablation.json: the measured figures beside the paper's, and which rows each table has.

    Raises:
        ActdetError: As `train_run`, if no clip is held out, if a setting has a value that no row would use, or if `out`
            holds another experiment.
    """
    index = session.loader.index
    for table in tables:
        _check_unused(session.plan, table)
    plans = {name: _changed(session.plan, row) for table in tables for name, row in table.rows.items()}
    folders = _folders(plans)
    check_apart(index.root, out, list(dict.fromkeys(folders.values())))
    ((train_ids, val_ids),) = division.splits
    if not val_ids:
        raise ActdetError("an ablation needs held-out clips: give a --val-share above 0")

    with sole_writers(out):
        chosen = " and ".join(table.source for table in tables)
        claim_folder(session, out, division.settings | {"table": chosen}, "ablation.json")
        rows = {}
        for table in tables:
            for name, row in table.rows.items():
                changed = replace(session, plan=plans[name])
                # If an earlier row is the same training, its report is there already and is only read.
                metrics = yield from run_part(changed, train_ids, val_ids, out / folders[name], name)
                keys = [path[-1] if len(path) == 1 else "/".join(path) for path in table.figures.values()]
                measured = [_figure(metrics, path) for path in table.figures.values()]
                rows[name] = {
                    "measured": dict(zip(keys, measured, strict=True)),
                    "reported": dict(zip(keys, row.reported, strict=True)),
                }
        result = {
            "clips": len(val_ids),
            "tables": {table.source: list(table.rows) for table in tables},
            "rows": rows,
        }
        write_json(out / "ablation.json", result)
    return result


def _changed(plan: Plan, row: Row) -> Plan:
    # No choice of the plan depends on what a row changes.
    model = replace(plan.model, **row.model)
    config = replace(plan.config, loss=replace(plan.config.loss, **row.loss))
    return replace(plan, model=model, config=config)


def _folders(plans: Mapping[str, Plan]) -> dict[str, str]:
    """Return the folder of each row: that of the first one that is the same training."""
    first: dict[tuple[FamilyConfig, LossSettings], str] = {}
    return {
        name: first.setdefault((plan.model, plan.config.loss), name.replace(" ", "_")) for name, plan in plans.items()
    }


def _check_unused(plan: Plan, table: AblationTable) -> None:
    """Raise ActdetError if a setting that every row changes is not as it is by default: its value would not be used."""
    for settings, changes in (
        (plan.model, [row.model for row in table.rows.values()]),
        (plan.config.loss, [row.loss for row in table.rows.values()]),
    ):
        defaults = type(settings)()
        for name in set.intersection(*map(set, changes)):
            if getattr(settings, name) != getattr(defaults, name):
                raise ActdetError(f"{name} is what the rows of {table.source} change: leave it out")


def _figure(metrics: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = metrics
    for key in path:
        value = value[key]
    return value

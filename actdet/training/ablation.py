"""The report's ablation (table 3): the same training with parts of the loss left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from actdet.data.division import Division
from actdet.errors import ActdetError
from actdet.files import write_json
from actdet.run_folder import check_apart, sole_writers
from actdet.run_log import FIGURES
from actdet.training.experiments import Runs, claim_folder, run_part
from actdet.training.session import Session

# What each row of the table leaves out, and the report's video accuracy, detection accuracy and mean IoU.
ABLATIONS = {
    "full loss": ({}, (1.000, 0.833, 0.51)),
    "no GIoU loss": ({"giou_weight": 0.0}, (1.000, 0.667, 0.43)),
    "no L1 loss": ({"l1_weight": 0.0}, (0.833, 0.500, 0.38)),
    "classification only": ({"l1_weight": 0.0, "giou_weight": 0.0}, (1.000, 0.167, 0.22)),
}


def ablate(session: Session, division: Division, out: Path) -> Runs:
    """Train once for each row of the table, with the same split and seed.

    The weights that are left out are zero in the loss and in the cost of the matching.

    Args:
        session: The plan, and the clips.
        division: Which clips to train on, and which ones to evaluate on, in its one split.
        out: The folder for OUT/ROW/ of each row, and for OUT/ablation.json.

    Yields:
        The name of the row and its progress, after every step.

    Returns:
        What is in ablation.json: the measured figures beside the report's.

    Raises:
        ActdetError: As `train_run`, if no clip is held out, or if `out` holds another experiment.
    """
    index = session.loader.index
    plan = session.plan
    parts = {name: name.replace(" ", "_") for name in ABLATIONS}
    check_apart(index.root, out, list(parts.values()))
    ((train_ids, val_ids),) = division.splits
    if not val_ids:
        raise ActdetError("an ablation needs held-out clips: give a --val-share above 0")
    if plan.model.family != "detr":
        raise ActdetError(f"the ablation leaves out losses of the family detr, not of {plan.model.family}")

    with sole_writers(out):
        claim_folder(session, out, division.settings, "ablation.json")
        rows = {}
        for name, (without, reported) in ABLATIONS.items():
            loss = replace(plan.config.loss, **without)
            # No choice of the plan depends on the weights of the loss.
            row = replace(session, plan=replace(plan, config=replace(plan.config, loss=loss)))
            metrics = yield from run_part(row, train_ids, val_ids, out / parts[name], name)
            rows[name] = {
                "measured": {figure: metrics[figure] for figure in FIGURES[:3]},
                "reported": dict(zip(FIGURES[:3], reported, strict=True)),
            }
        result = {"clips": len(val_ids), "rows": rows}
        write_json(out / "ablation.json", result)
    return result

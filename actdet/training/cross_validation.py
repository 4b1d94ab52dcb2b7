"""Stratified k-fold cross-validation (section 6.4 of the report)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from actdet.data.division import Division
from actdet.files import write_json
from actdet.run_folder import check_apart, sole_writers
from actdet.run_log import FIGURES
from actdet.training.experiments import Runs, claim_folder, run_part
from actdet.training.session import Session


def cross_validate(session: Session, division: Division, out: Path) -> Runs:
    """Train once for each fold, and give the mean and the sample standard deviation of every figure over the folds.

    A fold may lack a figure: there is no mean IoU if none of its clips has an action. Such a fold is left out of that
    figure's mean and deviation. The mean of no folds and the deviation of fewer than two are None.

    Args:
        session: The plan, and the clips.
        division: Which clips to train on, and which ones to evaluate on, for each fold.
        out: The folder for OUT/fold_K/ of each fold, and for OUT/crossval.json.

    Yields:
        The name of the fold and its progress, after every step.

    Returns:
        What is in crossval.json.

    Raises:
        ActdetError: As `train_run`, or if `out` holds another experiment.
    """
    index = session.loader.index
    count = len(division.splits)
    check_apart(index.root, out, [f"fold_{number}" for number in range(1, count + 1)])
    with sole_writers(out):
        claim_folder(session, out, division.settings, "crossval.json")
        results = []
        for number, (train_ids, val_ids) in enumerate(division.splits, start=1):
            name = f"fold {number} of {count}"
            results.append((yield from run_part(session, train_ids, val_ids, out / f"fold_{number}", name)))

        # Runs that an earlier version finished lack some figures.
        each = [{figure: result.get(figure) for figure in FIGURES} for result in results]
        summary = {figure: _mean_and_deviation([figures[figure] for figures in each]) for figure in FIGURES}
        result = {"folds": count, **summary, "each": each}
        write_json(out / "crossval.json", result)
    return result


def _mean_and_deviation(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {"mean": mean(known) if known else None, "std": stdev(known) if len(known) > 1 else None}

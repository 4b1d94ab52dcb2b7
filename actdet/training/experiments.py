"""Experiments that are made of several runs: what cross-validation and ablation share.

An experiment's folder has a file settings.json, which says what the experiment is, and a folder for each of its parts.
A part is finished when its report is there, and is not run again, so the same command completes an experiment that was
interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actdet.errors import ActdetError, DataError
from actdet.files import check_own, read_own_json, write_json
from actdet.run_folder import is_reported, read_metrics
from actdet.training.run import train_run
from actdet.training.run_state import LAST, LAUNCH, MODEL, current_names
from actdet.training.session import Session
from actdet.training.trainer import Progress

# Yields the name of a part and its progress, after every step; sending True asks it to save and stop. Returns figures.
Runs = Generator[tuple[str, Progress], bool | None, dict[str, Any]]


def claim_folder(session: Session, out: Path, settings: dict[str, Any], result: str) -> None:
    """Note in the folder `out` what the experiment is, or check that it is the one that was begun there.

    Args:
        session: The plan, and the clips.
        out: The experiment's folder.
        settings: Settings of the experiment itself, by name, those of its division among them.
        result: The file that the experiment will write at its end.

    Raises:
        ActdetError: If the folder holds another experiment, or a file `result` that belongs to none.
    """
    index = session.loader.index
    config = asdict(session.plan.config)
    mine = {
        **settings,
        "family": session.plan.model.family,
        "model": asdict(session.plan.model),
        "training": {name: value for name, value in config.items() if name not in LAUNCH},
        "clips": [clip.name for clip in index.clips],
        "labels": index.labels.tolist(),
    }
    # JSON makes lists of tuples, so only what has been JSON itself can be compared with what is read back.
    mine = json.loads(json.dumps(mine))

    path = out / "settings.json"
    if not path.exists():
        check_own([out / result], lambda _: False)
        write_json(path, mine)
        return

    found = read_own_json(path)
    if isinstance(found, dict) and isinstance(found.get("training"), dict):
        # Earlier versions had a single family, and other names of some settings.
        found.setdefault("family", "detr")
        if "table" in mine:
            # And each family a single table.
            found.setdefault("table", mine["table"])
        found["training"] = current_names(found["training"])
    if found != mine:
        problem = f"{out} holds an experiment with other settings, clips or labels, or another division of the clips"
        raise ActdetError(f"{problem} (see {path}): give another --out")


def run_part(session: Session, train_ids: Sequence[int], val_ids: Sequence[int], out: Path, name: str) -> Runs:
    """Take one run of an experiment from where it is to its end; skip it if its report is there.

    Args:
        session: The plan, and the clips.
        train_ids: The clips to train on, by their numbers in the index.
        val_ids: The clips to evaluate on, likewise.
        out: The run's folder.
        name: The part's name.

    Yields:
        The name and the progress, after every step.

    Returns:
        The figures of the run's report.
    """
    if not is_reported(out):
        is_begun = (out / MODEL).exists() or (out / LAST).exists()
        run = train_run(session, train_ids, val_ids, out, name, resume=is_begun)
        stop = None
        while True:
            try:
                progress = run.send(stop)
            except StopIteration:
                break
            stop = yield name, progress

    metrics = read_metrics(out)
    if metrics is None:
        raise DataError(out / "metrics.json", "disappeared while it was needed: run the same command again")
    return metrics

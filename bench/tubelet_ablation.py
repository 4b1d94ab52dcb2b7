"""What each part of the tubelet detector is worth: the same training with one thing changed, for several seeds.

python -m bench.tubelet_ablation TRAIN TEST --out FOLDER [--seeds 3] [-- options of actdet train]

Each detector is trained on TRAIN and evaluated on TEST by commands of their own. FOLDER/ablation.json has a row for
each, and the table that is printed shows means over the seeds, with the lowest and the highest. What is done is not
done again, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actdet.files import write_json
from bench.conftest import about
from bench.rows import Row, grouped

# What is changed in each line of the table. The first one is what the others are compared with.
VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "free queries": ("--query-form", "free"),
    "matched anew in each frame": ("--matching", "frame"),
    "the last stage alone": ("--no-pyramid",),
    "plain attention": ("--attention", "plain"),
}

# The columns, by what they are called in a row.
FIGURES = {
    "frame_map": "frame-mAP at 0.5",
    "video_map_20": "video-mAP at 0.2",
    "video_map_50": "video-mAP at 0.5",
    "switches": "switches",
}


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tubelet_ablation")
    parser.add_argument("train", type=Path, help="the data set to train on")
    parser.add_argument("test", type=Path, help="the data set to evaluate on")
    parser.add_argument("--out", type=Path, required=True, help="the folder for all runs, and for ablation.json")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant (default: 3)")
    own, options = _split(words)
    given = parser.parse_args(own)

    rows: list[Row] = []
    # Seed by seed, so that a table of fewer seeds is there before one of more.
    for seed in range(given.seeds):
        for name in VARIANTS:
            rows.append(row_of(name, seed, given.train, given.test, given.out, options))
            write_json(given.out / "ablation.json", rows)
    print(table(rows))


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what comes before and after the first "--"."""
    own = list(words)
    if "--" not in own:
        return own, []
    place = own.index("--")
    return own[:place], own[place + 1 :]


def row_of(name: str, seed: int, train: Path, test: Path, out: Path, options: Sequence[str]) -> Row:
    """Train and evaluate a detector, or read what came of it before."""
    run = out / f"{name.replace(' ', '_')}_{seed}"
    done = run / "row.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))

    settings = ["--family", "tubelet", "--val-share", 0, "--seed", seed, *options, *VARIANTS[name]]
    model = trained(run, train, settings)
    actdet("evaluate", model, test, "--no-videos", "--out", run / "test")
    metrics = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))
    row = {"name": name, "seed": seed, "settings": " ".join(map(str, settings))}
    row |= figures_of(metrics) | about()
    write_json(done, row)
    return row


def trained(run: Path, train: Path, settings: Sequence[object]) -> Path:
    """Return the detector of a run, trained now if it was not before."""
    out = run / "run"
    model = out / "model.safetensors"
    if model.exists():
        return model

    # A training that was interrupted goes on from its last state, or anew if it has none.
    again = ["--resume"] if (out / "last.safetensors").exists() else []
    actdet("train", train, "--out", out, *settings, *again)
    return model


def actdet(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "actdet", *map(str, words)], check=True)


def figures_of(metrics: dict[str, Any]) -> Row:
    """Return the figures of a row from those of an evaluation."""
    tubes = metrics["tubes"]
    return {
        "frame_map": tubes["frame_map"],
        "video_map_20": tubes["video_map"]["0.2"],
        "video_map_50": tubes["video_map"]["0.5"],
        "switches": tubes["switches"],
        "tubes": tubes["tubes"],
        "videos": metrics["clips"],
    }


def table(rows: Sequence[Row]) -> str:
    """Return the means over the seeds as a table in Markdown, each with the lowest and the highest."""
    lines = [f"| | {' | '.join(FIGURES.values())} |", f"| --- |{' --- |' * len(FIGURES)}"]
    for name, of_name in grouped(rows, lambda row: row["name"]).items():
        cells = [_cell([row[figure] for row in of_name]) for figure in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if all(isinstance(value, int) for value in values):
        return f"{mean:.0f} ({min(values)} to {max(values)})"
    return f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main(sys.argv[1:])

"""actdet ablate trains each row of the report's table 3 once, and prints both tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]
FIGURES = ("video_accuracy", "detection_accuracy", "mean_iou")


def _times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("model.safetensors"))}


def test_ablate_prints_its_table_and_trains_each_row_once(
    actdet_command: Actdet, rendered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ab"
    arguments = ("ablate", rendered, "--epochs", 1, "--out", out, *OPTIONS)
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err

    rows = json.loads((out / "ablation.json").read_text())["rows"]
    # Table 3 of the report.
    reported = {
        "full loss": (1.000, 0.833, 0.51),
        "no GIoU loss": (1.000, 0.667, 0.43),
        "no L1 loss": (0.833, 0.500, 0.38),
        "classification only": (1.000, 0.167, 0.22),
    }

    assert rows.keys() == reported.keys()
    for name, theirs in reported.items():
        measured = json.loads((out / name.replace(" ", "_") / "metrics.json").read_text())
        (line,) = (line for line in outcome.out.splitlines() if line.startswith(name))
        cells = [f"{measured[figure]:.3f} ({value:.3f})" for figure, value in zip(FIGURES, theirs, strict=True)]
        assert re.split(r"\s{2,}", line.removeprefix(name).strip()) == cells
        assert rows[name]["measured"] == {figure: measured[figure] for figure in FIGURES}

    times = _times(out)
    again = actdet_command(*arguments)
    assert (again.code, _times(out), again.out) == (0, times, outcome.out)

"""actdet crossval trains each fold once and prints what the folds give together."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from actdet.models.checkpoints import read_info
from actdet.training import cross_validation
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]
FIGURES = ("video_accuracy", "detection_accuracy", "mean_iou")


def _times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("model.safetensors"))}


def test_crossval_trains_each_fold_once(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    arguments = ("crossval", rendered, "--folds", 2, "--epochs", 1, "--out", out, *OPTIONS)
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err

    result = json.loads((out / "crossval.json").read_text())
    parts = [json.loads((out / f"fold_{k}" / "metrics.json").read_text()) for k in (1, 2)]
    assert [part["clips"] for part in parts] == [6, 6]
    held = [set(read_info(out / f"fold_{k}" / "model.safetensors").held_out) for k in (1, 2)]
    assert len(held[0] | held[1]) == 12
    for figure in FIGURES:
        a, b = (part[figure] for part in parts)
        assert result[figure]["mean"] == pytest.approx((a + b) / 2)
        # The standard deviation of a sample of two.
        assert result[figure]["std"] == pytest.approx(abs(a - b) / 2**0.5)
        assert f"{(a + b) / 2:.3f} +- {abs(a - b) / 2**0.5:.3f}" in outcome.out

    times = _times(out)
    assert len(times) == 2
    again = actdet_command(*arguments)
    assert (again.code, _times(out)) == (0, times)
    assert again.out == outcome.out

    other = actdet_command(*arguments, "--seed", 5)
    assert str(out) in other.complaint()
    assert _times(out) == times


def test_crossval_goes_on_where_a_fold_lost_its_report(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    arguments = ("crossval", rendered, "--folds", 2, "--epochs", 1, "--out", out, *OPTIONS)
    first = actdet_command(*arguments)
    (out / "fold_2" / "metrics.json").unlink()
    again = actdet_command(*arguments)
    assert again.code == 0, again.err
    assert again.out == first.out


def test_figures_that_a_fold_has_not_are_left_out_of_its_means(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first fold has clips with actions, and an earlier version did not measure every figure."""
    none = {"mean_iou": None, "average_precision": None, "video_accuracy": 0.5, "detection_accuracy": 0.5}
    some = {"mean_iou": 0.25, "average_precision": None, "video_accuracy": 1.0, "detection_accuracy": 0.0}
    folds = iter([some, none])

    def part(*arguments: object, **options: object) -> Generator[Any, Any, dict[str, float | None]]:
        yield from ()
        return next(folds)

    monkeypatch.setattr(cross_validation, "run_part", part)
    outcome = actdet_command("crossval", rendered, "--folds", 2, "--out", tmp_path / "cv", *OPTIONS)
    assert outcome.code == 0, outcome.err
    for line in (
        "video accuracy       0.750 +- 0.354",
        "mean iou             0.250 +- n/a",
        "average precision    n/a +- n/a",
        "located iou          n/a +- n/a",
    ):
        assert line in outcome.out.splitlines()

    result = json.loads((tmp_path / "cv" / "crossval.json").read_text())
    assert result["mean_iou"] == {"mean": 0.25, "std": None}
    assert result["each"][1]["mean_iou"] is None


def test_crossval_of_other_labels_is_another_one(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    arguments = ("crossval", data, "--folds", 2, "--epochs", 1, "--out", out, *OPTIONS)
    assert actdet_command(*arguments).code == 0
    (out / "fold_2" / "metrics.json").unlink()
    text = next((data / "annotations").glob("fight*.txt"))
    text.write_text("1" + text.read_text()[1:])
    assert actdet_command(*arguments).complaint().startswith(f"{out} holds an experiment with other settings, clips or")

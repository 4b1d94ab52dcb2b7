"""actdet ablate trains each row of a paper's table once, and prints both tables."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from actdet.models.ablation import Row
from actdet.models.families import FAMILIES, ablation_tables, config_class, loss_class
from actdet.models.stma.config import StmaConfig, StmaLoss
from actdet.training import ablation
from actdet.training.experiments import Runs
from actdet.training.session import Session
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]
SMALL = ["--image-size", "32", "--frames", "8", *TRAIN_OPTIONS]
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


def test_an_experiment_of_an_earlier_version_goes_on(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    """There was one table, and nobody noted which."""
    out = tmp_path / "ab"
    arguments = ("ablate", rendered, "--epochs", 1, "--out", out, *OPTIONS)
    first = actdet_command(*arguments)
    settings = json.loads((out / "settings.json").read_text())
    assert settings.pop("table") == "table 3 of the technical report"
    (out / "settings.json").write_text(json.dumps(settings))
    times = _times(out)
    again = actdet_command(*arguments)
    assert (again.code, _times(out), again.out) == (0, times, first.out)


def test_a_table_of_another_family(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is trained with its settings; another table does not go into the same folder."""
    asked: list[tuple[StmaConfig, StmaLoss]] = []

    def instead(session: Session, train_ids: object, val_ids: object, out: Path, name: str) -> Runs:
        model = session.plan.model
        loss = session.plan.config.loss
        assert isinstance(model, StmaConfig)
        assert isinstance(loss, StmaLoss)
        asked.append((model, loss))
        return {"tubes": {"frame_map": 0.5, "video_map": {"0.2": None, "0.5": len(asked) / 10}}}
        yield name, None

    monkeypatch.setattr(ablation, "run_part", instead)
    out = tmp_path / "ab"
    words = ("ablate", rendered, "--out", out, "--family", "stma", "--size-weight", "0.3", *SMALL)
    outcome = actdet_command(*words, "--table", "2")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert "here, and in parentheses table 2 of the STMA paper:" in lines
    (base,) = (line for line in lines if line.startswith("base "))
    assert re.split(r"\s{2,}", base) == ["base", "0.500 (0.728)", "n/a (0.778)", "0.100 (0.502)"]
    (whole,) = (line for line in lines if line.startswith("CAL + ME + STA + GR"))
    assert whole.endswith("0.600 (0.541)")
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    assert rows["base"]["measured"] == {"tubes/frame_map": 0.5, "tubes/video_map/0.2": None, "tubes/video_map/0.5": 0.1}

    parts = [(model.class_agnostic, model.motion_excitation, model.aggregation) for model, _ in asked]
    assert parts == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
        (True, True, False),
        (True, True, True),
    ]
    assert [loss.size_area for _, loss in asked] == ["center"] * 4 + ["ellipse"] * 2
    assert all(loss.size_area == loss.movement_area and loss.size_weight == 0.3 for _, loss in asked)

    for others in (["--table", "4"], []):
        other = actdet_command(*words, *others)
        assert other.code == 1
        assert "holds an experiment with other settings" in other.err


def test_all_tables_of_a_family_by_default(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are the same training share its folder, whatever they are called, and no others do."""
    trained: dict[str, set[tuple[object, object]]] = {}
    figures: dict[str, float] = {}

    def instead(session: Session, train_ids: object, val_ids: object, out: Path, name: str) -> Runs:
        plan = session.plan
        trained.setdefault(out.name, set()).add((plan.model, plan.config.loss))
        value = figures.setdefault(out.name, len(figures) / 100)
        return {"tubes": {"frame_map": value, "video_map": {"0.2": value, "0.5": value}}}
        yield name, None

    monkeypatch.setattr(ablation, "run_part", instead)
    out = tmp_path / "ab"
    outcome = actdet_command("ablate", rendered, "--out", out, "--family", "stma", *SMALL)
    assert outcome.code == 0, outcome.err

    assert list(trained) == [
        *("base", "CAL", "CAL_+_ME", "CAL_+_ME_+_STA", "CAL_+_ME_+_GR", "CAL_+_ME_+_STA_+_GR"),
        *("size", "movement", "size_+_movement"),
        *("K_=_1", "K_=_3", "K_=_7"),
    ]
    assert all(len(settings) == 1 for settings in trained.values())
    assert len(set.union(*trained.values())) == 12

    result = json.loads((out / "ablation.json").read_text())
    assert result["tables"] == {
        f"table {number} of the STMA paper": list(table.rows) for number, table in ablation_tables("stma").items()
    }
    # The paper's numbers of these two agree, too: it has the same detector in two tables.
    assert result["rows"]["K = 5"] == result["rows"]["CAL + ME + STA + GR"]

    lines = outcome.out.splitlines()
    at = [lines.index(f"here, and in parentheses table {number} of the STMA paper:") for number in (2, 3, 4)]
    for start, table in zip(at, ablation_tables("stma").values(), strict=True):
        assert [re.split(r"\s{2,}", line)[0] for line in lines[start + 2 :]][: len(table.rows)] == list(table.rows)
    (full,) = (line for line in lines if line.startswith("K = 5"))
    assert re.split(r"\s{2,}", full) == ["K = 5", "0.050 (0.788)", "0.050 (0.833)", "0.050 (0.541)"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--family", "tubelet"], "there is no ablation of the family tubelet to repeat, only of detr and stma"),
        (["--family", "stma", "--table", "7"], "--table must be 2 or 3 or 4 for the family stma, got 7"),
        (["--table", "2"], "--table must be 3 for the family detr, got 2"),
        (
            ["--family", "stma", "--table", "4", "--snippet", "4"],
            "snippet is what the rows of table 4 of the STMA paper change: leave it out",
        ),
        (
            ["--family", "stma", "--size-area", "circle"],
            "size_area is what the rows of table 2 of the STMA paper change: leave it out",
        ),
        # By default it is table 4, too, that changes settings.
        (
            ["--family", "stma", "--snippet", "4"],
            "snippet is what the rows of table 4 of the STMA paper change: leave it out",
        ),
    ],
)
def test_what_no_table_says_is_refused_in_one_line(
    words: list[str], text: str, actdet_command: Actdet, rendered: Path, tmp_path: Path
) -> None:
    outcome = actdet_command("ablate", rendered, "--out", tmp_path / "ab", *SMALL, *words)
    # What bars have left behind is written over.
    assert (outcome.code, outcome.err.rpartition("\r")[2]) == (1, f"actdet: {text}\n")
    assert not (tmp_path / "ab").exists()


@pytest.mark.parametrize("family", [family for family in FAMILIES if ablation_tables(family)])
def test_every_row_is_a_training_of_its_own(family: str) -> None:
    model = config_class(family)()
    loss = loss_class(family)()
    for table in ablation_tables(family).values():
        settings = [(replace(model, **row.model), replace(loss, **row.loss)) for row in table.rows.values()]
        assert len(set(settings)) == len(settings)
        assert all(len(row.reported) == len(table.figures) for row in table.rows.values())


@pytest.mark.parametrize("family", [family for family in FAMILIES if ablation_tables(family)])
def test_rows_of_one_name_are_one_row(family: str) -> None:
    """They share a folder and a place in ablation.json."""
    seen: dict[str, tuple[Row, object]] = {}
    for table in ablation_tables(family).values():
        for name, row in table.rows.items():
            assert seen.setdefault(name, (row, table.figures)) == (row, table.figures)


def test_the_figures_of_stma_are_those_that_the_paper_prints() -> None:
    printed = {
        2: "72.8 77.8 50.2 73.1 77.5 50.6 75.4 79.0 51.2 77.2 80.6 52.6 76.1 80.1 51.9 78.8 83.3 54.1",
        3: "72.8 77.8 50.2 74.4 77.4 50.8 73.9 78.3 50.7 74.7 79.2 51.1",
        4: "77.9 75.8 48.4 78.6 77.1 50.6 78.8 83.3 54.1 78.3 81.3 52.9",
    }
    for number, table in ablation_tables("stma").items():
        reported = [value for row in table.rows.values() for value in row.reported]
        assert reported == [pytest.approx(float(value) / 100) for value in printed[number].split()]

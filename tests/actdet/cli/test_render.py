"""actdet render goes on where it was stopped, and adds nothing to a folder that has something else in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actdet.synthetic import rendered as rendering
from tests.actdet.command import Actdet
from tests.actdet.training.folders import contents_of


def test_a_stopped_render_goes_on(actdet_command: Actdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--clips", 5, "--width", 64, "--height", 64, "--frames", 8, "--fps", 4, "--workers", 1]
    whole = tmp_path / "whole"
    out = tmp_path / "out"
    assert actdet_command("render", whole, *options).code == 0

    def stop(function: Callable[..., None], jobs: list[Any], workers: int, progress: Callable[[int], None]) -> None:
        for job in jobs[:2]:
            function(*job)
        shutil.copy(whole / "annotations" / f"{rendering._stage_clip(jobs[2][0], jobs[2][1]).name}.txt", out)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rendering, "run_all", stop)
        assert actdet_command("render", out, *options).code == 130
    (text,) = (path for path in out.glob("*.txt") if path.name != "classes.txt")
    text.rename(out / "annotations" / text.name)
    (out / "videos" / ".fight_0003.4194305.partial.webm").touch()
    times = {path: path.stat().st_mtime_ns for path in (out / "videos").glob("[!.]*.webm")}
    assert len(times) == 2

    complaint = actdet_command("render", out, *options, "--seed", 1).complaint()
    assert complaint.startswith(f"{out / 'videos'} is not empty")
    for _ in range(2):
        outcome = actdet_command("render", out, *options)
        assert outcome.code == 0, outcome.err
        made = contents_of(out)
        wanted = contents_of(whole)
        assert made.keys() == wanted.keys()
        # Every WebM has a random number of its own, so only texts can be compared.
        assert {name: made[name] for name in made if name[-4:] == ".txt"} == {
            name: wanted[name] for name in wanted if name[-4:] == ".txt"
        }
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("folder", ["videos", "annotations"])
def test_render_adds_to_nobodys_files(actdet_command: Actdet, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine.txt").write_text("0 1 2 3 4")
    complaint = actdet_command("render", tmp_path, "--clips", 1).complaint()
    assert complaint.startswith(f"{tmp_path / folder} is not empty")

    (tmp_path / folder / "mine.txt").unlink()
    (tmp_path / "rendered.json").write_text('{"mine": 1}')
    complaint = actdet_command("render", tmp_path, "--clips", 1).complaint()
    assert complaint.startswith(f"{tmp_path / 'rendered.json'} was not written by this command")

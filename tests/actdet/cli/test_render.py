"""actdet render goes on where it was stopped, and adds nothing to a folder that has something else in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actdet.synthetic import rendered as rendering
from actdet.synthetic.clips import stage_clip
from actdet.synthetic.stage import Scene
from actdet.synthetic.videos import stage_video
from tests.actdet.command import Actdet
from tests.actdet.training.folders import contents_of


@pytest.mark.parametrize(
    ("kind", "end", "stage"),
    [
        (["--frames", 8], ".txt", stage_clip),
        (["--frames", 20, "--tubes"], ".csv", stage_video),
    ],
    ids=["clips", "tubes"],
)
def test_a_stopped_render_goes_on(
    kind: list[Any],
    end: str,
    stage: Callable[..., Scene],
    actdet_command: Actdet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--clips", 5, "--width", 64, "--height", 64, "--fps", 4, "--workers", 1, *kind]
    whole = tmp_path / "whole"
    out = tmp_path / "out"
    assert actdet_command("render", whole, *options).code == 0

    def stop(function: Callable[..., None], jobs: list[Any], workers: int, progress: Callable[[int], None]) -> None:
        for job in jobs[:2]:
            function(*job)
        shutil.copy(whole / "annotations" / f"{stage(jobs[2][0], jobs[2][1]).name}{end}", out)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rendering, "run_all", stop)
        assert actdet_command("render", out, *options).code == 130
    (text,) = (path for path in out.glob(f"*{end}") if path.name != "classes.txt")
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
        assert {name: made[name] for name in made if name[-4:] in (".txt", ".csv")} == {
            name: wanted[name] for name in wanted if name[-4:] in (".txt", ".csv")
        }
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_clips_and_videos_with_tubes_do_not_share_a_folder(actdet_command: Actdet, tmp_path: Path) -> None:
    options = ["--clips", 1, "--width", 64, "--height", 64, "--frames", 20, "--fps", 4, "--workers", 1]
    for first, second, word in (([], ["--tubes"], "without"), (["--tubes"], [], "with")):
        out = tmp_path / word
        assert actdet_command("render", out, *options, *first).code == 0
        before = contents_of(out)
        complaint = actdet_command("render", out, *options, *second).complaint()
        stamp = out / "rendered.json"
        assert complaint.startswith(f"{out / 'videos'} is not empty and was rendered {word} --tubes (see {stamp}): ")
        assert contents_of(out) == before

        # Without any videos the folder is free again.
        shutil.rmtree(out / "videos")
        shutil.rmtree(out / "annotations")
        assert actdet_command("render", out, *options, *second).code == 0


def test_videos_with_tubes_must_be_long_enough(actdet_command: Actdet, tmp_path: Path) -> None:
    complaint = actdet_command("render", tmp_path / "out", "--tubes", "--fps", 30).complaint()
    assert complaint == "frames / fps must be at least 4 seconds with tubes, got 96 / 30 = 3.20"


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

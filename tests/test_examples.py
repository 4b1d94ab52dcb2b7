"""Every example runs as its docstring says, in a process of its own, and prints what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: object) -> str:
    """Run an example on one thread, and return what it prints."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    places = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith('"""')
    assert f"    python examples/{path.name}" in path.read_text().split('"""')[1]


def test_every_example_is_run_here() -> None:
    named = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    assert named == {path.name for path in EXAMPLES}


def test_matching_and_loss_learns_the_targets() -> None:
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", run("matching_and_loss.py", 100))]
    assert len(losses) == 100
    assert losses[-1] < 0.2 * losses[0]


def test_detr_criterion_prints_the_losses_of_both_layers() -> None:
    output = run("detr_criterion.py")
    total, *losses = (float(number) for number in re.findall(r"\d+\.\d+", output))
    weights = [1.0, 5.0, 2.0] * 2
    assert total == pytest.approx(sum(weight * loss for weight, loss in zip(weights, losses, strict=True)), abs=0.01)
    assert "loss_giou_0" in output


def test_tubes_compares_them() -> None:
    output = run("tubes.py")

    # 9 of 11 frames are common. There the boxes of 60 pixels' width are 2 pixels apart.
    assert f"space-time IoU: {9 / 11 * 58 / 62:.3f}" in output
    assert "frame 15: [120.0, 55.0, 180.0, 205.0]" in output


@pytest.mark.slow
def test_a_detector_is_trained_and_finds_actions_in_a_video(tmp_path: Path) -> None:
    output = run("train_from_python.py", "--out", tmp_path, "--clips", 4, "--epochs", 1)
    assert "2 clips: video accuracy" in output
    assert (tmp_path / "report" / "report.html").is_file()

    video = min((tmp_path / "clips" / "videos").iterdir())
    output = run("predict_video.py", tmp_path / "run" / "model.safetensors", video, "no such file", "--threshold", 0)
    assert re.search(r"fight \d\.\d\d from \(", output)
    assert "  no such file: " in output

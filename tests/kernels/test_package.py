"""The kernels are a package of their own, which needs nothing of video."""

from __future__ import annotations

import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import actdet_kernels
import pytest
import torch

KERNELS = Path(__file__).parents[2] / "kernels"

CRITERION = """
import json
from importlib.metadata import requires
from importlib.util import find_spec
import torch
import actdet_kernels
from actdet_kernels.detr import HungarianMatcher, SetCriterion

torch.manual_seed(0)
logits = torch.randn(2, 12, 4, requires_grad=True)
boxes = torch.rand(2, 12, 4).mul(0.5).requires_grad_()
targets = [{"labels": [1, 0], "boxes": [[0.2, 0.2, 0.1, 0.1], [0.6, 0.5, 0.2, 0.3]]}, {"labels": [], "boxes": []}]
criterion = SetCriterion(3, HungarianMatcher(1, 5, 2), {}, eos_coef=0.1)
losses = criterion({"pred_logits": logits, "pred_boxes": boxes}, targets)
(losses["loss_ce"] + losses["loss_bbox"] + losses["loss_giou"]).backward()
print(json.dumps({
    "place": actdet_kernels.__file__,
    "requires": requires("actdet-kernels"),
    "losses": sorted(losses),
    "gradients": [bool(leaf.grad.isfinite().all() and leaf.grad.any()) for leaf in (logits, boxes)],
    "actdet": find_spec("actdet") is not None,
}))
"""


def test_no_file_has_the_name_of_an_operation() -> None:
    """Importing one would put the module where `from actdet_kernels import match` finds the function."""
    files = {module.name for module in pkgutil.iter_modules(actdet_kernels.__path__)}
    assert "matching" in files
    assert files.isdisjoint(actdet_kernels.__all__)


@pytest.mark.slow
def test_installed_alone_it_runs_a_criterion(tmp_path: Path) -> None:
    """In an environment of its own, which shares nothing but what PyTorch, Triton and SciPy are installed with here."""
    pytest.importorskip("setuptools")
    # What is built there leaves its traces beside the sources.
    shutil.copytree(KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=250)
    (packages,) = environment.glob("lib/python*/site-packages")
    shared = Path(torch.__file__).parents[1]
    (packages / "shared.pth").write_text(f"{shared}\n")
    python = environment / "bin/python"
    install = [python, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--ignore-installed", "--no-deps"]
    subprocess.run([*install, "./kernels"], cwd=tmp_path, check=True, timeout=250)
    # Everything else that it asks for is there: without an index there is nowhere to take it from.
    subprocess.run(
        [python, "-m", "pip", "install", "--no-index", "actdet-kernels"], cwd=tmp_path, check=True, timeout=250
    )
    done = subprocess.run(
        [python, "-c", CRITERION], cwd=tmp_path, env={}, check=True, capture_output=True, text=True, timeout=250
    )
    found = json.loads(done.stdout)
    assert Path(found["place"]).is_relative_to(environment)
    needed = {requirement.partition(">")[0] for requirement in found["requires"]}
    assert needed == {"torch", "triton", "numpy", "scipy"}
    assert found["losses"] == ["cardinality_error", "class_error", "loss_bbox", "loss_ce", "loss_giou"]
    assert found["gradients"] == [True, True]
    assert not found["actdet"]

"""The kernels are a package of their own, which needs nothing of video, and which actdet depends on."""

from __future__ import annotations

import json
import os
import pkgutil
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import actdet_kernels
import pytest
import torch

from tests.kernels.device import NEEDS_COMPILER

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"

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
    "backend": actdet_kernels.explain_backend(logits.device),
}))
"""
NO_COMPILER = {"CC": "nowhere/cc", "CXX": "nowhere/c++"}
PLACES = """
import json, actdet, actdet_kernels, actdet_kernels.triton.loss
print(json.dumps([actdet.__file__, actdet_kernels.__file__]))
"""


def test_no_file_has_the_name_of_an_operation() -> None:
    """Importing one would put the module where `from actdet_kernels import match` finds the function."""
    files = {module.name for module in pkgutil.iter_modules(actdet_kernels.__path__)}
    assert "matching" in files
    assert files.isdisjoint(actdet_kernels.__all__)


def test_these_are_the_kernels_of_this_checkout() -> None:
    """A copy that was installed would pass the tests whatever is changed here."""
    assert Path(actdet_kernels.__file__).is_relative_to(KERNELS)


def test_every_folder_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("setuptools")
    kernels = tomllib.loads((KERNELS / "pyproject.toml").read_text())
    assert set(kernels["tool"]["setuptools"]["packages"]) == folders(KERNELS / "actdet_kernels")

    monkeypatch.setattr(sys, "argv", ["setup.py", "dist_info"])
    copied = runpy.run_path(str(ROOT / "setup.py"))
    assert set(copied["packages"]) == folders(ROOT / "actdet")
    assert f"actdet-kernels @ {KERNELS.as_uri()}" in copied["requirements"]

    monkeypatch.setattr(sys, "argv", ["setup.py", "editable_wheel"])
    linked = runpy.run_path(str(ROOT / "setup.py"))
    assert set(linked["packages"]) == folders(ROOT / "actdet") | folders(KERNELS / "actdet_kernels")
    assert not any("actdet-kernels" in requirement for requirement in linked["requirements"])


def test_both_distributions_have_one_version() -> None:
    """What is built of a source archive asks for the kernels of its own version."""
    both = [tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, KERNELS)]
    assert both[0]["version"] == both[1]["version"]


def folders(package: Path) -> set[str]:
    """The dotted names of a package and of all within it."""
    return {".".join(file.parent.relative_to(package.parent).parts) for file in package.rglob("__init__.py")}


def run(*command: Any, folder: Path, **variables: str) -> str:
    variables["PATH"] = os.environ["PATH"]  # a compiler finds its own parts by it
    done = subprocess.run(
        command, cwd=folder, env=variables, check=True, stdout=subprocess.PIPE, text=True, timeout=250
    )
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy: what is built leaves its traces beside the sources."""
    pytest.importorskip("setuptools")
    folder = tmp_path / "checkout"
    traces = shutil.ignore_patterns("*.egg-info", "build", "__pycache__", "*.so")
    for name in ("actdet", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=traces)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """It shares nothing but what PyTorch, Triton and SciPy are installed with here, and has no index."""
    folder = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=tmp_path)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder


def install(environment: Path, *what: Any, folder: Path, **variables: str) -> None:
    """Itself, and nothing that it asks for."""
    pip = [environment / "bin/python", "-m", "pip", "install", "--no-index", "--no-build-isolation"]
    run(*pip, "--ignore-installed", "--no-deps", *what, folder=folder, **variables)


def require(environment: Path, name: str, *options: Any) -> None:
    """Install what an installed distribution asks for. Without an index that is what is there, and the kernels."""
    pip = [environment / "bin/python", "-m", "pip", "install", "--no-index", "--no-build-isolation"]
    run(*pip, *options, name, folder=environment)


def assert_compiled(folder: Path) -> None:
    """The C++ kernels are there once, where there is a compiler: a file of theirs that is missing is no error."""
    assert len(list(folder.rglob("native.abi3.so"))) == (shutil.which("c++") is not None)


def copies(environment: Path) -> list[Path]:
    return [file.parent for file in environment.rglob("actdet_kernels/__init__.py")]


def imported_from(environment: Path) -> list[Path]:
    """The files that are `actdet` and `actdet_kernels` there."""
    return [Path(place) for place in json.loads(run(environment / "bin/python", "-c", PLACES, folder=environment))]


@pytest.mark.slow
def test_installed_alone_it_runs_a_criterion(checkout: Path, environment: Path) -> None:
    install(environment, "./kernels", folder=checkout)
    require(environment, "actdet-kernels")
    found = json.loads(run(environment / "bin/python", "-c", CRITERION, folder=environment))
    assert Path(found["place"]).is_relative_to(environment)
    needed = {requirement.partition(">")[0] for requirement in found["requires"]}
    assert needed == {"torch", "triton", "numpy", "scipy"}
    assert found["losses"] == ["cardinality_error", "class_error", "loss_bbox", "loss_ce", "loss_giou"]
    assert found["gradients"] == [True, True]
    assert not found["actdet"]
    assert_compiled(environment)


@pytest.mark.slow
def test_without_a_compiler_the_reference_runs(checkout: Path, environment: Path) -> None:
    install(environment, "./kernels", folder=checkout, **NO_COMPILER)
    found = json.loads(run(environment / "bin/python", "-c", CRITERION, folder=environment))
    assert found["gradients"] == [True, True]
    assert found["backend"].startswith("reference: the C++ kernels were not built, ")


@pytest.mark.slow
@NEEDS_COMPILER
def test_a_wheel_needs_no_compiler(checkout: Path, environment: Path) -> None:
    """One for every Python: it holds nothing of this one's, nor of this PyTorch's."""
    pip = [environment / "bin/python", "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps"]
    run(*pip, "./kernels", folder=checkout)
    (wheel,) = checkout.glob("*.whl")
    assert wheel.name.startswith("actdet_kernels-")
    assert "-cp311-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "/cpu/" in name]
    assert "actdet_kernels/cpu/native.abi3.so" in names
    assert not any("/src/" in name for name in names)

    install(environment, wheel, folder=checkout, **NO_COMPILER)
    found = json.loads(run(environment / "bin/python", "-c", CRITERION, folder=environment))
    assert found["backend"].startswith("cpu: C++ kernels, ")
    assert found["gradients"] == [True, True]


@pytest.mark.slow
def test_actdet_brings_one_copy_of_the_kernels(checkout: Path, environment: Path) -> None:
    install(environment, ".", folder=checkout)
    assert copies(environment) == []
    require(environment, "actdet")
    (copy,) = copies(environment)
    actdet, kernels = imported_from(environment)
    assert actdet.is_relative_to(environment)
    assert kernels == copy / "__init__.py"
    assert_compiled(environment)


@pytest.mark.slow
def test_an_editable_install_is_a_link_to_both_packages(checkout: Path, environment: Path) -> None:
    install(environment, "--editable", ".", folder=checkout)
    require(environment, "actdet")
    assert copies(environment) == []
    wanted = [checkout / "actdet/__init__.py", checkout / "kernels/actdet_kernels/__init__.py"]
    assert imported_from(environment) == wanted
    assert_compiled(checkout)


@pytest.mark.slow
def test_archives_of_both_are_enough(checkout: Path, environment: Path, tmp_path: Path) -> None:
    archives = tmp_path / "archives"
    archives.mkdir()
    for backend, folder in (("setup", checkout), ("setuptools.build_meta", checkout / "kernels")):
        build = (
            f"import sys; sys.path.insert(0, ''); import {backend} as backend; backend.build_sdist({str(archives)!r})"
        )
        run(environment / "bin/python", "-c", build, folder=folder)
    kernels, actdet = sorted(archives.iterdir(), key=lambda archive: len(archive.name), reverse=True)
    with tarfile.open(actdet) as archive:
        assert not any("kernels" in name for name in archive.getnames())
    shutil.rmtree(checkout)

    install(environment, actdet, folder=tmp_path)
    require(environment, "actdet", "--find-links", archives)
    assert kernels.name.startswith("actdet_kernels-")
    assert len(copies(environment)) == 1
    assert all(place.is_relative_to(environment) for place in imported_from(environment))
    assert_compiled(environment)

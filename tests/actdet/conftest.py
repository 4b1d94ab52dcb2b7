"""A rendered data set, a small network and a trained checkpoint, made once for all tests that need them."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import actdet.models.detr.features
import actdet.models.tubelet.features
from actdet import pictures
from actdet.cli.main import main
from actdet.evaluation import plots
from tests.actdet.command import Actdet, Outcome
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS, TinyBackbone, TinyFrameBackbone


@pytest.fixture
def actdet_command(
    tiny_backbone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Actdet]:
    """Runs the command in this process.

    In its reports plots are built and not drawn, and pictures are as small as their videos: how they look is seen in
    the tests of reports and pictures. The run of `trained` has all of them.
    """
    monkeypatch.setattr(plots, "_svg", lambda figure: "<svg></svg>")
    monkeypatch.setattr(pictures, "_LEAST_WIDTH", 64)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["actdet", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    with _kept_handlers():
        yield run


@pytest.fixture
def no_bf16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations compute in float32 as the trainings of most tests do, whatever the units of this processor."""
    monkeypatch.setattr("actdet.device._cpu_has_bf16", lambda: False)


@pytest.fixture
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two or three convolutions instead of R(2+1)D-18, on one thread: others may be using the machine."""
    with _tiny_backbone(monkeypatch):
        yield


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips, four of each class and four of none, made by the command `render`."""
    once = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist have their folders beside each other.
    if "PYTEST_XDIST_WORKER" in os.environ:
        once = once.parent
    root = tmp_path_factory.mktemp("rendered") / "set"

    # Every process that comes here after the first one finds all clips there. Each takes a copy to itself.
    with open(once / "rendering.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run_command("render", once / "set", "--clips", 12, "--width", 64, "--height", 64, "--frames", 16, "--fps", 8)
        return Path(shutil.copytree(once / "set", root))


@pytest.fixture(scope="session")
def trained(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the command `train`, on `rendered`, of one epoch."""
    out = tmp_path_factory.mktemp("trained") / "run"
    _run_command("train", rendered, "--out", out, "--epochs", 1, *MODEL_OPTIONS, *TRAIN_OPTIONS)
    return out


@pytest.fixture
def data(rendered: Path, tmp_path: Path) -> Path:
    """A copy of the rendered data set, to damage."""
    return Path(shutil.copytree(rendered, tmp_path / "data"))


@pytest.fixture
def model(trained: Path) -> Path:
    """The file of the detector that `trained` has made."""
    return trained / "model.safetensors"


def _run_command(*arguments: object) -> None:
    """Run the command in this process, with the small network."""
    with pytest.MonkeyPatch.context() as patch, _tiny_backbone(patch), _kept_handlers():
        patch.setattr(sys, "argv", ["actdet", *map(str, arguments)])
        main()


@contextmanager
def _tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Context manager: detectors are made with the small backbones, and PyTorch uses one thread."""
    monkeypatch.setattr(actdet.models.detr.features, "Backbone", TinyBackbone)
    monkeypatch.setattr(actdet.models.tubelet.features, "FrameBackbone", TinyFrameBackbone)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Context manager: handlers of signals that are set within are replaced by those from before at its end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""A rendered data set, a small network and a trained checkpoint, made once for all tests that need them."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import actdet.models.detr.detector
from actdet import pictures
from actdet.cli import main as cli
from actdet.evaluation import report
from tests.actdet.command import Actdet, Outcome
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS, TinyBackbone


@pytest.fixture
def actdet_command(
    tiny_backbone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Actdet]:
    """Runs the command in this process.

    In its reports plots are built and not drawn, and pictures are as small as their videos: how they look is seen in
    the tests of reports and pictures. The run of `trained` has all of them.
    """
    monkeypatch.setattr(report, "_svg", lambda figure: "<svg></svg>")
    monkeypatch.setattr(pictures, "_LEAST_WIDTH", 64)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["actdet", *map(str, arguments)])
        monkeypatch.setattr(cli, "_stop_signal", 0)
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Outcome(code, *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two convolutions instead of R(2+1)D-18, on one thread: others may be using the machine."""
    yield from _small(monkeypatch)


def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(actdet.models.detr.detector, "Backbone", TinyBackbone)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _main(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small = _small(patch)
        next(small)
        patch.setattr(sys, "argv", ["actdet", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        cli.main()
        signal.signal(signal.SIGTERM, handler)
        next(small, None)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips, four of each class and four of none, made by the command `render`."""
    once = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist have their folders beside each other.
    if "PYTEST_XDIST_WORKER" in os.environ:
        once = once.parent
    root = tmp_path_factory.mktemp("rendered") / "set"
    with open(once / "rendering.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The second of them finds all clips there, and nobody changes a file of the set from which each has a copy.
        _main("render", once / "set", "--clips", 12, "--width", 64, "--height", 64, "--frames", 16, "--fps", 8)
        return Path(shutil.copytree(once / "set", root))


@pytest.fixture(scope="session")
def trained(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the command `train`, on `rendered`, of one epoch."""
    out = tmp_path_factory.mktemp("trained") / "run"
    _main("train", rendered, "--out", out, "--epochs", 1, *MODEL_OPTIONS, *TRAIN_OPTIONS)
    return out


@pytest.fixture
def data(rendered: Path, tmp_path: Path) -> Path:
    """A copy of the rendered data set, to damage."""
    return Path(shutil.copytree(rendered, tmp_path / "data"))


@pytest.fixture
def model(trained: Path) -> Path:
    return trained / "model.safetensors"

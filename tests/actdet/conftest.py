"""A rendered data set, a small network and a trained checkpoint, made once for all tests that need them."""

from __future__ import annotations

import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "data"))  # for `videos`

from tiny import MODEL_OPTIONS, TRAIN_OPTIONS, TinyBackbone

import actdet.models.detector
from actdet import cli


@dataclass(frozen=True)
class Outcome:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines on stderr that are no progress bar."""
        lines = (line.strip() for line in re.split("[\r\n]", self.err))
        return [line for line in lines if line and not re.search(r"\[\d\d:\d\d[^]]*\]$", line)]

    def complaint(self) -> str:
        """The one line of an error, and that it is one."""
        assert self.code == 1, (self.code, self.err)
        assert "Traceback" not in self.err + self.out
        assert len(self.complaints) == 1, self.complaints
        assert self.complaints[0].startswith("actdet: ")
        return self.complaints[0].removeprefix("actdet: ")


Actdet = Callable[..., Outcome]


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Within: files can grow to so many bytes only, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def actdet_command(
    tiny_backbone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Actdet]:
    """Runs the command in this process."""
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
    monkeypatch.setattr(actdet.models.detector, "Backbone", TinyBackbone)
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
    root = tmp_path_factory.mktemp("rendered") / "set"
    _main("render", root, "--clips", 12, "--width", 64, "--height", 64, "--frames", 16, "--fps", 8)
    return root


@pytest.fixture(scope="session")
def trained(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the command `train`, on `rendered`, of one epoch."""
    out = tmp_path_factory.mktemp("trained") / "run"
    _main("train", rendered, "--out", out, "--epochs", 1, *MODEL_OPTIONS, *TRAIN_OPTIONS)
    return out

"""What several tests of the commands start with."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actdet.cli.demo_settings import Demo
from actdet.cli.signals import interrupt_on_signals
from actdet.models.detr.config import ModelConfig
from actdet.synthetic.rendered import RenderConfig
from actdet.training.config import TrainConfig
from tests.actdet.video.videos import write_video


@pytest.fixture
def door(tmp_path: Path) -> Path:
    """A short video, alone in its folder."""
    (tmp_path / "in").mkdir()
    return write_video(tmp_path / "in" / "door.webm", "libvpx-vp9", frames=9)


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Signals are handled as in a command that has just begun, until the test is over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt_on_signals()
    yield
    # No other test finds the signal that this one has sent.
    interrupt_on_signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """`actdet demo` renders six clips, trains on them for one epoch, and evaluates on six others."""
    clips = RenderConfig(clips=6, width=64, height=64, frames=16, fps=8, workers=1)
    model = ModelConfig(image_size=32, frames=8, encoder_layers=0, decoder_layers=1)
    config = TrainConfig(epochs=1, backbone_weights="none", workers=0, precision="fp32")
    demo = Demo(clips, replace(clips, seed=1), model, config)
    monkeypatch.setattr("actdet.cli.demo_settings.demo_for", lambda *_: demo)

"""How long a training will take is estimated from steps that are tried, and said in words."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from actdet.models.backbones.r2plus1d import Backbone
from actdet.models.config import FamilyConfig
from actdet.models.detr.config import ModelConfig
from actdet.models.stma.config import StmaConfig
from actdet.models.tubelet.config import TubeletConfig
from actdet.training import duration
from actdet.training.config import TrainConfig
from actdet.training.cost import step_flop
from actdet.training.duration import describe_duration, in_words, is_short, seconds_per_clip, training_seconds

TINY = ModelConfig(image_size=32, frames=8, encoder_layers=0, decoder_layers=1)


@pytest.mark.usefixtures("tiny_backbone")
def test_what_is_tried_takes_less_than_the_trial_and_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    started = time.monotonic()
    seconds = seconds_per_clip(TINY, TrainConfig(batch_size=4), torch.float32)
    passed = time.monotonic() - started
    assert 0 < 4 * seconds < passed
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("tiny_backbone")
def test_large_clips_are_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    class Step(duration.TrainStep):
        def run(self, batch: duration.Batch, *, lr: float, seed: int, number: int) -> None:
            shapes.append(batch.clips.shape)

    monkeypatch.setattr(duration, "TrainStep", Step)
    seconds_per_clip(ModelConfig(image_size=224, frames=16), TrainConfig(batch_size=8), torch.float32)
    seconds_per_clip(TINY, TrainConfig(batch_size=8), torch.float32)
    assert [tuple(shape) for shape in shapes] == [(1, 3, 16, 224, 224)] * 3 + [(8, 3, 8, 32, 32)] * 3


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (59.2, "60 s"),
        (61, "1 min"),
        (200, "3 min 20 s"),
        (596, "10 min"),
        (3540, "59 min"),
        (3600, "1 h"),
        (18600, "5 h 10 min"),
        (10**6, "12 days"),
    ],
)
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (ModelConfig(), "with --image-size 112 about 45 s each"),
        (ModelConfig(image_size=96), "with --image-size 48 about 45 s each"),
        (ModelConfig(image_size=48, frames=32), "with --frames 16 about 1 min 30 s each"),
        (ModelConfig(image_size=48, frames=8), "fewer --epochs take less"),
    ],
)
def test_the_option_that_makes_it_less_is_named(model: ModelConfig, advice: str) -> None:
    line = describe_duration(model, TrainConfig(epochs=50), 180)
    assert line == f"an epoch takes about 3 min here, all 50 about 2 h 30 min: {advice}"
    assert describe_duration(model, TrainConfig(), 60) is None


@cache
def flop_of(side: int, shallow: bool) -> int:
    """Of the backbone, forward and backward, for a clip of 8 frames; counted once for all epochs that are alike."""
    with FakeTensorMode():
        backbone = Backbone(aligned=False)
        backbone.shallow = shallow
        with FlopCounterMode(display=False) as counted:
            backbone(torch.empty(1, 3, 8, side, side)).sum().backward()
    return counted.get_total_flops()


@pytest.mark.parametrize(("small", "shallow"), [(0, 5), (5, 0), (4, 5), (5, 2), (3, 3), (0, 0)])
def test_epochs_take_as_much_less_as_they_have_less_to_compute(small: int, shallow: int) -> None:
    flop = sum(flop_of(79 if epoch < small else 112, epoch < shallow) for epoch in range(6))
    config = TrainConfig(epochs=6, small_epochs=small, shallow_epochs=shallow, backbone_weights="none")
    assert training_seconds(config, 100) == pytest.approx(100 * flop / flop_of(112, False), rel=0.05)


@pytest.mark.parametrize(("frames", "size"), [(8, 48), (16, 112), (16, 224)])
def test_the_flop_of_a_step_are_nearly_those_that_are_counted(frames: int, size: int) -> None:
    model = ModelConfig(frames=frames, image_size=size)
    assert duration.step_flop(model) == pytest.approx(step_flop(model), rel=0.15)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(),
        TubeletConfig(attention="plain", temporal_strides=0),
        StmaConfig(picture_backbone="dla-34", clip_backbone="r2plus1d-18"),
    ],
    ids=lambda model: model.family,
)
def test_what_is_certainly_quick_is_so_with_the_costliest_settings(model: FamilyConfig) -> None:
    """At five GFLOP a second, which any core does."""
    small = replace(model, image_size=32)
    clips = 1
    while is_short(small, clips + 1):
        clips += 1
    assert clips * step_flop(model) * (32 / model.image_size) ** 2 < 60 * 5e9
    assert not is_short(small, 1000)
    assert not is_short(model, 1)

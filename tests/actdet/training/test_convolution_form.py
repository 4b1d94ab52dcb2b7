"""The form of the convolutions is measured on the batch of a training, or on what of it fits into the memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from actdet.models.backbones.convolution import FactorizedConv
from actdet.models.backbones.r2plus1d import Backbone
from actdet.models.detr import features
from actdet.models.detr.config import ModelConfig
from actdet.training import convolution_form
from actdet.training.convolution_form import choose_convolutions

MODEL = ModelConfig(image_size=112)


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        (11, (True, "110.0 ms a step against 130.0")),
        (10, (True, "75.0 ms a step of 5 clips against 80.0")),
        # On two clips the other form is faster.
        (3, (False, "50.0 ms a step of 2 clips against 54.0")),
        (0, (True, "too little memory to measure")),
    ],
)
def test_the_faster_form_is_chosen_on_the_batch_or_what_of_it_fits(
    fits: int, expected: tuple[bool, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten clips on a GPU that does not exist, whose 3-D form takes longer for each clip but less to begin."""

    def seconds(model: ModelConfig, flat: bool, batch: int, *_: Any) -> float:
        assert model is MODEL
        # The 3-D form takes a little more memory.
        if batch > fits - (not flat):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.001 * (40 + 7 * batch if flat else 30 + 10 * batch)

    monkeypatch.setattr(convolution_form, "_seconds_of_passes", seconds)
    monkeypatch.setattr(convolution_form, "prepare_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert choose_convolutions(MODEL, 10, torch.device("cuda"), torch.bfloat16) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_measures_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of every CPU has the form that a new detector has, which `actdet.training.duration` relies on."""
    monkeypatch.setattr(convolution_form, "_seconds_of_passes", None)
    flat, _ = choose_convolutions(MODEL, 10, torch.device("cpu"), dtype)
    assert flat is FactorizedConv.flat is True


@pytest.mark.parametrize("flat", [True, False])
def test_passes_are_timed_over_the_whole_batch(flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(Backbone):
        def forward(self, input: Tensor) -> Tensor:
            seen.append((input.shape, input.is_contiguous(memory_format=torch.channels_last_3d)))
            assert all(part.flat == flat for part in self.modules() if isinstance(part, FactorizedConv))
            return super().forward(input)

    monkeypatch.setattr(features, "Backbone", Watched)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    small = ModelConfig(frames=8, image_size=32)
    seconds = convolution_form._seconds_of_passes(small, flat, 3, torch.device("cpu"), torch.float32)
    assert seconds > 0
    assert set(seen) == {((3, 3, 8, 32, 32), True)}

"""The form of the convolutions is measured on the batch of a training, or on what of it fits into the memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from actdet.models.backbones.convolution import FactorizedConv
from actdet.models.backbones.r2plus1d import Backbone
from actdet.training import convolution_form
from actdet.training.convolution_form import choose_convolutions


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

    def seconds(flat: bool, shape: tuple[int, ...], *_: Any) -> float:
        assert shape[1:] == (3, 16, 112, 112)
        # The 3-D form takes a little more memory.
        if shape[0] > fits - (not flat):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.001 * (40 + 7 * shape[0] if flat else 30 + 10 * shape[0])

    monkeypatch.setattr(convolution_form, "_seconds_of_passes", seconds)
    monkeypatch.setattr(convolution_form, "prepare_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert choose_convolutions((10, 3, 16, 112, 112), torch.device("cuda"), torch.bfloat16) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_measures_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of every CPU has the form that a new detector has, which `actdet.training.duration` relies on."""
    monkeypatch.setattr(convolution_form, "_seconds_of_passes", None)
    flat, _ = choose_convolutions((10, 3, 16, 112, 112), torch.device("cpu"), dtype)
    assert flat is FactorizedConv.flat is True


@pytest.mark.parametrize("flat", [True, False])
def test_passes_are_timed_over_the_whole_batch(flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(Backbone):
        def forward(self, input: Tensor) -> Tensor:
            seen.append((input.shape, input.is_contiguous(memory_format=torch.channels_last_3d)))
            assert all(part.flat == flat for part in self.modules() if isinstance(part, FactorizedConv))
            return super().forward(input)

    monkeypatch.setattr(convolution_form, "Backbone", Watched)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    seconds = convolution_form._seconds_of_passes(flat, (3, 3, 2, 16, 16), torch.device("cpu"), torch.float32)
    assert seconds > 0
    assert set(seen) == {((3, 3, 2, 16, 16), True)}

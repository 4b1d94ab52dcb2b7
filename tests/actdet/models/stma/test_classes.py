"""How classes are told, against the equations of the paper, channel by channel in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from actdet.models.stma.classes import ChannelAttention, ClassHead, MotionExcitation


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalized(features: Tensor, norm: torch.nn.Module) -> Tensor:
    """BatchNorm in evaluation mode, (C, h, w)."""
    mean, variance, weight, bias = (
        getattr(norm, name)[:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (features - mean) / (variance + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize("frames", [1, 2, 5])
@torch.no_grad()
def test_motion_excitation_is_that_of_equations_1_and_2(frames: int) -> None:
    torch.manual_seed(0)
    module = MotionExcitation(32).double().eval()
    for norm in (module.reduce[1], module.expand[1]):
        norm.get_buffer("running_mean").copy_(noise(norm.get_buffer("running_mean").numel(), seed=1))
        norm.get_buffer("running_var").copy_(noise(norm.get_buffer("running_var").numel(), seed=2).exp())
        norm.get_parameter("weight").copy_(noise(norm.get_parameter("weight").numel(), seed=3))
    given = noise(2, frames, 32, 3, 4)
    got = module(given)

    reduce, expand = (layer[0].get_parameter("weight")[:, :, 0, 0] for layer in (module.reduce, module.expand))
    for sample in range(2):
        narrow = [
            normalized(torch.einsum("oc,chw->ohw", reduce, given[sample, t]), module.reduce[1]) for t in range(frames)
        ]
        for t in range(frames):
            motion = torch.zeros_like(narrow[0])
            if t + 1 < frames:
                for channel, plane in enumerate(narrow[t + 1]):
                    kernel = module.next.weight[channel, 0]
                    padded = F.pad(plane, (1, 1, 1, 1))
                    for y in range(3):
                        for x in range(4):
                            around = (padded[y : y + 3, x : x + 3] * kernel).sum()
                            motion[channel, y, x] = around - narrow[t][channel, y, x]
            average = motion.mean((1, 2))
            mask = normalized((expand @ average)[:, None, None], module.expand[1]).sigmoid()
            torch.testing.assert_close(got[sample, t], given[sample, t] * (1 + mask), rtol=1e-9, atol=1e-9)


def test_channels_attend_to_those_that_are_unlike_them() -> None:
    module = ChannelAttention().double()
    given = noise(2, 6, 3, 4).float().double()
    assert torch.equal(module(given), given)

    with torch.no_grad():
        module.gamma.fill_(0.7)
        got = module(given)
    for sample in range(2):
        rows = given[sample].flatten(1)
        for channel in range(6):
            energy = torch.stack([(rows[channel] * rows[other]).sum() for other in range(6)])
            attention = (energy.max() - energy).softmax(0)
            wanted = sum(share * row for share, row in zip(attention, rows, strict=True))
            # Attention itself is in float32.
            torch.testing.assert_close(
                got[sample, channel].flatten(), rows[channel] + 0.7 * wanted, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("clip_width", [0, 10])
@pytest.mark.parametrize("motion", [False, True])
@torch.no_grad()
def test_logits_are_on_the_grid_of_the_clip(clip_width: int, motion: bool) -> None:
    torch.manual_seed(0)
    head = ClassHead(64, 3, 4, clip_width=clip_width, stride=4, motion_excitation=motion).eval()
    reduced = head.reduce(torch.randn(6, 64, 16, 12))
    assert reduced.shape == (6, 64, 4, 3)
    clip = torch.randn(2, clip_width, 4, 3) if clip_width else None
    assert head(reduced.unflatten(0, (2, 3)), clip).shape == (2, 4, 4, 3)

"""Features of every frame: interpolated in time, from several stages, of pictures and maps of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video import r2plus1d_18

from actdet.models.backbones.r2plus1d import STAGE_FEATURES, Backbone
from actdet.models.tubelet.features import FrameBackbone, Pyramid, picture_positions, resample_frames
from tests.actdet.models.backbones.test_r2plus1d import STAGES, randomized


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Time


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sides", [(3, 5), (1, 1), (7, 2)])
@pytest.mark.parametrize(
    ("given", "frames"), [(1, 8), (2, 16), (4, 16), (8, 16), (16, 8), (8, 8), (3, 7), (7, 3), (5, 1), (1, 1)]
)
def test_frames_are_interpolated_as_pytorch_does_it(
    given: int, frames: int, sides: tuple[int, int], channels_last: bool
) -> None:
    """So are the gradients."""
    features = noise(2, 6, given, *sides)
    if channels_last:
        features = features.to(memory_format=torch.channels_last_3d)
    features.requires_grad_()
    got = resample_frames(features, frames)
    wanted = F.interpolate(features.double(), (frames, *sides), mode="trilinear")
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)

    cotangent = noise(*got.shape, seed=1)
    (gradient,) = torch.autograd.grad(got, features, cotangent)
    (expected,) = torch.autograd.grad(wanted, features, cotangent.double())
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_interpolated_frames_have_the_type_of_the_given_ones(dtype: torch.dtype) -> None:
    features = noise(1, 4, 4, 2, 3, dtype=dtype)
    got = resample_frames(features, 16)
    assert got.dtype == dtype
    wanted = F.interpolate(features.double(), (16, 2, 3), mode="trilinear")
    torch.testing.assert_close(got.double(), wanted, rtol=2e-2, atol=2e-2)


def test_as_many_frames_stay_as_they_are() -> None:
    features = noise(1, 2, 8, 3, 3)
    assert resample_frames(features, 8) is features


# Positions


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 1), (14, 14)])
def test_positions_are_waves_of_the_place_in_the_picture(height: int, width: int) -> None:
    got = picture_positions(height, width)
    assert got.shape == (height, width, 256)
    for row, column in np.ndindex(height, width):
        expected = []
        for place in ((row + 0.5) / height, (column + 0.5) / width):
            angles = [2 * math.pi * place * 20 ** (-k / 64) for k in range(64)]
            expected += [*map(math.sin, angles), *map(math.cos, angles)]
        assert got[row, column].tolist() == pytest.approx(expected, abs=1e-4)


def test_no_two_places_have_the_same_position() -> None:
    flat = picture_positions(14, 14).flatten(0, 1)
    apart = torch.cdist(flat, flat) + 99 * torch.eye(len(flat))
    assert apart.min() > 1


# The pyramid


def stages_of(frames: list[int], sizes: list[tuple[int, int]], batch: int = 2) -> list[Tensor]:
    """What a backbone gives: a stage for each entry, the last ones of the network."""
    channels = STAGE_FEATURES[-len(sizes) :]
    shapes = zip(channels, frames, sizes, strict=True)
    return [noise(batch, depth, count, *size, seed=depth) for depth, count, size in shapes]


# The frames and sizes of the stages of a clip of 16 frames, by its picture and the strides in time.
GIVEN = {
    "224 pixels": ([8, 4, 2], [(28, 28), (14, 14), (7, 7)]),
    "45 pixels": ([8, 4, 2], [(12, 12), (6, 6), (3, 3)]),
    "maps of 3x5": ([8, 4, 2], [(11, 19), (6, 10), (3, 5)]),
    "all frames": ([16, 16, 16], [(4, 3), (2, 2), (1, 1)]),
    "two strides": ([8, 4, 4], [(5, 7), (3, 4), (2, 2)]),
    "the last stage alone": ([2], [(3, 5)]),
}


@pytest.mark.parametrize("name", [name for name in GIVEN if name != "224 pixels"])
def test_levels_get_what_the_coarser_ones_know(name: str) -> None:
    """By PyTorch's interpolation: linear in time, the nearest pixel in space."""
    frames, sizes = GIVEN[name]
    pyramid = Pyramid(STAGE_FEATURES[-len(sizes) :], 16, with_places=True)
    for parameter in pyramid.parameters():
        parameter.data += 0.1 * noise(*parameter.shape)
    stages = stages_of(frames, sizes)
    with torch.no_grad():
        got = pyramid(stages)

    pyramid = pyramid.double()
    above: Tensor | None = None
    levels: list[Tensor] = []
    for place in range(len(sizes) - 1, -1, -1):
        conv, norm = pyramid.projections[place].children()
        level = F.conv3d(stages[place].double(), conv.get_parameter("weight"), conv.get_parameter("bias"))
        level = F.group_norm(level, 32, norm.get_parameter("weight"), norm.get_parameter("bias"))
        if above is not None:
            in_time = F.interpolate(above, (level.shape[2], *above.shape[3:]), mode="trilinear")
            level = level + F.interpolate(in_time, level.shape[2:], mode="nearest")
        above = level
        levels.insert(0, F.interpolate(level, (16, *level.shape[3:]), mode="trilinear"))

    assert got.sizes == sizes
    assert got.pixels.shape == (2, 16, sum(height * width for height, width in sizes), 256)
    assert got.places is not None
    assert pyramid.levels is not None
    assert got.places.shape == got.pixels.shape[2:]
    pixel = 0
    for place, (height, width) in enumerate(sizes):
        positions = picture_positions(height, width)
        for row, column in np.ndindex(height, width):
            wanted = levels[place][:, :, :, row, column].transpose(1, 2)
            torch.testing.assert_close(got.pixels[:, :, pixel].double(), wanted, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(got.places[pixel], positions[row, column] + pyramid.levels[place].float())
            pixel += 1


@pytest.mark.parametrize("with_places", [False, True])
@pytest.mark.parametrize("frames", [8, 16, 32])
@pytest.mark.parametrize("name", GIVEN)
def test_any_sizes_give_every_frame(name: str, frames: int, with_places: bool) -> None:
    """And only what is told where pixels are learns the levels."""
    of_stages, sizes = GIVEN[name]
    with torch.device("meta"):
        pyramid = Pyramid(STAGE_FEATURES[-len(sizes) :], frames, with_places=with_places)
        got = pyramid([stage.to("meta") for stage in stages_of(of_stages, sizes)])
    assert got.pixels.shape == (2, frames, sum(height * width for height, width in sizes), 256)
    assert ("levels" in pyramid.state_dict()) == with_places
    if with_places:
        assert got.places is not None
        assert got.places.shape == got.pixels.shape[2:]
    else:
        assert got.places is None


# The backbone


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's network; leave its weights as they are."""
    return randomized(r2plus1d_18(weights=None)).eval()


def stages_by_torchvision(theirs: nn.Module, clips: Tensor, temporal_strides: int) -> list[Tensor]:
    """The outputs of all stages, the last ones of which keep the number of frames."""
    strided = []
    for stage in STAGES[2 + temporal_strides :]:
        for module in theirs.get_submodule(stage).modules():
            if isinstance(module, nn.Conv3d) and module.stride[0] == 2:
                strided.append((module, module.stride))
                module.stride = (1, *module.stride[1:])
    outputs = []
    try:
        for stage in STAGES:
            clips = theirs.get_submodule(stage)(clips)
            outputs.append(clips)
    finally:
        for module, stride in strided:
            module.stride = stride
    return outputs


@pytest.mark.parametrize(
    "temporal_strides", [1, 2, *(pytest.param(strides, marks=pytest.mark.slow) for strides in (0, 3))]
)
@torch.no_grad()
def test_the_last_stages_are_torchvisions_with_fewer_strides(theirs: nn.Module, temporal_strides: int) -> None:
    """Its weights fit, and the stages keep the frames that no stride takes away. The pictures have 45 pixels."""
    with torch.device("meta"):
        backbone = FrameBackbone(3, temporal_strides).eval()
    backbone.to_empty(device="cpu")
    parts = {name: name.partition(".") for name in theirs.state_dict()}
    own_names = {name: f"{STAGES.index(stage)}.{rest}" for name, (stage, _, rest) in parts.items() if stage in STAGES}
    backbone.load_state_dict({own: theirs.state_dict()[name] for name, own in own_names.items()})

    clips = noise(1, 3, 8, 45, 45)
    got = backbone(clips)
    wanted = stages_by_torchvision(theirs, clips, temporal_strides)[-3:]
    halvings = [min(stage, temporal_strides) for stage in (1, 2, 3)]
    assert [tuple(stage.shape) for stage in got] == [
        (1, channels, 8 >> halved, side, side)
        for channels, halved, side in zip((128, 256, 512), halvings, (12, 6, 3), strict=True)
    ]
    for stage, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(stage, expected, rtol=1e-3, atol=1e-3)

    # The features of whole clips are those of the last stage.
    torch.testing.assert_close(Backbone.forward(backbone, clips), got[-1])
    backbone.widths = (512,)
    (last,) = backbone(clips)
    torch.testing.assert_close(last, got[-1])

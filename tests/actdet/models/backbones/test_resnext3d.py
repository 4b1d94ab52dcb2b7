"""ResNeXt-101 in three dimensions is 3D-ResNets-PyTorch's network, on the pixels that all networks here take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from actdet.data.augment import normalize
from actdet.errors import ActdetError, DataError
from actdet.models.backbones.folding import fold_norms
from actdet.models.backbones.resnext3d import FEATURES, SPATIAL_STRIDE, TEMPORAL_STRIDE, ResNeXt101

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

# The bytes that 3D-ResNets-PyTorch subtracted when it trained these weights: issue 12 there.
MEAN = torch.tensor([114.7748, 107.7354, 99.4750], dtype=torch.float64)

# ImageNet's mean color, which is zero for all networks here.
OUR_ZERO = 255 * torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)

# Blocks and middle channels of the four stages.
STAGES = [(3, 128), (4, 256), (23, 512), (3, 1024)]


def norm_shapes(name: str, width: int) -> Shapes:
    # PyTorch did not count batches yet.
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def published_shapes() -> Shapes:
    """The tensors of resnext-101-kinetics.pth, written down from the project's network."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7, 7), **norm_shapes("bn1", 64)}
    width = 64
    for stage, (count, middle) in enumerate(STAGES, 1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (middle, width, 1, 1, 1), **norm_shapes(f"{name}.bn1", middle)}
            shapes |= {f"{name}.conv2.weight": (middle, middle // 32, 3, 3, 3), **norm_shapes(f"{name}.bn2", middle)}
            shapes |= {f"{name}.conv3.weight": (2 * middle, middle, 1, 1, 1), **norm_shapes(f"{name}.bn3", 2 * middle)}
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (2 * middle, width, 1, 1, 1)
                shapes |= norm_shapes(f"{name}.downsample.1", 2 * middle)
            width = 2 * middle
    return {**shapes, "fc.weight": (400, 2048), "fc.bias": (400,)}


@pytest.fixture(scope="module")
def state() -> State:
    """Weights as a training leaves them; the residual branches are small, so that 33 of them do not explode."""
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, shape in published_shapes().items():
        if len(shape) > 1:
            values[name] = torch.randn(shape, generator=generator) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        elif name.endswith(("weight", "running_var")):
            values[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            values[name] = 0.3 * torch.randn(shape, generator=generator)
        if name.endswith("bn3.weight"):
            values[name] *= 0.2
        if name == "bn1.running_var":
            values[name] *= 60**2
    return values


@pytest.fixture(scope="module")
def file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnext-101-kinetics.pth"
    together = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 200, "arch": "resnext-101", "state_dict": together, "optimizer": {"param_groups": []}}, path)
    return path


@pytest.fixture(scope="module")
def fresh() -> ResNeXt101:
    torch.manual_seed(0)
    return ResNeXt101()


@pytest.fixture(scope="module")
def loaded(file: Path, fresh: ResNeXt101) -> ResNeXt101:
    network = deepcopy(fresh)
    network.load_weights(str(file))
    return network.eval()


def pixels(clips: int, frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (clips, frames, height, width, 3), dtype=torch.uint8, generator=generator)


def by_hand(state: State, clips: Tensor) -> Tensor:
    """The published network in float64 on clips (B, T, H, W, 3) of bytes."""
    state = {name: value.double() for name, value in state.items()}

    def norm(features: Tensor, name: str) -> Tensor:
        moments = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(features, *moments, state[f"{name}.weight"], state[f"{name}.bias"])

    # Beyond the border, and before and after the clip, is what is zero here.
    batch, frames, height, width, _ = clips.shape
    padded = OUR_ZERO.repeat(batch, frames + 6, height + 6, width + 6, 1)
    padded[:, 3:-3, 3:-3, 3:-3] = clips.double()
    features = F.conv3d((padded - MEAN).permute(0, 4, 1, 2, 3), state["conv1.weight"], stride=(1, 2, 2))
    features = F.max_pool3d(norm(features, "bn1").relu(), 3, 2, 1)

    for stage, (count, _) in enumerate(STAGES, 1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            inside = norm(F.conv3d(features, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            inside = F.conv3d(inside, state[f"{name}.conv2.weight"], stride=stride, padding=1, groups=32)
            inside = F.conv3d(norm(inside, f"{name}.bn2").relu(), state[f"{name}.conv3.weight"])
            if block == 0:
                shortcut = F.conv3d(features, state[f"{name}.downsample.0.weight"], stride=stride)
                features = norm(shortcut, f"{name}.downsample.1")
            features = (norm(inside, f"{name}.bn3") + features).relu()
    return features


def check_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


@pytest.mark.parametrize("size", [(1, 16, 32, 64), (2, 5, 33, 20), (1, 1, 1, 3)], ids=str)
@torch.no_grad()
def test_it_is_the_published_network(state: State, loaded: ResNeXt101, size: tuple[int, int, int, int]) -> None:
    clips = pixels(*size)
    wanted = by_hand(state, clips)
    _, frames, height, width = size
    sides = (math.ceil(frames / TEMPORAL_STRIDE), math.ceil(height / SPATIAL_STRIDE), math.ceil(width / SPATIAL_STRIDE))
    assert wanted.shape == (size[0], FEATURES, *sides)
    assert wanted.std() > 0.1
    got = loaded(normalize(clips))
    check_near(got, wanted, 2e-4)

    # The layout of the features changes nothing.
    check_near(loaded(normalize(clips).contiguous()), got.double(), 1e-4)


@torch.no_grad()
def test_the_stem_sees_what_it_has_learned_to_see(state: State, loaded: ResNeXt101) -> None:
    """Away from the border and from the ends of the clip, and whatever comes after it."""
    clips = pixels(2, 9, 20, 22)
    published = (clips.double() - MEAN).permute(0, 4, 1, 2, 3)
    # With a stride of two, the third pixel of the output is the first that sees no padding.
    wanted = F.conv3d(published[:, :, :, 1:, 1:], state["conv1.weight"].double(), stride=(1, 2, 2))
    parts = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (state[f"bn1.{part}"].double() for part in parts)
    wanted = F.batch_norm(wanted, mean, var, weight, bias).relu()
    got = loaded.get_submodule("stem")(normalize(clips))
    check_near(got[:, :, 3:-3, 2:9, 2:10], wanted, 1e-5)


def test_it_has_the_published_parameters(fresh: ResNeXt101) -> None:
    """47.52 M, and 48.34 M with the classifier of 400 classes: each tensor is one of the published network."""
    shapes = published_shapes()
    parameters = sum(torch.Size(shape).numel() for name, shape in shapes.items() if "running" not in name)
    own = sum(parameter.numel() for parameter in fresh.parameters())
    assert own == 47_521_216
    assert own + 2048 * 400 + 400 == parameters == 48_340_816


@torch.no_grad()
def test_its_norms_fold_into_its_convolutions(loaded: ResNeXt101) -> None:
    clips = torch.randn(1, 3, 4, 24, 32, generator=torch.Generator().manual_seed(1))
    folded = fold_norms(loaded)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in folded.modules())
    check_near(folded(clips), loaded(clips).double(), 1e-4)


def test_every_parameter_learns(fresh: ResNeXt101) -> None:
    network = deepcopy(fresh).train()
    clips = torch.randn(2, 3, 4, 32, 64, generator=torch.Generator().manual_seed(2))
    network(clips).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


# Where weights come from


@pytest.mark.parametrize("prefix", ["model.backbone.", "model.backbone.clips."])
def test_another_runs_model_is_taken_as_it_is(
    prefix: str, loaded: ResNeXt101, fresh: ResNeXt101, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({**{f"{prefix}{key}": value for key, value in loaded.state_dict().items()}, "x": torch.zeros(3)}, path)
    network = deepcopy(fresh)
    network.load_weights(str(path))
    for name, value in network.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_none_leaves_the_weights(fresh: ResNeXt101) -> None:
    versions = [value._version for value in fresh.state_dict().values()]
    fresh.load_weights("none")
    assert [value._version for value in fresh.state_dict().values()] == versions


@pytest.mark.parametrize("source", ["kinetics", "imagenet"])
def test_no_name_stands_for_weights(source: str, fresh: ResNeXt101) -> None:
    with pytest.raises(ActdetError, match=r"ResNeXt-101-3D cannot be fetched by a name: download resnext-101-kinetics"):
        fresh.load_weights(source)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


BAD: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (
        without("layer3.22.bn2.running_var"),
        "not weights of ResNeXt-101-3D: layer3.22.bn2.running_var is missing",
    ),
    "no stem": (without("conv1.weight"), "not weights of ResNeXt-101-3D: conv1.weight is missing"),
    "no mean": (without("bn1.running_mean"), "not weights of ResNeXt-101-3D: bn1.running_mean is missing"),
    "ResNet-101": (
        lambda state: {**state, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1, 1)},
        "layer1.0.conv1.weight is (64, 64, 1, 1, 1), should be (128, 64, 1, 1, 1)",
    ),
    "scalar": (
        lambda state: {**state, "conv1.weight": torch.zeros(())},
        "not weights of ResNeXt-101-3D: conv1.weight is (), should be (64, 3, 7, 7, 7)",
    ),
    "not finite": (
        lambda state: {**state, "layer4.0.downsample.1.bias": torch.full((2048,), -torch.inf)},
        "layer4.0.downsample.1.bias is not finite: the file is damaged, or its training failed",
    ),
    "nothing": (lambda state: {}, "not weights of ResNeXt-101-3D: conv1.weight is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_weights_are_one_line_and_change_nothing(name: str, fresh: ResNeXt101, tmp_path: Path) -> None:
    change, complaint = BAD[name]
    # Every tensor repeats one number, so the file is small.
    small = {key: torch.ones(()).expand(shape) for key, shape in published_shapes().items()}
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in change(small).items()}}, path)
    versions = [value._version for value in fresh.state_dict().values()]
    with pytest.raises(DataError, match=re.escape(complaint)) as caught:
        fresh.load_weights(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    # None was written to.
    assert [value._version for value in fresh.state_dict().values()] == versions


def test_a_file_that_is_not_there_names_what_there_is(fresh: ResNeXt101) -> None:
    with pytest.raises(DataError, match="--backbone-weights takes none or a"):
        fresh.load_weights("nowhere.pth")

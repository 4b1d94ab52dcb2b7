"""Where the weights of the two backbones come from, and what is said about those that cannot be had."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from actdet.errors import ActdetError, DataError
from actdet.models.backbones.efficientnet_lite import EfficientNetLite0
from actdet.models.stma.config import ClipBackbone, PictureBackbone, StmaConfig
from actdet.models.stma.features import TwoBackbones

SMALL = StmaConfig(image_size=32, frames=8, snippet=3)


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of EfficientNet-Lite0, with its filters in time."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(EfficientNetLite0((1, 2, 3)).state_dict(), path)
    return path


def stem(network: torch.nn.Module | None) -> torch.Tensor:
    assert network is not None
    return network.get_parameter("backbone.stem.0.weight")


def test_each_backbone_takes_its_own_file(published: Path, tmp_path: Path) -> None:
    backbones = TwoBackbones(SMALL)
    before = weights_of(backbones)
    backbones.load_weights(f"{published},none")
    wanted = torch.load(published, weights_only=True)["stem.0.weight"]
    assert torch.equal(stem(backbones.pictures), wanted)
    assert torch.equal(stem(backbones.clips), before["clips.backbone.stem.0.weight"])

    backbones.load_weights(f"none,{published}")
    assert torch.equal(stem(backbones.clips), wanted)
    # What is not of the backbone itself stays.
    assert torch.equal(backbones.state_dict()["pictures.smooth.0.weight"], before["pictures.smooth.0.weight"])


def test_none_leaves_everything_as_it_is() -> None:
    backbones = TwoBackbones(SMALL)
    before = weights_of(backbones)
    backbones.load_weights("none")
    assert all(torch.equal(value, before[name]) for name, value in backbones.state_dict().items())


def test_published_weights_go_to_the_backbones_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def of(name: str) -> object:
        return lambda self, source: asked.append((name, source))

    home = "actdet.models.backbones"
    monkeypatch.setattr(f"{home}.efficientnet_lite.EfficientNetLite0.load_weights", of("lite"))
    monkeypatch.setattr(f"{home}.r2plus1d.Backbone.load_weights", of("r2plus1d"))
    mixed = TwoBackbones(replace(SMALL, clip_backbone="r2plus1d-18"))
    mixed.load_weights("imagenet")
    mixed.load_weights("kinetics")
    mixed.load_weights("imagenet,kinetics")
    TwoBackbones(SMALL).load_weights("imagenet")
    TwoBackbones(replace(SMALL, aggregation=False)).load_weights("imagenet")
    assert asked == [
        ("lite", "imagenet"),
        ("r2plus1d", "kinetics"),
        ("lite", "imagenet"),
        ("r2plus1d", "kinetics"),
        ("lite", "imagenet"),
        ("lite", "imagenet"),
        ("lite", "imagenet"),
    ]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("kinetics", "efficientnet-lite0 and efficientnet-lite0 have no published weights of kinetics"),
        ("a.pth", "--backbone-weights a.pth: two backbones take imagenet, kinetics, none, or two files with a comma"),
        ("a,b,c", "--backbone-weights a,b,c: two backbones take"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(source: str, text: str) -> None:
    with pytest.raises(ActdetError, match=text) as caught:
        TwoBackbones(SMALL).load_weights(source)
    assert "\n" not in str(caught.value)


def test_a_file_for_a_backbone_that_is_not_there_is_refused(published: Path) -> None:
    with pytest.raises(ActdetError, match="without aggregation there is no backbone of clips"):
        TwoBackbones(replace(SMALL, aggregation=False)).load_weights(f"none,{published}")


def test_if_one_of_two_files_is_wrong_neither_is_taken(published: Path, tmp_path: Path) -> None:
    backbones = TwoBackbones(SMALL)
    before = weights_of(backbones)
    wrong = tmp_path / "wrong.pth"
    torch.save({"stem.0.weight": torch.zeros(3)}, wrong)
    with pytest.raises(DataError, match=r"wrong\.pth"):
        backbones.load_weights(f"{published},{wrong}")
    assert all(torch.equal(value, before[name]) for name, value in backbones.state_dict().items())


def test_the_page_says_how_many_parameters_each_backbone_has() -> None:
    page = (Path(__file__).parents[4] / "docs" / "stma.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`--.*`) \| .* \| ([\d., ]+) \|$", page, re.MULTILINE)
    named = {"picture": set(get_args(PictureBackbone)), "clip": set(get_args(ClipBackbone))}
    for words, numbers in rows:
        option, *others = re.findall(r"`([^`]+)`", words)
        part, first = option.removeprefix("--").split("-backbone ")
        for name, number in zip([first, *others], numbers.split(", "), strict=True):
            with torch.device("meta"):
                backbones = TwoBackbones(replace(SMALL, **{f"{part}_backbone": name}))
            network = backbones.pictures if part == "picture" else backbones.clips
            assert network is not None
            assert float(number) == round(sum(each.numel() for each in network.parameters()) / 1e6, 2), name
            named[part].discard(name)
    assert not named["picture"] | named["clip"]

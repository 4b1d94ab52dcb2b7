"""The backbones of the detector: what they give, and that the one of pictures still sees motion."""

from __future__ import annotations

from pathlib import Path

import torch

from actdet.models.backbones.efficientnet_lite import EfficientNetLite0
from actdet.models.backbones.r2plus1d import Backbone
from actdet.models.detr.config import ModelConfig
from actdet.models.detr.detector import ActionDetector
from actdet.models.detr.features import FramePairs, clip_backbone

PICTURES = ModelConfig(image_size=64, frames=8, encoder_layers=0, decoder_layers=1, backbone="efficientnet-lite0")


def test_the_backbone_is_the_one_that_the_settings_name() -> None:
    assert isinstance(clip_backbone(ModelConfig()), Backbone)
    assert isinstance(clip_backbone(PICTURES), FramePairs)


@torch.no_grad()
def test_features_are_the_means_of_two_frames_each() -> None:
    backbone = FramePairs().eval()
    clips = torch.randn(2, 3, 8, 64, 48, generator=torch.Generator().manual_seed(0))
    plain = EfficientNetLite0((3,)).eval()
    plain.load_state_dict(backbone.state_dict())
    (every,) = plain(clips)
    got = backbone(clips)
    assert got.shape == (2, backbone.width, 4, 4, 3)
    torch.testing.assert_close(got, (every[:, :, 0::2] + every[:, :, 1::2]) / 2)


@torch.no_grad()
def test_the_order_of_frames_is_seen() -> None:
    """A clip backwards has the same pictures, but other features than the same ones in another order."""
    torch.manual_seed(0)
    backbone = FramePairs().eval()
    clips = torch.randn(1, 3, 8, 64, 64)
    forward = backbone(clips)
    backward = backbone(clips.flip(2)).flip(2)
    assert (forward - backward).abs().max() > 1e-3 * forward.abs().max()


@torch.no_grad()
def test_its_weights_come_from_another_detector(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = ActionDetector(PICTURES), ActionDetector(PICTURES)
    path = tmp_path / "weights.pth"
    torch.save(first.backbone.state_dict(), path)
    second.backbone.load_weights(str(path))
    for name, value in first.backbone.state_dict().items():
        assert torch.equal(second.backbone.state_dict()[name], value), name

"""The exportable form of the detector computes what the detector and its rule compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actdet.data.augment import normalize
from actdet.models.detr.config import ModelConfig
from actdet.models.detr.decision import decide
from actdet.models.detr.detector import ActionDetector
from actdet.models.detr.exportable import ExportableDetector, exportable_pool


def trained(config: ModelConfig) -> ActionDetector:
    """A detector in evaluation mode with weights as training leaves them."""
    torch.manual_seed(0)
    detector = ActionDetector(config).eval()
    with torch.no_grad():
        state = detector.state_dict()
        for name, _ in detector.named_parameters():
            state[name] += 0.05 * torch.randn_like(state[name])
    return detector


def frames(batch: int, config: ModelConfig) -> Tensor:
    """(B, T, S, S, 3) uint8 noise."""
    shape = (batch, config.frames, config.image_size, config.image_size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# 48 pixels give a grid of 3, 224 a grid of 14 that is halved, 128 and 160 grids of 8 and 10 that 7 does not divide.
@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("size", [48, 112, 128, 160, 224])
@pytest.mark.parametrize("threshold", [0.0, 0.7])
@torch.no_grad()
def test_it_computes_what_the_detector_and_its_rule_compute(size: int, threshold: float) -> None:
    config = ModelConfig(("a", "b", "c"), size, 16, 7, 1, 2, deep_supervision=True)
    detector = trained(config)
    rule = {"no_object_weight": 0.2, "threshold": threshold}
    exportable = ExportableDetector(detector, **rule)
    got = exportable(frames(5, config))

    logits, boxes = detector(normalize(frames(5, config))).final()
    decision = decide(logits, boxes, **rule)
    assert list(got) == ["label", "score", "box", "probabilities", "logits", "boxes"]
    assert torch.equal(got["label"], decision.label)
    torch.testing.assert_close(got["score"], decision.score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["box"], decision.box, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["logits"], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got["boxes"], boxes, rtol=1e-4, atol=1e-5)

    # By the formula of the rule, in double precision.
    shares = logits.double().exp()
    shares[..., -1] /= 0.2
    wanted = (shares / shares.sum(-1, keepdim=True))[..., :-1]
    torch.testing.assert_close(got["probabilities"].double(), wanted, rtol=1e-4, atol=1e-5)
    assert detector.config.deep_supervision
    assert any(isinstance(module, nn.BatchNorm3d) for module in detector.modules())


def test_with_the_real_backbone_it_has_no_batch_norm_left() -> None:
    config = ModelConfig(image_size=32, frames=8, encoder_layers=0, decoder_layers=1)
    detector = trained(config)
    exportable = ExportableDetector(detector, no_object_weight=0.1, threshold=0.5)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in exportable.modules())
    assert not any(parameter.requires_grad for parameter in exportable.parameters())
    with torch.no_grad():
        wanted = detector(normalize(frames(2, config))).final()
        got = exportable(frames(2, config))
    torch.testing.assert_close(got["logits"], wanted.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got["boxes"], wanted.boxes, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_the_backbone_of_pictures_it_computes_the_same() -> None:
    config = ModelConfig(image_size=128, frames=8, encoder_layers=0, decoder_layers=1, backbone="efficientnet-lite0")
    detector = trained(config)
    exportable = ExportableDetector(detector, no_object_weight=0.1, threshold=0.5)
    wanted = detector(normalize(frames(2, config))).final()
    got = exportable(frames(2, config))
    torch.testing.assert_close(got["logits"], wanted.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got["boxes"], wanted.boxes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sides", "grid"),
    [
        ((2, 7, 7), (2, 7, 7)),
        ((2, 14, 14), (2, 7, 7)),
        ((1, 21, 21), (1, 7, 7)),
        *(((2, side, side), (2, 7, 7)) for side in (8, 9, 10, 13, 15, 20, 27, 256)),
        ((3, 5, 9), (3, 4, 7)),
    ],
)
def test_pooling_is_adaptive_pooling(sides: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
    features = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(2))
    wanted = F.adaptive_avg_pool3d(features.double(), grid)
    torch.testing.assert_close(exportable_pool(sides, grid)(features).double(), wanted, rtol=1e-5, atol=1e-6)

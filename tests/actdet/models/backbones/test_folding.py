"""A backbone whose BatchNorm is folded computes the same, with convolutions alone."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from actdet.models.backbones.folding import fold_norms
from actdet.models.backbones.r2plus1d import Backbone
from tests.actdet.tiny import TinyBackbone


def trained(backbone: nn.Module) -> nn.Module:
    """Weights and statistics as training leaves them, in float64; the padding stays zero."""
    generator = torch.Generator().manual_seed(0)
    for name, value in backbone.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point() and value.ndim == 1:
            value.normal_(0, 0.5, generator=generator)
    return backbone.double().eval()


def clips(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("aligned", [True, False])
def test_the_folded_backbone_computes_the_same(aligned: bool) -> None:
    backbone = trained(Backbone(aligned=aligned))
    before = deepcopy(backbone.state_dict())
    folded = fold_norms(backbone)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in folded.modules())
    convolutions = [module for module in folded.modules() if isinstance(module, nn.Conv3d)]
    assert [type(module) for module in convolutions] == [nn.Conv3d] * 37
    assert all(module.bias is not None for module in convolutions)

    with torch.no_grad():
        wanted = backbone(clips(2, 3, 9, 32, 48))
        torch.testing.assert_close(folded(clips(2, 3, 9, 32, 48)), wanted, rtol=1e-9, atol=1e-9)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_it_keeps_the_type_of_the_weights() -> None:
    folded = fold_norms(TinyBackbone().eval())
    assert {value.dtype for value in folded.state_dict().values()} == {torch.float32}
    assert not folded.training


def test_groups_of_channels_stay_apart() -> None:
    network = trained(nn.Sequential(nn.Conv3d(6, 8, 3, stride=(1, 2, 2), groups=2, bias=False), nn.BatchNorm3d(8)))
    folded = fold_norms(network)
    assert [type(module) for module in folded] == [nn.Conv3d]
    with torch.no_grad():
        wanted = network(clips(2, 6, 4, 7, 8))
        torch.testing.assert_close(folded(clips(2, 6, 4, 7, 8)), wanted, rtol=1e-9, atol=1e-9)


def test_a_norm_that_follows_no_convolution_stays() -> None:
    network = trained(
        nn.Sequential(
            nn.BatchNorm3d(3),
            nn.Conv3d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm3d(4),
            nn.Sequential(nn.Conv3d(4, 5, (1, 3, 2), stride=2)),
            nn.BatchNorm3d(5),
        )
    )
    folded = fold_norms(network)
    kinds = [nn.BatchNorm3d, nn.Conv3d, nn.ReLU, nn.BatchNorm3d, nn.Conv3d]
    assert [type(module) for module in folded] == kinds
    with torch.no_grad():
        torch.testing.assert_close(folded(clips(2, 3, 4, 6, 5)), network(clips(2, 3, 4, 6, 5)), rtol=1e-11, atol=1e-11)

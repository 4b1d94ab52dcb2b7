"""Folds BatchNorm into the convolutions before it, for a backbone that is only evaluated.

In evaluation mode BatchNorm multiplies each channel by a constant and adds another one, which the weight and the bias
of the convolution before it can do as well:

    scale = gamma / sqrt(var + eps),  weight' = scale * weight,  bias' = beta - scale * mean

Other runtimes find fewer of these pairs by themselves, because they see the convolutions through reshapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from actdet.models.backbones.r2plus1d import ResidualBlock


def fold_norms(backbone: nn.Module) -> nn.Sequential:
    """Build a backbone without BatchNorm that computes what `backbone` computes in evaluation mode.

    Its convolutions are plain nn.Conv3d with a bias. Modules without weights are shared with `backbone`.

    Args:
        backbone: An nn.Sequential, which may contain others and `ResidualBlock`s, and is left as it is.
    """
    parts: list[nn.Module] = []
    for part in _flattened(backbone):
        if isinstance(part, nn.BatchNorm3d) and parts and isinstance(parts[-1], nn.Conv3d):
            parts[-1] = _folded(parts[-1], part)
        elif isinstance(part, ResidualBlock):
            downsample = None if part.downsample is None else fold_norms(part.downsample)
            parts.append(ResidualBlock(fold_norms(part.conv1), fold_norms(part.conv2), downsample))
        else:
            parts.append(part)
    return nn.Sequential(*parts).eval()


def _flattened(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in the order in which nested nn.Sequentials compute them."""
    if not isinstance(module, nn.Sequential):
        yield module
        return
    for child in module.children():
        yield from _flattened(child)


def _folded(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> nn.Conv3d:
    """One convolution for a convolution and the BatchNorm after it."""
    mean = cast(Tensor, norm.running_mean)
    variance = cast(Tensor, norm.running_var)
    # In double precision, so that the only error is that of rounding the result.
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        mean.double(),
        variance.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )

    # PyTorch declares these as tuples of any length.
    kernel_size, stride, padding = cast(Any, (conv.kernel_size, conv.stride, conv.padding))
    # A module of the device "meta" draws no random numbers for the weights that are replaced at once.
    folded = nn.Conv3d(
        conv.in_channels, conv.out_channels, kernel_size, stride, padding, groups=conv.groups, device="meta"
    )
    folded.weight = nn.Parameter(weight.detach().to(conv.weight.dtype), requires_grad=False)
    folded.bias = nn.Parameter(bias.detach().to(conv.weight.dtype), requires_grad=False)
    return folded

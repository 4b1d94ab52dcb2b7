"""ResNeXt-101 in three dimensions (Hara et al. 2018) as a feature extractor for clips, and where its weights come from.

It is 3D-ResNets-PyTorch's network of cardinality 32 with projections in its shortcuts (type B), without pooling and
classifier, so the weights that project has published for Kinetics-400 fit. They are on Google Drive, so they cannot be
downloaded by a command: `resnext-101-kinetics.pth` is given as a file.

Those weights expect RGB from 0 to 255 less the mean of ActivityNet (the author in issues 7 and 12 of that project; its
mean of Kinetics is for trainings since). The stem is changed so that it takes the pixels that all networks here take.
Its padding of zeros, three pixels at each side and three frames at each end of a clip, is then another color than it
was, by 9 of 255 at most.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from torch import nn

from actdet.errors import ActdetError
from actdet.models.backbones.convolution import PictureNorm, RectifiedSequential
from actdet.models.backbones.r2plus1d import ResidualBlock
from actdet.models.backbones.stem import take_our_pixels
from actdet.models.backbones.weights import fill_weights, find_tensors, holds, read_state

FEATURES = 2048
TEMPORAL_STRIDE = 16
SPATIAL_STRIDE = 32

# What error messages call the network.
_NETWORK = "ResNeXt-101-3D"

_STEM_FEATURES = 64
_CARDINALITY = 32

# Blocks, channels between their convolutions, and stride of each stage; its output has twice as many channels.
_STAGES = ((3, 128, 1), (4, 256, 2), (23, 512, 2), (3, 1024, 2))
_EXPANSION = 2

# The published weights take a pixel p, a byte, as p - mean: that of ActivityNet, not divided by any deviation.
_PUBLISHED_MEAN = (114.7748 / 255, 107.7354 / 255, 99.4750 / 255)
_PUBLISHED_STD = (1 / 255,) * 3

# Our names of the parts of the stem and of a block, and those in the published weights.
_PARTS = {
    "stem.0": "conv1",
    "stem.1": "bn1",
    "conv1.0": "conv1",
    "conv1.1": "bn1",
    "conv1.3": "conv2",
    "conv1.4": "bn2",
    "conv2.0": "conv3",
    "conv2.1": "bn3",
    "downsample.0": "downsample.0",
    "downsample.1": "downsample.1",
}


class ResNeXt101(nn.Sequential):
    """Clips (B, 3, T, H, W) to features (B, 2048, T/16, H/32, W/32), rounded up."""

    def __init__(self) -> None:
        conv = nn.Conv3d(3, _STEM_FEATURES, 7, stride=(1, 2, 2), padding=3, bias=False)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["stem"] = RectifiedSequential(conv, PictureNorm(_STEM_FEATURES), nn.ReLU(inplace=True))
        parts["pool"] = nn.MaxPool3d(3, stride=2, padding=1)

        width = _STEM_FEATURES
        for number, (count, middle, stride) in enumerate(_STAGES, 1):
            blocks = [_block(width, middle, stride)]
            width = middle * _EXPANSION
            blocks += [_block(width, middle, 1) for _ in range(count - 1)]
            parts[f"layer{number}"] = nn.Sequential(*blocks)
        super().__init__(parts)

        # As in the project that the weights are from.
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def load_weights(self, source: str) -> None:
        """Take weights; the network is left as it was if they cannot be used.

        Args:
            source: "none" to leave the weights as they are, or a file. A file is an actdet checkpoint, whose backbone
                is taken, or a checkpoint of 3D-ResNets-PyTorch's ResNeXt-101.

        Raises:
            ActdetError: If the source is "kinetics" or "imagenet".
            DataError: If the file cannot be read, holds other weights, or holds numbers that are not finite.
        """
        if source == "none":
            return
        if source in ("kinetics", "imagenet"):
            raise ActdetError(
                f"the weights of {_NETWORK} cannot be fetched by a name: download resnext-101-kinetics.pth of "
                "3D-ResNets-PyTorch and give it with --backbone-weights FILE, or use none"
            )

        state = read_state(Path(source), _NETWORK)
        is_published = not holds(state, "stem.0.weight")
        names = {key: _published_name(key) if is_published else key for key in self.state_dict()}
        fill_weights(self, find_tensors(state, names, self), names, source, _NETWORK)
        if is_published:
            take_our_pixels(
                self.get_parameter("stem.0.weight"),
                self.get_buffer("stem.1.running_mean"),
                _PUBLISHED_MEAN,
                _PUBLISHED_STD,
            )


def _block(inputs: int, middle: int, stride: int) -> ResidualBlock:
    """A residual block of 1x1x1, grouped 3x3x3 and 1x1x1 convolutions (Hara et al. 2018, figure 3)."""
    outputs = middle * _EXPANSION
    conv1 = RectifiedSequential(
        nn.Conv3d(inputs, middle, 1, bias=False),
        PictureNorm(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, middle, 3, stride=stride, padding=1, groups=_CARDINALITY, bias=False),
        PictureNorm(middle),
        nn.ReLU(inplace=True),
    )
    conv2 = RectifiedSequential(nn.Conv3d(middle, outputs, 1, bias=False), PictureNorm(outputs))

    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = RectifiedSequential(nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False), PictureNorm(outputs))
    return ResidualBlock(conv1, conv2, downsample)


def _published_name(own: str) -> str:
    """The name in the published weights of a tensor of `ResNeXt101`."""
    *block, part, index, rest = own.split(".")
    return ".".join([*block, _PARTS[f"{part}.{index}"], rest])

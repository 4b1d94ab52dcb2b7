"""R(2+1)D-18 (Tran et al. 2018) as a feature extractor, and where its weights come from.

The network is torchvision's, without its pooling and classifier, so its published Kinetics-400 weights fit. It differs
in how it is computed, not in what:

- Its middle widths of 45, 230, 460 and 921 channels are padded to 48, 232, 464 and 928, which tensor cores need in half
  precision. The padding is zero and stays zero: its features are zero, so are its gradients, and so is what AdamW makes
  of them. A state dict holds torchvision's shapes, and is loaded from them.
- Its factorised convolutions run as 2-D ones over views of channels-last video, without a copy, unless a measurement
  says that the 3-D ones are faster on this GPU. On a CPU that is more than taste: oneDNN's 3-D bf16 weight gradient
  (torch 2.15, AVX-512) reads memory that nobody wrote when a (3, 1, 1) kernel meets two frames, and now and then gives
  NaN or a gradient that is merely wrong.
- While it is `shallow`, each stage trains only the first of its two blocks. From scratch the second one begins as the
  identity, so it may join later without a change of what the network says, and until then half of the work is saved.
- With `checkpointing` it keeps one tensor a residual block for the backward pass and computes the rest again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint
from torchvision.models.video import R2Plus1D_18_Weights, r2plus1d_18
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem

from actdet.device import prepare_device
from actdet.errors import ActdetError, DataError
from actdet.models.backbones.convolution import FactorisedConv, PictureNorm, RectifiedSequential, set_flat

FEATURES = 512
TEMPORAL_STRIDE, SPATIAL_STRIDE = 8, 16
ALIGNMENT = 8  # channels that a tensor core takes at once in half precision


class Backbone(nn.Sequential):
    """R(2+1)D-18 up to its last block: clips (B, 3, T, H, W) to features (B, 512, T/8, H/16, W/16).

    aligned: pad the middle widths, as above; without, they are torchvision's.
    """

    checkpointing = False
    shallow = False

    def __init__(self, *, aligned: bool = True) -> None:
        network = r2plus1d_18(weights=None)
        super().__init__(*(getattr(network, name) for name in _STAGES))
        self._initialise()
        shapes = {name: value.shape for name, value in self.state_dict().items()}
        for module in self.modules():
            if type(module) is nn.Conv3d and module.kernel_size != (1, 1, 1):
                module.__class__ = FactorisedConv
            if type(module) is nn.BatchNorm3d:
                module.__class__ = PictureNorm
            if aligned and isinstance(module, Conv2Plus1D | R2Plus1dStem):
                _align(module)
        for module in self.modules():
            if any(isinstance(child, PictureNorm) for child in module.children()):
                module.__class__ = RectifiedSequential
        self.padded = {name: shapes[name] for name, value in self.state_dict().items() if value.shape != shapes[name]}
        self.register_state_dict_post_hook(_cut_state)
        self.register_load_state_dict_pre_hook(_pad_state)

    def forward(self, input: Tensor) -> Tensor:
        stem, *stages = self.children()
        last = 1 if self.shallow and self.training else None
        blocks = [block for stage in stages for block in list(stage.children())[:last]]
        for part in (stem, *blocks):
            input = self._recomputed(part, input) if self.checkpointing and torch.is_grad_enabled() else part(input)
        return input

    def _recomputed(self, part: nn.Module, input: Tensor) -> Tensor:
        contexts = nullcontext(), _without_statistics(part)
        output = checkpoint(part, input, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts)
        return cast(Tensor, output)

    def _initialise(self) -> None:
        """A start from which few clips teach motion, where there are no pretrained weights.

        The stem's temporal filters sum to zero: they begin as differences of neighbouring frames, which a still
        background leaves at zero. The last BatchNorm of each residual block begins at zero, so the blocks begin as
        identities (Goyal et al. 2017). Both are only a start: training changes them freely.
        """
        with torch.no_grad():
            temporal = self.get_parameter("0.3.weight")
            temporal -= temporal.mean(dim=2, keepdim=True)
        for name, module in self.named_modules():
            if isinstance(module, BasicBlock):
                nn.init.zeros_(self.get_parameter(f"{name}.conv2.1.weight"))


@cache
def choose_convolutions(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether the factorised convolutions are to be flat for clips of `shape`, and why in a few words.

    On a GPU that is measured: forward and backward passes of each form over such a batch, or over the largest half,
    quarter and so on of it that fits into the free memory. It takes seconds.
    """
    if device.type != "cuda":
        return True, "on a CPU 3-D ones err in bf16"
    prepare_device(device)
    batch, *rest = shape
    while batch:
        try:
            seconds = {flat: _seconds_of_passes(flat, (batch, *rest), device, dtype) for flat in (True, False)}
        except torch.OutOfMemoryError:
            batch //= 2
            continue
        finally:
            # A training, which runs on a stream of its own, cannot use what PyTorch keeps of this one's memory.
            torch.cuda.empty_cache()
        flat = seconds[True] <= seconds[False]
        clips = "" if batch == shape[0] else f" of {batch} clips"
        return flat, f"{1e3 * seconds[flat]:.1f} ms a step{clips} against {1e3 * seconds[not flat]:.1f}"
    return True, "too little memory to measure"


def _seconds_of_passes(flat: bool, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a forward and a backward pass of a new backbone over clips of `shape`, (B, C, T, H, W)."""
    batch, channels, *sides = shape
    with torch.random.fork_rng([device]):
        backbone = Backbone().to(device).to(memory_format=torch.channels_last_3d).train()
        clips = torch.randn(batch, *sides, channels, device=device).permute(0, 4, 1, 2, 3)
    set_flat(backbone, flat)
    times = []
    # In the first ones algorithms are chosen.
    for _ in range(5):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features = backbone(clips)
        features.float().mean().backward()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _align(module: nn.Sequential) -> None:
    """Pad what lies between the spatial and the temporal convolution of `module` to a multiple of ALIGNMENT."""
    spatial, norm, temporal = cast(nn.Conv3d, module[0]), cast(nn.BatchNorm3d, module[1]), cast(nn.Conv3d, module[3])
    width = -(-spatial.out_channels // ALIGNMENT) * ALIGNMENT
    spatial.out_channels = norm.num_features = temporal.in_channels = width
    spatial.weight = nn.Parameter(_pad(spatial.weight, (width, *spatial.weight.shape[1:])))
    temporal.weight = nn.Parameter(_pad(temporal.weight, (len(temporal.weight), width, *temporal.weight.shape[2:])))
    norm.weight, norm.bias = nn.Parameter(_pad(norm.weight, (width,))), nn.Parameter(_pad(norm.bias, (width,)))
    norm.running_mean, norm.running_var = (
        torch.zeros(width),
        _pad(torch.ones_like(cast(Tensor, norm.running_var)), (width,)),
    )


def _pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`tensor` in the corner of zeros of `shape`."""
    padded = tensor.new_zeros(shape)
    padded[tuple(map(slice, tensor.shape))] = tensor.detach()
    return padded


def _cut_state(backbone: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name, shape in cast(Backbone, backbone).padded.items():
        state[prefix + name] = state[prefix + name][tuple(map(slice, shape))]


def _pad_state(backbone: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    own = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    for name, shape in cast(Backbone, backbone).padded.items():
        if (value := state.get(prefix + name)) is not None and value.shape == shape:
            state[prefix + name] = _pad(value, own[name].shape)


@contextmanager
def _without_statistics(part: nn.Module) -> Iterator[None]:
    """Within: BatchNorm normalises as it did, and counts the batch no second time."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, batches) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = 0.0, None if batches is None else batches.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def load_backbone_weights(backbone: Backbone, source: str) -> None:
    """Fill `backbone` from `source`: "kinetics" (torchvision's, fetched or cached), "none" (leave as is) or a file.

    A file is an actdet checkpoint, whose backbone is taken, or a state dict of torchvision's r2plus1d_18, as
    .safetensors or as .pth/.pt that holds tensors only (read with `weights_only=True`: nothing in it is executed).
    Raises ActdetError where the weights cannot be had.
    """
    if source == "none":
        return
    state = _fetch_kinetics() if source == "kinetics" else _read_state(Path(source))
    found = {_own_name(key): tensor for key, tensor in state.items()}
    for key, value in backbone.state_dict().items():
        stage, _, rest = key.partition(".")
        name = f"{_STAGES[int(stage)]}.{rest}"
        if key not in found:
            raise DataError(source, f"not weights of R(2+1)D-18: {name} is missing")
        if found[key].shape != value.shape:
            shapes = f"{tuple(found[key].shape)}, should be {tuple(value.shape)}"
            raise DataError(source, f"not weights of R(2+1)D-18: {name} is {shapes}")
        if found[key].layout != torch.strided or found[key].is_floating_point() != value.is_floating_point():
            kinds = f"{found[key].dtype} and {found[key].layout}, should be {value.dtype} and {value.layout}"
            raise DataError(source, f"not weights of R(2+1)D-18: {name} is {kinds.replace('torch.', '')}")
        # In the type in which they are used: one of float64 may be beyond it.
        if not found[key].to(value.dtype).isfinite().all():
            raise DataError(source, f"{name} is not finite: the file is damaged, or its training failed")
    backbone.load_state_dict({key: found[key] for key in backbone.state_dict()})


def _own_name(key: str) -> str:
    """The name in `Backbone` of a tensor named as in torchvision or in an actdet checkpoint; else something unused."""
    stage, _, rest = key.partition(".")
    return f"{_STAGES.index(stage)}.{rest}" if stage in _STAGES else key.removeprefix("model.backbone.")


def _fetch_kinetics() -> dict[str, Tensor]:
    weights = R2Plus1D_18_Weights.KINETICS400_V1
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        raise ActdetError(
            f"the Kinetics-400 weights cannot be fetched from {weights.url} ({error}): "
            f"give a downloaded file with --backbone-weights FILE, or train from scratch with --backbone-weights none"
        ) from error


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(
            path, "no such file: --backbone-weights takes kinetics, none, or a .safetensors, .pth or .pt file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle that it then refuses
            safe = path.suffix == ".safetensors"
            state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch.load raises on arbitrary bytes is not to be listed
        raise DataError(path, f"not a file of weights ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise DataError(path, "not a state dict: it should hold the named tensors of torchvision's r2plus1d_18")
    return state

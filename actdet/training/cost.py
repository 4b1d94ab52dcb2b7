"""What a training step costs by arithmetic alone: FLOP, bytes and memory, and the least time that they take on a card.

The detector runs on fake tensors, which have shapes but no numbers: whatever the size, that takes a second and no
memory. They pass for tensors on a CPU. Autocast does there without a GPU what it does on one, except to the layer norms
and softmaxes of the Transformer.

    stage_costs, step_flop      FLOP and bytes of the network as torchvision has it, without the padding of channels
    floor_seconds               the least time that a card takes for them
    peak_memory, largest_batch  what the network as it runs, padding included, needs of a card's memory
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from actdet.device import lay_channels_last
from actdet.models.backbones.r2plus1d import Backbone
from actdet.models.config import FamilyConfig
from actdet.models.families import build_network
from actdet.models.family import FamilyNetwork

# The stages of R(2+1)D-18.
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")

# Bytes of a float32.
_FLOAT32 = 4

# Operators that pass nothing through the memory.
_NO_TRAFFIC = {"_unsafe_view", "empty", "empty_like", "new_empty_strided"}

# Operators that do not read the tensor that they change.
_OVERWRITES = {"copy_", "fill_", "zero_"}

# A peak is an affine function of the batch, so those of these two batches give those of all others.
_LINE = (8, 16)


class StageCost(NamedTuple):
    """What one stage of a training step costs, forward and backward."""

    name: str
    """That of a stage, or "optimizer"."""
    flop: int
    """Floating-point operations of convolutions and matrix products, two for a multiply-add. Other operators, those of
    the optimizer included, count none, because they cost what their bytes cost."""
    bytes: int
    """What passes through the memory if each operator reads its inputs and writes its outputs once, and no cache keeps
    any of them from one operator to the next. Kernels that fuse operators need fewer."""


class Card(NamedTuple):
    """A GPU, as its data sheet describes it."""

    name: str
    """What `torch.cuda.get_device_name` calls it, without the maker's prefix."""
    flop_per_s: dict[torch.dtype, float]
    """The highest rate of each arithmetic that it has, for dense matrices."""
    bytes_per_s: float
    """The rate of its memory."""
    memory: int
    """Bytes, where a gigabyte is 10^9. CUDA reports a few per cent more or less of a card at hand."""


def _card(name: str, fp32: float, fp16: float, bytes_per_s: float, gigabytes: int, *, bf16: bool = True) -> Card:
    """Make a card, whose rate in bf16, if it has that, is the one in fp16."""
    rates = {torch.float32: fp32, torch.float16: fp16}
    if bf16:
        rates[torch.bfloat16] = fp16
    return Card(name, rates, bytes_per_s, gigabytes * 10**9)


# The rate in fp32 is that of the ordinary units, not of TF32.
CARDS = (
    # Tesla P100 data sheet (PCIe, 16 GB), 2016. fp16 rounds every sum to fp16; cuDNN sums in fp32, at the fp32 rate.
    _card("P100-PCIE-16GB", 9.3e12, 18.7e12, 732e9, 16, bf16=False),
    # T4 data sheet, 2019.
    _card("T4", 8.1e12, 65e12, 320e9, 16, bf16=False),
    # A100 data sheets: 40 GB of 2020, 80 GB of 2021.
    _card("A100-SXM4-40GB", 19.5e12, 312e12, 1555e9, 40),
    _card("A100-PCIE-40GB", 19.5e12, 312e12, 1555e9, 40),
    _card("A100-SXM4-80GB", 19.5e12, 312e12, 2039e9, 80),
    _card("A100 80GB PCIe", 19.5e12, 312e12, 1935e9, 80),
    # H100 data sheet, 2022, the SXM module and the PCIe card. The sheet's matrix rates count zeros that are left out,
    # so half of them stands here.
    _card("H100 80GB HBM3", 67e12, 989.4e12, 3.35e12, 80),
    _card("H100 PCIe", 51e12, 756e12, 2e12, 80),
    # H200 data sheet, 2023: the H100 SXM with another memory.
    _card("H200", 67e12, 989.4e12, 4.8e12, 141),
)


def find_card(device_name: str) -> Card | None:
    """Find the card that `torch.cuda.get_device_name` calls so; None if it is not in CARDS, or only a part of one."""
    name = device_name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    return next((card for card in CARDS if card.name == name), None)


def stage_costs(model: FamilyConfig, batch: int, dtype: torch.dtype) -> list[StageCost]:
    """Count what a step costs, without the loss and the clipping of gradients.

    Args:
        model: The detector's settings.
        batch: Clips in the batch.
        dtype: The network's arithmetic, by autocast; float32 is without.

    Returns:
        The cost of each stage, and of the optimizer, which is AdamW in float32.
    """
    costs = []
    with FakeTensorMode():
        detector = _detector(model, aligned=False)
        value: Any = _clips(model, batch)
        for name, stage in _stages(detector):
            with FlopCounterMode(display=False, custom_mapping=_FLOP) as arithmetic, _Traffic() as traffic:
                with _autocast(dtype):
                    output = stage(value)
                outputs = tree_leaves(output)
                torch.autograd.backward(outputs, [torch.empty_like(tensor) for tensor in outputs])
            costs.append(StageCost(name, arithmetic.get_total_flops(), traffic.bytes))
            # Of what goes into a stage, only the clips need no gradient.
            value = tree_map(lambda tensor: tensor.detach().requires_grad_(), output)
        elements = sum(parameter.numel() for parameter in detector.parameters())

    # AdamW reads parameter, gradient and the two averages, and writes parameter and averages.
    return [*costs, StageCost("optimizer", 0, 7 * _FLOAT32 * elements)]


def step_flop(model: FamilyConfig) -> int:
    """Count the FLOP of the network for one clip, forward and backward."""
    return sum(cost.flop for cost in stage_costs(model, 1, torch.float32))


def floor_seconds(costs: list[StageCost], card: Card, dtype: torch.dtype) -> float:
    """Return the least time that a card takes: a stage is done when both its arithmetic and its bytes are.

    It is the least for convolutions that multiply what they are defined to multiply. Winograd's need fewer products,
    and on an A100 or later PyTorch may take TF32 for float32.

    Args:
        costs: What the stages cost.
        card: The card.
        dtype: The arithmetic.

    Raises:
        ValueError: If the card has no such arithmetic.
    """
    if dtype not in card.flop_per_s:
        raise ValueError(f"the {card.name} has no arithmetic of {dtype}")
    return sum(max(cost.flop / card.flop_per_s[dtype], cost.bytes / card.bytes_per_s) for cost in costs)


@cache
def peak_memory(model: FamilyConfig, batch: int, dtype: torch.dtype, *, checkpointing: bool = False) -> int:
    """Count the most bytes that tensors take at once in a training step, as an eager `TrainStep` does it.

    Parameters, gradients and the two averages of AdamW are float32. Not counted are what kernels take for themselves
    while they run, the loss's few kilobytes, and a running average of the weights, which takes another 4 bytes a
    parameter.

    Args:
        model: The detector's settings.
        batch: Clips in the batch.
        dtype: The network's arithmetic, by autocast.
        checkpointing: Whether the backward pass computes the backbone again instead of keeping it.
    """
    with FakeTensorMode(), _Live() as live:
        detector = _detector(model)
        detector.backbone.checkpointing = checkpointing
        parameters = list(detector.parameters())
        optimizer = torch.optim.AdamW(parameters, fused=True)

        # The first step of the optimizer makes its averages.
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()

        optimizer.zero_grad(set_to_none=True)
        clips = _clips(model, batch)
        with _autocast(dtype):
            outputs = tree_leaves(detector(clips))
        torch.autograd.backward([tensor.sum() for tensor in outputs])
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return live.peak


def largest_batch(
    model: FamilyConfig, dtype: torch.dtype, memory: int, *, checkpointing: bool = False, reserve: float = 0.1
) -> int:
    """Find the largest batch whose `peak_memory` fits into a card's memory.

    Args:
        model: The detector's settings.
        dtype: The network's arithmetic.
        memory: Bytes of the card's memory.
        checkpointing: Whether the backward pass computes the backbone again instead of keeping it.
        reserve: The share of the memory that is left to the CUDA context, the workspaces of kernels, and the gaps
            between tensors.

    Returns:
        Clips in the batch; 0 if not even one fits.
    """
    usable = (1 - reserve) * memory
    few, many = (peak_memory(model, batch, dtype, checkpointing=checkpointing) for batch in _LINE)
    each = (many - few) / (_LINE[1] - _LINE[0])

    # In the smallest batches the peak is above the line, because it is in the optimizer.
    batch = max(1, int(_LINE[0] + (usable - few) / each))
    while batch and peak_memory(model, batch, dtype, checkpointing=checkpointing) > usable:
        batch -= 1
    return batch


def _stages(detector: FamilyNetwork) -> list[tuple[str, Callable[[Tensor], Any]]]:
    """The stages of a detector, by name, each of which takes the output of the one before it."""
    backbone = detector.backbone
    # Of a backbone that gives the features of several stages, no part stands between two others.
    stages = zip(STAGES, backbone, strict=True) if type(backbone) is Backbone else [("backbone", backbone)]
    return [*stages, ("transformer", detector.detect)]


def _detector(model: FamilyConfig, *, aligned: bool = True) -> FamilyNetwork:
    """Make a detector in training mode whose video convolutions lie in memory as training lays them."""
    detector = build_network(model).train()
    if not aligned and type(detector.backbone) is Backbone:
        detector.backbone = Backbone(aligned=False)
    lay_channels_last(detector)
    return detector


def _clips(model: FamilyConfig, batch: int) -> Tensor:
    """(B, 3, T, S, S) float32, channels-last."""
    return torch.empty(batch, model.frames, model.image_size, model.image_size, 3).permute(0, 4, 1, 2, 3)


def _autocast(dtype: torch.dtype) -> torch.autocast:
    """Autocast for fake CPU tensors. bfloat16 stands for float16, which few CPUs have and the others copy for."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32)


def _convolution_gradient_flop(
    d_out: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Count the FLOP of a convolution's gradients, each of which takes as many as the convolution.

    PyTorch's own count takes each gradient of a weight for that of a convolution without groups.
    """
    needed = rest[-1]
    return 2 * math.prod(d_out) * math.prod(weight[1:]) * sum(needed[:2])


# What counts the FLOP of some operators instead of PyTorch's own functions.
_FLOP = {torch.ops.aten.convolution_backward: _convolution_gradient_flop}


class _Traffic(TorchDispatchMode):
    """Adds up the bytes that operators read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name in _NO_TRAFFIC or func.namespace != "aten"):
            read = (args[1:] if name in _OVERWRITES else args, kwargs)
            self.bytes += sum(value.nbytes for value in tree_leaves((read, result)) if isinstance(value, Tensor))
        return result


class _Live(TorchDispatchMode):
    """Follows the memory of tensors from the operator that makes it until nothing refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            # Views share their storage, which counts once.
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata)
        self.peak = max(self.peak, self.bytes)
        return result

    def _forget(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)

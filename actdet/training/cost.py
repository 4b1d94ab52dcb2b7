"""What a training step costs by arithmetic alone: FLOP, bytes and memory, and the least time that they take on a card.

The detector runs on fake tensors, which have shapes but no numbers: a second of work, and no memory, whatever the size.
They pass for tensors on a CPU, on which autocast does without a GPU what it does on one but for the layer norms and
softmaxes of the Transformer.

    stage_costs, step_flop      FLOP and bytes of the network as torchvision has it, without the padding of channels
    floor_seconds               the least time that a card takes for them
    peak_memory, largest_batch  what the network as it runs, padding and all, needs of a card's memory
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from actdet.models.backbones.r2plus1d import Backbone
from actdet.models.detr.config import ModelConfig
from actdet.models.detr.detector import ActionDetector

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "transformer")
_FLOAT32 = 4  # bytes
_NO_TRAFFIC = {"_unsafe_view", "empty", "empty_like", "new_empty_strided"}
_LINE = (8, 16)  # the batches whose peaks give those of all others: a peak is affine in the batch
_OVERWRITES = {"copy_", "fill_", "zero_"}  # operators that do not read the tensor that they change


class StageCost(NamedTuple):
    """What one stage of a training step costs, forward and backward.

    name: one of STAGES, or "optimizer".
    flop: floating-point operations of convolutions and matrix products, two for a multiply-add. Other operators, the
        optimizer's among them, count none: what they cost is their bytes.
    bytes: that pass through the memory when each operator reads its inputs and writes its outputs once, and no cache
        keeps any of them from one operator to the next. Kernels that fuse operators need fewer.
    """

    name: str
    flop: int
    bytes: int


class Card(NamedTuple):
    """A GPU, as its data sheet has it.

    name: what `torch.cuda.get_device_name` calls it, without the maker's prefix.
    flop_per_s: the highest rate of each arithmetic that it has, for dense matrices.
    bytes_per_s: of its memory.
    memory: bytes, a gigabyte being 10^9. What CUDA reports of a card at hand is a few per cent more or less.
    """

    name: str
    flop_per_s: dict[torch.dtype, float]
    bytes_per_s: float
    memory: int


def _card(name: str, fp32: float, fp16: float, bytes_per_s: float, gigabytes: int, *, bf16: bool = True) -> Card:
    rates = {torch.float32: fp32, torch.float16: fp16} | ({torch.bfloat16: fp16} if bf16 else {})
    return Card(name, rates, bytes_per_s, gigabytes * 10**9)


# fp32 is that of the ordinary units, not TF32.
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
    # H100 data sheet, 2022, whose matrix rates count zeros that were left out: here they are halved.
    _card("H100 80GB HBM3", 67e12, 989.4e12, 3.35e12, 80),  # the SXM module
    _card("H100 PCIe", 51e12, 756e12, 2e12, 80),
    # H200 data sheet, 2023: the H100 SXM with another memory.
    _card("H200", 67e12, 989.4e12, 4.8e12, 141),
)


def find_card(device_name: str) -> Card | None:
    """The card that `torch.cuda.get_device_name` calls so; None for one that is not in CARDS, or a part of one."""
    name = device_name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    return next((card for card in CARDS if card.name == name), None)


def stage_costs(model: ModelConfig, batch: int, dtype: torch.dtype) -> list[StageCost]:
    """What a step of `batch` clips costs in each of STAGES and in the optimizer, AdamW in float32.

    dtype: the network's arithmetic, by autocast; float32 is none. Neither loss nor clipping is counted.
    """
    with FakeTensorMode():
        detector = _detector(model, aligned=False)
        value, costs = _clips(model, batch), []
        for name, stage in zip(STAGES, (*detector.backbone, detector.detect), strict=True):
            value = value.detach().requires_grad_(name != "stem")
            with FlopCounterMode(display=False) as arithmetic, _Traffic() as traffic:
                with _autocast(dtype):
                    output = stage(value)
                outputs = tree_leaves(output)
                torch.autograd.backward(outputs, [torch.empty_like(tensor) for tensor in outputs])
            costs.append(StageCost(name, arithmetic.get_total_flops(), traffic.bytes))
            value = outputs[0]
        elements = sum(parameter.numel() for parameter in detector.parameters())
    # read: parameter, gradient and the two averages; written: parameter and averages
    return [*costs, StageCost("optimizer", 0, 7 * _FLOAT32 * elements)]


def step_flop(model: ModelConfig) -> int:
    """FLOP of the network for one clip, forward and backward."""
    return sum(cost.flop for cost in stage_costs(model, 1, torch.float32))


def floor_seconds(costs: list[StageCost], card: Card, dtype: torch.dtype) -> float:
    """The least time that `card` takes: a stage is done when both its arithmetic and its bytes are.

    Least for convolutions that multiply what they are defined to multiply: Winograd's need fewer products, and on an
    A100 or later PyTorch may take TF32 for float32.
    Raises ValueError where the card has no arithmetic of `dtype`.
    """
    if dtype not in card.flop_per_s:
        raise ValueError(f"the {card.name} has no arithmetic of {dtype}")
    return sum(max(cost.flop / card.flop_per_s[dtype], cost.bytes / card.bytes_per_s) for cost in costs)


@cache
def peak_memory(model: ModelConfig, batch: int, dtype: torch.dtype, *, checkpointing: bool = False) -> int:
    """The most bytes that tensors take at once in a training step of `batch` clips, as an eager `TrainStep` does it.

    Parameters, gradients and the two averages of AdamW are float32, the network's arithmetic is `dtype` by autocast.
    Not counted: what kernels take for themselves while they run, the loss's few kilobytes, and a running average of the
    weights, which takes another 4 bytes a parameter.
    checkpointing: compute the backbone again in the backward pass, instead of keeping it.
    """
    with FakeTensorMode(), _Live() as live:
        detector = _detector(model)
        detector.backbone.checkpointing = checkpointing
        parameters = list(detector.parameters())
        optimizer = torch.optim.AdamW(parameters, fused=True)
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()  # makes the averages
        optimizer.zero_grad(set_to_none=True)
        clips = _clips(model, batch)
        with _autocast(dtype):
            logits, boxes = detector(clips)
        loss = logits.sum() + boxes.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return live.peak


def largest_batch(
    model: ModelConfig, dtype: torch.dtype, memory: int, *, checkpointing: bool = False, reserve: float = 0.1
) -> int:
    """The largest batch whose `peak_memory` is at most (1 - reserve) of `memory` bytes; 0 where not even one clip fits.

    reserve: the share that is left to the CUDA context, the workspaces of kernels, and the gaps between tensors.
    """
    usable = (1 - reserve) * memory
    few, many = (peak_memory(model, batch, dtype, checkpointing=checkpointing) for batch in _LINE)
    each = (many - few) / (_LINE[1] - _LINE[0])
    batch = max(1, int(_LINE[0] + (usable - few) / each))
    while batch and peak_memory(model, batch, dtype, checkpointing=checkpointing) > usable:
        batch -= 1
    return batch


def _detector(model: ModelConfig, *, aligned: bool = True) -> ActionDetector:
    """A detector in training mode whose video convolutions lie in memory as training lays them."""
    detector = ActionDetector(model).train()
    if not aligned:
        detector.backbone = Backbone(aligned=False)
    for parameter in detector.parameters():
        if parameter.ndim == 5:  # nn.Module.to cannot do this with fake tensors
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
    return detector


def _clips(model: ModelConfig, batch: int) -> Tensor:
    return torch.empty(batch, model.frames, model.image_size, model.image_size, 3).permute(0, 4, 1, 2, 3)


def _autocast(dtype: torch.dtype) -> torch.autocast:
    """For fake CPU tensors: float16 passes as bfloat16, since few CPUs have it, and the others copy for it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32)


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
        self.bytes = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (storage := value.untyped_storage())._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata)
        self.peak = max(self.peak, self.bytes)
        return result

    def _forget(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)

"""FLOP and bytes are compared with sums done by hand, and memory with what a real step allocated."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, cast

import pytest
import torch
from actdet_kernels import Targets
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models.video import r2plus1d_18

import actdet.training.cost
from actdet.data.augment import Batch
from actdet.device import choose_precision
from actdet.models.backbones.efficientnet_lite import TimeFilter
from actdet.models.backbones.r2plus1d import Backbone
from actdet.models.detr.config import ModelConfig
from actdet.models.detr.detector import ActionDetector
from actdet.models.tubelet.config import TubeletConfig
from actdet.models.tubelet.features import frame_backbone
from actdet.training.config import TrainConfig
from actdet.training.cost import (
    CARDS,
    Card,
    StageCost,
    find_card,
    floor_seconds,
    largest_batch,
    peak_memory,
    stage_costs,
    step_flop,
)
from actdet.training.train_step import TrainStep

SMALL = ModelConfig(image_size=48, frames=8, encoder_layers=1, decoder_layers=1)
MIDDLE = ModelConfig(image_size=64, frames=16, encoder_layers=1, decoder_layers=1)
FP32 = torch.float32
FP16 = torch.float16
BF16 = torch.bfloat16
BF16_UNITS = choose_precision("auto", torch.device("cpu"))[0] == BF16
NO_UNITS = "a CPU without bf16 units converts operands to float32, which takes memory of its own"
FIVE_CLIPS = ModelConfig(image_size=112), 5
NETWORK = ["stem", "layer1", "layer2", "layer3", "layer4", "transformer"]


costs_of = cache(stage_costs)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def convolution_macs(conv: nn.Module, sizes: list[int]) -> tuple[int, list[int]]:
    """Multiply-adds of torchvision's convolution on T x H x W features, and the T x H x W that it leaves."""
    assert isinstance(conv, nn.Conv3d)
    padding = cast(tuple[int, ...], conv.padding)
    sides = zip(sizes, conv.kernel_size, conv.stride, strict=True)
    sizes = [(size + 2 * pad - side) // stride + 1 for (size, side, stride), pad in zip(sides, padding, strict=True)]
    return math.prod(sizes) * conv.weight.numel(), sizes


def backbone_flop(frames: int, side: int) -> list[int]:
    """FLOP of the stem and the four layers for one clip: a convolution is three products, a multiply-add two FLOP."""
    with torch.device("meta"):
        network = cast(Any, r2plus1d_18(weights=None))
    spatial, sizes = convolution_macs(network.stem[0], [frames, side, side])
    temporal, sizes = convolution_macs(network.stem[3], sizes)
    # Nothing needs the gradient of the clip.
    flop = [2 * (2 * spatial + 3 * temporal)]
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        macs = 0
        for block in layer:
            if block.downsample is not None:
                macs += convolution_macs(block.downsample[0], sizes)[0]
            for conv in (block.conv1[0][0], block.conv1[0][3], block.conv2[0][0], block.conv2[0][3]):
                more, sizes = convolution_macs(conv, sizes)
                macs += more
        flop.append(6 * macs)
    return flop


def transformer_flop(tokens: int, queries: int, encoder_layers: int, decoder_layers: int) -> int:
    """FLOP of all that follows the backbone, for one clip and two classes."""
    width = 256
    feedforward = 2048
    encoder = tokens * (4 * width**2 + 2 * width * feedforward) + 2 * tokens**2 * width
    own = queries * 4 * width**2 + 2 * queries**2 * width
    cross = (queries + tokens) * 2 * width**2 + 2 * queries * tokens * width
    decoder = own + cross + queries * 2 * width * feedforward
    heads = queries * (2 * width**2 + width * (3 + 4))
    return 6 * (tokens * 512 * width + encoder_layers * encoder + decoder_layers * decoder + heads)


@pytest.mark.parametrize(
    ("model", "batch", "dtype", "tokens"),
    [
        pytest.param(ModelConfig(), 3, FP16, 98, marks=pytest.mark.slow),
        (ModelConfig(image_size=80, frames=24, queries=7, encoder_layers=1, decoder_layers=2), 2, BF16, 75),
    ],
)
def test_flop_are_those_of_torchvisions_layers(model: ModelConfig, batch: int, dtype: torch.dtype, tokens: int) -> None:
    wanted = backbone_flop(model.frames, model.image_size)
    wanted.append(transformer_flop(tokens, model.queries, model.encoder_layers, model.decoder_layers))
    costs = stage_costs(model, batch, dtype)
    assert [cost.name for cost in costs] == [*NETWORK, "optimizer"]
    assert [cost.flop for cost in costs] == [*(batch * flop for flop in wanted), 0]


def test_flop_of_convolutions_with_groups_are_those_of_their_channels() -> None:
    """Each convolution takes as many for either gradient as forward; the first one needs none of the clip."""
    model = TubeletConfig(image_size=64, frames=8, backbone="efficientnet-lite0")
    with torch.device("meta"):
        backbone = frame_backbone(model)
    flop = []

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        flop.append(2 * output.numel() * weight[0].numel())

    filters = [module for module in backbone.modules() if isinstance(module, nn.Conv2d | TimeFilter)]
    for module in filters:
        module.register_forward_hook(count)
    backbone(torch.empty(3, 3, 8, 64, 64, device="meta"))
    assert len(flop) == len(filters) > 30
    (of_backbone,) = (cost for cost in costs_of(model, 3, FP32) if cost.name == "backbone")
    assert of_backbone.flop == 3 * sum(flop) - flop[0]

    # That is a fortieth of R(2+1)D-18's, as the help of the option says.
    (of_other,) = (
        cost for cost in costs_of(replace(model, backbone="r2plus1d-18"), 3, FP32) if cost.name == "backbone"
    )
    assert 39 < of_other.flop / of_backbone.flop < 44


def test_a_clip_of_the_defaults_takes_972_gflop() -> None:
    flop = step_flop(ModelConfig())
    assert flop == sum(backbone_flop(16, 224)) + transformer_flop(98, 12, 2, 4)
    assert flop == pytest.approx(972e9, rel=0.01)


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_bytes_of_the_stem_are_its_passes_over_its_features(dtype: torch.dtype) -> None:
    """Read or written: by convolution, BatchNorm and ReLU, forward, then by ReLU, BatchNorm and convolution, backward.

    Autocast reads the clip and writes it again.
    """
    clip = 3 * 16 * 112 * 112
    spatial = 45 * 16 * 56 * 56
    temporal = 64 * 16 * 56 * 56
    passes = {
        # Each sum is of the forward and of the backward pass.
        clip: 1 + 1,
        spatial: (1 + 2 + 2 + 1) + (2 + 3 + 3 + 1),
        temporal: (1 + 2 + 2) + (3 + 3 + 1),
    }
    wanted = 5 * dtype.itemsize * sum(elements * times for elements, times in passes.items())
    wanted += 5 * clip * (4 + 2) if dtype != FP32 else 0
    assert costs_of(*FIVE_CLIPS, dtype)[0].bytes == pytest.approx(wanted, rel=1e-3)


def test_bytes_that_do_not_grow_with_the_batch_are_three_passes_over_the_weights() -> None:
    """Read forward, read backward, and their gradient written."""
    two, four = (costs_of(SMALL, batch, FP32)[4] for batch in (2, 4))
    with torch.device("meta"):
        layer = r2plus1d_18(weights=None).layer4
    weights = sum(parameter.nbytes for parameter in layer.parameters())
    assert two.name == "layer4"
    assert 2 * two.bytes - four.bytes == pytest.approx(3 * weights, rel=0.01)


def test_halving_the_dtype_halves_the_bytes_of_the_features() -> None:
    full = costs_of(*FIVE_CLIPS, FP32)
    half = costs_of(*FIVE_CLIPS, FP16)
    assert costs_of(*FIVE_CLIPS, BF16) == half
    for single, other in zip(full[:3], half, strict=False):
        assert other.bytes / single.bytes == pytest.approx(0.5, abs=0.02), single.name


def test_bytes_of_the_optimizer_do_not_depend_on_batch_or_dtype() -> None:
    with torch.device("meta"):
        detector = ActionDetector(SMALL)
        detector.backbone = Backbone(aligned=False)
    wanted = 7 * sum(parameter.nbytes for parameter in detector.parameters())
    assert costs_of(SMALL, 4, FP32)[-1] == costs_of(SMALL, 2, FP16)[-1] == StageCost("optimizer", 0, wanted)


def test_the_floor_takes_the_slower_of_arithmetic_and_memory_in_each_stage() -> None:
    card = Card("a card", {FP32: 100.0, FP16: 400.0}, 10.0, 1)
    costs = [StageCost("stem", 1000, 50), StageCost("layer1", 1000, 300), StageCost("optimizer", 0, 7)]
    assert floor_seconds(costs, card, FP32) == pytest.approx(10 + 30 + 0.7)
    assert floor_seconds(costs, card, FP16) == pytest.approx(5 + 30 + 0.7)
    assert floor_seconds([], card, FP32) == 0
    with pytest.raises(ValueError, match=r"the a card has no arithmetic of torch\.bfloat16"):
        floor_seconds(costs, card, BF16)


@pytest.mark.parametrize(
    ("device_name", "fp32", "fp16", "bandwidth", "gigabytes"),
    [
        ("Tesla P100-PCIE-16GB", 9.3, 18.7, 732, 16),
        ("Tesla T4", 8.1, 65, 320, 16),
        ("NVIDIA A100-SXM4-40GB", 19.5, 312, 1555, 40),
        ("A100-SXM4-40GB", 19.5, 312, 1555, 40),
        ("NVIDIA A100-PCIE-40GB", 19.5, 312, 1555, 40),
        ("NVIDIA A100-SXM4-80GB", 19.5, 312, 2039, 80),
        ("NVIDIA A100 80GB PCIe", 19.5, 312, 1935, 80),
        ("NVIDIA H100 80GB HBM3", 67, 989.4, 3350, 80),
        ("NVIDIA H100 PCIe", 51, 756, 2000, 80),
        ("NVIDIA H200", 67, 989.4, 4800, 141),
    ],
)
def test_cards_are_found_by_the_name_of_the_device(
    device_name: str, fp32: float, fp16: float, bandwidth: float, gigabytes: int
) -> None:
    card = find_card(device_name)
    assert card is not None
    assert card.flop_per_s[FP32] == pytest.approx(fp32 * 1e12)
    assert card.flop_per_s[FP16] == pytest.approx(fp16 * 1e12)
    assert card.bytes_per_s == pytest.approx(bandwidth * 1e9)
    assert card.memory == gigabytes * 10**9
    old = card.name.startswith(("P100", "T4"))
    assert card.flop_per_s.get(BF16) == (None if old else card.flop_per_s[FP16])


@pytest.mark.parametrize(
    "device_name",
    [
        "",
        "NVIDIA",
        "Tesla P100-PCIE-12GB",
        "Tesla P100-SXM2-16GB",
        "Tesla P4",
        "Tesla V100-SXM2-16GB",
        "NVIDIA T400",
        "NVIDIA T400 4GB",
        "NVIDIA T4G",
        "Tesla T40 24GB",
        "NVIDIA RTX A1000",
        "NVIDIA RTX A1000 Laptop GPU",
        "NVIDIA A10",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100 NVL",
        "NVIDIA H100",
        "NVIDIA H20",
        "NVIDIA H200 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA GeForce RTX 4090",
        "AMD Instinct MI300X",
    ],
)
def test_other_cards_and_parts_of_one_are_unknown(device_name: str) -> None:
    assert find_card(device_name) is None


def test_no_name_stands_for_two_cards() -> None:
    assert len({card.name for card in CARDS}) == len(CARDS)


def real_steps(
    model: ModelConfig, batch: int, dtype: torch.dtype, device: str, *, checkpointing: bool = False
) -> Iterator[int]:
    """Training steps, one after another."""
    place = torch.device(device)
    step = TrainStep(ActionDetector(model), TrainConfig(checkpointing=checkpointing), place, dtype, "eager")
    shape = (batch, model.frames, model.image_size, model.image_size, 3)
    targets = Targets(torch.zeros(batch, 2, dtype=torch.long), torch.full((batch, 2, 4), 0.4), torch.full((batch,), 2))
    for number in range(3):
        clips = torch.randn(shape, device=place).permute(0, 4, 1, 2, 3)
        step.run(Batch(clips, targets.to(place)), lr=1e-4, seed=0, number=number)
        del clips
        yield number


def allocated_on_cpu(model: ModelConfig, batch: int, dtype: torch.dtype, *, checkpointing: bool) -> int:
    """The most bytes that PyTorch had asked for at once from the first parameter on, oneDNN's workspaces included."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        steps = real_steps(model, batch, dtype, "cpu", checkpointing=checkpointing)
        next(steps)
        next(steps)
    allocated = peak = 0
    for event in cast(Any, recorded.profiler).kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


IN_BF16 = [
    (SMALL, 4, BF16, True),
    (MIDDLE, 1, BF16, False),
    (MIDDLE, 4, BF16, False),
    (MIDDLE, 4, BF16, True),
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("model", "batch", "dtype", "checkpointing"),
    [
        (SMALL, 1, FP32, False),
        (SMALL, 1, BF16, False),
        # The peak of the least is in the optimizer, that of the larger ones in the backward pass.
        (MIDDLE, 1, FP32, False),
        pytest.param(SMALL, 4, FP32, False, marks=pytest.mark.slow),
        pytest.param(MIDDLE, 4, FP32, False, marks=pytest.mark.slow),
        *(pytest.param(*case, marks=pytest.mark.skipif(not BF16_UNITS, reason=NO_UNITS)) for case in IN_BF16),
    ],
)
def test_the_peak_is_what_a_real_step_allocates(
    model: ModelConfig, batch: int, dtype: torch.dtype, checkpointing: bool
) -> None:
    real = allocated_on_cpu(model, batch, dtype, checkpointing=checkpointing)
    estimate = peak_memory(model, batch, dtype, checkpointing=checkpointing)
    assert estimate <= real
    # At the peak, in the backward pass, oneDNN holds copies of its own: in float32 of weights, 21 MB for the widest.
    assert estimate == pytest.approx(real, rel=0.01 if dtype == BF16 and not checkpointing else 0.03)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("model", "batch", "dtype", "checkpointing"), IN_BF16)
def test_beyond_the_peak_a_cpu_allocates_no_more_than_copies_for_one_convolution(
    model: ModelConfig, batch: int, dtype: torch.dtype, checkpointing: bool
) -> None:
    """Without bf16 units a convolution's operands are converted to float32, which the estimate does not count."""
    real = allocated_on_cpu(model, batch, dtype, checkpointing=checkpointing)
    estimate = peak_memory(model, batch, dtype, checkpointing=checkpointing)
    assert estimate <= real <= estimate + 4 * largest_operands(model, batch)


def largest_operands(model: ModelConfig, batch: int) -> int:
    """The numbers in input, weight and output of the backbone's convolution that has most of them."""
    sizes = []

    def note(convolution: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(convolution, nn.Conv3d)
        sizes.append(inputs[0].numel() + convolution.weight.numel() + output.numel())

    with torch.device("meta"):
        backbone = Backbone()
        for module in backbone.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(note)
        backbone(torch.empty(batch, 3, model.frames, model.image_size, model.image_size))
    return max(sizes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_the_peak_is_what_a_real_step_allocates_on_a_gpu(dtype: torch.dtype, checkpointing: bool) -> None:
    model = ModelConfig(image_size=112)
    batch = 8
    gc.collect()
    before = torch.cuda.memory_allocated()
    steps = real_steps(model, batch, dtype, "cuda", checkpointing=checkpointing)
    # In the first step libraries are loaded.
    next(steps)
    torch.cuda.reset_peak_memory_stats()
    next(steps)
    real = torch.cuda.max_memory_allocated() - before
    assert peak_memory(model, batch, dtype, checkpointing=checkpointing) == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize(("dtype", "checkpointing"), [pytest.param(FP32, False, marks=pytest.mark.slow), (FP16, True)])
def test_the_peak_is_affine_in_the_batch(dtype: torch.dtype, checkpointing: bool) -> None:
    """Except for the smallest batches, whose peak is in the optimizer."""
    few, more, many = (peak_memory(MIDDLE, batch, dtype, checkpointing=checkpointing) for batch in (8, 16, 40))
    assert many - 24 * (more - few) / 8 == pytest.approx(more, rel=0.01)


def test_the_peak_holds_parameters_gradients_averages_and_the_features_that_the_backward_needs() -> None:
    with torch.device("meta"):
        detector = ActionDetector(MIDDLE)
    state = 4 * 4 * sum(parameter.numel() for parameter in detector.parameters())
    full, half, again = (
        peak_memory(MIDDLE, 40, FP32, checkpointing=False) - state,
        peak_memory(MIDDLE, 40, FP16, checkpointing=False) - state,
        peak_memory(MIDDLE, 40, FP16, checkpointing=True) - state,
    )
    assert half / full == pytest.approx(0.5, abs=0.03)
    assert again < 0.6 * half
    assert peak_memory(MIDDLE, 40, BF16, checkpointing=False) - state == half


@pytest.mark.parametrize(
    ("dtype", "memory", "checkpointing", "reserve"),
    [(FP32, 16 * 10**9, False, 0.1), pytest.param(FP16, 3 * 10**9, True, 0.5, marks=pytest.mark.slow)],
)
def test_the_largest_batch_fits_and_the_next_one_does_not(
    dtype: torch.dtype, memory: int, checkpointing: bool, reserve: float
) -> None:
    batch = largest_batch(MIDDLE, dtype, memory, checkpointing=checkpointing, reserve=reserve)
    peaks = [peak_memory(MIDDLE, number, dtype, checkpointing=checkpointing) for number in (batch, batch + 1)]
    assert peaks[0] <= (1 - reserve) * memory < peaks[1]


@pytest.mark.parametrize(
    ("memory", "reserve", "wanted"),
    [(0, 0.1, 0), (1100, 0.0, 0), (1105, 0.0, 1), (1199, 0.0, 1), (1200, 0.0, 2), (8000, 0.5, 30), (10**6, 0.0, 9990)],
)
def test_the_largest_batch_of_a_line(memory: int, reserve: float, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 bytes and 100 a clip; only the first clip takes 5 more."""

    def peak(model: ModelConfig, batch: int, *rest: Any, **options: Any) -> int:
        assert batch >= 1
        return 1000 + 100 * batch + 5 * (batch == 1)

    monkeypatch.setattr(actdet.training.cost, "peak_memory", peak)
    assert largest_batch(SMALL, FP32, memory, reserve=reserve) == wanted


def test_nothing_random_moves() -> None:
    before = torch.get_rng_state()
    step_flop(SMALL)
    peak_memory(SMALL, 1, BF16, checkpointing=True)
    assert torch.equal(torch.get_rng_state(), before)

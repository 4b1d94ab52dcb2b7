"""The factorized convolutions and BatchNorm, with their gradients, are those of PyTorch over video, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from actdet.models.backbones import convolution
from actdet.models.backbones.convolution import FactorizedConv, PictureNorm, RectifiedSequential, fuse_norms, set_flat
from actdet.models.backbones.r2plus1d import Backbone, ResidualBlock

# Frames, height, width.
Sides = tuple[int, int, int]

# Batch, channels, outputs, (frames, height, width): layer1 to layer4 at small sizes, and ugly ones.
SPATIAL = [
    (2, 64, 144, (8, 12, 12)),
    (2, 128, 288, (4, 6, 6)),
    (1, 256, 576, (2, 3, 3)),
    (3, 16, 24, (1, 2, 2)),
    (1, 8, 5, (1, 1, 1)),
    (2, 3, 7, (3, 1, 9)),
    (1, 16, 8, (2, 11, 4)),
]


def clips_of(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last_3d)


def layer(channels: int, outputs: int, kernel: Sides, stride: int = 1, padding: int | None = None) -> FactorizedConv:
    """A factorized convolution whose kernel is longer than 1 along some sides, with stride and padding along them."""

    def along(inside: int, across: int) -> Sides:
        frames, rows, columns = (inside if side > 1 else across for side in kernel)
        return frames, rows, columns

    half = max(kernel) // 2 if padding is None else padding
    torch.manual_seed(1)
    made = FactorizedConv(
        channels,
        outputs,
        kernel,
        stride=along(stride, 1),
        padding=along(half, 0),
        bias=False,
    )
    return made.to(memory_format=torch.channels_last_3d)


def gradients(module: nn.Module, clips: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the gradients of the clips and of the module's weight for a weighted sum of it."""
    clips = clips.detach().requires_grad_()
    output = module(clips)
    leaves = [clips, module.get_parameter("weight")]
    d_clips, d_weight = torch.autograd.grad((output * weights).sum(), leaves)
    return output.detach(), d_clips, d_weight


def check(module: nn.Conv3d, clips: Tensor) -> None:
    # PyTorch does not say that they are of three numbers each.
    kernel_size, stride, padding = cast(Any, (module.kernel_size, module.stride, module.padding))
    exact = nn.Conv3d(module.in_channels, module.out_channels, kernel_size, stride, padding, bias=False)
    exact = exact.double()
    exact.load_state_dict(module.state_dict())
    with torch.no_grad():
        weights = torch.randn(exact(clips.double()).shape, generator=torch.Generator().manual_seed(2)).double()
    own = gradients(module, clips, weights.float())
    wanted = gradients(exact, clips.double(), weights.float().double())
    for found, true in zip(own, wanted, strict=True):
        assert found.dtype == torch.float32
        scale = true.abs().max().clamp(min=1e-30)
        assert ((found - true).abs().max() / scale).item() < 2e-5


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the weights whose gradients were matrix products."""
    seen: list[tuple[int, ...]] = []

    def noted(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def compute(*given: object) -> Tensor:
            gradient = own(*given)
            seen.append(tuple(gradient.shape))
            return gradient

        return compute

    for name in ("_columns_gradient", "_rows_gradient"):
        monkeypatch.setattr(convolution, name, noted(getattr(convolution, name)))
    return seen


@pytest.mark.parametrize(("batch", "channels", "outputs", "size"), SPATIAL)
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 1), (1, 5, 5), (5, 1, 1)])
def test_gradients_are_exact(
    products: list[tuple[int, ...]],
    batch: int,
    channels: int,
    outputs: int,
    size: tuple[int, ...],
    kernel: Sides,
) -> None:
    check(layer(channels, outputs, kernel), clips_of(batch, channels, *size, seed=0))
    assert len(products) == 1


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 1)])
@pytest.mark.parametrize(("stride", "padding"), [(2, 1), (1, 0), (1, 2), (3, 2)])
def test_other_strides_and_paddings_are_left_to_the_library(
    products: list[tuple[int, ...]], kernel: Sides, stride: int, padding: int
) -> None:
    check(layer(8, 12, kernel, stride, padding), clips_of(2, 8, 6, 6, 6, seed=0))
    assert not products


def test_large_pictures_are_left_to_the_library(products: list[tuple[int, ...]]) -> None:
    check(layer(16, 16, (1, 3, 3)), clips_of(1, 16, 8, 96, 96, seed=0))
    assert not products


def test_what_is_not_channels_last_and_what_is_empty_is_right() -> None:
    for kernel in ((1, 3, 3), (3, 1, 1)):
        module = layer(8, 12, kernel).to(memory_format=torch.contiguous_format)
        check(module, clips_of(2, 8, 4, 5, 6, seed=0).contiguous())
        check(module, clips_of(2, 8, 4, 6, 5, seed=0).transpose(3, 4))
        clips = torch.randn(0, 8, 4, 5, 6, requires_grad=True)
        module(clips).sum().backward()
        assert module.weight.grad is not None
        assert not module.weight.grad.any()
        module.weight.grad = None


def test_gradients_lie_as_their_parameters_do() -> None:
    """Else every step copies them."""
    backbone = Backbone().to(memory_format=torch.channels_last_3d)
    backbone(clips_of(2, 3, 8, 32, 32, seed=0)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None
        for side, own, step in zip(parameter.shape, parameter.stride(), parameter.grad.stride(), strict=True):
            assert side == 1 or own == step, name


def test_only_what_is_asked_for_is_computed(products: list[tuple[int, ...]]) -> None:
    module = layer(8, 12, (3, 1, 1))
    clips = clips_of(2, 8, 4, 5, 6, seed=0)
    module.weight.requires_grad_(False)
    module(clips.requires_grad_()).sum().backward()
    assert clips.grad is not None
    assert not products
    module.weight.requires_grad_(True)
    clips = clips.detach()
    module(clips).sum().backward()
    assert clips.grad is None
    assert len(products) == 1


def test_bf16_float64_and_no_gradient_take_the_librarys(products: list[tuple[int, ...]]) -> None:
    module = layer(8, 12, (3, 1, 1))
    clips = clips_of(2, 8, 4, 5, 6, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        module(clips).float().sum().backward()
    deepened = layer(8, 12, (3, 1, 1)).double()
    deepened(clips.double()).sum().backward()
    assert not products


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 1)])
def test_a_checkpointed_convolution_has_the_same_gradient(kernel: Sides) -> None:
    module = layer(8, 12, kernel)
    clips = clips_of(2, 8, 4, 5, 6, seed=0)
    module(clips).square().sum().backward()
    plain = module.weight.grad
    module.weight.grad = None
    again = checkpoint(module, clips, use_reentrant=False)
    assert isinstance(again, Tensor)
    again.square().sum().backward()
    assert plain is not None
    assert module.weight.grad is not None
    torch.testing.assert_close(module.weight.grad, plain, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", [(3, 3), (3, 1)])
def test_second_derivatives_are_exact(kernel: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(3, 2, *kernel, dtype=torch.float64, generator=generator, requires_grad=True)
    padding = tuple(side // 2 for side in kernel)

    def convolve(pictures: Tensor, weight: Tensor) -> Tensor:
        return convolution._ConvByProducts.apply(pictures, weight, padding)

    assert torch.autograd.gradcheck(convolve, (pictures, weight))
    assert torch.autograd.gradgradcheck(convolve, (pictures, weight))


def test_three_dimensions_say_the_same() -> None:
    module = layer(8, 12, (1, 3, 3))
    clips = clips_of(2, 8, 4, 5, 6, seed=0)
    flat = module(clips)
    set_flat(module, False)
    torch.testing.assert_close(module(clips), flat, rtol=1e-5, atol=1e-5)


PICTURES = [(2, 48, 5, 7, 6), (1, 64, 1, 3, 3), (3, 8, 4, 1, 1), (2, 232, 2, 2, 5)]


def normed(
    kind: type[nn.BatchNorm3d], channels: int, relu: bool, training: bool = True, fused: bool = False
) -> nn.Sequential:
    """A norm, with weights and biases as training leaves them, and a ReLU after it if `relu`."""
    generator = torch.Generator().manual_seed(7)
    norm = kind(channels)
    norm.weight.data = torch.randn(channels, generator=generator)
    norm.bias.data = torch.randn(channels, generator=generator)
    parts = [norm, nn.ReLU(inplace=True)] if relu else [norm]
    made = RectifiedSequential(*parts) if kind is PictureNorm else nn.Sequential(*parts)
    if fused:
        fuse_norms(made)
    return made.train(training)


def norm_gradients(module: nn.Module, clips: Tensor, weights: Tensor) -> list[Tensor]:
    """The output, and the gradients of the clips, and of the norm's weight and bias."""
    leaves = [clips.detach().requires_grad_(), *module.parameters()]
    output = module(leaves[0])
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("training", "fused"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("shape", PICTURES)
def test_batch_norm_over_pictures_is_that_over_video(
    shape: tuple[int, ...], training: bool, fused: bool, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its statistics and its gradients, in float64; and nothing is copied to that end."""
    seen: list[Tensor] = []

    def noted(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def note(*values: Any, **options: Any) -> Tensor:
            seen.append(next(value for value in values if isinstance(value, Tensor)))
            return call(*values, **options)

        return note

    exact, own = (normed(kind, shape[1], relu, training, fused).double() for kind in (nn.BatchNorm3d, PictureNorm))
    clips, weights = (clips_of(*shape, seed=seed).double() for seed in (5, 6))
    wanted = norm_gradients(exact, clips, weights)

    monkeypatch.setattr(convolution, "_are_pictures_faster", lambda video: True)
    monkeypatch.setattr(convolution, "batch_norm", noted(convolution.batch_norm))
    monkeypatch.setattr(nn.BatchNorm3d, "forward", noted(nn.BatchNorm3d.forward))
    found = norm_gradients(own, clips, weights)
    for mine, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-11, atol=1e-11)
    for name, true in exact.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], true, rtol=1e-11, atol=1e-11)

    (pictures,) = seen
    assert pictures.shape == (shape[0] * shape[2], shape[1], *shape[3:])
    assert pictures.data_ptr() == clips.data_ptr()
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    assert found[0].is_contiguous(memory_format=torch.channels_last_3d)


def test_without_a_momentum_the_norm_averages_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_are_pictures_faster", lambda video: True)
    exact, own = (normed(kind, 8, relu=True, fused=True) for kind in (nn.BatchNorm3d, PictureNorm))
    for norm in (exact[0], own[0]):
        assert isinstance(norm, nn.BatchNorm3d)
        norm.momentum = None
    for seed in range(3):
        clips = clips_of(2, 8, 2, 3, 3, seed=seed)
        torch.testing.assert_close(own(clips), exact(clips))
    for mine, true in zip(own.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(mine, true)


# NumPy warns of the way in which Triton's interpreter, before 3.7, reads a scalar.
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU kernels are not interpreted")
def test_a_block_trains_through_the_kernels_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stem and residual blocks, in Triton's interpreter."""
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    torch.manual_seed(3)
    parts = [[backbone.get_submodule(name) for name in ("0", "1.0", "2.0")] for backbone in (Backbone(), Backbone())]
    own, exact = (nn.Sequential(*each).to(memory_format=torch.channels_last_3d).train() for each in parts)
    for value in exact.parameters():
        if value.ndim == 1:
            nn.init.uniform_(value, 0.5, 1.5)
    own.load_state_dict(exact.state_dict())
    clips = clips_of(2, 3, 4, 16, 16, seed=8)
    wanted = exact.double()(clips.double())
    weights = clips_of(*wanted.shape, seed=9).double()
    gradients = torch.autograd.grad((wanted * weights).sum(), [*exact.parameters()])

    fuse_norms(own)
    monkeypatch.setattr(convolution, "_are_pictures_faster", lambda video: True)
    monkeypatch.setattr(convolution, "batch_norm", partial(convolution.batch_norm, backend="triton"))
    got = own(clips)
    found = torch.autograd.grad((got * weights.float()).sum(), [*own.parameters()])
    for mine, true in zip([got, *found], [wanted, *gradients], strict=True):
        assert (mine.double() - true).norm() <= 1e-3 * true.norm()
    for name, true in exact.named_buffers():
        torch.testing.assert_close(own.get_buffer(name).double(), true.double(), rtol=1e-4, atol=1e-5)


def test_every_batch_norm_of_the_backbone_has_both_forms() -> None:
    """And 26 of the 37 have their ReLU with them; 8 end a block, with its sum and its ReLU; 3 are of shortcuts."""
    backbone = Backbone()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm3d)]
    assert len(norms) == 37
    assert {type(norm) for norm in norms} == {PictureNorm}
    pairs = [
        (before, after)
        for module in backbone.modules()
        if isinstance(module, RectifiedSequential)
        for before, after in pairwise(module)
    ]
    rectified = [before for before, after in pairs if isinstance(after, nn.ReLU)]
    assert {type(before) for before in rectified} == {PictureNorm}
    assert len(rectified) == 26
    blocks = [module for module in backbone.modules() if isinstance(module, ResidualBlock)]
    ends = [list(block.conv2.children())[1] for block in blocks]
    assert {type(end) for end in ends} == {PictureNorm}
    assert not {*ends} & {*rectified}
    assert len(ends) == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 144, 8, 28, 28), (2, 45, 3, 7, 9)])
def test_on_a_gpu_it_is_as_near_to_float64_as_pytorchs(shape: tuple[int, ...], dtype: torch.dtype, relu: bool) -> None:
    clips, weights = (clips_of(*shape, seed=seed).cuda().to(dtype) for seed in (5, 6))
    exact = normed(nn.BatchNorm3d, shape[1], relu).cuda().double()
    wanted = norm_gradients(exact, clips.double(), weights.double())

    # Values that the ReLU cuts or not by rounding alone are left out.
    certain = wanted[0] != 0 if relu else torch.ones_like(wanted[0], dtype=torch.bool)
    errors = []
    for kind in (PictureNorm, nn.BatchNorm3d):
        module = normed(kind, shape[1], relu, fused=True).cuda()
        found = norm_gradients(module, clips, weights)
        errors.append(
            [
                ((mine.double() - true) * (certain if mine.ndim > 1 else 1)).norm() / true.norm()
                for mine, true in zip(found, wanted, strict=True)
            ]
        )
    for mine, theirs in zip(*errors, strict=True):
        assert mine <= 1.5 * theirs + 1e-5

"""The backbone is torchvision's R(2+1)D-18, whatever its widths are padded to and whatever is computed again."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.video import r2plus1d_18

from actdet.models.backbones import convolution
from actdet.models.backbones.r2plus1d import Backbone

Network = TypeVar("Network", bound=nn.Module)
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def randomized(network: Network) -> Network:
    """Weights as training leaves them: no BatchNorm at one and zero, nothing that cancels."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(17)
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_var", "weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.normal_(0, 0.3, generator=generator)
    return network


def features(network: nn.Module, clips: Tensor) -> Tensor:
    for stage in STAGES:
        clips = getattr(network, stage)(clips)
    return clips


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's network; leave its weights as they are."""
    return randomized(r2plus1d_18(weights=None)).eval()


@pytest.fixture(scope="module")
def state(theirs: nn.Module) -> dict[str, Tensor]:
    return theirs.state_dict()


def ours_like(state: dict[str, Tensor], fresh: Backbone) -> Backbone:
    """A backbone that holds torchvision's `state`, tensor by tensor."""
    backbone = deepcopy(fresh)
    renamed = {
        f"{STAGES.index(name.partition('.')[0])}.{name.partition('.')[2]}": value
        for name, value in state.items()
        if not name.startswith("fc.")
    }
    backbone.load_state_dict(renamed, strict=True)
    return backbone.eval()


@pytest.fixture(scope="module")
def ours(state: dict[str, Tensor], fresh: Backbone) -> Backbone:
    return ours_like(state, fresh)


def outcome(run: Callable[[Tensor], Tensor], network: nn.Module, clips: Tensor) -> list[Tensor]:
    """Features, and the gradients of clips and parameters under a random cotangent."""
    clips = clips.clone().requires_grad_()
    output = run(clips)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    used = [value for name, value in network.named_parameters() if not name.startswith("fc.")]
    gradients = torch.autograd.grad(output, [clips, *used], cotangent.to(output.dtype))
    return [output.detach(), *gradients]


def unpadded(value: Tensor, shape: torch.Size) -> Tensor:
    """The part of `value` that torchvision has; the padding must be zero to the last bit."""
    inside = tuple(map(slice, shape))
    padding = value.detach().clone()
    padding[inside] = 0
    assert not padding.any()
    return value[inside]


def distance(one: list[Tensor], other: list[Tensor]) -> list[float]:
    pairs = [(unpadded(a, b.shape).double(), b.double()) for a, b in zip(one, other, strict=True)]
    return [((a - b).norm() / b.norm()).item() for a, b in pairs]


@pytest.mark.parametrize(
    ("shape", "training"),
    [((1, 3, 9, 19, 33), False), ((1, 3, 1, 17, 19), False), ((2, 3, 5, 23, 31), True)],
)
def test_features_and_gradients_are_torchvisions(
    shape: tuple[int, ...], training: bool, theirs: nn.Module, ours: Backbone
) -> None:
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    reference, backbone = deepcopy(theirs).double(), deepcopy(ours).double()
    reference.train(training)
    backbone.train(training)
    exact = outcome(lambda x: features(reference, x), reference, clips)
    assert exact[0].shape == (
        shape[0],
        512,
        *(-(-side // stride) for side, stride in zip(shape[2:], (8, 16, 16), strict=True)),
    )
    mine = outcome(backbone, backbone, clips)
    assert max(distance(mine, exact)) < 1e-10
    if training:
        state = reference.state_dict()
        for name, value in backbone.state_dict().items():
            torch.testing.assert_close(value, state[f"{STAGES[int(name[0])]}{name[1:]}"], rtol=1e-10, atol=1e-10)


class ReluDecisions(TorchFunctionMode):
    """While active, notes the inputs of all ReLUs, which can be made to let through what those of an exact run did.

    For about half of the clips, one of 3.3 million inputs is so near to zero that rounding decides whether it passes.
    If that decision differs from the one in float64, the gradients of all layers before it are off by 1e-3. By rounding
    itself they are off by 1e-6. Which clips these are depends on the instructions of the processor.

    Args:
        exact: The inputs that an exact run noted. Without them, the ReLUs decide themselves.
    """

    def __init__(self, exact: list[Tensor] | None = None) -> None:
        super().__init__()
        self.exact = exact
        self.inputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (F.relu, torch.relu, torch.relu_):
            return func(*args, **(kwargs or {}))

        # A copy, because the ReLU may write its result there.
        input = args[0]
        self.inputs.append(input.detach().clone())
        if self.exact is None:
            return func(*args, **(kwargs or {}))

        exact = self.exact[len(self.inputs) - 1]
        passes = exact > 0
        inside = unpadded(input, exact.shape).detach()
        differing = inside[(inside > 0) != passes]
        assert (differing.abs() < 1e-5 * exact.abs().max()).all(), "not only rounding decides otherwise"

        # Padding is zero, so whether it passes makes no difference.
        factors = torch.zeros_like(input)
        factors[tuple(map(slice, exact.shape))] = passes
        return input * factors


def errors(
    run: Callable[[Tensor], Tensor], network: nn.Module, clips: Tensor, wanted: list[Tensor], relus: list[Tensor]
) -> list[float]:
    """How far from `wanted` the outcome is when the ReLUs decide as those of the exact run with the inputs `relus`."""
    with ReluDecisions(relus) as decisions:
        found = outcome(run, network, clips)
    assert len(decisions.inputs) == len(relus)
    return distance(found, wanted)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_float32_is_as_near_to_float64_as_torchvision(
    layout: torch.memory_format, theirs: nn.Module, ours: Backbone
) -> None:
    exact = deepcopy(theirs).double()
    clips = torch.randn(1, 3, 7, 33, 41, generator=torch.Generator().manual_seed(4))
    with ReluDecisions() as decisions:
        wanted = outcome(lambda x: features(exact, x), exact, clips.double())
    assert len(decisions.inputs) == 34

    clips = clips.to(memory_format=layout)
    mine = errors(ours, ours, clips, wanted, decisions.inputs)
    their = errors(lambda x: features(theirs, x), theirs, clips, wanted, decisions.inputs)
    assert max(their) < 1e-5
    assert all(one <= 2 * other + 1e-6 for one, other in zip(mine, their, strict=True)), (mine, their)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_new_backbone_holds_what_torchvision_draws_from_the_same_seed(aligned: bool) -> None:
    """Except for the start from scratch, and not a random number more or less is drawn."""
    torch.manual_seed(11)
    own = Backbone(aligned=aligned).state_dict()
    next_number = torch.rand(())

    torch.manual_seed(11)
    theirs = {name: value for name, value in r2plus1d_18(weights=None).state_dict().items() if name[:3] != "fc."}
    assert torch.equal(torch.rand(()), next_number)

    filters = theirs["stem.3.weight"]
    theirs["stem.3.weight"] = filters - filters.mean(dim=2, keepdim=True)
    last_norms = [name for name in theirs if name.endswith("conv2.1.weight")]
    assert len(last_norms) == 8
    for name in last_norms:
        theirs[name] = torch.zeros_like(theirs[name])
    assert [f"{STAGES[int(name[0])]}{name[1:]}" for name in own] == list(theirs)
    for value, wanted in zip(own.values(), theirs.values(), strict=True):
        assert value.dtype == wanted.dtype
        assert torch.equal(value, wanted)


def test_weights_go_back_to_torchvision(theirs: nn.Module, fresh: Backbone) -> None:
    backbone, network = randomized(deepcopy(fresh)).eval(), deepcopy(theirs)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    renamed = {f"{STAGES[int(name[0])]}{name[1:]}": value for name, value in backbone.state_dict().items()}
    missing, unexpected = network.load_state_dict(renamed, strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"]
    assert unexpected == []
    clips = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert distance([backbone(clips)], [features(network, clips)])[0] < 1e-5


class LayoutCopies(TorchDispatchMode):
    """Counts copies of video or of its gradient: what changes the dtype of a tensor and not its layout is none."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[tuple[str, torch.Size]] = []
        self.convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.convolutions += name in ("convolution", "convolution_backward")
        if name in ("clone", "copy", "copy_", "contiguous", "_to_copy", "_reshape_copy"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
            if source.ndim >= 4 and (source.dtype == target.dtype or source.stride() != target.stride()):
                self.copied.append((name, source.shape))
        return result


@pytest.mark.parametrize("size", [(8, 16, 32), (5, 17, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_over_channels_last_clips_changes_no_layout(
    dtype: torch.dtype, size: tuple[int, int, int], fresh: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the library computes the gradients, as on a GPU: the products of float32 on a CPU copy columns."""
    monkeypatch.setattr(convolution, "_is_product_faster", lambda *_: False)
    backbone = deepcopy(fresh).to(memory_format=torch.channels_last_3d).train()
    clips = torch.randn(2, *size, 3).permute(0, 4, 1, 2, 3)
    with LayoutCopies() as copies:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = backbone(clips)
        output.float().square().mean().backward()
    assert copies.convolutions == 2 * 37
    assert copies.copied == []
    assert output.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_copies_that_another_layout_costs_are_seen(fresh: Backbone) -> None:
    # Contiguous, so its channels lie apart.
    clips = torch.randn(2, 3, 8, 32, 48)
    with LayoutCopies() as copies, torch.no_grad():
        fresh(clips)
    assert copies.copied


# Training


def steps(backbone: nn.Module, clips: Tensor, dtype: torch.dtype, count: int) -> list[float]:
    """The losses of `count` steps of AdamW; the loss is a fixed random function of the features."""
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-3, weight_decay=0.1)
    losses = []
    for _ in range(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = backbone(clips).double()
        wanted = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        loss = (output - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def pair(fresh: Backbone) -> tuple[Backbone, Backbone]:
    """The same weights, as training leaves them, with and without padding."""
    aligned, plain = randomized(deepcopy(fresh)), Backbone(aligned=False)
    plain.load_state_dict(aligned.state_dict(), strict=True)
    assert not plain.padded
    assert isinstance(aligned, Backbone)
    return aligned.train(), plain.train()


def assert_alike(aligned: Backbone, plain: Backbone, tolerance: float) -> None:
    for (name, one), other in zip(aligned.state_dict().items(), plain.state_dict().values(), strict=True):
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm(), name
    held = dict(aligned.named_parameters())
    for name, shape in aligned.padded.items():
        if name in held:
            unpadded(held[name], shape)


def test_the_padded_widths_are_multiples_of_eight(fresh: Backbone) -> None:
    convolutions = [module for module in fresh.modules() if isinstance(module, nn.Conv3d)]
    assert {module.out_channels % 8 for module in convolutions} == {0}
    assert {module.in_channels % 8 for module in convolutions if module.in_channels != 3} == {0}
    widths = {shape[0]: fresh.get_parameter(name).shape[0] for name, shape in fresh.padded.items() if "0.0.w" in name}
    assert widths == {45: 48, 230: 232, 460: 464, 921: 928}
    for name, shape in fresh.padded.items():
        assert fresh.state_dict()[name].shape == shape


@pytest.mark.slow
def test_padding_changes_nothing_over_steps_in_float64(fresh: Backbone) -> None:
    aligned, plain = pair(fresh)
    clips = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    mine, theirs = (steps(network.double(), clips, torch.float64, 3) for network in (aligned, plain))
    assert mine == pytest.approx(theirs, rel=1e-11)
    assert theirs[-1] < 0.9 * theirs[0]
    assert_alike(aligned, plain, 1e-9)


def test_padding_changes_no_more_than_rounding_over_steps(fresh: Backbone) -> None:
    """Other widths are added up in another order, and AdamW's first steps take the sign of a gradient for its size."""
    (aligned, mine), (plain, theirs) = trained_pair(fresh, torch.float32)
    assert mine[0] == pytest.approx(theirs[0], rel=2e-5)
    assert mine == pytest.approx(theirs, rel=2e-3)
    assert_alike(aligned, plain, 0.1)


@pytest.mark.slow
def test_padding_errs_no_more_in_bf16_than_the_plain_network_does(fresh: Backbone) -> None:
    """Whatever the units of this processor, whose kernels round at other places for other widths."""
    _, (_, exact) = trained_pair(fresh, torch.float32)
    losses = [found for _, found in trained_pair(fresh, torch.bfloat16)]
    errors = [max(abs(loss - wanted) for loss, wanted in zip(found, exact, strict=True)) for found in losses]
    assert errors[0] <= 2 * errors[1]


def trained_pair(fresh: Backbone, dtype: torch.dtype) -> list[tuple[Backbone, list[float]]]:
    """A backbone with padding and one without, after the same four steps, and the losses of these."""
    clips = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(6))
    clips = clips.to(memory_format=torch.channels_last_3d)
    networks = [network.to(memory_format=torch.channels_last_3d) for network in pair(fresh)]
    return [(network, steps(network, clips, dtype, 4)) for network in networks]


def test_from_scratch_a_shallow_backbone_says_what_the_whole_one_does(fresh: Backbone) -> None:
    """The second blocks join without a change: neither of the features nor of the others' gradients."""
    clips = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    outputs: list[Tensor] = []
    gradients: list[dict[str, Tensor]] = []
    for shallow in (True, False):
        backbone = deepcopy(fresh).double().train()
        backbone.shallow = shallow
        output = backbone(clips)
        (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
        outputs.append(output)
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    of_shallow, of_whole = gradients
    second = {name for name in of_whole if name.partition(".")[2].startswith("1.") and not name.startswith("0.")}
    assert len(second) == 4 * 12
    assert of_shallow.keys() == of_whole.keys() - second
    for name, gradient in of_shallow.items():
        torch.testing.assert_close(gradient, of_whole[name], rtol=1e-9, atol=1e-9)


def test_a_trained_backbone_is_more_than_a_shallow_one(fresh: Backbone) -> None:
    """And outside of training it uses all that it has learned."""
    backbone = randomized(deepcopy(fresh))
    clips = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(7))
    for training in (True, False):
        backbone.train(training)
        with torch.no_grad():
            backbone.shallow = False
            whole = backbone(clips)
            backbone.shallow = True
            differs = (backbone(clips) - whole).abs().max() > 0.01 * whole.abs().max()
        assert differs == training


@pytest.mark.parametrize(("training", "synchronized"), [(True, False), (True, True), (False, False)])
def test_checkpointing_computes_the_same_and_counts_no_batch_twice(
    training: bool, synchronized: bool, fresh: Backbone
) -> None:
    """Also with the BatchNorm that several GPUs have, which without torch.distributed is the ordinary one."""
    plain, saving = (randomized(deepcopy(fresh)).double().train(training) for _ in range(2))
    if synchronized:
        plain, saving = (nn.SyncBatchNorm.convert_sync_batchnorm(network) for network in (plain, saving))
    assert isinstance(saving, Backbone)
    saving.checkpointing = True
    clips = torch.randn(2, 3, 8, 16, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    kept: list[int] = []
    results = []
    for network in (plain, saving):
        held: dict[int, int] = {}

        def pack(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network(clips)
        kept.append(sum(held.values()) - sum(p.numel() * 8 for p in network.parameters()))
        cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        results.append([output, *torch.autograd.grad(output, list(network.parameters()), cotangent)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for one, other in zip(plain.buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other)
    assert {norm.momentum for norm in saving.modules() if isinstance(norm, _BatchNorm)} == {0.1}
    assert kept[1] < 0.3 * kept[0]

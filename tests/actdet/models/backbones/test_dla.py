"""DLA-34 is CenterNet's and MOC's network on the pixels that all networks here take, and reads their files."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from actdet.data.augment import normalize
from actdet.errors import ActdetError, DataError
from actdet.models.backbones.dla import DLA34, DeformableConv

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

# What CenterNet and MOC do to blue, green and red in [0, 1].
MEAN = torch.tensor([0.40789654, 0.44719302, 0.47026115], dtype=torch.float64)
STD = torch.tensor([0.28863828, 0.27408164, 0.27809835], dtype=torch.float64)

# ImageNet's mean color, red first, which is zero for all networks here.
OUR_ZERO = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)


def norm_shapes(name: str, width: int) -> Shapes:
    shapes: Shapes = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def level_shapes() -> Shapes:
    """The tensors of the levels as the file for ImageNet names them, written down from the network of Yu et al."""
    shapes: Shapes = {"base_layer.0.weight": (16, 3, 7, 7), **norm_shapes("base_layer.1", 16)}
    shapes |= {"level0.0.weight": (16, 16, 3, 3), **norm_shapes("level0.1", 16)}
    shapes |= {"level1.0.weight": (32, 16, 3, 3), **norm_shapes("level1.1", 32)}

    def block(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.conv1.weight": (outputs, inputs, 3, 3), **norm_shapes(f"{name}.bn1", outputs)})
        shapes.update({f"{name}.conv2.weight": (outputs, outputs, 3, 3), **norm_shapes(f"{name}.bn2", outputs)})

    def project(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.project.0.weight": (outputs, inputs, 1, 1)})
        shapes.update(norm_shapes(f"{name}.project.1", outputs))

    def tree(name: str, inputs: int, outputs: int, joined: int) -> None:
        block(f"{name}.tree1", inputs, outputs)
        block(f"{name}.tree2", outputs, outputs)
        shapes.update({f"{name}.root.conv.weight": (outputs, 2 * outputs + joined, 1, 1)})
        shapes.update(norm_shapes(f"{name}.root.bn", outputs))
        if inputs != outputs:
            project(name, inputs, outputs)

    tree("level2", 32, 64, 0)
    for name, inputs, outputs in (("level3", 64, 128), ("level4", 128, 256)):
        tree(f"{name}.tree1", inputs, outputs, 0)
        tree(f"{name}.tree2", outputs, outputs, inputs + outputs)
        # Nothing reads what this projection computes.
        project(name, inputs, outputs)
    tree("level5", 256, 512, 256)
    return shapes


# Of the aggregation: name, inputs and outputs of the projection, and by how much its output is enlarged.
UPS = [
    ("dla_up.ida_0", 1, 512, 256, 2),
    ("dla_up.ida_1", 1, 256, 128, 2),
    ("dla_up.ida_1", 2, 256, 128, 2),
    ("dla_up.ida_2", 1, 128, 64, 2),
    ("dla_up.ida_2", 2, 128, 64, 2),
    ("dla_up.ida_2", 3, 128, 64, 2),
    ("ida_up", 1, 128, 64, 2),
    ("ida_up", 2, 256, 64, 4),
]


def published_shapes() -> Shapes:
    """The tensors of CenterNet's detector for COCO, heads and all."""
    shapes: Shapes = {f"base.{name}": shape for name, shape in level_shapes().items()}

    def node(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.conv.weight": (outputs, inputs, 3, 3), f"{name}.conv.bias": (outputs,)})
        shapes.update({f"{name}.conv.conv_offset_mask.weight": (27, inputs, 3, 3)})
        shapes.update({f"{name}.conv.conv_offset_mask.bias": (27,), **norm_shapes(f"{name}.actf.0", outputs)})

    for name, number, inputs, outputs, factor in UPS:
        node(f"{name}.proj_{number}", inputs, outputs)
        shapes[f"{name}.up_{number}.weight"] = (outputs, 1, 2 * factor, 2 * factor)
        node(f"{name}.node_{number}", outputs, outputs)

    for head, channels in (("hm", 80), ("wh", 2), ("reg", 2)):
        shapes |= {f"{head}.0.weight": (256, 64, 3, 3), f"{head}.0.bias": (256,)}
        shapes |= {f"{head}.2.weight": (channels, 256, 1, 1), f"{head}.2.bias": (channels,)}
    return shapes


def is_read(name: str) -> bool:
    return name.startswith(("base.", "dla_up.", "ida_up.")) and not re.match(r"base\.level[34]\.project", name)


def trained(shapes: Shapes) -> State:
    """Weights as a training leaves them: no BatchNorm at one and zero, and offsets of about a pixel."""
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, shape in shapes.items():
        if not shape:
            values[name] = torch.tensor(17)
        elif len(shape) > 1:
            values[name] = torch.randn(shape, generator=generator) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        elif name.endswith(("running_var", "actf.0.weight", "bn.weight")) or re.search(r"\.(bn)?1\.weight", name):
            values[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            values[name] = 0.3 * torch.randn(shape, generator=generator)
        if "conv_offset_mask.weight" in name:
            values[name] *= 0.5
    return values


@pytest.fixture(scope="module")
def state() -> State:
    return trained(published_shapes())


@pytest.fixture(scope="module")
def file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ctdet_coco_dla_2x.pth"
    torch.save({"epoch": 230, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


@pytest.fixture(scope="module")
def loaded(file: Path) -> DLA34:
    network = DLA34()
    network.load_weights(str(file))
    return network.eval()


def pixels(pictures: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (pictures, height, width, 3), dtype=torch.uint8, generator=generator)


def as_ours(pictures: Tensor) -> Tensor:
    """Bytes (N, H, W, 3) as the library gives them to every network: (N, 3, H, W), channels-last."""
    return normalize(pictures[None])[0].transpose(0, 1)


def as_published(rgb: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1], red first, as CenterNet gives them to its network."""
    return (rgb.flip(1) - MEAN[:, None, None]) / STD[:, None, None]


def sampled(features: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Features (N, C, H, W) at places y and x (N, H', W'), bilinearly; beyond the border is zero."""
    batch, _, height, width = features.shape
    result = torch.zeros(batch, features.shape[1], *y.shape[1:], dtype=features.dtype)
    pictures = torch.arange(batch)[:, None, None]
    for down in (0, 1):
        for right in (0, 1):
            row = y.floor() + down
            column = x.floor() + right
            weight = (1 - (y - row).abs()) * (1 - (x - column).abs())
            weight = weight * ((row >= 0) & (row < height) & (column >= 0) & (column < width))
            places = (pictures, slice(None), row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long())
            result += features[places].permute(0, 3, 1, 2) * weight[:, None]
    return result


def deformable_by_hand(features: Tensor, state: State, name: str) -> Tensor:
    """A modulated deformable convolution, pixel of the kernel by pixel."""
    offset_mask = F.conv2d(
        features, state[f"{name}.conv_offset_mask.weight"], state[f"{name}.conv_offset_mask.bias"], padding=1
    )
    rows, columns = torch.meshgrid(*(torch.arange(side).double() for side in features.shape[2:]), indexing="ij")
    output = state[f"{name}.bias"][:, None, None]
    for pixel in range(9):
        i, j = divmod(pixel, 3)
        y = rows + i - 1 + offset_mask[:, 2 * pixel]
        x = columns + j - 1 + offset_mask[:, 2 * pixel + 1]
        seen = sampled(features, y, x) / (1 + torch.exp(-offset_mask[:, 18 + pixel : 19 + pixel]))
        output = output + torch.einsum("nchw,oc->nohw", seen, state[f"{name}.weight"][:, :, i, j])
    return output


def by_hand(state: State, rgb: Tensor, *, deformable: bool = True) -> Tensor:
    """The published network in float64, step by step, on pixels (N, 3, H, W) in [0, 1], red first."""
    state = {name: value.double() for name, value in state.items()}

    def norm(features: Tensor, name: str) -> Tensor:
        moments = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(features, *moments, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(features: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(features, weight, stride=stride, padding=weight.shape[-1] // 2)

    def pool(features: Tensor) -> Tensor:
        # The odd row or column is a pixel of its own.
        down, across = (side % 2 for side in features.shape[2:])
        return F.max_pool2d(F.pad(features, (0, across, 0, down), value=-torch.inf), 2)

    def block(features: Tensor, name: str, shortcut: Tensor, stride: int) -> Tensor:
        inside = norm(conv(features, f"{name}.conv1", stride), f"{name}.bn1").relu()
        return (norm(conv(inside, f"{name}.conv2"), f"{name}.bn2") + shortcut).relu()

    def tree(features: Tensor, name: str, stride: int, joined: list[Tensor]) -> Tensor:
        shortcut = pool(features) if stride == 2 else features
        if f"{name}.project.0.weight" in state:
            shortcut = norm(conv(shortcut, f"{name}.project.0"), f"{name}.project.1")
        first = block(features, f"{name}.tree1", shortcut, stride)
        second = block(first, f"{name}.tree2", first, 1)
        all_joined = torch.cat([second, first, *joined], 1)
        return norm(conv(all_joined, f"{name}.root.conv"), f"{name}.root.bn").relu()

    def two_trees(features: Tensor, name: str) -> Tensor:
        first = tree(features, f"{name}.tree1", 2, [])
        return tree(first, f"{name}.tree2", 1, [pool(features), first])

    def node(features: Tensor, name: str) -> Tensor:
        if deformable:
            features = deformable_by_hand(features, state, f"{name}.conv")
        else:
            features = F.conv2d(features, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], padding=1)
        return norm(features, f"{name}.actf.0").relu()

    def up(coarse: Tensor, fine: Tensor, name: str, number: int, factor: int = 2) -> Tensor:
        projected = node(coarse, f"{name}.proj_{number}")
        weight = state[f"{name}.up_{number}.weight"]
        larger = F.conv_transpose2d(projected, weight, stride=factor, padding=factor // 2, groups=len(weight))
        return node(larger[:, :, : fine.shape[2], : fine.shape[3]] + fine, f"{name}.node_{number}")

    # Beyond the border is what is zero here.
    height, width = rgb.shape[2:]
    padded = OUR_ZERO[:, None, None].repeat(len(rgb), 1, height + 6, width + 6)
    padded[:, :, 3:-3, 3:-3] = rgb
    features = F.conv2d(as_published(padded), state["base.base_layer.0.weight"])
    features = norm(features, "base.base_layer.1").relu()
    features = norm(conv(features, "base.level0.0"), "base.level0.1").relu()
    features = norm(conv(features, "base.level1.0", 2), "base.level1.1").relu()

    at_4 = tree(features, "base.level2", 2, [])
    at_8 = two_trees(at_4, "base.level3")
    at_16 = two_trees(at_8, "base.level4")
    at_32 = tree(at_16, "base.level5", 2, [pool(at_16)])

    third = up(at_32, at_16, "dla_up.ida_0", 1)
    middle = up(at_16, at_8, "dla_up.ida_1", 1)
    second = up(third, middle, "dla_up.ida_1", 2)
    one = up(at_8, at_4, "dla_up.ida_2", 1)
    two = up(middle, one, "dla_up.ida_2", 2)
    first = up(second, two, "dla_up.ida_2", 3)
    return up(third, up(second, first, "ida_up", 1), "ida_up", 2, factor=4)


def check_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


@pytest.mark.parametrize("size", [(2, 64, 64), (1, 37, 50), (1, 33, 1), (3, 2, 3)], ids=str)
@torch.no_grad()
def test_it_is_the_published_network(state: State, loaded: DLA34, size: tuple[int, int, int]) -> None:
    pictures = pixels(*size)
    wanted = by_hand(state, pictures.permute(0, 3, 1, 2).double() / 255)
    _, height, width = size
    assert wanted.shape == (size[0], 64, -(-height // 4), -(-width // 4))
    assert wanted.std() > 0.1
    check_near(loaded(as_ours(pictures)), wanted, 2e-4)


@torch.no_grad()
def test_layout_changes_nothing(loaded: DLA34) -> None:
    pictures = as_ours(pixels(2, 40, 72))
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    rows = loaded(pictures.contiguous())
    last = deepcopy(loaded).to(memory_format=torch.channels_last)(pictures)
    check_near(last, rows.double(), 1e-4)


@torch.no_grad()
def test_the_stem_sees_what_it_has_learned_to_see(state: State, loaded: DLA34) -> None:
    """Away from the border, and whatever comes after it."""
    pictures = pixels(2, 24, 31)
    published = as_published(pictures.permute(0, 3, 1, 2).double() / 255)
    wanted = F.conv2d(published, state["base.base_layer.0.weight"].double())
    parts = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (state[f"base.base_layer.1.{part}"].double() for part in parts)
    wanted = F.batch_norm(wanted, mean, var, weight, bias).relu()
    check_near(loaded.base.stem(as_ours(pictures))[:, :, 3:-3, 3:-3], wanted, 1e-5)


def test_it_has_the_published_parameters() -> None:
    """timm counts 15.74 M for its dla34 with the classifier, from which it has taken the unread projections, too."""
    network = DLA34()
    levels = sum(parameter.numel() for parameter in network.base.parameters())
    assert levels + 512 * 1000 + 1000 == 15_742_104

    own = {name.replace("base.stem", "base.base_layer"): value for name, value in network.state_dict().items()}
    wanted = {name: shape for name, shape in published_shapes().items() if is_read(name)}
    assert {name: tuple(value.shape) for name, value in own.items()} == wanted

    plain = DLA34(deformable=False).state_dict()
    assert plain.keys() == {name for name in network.state_dict() if "conv_offset_mask" not in name}


@pytest.mark.parametrize("deformable", [True, False])
def test_every_parameter_learns(deformable: bool) -> None:
    torch.manual_seed(0)
    network = DLA34(deformable=deformable)
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # BatchNorm subtracts whatever such a bias adds.
        if not name.endswith("conv.bias"):
            assert parameter.grad.abs().max() > 0, name


# Parts


def test_a_new_deformable_convolution_is_a_plain_one_of_half_the_weight() -> None:
    torch.manual_seed(0)
    layer = DeformableConv(5, 7).double()
    features = torch.randn(2, 5, 9, 4, dtype=torch.float64)
    wanted = F.conv2d(features, 0.5 * layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(features), wanted, rtol=1e-12, atol=1e-12)


def test_offsets_are_vertical_and_horizontal_pixels() -> None:
    torch.manual_seed(0)
    layer = DeformableConv(3, 4).double()
    features = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    offset_mask = layer.conv_offset_mask
    assert offset_mask.bias is not None
    with torch.no_grad():
        offset_mask.bias[0:18:2] = 2
        offset_mask.bias[1:18:2] = -1
        offset_mask.bias[18:] = 100
    # Two pixels further down and one further left, behind a border of zeros that is wide enough.
    around = F.conv2d(F.pad(features, (3, 3, 3, 3)), layer.weight, layer.bias)
    torch.testing.assert_close(layer(features), around[:, :, 4 : 4 + 8, 1 : 1 + 9], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 11), (1, 5), (1, 1)])
def test_a_deformable_convolution_and_its_gradients_are_exact(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    layer = DeformableConv(3, 4).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    leaves = [features, *layer.parameters()]
    output = layer(features)
    wanted = deformable_by_hand(features, {f"x.{name}": value for name, value in layer.named_parameters()}, "x")
    torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-10)

    cotangent = torch.randn_like(output)
    gradients = torch.autograd.grad(output, leaves, cotangent)
    for got, exact in zip(gradients, torch.autograd.grad(wanted, leaves, cotangent), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


def test_it_runs_under_autocast(loaded: DLA34) -> None:
    """The operator itself has no kernels for bf16."""
    pictures = as_ours(pixels(1, 32, 32))
    with torch.no_grad():
        wanted = loaded(pictures)
        with torch.autocast("cpu", torch.bfloat16):
            got = loaded(pictures)
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize(("number", "factor"), [(1, 2), (2, 4)])
@torch.no_grad()
def test_maps_are_enlarged_bilinearly_at_first(number: int, factor: int) -> None:
    enlarge = DLA34().ida_up.get_submodule(f"up_{number}")
    features = torch.randn(2, 64, 5, 7, generator=torch.Generator().manual_seed(0))
    got = enlarge(features)
    wanted = F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
    assert got.shape == wanted.shape
    inside = slice(factor // 2, -factor // 2)
    torch.testing.assert_close(got[:, :, inside, inside], wanted[:, :, inside, inside], rtol=1e-5, atol=1e-5)
    # Half of a pixel from the border half of what is seen is the zeros beyond it.
    assert not torch.allclose(got[:, :, 0], wanted[:, :, 0])


# Where weights come from


@torch.no_grad()
def test_the_levels_come_from_a_file_for_imagenet(tmp_path: Path) -> None:
    """Which has learned from the pixels that all networks here take."""
    published = trained({**level_shapes(), "fc.weight": (1000, 512, 1, 1), "fc.bias": (1000,)})
    path = tmp_path / "dla34-ba72cf86.pth"
    # PyTorch did not count batches yet.
    torch.save({name: value for name, value in published.items() if "num_batches" not in name}, path)
    network = DLA34()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_weights(str(path))
    for name, value in network.state_dict().items():
        if name.startswith("base.") and "num_batches" not in name:
            file_name = name.removeprefix("base.").replace("stem.", "base_layer.")
            assert torch.equal(value, published[file_name]), name
        else:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("prefix", "deformable"), [("model.backbone.", True), ("model.backbone.pictures.", False), ("", True)]
)
def test_another_runs_model_is_taken_as_it_is(prefix: str, deformable: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    run = DLA34(deformable=deformable)
    for parameter in run.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    path = tmp_path / "model.safetensors"
    save_file({**{f"{prefix}{key}": value for key, value in run.state_dict().items()}, "head": torch.zeros(3)}, path)
    network = DLA34(deformable=deformable)
    network.load_weights(str(path))
    for name, value in network.state_dict().items():
        assert torch.equal(value, run.state_dict()[name]), name


def test_a_detector_of_mocs_is_taken(state: State, loaded: DLA34, tmp_path: Path) -> None:
    path = tmp_path / "dla34_K7_rgb_coco.pth"
    of_moc = {f"backbone.{name}": value for name, value in state.items() if is_read(name)}
    torch.save({"epoch": 12, "best": 1.0, "state_dict": {**of_moc, "branch.hm.0.weight": torch.zeros(9)}}, path)
    network = DLA34()
    network.load_weights(str(path))
    for name, value in network.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@torch.no_grad()
def test_plain_convolutions_take_the_modulation(state: State, tmp_path: Path) -> None:
    """Where nothing is deformed, and the modulation is constant, they are the same function."""
    still = dict(state)
    for name in state:
        if name.endswith("conv_offset_mask.weight"):
            still[name] = torch.zeros_like(state[name])
        if name.endswith("conv_offset_mask.bias"):
            still[name] = torch.cat([torch.zeros(18), state[name][18:]])
    path = tmp_path / "coco.pth"
    torch.save({"state_dict": still}, path)
    pictures = pixels(1, 45, 64)
    wanted = by_hand(still, pictures.permute(0, 3, 1, 2).double() / 255)
    network = DLA34(deformable=False).eval()
    network.load_weights(str(path))
    check_near(network(as_ours(pictures)), wanted, 2e-4)


@torch.no_grad()
def test_a_plain_network_of_another_run_is_no_deformable_one(state: State, tmp_path: Path) -> None:
    plain = {f"model.{name}": value for name, value in DLA34(deformable=False).state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_file(plain, path)
    with pytest.raises(DataError, match=r"DLA-34: dla_up.ida_0.proj_1.conv.conv_offset_mask.weight is missing"):
        DLA34().load_weights(str(path))


def test_none_leaves_the_weights() -> None:
    network = DLA34()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_weights("none")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("source", ["kinetics", "imagenet"])
def test_no_name_stands_for_weights(source: str) -> None:
    with pytest.raises(ActdetError, match=r"DLA-34 cannot be fetched by a name: download ctdet_coco_dla_2x.pth"):
        DLA34().load_weights(source)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.fixture(scope="module")
def small_state() -> State:
    """Names and shapes of the published weights in a small file: every tensor repeats one number."""
    return {name: torch.ones(()).expand(shape) for name, shape in published_shapes().items() if shape}


@pytest.fixture(scope="module", params=[True, False], ids=["deformable", "plain"])
def untouched(request: pytest.FixtureRequest) -> DLA34:
    return DLA34(deformable=request.param)


BAD: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (
        without("base.level4.tree2.root.bn.running_var"),
        "not weights of DLA-34: base.level4.tree2.root.bn.running_var is missing",
    ),
    "no stem": (
        without("base.base_layer.0.weight"),
        "not weights of DLA-34: base.base_layer.0.weight is missing",
    ),
    "no mean": (
        without("base.base_layer.1.running_mean"),
        "not weights of DLA-34: base.base_layer.1.running_mean is missing",
    ),
    "flow": (
        lambda state: {**state, "base.base_layer.0.weight": torch.zeros(16, 15, 7, 7)},
        "not weights of DLA-34: base.base_layer.0.weight is (16, 15, 7, 7), should be (16, 3, 7, 7)",
    ),
    "scalar": (
        lambda state: {**state, "base.base_layer.0.weight": torch.zeros(())},
        "not weights of DLA-34: base.base_layer.0.weight is (), should be (16, 3, 7, 7)",
    ),
    "no modulation": (
        lambda state: {**state, "ida_up.node_1.conv.conv_offset_mask.bias": torch.zeros(18)},
        "not weights of DLA-34: ida_up.node_1.conv.conv_offset_mask.bias is (18,), should be (27,)",
    ),
    "not finite": (
        lambda state: {**state, "dla_up.ida_2.up_3.weight": torch.full((64, 1, 4, 4), torch.nan)},
        "dla_up.ida_2.up_3.weight is not finite: the file is damaged, or its training failed",
    ),
    "integers": (
        lambda state: {**state, "base.level0.1.bias": torch.zeros(16, dtype=torch.int64)},
        "not weights of DLA-34: base.level0.1.bias is int64 and strided, should be float32 and strided",
    ),
    "levels only, one missing": (
        lambda state: {
            key.removeprefix("base."): value
            for key, value in state.items()
            if key.startswith("base.") and key != "base.level5.project.1.bias"
        },
        "not weights of DLA-34: level5.project.1.bias is missing",
    ),
    "another network": (
        lambda state: {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        "not weights of DLA-34: base.base_layer.0.weight is missing",
    ),
    "nothing": (lambda state: {}, "not weights of DLA-34: base.base_layer.0.weight is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_weights_are_one_line_and_change_nothing(
    name: str, small_state: State, untouched: DLA34, tmp_path: Path
) -> None:
    change, complaint = BAD[name]
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": change(small_state)}, path)
    versions = [value._version for value in untouched.state_dict().values()]
    with pytest.raises(DataError, match=re.escape(complaint)) as caught:
        untouched.load_weights(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    # None was written to.
    assert [value._version for value in untouched.state_dict().values()] == versions


def test_a_file_that_is_not_there_names_what_there_is() -> None:
    with pytest.raises(DataError, match=r"--backbone-weights takes none or a \.safetensors, \.pth or \.pt file"):
        DLA34().load_weights("nowhere.pth")

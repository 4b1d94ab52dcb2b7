"""The decoder of tubelet queries: each layer against loops in double precision, and who can see whom."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actdet.models.tubelet.config import TubeletConfig
from actdet.models.tubelet.decoder import HEADS, POINTS, DecoderLayer, DeformableReading, PlainReading
from actdet.models.tubelet.features import FrameFeatures

SMALL = TubeletConfig(image_size=32, frames=8, slots=3, decoder_layers=1)
PYRAMID = [(3, 5), (2, 3), (1, 1)]
LAST = [(3, 5)]

OPTIONS = pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, attention=attention, pyramid=pyramid, all_frames=all_frames)
        for attention in ("plain", "deformable")
        for pyramid in (True, False)
        for all_frames in (False, True)
    ],
    ids=lambda config: f"{config.attention}-{len(sizes_of(config))}-{'all' if config.all_frames else 'own'}",
)


def sizes_of(config: TubeletConfig) -> list[tuple[int, int]]:
    return PYRAMID if config.pyramid else LAST


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(config: TubeletConfig) -> DecoderLayer:
    """A layer as training leaves one: no weight at its start of zero or one."""
    torch.manual_seed(0)
    layer = DecoderLayer(config, len(sizes_of(config))).eval()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data += 0.05 * noise(*parameter.shape, seed=number)
    return layer


class Inputs(NamedTuple):
    """What a layer takes: of B clips of 8 frames and 3 slots. Some boxes reach beyond the picture."""

    queries: Tensor
    identity: Tensor
    boxes: Tensor
    features: FrameFeatures


def inputs(config: TubeletConfig, clips: int = 2, seed: int = 0) -> Inputs:
    shape = (clips, config.slots, config.frames)
    pixels = sum(height * width for height, width in sizes_of(config))
    features = FrameFeatures(
        noise(clips, config.frames, pixels, 256, seed=seed), noise(pixels, 256, seed=seed + 1), sizes_of(config)
    )
    boxes = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed + 2))
    return Inputs(noise(*shape, 256, seed=seed + 3), noise(*shape, 256, seed=seed + 4), boxes, features)


# A layer in loops


def attend(attention: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention with 8 heads of one sequence: (q, 256), (k, 256) and (k, 256) to (q, 256), head by head."""
    weight = attention.get_parameter("in_proj_weight").double()
    bias = attention.get_parameter("in_proj_bias").double()
    q, k, v = (
        given @ weight[256 * part : 256 * part + 256].T + bias[256 * part : 256 * part + 256]
        for part, given in enumerate((queries, keys, values))
    )
    heads = []
    for head in range(8):
        own = slice(32 * head, 32 * head + 32)
        heads.append((q[:, own] @ k[:, own].T / 32**0.5).softmax(-1) @ v[:, own])
    out = attention.get_submodule("out_proj")
    return torch.cat(heads, -1) @ out.get_parameter("weight").double().T + out.get_parameter("bias").double()


def linear(layer: nn.Module, values: Tensor) -> Tensor:
    return values @ layer.get_parameter("weight").double().T + layer.get_parameter("bias").double()


def read_plainly(layer: PlainReading, query: Tensor, features: FrameFeatures, frames: list[int], clip: int) -> Tensor:
    keys = []
    values = []
    assert features.places is not None
    for frame in frames:
        pixels = features.pixels[clip, frame].double()
        when = 0.0 if layer.times is None else layer.times[frame].double()
        keys.append(pixels + features.places.double() + when)
        values.append(pixels)
    return attend(layer.attention, query[None], torch.cat(keys), torch.cat(values))[0]


def read_at_points(
    layer: DeformableReading, query: Tensor, box: Tensor, features: FrameFeatures, frames: list[int], clip: int
) -> Tensor:
    """By PyTorch's grid_sample, head by head and level by level."""
    levels = len(features.sizes)
    offsets = linear(layer.offsets, query).view(8, levels, 4, 2)
    weights = linear(layer.weights, query).view(8, -1).softmax(-1).view(8, len(frames), levels, 4)
    x, y, width, height = box.double().tolist()
    heads = []
    for head in range(8):
        read = torch.zeros(32, dtype=torch.float64)
        for number, frame in enumerate(frames):
            values = linear(layer.values, features.pixels[clip, frame].double())[:, 32 * head : 32 * head + 32]
            first = 0
            for level, (rows, columns) in enumerate(features.sizes):
                picture = values[first : first + rows * columns].T.reshape(1, 32, rows, columns)
                first += rows * columns
                dx, dy = offsets[head, level].unbind(-1)
                places = torch.stack([x + dx / 4 * width / 2, y + dy / 4 * height / 2], -1)
                grid = (2 * places - 1).view(1, 1, 4, 2)
                found = F.grid_sample(picture, grid, align_corners=False)[0, :, 0]
                read += found @ weights[head, number, level]
        heads.append(read)
    return linear(layer.output, torch.cat(heads))


def layer_by_loops(config: TubeletConfig, layer: DecoderLayer, given: Inputs, mask: Tensor | None = None) -> Tensor:
    """The queries after a layer, clip by clip, slot by slot and frame by frame."""
    clips, slots, frames = given.queries.shape[:3]
    queries = given.queries.double()
    identity = given.identity.double()

    def norm(number: int, values: Tensor) -> Tensor:
        weight, bias = (parameter.double() for parameter in layer.norms[number].parameters())
        return F.layer_norm(values, (256,), weight, bias)

    seen = torch.empty_like(queries)
    for clip, slot, frame in np.ndindex(clips, slots, frames):
        others = list(range(slots)) if mask is None else (~mask[slot]).nonzero().flatten().tolist()
        known = queries[clip, :, frame] + identity[clip, :, frame]
        values = queries[clip, others, frame]
        seen[clip, slot, frame] = attend(layer.slot_attention, known[slot][None], known[others], values)[0]
    queries = norm(0, queries + seen)

    for clip, slot in np.ndindex(clips, slots):
        known = queries[clip, slot] + identity[clip, slot]
        seen[clip, slot] = attend(layer.time_attention, known, known, queries[clip, slot])
    queries = norm(1, queries + seen)

    for clip, slot, frame in np.ndindex(clips, slots, frames):
        query = queries[clip, slot, frame] + identity[clip, slot, frame]
        read_from = list(range(frames)) if config.all_frames else [frame]
        if isinstance(layer.reading, PlainReading):
            seen[clip, slot, frame] = read_plainly(layer.reading, query, given.features, read_from, clip)
        else:
            reading = cast(DeformableReading, layer.reading)
            box = given.boxes[clip, slot, frame]
            seen[clip, slot, frame] = read_at_points(reading, query, box, given.features, read_from, clip)
    queries = norm(2, queries + seen)

    first, _, _, second = layer.feedforward.children()
    return norm(3, queries + linear(second, linear(first, queries).relu()))


@OPTIONS
@torch.no_grad()
def test_a_layer_is_what_loops_compute(config: TubeletConfig) -> None:
    layer = trained(config)
    given = inputs(config, clips=1)
    got = layer(*given)
    torch.testing.assert_close(got.double(), layer_by_loops(config, layer, given), rtol=1e-4, atol=1e-4)


# Who sees whom


@OPTIONS
def test_a_query_reads_its_own_frame_alone_unless_it_is_to_read_all(config: TubeletConfig) -> None:
    """With attention along time switched off; by the gradient."""
    layer = trained(config)
    for parameter in layer.time_attention.out_proj.parameters():
        parameter.data.zero_()
    given = inputs(config)
    pixels = given.features.pixels.requires_grad_()
    after = layer(*given)
    assert after.shape == given.queries.shape
    for frame in (0, 5):
        (gradient,) = torch.autograd.grad(after[1, :, frame].square().sum(), pixels, retain_graph=True)
        reached = gradient.abs().amax((2, 3)) > 0
        wanted = torch.zeros(2, 8, dtype=torch.bool)
        wanted[1, slice(None) if config.all_frames else frame] = True
        assert torch.equal(reached, wanted)


@OPTIONS
def test_a_slot_hears_of_other_frames_by_itself_in_them(config: TubeletConfig) -> None:
    """Along time a slot sees itself alone: with attention between slots switched off it depends on no other slot."""
    layer = trained(config)
    for parameter in layer.slot_attention.out_proj.parameters():
        parameter.data.zero_()
    given = inputs(config)
    queries = given.queries.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(*given)[0, 1, 3].square().sum(), queries)
    reached = gradient.abs().amax(-1) > 0
    wanted = torch.zeros(2, 3, 8, dtype=torch.bool)
    wanted[0, 1] = True
    assert torch.equal(reached, wanted)


@pytest.mark.parametrize("attention", ["plain", "deformable"])
def test_a_slot_knows_nothing_of_those_that_are_masked(attention: str) -> None:
    """As noisy copies of the truth must be hidden from the slots."""
    config = replace(SMALL, attention=attention, pyramid=False)
    layer = trained(config)
    given = inputs(config, clips=1)
    mask = torch.tensor([[False, False, False], [True, False, False], [True, True, False]])
    queries = given.queries.requires_grad_()
    after = layer(*given, mask)
    torch.testing.assert_close(after.double(), layer_by_loops(config, layer, given, mask), rtol=1e-4, atol=1e-4)
    for slot in range(3):
        (gradient,) = torch.autograd.grad(after[0, slot].square().sum(), queries, retain_graph=True)
        assert torch.equal(gradient[0].abs().amax((1, 2)) > 0, ~mask[slot])


@OPTIONS
@torch.no_grad()
def test_slots_have_no_order(config: TubeletConfig) -> None:
    layer = trained(config)
    given = inputs(config)
    order = [2, 0, 1]
    moved = Inputs(given.queries[:, order], given.identity[:, order], given.boxes[:, order], given.features)
    torch.testing.assert_close(layer(*moved), layer(*given)[:, order], rtol=1e-4, atol=1e-5)


@OPTIONS
@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(config: TubeletConfig) -> None:
    layer = trained(config)
    given = inputs(config, clips=3)
    together = layer(*given)
    for clip in (0, 2):
        alone = given._replace(
            queries=given.queries[clip : clip + 1],
            identity=given.identity[clip : clip + 1],
            boxes=given.boxes[clip : clip + 1],
            features=given.features._replace(pixels=given.features.pixels[clip : clip + 1]),
        )
        torch.testing.assert_close(layer(*alone)[0], together[clip], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pyramid", [True, False])
@pytest.mark.parametrize("attention", ["plain", "deformable"])
@torch.no_grad()
def test_all_frames_are_one_if_there_is_one(attention: str, pyramid: bool) -> None:
    """To read all frames of a single one, or of eight that are alike, is to read that one."""
    own = replace(SMALL, attention=attention, pyramid=pyramid)
    own_layer = trained(own)
    given = inputs(own)

    # A detector has 8 frames at least.
    single = replace(own, all_frames=True)
    object.__setattr__(single, "frames", 1)
    layer = DecoderLayer(single, len(sizes_of(own))).eval()
    layer.load_state_dict({**layer.state_dict(), **own_layer.state_dict()})
    first = Inputs(
        given.queries[:, :, :1],
        given.identity[:, :, :1],
        given.boxes[:, :, :1],
        given.features._replace(pixels=given.features.pixels[:, :1]),
    )
    torch.testing.assert_close(layer(*first), own_layer(*first), rtol=1e-4, atol=1e-5)

    layer = DecoderLayer(replace(own, all_frames=True), len(sizes_of(own))).eval()
    state = {**layer.state_dict(), **own_layer.state_dict()}
    if attention == "deformable":
        # Points of all frames have the weights that those of one had.
        for name in ("reading.weights.weight", "reading.weights.bias"):
            of_heads = own_layer.state_dict()[name].unflatten(0, (HEADS, -1))
            state[name] = torch.cat([of_heads] * 8, 1).flatten(0, 1)
    else:
        state["reading.times"] = torch.zeros(8, 1, 256)
    layer.load_state_dict(state)
    alike = given._replace(features=given.features._replace(pixels=given.features.pixels[:, :1].repeat(1, 8, 1, 1)))
    torch.testing.assert_close(layer(*alike), own_layer(*alike), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_who_reads_all_frames_can_tell_them_apart() -> None:
    """If frames trade places, what is read changes."""
    for attention in ("plain", "deformable"):
        config = replace(SMALL, attention=attention, all_frames=True)
        layer = trained(config)
        given = inputs(config)
        swapped = given._replace(features=given.features._replace(pixels=given.features.pixels.flip(1)))
        assert not torch.allclose(layer(*given), layer(*swapped), atol=1e-3)


# A new layer


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, attention="plain")], ids=lambda config: config.attention)
@torch.no_grad()
def test_a_new_layers_queries_add_only_what_they_read(config: TubeletConfig) -> None:
    """As loops read it. Neither other slots nor other frames add anything, nor does the feed-forward."""
    layer = DecoderLayer(config, 3).eval()
    given = inputs(config, clips=1)
    alone = F.layer_norm(F.layer_norm(given.queries.double(), (256,)), (256,))
    got = layer(*given)
    for slot, frame in np.ndindex(config.slots, config.frames):
        query = alone[0, slot, frame]
        asked = query + given.identity[0, slot, frame].double()
        if isinstance(layer.reading, PlainReading):
            read = read_plainly(layer.reading, asked, given.features, [frame], 0)
        else:
            reading = cast(DeformableReading, layer.reading)
            read = read_at_points(reading, asked, given.boxes[0, slot, frame], given.features, [frame], 0)
        wanted = F.layer_norm(F.layer_norm(query + read, (256,)), (256,))
        torch.testing.assert_close(got[0, slot, frame].double(), wanted, rtol=1e-4, atol=1e-4)


@OPTIONS
@torch.no_grad()
def test_what_a_new_layer_reads_of_a_plain_picture_is_its_features(config: TubeletConfig) -> None:
    """Boxes are small and in its middle: near its edge a point is partly outside, where there is nothing."""
    given = inputs(config)
    plain = noise(256, seed=8)
    features = given.features._replace(pixels=plain.expand(given.features.pixels.shape))
    boxes = torch.tensor([0.5, 0.5, 1e-3, 1e-3]).expand(given.boxes.shape)
    in_frames = given.queries.transpose(1, 2), boxes.transpose(1, 2)
    read = DecoderLayer(config, len(sizes_of(config))).reading(*in_frames, features)
    torch.testing.assert_close(read, plain.expand(read.shape), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("all_frames", [False, True])
@torch.no_grad()
def test_new_points_lie_in_eight_directions_to_the_edge_of_the_box(all_frames: bool) -> None:
    """Of a map that says where it is, the average at points that lie evenly about a box is the center of that box."""
    reading = DeformableReading(replace(SMALL, all_frames=all_frames), 1)
    side = 64
    places = (torch.arange(side) + 0.5) / side
    pixels = torch.zeros(1, 8, side, side, 256)
    pixels[..., 0::2] = places[:, None]
    pixels[..., 1::2] = places[:, None, None]
    features = FrameFeatures(pixels.flatten(2, 3), torch.zeros(side * side, 256), [(side, side)])
    boxes = torch.tensor([[0.5, 0.4, 0.4, 0.2], [0.3, 0.6, 0.2, 0.6]]).expand(1, 8, 2, 4)
    read = reading(noise(1, 8, 2, 256, seed=0), boxes, features).unflatten(-1, (HEADS, 16, 2))

    # A head has its own direction: the first one goes to the right, the third one down.
    for slot, (x, y, width, height) in enumerate(boxes[0, 0].tolist()):
        middle = sum(range(1, POINTS + 1)) / POINTS / POINTS / 2
        for head, (dx, dy) in enumerate([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]):
            wanted = torch.tensor([x + dx * middle * width, y + dy * middle * height])
            torch.testing.assert_close(
                read[0, :, slot, head], wanted.expand(8, 16, 2), rtol=1e-4, atol=1e-4, msg=f"{slot} {head}"
            )


def test_dropout_works_in_training_alone() -> None:
    for attention in ("plain", "deformable"):
        config = replace(SMALL, attention=attention, dropout=0.2)
        layer = trained(config)
        rates = {module.p for module in layer.modules() if isinstance(module, nn.Dropout)}
        rates |= {module.dropout for module in layer.modules() if isinstance(module, nn.MultiheadAttention)}
        assert rates == {0.2}
        given = inputs(config)
        with torch.no_grad():
            assert torch.equal(layer(*given), layer(*given))
            layer.train()
            assert not torch.allclose(layer(*given), layer(*given), atol=1e-3)

"""The detector: its size, its shapes, and that it is put together as the report draws it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from actdet_kernels import Targets
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.video import r2plus1d_18

from actdet.models.detr.config import LossConfig, ModelConfig
from actdet.models.detr.decision import actions, decide
from actdet.models.detr.detector import ActionDetector, Predictions
from actdet.models.detr.losses import detector_losses

SMALL = ModelConfig(image_size=32, frames=8, encoder_layers=1, decoder_layers=2, dropout=0.15)

# What each sublayer that adds nothing at first has at zero.
RESIDUALS = ("self_attn.out_proj.weight", "linear2.weight", "linear2.bias")


def clips(batch: int, config: ModelConfig = SMALL, seed: int = 0) -> Tensor:
    shape = (batch, 3, config.frames, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small() -> ActionDetector:
    """A detector as training leaves one: no weight at its start of zero or one. Leave it as it is, in eval mode."""
    torch.manual_seed(0)
    detector = ActionDetector(SMALL).eval()
    with torch.no_grad():
        # A state dict is without the padding of the backbone, which stays zero.
        state = detector.state_dict()
        for name, _ in detector.named_parameters():
            state[name] += 0.05 * torch.randn_like(state[name])
    return detector


def parameters(detector: nn.Module) -> int:
    """Without the padding of the backbone's channels."""
    state = detector.state_dict()
    return sum(state[name].numel() for name, _ in detector.named_parameters())


def test_it_has_the_reports_number_of_parameters() -> None:
    detector = ActionDetector()
    assert parameters(detector) == 40_538_148
    assert detector.positions.shape == (98, 256)
    detector.encoder = nn.ModuleList()
    assert parameters(detector) == parameters(ActionDetector(ModelConfig(encoder_layers=0))) == 37_908_004


@pytest.mark.parametrize("size", [224, 112])
def test_features_meet_the_transformer_on_a_grid_of_7(size: int) -> None:
    """14 x 14 features of 224 pixels are averaged to 7 x 7; those of 112 pixels are 7 x 7 by themselves."""
    detector = ActionDetector(ModelConfig(image_size=size, frames=8, encoder_layers=0, decoder_layers=1)).eval()
    seen: dict[str, Tensor] = {}

    def note_features(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["features"] = output

    def note_pooled(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["pooled"] = inputs[0]

    detector.backbone.register_forward_hook(note_features)
    detector.projection.register_forward_pre_hook(note_pooled)
    with torch.no_grad():
        got = detector(clips(1, detector.config))
    assert got.logits.shape == (1, 1, 12, 3)
    assert detector.positions.shape == (49, 256)
    side = size // 16
    assert seen["features"].shape == (1, 512, 1, side, side)
    wanted = F.avg_pool3d(seen["features"], (1, side // 7, side // 7))
    torch.testing.assert_close(seen["pooled"], wanted)


@pytest.mark.parametrize(
    ("config", "batch", "layers", "grid"),
    [
        (SMALL, 3, 1, (1, 2, 2)),
        (ModelConfig(image_size=48, frames=16, decoder_layers=3, deep_supervision=True), 1, 3, (2, 3, 3)),
        (ModelConfig(("a", "b", "c", "d", "e"), 32, 24, 7, 0, 1, deep_supervision=True), 2, 1, (3, 2, 2)),
        (ModelConfig(("fall",), 64, 8, 1, 0, 2), 2, 1, (1, 4, 4)),
        (ModelConfig(image_size=48, frames=8, backbone="efficientnet-lite0"), 2, 1, (4, 3, 3)),
        (ModelConfig(image_size=128, frames=16, decoder_layers=1, backbone="efficientnet-lite0"), 1, 1, (8, 7, 7)),
    ],
)
def test_predictions_have_the_documented_shapes(
    config: ModelConfig, batch: int, layers: int, grid: tuple[int, int, int]
) -> None:
    detector = ActionDetector(config).eval()
    with torch.no_grad():
        got = detector(clips(batch, config))
    classes = len(config.class_names) + 1
    assert isinstance(got, Predictions)
    assert got.logits.shape == (layers, batch, config.queries, classes)
    assert got.boxes.shape == (layers, batch, config.queries, 4)
    assert got.logits.dtype == got.boxes.dtype == torch.float32
    assert ((got.boxes >= 0) & (got.boxes <= 1)).all()
    assert detector.grid == grid
    assert torch.equal(got.final().logits, got.logits[-1])
    assert torch.equal(got.final().boxes, got.boxes[-1])


def test_boxes_stay_in_the_picture_whatever_comes_in(small: ActionDetector) -> None:
    with torch.no_grad():
        got = small(clips(2) * 1e4)
    assert got.logits.isfinite().all()
    assert ((got.boxes >= 0) & (got.boxes <= 1)).all()


def test_deep_supervision_adds_the_layers_before_the_last(small: ActionDetector) -> None:
    deep = ActionDetector(replace(SMALL, deep_supervision=True)).eval()
    deep.load_state_dict(small.state_dict())
    with torch.no_grad():
        last, every = small(clips(2)), deep(clips(2))
    assert every.logits.shape[0] == 2
    torch.testing.assert_close(every.logits[1:], last.logits)
    torch.testing.assert_close(every.boxes[1:], last.boxes)
    assert not torch.allclose(every.logits[0], every.logits[1], atol=1e-3)


def test_it_is_the_transformer_of_torch_between_backbone_and_heads(small: ActionDetector) -> None:
    encoder_layer, decoder_layer = small.encoder[0], small.decoder[0]
    assert isinstance(encoder_layer, nn.TransformerEncoderLayer)
    assert isinstance(decoder_layer, nn.TransformerDecoderLayer)
    bias = small.projection.bias
    assert bias is not None
    with torch.no_grad():
        got = small(clips(3))
        features = F.adaptive_avg_pool3d(small.backbone(clips(3)), (1, 2, 2))
        weight = small.projection.weight.flatten(1)
        tokens = features.flatten(2).mT @ weight.mT + bias + small.positions[None]
        encoder = nn.TransformerEncoder(encoder_layer, 1, enable_nested_tensor=False).eval()
        decoder = nn.TransformerDecoder(decoder_layer, 2).eval()
        encoder.layers, decoder.layers = small.encoder, small.decoder
        decoded = decoder(small.queries[None].repeat(3, 1, 1), encoder(tokens))
        heads = []
        for head in (small.class_head, small.box_head):
            first, last = (layer for layer in head if isinstance(layer, nn.Linear))
            hidden = (decoded @ first.weight.mT + first.bias).clamp(min=0)
            heads.append(hidden @ last.weight.mT + last.bias)
    torch.testing.assert_close(got.logits, heads[0][None], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.boxes, 1 / (1 + (-heads[1][None]).exp()), rtol=1e-4, atol=1e-4)


def test_a_new_detectors_queries_begin_as_themselves_plus_an_average_of_the_features() -> None:
    detector = ActionDetector(replace(SMALL, decoder_layers=1, deep_supervision=True)).eval()
    features = torch.randn(2, 512, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got = detector.detect(features)
        tokens = detector.projection(features).flatten(2).mT + detector.positions
        tokens = F.layer_norm(F.layer_norm(tokens, (256,)), (256,))
        queries = F.layer_norm(detector.queries, (256,)).expand(2, -1, -1)
        attend = detector.decoder[0].get_submodule("multihead_attn")
        _, attention = attend(queries, tokens, tokens, average_attn_weights=False)
        averages = [attention[:, head] @ tokens[..., 32 * head : 32 * (head + 1)] for head in range(8)]
        decoded = F.layer_norm(F.layer_norm(queries + torch.cat(averages, -1), (256,)), (256,))
        torch.testing.assert_close(got.final().logits, detector.class_head(decoded), rtol=1e-4, atol=1e-4)


def test_a_new_detectors_weights_are_drawn_in_the_order_of_its_parts() -> None:
    """So a seed gives the detector that it always gave: the parts of PyTorch, made one after another, have the same."""
    config = ModelConfig(image_size=48, frames=16, encoder_layers=1, decoder_layers=1, queries=5)
    torch.manual_seed(4)
    detector = ActionDetector(config)
    next_number = torch.rand(())

    torch.manual_seed(4)
    r2plus1d_18(weights=None)
    projection = nn.Conv3d(512, 256, 1)
    positions = torch.randn(18, 256) * 0.5
    queries = torch.randn(5, 256)
    encoder = nn.TransformerEncoderLayer(256, 8, 2048, batch_first=True)
    decoder = nn.TransformerDecoderLayer(256, 8, 2048, batch_first=True)
    heads = [nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs)) for outputs in (3, 4)]
    assert torch.equal(torch.rand(()), next_number)

    wanted = {
        **projection.state_dict(prefix="projection."),
        "positions": positions,
        "queries": queries,
        **encoder.state_dict(prefix="encoder.0."),
        **decoder.state_dict(prefix="decoder.0."),
        **heads[0].state_dict(prefix="class_head."),
        **heads[1].state_dict(prefix="box_head."),
    }
    got = {name: value for name, value in detector.state_dict().items() if not name.startswith("backbone.")}
    assert got.keys() == wanted.keys()
    changed = {name for name, value in wanted.items() if not torch.equal(got[name], value)}
    residuals = [f"{layer}.0.{name}" for layer in ("encoder", "decoder") for name in RESIDUALS]
    assert changed == {
        *residuals,
        "decoder.0.multihead_attn.in_proj_weight",
        "decoder.0.multihead_attn.out_proj.weight",
    }
    for name in residuals:
        assert not got[name].any()


def test_clips_of_a_batch_do_not_see_each_other(small: ActionDetector) -> None:
    batch = clips(3)
    with torch.no_grad():
        together = small(batch)
        for number in (0, 2):
            alone = small(batch[number : number + 1])
            torch.testing.assert_close(together.logits[:, number : number + 1], alone.logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together.boxes[:, number : number + 1], alone.boxes, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.logits[:, 0], together.logits[:, 1], atol=1e-3)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 8, 32, 48),
        (2, 3, 8, 48, 32),
        (2, 3, 16, 32, 32),
        (2, 1, 8, 32, 32),
        (2, 8, 32, 32, 3),
        (3, 8, 32, 32),
        (1, 2, 3, 8, 32, 32),
    ],
)
def test_other_shapes_are_refused_with_the_numbers(shape: tuple[int, ...], small: ActionDetector) -> None:
    with pytest.raises(ValueError, match=r"clips must be \(B, 3, 8, 32, 32\), got \(") as caught:
        small(torch.zeros(shape))
    assert str(caught.value).endswith(f"got {shape}")


def test_dropout_works_in_training_alone(small: ActionDetector) -> None:
    rates = {module.p for module in small.modules() if isinstance(module, nn.Dropout)}
    rates |= {module.dropout for module in small.modules() if isinstance(module, nn.MultiheadAttention)}
    assert rates == {SMALL.dropout}
    detector = deepcopy(small).train()
    with torch.no_grad():
        one, other = detector(clips(2)), detector(clips(2))
        assert not torch.allclose(one.logits, other.logits, atol=1e-3)
        one, other = small(clips(2)), small(clips(2))
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.boxes, other.boxes)


def test_a_gradient_reaches_every_parameter(small: ActionDetector) -> None:
    detector = deepcopy(small).train()
    got = detector(clips(2))
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(field.shape, generator=generator) for field in got]
    torch.autograd.backward(list(got), cotangents)
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_predictions_are_float32_under_autocast(small: ActionDetector) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = small(clips(2))
    with torch.no_grad():
        full = small(clips(2))
    assert low.logits.dtype == low.boxes.dtype == torch.float32
    assert (low.boxes - full.boxes).abs().max() < 0.05
    # a box that went through bfloat16 would have no more than 8 bits
    assert not torch.equal(low.boxes, low.boxes.bfloat16().float())


def test_a_copy_and_a_state_dict_give_the_same_predictions(small: ActionDetector) -> None:
    copy, restored = deepcopy(small), ActionDetector(SMALL).eval()
    with torch.no_grad():
        wanted = small(clips(1))
        restored.load_state_dict(small.state_dict(), strict=True)
        for other in (copy, restored):
            got = other(clips(1))
            assert torch.equal(got.logits, wanted.logits)
            assert torch.equal(got.boxes, wanted.boxes)
        copy.queries.add_(1)
        assert torch.equal(small(clips(1)).logits, wanted.logits)
    assert copy.config == small.config


def test_it_can_be_printed(small: ActionDetector) -> None:
    text = repr(small)
    assert text.startswith("ActionDetector(")
    for part in ("backbone", "projection", "encoder", "decoder", "class_head", "box_head"):
        assert f"({part}): " in text


class Attention(TorchDispatchMode):
    """Counts attention by one operator, and softmaxes, which attention without it would need."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = self.softmax = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.fused += name.startswith("_scaled_dot_product") and not name.endswith("backward")
        self.softmax += "softmax" in name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_one_operator_in_encoder_and_decoder(small: ActionDetector, dtype: torch.dtype) -> None:
    detector = deepcopy(small).train()
    for module in detector.modules():
        if isinstance(module, nn.MultiheadAttention):
            # With dropout a CPU has no such operator.
            module.dropout = 0.0
    with Attention() as attention, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        detector(clips(1)).logits.sum().backward()
    assert attention.fused == SMALL.encoder_layers + 2 * SMALL.decoder_layers
    assert attention.softmax == 0


def test_its_losses_and_detections_are_those_of_its_outputs(small: ActionDetector) -> None:
    """The contract of a family, whose parts have tests of their own."""
    weights = LossConfig(no_object_weight=0.3)
    with torch.no_grad():
        outputs = small(clips(3))
    targets = Targets(torch.tensor([[0], [1], [1]]), torch.full((3, 1, 4), 0.4), torch.tensor([1, 0, 1]).int())
    losses = small.losses(outputs, targets, weights)
    assert losses == detector_losses(outputs.logits, outputs.boxes, targets, weights)

    assert tuple(losses) == small.loss_names

    decision, found, tracks = small.detections(outputs.final(), weights, threshold=0.05)
    assert tracks == ()
    assert found == actions(*outputs.final(), no_object_weight=0.3, threshold=0.05)
    assert any(found)
    decided = decide(*outputs.final(), no_object_weight=0.3, threshold=0.05)
    assert all(map(torch.equal, decision, decided))
    assert small.truth == "clip_box"

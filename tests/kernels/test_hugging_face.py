"""transformers' detectors with the kernels in their losses, against themselves as they are."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from actdet_kernels import hugging_face
from actdet_kernels.detr import HungarianMatcher
from actdet_kernels.hugging_face import Patch, patch_transformers
from torch import Tensor

from tests.kernels.oracles import random_boxes, random_logits

CLASSES, QUERIES, LAYERS = 5, 12, 3
# The last has a sample with more targets than queries.
COUNTS = [[3, 0, 1], [0, 0], [14, 2]]
SMALL = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": QUERIES,
    "auxiliary_loss": True,
    "num_labels": CLASSES,
    "dropout": 0.0,
}
OF_THREE_LEVELS = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [8, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 6,
    "hidden_expansion": 0.5,
}
STAGES = ["stage2", "stage3", "stage4"]
PLAIN = {"use_timm_backbone": False, "backbone": None, "init_std": 0.5}
FAMILIES = {
    "Detr": ("ResNet", STAGES[2:], PLAIN),
    "TableTransformer": ("ResNet", STAGES[2:], PLAIN),
    "ConditionalDetr": ("ResNet", STAGES[2:], PLAIN),
    "DeformableDetr": ("ResNet", STAGES[1:], PLAIN | {"num_feature_levels": 2}),
    "RTDetr": ("RTDetrResNet", STAGES, OF_THREE_LEVELS),
    "DFine": ("RTDetrResNet", STAGES, OF_THREE_LEVELS),
}
LOSS_MODULES = ("loss_for_object_detection", "loss_deformable_detr", "loss_rt_detr")


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    pytest.importorskip("transformers.loss.loss_for_object_detection")
    yield
    Patch().undo()


def model_of(family: str) -> Any:
    """A detector of random weights, whose queries differ enough for its matching to have no near ties."""
    transformers = import_module("transformers")
    backbone, stages, options = FAMILIES[family]
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
    backbone_config = getattr(transformers, f"{backbone}Config")(**sizes, out_features=stages)
    config = getattr(transformers, f"{family}Config")(backbone_config=backbone_config, **SMALL, **options)
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForObjectDetection")(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and ("bbox" in name or "class" in name or "query" in name):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.train()


def labels_of(counts: list[int]) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "class_labels": torch.randint(CLASSES, (count,), generator=generator),
            "boxes": random_boxes(count, seed=3 + index, dtype=torch.float32),
        }
        for index, count in enumerate(counts)
    ]


def step(model: Any, counts: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All losses, their sum among them, and the gradients of all weights."""
    # Also for the noise of denoising.
    torch.manual_seed(4)
    pictures = torch.rand(len(counts), 3, 64, 64)
    model.zero_grad()
    outputs = model(pixel_values=pictures, labels=labels_of(counts))
    outputs.loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return {"loss": outputs.loss.detach()} | {n: v.detach() for n, v in outputs.loss_dict.items()}, gradients


def check_same(got: Any, wanted: Any) -> None:
    (losses, gradients), (their_losses, their_gradients) = got, wanted
    assert list(losses) == list(their_losses)
    assert gradients.keys() == their_gradients.keys()
    assert len(gradients) > 0
    torch.testing.assert_close(losses, their_losses, rtol=2e-5, atol=2e-6)
    # What a small gradient is made of may cancel, to nothing before a normalization: rounding is that of the largest.
    error = 1e-5 * max(gradient.abs().max().item() for gradient in their_gradients.values())
    torch.testing.assert_close(gradients, their_gradients, rtol=1e-3, atol=error)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules of transformers that have solved an assignment since."""
    solvers = []
    for name in (*LOSS_MODULES, "loss_lw_detr"):
        module = import_module(f"transformers.loss.{name}")
        original = module.linear_sum_assignment

        def counted(cost: Any, name: str = name, original: Callable[..., Any] = original) -> Any:
            solvers.append(name)
            return original(cost)

        monkeypatch.setattr(module, "linear_sum_assignment", counted)
    return solvers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_losses_and_gradients_are_its_own(family: str, solved: list[str]) -> None:
    model = model_of(family)
    wanted = [step(model, counts) for counts in COUNTS]
    assert solved
    solved.clear()
    # After the model was imported, made and used.
    patch = patch_transformers()
    for counts, theirs in zip(COUNTS, wanted, strict=True):
        check_same(step(model, counts), theirs)
    assert not solved
    patch.undo()
    check_same(step(model, COUNTS[0]), wanted[0])
    assert solved


BEFORE_THE_IMPORT = """
import json, sys
from actdet_kernels.hugging_face import patch_transformers
assert not any(name.startswith("transformers") for name in sys.modules)
patch = patch_transformers()
from tests.kernels import test_hugging_face as tests
from transformers.loss import loss_deformable_detr
solver = loss_deformable_detr.linear_sum_assignment
for family in ("ConditionalDetr", "DeformableDetr"):
    loss_deformable_detr.linear_sum_assignment = None
    patch_transformers()
    model = tests.model_of(family)
    patched = tests.step(model, [3, 1])
    patch.undo()
    loss_deformable_detr.linear_sum_assignment = solver
    tests.check_same(patched, tests.step(model, [3, 1]))
print("same")
"""


def test_it_may_come_before_the_models_are_imported() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_THE_IMPORT], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.stdout == "same\n", done.stderr


def test_twice_is_once_and_undone_is_undone() -> None:
    classes = [
        kind
        for name in LOSS_MODULES
        for _, kind in inspect.getmembers(import_module(f"transformers.loss.{name}"), inspect.isclass)
    ]
    before = {kind: vars(kind).get("forward") for kind in classes}
    first = patch_transformers()
    patched = {kind: vars(kind).get("forward") for kind in classes}
    assert sum(patched[kind] is not before[kind] for kind in set(classes)) == 5
    assert patch_transformers() == first
    assert {kind: vars(kind).get("forward") for kind in classes} == patched
    first.undo()
    first.undo()
    assert {kind: vars(kind).get("forward") for kind in classes} == before


def test_it_says_what_stays() -> None:
    said = str(patch_transformers())
    replaced, kept = said.removeprefix("With kernels:\n").split("\nAs before:\n")
    assert "DeformableDetr: matching and all losses" in replaced
    assert "DFine, Deimv2: matching, loss_vfl" in replaced
    for name in ("loss_fgl", "segmentation", "focal_alpha below 0", "GroundingDino"):
        assert name in kept


# What is left to transformers' own code


def config_of(**options: Any) -> SimpleNamespace:
    """What the loss functions read of a config."""
    rt_detr = {f"matcher_{name}": value for name, value in {"alpha": 0.25, "gamma": 2.0}.items()}
    rt_detr |= {f"matcher_{name}_cost": value for name, value in {"class": 2, "bbox": 5, "giou": 2}.items()}
    rt_detr |= {f"weight_loss_{name}": 2 for name in ("vfl", "bbox", "giou")}
    coefficients = {f"{name}_loss_coefficient": 2 for name in ("bbox", "giou", "mask", "dice")}
    return SimpleNamespace(
        **{"class_cost": 1, "bbox_cost": 5, "giou_cost": 2, "num_labels": CLASSES, "auxiliary_loss": True}
        | {"focal_alpha": 0.25, "eos_coefficient": 0.1, "decoder_layers": LAYERS, "use_focal_loss": True}
        | {"focal_loss_alpha": 0.75, "focal_loss_gamma": 2.0}
        | coefficients
        | rt_detr
        | options
    )


def losses_of(function: str, classes: int, config: SimpleNamespace, **options: Any) -> Any:
    """The losses that a loss function gives random predictions, and the gradients of logits and boxes."""
    shape = (LAYERS, 3, QUERIES)
    # RT-DETR's layers are the second dimension.
    first = "RT" not in function
    logits = random_logits(*shape, classes, seed=5, dtype=torch.float32)
    boxes = random_boxes(*shape, seed=6, dtype=torch.float32)
    logits, boxes = (leaf.requires_grad_() for leaf in (logits, boxes))
    labels = [{**sample, "masks": torch.ones(len(sample["boxes"]), 8, 8)} for sample in labels_of([3, 1, 2])]
    layers = (logits, boxes) if first else (logits.transpose(0, 1), boxes.transpose(0, 1))
    loss_functions = import_module("transformers.loss.loss_utils")
    total, losses, _ = getattr(loss_functions, function)(
        logits=logits[-1],
        labels=labels,
        device=torch.device("cpu"),
        pred_boxes=boxes[-1],
        config=config,
        outputs_class=layers[0],
        outputs_coord=layers[1],
        **options,
    )
    logits_gradient, boxes_gradient = torch.autograd.grad(total, [logits, boxes])
    return {n: v.detach() for n, v in losses.items()}, {"logits": logits_gradient, "boxes": boxes_gradient}


MASKS = {"pred_masks": torch.linspace(-1, 1, 3 * QUERIES * 64).reshape(3, QUERIES, 8, 8)}
ENCODER = {
    "enc_topk_logits": random_logits(3, QUERIES, CLASSES, seed=7, dtype=torch.float32),
    "enc_topk_bboxes": random_boxes(3, QUERIES, seed=8, dtype=torch.float32),
}


@pytest.mark.parametrize(
    ("function", "classes", "changed", "options", "solves"),
    [
        ("ForObjectDetectionLoss", CLASSES + 1, {}, {}, False),
        ("ForObjectDetectionLoss", CLASSES + 1, {"auxiliary_loss": False}, {}, False),
        ("ForSegmentationLoss", CLASSES + 1, {}, MASKS, False),
        ("DeformableDetrForObjectDetectionLoss", CLASSES, {}, {}, False),
        ("DeformableDetrForObjectDetectionLoss", CLASSES, {"focal_alpha": 0.5}, {}, False),
        ("DeformableDetrForSegmentationLoss", CLASSES, {}, MASKS, False),
        ("RTDetrForObjectDetectionLoss", CLASSES, {}, ENCODER, False),
        ("RTDetrForObjectDetectionLoss", CLASSES, {"use_focal_loss": False}, ENCODER, False),
        ("RTDetrForObjectDetectionLoss", CLASSES, {"matcher_alpha": 0.5}, ENCODER, False),
        ("RTDetrForObjectDetectionLoss", CLASSES, {"matcher_gamma": 1.0}, ENCODER, False),
        ("RTDetrForObjectDetectionLoss", CLASSES, {"matcher_gamma": 1.5}, ENCODER, False),
        ("RTDetrForObjectDetectionLoss", CLASSES, {"focal_loss_alpha": 0.4, "focal_loss_gamma": 1.5}, ENCODER, False),
        ("RTDetrForObjectDetectionLoss", CLASSES, {"focal_loss_alpha": 1.5}, ENCODER, False),
        ("DeformableDetrForObjectDetectionLoss", CLASSES, {"focal_alpha": -1}, {}, False),
    ],
)
def test_every_option_gives_the_same(
    function: str, classes: int, changed: Any, options: Any, solves: bool, solved: list[str]
) -> None:
    config = config_of(**changed)
    wanted = losses_of(function, classes, config, **options)
    solved.clear()
    patch_transformers()
    check_same(losses_of(function, classes, config, **options), wanted)
    assert bool(solved) == solves


def test_layers_are_matched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    original = HungarianMatcher.match

    def noted(self: HungarianMatcher, logits: Tensor, boxes: Tensor, targets: Any) -> Tensor:
        shapes.append(tuple(logits.shape))
        return original(self, logits, boxes, targets)

    monkeypatch.setattr(HungarianMatcher, "match", noted)
    patch_transformers()
    losses_of("ForObjectDetectionLoss", CLASSES + 1, config_of())
    losses_of("DeformableDetrForObjectDetectionLoss", CLASSES, config_of())
    losses_of("RTDetrForObjectDetectionLoss", CLASSES, config_of(), **ENCODER)
    batch = (3, QUERIES)
    assert shapes == [(LAYERS, *batch, CLASSES + 1), (LAYERS, *batch, CLASSES), (LAYERS + 1, *batch, CLASSES)]


def test_the_varifocal_loss_is_not_theirs_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = import_module("transformers.loss.loss_rt_detr").RTDetrLoss
    asked = []
    original = theirs.loss_labels_vfl

    def noted(self: Any, *arguments: Any) -> dict[str, Tensor]:
        asked.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(theirs, "loss_labels_vfl", noted)
    patch = patch_transformers()
    losses, _ = losses_of("RTDetrForObjectDetectionLoss", CLASSES, config_of(), **ENCODER)
    assert "loss_vfl" in losses
    assert not asked
    patch.undo()
    losses_of("RTDetrForObjectDetectionLoss", CLASSES, config_of(), **ENCODER)
    assert asked


def test_classes_of_ones_own_keep_their_code() -> None:
    theirs = import_module("transformers.loss.loss_for_object_detection")
    patch_transformers()

    class Mine(theirs.ImageLoss):
        def loss_labels(self, *arguments: Any) -> dict[str, Tensor]:
            return {"loss_ce": torch.tensor(7.0)}

    class Nobody(theirs.HungarianMatcher):
        def forward(self, outputs: Any, targets: Any) -> list[tuple[Tensor, Tensor]]:
            return [(query[:0], target[:0]) for query, target in super().forward(outputs, targets)]

    outputs = {
        "logits": random_logits(2, QUERIES, CLASSES + 1, seed=5, dtype=torch.float32),
        "pred_boxes": random_boxes(2, QUERIES, seed=6, dtype=torch.float32),
    }
    costs = (1, 5, 2)
    mine = Mine(theirs.HungarianMatcher(*costs), CLASSES, 0.1, ["labels", "boxes"])
    assert mine(outputs, labels_of([2, 1]))["loss_ce"] == 7
    found = theirs.ImageLoss(Nobody(*costs), CLASSES, 0.1, ["labels", "boxes"])(outputs, labels_of([2, 1]))
    assert found["loss_bbox"] == 0
    ours = theirs.ImageLoss(HungarianMatcher(*costs), CLASSES, 0.1, ["labels", "boxes"])(outputs, labels_of([2, 1]))
    assert ours["loss_bbox"] > 0


def test_the_cardinality_is_that_of_the_version() -> None:
    """Older versions count queries of another class than the last, newer ones those of a probability above 0.5."""

    class Older:
        def loss_cardinality(self, outputs: Any, targets: Any, *rest: Any) -> dict[str, Tensor]:
            logits = outputs["logits"]
            found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
            return {"cardinality_error": (found - len(targets[0]["class_labels"])).abs().float().mean()}

    class Newer:
        def loss_cardinality(self, outputs: Any, targets: Any, *rest: Any) -> dict[str, Tensor]:
            found = (outputs["logits"].sigmoid().max(-1).values > 0.5).sum(1)
            return {"cardinality_error": (found - len(targets[0]["class_labels"])).abs().float().mean()}

    assert [hugging_face._counts_by_sigmoid(kind()) for kind in (Older, Newer)] == [False, True]

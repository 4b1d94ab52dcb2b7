"""DETR's matcher and criterion against those of transformers, and against plain loops in float64."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from actdet_kernels import MatchWeights, Targets, backend
from actdet_kernels.detr import HungarianMatcher, ImageLoss, SetCriterion
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.device import DEVICE, NEEDS_TRITON
from tests.kernels.oracles import costs, criterion, random_boxes, random_logits

CLASSES, QUERIES = 4, 6
EOS = 0.125  # a float32 number: the originals keep it as one
COSTS = (1.5, 4.0, 3.0)
LOSSES = ["labels", "boxes", "cardinality"]
RAGGED = [2, 0, 9, 3]  # a sample without targets, and one with more than there are queries
TARGETS = [RAGGED, [3], [0, 0], [1, 2], [9, 7], [6, 0, 6]]
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 2e-5)]
DETR = {"logits": "pred_logits", "labels": "labels", "others": "aux_outputs"}
TRANSFORMERS = {"logits": "logits", "labels": "class_labels", "others": "auxiliary_outputs"}


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("transformers.loss.loss_for_object_detection")


def predictions(
    layers: int, batch: int, *, names: dict[str, str] = DETR, dtype: torch.dtype = torch.float64, logits: int = 5
) -> tuple[dict[str, Any], list[Tensor]]:
    """What a model gives, and logits and boxes of each layer, the last first."""
    leaves = []
    for layer in range(layers):
        leaves.append(random_logits(batch, QUERIES, logits, seed=40 + layer, dtype=dtype).requires_grad_())
        leaves.append(random_boxes(batch, QUERIES, seed=60 + layer, dtype=dtype).requires_grad_())
    return as_outputs(leaves, names), leaves


def as_outputs(leaves: list[Tensor], names: dict[str, str] = DETR) -> dict[str, Any]:
    last, *others = [{names["logits"]: leaves[i], "pred_boxes": leaves[i + 1]} for i in range(0, len(leaves), 2)]
    return last | ({names["others"]: others} if others else {})


def samples(
    counts: list[int], *, names: dict[str, str] = DETR, dtype: torch.dtype = torch.float64
) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(80)
    return [
        {
            names["labels"]: torch.randint(CLASSES, (count,), generator=generator),
            "boxes": random_boxes(count, seed=81 + index, dtype=dtype),
        }
        for index, count in enumerate(counts)
    ]


def copies(leaves: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [leaf.detach().to(dtype or leaf.dtype, copy=True).requires_grad_() for leaf in leaves]


def gradients(losses: dict[str, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """From random cotangents of all losses."""
    generator = torch.Generator().manual_seed(99)
    total = sum(torch.randn((), generator=generator, dtype=torch.float64) * losses[name] for name in sorted(losses))
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, leaves))


def check_same(
    got: dict[str, Tensor], leaves: list[Tensor], wanted: dict[str, Tensor], others: list[Tensor], error: float
) -> None:
    """The same values and gradients, under the same names in the same order."""
    assert list(got) == list(wanted)
    for name, value in got.items():
        assert value.shape == ()
        assert value.requires_grad == ("error" not in name)
        rounding = 1e-6 if "error" in name else error
        torch.testing.assert_close(value.double(), wanted[name].double(), rtol=rounding, atol=rounding)
    for one, other in zip(gradients(got, leaves), gradients(wanted, others), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=error, atol=error)


# Against transformers


@pytest.mark.parametrize("counts", TARGETS)
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_the_pairs_are_transformers(theirs: Any, counts: list[int], dtype: torch.dtype, error: float) -> None:
    outputs, _ = predictions(1, len(counts), names=TRANSFORMERS, dtype=dtype)
    targets = samples(counts, names=TRANSFORMERS, dtype=dtype)
    got, wanted = HungarianMatcher(*COSTS)(outputs, targets), theirs.HungarianMatcher(*COSTS)(outputs, targets)
    assert len(got) == len(wanted) == len(counts)
    for count, mine, other in zip(counts, got, wanted, strict=True):
        for index, reference in zip(mine, other, strict=True):
            assert index.dtype == torch.int64
            assert index.shape == (min(count, QUERIES),)
            assert torch.equal(index, reference)


@pytest.mark.parametrize("mixed", ["ours", "our matcher in theirs", "their matcher in ours"])
@pytest.mark.parametrize("counts", TARGETS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_losses_and_gradients_are_transformers(
    theirs: Any, counts: list[int], layers: int, dtype: torch.dtype, error: float, mixed: str
) -> None:
    targets = samples(counts, names=TRANSFORMERS, dtype=dtype)
    outputs, leaves = predictions(layers, len(counts), names=TRANSFORMERS, dtype=dtype)
    matcher = theirs.HungarianMatcher if mixed == "their matcher in ours" else HungarianMatcher
    loss = theirs.ImageLoss if mixed == "our matcher in theirs" else ImageLoss
    got = loss(matcher(*COSTS), CLASSES, EOS, LOSSES).to(dtype)(outputs, targets)
    others = copies(leaves)
    original = theirs.ImageLoss(theirs.HungarianMatcher(*COSTS), CLASSES, EOS, LOSSES).to(dtype)
    check_same(got, leaves, original(as_outputs(others, TRANSFORMERS), targets), others, error)


# Against loops


def by_loops(leaves: list[Tensor], targets: list[dict[str, Tensor]], class_cost: str = "softmax") -> dict[str, Tensor]:
    """The cost pair by pair, SciPy's assignment, then sample by sample; names as DETR's, weight of no_object 0.1."""
    losses: dict[str, Tensor] = {}
    counts = [len(sample["labels"]) for sample in targets]
    padded = Targets(
        torch.zeros(len(counts), max(counts), dtype=torch.int64),
        torch.zeros(len(counts), max(counts), 4).double(),
        torch.tensor(counts),
    )
    for row, (sample, count) in enumerate(zip(targets, counts, strict=True)):
        padded.labels[row, :count], padded.boxes[row, :count] = sample["labels"], sample["boxes"]
    for layer in range(len(leaves) // 2):
        logits, boxes = leaves[2 * layer : 2 * layer + 2]
        cost = costs(logits.detach(), boxes.detach(), padded, MatchWeights(*COSTS), class_cost)
        matched = torch.full((len(counts), max(counts)), -1)
        wrong = pairs = miscounted = 0
        for row, count in enumerate(counts):
            predicted = [query.index(max(query)) for query in logits[row].tolist()]
            miscounted += abs(sum(label != logits.shape[-1] - 1 for label in predicted) - count)
            for query, target in zip(*linear_sum_assignment(cost[row, :, :count].numpy()), strict=True):
                matched[row, target] = int(query)
                pairs += 1
                wrong += predicted[query] != padded.labels[row, target].item()
        kind = "focal" if class_cost == "focal" else "cross_entropy"
        cls, l1, giou = criterion(logits, boxes, padded, matched, 0.1, kind)
        end = f"_{layer - 1}" if layer else ""
        losses[f"loss_ce{end}"] = cls
        if layer == 0:
            losses["class_error"] = torch.tensor(100 * wrong / pairs if pairs else 100.0)
        losses[f"loss_bbox{end}"], losses[f"loss_giou{end}"] = (value + 0 * boxes.sum() for value in (l1, giou))
        losses[f"cardinality_error{end}"] = torch.tensor(miscounted / len(counts))
    return losses


@pytest.mark.parametrize("counts", TARGETS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_losses_and_gradients_are_the_loops(counts: list[int], layers: int, dtype: torch.dtype, error: float) -> None:
    targets = samples(counts)
    outputs, leaves = predictions(layers, len(counts), dtype=dtype)
    loss = SetCriterion(CLASSES, HungarianMatcher(*COSTS), {}, 0.1, LOSSES).to(dtype)
    got = loss(outputs, [{**sample, "boxes": sample["boxes"].to(dtype)} for sample in targets])
    assert {value.dtype for name, value in got.items() if "loss" in name} == {dtype}
    others = copies(leaves, torch.float64)
    check_same(got, leaves, by_loops(others, targets), others, error)


@pytest.mark.parametrize("counts", TARGETS[:4])
def test_deformable_detrs_focal_losses_are_the_loops(counts: list[int]) -> None:
    targets = samples(counts)
    outputs, leaves = predictions(3, len(counts), logits=CLASSES)
    encoder, more = predictions(1, len(counts), logits=CLASSES)
    matcher = HungarianMatcher(*COSTS, focal=True)
    loss = SetCriterion(CLASSES, matcher, {}, losses=LOSSES, focal_alpha=0.25)
    others = copies([*leaves, *more])
    wanted = by_loops(others[:-2], targets, "focal")
    of_encoder = by_loops(others[-2:], [{**s, "labels": s["labels"] * 0} for s in targets], "focal")
    wanted |= {f"{name}_enc": value for name, value in of_encoder.items() if name != "class_error"}
    check_same(loss(outputs | {"enc_outputs": encoder}, targets), [*leaves, *more], wanted, others, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    outputs, leaves = predictions(2, len(RAGGED), dtype=dtype)
    targets = samples(RAGGED, dtype=dtype)
    got = SetCriterion(CLASSES, HungarianMatcher(*COSTS), {}, 0.1).to(dtype)(outputs, targets)
    others = copies(leaves, torch.float32)
    exact = [{**sample, "boxes": sample["boxes"].float()} for sample in targets]
    wanted = SetCriterion(CLASSES, HungarianMatcher(*COSTS), {}, 0.1)(as_outputs(others), exact)
    torch.testing.assert_close(got, wanted)
    assert {gradient.dtype for gradient in gradients(got, leaves)} == {dtype}


def test_errors_by_hand() -> None:
    """Two targets, three queries of which two say a class: one of the pairs is right."""
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
    logits = torch.tensor([[[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]])
    outputs = {"pred_logits": logits, "pred_boxes": boxes[None]}
    loss = SetCriterion(2, HungarianMatcher(0, 1, 1), {}, 0.1)
    got = loss(outputs, [{"labels": torch.tensor([1, 0]), "boxes": boxes[:2]}])
    assert {name: got[name].item() for name in ("class_error", "cardinality_error", "loss_bbox")} == {
        "class_error": 50,
        "cardinality_error": 0,
        "loss_bbox": 0,
    }
    got = loss(outputs, [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}])
    assert (got["class_error"].item(), got["cardinality_error"].item()) == (100, 2)


# What the host does


class Operators(TorchDispatchMode):
    """Counts the operators that PyTorch runs, but for views, and refuses those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}
        self.seen[name] += not func.is_view
        return func(*args, **(kwargs or {}))


def test_one_matching_and_one_loss_whatever_the_batch_and_nothing_waits() -> None:
    counted = []
    for layers, counts in [(2, [1, 2]), (6, RAGGED), (6, [0] * 5)]:
        outputs, leaves = predictions(layers, len(counts))
        targets = samples(counts)
        loss = SetCriterion(CLASSES, HungarianMatcher(*COSTS), {}, 0.1)
        with Operators() as operators:
            losses = loss(outputs, targets)
        assert operators.seen["match"] == operators.seen["stack"] // 2 == 1
        with Operators():
            torch.autograd.backward([value for value in losses.values() if value.requires_grad])
            loss.matcher(outputs, targets)
        assert all(leaf.grad is not None for leaf in leaves)
        counted.append(operators.seen)
    assert counted[0] == counted[1] == counted[2]


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors know shape and device alone, as the host does while a GPU is far behind. It needs no GPU."""
    if not torch.backends.cuda.is_built():
        pytest.skip("this PyTorch knows no CUDA")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    backend._obstacle.cache_clear()
    with FakeTensorMode():
        try:
            torch.empty(1, device="cuda")[0]
        except RuntimeError:
            pytest.skip("this PyTorch asks for a driver")  # 2.7 does, where there is none
        yield
    backend._obstacle.cache_clear()


def on_device(outputs: dict[str, Any], targets: list[dict[str, Tensor]], place: str) -> Any:
    layers = [{name: torch.zeros(value.shape, device="cuda") for name, value in outputs.items()} for _ in range(3)]
    samples = [
        {name: torch.zeros(value.shape, dtype=value.dtype, device=place) for name, value in sample.items()}
        for sample in targets
    ]
    return layers, samples


@pytest.mark.parametrize("place", ["cuda", "cpu"])
@pytest.mark.usefixtures("without_values")
def test_on_a_gpu_the_host_asks_for_few_operators_and_no_value(place: str) -> None:
    (last, *others), targets = on_device(predictions(1, len(RAGGED))[0], samples(RAGGED), place)
    matcher = HungarianMatcher(*COSTS)
    with Operators() as operators:
        losses = SetCriterion(CLASSES, matcher, {}, 0.1)(last | {"aux_outputs": others}, targets)
    assert {(value.device.type, value.shape) for value in losses.values()} == {("cuda", ())}
    assert operators.seen["match"] == operators.seen["set_loss"] == 1
    del operators.seen["device"]  # a question to tensors without values
    assert operators.seen.total() <= 35
    pairs = matcher(last, targets)
    assert [(query.shape, target.shape) for query, target in pairs] == [((n,), (n,)) for n in (2, 0, 6, 3)]
    assert {index.device.type for pair in pairs for index in pair} == {"cuda"}


@pytest.mark.usefixtures("without_values")
def test_the_originals_code_takes_pairs_on_the_gpu(theirs: Any) -> None:
    outputs, _ = predictions(1, len(RAGGED), names=TRANSFORMERS)
    (last, *_), targets = on_device(outputs, samples(RAGGED, names=TRANSFORMERS), "cuda")
    loss = theirs.ImageLoss(HungarianMatcher(), CLASSES, 0.1, LOSSES).to("cuda")
    pairs = loss.matcher(last, targets)
    assert loss.loss_labels(last, targets, pairs, 1)["loss_ce"].device.type == "cuda"
    index = loss._get_source_permutation_idx(pairs)
    assert last["pred_boxes"][index].shape == (2 + 0 + 6 + 3, 4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Conversion of an array:DeprecationWarning")  # interpreter
@NEEDS_TRITON
def test_the_kernels_give_what_the_reference_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, leaves = predictions(2, len(RAGGED))
    loss = SetCriterion(CLASSES, HungarianMatcher(*COSTS), {}, 0.1)
    wanted = loss(outputs, samples(RAGGED))
    monkeypatch.setattr(backend, "choose_backend", lambda *_: "triton")
    others = [leaf.detach().to(DEVICE).requires_grad_() for leaf in leaves]
    got = loss(as_outputs(others), samples(RAGGED))  # on a GPU, the targets are not there yet
    assert {value.device.type for value in got.values()} == {DEVICE.type}
    torch.testing.assert_close({name: value.cpu() for name, value in got.items()}, wanted)
    found = torch.autograd.grad(got["loss_ce"] + 3 * got["loss_bbox_0"] + got["loss_giou"], others)
    expected = torch.autograd.grad(wanted["loss_ce"] + 3 * wanted["loss_bbox_0"] + wanted["loss_giou"], leaves)
    torch.testing.assert_close([one.cpu() for one in found], list(expected))


def test_losses_may_be_weighted_in_place() -> None:
    weights = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou_0": 0.5, "class_error": 0.1}
    results = []
    for in_place in (True, False):
        outputs, leaves = predictions(2, len(RAGGED))
        losses = SetCriterion(CLASSES, HungarianMatcher(*COSTS), weights, 0.1)(outputs, samples(RAGGED))
        for name, weight in weights.items():
            if in_place:
                losses[name] *= weight
            else:
                losses[name] = losses[name] * weight
        results.append([losses, gradients(losses, leaves)])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


TWO_PROCESSES = """
import json, sys, torch
from actdet_kernels.detr import HungarianMatcher, SetCriterion
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 3)
outputs = {"pred_logits": torch.zeros(1, 3, 5), "pred_boxes": boxes[None]}
for counts, focal in json.loads(sys.argv[3]):
    count = counts[rank]
    targets = [{"labels": torch.zeros(count, dtype=torch.int64), "boxes": boxes[:count] + 0.1}]
    kind = {"focal_alpha": 0.25} if focal else {"eos_coef": 0.1}
    loss = SetCriterion(5 if focal else 4, HungarianMatcher(focal=focal), {}, **kind)
    print(json.dumps({name: value.item() for name, value in loss(outputs, targets).items()}))
torch.distributed.destroy_process_group()
"""


def test_targets_are_averaged_over_two_processes(tmp_path: Path) -> None:
    cases = [([3, 0], False, 1.5), ([1, 0], False, 1), ([0, 3], True, 1.5)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    rest = [str(tmp_path / "store"), json.dumps([case[:2] for case in cases])]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), *rest], env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    ln2, ln5 = math.log(2), math.log(5)
    for rank, printed in enumerate([process.communicate(timeout=200)[0] for process in running]):
        # Some versions of Gloo print there, too, that they are connected.
        lines = [line for line in printed.splitlines() if line.startswith("{")]
        for line, (counts, focal, divisor) in zip(lines, cases, strict=True):
            found, count = json.loads(line), counts[rank]
            assert found["loss_bbox"] == pytest.approx(0.4 * count / divisor, rel=1e-5)
            focal_sum = (0.25 * count + 0.75 * (15 - count)) * ln2 / 4  # every logit is 0
            assert found["loss_ce"] == pytest.approx(focal_sum / divisor if focal else ln5, rel=1e-5)


# The modules


def test_both_spellings_of_the_costs() -> None:
    assert repr(HungarianMatcher()) == "HungarianMatcher(cost_class=1, cost_bbox=1, cost_giou=1)"
    one = HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=3)
    other = HungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=3)
    assert repr(one) == repr(other) == repr(HungarianMatcher(2, 5, 3))
    assert repr(HungarianMatcher(focal=True)).endswith("cost_giou=1, focal=True)")
    assert repr(HungarianMatcher(focal=True, gamma=1.5)).endswith("focal=True, alpha=0.25, gamma=1.5)")
    for names in (("cost_class", "cost_bbox", "cost_giou"), ("class_cost", "bbox_cost", "giou_cost")):
        two: dict[str, Any] = dict.fromkeys(names[:2], 0)
        three: dict[str, Any] = dict.fromkeys(names, 0)
        HungarianMatcher(**two)
        with pytest.raises(ValueError, match="all costs of the matcher are 0"):
            HungarianMatcher(**three)


def test_a_criterion_is_kept_like_any_module() -> None:
    weights = {"loss_ce": 1.0}
    loss = SetCriterion(CLASSES, HungarianMatcher(*COSTS), weights, 0.1, LOSSES)
    assert loss.weight_dict is weights
    assert "num_classes=4, eos_coef=0.1, losses=['labels', 'boxes', 'cardinality']" in repr(loss)
    assert "(matcher): HungarianMatcher(cost_class=1.5, cost_bbox=4.0, cost_giou=3.0)" in repr(loss)
    state = loss.state_dict()
    torch.testing.assert_close(dict(state), {"empty_weight": torch.tensor([1, 1, 1, 1, 0.1])})
    outputs, _ = predictions(2, len(RAGGED))
    wanted = loss(outputs, samples(RAGGED))
    loaded = SetCriterion(CLASSES, HungarianMatcher(*COSTS), weights, 0.5, LOSSES)
    loaded.load_state_dict(state)
    assert loaded.eos_coef == pytest.approx(0.1)
    again = SetCriterion(CLASSES, HungarianMatcher(*COSTS), weights, 0.1, LOSSES)
    again.load_state_dict(state)
    assert again.eos_coef == 0.1
    for same in (loaded, again, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), loss.half()):
        torch.testing.assert_close(same(outputs, samples(RAGGED)), wanted, rtol=1e-6, atol=1e-6)


def test_transformers_criterion_has_no_state() -> None:
    loss = ImageLoss(HungarianMatcher(), CLASSES, 0.1, LOSSES)
    assert not loss.state_dict()
    loss.load_state_dict({})
    assert loss.eos_coef == 0.1


@pytest.mark.parametrize("losses", [["cardinality", "labels"], ["boxes"], []])
def test_only_the_losses_asked_for(losses: list[str]) -> None:
    names = {
        "labels": ["loss_ce", "class_error"],
        "boxes": ["loss_bbox", "loss_giou"],
        "cardinality": ["cardinality_error"],
    }
    outputs, _ = predictions(2, 2)
    got = SetCriterion(CLASSES, HungarianMatcher(), {}, 0.1, losses)(outputs, samples([1, 2]))
    last = [name for loss in losses for name in names[loss]]
    assert list(got) == [*last, *(f"{name}_0" for name in last if name != "class_error")]


def test_another_matcher_is_called_for_each_layer() -> None:
    outputs, _ = predictions(3, 2)
    targets = samples([1, 2])
    given = []

    def first_come(layer: dict[str, Tensor], samples: list[dict[str, Tensor]]) -> list[Any]:
        given.append((sorted(layer), len(samples)))
        return [(torch.tensor([3]), torch.tensor([0])), ([0], [1])]  # the second sample's target 0 gets no query

    got = SetCriterion(CLASSES, first_come, {}, 0.1)(outputs, targets)
    assert given == [(["pred_boxes", "pred_logits"], 2)] * 3
    boxes = outputs["aux_outputs"][1]["pred_boxes"]
    l1 = (boxes[0, 3] - targets[0]["boxes"][0]).abs().sum() + (boxes[1, 0] - targets[1]["boxes"][1]).abs().sum()
    torch.testing.assert_close(got["loss_bbox_1"], l1 / 3)
    for twice in ([1, 1], [0, 1]), ([0, 1], [1, 1]):
        with pytest.raises(ValueError, match="the matcher gives a query or a target of sample 1 twice"):
            SetCriterion(CLASSES, lambda *_, pair=twice: [([3], [0]), pair], {}, 0.1)(outputs, targets)


def test_a_matcher_of_ones_own_that_derives_from_ours_is_called() -> None:
    class Nobody(HungarianMatcher):
        def forward(self, outputs: Any, targets: Any) -> list[tuple[Tensor, Tensor]]:
            return [(query[:0], target[:0]) for query, target in super().forward(outputs, targets)]

    outputs, _ = predictions(1, 2)
    got = SetCriterion(CLASSES, Nobody(), {}, 0.1)(outputs, samples([1, 2]))
    assert (got["loss_bbox"].item(), got["loss_giou"].item(), got["class_error"].item()) == (0, 0, 100)


def weight_by_hand(leaves: list[Tensor], targets: list[dict[str, Tensor]], weight: list[float]) -> Tensor:
    """The cross entropy of the first layer, by PyTorch's, on the matcher's own pairs."""
    pairs = HungarianMatcher(*COSTS)({"pred_logits": leaves[0], "pred_boxes": leaves[1]}, targets)
    wanted = torch.full(leaves[0].shape[:2], CLASSES)
    for row, (queries, chosen) in enumerate(pairs):
        wanted[row, queries] = targets[row]["labels"][chosen]
    by_class = torch.tensor(weight, dtype=torch.float64)
    return torch.nn.functional.cross_entropy(leaves[0].flatten(0, 1), wanted.flatten(), by_class)


AT_FIRST = [1.0] * CLASSES + [0.5]
CHANGED = [1.0] * CLASSES + [0.75]
BY_CLASS = [0.5, 2.0, 0.0, 1.25, 0.75]


def set_entry(loss: SetCriterion) -> None:
    assert loss.empty_weight is not None
    loss.empty_weight[-1] = 0.75


def replace_buffer(loss: SetCriterion) -> None:
    loss.empty_weight = torch.tensor(CHANGED)


def weigh_classes(loss: SetCriterion) -> None:
    loss.empty_weight = torch.tensor(BY_CLASS)


def load_weights(loss: SetCriterion) -> None:
    loss.load_state_dict({"empty_weight": torch.tensor(BY_CLASS)})


def copy_into_it(loss: SetCriterion) -> None:
    assert loss.empty_weight is not None
    loss.empty_weight.copy_(torch.tensor(CHANGED))


def change_and_cast(loss: SetCriterion) -> None:
    set_entry(loss)
    loss.to(torch.float64)


def set_coefficient(loss: SetCriterion) -> None:
    loss.eos_coef = 0.75


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (set_entry, CHANGED),
        (replace_buffer, CHANGED),
        (copy_into_it, CHANGED),
        (change_and_cast, CHANGED),
        (set_coefficient, CHANGED),
        (weigh_classes, BY_CLASS),
        (load_weights, BY_CLASS),
    ],
)
def test_a_weight_that_is_changed_counts(change: Any, changed: list[float]) -> None:
    targets = samples(RAGGED)
    outputs, leaves = predictions(1, len(RAGGED))
    loss = SetCriterion(CLASSES, HungarianMatcher(*COSTS), {}, 0.5)
    for weight in (AT_FIRST, changed, changed):
        if weight is changed:
            change(loss)
        for same in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            got = same(outputs, targets)["loss_ce"]
            torch.testing.assert_close(got, weight_by_hand(leaves, targets, weight), rtol=1e-12, atol=0)


def test_a_weight_is_read_only_after_it_was_changed() -> None:
    outputs, _ = predictions(1, 2)
    loss = SetCriterion(CLASSES, HungarianMatcher(), {}, 0.1)
    set_entry(loss)
    loss(outputs, samples([1, 2]))
    with Operators():
        loss(outputs, samples([1, 2]))
    set_entry(loss)
    with pytest.raises(AssertionError), Operators():
        loss(outputs, samples([1, 2]))


def test_weights_of_other_classes_go_back_to_one() -> None:
    targets = samples(RAGGED)
    outputs, leaves = predictions(1, len(RAGGED))
    loss = SetCriterion(CLASSES, HungarianMatcher(*COSTS), {}, 0.5)
    for weight in (BY_CLASS, AT_FIRST):
        loss.empty_weight = torch.tensor(weight)
        got = loss(outputs, targets)["loss_ce"]
        torch.testing.assert_close(got, weight_by_hand(leaves, targets, weight), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 1.0, 1.0, 0.1], r"^empty_weight must be \(5,\), got \(4,\)$"),
        ([[1.0, 1.0, 1.0, 1.0, 0.1]], r"^empty_weight must be \(5,\), got \(1, 5\)$"),
    ],
)
def test_a_weight_that_cannot_count_is_refused(weight: Any, message: str) -> None:
    outputs, _ = predictions(1, 2)
    loss = SetCriterion(CLASSES, HungarianMatcher(), {}, 0.1)
    loss.empty_weight = torch.tensor(weight)
    with pytest.raises(ValueError, match=message):
        loss(outputs, samples([1, 2]))


def test_a_focal_loss_has_no_weight_to_change() -> None:
    outputs, _ = predictions(1, 2, logits=CLASSES)
    loss = SetCriterion(CLASSES, HungarianMatcher(focal=True), {}, focal_alpha=0.25)
    loss.empty_weight = torch.ones(5)
    with pytest.raises(ValueError, match="focal loss of focal_alpha has no empty_weight"):
        loss(outputs, samples([1, 2]))


@pytest.mark.parametrize("name", ["get_loss", "loss_labels", "loss_boxes", "loss_cardinality"])
@pytest.mark.parametrize("how", ["subclass", "mixin", "instance"])
def test_a_loss_of_ones_own_is_refused_where_it_would_count_for_nothing(how: str, name: str) -> None:
    outputs, _ = predictions(1, 2)
    method = {name: lambda *_: {"loss_ce": torch.zeros(())}}
    bases = {
        "subclass": (SetCriterion,),
        "mixin": (type("Mixin", (), method), SetCriterion),
        "instance": (SetCriterion,),
    }
    loss = type("Mine", bases[how], method if how == "subclass" else {})(CLASSES, HungarianMatcher(), {}, 0.1)
    if how == "instance":
        setattr(loss, name, method[name])
    with pytest.raises(
        TypeError, match=f"^Mine.{name} would have no effect: SetCriterion computes all losses together$"
    ):
        loss(outputs, samples([1, 2]))


def test_a_subclass_may_add_to_what_forward_gives() -> None:
    class More(SetCriterion):
        def forward(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
            return super().forward(outputs, targets) | {"loss_extra": self.loss_extra()}

        def loss_extra(self) -> Tensor:
            return torch.ones(())

    outputs, _ = predictions(1, 2)
    assert More(CLASSES, HungarianMatcher(), {}, 0.1)(outputs, samples([1, 2]))["loss_extra"] == 1


def test_losses_and_a_matcher_that_are_changed_later_count() -> None:
    outputs, _ = predictions(1, 2)
    loss = SetCriterion(CLASSES, HungarianMatcher(), {}, 0.1)
    loss.losses = ["boxes", "masks"]
    with pytest.raises(ValueError, match="there are no mask losses here"):
        loss(outputs, samples([1, 2]))
    loss.losses = ["boxes"]
    assert loss(outputs, samples([1, 2]))["loss_bbox"] > 0
    nobody: Any = lambda layer, targets: [([], [])] * len(targets)  # noqa: E731
    loss.matcher.forward = nobody
    assert loss(outputs, samples([1, 2]))["loss_bbox"] == 0
    loss.matcher = HungarianMatcher()
    loss.matcher.match = lambda logits, boxes, targets: torch.full((1, 2, 2), -1)
    assert loss(outputs, samples([1, 2]))["loss_bbox"] == 0


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([([6], [0]), ([], [])], r"^the matcher's query indices of sample 0 must be in \[0, 6\), got 6$"),
        ([([], []), ([-1], [1])], r"^the matcher's query indices of sample 1 must be in \[0, 6\), got -1$"),
        ([([0, 1], [0, 1]), ([], [])], r"^the matcher's target indices of sample 0 must be in \[0, 1\), got 1$"),
        ([([0], [-1]), ([], [])], r"^the matcher's target indices of sample 0 must be in \[0, 1\), got -1$"),
        ([([0], [0])], "^the matcher must give pairs for 2 samples, got 1$"),
    ],
)
def test_pairs_that_there_cannot_be_are_refused(pairs: Any, message: str) -> None:
    outputs, _ = predictions(1, 2)
    with pytest.raises(ValueError, match=message):
        SetCriterion(CLASSES, lambda *_: pairs, {}, 0.1)(outputs, samples([1, 2]))


@pytest.mark.parametrize(("queries", "counts"), [(0, [1, 2]), (0, [0]), (3, [])])
def test_without_queries_or_samples_all_losses_are_numbers(queries: int, counts: list[int]) -> None:
    logits = torch.zeros(len(counts), queries, CLASSES + 1, requires_grad=True)
    outputs = {"pred_logits": logits, "pred_boxes": torch.zeros(len(counts), queries, 4)}
    got = SetCriterion(CLASSES, HungarianMatcher(), {}, 0.1)(outputs | {"aux_outputs": [outputs]}, samples(counts))
    wrong = sum(counts) / max(len(counts), 1)
    numbers = {"loss_ce": 0, "class_error": 100, "loss_bbox": 0, "loss_giou": 0, "cardinality_error": wrong}
    assert {name: value.item() for name, value in got.items() if "_0" not in name} == numbers
    assert [pair[0].tolist() for pair in HungarianMatcher()(outputs, samples(counts))] == [[] for _ in counts]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": ["labels", "masks"]}, "^there are no mask losses here: leave 'masks' out of losses$"),
        ({"losses": ["box"]}, "^losses must be among 'labels', 'boxes', 'cardinality', got 'box'$"),
        ({"eos_coef": None}, r"needs either eos_coef \(DETR\) or focal_alpha \(Deformable DETR\)"),
        ({"focal_alpha": 0.25}, "needs either eos_coef"),
        ({"eos_coef": None, "focal_alpha": 1.5}, r"focal_alpha must be in \[0, 1\], got 1.5"),
        ({"eos_coef": None, "focal_alpha": 0.25}, r"focal_alpha and HungarianMatcher\(focal=True\) go together"),
        ({"matcher": HungarianMatcher(focal=True)}, "go together, but only one is given"),
    ],
)
def test_other_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SetCriterion(
            **{"num_classes": 4, "matcher": HungarianMatcher(), "weight_dict": {}, "eos_coef": 0.1} | arguments
        )


@pytest.mark.parametrize(
    ("classes", "counts", "message"),
    [(3, [1, 2], "with num_classes=3 there must be 4 logits, got 5"), (4, [1], "for a batch of 2")],
)
def test_outputs_that_do_not_fit_are_refused(classes: int, counts: list[int], message: str) -> None:
    outputs, _ = predictions(2, 2)
    with pytest.raises(ValueError, match=message):
        SetCriterion(classes, HungarianMatcher(), {}, 0.1)(outputs, samples(counts))

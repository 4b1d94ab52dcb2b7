"""The tubelet detector's losses against loops in double precision, SciPy's assignment and PyTorch's own losses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from actdet.data.truth import TubeTargets
from actdet.models.tubelet.config import TubeletLoss
from actdet.models.tubelet.losses import LOSSES, match_slots, tubelet_losses
from actdet.models.tubelet.slots import Slots
from tests.actdet.models.detr.test_losses import Meeting

CONFIG = TubeletLoss(cls_weight=1.5, l1_weight=4.0, giou_weight=3.0, no_object_weight=0.2)
ALPHA, GAMMA = 0.25, 2.0

BOTH_MATCHINGS = pytest.mark.parametrize("matching", ["tubelet", "frame"])
ALL_KINDS = pytest.mark.parametrize(
    ("multi_label", "several"), [(False, False), (True, False), (True, True)], ids=["softmax", "sigmoid", "several"]
)
BOTH_KINDS = pytest.mark.parametrize("multi_label", [False, True], ids=["softmax", "sigmoid"])


@dataclass(frozen=True)
class Shape:
    """How large a problem is."""

    layers: int
    frames: int
    slots: int
    counts: tuple[int, ...]
    rows: int = 4
    classes: int = 3
    visible: float = 0.7
    annotated: float = 1.0


SHAPES = {
    "usual": Shape(2, 4, 5, (2, 0, 3, 1)),
    "one of all": Shape(1, 1, 1, (1,), rows=1, visible=1.0),
    "always visible": Shape(2, 4, 6, (4, 2), visible=1.0),
    "hardly visible": Shape(2, 6, 5, (3, 4, 2), visible=0.15),
    "key frames": Shape(2, 6, 5, (2, 3, 0, 4), annotated=0.4),
    "no actors": Shape(2, 4, 3, (0, 0)),
    "no actors in key frames": Shape(2, 4, 3, (0, 0), annotated=0.6),
    "as many actors as slots": Shape(2, 6, 4, (4, 4)),
    "more actors than slots": Shape(3, 4, 2, (4, 3, 1), visible=0.5),
    "more of both": Shape(3, 6, 2, (4, 3, 1), visible=0.5, annotated=0.6),
    "one slot": Shape(2, 5, 1, (3, 0, 2)),
    "one class": Shape(2, 4, 3, (2, 1), classes=1),
    "nobody is seen": Shape(1, 3, 3, (2, 1), visible=0.0),
    "nothing is known": Shape(1, 3, 3, (2, 1), annotated=0.0),
}
ALL_SHAPES = pytest.mark.parametrize("name", SHAPES)


class Problem(NamedTuple):
    slots: Slots
    targets: TubeTargets


def random_boxes(*shape: int, generator: torch.Generator) -> Tensor:
    center = 0.1 + 0.8 * torch.rand(*shape, 2, generator=generator)
    return torch.cat([center, 0.05 + 0.5 * torch.rand(*shape, 2, generator=generator)], -1)


def problem(shape: Shape, *, multi_label: bool = False, several: bool = False, seed: int = 0) -> Problem:
    """Random slots, with gradients, and actors, each of whom some frame shows, as the loader gives them.

    With `several`, each of them does one or two things in each frame.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = len(shape.counts)
    annotated = torch.rand(batch, shape.frames, generator=generator) < shape.annotated
    visible = torch.rand(batch, shape.rows, shape.frames, generator=generator) < shape.visible
    visible &= annotated[:, None]
    for sample, count in enumerate(shape.counts):
        visible[sample, count:] = False
        # Whoever is seen comes first.
        visible[sample] = visible[sample, (~visible[sample].any(-1)).int().argsort(stable=True)]
    counts = visible.any(-1).sum(1).int()
    labels = torch.randint(0, shape.classes, (batch, shape.rows), generator=generator)
    boxes = random_boxes(batch, shape.rows, shape.frames, generator=generator)
    targets = TubeTargets(
        several_labels(visible, shape.classes, generator) if several else torch.where(visible.any(-1), labels, 0),
        torch.where(visible[..., None], boxes, 0.0),
        counts,
        visible,
        annotated if shape.annotated < 1 else annotated[:, :0],
    )
    places = (shape.layers, batch, shape.slots, shape.frames)
    logits = 2 * torch.randn(*places, shape.classes + (not multi_label), generator=generator)
    return Problem(Slots(logits.requires_grad_(), random_boxes(*places, generator=generator).requires_grad_()), targets)


def several_labels(visible: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """(B, M, T, 2): one class or two in each frame that shows the actor, and -1 behind the last."""
    first = torch.randint(0, classes, visible.shape, generator=generator)
    second = (first + torch.randint(1, max(classes, 2), visible.shape, generator=generator)) % classes
    has_two = (torch.rand(visible.shape, generator=generator) < 0.5) & (second != first)
    labels = torch.stack([first, torch.where(has_two, second, -1)], -1)
    return torch.where(visible[..., None], labels, -1)


# The same in loops


def labels_in(targets: TubeTargets, sample: int, actor: int, time: int) -> list[int]:
    """What an actor does in a frame."""
    if targets.labels.ndim == 2:
        return [int(targets.labels[sample, actor])]
    return [label for label in targets.labels[sample, actor, time].tolist() if label >= 0]


def overlaps(ones: Tensor, others: Tensor) -> Tensor:
    return generalized_box_iou(box_convert(ones, "cxcywh", "xyxy"), box_convert(others, "cxcywh", "xyxy"))


def frame_cost(
    logits: Tensor, boxes: Tensor, labels: list[list[int]], wanted: Tensor, config: TubeletLoss, multi_label: bool
) -> Tensor:
    """(S, m), equation 10: what each slot costs in a frame for each actor in it."""
    cls = torch.zeros(len(logits), len(labels), dtype=logits.dtype)
    for actor, of_actor in enumerate(labels):
        if multi_label:
            p = logits.sigmoid()[:, of_actor]
            terms = -ALPHA * (1 - p) ** GAMMA * p.log() + (1 - ALPHA) * p**GAMMA * (1 - p).log()
        else:
            terms = -logits.softmax(-1)[:, of_actor]
        cls[:, actor] = terms.sum(1)
    l1 = torch.cdist(boxes, wanted, p=1)
    return config.cls_weight * cls + config.l1_weight * l1 + config.giou_weight * (1 - overlaps(boxes, wanted))


def matched_by_loops(given: Problem, config: TubeletLoss, multi_label: bool) -> Tensor:
    """(L, B, M, T): the slot of each actor in each frame, by the cheapest assignment; -1 where he is not visible."""
    logits, boxes = (value.detach().double() for value in given.slots[:2])
    targets = given.targets
    layers, batch, slots, frames = logits.shape[:4]
    matched = torch.full((layers, batch, targets.labels.shape[1], frames), -1)

    for layer, sample in np.ndindex(layers, batch):
        parts = [range(frames)] if config.matching == "tubelet" else [range(time, time + 1) for time in range(frames)]
        for part in parts:
            # The costs of each actor in the frames in which he is seen.
            costs: dict[int, list[Tensor]] = {}
            for time in part:
                actors = targets.visible[sample, :, time].nonzero().flatten()
                said = logits[layer, sample, :, time], boxes[layer, sample, :, time]
                labels = [labels_in(targets, sample, actor, time) for actor in actors.tolist()]
                real = labels, targets.boxes[sample, actors, time].double()
                in_frame = frame_cost(*said, *real, config, multi_label)
                for column, actor in enumerate(actors.tolist()):
                    costs.setdefault(actor, []).append(in_frame[:, column])
            actors = list(costs)
            means = [torch.stack(of_actor).mean(0).numpy() for of_actor in costs.values()]
            pairs = linear_sum_assignment(np.array(means).reshape(len(actors), slots))
            for row, slot in zip(*pairs, strict=True):
                for time in part:
                    if targets.visible[sample, actors[row], time]:
                        matched[layer, sample, actors[row], time] = int(slot)
    return matched


def losses_by_loops(given: Problem, matched: Tensor, config: TubeletLoss, multi_label: bool) -> dict[str, Tensor]:
    """The losses in double precision, differentiable, layer by layer and frame by frame."""
    logits, boxes = (value.double() for value in given.slots[:2])
    targets = given.targets
    layers, batch, slots, frames, classes = logits.shape

    # What box losses and focal losses are divided by, and what an actor's box counts.
    number = int(targets.counts.sum())
    in_all = frames
    if config.matching == "frame":
        number = int(targets.visible.sum())
        in_all = 1
    number = max(number, 1)

    cls = l1 = giou = (logits * 0).sum() + (boxes * 0).sum()
    for layer in range(layers):
        said = []
        wanted: list[list[int]] = []
        for sample, time in np.ndindex(batch, frames):
            labels = [[] if multi_label else [classes - 1]] * slots
            for actor in range(int(targets.counts[sample])):
                slot = int(matched[layer, sample, actor, time])
                if slot < 0:
                    continue
                labels[slot] = labels_in(targets, sample, actor, time)
                box = boxes[layer, sample, slot, time]
                real = targets.boxes[sample, actor, time].double()
                share = 1 if config.matching == "frame" else int(targets.visible[sample, actor].sum())
                l1 = l1 + (box - real).abs().sum() / share / number
                giou = giou + (1 - overlaps(box[None], real[None])[0, 0]) / share / number
            if not targets.is_sparse or targets.annotated[sample, time]:
                said.append(logits[layer, sample, :, time])
                wanted += labels
        if not said:
            continue
        if multi_label:
            hits = torch.zeros(len(wanted), classes, dtype=torch.float64)
            for row, of_row in enumerate(wanted):
                hits[row, of_row] = 1
            focal = sigmoid_focal_loss(torch.cat(said), hits, ALPHA, GAMMA, reduction="sum")
            cls = cls + focal / number / in_all
        else:
            weight = torch.ones(classes, dtype=torch.float64)
            weight[-1] = config.no_object_weight
            cls = cls + F.cross_entropy(torch.cat(said), torch.tensor(wanted).flatten(), weight)
    total = config.cls_weight * cls + config.l1_weight * l1 + config.giou_weight * giou
    return {"total": total, "cls": cls, "l1": l1, "giou": giou}


def in_every_frame(matched: Tensor, targets: TubeTargets, config: TubeletLoss) -> Tensor:
    """What `match_slots` returns, as (L, B, M, T)."""
    if config.matching == "frame":
        return matched.unflatten(1, targets.visible.shape[::2]).transpose(2, 3)
    return torch.where(targets.visible, matched[..., None], -1)


@ALL_KINDS
@BOTH_MATCHINGS
@ALL_SHAPES
def test_slots_are_matched_as_scipy_matches_them(name: str, matching: str, multi_label: bool, several: bool) -> None:
    config = replace(CONFIG, matching=matching)
    given = problem(SHAPES[name], multi_label=multi_label, several=several)
    got = match_slots(*given, config, multi_label=multi_label)
    assert torch.equal(in_every_frame(got, given.targets, config), matched_by_loops(given, config, multi_label))


@ALL_KINDS
@BOTH_MATCHINGS
@ALL_SHAPES
def test_losses_and_gradients_are_those_of_loops(name: str, matching: str, multi_label: bool, several: bool) -> None:
    config = replace(CONFIG, matching=matching)
    given = problem(SHAPES[name], multi_label=multi_label, several=several)
    got = tubelet_losses(*given, config, multi_label=multi_label)
    assert tuple(got) == LOSSES == ("total", "cls", "l1", "giou", "denoising", "auxiliary")
    assert {loss.shape for loss in got.values()} == {()}
    assert got["denoising"] == 0

    wanted = losses_by_loops(given, matched_by_loops(given, config, multi_label), config, multi_label)
    for loss, value in wanted.items():
        assert got[loss].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), loss
    inputs = list(given.slots[:2])
    gradients = torch.autograd.grad(got["total"], inputs)
    for gradient, expected in zip(gradients, torch.autograd.grad(wanted["total"], inputs), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@BOTH_KINDS
@BOTH_MATCHINGS
def test_the_weights_have_their_terms(matching: str, multi_label: bool) -> None:
    """Each term is the same whatever its weight is, as long as the same slots are matched."""
    given = problem(SHAPES["one slot"], multi_label=multi_label)
    one, other = (
        tubelet_losses(*given, replace(CONFIG, matching=matching, l1_weight=weight), multi_label=multi_label)
        for weight in (4.0, 4.5)
    )
    for name in ("cls", "l1", "giou"):
        assert one[name] == other[name]
    torch.testing.assert_close(other["total"] - one["total"], 0.5 * one["l1"])


@BOTH_KINDS
@BOTH_MATCHINGS
def test_a_frame_of_which_nothing_is_known_changes_nothing(matching: str, multi_label: bool) -> None:
    config = replace(CONFIG, matching=matching)
    given = problem(SHAPES["key frames"], multi_label=multi_label)
    unknown = ~given.targets.annotated
    assert 5 < unknown.sum() < unknown.numel()

    losses = tubelet_losses(*given, config, multi_label=multi_label)
    for gradient in torch.autograd.grad(losses["total"], list(given.slots[:2])):
        of_frames = gradient.transpose(2, 3)
        assert not of_frames[:, unknown].any()
        assert of_frames[:, ~unknown].any()

    noise = problem(SHAPES["key frames"], multi_label=multi_label, seed=9).slots[:2]
    where = unknown[:, None, :, None]
    logits, boxes = (torch.where(where, new, old) for new, old in zip(noise, given.slots[:2], strict=True))
    other = Slots(logits, boxes)
    assert tubelet_losses(other, given.targets, config, multi_label=multi_label) == losses


@BOTH_KINDS
@BOTH_MATCHINGS
@pytest.mark.parametrize("name", ["usual", "more actors than slots"])
def test_to_say_that_all_frames_are_annotated_changes_nothing(name: str, matching: str, multi_label: bool) -> None:
    config = replace(CONFIG, matching=matching)
    given = problem(SHAPES[name], multi_label=multi_label)
    assert not given.targets.is_sparse
    said = given.targets._replace(annotated=torch.ones_like(given.targets.visible[:, 0]))
    plain = tubelet_losses(*given, config, multi_label=multi_label)
    sparse = tubelet_losses(given.slots, said, config, multi_label=multi_label)
    for loss, value in plain.items():
        torch.testing.assert_close(sparse[loss], value)


@BOTH_MATCHINGS
def test_a_slot_is_empty_where_its_actor_is_absent(matching: str) -> None:
    """One slot, sure of class 0 in four frames. Its actor is there in two of them, and in the last nothing is known."""
    logits = torch.tensor([9.0, 0.0]).expand(1, 1, 1, 4, 2)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 1, 1, 4, 4)
    visible = torch.tensor([[[True, False, True, False]]])
    annotated = torch.tensor([[True, True, True, False]])
    targets = TubeTargets(torch.zeros(1, 1).long(), boxes[0], torch.ones(1).int(), visible, annotated)
    losses = tubelet_losses(Slots(logits, boxes), targets, replace(CONFIG, matching=matching), multi_label=False)
    right = np.log1p(np.exp(-9.0))
    wrong = 9.0 + right
    assert losses["cls"].item() == pytest.approx((2 * right + 0.2 * wrong) / 2.2, rel=1e-5)
    assert losses["l1"].item() == pytest.approx(0, abs=1e-6)
    assert losses["giou"].item() == pytest.approx(0, abs=1e-5)


def test_an_actor_who_is_seen_for_long_counts_no_more_than_one_who_is_not() -> None:
    """Where slots follow actors, boxes count by actors: one is off by 0.1 in all frames, the other by 0.4 in one."""
    visible = torch.tensor([[[True] * 4, [False, True, False, False]]])
    truth = torch.full((1, 2, 4, 4), 0.5)
    targets = TubeTargets(torch.zeros(1, 2).long(), truth, torch.tensor([2]).int(), visible, visible[:, 0, :0])
    boxes = truth.clone()[None]
    boxes[0, 0, 0, :, 0] += 0.1
    boxes[0, 0, 1, :, 0] += 0.4
    slots = Slots(torch.zeros(1, 1, 2, 4, 3), boxes)
    losses = tubelet_losses(slots, targets, CONFIG, multi_label=False)
    assert losses["l1"].item() == pytest.approx((0.1 + 0.4) / 2)
    losses = tubelet_losses(slots, targets, replace(CONFIG, matching="frame"), multi_label=False)
    assert losses["l1"].item() == pytest.approx((4 * 0.1 + 0.4) / 5)


def test_two_matchings_differ_where_slots_change_their_actors() -> None:
    """Two actors stand still, and two slots change places in the middle of the clip."""
    left, right = torch.tensor([0.2, 0.5, 0.2, 0.2]), torch.tensor([0.8, 0.5, 0.2, 0.2])
    boxes = torch.stack([torch.stack([left] * 5 + [right] * 3), torch.stack([right] * 5 + [left] * 3)])[None, None]
    visible = torch.ones(1, 2, 8, dtype=torch.bool)
    truth = torch.stack([left, right])[:, None].expand(2, 8, 4)[None]
    targets = TubeTargets(torch.zeros(1, 2).long(), truth, torch.tensor([2]).int(), visible, visible[:, 0, :0])
    slots = Slots(torch.zeros(1, 1, 2, 8, 3), boxes)
    assert match_slots(slots, targets, CONFIG, multi_label=False).tolist() == [[[0, 1]]]
    each = match_slots(slots, targets, replace(CONFIG, matching="frame"), multi_label=False)
    assert each[0].tolist() == [[0, 1]] * 5 + [[1, 0]] * 3


def test_who_is_not_seen_in_a_frame_takes_no_slot_from_who_is() -> None:
    """There are more actors than slots, but in each frame one to be seen, far from all slots."""
    visible = torch.eye(3, 4, dtype=torch.bool)[None]
    boxes = torch.tensor([0.9, 0.9, 0.1, 0.1]).expand(1, 3, 4, 4)
    targets = TubeTargets(torch.zeros(1, 3).long(), boxes, torch.tensor([3]).int(), visible, visible[:, 0, :0])
    slots = Slots(torch.zeros(1, 1, 2, 4, 3), torch.tensor([0.1, 0.1, 0.1, 0.1]).expand(1, 1, 2, 4, 4))
    matched = match_slots(slots, targets, replace(CONFIG, matching="frame"), multi_label=False)
    assert torch.equal(matched[0] >= 0, visible[0].T)


@BOTH_KINDS
@BOTH_MATCHINGS
def test_without_any_actor_all_slots_learn_to_be_empty(matching: str, multi_label: bool) -> None:
    config = replace(CONFIG, matching=matching)
    given = problem(SHAPES["no actors"], multi_label=multi_label)
    losses = tubelet_losses(*given, config, multi_label=multi_label)
    assert losses["l1"] == losses["giou"] == 0
    gradients = torch.autograd.grad(losses["total"], list(given.slots[:2]))
    assert not gradients[1].any()
    if multi_label:
        assert (gradients[0] > 0).all()
        assert 0 < losses["total"] < 100
    else:
        # They all weigh the same, however little.
        light = tubelet_losses(*given, replace(config, no_object_weight=1e-3), multi_label=False)
        torch.testing.assert_close(light["cls"], losses["cls"])
        assert (gradients[0][..., -1] < 0).all()
        assert (gradients[0][..., :-1] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_have_at_least_single_precision(dtype: torch.dtype) -> None:
    given = problem(SHAPES["usual"])
    logits, boxes = (value.detach().to(dtype) for value in given.slots[:2])
    slots = Slots(logits, boxes)
    losses = tubelet_losses(slots, given.targets, CONFIG, multi_label=False)
    assert {loss.dtype for loss in losses.values()} == {dtype}


# Noisy copies of the actors


def with_copies(given: Problem, groups: int, seed: int = 5) -> Problem:
    """As many groups of copies of each actor, near ones and far ones; the near ones should be the actors."""
    generator = torch.Generator().manual_seed(seed)
    layers, batch, _, frames, classes = given.slots.logits.shape
    rows = given.targets.labels.shape[1]
    places = (layers, batch, groups * 2 * rows, frames)
    logits = torch.randn(*places, classes, generator=generator).requires_grad_()
    boxes = random_boxes(*places, generator=generator).requires_grad_()
    matched = torch.where(given.targets.valid, torch.arange(rows), -1)
    return given._replace(slots=given.slots._replace(noisy=(logits, boxes, matched)))


@BOTH_KINDS
@BOTH_MATCHINGS
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", ["usual", "key frames", "no actors"])
def test_the_loss_of_copies_is_the_mean_over_their_groups(
    name: str, groups: int, matching: str, multi_label: bool
) -> None:
    """Each group is as slots that are matched with the actors already, for whole clips."""
    config = replace(CONFIG, matching=matching)
    given = with_copies(problem(SHAPES[name], multi_label=multi_label), groups)
    plain = tubelet_losses(given.slots._replace(noisy=()), given.targets, config, multi_label=multi_label)
    got = tubelet_losses(*given, config, multi_label=multi_label)
    for loss in ("cls", "l1", "giou"):
        assert got[loss] == plain[loss]
    torch.testing.assert_close(got["total"], plain["total"] + got["denoising"])

    logits, boxes, owners = given.slots.noisy
    copies = 2 * owners.shape[1]
    wanted = torch.zeros((), dtype=torch.float64)
    for group in range(groups):
        own = slice(group * copies, group * copies + copies)
        of_group = Problem(Slots(logits[:, :, own], boxes[:, :, own]), given.targets)
        matched = torch.where(given.targets.visible, owners[..., None], -1).expand(len(logits), -1, -1, -1)
        whole = replace(config, matching="tubelet")
        wanted = wanted + losses_by_loops(of_group, matched, whole, multi_label)["total"] / groups
    assert got["denoising"].item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
    gradients = torch.autograd.grad(got["total"], (logits, boxes))
    for gradient, expected in zip(gradients, torch.autograd.grad(wanted, (logits, boxes)), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


# Several processes


@BOTH_KINDS
@BOTH_MATCHINGS
@pytest.mark.parametrize("copies", [0, 2])
@pytest.mark.parametrize("name", ["usual", "key frames", "no actors", "more actors than slots", "more of both"])
def test_the_mean_over_the_processes_is_the_loss_of_the_whole_batch(
    name: str, copies: int, matching: str, multi_label: bool
) -> None:
    """Of losses and gradients, whatever the shares hold."""
    config = replace(CONFIG, matching=matching)
    given = problem(SHAPES[name], multi_label=multi_label)
    if copies:
        given = with_copies(given, copies)
    slots, targets = given
    whole = tubelet_losses(slots, targets, config, multi_label=multi_label)
    inputs = [*slots[:2], *slots.noisy[:2]]
    wanted = torch.autograd.grad(whole["total"], inputs)

    def of_share(rank: int, noted: list[list[Tensor]], first: int) -> dict[str, Tensor]:
        clips = slice(rank, None, 2)
        own = Slots(slots.logits[:, clips], slots.boxes[:, clips])
        if slots.noisy:
            logits, boxes, matched = slots.noisy
            own = own._replace(noisy=(logits[:, clips], boxes[:, clips], matched[clips]))
        return tubelet_losses(
            own,
            TubeTargets(*(value[clips] for value in targets)),
            config,
            multi_label=multi_label,
            processes=Meeting(rank, 2, noted, [first]),
        )

    noted: list[list[Tensor]] = [[], []]
    for rank in (0, 1):
        of_share(rank, noted, -1)
    shares = [of_share(rank, noted, 0) for rank in (0, 1)]
    for loss, value in whole.items():
        torch.testing.assert_close((shares[0][loss] + shares[1][loss]) / 2, value, rtol=1e-5, atol=1e-6)
    mean = (shares[0]["total"] + shares[1]["total"]) / 2
    for gradient, expected in zip(torch.autograd.grad(mean, inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)

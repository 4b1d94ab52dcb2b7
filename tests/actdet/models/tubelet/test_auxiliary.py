"""The auxiliary loss of pixels against loops in double precision, SciPy's assignment and PyTorch's own operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from actdet.data.truth import TubeTargets
from actdet.distributed import ALONE
from actdet.models.backbones.r2plus1d import STAGE_FEATURES
from actdet.models.tubelet.auxiliary import PixelHead, pixel_loss
from actdet.models.tubelet.config import TubeletConfig, TubeletLoss
from actdet.models.tubelet.frames import seen_in_frames
from actdet.models.tubelet.losses import tubelet_losses
from tests.actdet.models.detr.test_losses import Meeting
from tests.actdet.models.tubelet.test_losses import (
    ALPHA,
    CONFIG,
    GAMMA,
    SHAPES,
    frame_cost,
    labels_in,
    overlaps,
    problem,
    random_boxes,
)

# So many pixels stand for an actor.
COPIES = 4

TRUTHS = pytest.mark.parametrize("name", ["usual", "key frames", "no actors", "no actors in key frames"])


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
@pytest.mark.parametrize("name", SHAPES)
def test_actors_of_a_frame_are_those_who_are_seen_in_it(name: str, several: bool) -> None:
    """In their order; the others lie behind the count."""
    targets = problem(SHAPES[name], several=several).targets
    found = seen_in_frames(targets)
    batch, rows, frames = targets.visible.shape
    assert found.targets.labels.shape == (batch * frames, rows, *([2] if several else []))
    for sample, time in np.ndindex(batch, frames):
        place = sample * frames + time
        seen = targets.visible[sample, :, time].nonzero().flatten().tolist()
        assert found.targets.counts[place] == len(seen)
        assert sorted(found.order[place].tolist()) == list(range(rows))
        assert found.order[place, : len(seen)].tolist() == seen
        labels = targets.labels[sample, seen, time] if several else targets.labels[sample, seen]
        assert torch.equal(found.targets.labels[place, : len(seen)], labels)
        assert torch.equal(found.targets.boxes[place, : len(seen)], targets.boxes[sample, seen, time])


# The layer


@pytest.mark.parametrize(
    ("frames", "sizes"),
    [([8, 4, 2], [(5, 7), (3, 4), (2, 2)]), ([8, 8, 8], [(4, 4), (2, 2), (1, 1)]), ([1], [(3, 5)])],
    ids=["three stages", "all frames", "one stage"],
)
@torch.no_grad()
def test_pixels_answer_for_the_finest_stage(frames: list[int], sizes: list[tuple[int, int]]) -> None:
    config = TubeletConfig(("a", "b", "c"), image_size=32, frames=8)
    torch.manual_seed(0)
    head = PixelHead(config, STAGE_FEATURES[-len(sizes) :])
    shapes = zip(STAGE_FEATURES[-len(sizes) :], frames, sizes, strict=True)
    generator = torch.Generator().manual_seed(1)
    stages = [torch.randn(2, depth, count, *size, generator=generator) for depth, count, size in shapes]
    got = head(stages)
    height, width = sizes[0]
    assert got.shape == (2, 8, height * width, 3 + 4)
    assert torch.equal(
        head([stage.bfloat16() for stage in stages]), head([stage.bfloat16().float() for stage in stages])
    )

    head = head.double()
    projected = [project(stage.double()) for project, stage in zip(head.projections, stages, strict=True)]
    total = projected[0]
    for coarse in projected[1:]:
        in_time = F.interpolate(coarse, (frames[0], *coarse.shape[3:]), mode="trilinear")
        total = total + F.interpolate(in_time, total.shape[2:], mode="nearest")
    total = F.interpolate(total, (8, height, width), mode="trilinear")
    for row, column in np.ndindex(height, width):
        answer = head.answer(total[..., row, column].transpose(1, 2).relu())
        logits, offset, sides = answer.split((3, 2, 2), -1)
        place = torch.tensor([(column + 0.5) / width, (row + 0.5) / height], dtype=torch.float64)
        wanted = torch.cat([logits, place + 0.25 * offset.tanh(), sides.sigmoid()], -1)
        torch.testing.assert_close(got[:, :, row * width + column].double(), wanted, rtol=1e-4, atol=1e-5)


# The loss


def answers(targets: TubeTargets, pixels: int, classes: int, seed: int = 3) -> Tensor:
    """(B, T, P, A + 4), with a gradient."""
    batch, _, frames = targets.visible.shape
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, frames, pixels, classes, generator=generator)
    return torch.cat([logits, random_boxes(batch, frames, pixels, generator=generator)], -1).requires_grad_()


def loss_by_loops(answer: Tensor, targets: TubeTargets, config: TubeletLoss) -> Tensor:
    """Frame by frame; each actor is there four times, with all that he does."""
    answer = answer.double()
    batch, frames, _, width = answer.shape
    classes = width - 4
    number = max(COPIES * int(targets.visible.sum()), 1)
    total = (answer * 0).sum()
    for sample, time in np.ndindex(batch, frames):
        if targets.is_sparse and not targets.annotated[sample, time]:
            continue
        logits, boxes = answer[sample, time].split((classes, 4), -1)
        actors = targets.visible[sample, :, time].nonzero().flatten()
        labels = [labels_in(targets, sample, actor, time) for actor in actors.tolist()]
        real = labels, targets.boxes[sample, actors, time].double()
        cost = frame_cost(logits.detach(), boxes.detach(), *real, config, True).repeat_interleave(COPIES, 1)
        one_hot = torch.zeros_like(logits)
        for pixel, copy in zip(*linear_sum_assignment(cost.numpy()), strict=True):
            actor = int(copy) // COPIES
            one_hot[pixel, real[0][actor]] = 1
            box = boxes[pixel]
            l1 = (box - real[1][actor]).abs().sum()
            giou = 1 - overlaps(box[None], real[1][actor][None])[0, 0]
            total = total + (config.l1_weight * l1 + config.giou_weight * giou) / number
        focal = sigmoid_focal_loss(logits, one_hot, ALPHA, GAMMA, reduction="sum")
        total = total + config.cls_weight * focal / number
    return total


@TRUTHS
@pytest.mark.parametrize(("pixels", "several"), [(30, False), (30, True), (5, False), (1, False)])
def test_each_actor_has_four_pixels_in_a_frame(name: str, pixels: int, several: bool) -> None:
    """Or fewer, if there are too few."""
    targets = problem(SHAPES[name], several=several).targets
    answer = answers(targets, pixels, SHAPES[name].classes)
    got = pixel_loss(answer, targets, CONFIG, ALONE)
    wanted = loss_by_loops(answer, targets, CONFIG)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(got, answer)
    (expected,) = torch.autograd.grad(wanted, answer)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@TRUTHS
def test_the_mean_over_the_processes_is_the_loss_of_the_whole_batch(name: str) -> None:
    targets = problem(SHAPES[name]).targets
    answer = answers(targets, 12, SHAPES[name].classes)
    whole = pixel_loss(answer, targets, CONFIG, ALONE)
    (wanted,) = torch.autograd.grad(whole, answer)

    def of_share(rank: int, noted: list[list[Tensor]], first: int) -> Tensor:
        clips = slice(rank, None, 2)
        own = TubeTargets(*(field[clips] for field in targets))
        return pixel_loss(answer[clips], own, CONFIG, Meeting(rank, 2, noted, [first]))

    noted: list[list[Tensor]] = [[], []]
    for rank in (0, 1):
        of_share(rank, noted, -1)
    mean = (of_share(0, noted, 0) + of_share(1, noted, 0)) / 2
    torch.testing.assert_close(mean, whole, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(mean, answer)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_it_is_added_with_its_weight(weight: float, multi_label: bool) -> None:
    given = problem(SHAPES["usual"], multi_label=multi_label)
    answer = answers(given.targets, 12, 3)
    config = replace(CONFIG, matching="frame")
    plain = tubelet_losses(*given, config, multi_label=multi_label)
    options = {"multi_label": multi_label, "pixels": answer, "auxiliary_weight": weight}
    losses = tubelet_losses(*given, config, **options)  # type: ignore[arg-type]
    if weight:
        torch.testing.assert_close(losses["auxiliary"], pixel_loss(answer, given.targets, config, ALONE))
    else:
        assert losses["auxiliary"] == 0
    torch.testing.assert_close(losses["total"], plain["total"] + weight * losses["auxiliary"])
    for name in ("cls", "l1", "giou"):
        assert losses[name] == plain[name]

"""Denoising queries keep DINO's bounds and mask, and groups are matched and measured one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from actdet_kernels import (
    DenoisingQueries,
    Targets,
    Tubelets,
    denoising_queries,
    match,
    pairwise_cost,
    repeat_targets,
    set_loss,
    split_groups,
)
from scipy.optimize import linear_sum_assignment
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import box_convert

CLASSES = 7


def targets_of(counts: list[int], size: int) -> Targets:
    """Boxes that stay within the picture when their corners move by twice half a side. NaN past the count."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (len(counts), size), generator=generator)
    boxes = torch.rand(len(counts), size, 4, generator=generator) * 0.2 + torch.tensor([0.4, 0.4, 0.05, 0.05])
    past = torch.arange(size) >= torch.tensor(counts)[:, None]
    boxes[past] = float("nan")
    labels[past] = -77
    return Targets(labels, boxes, torch.tensor(counts, dtype=torch.int32))


def noisy(targets: Targets | Tubelets, **options: float) -> DenoisingQueries:
    generator = torch.Generator().manual_seed(0)
    settings: Any = {"classes": CLASSES, "queries": 5, "groups": 3, **options}
    return denoising_queries(targets, generator=generator, **settings)


@pytest.mark.parametrize(("counts", "size"), [([3, 0, 1], 3), ([2, 2], 5), ([0], 1), ([40], 40), ([], 4)])
@pytest.mark.parametrize("groups", [1, 4])
def test_shapes_and_what_lies_past_the_count(counts: list[int], size: int, groups: int) -> None:
    got = noisy(targets_of(counts, size), groups=groups)
    batch = len(counts)
    told = groups * 2 * size
    assert got.labels.shape == (batch, told)
    assert got.labels.dtype == torch.int64
    assert got.boxes.shape == (batch, told, 4)
    assert got.mask.shape == (told + 5, told + 5)
    for sample, count in enumerate(counts):
        row = torch.arange(told) % size
        assert (got.labels[sample, row >= count] == CLASSES).all()
        assert (got.boxes[sample, row >= count] == 0).all()
        assert got.labels[sample, row < count].lt(CLASSES).all()
        assert got.matched[sample].tolist() == [j if j < count else -1 for j in range(size)]


@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_corners_move_as_far_as_said(scale: float) -> None:
    """Up to `scale` halves of a side for the first M, from there to twice as far for the others; both ways, and all."""
    targets = targets_of([30] * 8, 30)
    got = noisy(targets, box_noise=scale)
    told = got.boxes.view(8, 3, 2, 30, 4)
    wanted = box_convert(targets.boxes, "cxcywh", "xyxy")[:, None, None]
    half = targets.boxes[:, None, None, :, 2:].repeat(1, 1, 1, 1, 2) / 2
    share = (box_convert(told, "cxcywh", "xyxy") - wanted) / (half * scale)

    near = share[:, :, 0].flatten()
    assert near.abs().max().item() <= 1 + 1e-4
    assert near.min() < -0.98
    assert near.max() > 0.98
    assert near.mean().abs().item() < 0.05

    # With a scale above a half, corners may pass the ones opposite, and have then changed places.
    far = share[:, :, 1].flatten()
    if scale <= 0.5:
        assert far.abs().min().item() >= 1 - 1e-4
        assert (far < 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (told[..., 2:] >= 0).all()
    assert (told >= 0).all()
    assert (told <= 1).all()


def test_boxes_stay_within_the_picture() -> None:
    boxes = torch.tensor([[[0.05, 0.95, 0.1, 0.1]]]).repeat(4, 50, 1)
    targets = Targets(torch.zeros(4, 50, dtype=torch.int64), boxes, torch.full((4,), 50))
    corners = box_convert(noisy(targets, box_noise=3.0).boxes, "cxcywh", "xyxy")
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6


def test_without_noise_the_targets_are_told() -> None:
    targets = targets_of([3, 2], 3)
    got = noisy(targets, label_noise=0.0, box_noise=0.0)
    for row in range(3 * 2 * 3):
        for sample, count in enumerate([3, 2]):
            if row % 3 < count:
                assert got.labels[sample, row] == targets.labels[sample, row % 3]
                assert torch.allclose(got.boxes[sample, row], targets.boxes[sample, row % 3], atol=1e-6)


@pytest.mark.parametrize(("noise", "share"), [(0.5, 0.25), (1.0, 0.5), (2.0, 1.0)])
def test_so_many_labels_are_drawn_anew(noise: float, share: float) -> None:
    targets = targets_of([50] * 20, 50)
    got = noisy(targets, label_noise=noise).labels.view(20, 6, 50)
    changed = (got != targets.labels[:, None]).float().mean().item()
    # One of the classes that may be drawn is the right one.
    assert changed == pytest.approx(share * (CLASSES - 1) / CLASSES, abs=0.03)


def test_the_mask_and_the_positive_queries_are_those_of_rt_detr() -> None:
    modeling = pytest.importorskip("transformers.models.rt_detr.modeling_rt_detr")
    counts = [3, 1, 2]
    size = 3
    targets = targets_of(counts, size)
    samples = [
        {"class_labels": targets.labels[i, :count], "boxes": targets.boxes[i, :count]} for i, count in enumerate(counts)
    ]
    labels, _, mask, meta = modeling.get_contrastive_denoising_training_group(
        samples, CLASSES, 5, torch.nn.Embedding(CLASSES + 1, 2), num_denoising_queries=4 * size, label_noise_ratio=0.0
    )
    got = noisy(targets, groups=meta["dn_num_group"])
    assert labels.shape[:2] == got.labels.shape
    assert torch.equal(got.mask, mask == -torch.inf)
    for sample, positive in enumerate(meta["dn_positive_idx"]):
        ours = [group * 2 * size + q for group in range(4) for q in got.matched[sample].tolist() if q >= 0]
        assert ours == positive.tolist()


def test_a_tubelet_is_moved_as_a_whole() -> None:
    still = targets_of([4, 2], 4)
    boxes = still.boxes[:, :, None].repeat(1, 1, 6, 1)
    visible = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    got = noisy(Tubelets(still.labels, boxes, still.counts, visible))
    assert got.boxes.shape == (2, 24, 6, 4)
    flat = noisy(still)
    seen = visible.repeat(1, 6, 1) & (got.labels < CLASSES)[..., None]
    assert torch.equal(got.boxes[seen], flat.boxes[:, :, None].expand(-1, -1, 6, -1)[seen])
    assert (got.boxes[~seen] == 0).all()


def test_it_reads_nothing_back() -> None:
    """Fake tensors have no values: whatever asked for one would raise."""
    targets = targets_of([3, 1], 3)
    with FakeTensorMode() as mode:
        fake = Targets(*(mode.from_tensor(field) for field in targets))
        got = denoising_queries(fake, classes=CLASSES, queries=5)
        assert repeat_targets(fake, 3).boxes.shape == (2, 9, 4)
    assert got.boxes.shape == (2, 30, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("classes", 0), ("queries", -1), ("groups", 0), ("box_noise", -0.1), ("box_noise", float("nan")),
     ("label_noise", 2.1), ("label_noise", float("nan"))],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        noisy(targets_of([1], 1), **{name: value})


def test_the_loss_of_denoising_needs_no_matching() -> None:
    """Against a loop over samples and groups with PyTorch's own cross-entropy and L1."""
    groups = 4
    size = 3
    counts = [3, 0, 2]
    layers = 2
    targets = targets_of(counts, size)
    got = noisy(targets, groups=groups)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(layers, 3, groups * 2 * size, CLASSES + 1, generator=generator, dtype=torch.float64)
    boxes = torch.rand(layers, 3, groups * 2 * size, 4, generator=generator, dtype=torch.float64)
    apart = split_groups(logits, boxes, groups)
    loss = set_loss(*apart, targets, got.matched.expand(layers, groups, -1, -1), no_object_weight=0.1)

    weight = torch.tensor([1.0] * CLASSES + [0.1], dtype=torch.float64)
    cls = l1 = 0.0
    for layer in range(layers):
        for group in range(groups):
            rows = slice(group * 2 * size, (group + 1) * 2 * size)
            wanted = torch.full((3, 2 * size), CLASSES)
            for sample, count in enumerate(counts):
                wanted[sample, :count] = targets.labels[sample, :count]
                told = boxes[layer, sample, rows][:count]
                l1 += (told - targets.boxes[sample, :count]).abs().sum().item() / sum(counts)
            cls += F.cross_entropy(logits[layer, :, rows].flatten(0, 1), wanted.flatten(), weight).item()
    assert loss.cls.item() == pytest.approx(cls, rel=1e-9)
    assert loss.l1.item() == pytest.approx(l1, rel=1e-6)


@pytest.mark.parametrize("frames", [(), (3,)])
def test_each_group_is_matched_with_all_targets(frames: tuple[int, ...]) -> None:
    groups = 3
    queries = 12
    counts = [4, 1]
    size = 4
    generator = torch.Generator().manual_seed(5)
    targets: Targets | Tubelets = targets_of(counts, size)
    if frames:
        boxes = targets.boxes[:, :, None].repeat(1, 1, 3, 1)
        targets = Tubelets(targets.labels, boxes, targets.counts, torch.ones(2, size, 3, dtype=torch.bool))
    logits = torch.randn(2, 2, groups * queries, CLASSES + 1, generator=generator)
    boxes = torch.rand(2, 2, groups * queries, *frames, 4, generator=generator)
    matched = match(*split_groups(logits, boxes, groups), targets)
    assert matched.shape == (2, groups, 2, size)
    for group in range(groups):
        rows = slice(group * queries, (group + 1) * queries)
        assert torch.equal(matched[:, group], match(logits[:, :, rows], boxes[:, :, rows], targets))


@pytest.mark.parametrize(("shape", "groups"), [((2, 12, 3), 5), ((2, 12, 3), 0), ((2, 12, 3), -1)])
def test_queries_that_make_no_groups_are_refused(shape: tuple[int, ...], groups: int) -> None:
    with pytest.raises(ValueError, match=f"12 queries do not make {groups} groups"):
        split_groups(torch.zeros(shape), torch.zeros(2, 12, 4), groups)
    with pytest.raises(ValueError, match="must agree"):
        split_groups(torch.zeros(shape), torch.zeros(2, 11, 4), 1)


@pytest.mark.parametrize("times", [1, 2, 6])
def test_each_target_gets_so_many_queries(times: int) -> None:
    """Against SciPy on each sample's repeated columns."""
    counts = [3, 0, 1]
    size = 3
    queries = 20
    targets = targets_of(counts, size)
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(3, queries, CLASSES + 1, generator=generator)
    boxes = torch.rand(3, queries, 4, generator=generator)

    matched = match(logits, boxes, repeat_targets(targets, times)).unflatten(-1, (size, times))
    cost = pairwise_cost(logits, boxes, targets).double().numpy()
    for sample, count in enumerate(counts):
        assert (matched[sample, count:] == -1).all()
        chosen = matched[sample, :count].numpy()
        assert len(set(chosen.flatten().tolist())) == count * times
        columns = np.repeat(cost[sample, :, :count], times, axis=1)
        best = columns[linear_sum_assignment(columns)].sum()
        total = sum(cost[sample, query, target] for target in range(count) for query in chosen[target])
        assert total == pytest.approx(best, rel=1e-6)


def test_counts_out_of_range_are_cut_before_they_are_multiplied() -> None:
    targets = targets_of([2, 2], 2)._replace(counts=torch.tensor([-3, 2**30], dtype=torch.int32))
    assert repeat_targets(targets, 4).counts.tolist() == [0, 8]
    with pytest.raises(ValueError, match="times must be at least 1, got 0"):
        repeat_targets(targets, 0)

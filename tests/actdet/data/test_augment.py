"""Augmentation changes the pictures and their annotations together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from actdet_kernels import Targets, frame_levels
from PIL import Image
from torch import Tensor

from actdet.data.augment import (
    MIN_VISIBLE,
    AugmentParams,
    Batch,
    augment,
    draw_params,
    halve_pixels,
    normalize,
)
from actdet.data.config import NO_AUGMENTATION, AugmentConfig
from actdet.data.truth import AnyTargets, TubeTargets

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
STILL = NO_AUGMENTATION


def augmented(clips: Tensor, targets: AnyTargets, config: AugmentConfig, rng: np.random.Generator) -> Batch:
    return changed(clips, targets, draw_params(len(clips), config, rng))


def changed(clips: Tensor, targets: AnyTargets, params: AugmentParams) -> Batch:
    """Call `augment` with whole clips (B, T, H, W, 3), whose frames are shuffled in the pool."""
    batch, count = clips.shape[:2]
    rows = torch.from_numpy(np.random.default_rng(0).permutation(batch * count)).view(batch, count)
    pool = torch.empty_like(clips.flatten(0, 1))
    pool[rows] = clips
    return augment(pool, rows, targets, params, frame_means=frame_levels(pool))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))


def some_targets(counts: list[int], size: int = 3, seed: int = 0) -> Targets:
    """Boxes well inside the picture; the rows past the count hold values that must never be used."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [rng.uniform(0.4, 0.6, (len(counts), size, 2)), rng.uniform(0.2, 0.4, (len(counts), size, 2))], 2
    )
    labels = rng.integers(0, 5, (len(counts), size))
    for sample, count in enumerate(counts):
        labels[sample, count:] = -1
        # The rows in between keep a box that looks real.
        boxes[sample, max(count, size - 1) :] = math.nan
    return Targets(
        torch.from_numpy(labels), torch.from_numpy(boxes.astype(np.float32)), torch.tensor(counts, dtype=torch.int32)
    )


def pixels_of(batch: Batch) -> np.ndarray:
    """Undo the normalization of a batch: pictures (B, T, H, W, 3) in [0, 1]."""
    return batch.clips.permute(0, 2, 3, 4, 1).double().numpy() * STD + MEAN


def same(one: AnyTargets, other: AnyTargets) -> bool:
    return torch.equal(one.counts, other.counts) and all(
        torch.equal(getattr(one, name)[one.valid], getattr(other, name)[other.valid]) for name in ("labels", "boxes")
    )


# Normalization


@pytest.mark.parametrize("shape", [(2, 4, 6, 10), (1, 1, 1, 1), (3, 8, 7, 5)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_normalise_gives_imagenets_values(shape: tuple[int, ...], dtype: torch.dtype, error: float) -> None:
    clips = noise(*shape)
    before = clips.clone()
    got = normalize(clips, dtype)
    batch, frames, height, width = shape
    assert got.shape == (batch, 3, frames, height, width)
    assert got.dtype == dtype
    wanted = np.moveaxis((clips.numpy() / 255 - MEAN) / STD, -1, 1)
    np.testing.assert_allclose(got.double().numpy(), wanted, rtol=error, atol=error)
    assert torch.equal(clips, before)


def test_normalized_clips_are_channels_last_without_a_copy() -> None:
    got = normalize(noise(2, 4, 6, 10))
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    assert got.permute(0, 2, 3, 4, 1).is_contiguous()
    assert got.contiguous(memory_format=torch.channels_last_3d).data_ptr() == got.data_ptr()
    assert not got.is_contiguous()


def test_without_augmentation_the_batch_is_the_normalized_clips() -> None:
    clips = noise(3, 2, 8, 12)
    targets = some_targets([2, 0, 3])
    got = augmented(clips, targets, STILL, np.random.default_rng(0))
    torch.testing.assert_close(got.clips, normalize(clips), rtol=0, atol=1e-6)
    assert same(got.targets, targets)


FULL = AugmentConfig(flip=0.5, crop=0.4, color=0.3, mixup=0.8)


@pytest.mark.parametrize("config", [STILL, AugmentConfig(), FULL])
def test_a_batch_keeps_its_shape_and_layout(config: AugmentConfig) -> None:
    got = augmented(noise(3, 4, 10, 16), some_targets([2, 0, 3]), config, np.random.default_rng(0))
    assert got.clips.shape == (3, 3, 4, 10, 16)
    assert got.clips.dtype == torch.float32
    assert got.clips.is_contiguous(memory_format=torch.channels_last_3d)
    assert got.targets.labels.dtype == torch.int64
    assert got.targets.boxes.dtype == torch.float32
    assert got.targets.counts.dtype == torch.int32
    assert got.clips.isfinite().all()
    assert got.targets.boxes[got.targets.valid].isfinite().all()


@pytest.mark.parametrize("config", [AugmentConfig(), FULL, AugmentConfig(flip=0.5, crop=0, color=0)])
def test_the_same_state_gives_the_same_batch(config: AugmentConfig) -> None:
    clips = noise(4, 2, 8, 12)
    targets = some_targets([2, 0, 3, 1])
    before = clips.clone(), *(field.clone() for field in targets)
    one, two, other = (augmented(clips, targets, config, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.clips, two.clips)
    assert same(one.targets, two.targets)
    assert not torch.equal(one.clips, other.clips)
    for now, then in zip((clips, *targets), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)


# Geometry: each clip shows three bright rectangles, one in each color channel, annotated as classes 0, 1 and 2

HEIGHT = 48
WIDTH = 80
FRAMES = 3


def rectangles(places: np.ndarray) -> tuple[Tensor, Targets]:
    """Draw rectangles at `places` (B, 3, 4): integer x1, y1, x2, y2 in pixels."""
    clips = np.zeros((len(places), FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for sample, channels in enumerate(places):
        for channel, (x1, y1, x2, y2) in enumerate(channels):
            clips[sample, :, y1:y2, x1:x2, channel] = 255
    low = places[..., :2] / (WIDTH, HEIGHT)
    high = places[..., 2:] / (WIDTH, HEIGHT)
    boxes = np.concatenate([(low + high) / 2, high - low], -1).astype(np.float32)
    counts = torch.full((len(places),), 3, dtype=torch.int32)
    return torch.from_numpy(clips), Targets(torch.arange(3).repeat(len(places), 1), torch.from_numpy(boxes), counts)


def find(picture: np.ndarray) -> np.ndarray | None:
    """Find the box (cx, cy, w, h) of the bright rectangle in (H, W) by its light along each axis; None if dark."""
    if picture.max() < 0.5:
        return None
    box = []
    for axis in (0, 1):
        profile = picture.max(axis=axis)
        lit = np.flatnonzero(profile > 0.5)
        first = lit[0]
        last = lit[-1] + 1
        # The light of the pixels at both edges tells how far the rectangle reaches into them.
        before = profile[first - 1] if first > 0 else 0.0
        after = profile[last] if last < len(profile) else 0.0
        low = first - before + (1 - profile[first])
        high = last + after - (1 - profile[last - 1])
        box.append(((low + high) / 2 / len(profile), (high - low) / len(profile)))
    return np.array([box[0][0], box[1][0], box[0][1], box[1][1]])


def random_places(batch: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = np.stack([rng.integers(0, WIDTH - 16, (batch, 3)), rng.integers(0, HEIGHT - 12, (batch, 3))], -1)
    size = np.stack([rng.integers(10, 30, (batch, 3)), rng.integers(8, 20, (batch, 3))], -1)
    return np.concatenate([low, np.minimum(low + size, (WIDTH, HEIGHT))], -1)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(flip=1.0, crop=0.0, color=0.0),
        AugmentConfig(flip=0.0, crop=0.4, color=0.0),
        AugmentConfig(flip=0.5, crop=0.4, color=0.0),
        AugmentConfig(flip=0.5, crop=0.8, color=0.0),
    ],
)
def test_boxes_move_with_the_pixels(config: AugmentConfig) -> None:
    clips, targets = rectangles(random_places(24, seed=1))
    got = augmented(clips, targets, config, np.random.default_rng(2))
    pictures = pixels_of(got)

    # All frames of a clip are changed alike.
    assert np.abs(pictures - pictures[:, :1]).max() < 1e-6

    compared = 0
    for sample, count in enumerate(got.targets.counts.tolist()):
        labels = got.targets.labels[sample, :count].tolist()
        # They keep their order, and none comes twice.
        assert labels == sorted(set(labels))
        for channel in range(3):
            seen = find(pictures[sample, 0, :, :, channel])
            if channel in labels:
                box = got.targets.boxes[sample, labels.index(channel)].double().numpy()
                low = box[:2] - box[2:] / 2
                high = box[:2] + box[2:] / 2
                assert (low >= -1e-6).all()
                assert (high <= 1 + 1e-6).all()
                if seen is not None:
                    error = np.abs(box - seen) * (WIDTH, HEIGHT, WIDTH, HEIGHT)
                    assert error.max() < 1.0, (sample, channel, box, seen)
                    compared += 1
                else:
                    # What is left is too thin to be told from the edge.
                    assert (box[2:] * (WIDTH, HEIGHT)).min() < 1.5
            elif seen is not None:
                assert min(seen[2:] * (WIDTH, HEIGHT)) < 1.5 + MIN_VISIBLE * WIDTH
    assert compared > 40


def test_a_flip_mirrors_pixels_and_boxes() -> None:
    clips = noise(3, 2, 8, 12)
    targets = some_targets([2, 0, 3])
    got = augmented(clips, targets, AugmentConfig(flip=1.0, crop=0.0, color=0.0), np.random.default_rng(0))
    torch.testing.assert_close(got.clips, normalize(clips).flip(-1), rtol=0, atol=1e-4)
    valid = targets.valid
    wanted = targets.boxes[valid] * torch.tensor([-1.0, 1, 1, 1]) + torch.tensor([1.0, 0, 0, 0])
    torch.testing.assert_close(got.targets.boxes[valid], wanted)
    assert torch.equal(got.targets.labels[valid], targets.labels[valid])
    assert torch.equal(got.targets.counts, targets.counts)


def test_flips_are_as_frequent_as_asked_for() -> None:
    clips = torch.zeros(400, 1, 2, 2, 3, dtype=torch.uint8)
    clips[:, :, :, 0] = 255
    none = Targets(torch.zeros(400, 1).long(), torch.zeros(400, 1, 4), torch.zeros(400, dtype=torch.int32))
    got = augmented(clips, none, AugmentConfig(flip=0.3, crop=0, color=0), np.random.default_rng(0))
    assert (pixels_of(got)[:, 0, 0, 0, 0] < 0.5).mean() == pytest.approx(0.3, abs=0.07)


def test_a_crop_takes_at_most_its_share_of_each_side() -> None:
    """A box over the middle pixel grows by 1 / size, which tells the size of the crop."""
    batch = 300
    share = 0.4
    targets = Targets(
        torch.zeros(batch, 1).long(), torch.tensor([0.5, 0.5, 0.01, 0.01]).expand(batch, 1, 4), torch.ones(batch).int()
    )
    small = targets._replace(boxes=targets.boxes * torch.tensor([1, 1, 8, 8.0]))
    clips = torch.zeros(batch, 1, 4, 4, 3, dtype=torch.uint8)
    got = augmented(clips, small, AugmentConfig(flip=0, crop=share, color=0), np.random.default_rng(0)).targets
    assert got.counts.tolist() == [1] * batch
    size = 0.08 / got.boxes[:, 0, 2:]
    assert size.min() >= 1 - share - 1e-4
    assert size.max() <= 1 + 1e-4
    assert size.min() < 1 - 0.95 * share
    assert size.max() > 1 - 0.05 * share
    # Width and height are drawn independently.
    assert np.corrcoef(size.T.numpy())[0, 1] == pytest.approx(0, abs=0.2)

    # The left and top of the crop.
    origin = 0.5 - got.boxes[:, 0, :2] * size
    assert origin.min() >= -1e-4
    assert (origin + size).max() <= 1 + 1e-4
    assert (origin.mean(0) / (1 - size).mean(0)).numpy() == pytest.approx(0.5, abs=0.1)


def test_boxes_that_are_cropped_away_are_dropped_and_the_others_move_up() -> None:
    corner = (0, 0, 4, 4)
    middle = (30, 18, 50, 30)
    edge = (WIDTH - 4, HEIGHT - 4, WIDTH, HEIGHT)
    clips, targets = rectangles(np.array([[corner, middle, edge]] * 40))
    got = augmented(clips, targets, AugmentConfig(flip=0.5, crop=0.5, color=0.0), np.random.default_rng(3)).targets
    kept = [got.labels[sample, :count].tolist() for sample, count in enumerate(got.counts.tolist())]
    assert {1} <= {label for labels in kept for label in labels}
    assert [1] in kept
    assert any(labels in ([0, 1], [1, 2]) for labels in kept)
    assert all(labels == sorted(set(labels)) for labels in kept)
    for sample, labels in enumerate(kept):
        sizes = got.boxes[sample, : len(labels), 2:]
        assert (sizes > MIN_VISIBLE).all()
        if 1 in labels:
            assert (sizes[labels.index(1)] >= torch.tensor([20 / WIDTH, 12 / HEIGHT]) * 0.5).any()


def test_padding_never_becomes_a_target() -> None:
    targets = some_targets([1, 0, 2])
    got = augmented(noise(3, 1, 8, 8), targets, FULL, np.random.default_rng(4)).targets
    assert (got.labels[got.valid] >= 0).all()
    assert got.boxes[got.valid].isfinite().all()
    assert got.counts.sum() <= 2 * 3


# Color


def test_color_changes_by_three_factors_a_clip_and_leaves_the_boxes() -> None:
    strength = 0.3
    batch = 30
    rng = np.random.default_rng(5)
    # The pixels are far from black and white, so that none is clamped.
    clips = torch.from_numpy(rng.integers(90, 140, (batch, 2, 6, 8, 3), dtype=np.uint8))
    targets = some_targets([1] * batch)
    got = augmented(clips, targets, AugmentConfig(flip=0, crop=0, color=strength), np.random.default_rng(6))
    assert same(got.targets, targets)
    factors = []
    for before, after in zip(clips.double().numpy() / 255, pixels_of(got), strict=True):
        gray = before.mean(-1, keepdims=True)
        found = after.mean(-1, keepdims=True)
        # Brightness scales the mean, contrast the distance from it, and saturation the distance from gray.
        brightness = after.mean() / before.mean()
        deviation = (gray - gray.mean()).ravel()
        contrast = deviation @ (found - found.mean()).ravel() / (deviation @ deviation) / brightness
        hue = (before - gray).ravel()
        saturation = hue @ (after - found).ravel() / (hue @ hue) / brightness / contrast
        mean = brightness * before.mean()
        rebuilt = mean + brightness * contrast * (gray - gray.mean() + saturation * (before - gray))
        np.testing.assert_allclose(after, rebuilt, atol=1e-5)
        factors.append((brightness, contrast, saturation))
    spread = np.array(factors)
    assert np.abs(spread - 1).max() <= strength + 1e-3
    assert (spread.min(0) < 1 - strength / 2).all()
    assert (spread.max(0) > 1 + strength / 2).all()
    assert np.abs(np.corrcoef(spread.T) - np.eye(3)).max() < 0.6


def test_colors_stay_within_black_and_white() -> None:
    clips = torch.tensor([0, 255], dtype=torch.uint8).repeat(20, 2, 6, 12).reshape(20, 2, 6, 8, 3)
    got = augmented(clips, some_targets([0] * 20), AugmentConfig(flip=0, crop=0, color=0.9), np.random.default_rng(7))
    pictures = pixels_of(got)
    assert pictures.min() >= -1e-6
    assert pictures.max() <= 1 + 1e-6


# Mixup

MIXUP = AugmentConfig(flip=0.0, crop=0.0, color=0.0, mixup=0.4)


def partner_of(sample: int, before: np.ndarray, after: np.ndarray) -> tuple[int, float]:
    """The clip that a blended clip has been blended with, and the share that it has kept of itself."""
    partners = []
    for other in set(range(len(before))) - {sample}:
        apart = (before[sample] - before[other]).ravel()
        share = apart @ (after[sample] - before[other]).ravel() / (apart @ apart)
        if np.abs(share * before[sample] + (1 - share) * before[other] - after[sample]).max() < 1e-5:
            partners.append((other, share))
    # Only a share of 1 would fit any partner.
    assert len(partners) == 1
    return partners[0]


@pytest.mark.parametrize("counts", [[2, 0, 3], [1, 1], [0, 0, 0, 0], [3, 3]])
def test_mixup_blends_the_pixels_of_the_clips_whose_targets_it_joins(counts: list[int]) -> None:
    batch = len(counts)
    clips = noise(batch, 2, 6, 8, seed=8)
    targets = some_targets(counts, seed=8)
    got = augmented(clips, targets, MIXUP, np.random.default_rng(9))
    before = clips.double().numpy() / 255
    after = pixels_of(got)
    assert got.targets.labels.shape == (batch, 2 * 3)
    shares = []
    for sample in range(batch):
        other, share = partner_of(sample, before, after)
        assert 0 <= share <= 1 + 1e-9
        shares.append(share)
        assert got.targets.counts[sample] == counts[sample] + counts[other]
        for name in ("labels", "boxes"):
            mine, theirs = (getattr(targets, name)[clip, : counts[clip]] for clip in (sample, other))
            joined = getattr(got.targets, name)[sample, : counts[sample] + counts[other]]
            assert torch.equal(joined, torch.cat([mine, theirs]))
    # Each clip has its own share.
    assert len(set(np.round(shares, 6))) == batch


def test_a_single_clip_is_not_mixed() -> None:
    clips = noise(1, 2, 6, 8)
    targets = some_targets([2])
    got = augmented(clips, targets, MIXUP, np.random.default_rng(0))
    torch.testing.assert_close(got.clips, normalize(clips), rtol=0, atol=1e-6)
    assert same(got.targets, targets)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_the_shares_of_a_batch_are_changed_as_the_whole_is(processes: int) -> None:
    clips = noise(5, 2, 12, 16)
    targets = some_targets([1, 3, 0, 2, 1])
    config = AugmentConfig(flip=0.5, crop=0.4, color=0.5)
    whole = augmented(clips, targets, config, np.random.default_rng(11))
    params = draw_params(5, config, np.random.default_rng(11))
    for rank in range(processes):
        rows = slice(rank, None, processes)
        got = changed(clips[rows], Targets(*(field[rows] for field in targets)), params[rows])
        torch.testing.assert_close(got.clips, whole.clips[rows])
        assert same(got.targets, Targets(*(field[rows] for field in whole.targets)))


@pytest.mark.parametrize(("size", "side"), [(32, 23), (48, 34), (112, 79), (224, 158)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_halved_pictures_are_those_of_pillow(size: int, side: int, dtype: torch.dtype) -> None:
    targets = some_targets([1, 2])
    clips = normalize(noise(2, 8, size, size), dtype)
    small = halve_pixels(Batch(clips, targets))
    assert small.targets is targets
    assert small.clips.shape == (2, 3, 8, side, side)
    assert small.clips.dtype == dtype
    assert small.clips.is_contiguous(memory_format=torch.channels_last_3d)
    for clip, channel, frame in ((0, 0, 0), (1, 2, 7), (1, 1, 3)):
        picture = Image.fromarray(clips[clip, channel, frame].float().numpy())
        wanted = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
        rounding = 5e-5 if dtype == torch.float32 else 2e-2
        np.testing.assert_allclose(small.clips[clip, channel, frame].float().numpy(), wanted, atol=rounding)


# Boxes in every frame


def some_tubes(counts: list[int], frames: int, *, size: int = 3, seed: int = 0, near_edge: bool = False) -> TubeTargets:
    """Other boxes in every frame; what is padding or not visible holds values that must never be used."""
    rng = np.random.default_rng(seed)
    center = rng.uniform(0.0 if near_edge else 0.4, 1.0 if near_edge else 0.6, (len(counts), size, frames, 2))
    boxes = np.concatenate([center, rng.uniform(0.01, 0.3, center.shape)], -1).astype(np.float32)
    visible = rng.random((len(counts), size, frames)) < 0.7
    labels = rng.integers(0, 5, (len(counts), size))
    for sample, count in enumerate(counts):
        visible[sample, count:] = False
        labels[sample, count:] = -1
    boxes[~visible] = math.nan
    annotated = rng.random((len(counts), frames)) < 0.7
    return TubeTargets(
        torch.from_numpy(labels),
        torch.from_numpy(boxes),
        torch.tensor(counts, dtype=torch.int32),
        torch.from_numpy(visible & annotated[:, None]),
        torch.from_numpy(annotated),
    )


# A label, and in each frame a box or None.
TubeRow = tuple[int, list[list[float] | None]]


def rows_of(targets: TubeTargets, sample: int) -> list[TubeRow]:
    rows = []
    for row in range(int(targets.counts[sample])):
        boxes = targets.boxes[sample, row].double().tolist()
        visible = targets.visible[sample, row].tolist()
        seen = [box if here else None for box, here in zip(boxes, visible, strict=True)]
        rows.append((int(targets.labels[sample, row]), seen))
    return rows


def moved_row(row: TubeRow, params: AugmentParams, sample: int) -> TubeRow:
    """What is left of a row, box by box in Python's floats."""
    assert params.size is not None
    assert params.origin is not None
    assert params.flip is not None
    label, boxes = row
    moved: list[list[float] | None] = []
    for box in boxes:
        if box is None:
            moved.append(None)
            continue
        edges = []
        for axis in (0, 1):
            size = float(params.size[sample, axis])
            origin = float(params.origin[sample, axis])
            low, high = (min(max((box[axis] + side * box[axis + 2] / 2 - origin) / size, 0.0), 1.0) for side in (-1, 1))
            if axis == 0 and params.flip[sample]:
                low, high = 1 - high, 1 - low
            edges.append((low, high))
        (x1, x2), (y1, y2) = edges
        is_seen = min(x2 - x1, y2 - y1) > MIN_VISIBLE
        moved.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1] if is_seen else None)
    return label, moved


def assert_same_rows(got: list[TubeRow], wanted: list[TubeRow]) -> None:
    assert [label for label, _ in got] == [label for label, _ in wanted]
    for (_, boxes), (_, expected) in zip(got, wanted, strict=True):
        assert [box is None for box in boxes] == [box is None for box in expected]
        for box, other in zip(boxes, expected, strict=True):
            assert box == (None if other is None else pytest.approx(other, abs=1e-5))


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(flip=1.0, crop=0.0, color=0.0),
        AugmentConfig(flip=0.0, crop=0.6, color=0.0),
        AugmentConfig(flip=0.5, crop=0.9, color=0.2),
        STILL,
    ],
    ids=["flip", "crop", "both", "neither"],
)
@pytest.mark.parametrize("frames", [1, 2, 8])
def test_tubes_are_cropped_and_flipped_as_loops_do_it(config: AugmentConfig, frames: int) -> None:
    """Who is cropped away in some frames is not visible there, and who is in all of them is dropped."""
    counts = [3, 0, 1, 3, 2, 3, 3, 3]
    targets = some_tubes(counts, frames, seed=frames, near_edge=True)
    before = [field.clone() for field in targets]
    params = draw_params(len(counts), config, np.random.default_rng(5))
    got = changed(noise(len(counts), frames, 8, 8), targets, params).targets
    assert isinstance(got, TubeTargets)

    hidden = 0
    dropped = 0
    for sample in range(len(counts)):
        wanted = rows_of(targets, sample)
        if params.flip is not None:
            moved = [moved_row(row, params, sample) for row in wanted]
            hidden += sum(old != new and None in new for (_, old), (_, new) in zip(wanted, moved, strict=True))
            wanted = [(label, boxes) for label, boxes in moved if any(boxes)]
            dropped += len(moved) - len(wanted)
        assert_same_rows(rows_of(got, sample), wanted)
    assert torch.equal(got.annotated, targets.annotated)
    assert not config.crop or hidden > 0
    assert not config.crop or frames > 2 or dropped > 0
    for field, was in zip(targets, before, strict=True):
        torch.testing.assert_close(field, was, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_boxes_of_each_frame_move_with_its_pixels(flip: float) -> None:
    """A rectangle that jumps from frame to frame."""
    batch = 12
    places = np.stack([random_places(batch, seed=20 + frame) for frame in range(FRAMES)], 1)
    clips = torch.zeros(batch, FRAMES, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    boxes = torch.zeros(batch, 3, FRAMES, 4)
    for sample, frame in np.ndindex(batch, FRAMES):
        picture, targets = rectangles(places[sample : sample + 1, frame])
        clips[sample, frame] = picture[0, 0]
        boxes[sample, :, frame] = targets.boxes[0]
    labels = torch.arange(3).repeat(batch, 1)
    visible = torch.ones(batch, 3, FRAMES, dtype=torch.bool)
    tubes = TubeTargets(labels, boxes, torch.full((batch,), 3, dtype=torch.int32), visible, visible[:, 0])

    config = AugmentConfig(flip=flip, crop=0.5, color=0.0)
    got = augmented(clips, tubes, config, np.random.default_rng(2))
    pictures = pixels_of(got)
    compared = 0
    for sample in range(batch):
        for label, found in rows_of(got.targets, sample):  # type: ignore[arg-type]
            for frame, box in enumerate(found):
                seen = find(pictures[sample, frame, :, :, label])
                if box is not None and seen is not None:
                    assert np.abs((np.array(box) - seen) * (WIDTH, HEIGHT, WIDTH, HEIGHT)).max() < 1.0
                    compared += 1
    assert compared > 60


@pytest.mark.parametrize("counts", [[2, 0, 3], [1, 1], [0, 0, 0, 0], [3, 3]])
def test_mixup_joins_the_tubes_of_both_clips(counts: list[int]) -> None:
    """In frames of which both clips say what happens. Of the others nobody knows, so nobody is visible there."""
    batch = len(counts)
    clips = noise(batch, 6, 6, 8, seed=8)
    targets = some_tubes(counts, 6, seed=8)
    result = augmented(clips, targets, MIXUP, np.random.default_rng(9))
    got = result.targets
    assert isinstance(got, TubeTargets)
    assert got.boxes.shape == (batch, 6, 6, 4)

    before = clips.double().numpy() / 255
    after = pixels_of(result)
    for sample in range(batch):
        other, _ = partner_of(sample, before, after)
        both = zip(targets.annotated[sample].tolist(), targets.annotated[other].tolist(), strict=True)
        known = [one and two for one, two in both]
        assert got.annotated[sample].tolist() == known
        wanted = [
            (label, [box if here else None for box, here in zip(boxes, known, strict=True)])
            for label, boxes in (*rows_of(targets, sample), *rows_of(targets, other))
        ]
        # Whoever is seen in no frame any more is no target.
        assert_same_rows(rows_of(got, sample), [row for row in wanted if any(row[1])])
    assert not got.visible[~got.valid].any()


@pytest.mark.parametrize("processes", [2, 3])
def test_the_tubes_of_a_share_are_changed_as_those_of_the_whole_batch(processes: int) -> None:
    clips = noise(5, 4, 12, 16)
    targets = some_tubes([1, 3, 0, 2, 1], 4)
    config = AugmentConfig(flip=0.5, crop=0.4, color=0.5)
    whole = augmented(clips, targets, config, np.random.default_rng(11)).targets
    params = draw_params(5, config, np.random.default_rng(11))
    assert isinstance(whole, TubeTargets)
    for rank in range(processes):
        rows = slice(rank, None, processes)
        got = changed(clips[rows], TubeTargets(*(field[rows] for field in targets)), params[rows]).targets
        assert isinstance(got, TubeTargets)
        for sample in range(len(got.counts)):
            assert rows_of(got, sample) == rows_of(whole, rank + sample * processes)


def test_tubes_of_halved_pictures_stay_the_same() -> None:
    targets = some_tubes([1, 2], 8)
    assert halve_pixels(Batch(normalize(noise(2, 8, 32, 32)), targets)).targets is targets

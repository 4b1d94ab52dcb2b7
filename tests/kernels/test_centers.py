"""The center loss and its gradient, against loops over actors and pixels in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from actdet_kernels import CenterLoss, CenterMaps, CenterWeights, Tubelets, center_loss
from actdet_kernels.backend import Backend
from torch import Tensor

from tests.kernels.device import DEVICE, HAS_CPP, KERNELS, KINDS, NEEDS_COMPILER
from tests.kernels.oracles import center_terms, weighted_sum

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Conversion of an array:DeprecationWarning")
POISON = pytest.mark.usefixtures("allocated")
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
EACH_KERNEL = pytest.mark.parametrize("kind", KERNELS)

WEIGHTS = CenterWeights(0.3, 1.2, 0.7, 1.9)
TERMS = ("classes", "centers", "movement", "sizes")

# What no one may look at: behind a count, and in frames in which an actor is not visible.
GARBAGE_LABELS = (-1, 10**6, -(2**63))
GARBAGE_BOX = (math.nan, math.inf, -math.inf, -1e30)


class Shape(NamedTuple):
    """Counts of the samples, the size to which they are padded, frames, channels, height, width, and (A, h, w)."""

    counts: list[int]
    size: int
    frames: int
    channels: int
    height: int
    width: int
    classes: tuple[int, int, int] | None


# That of a small STMA and of a small MOC, and ugly ones.
STMA = Shape([2, 0, 3], 3, 5, 1, 9, 13, (4, 2, 3))
MOC = Shape([3, 1], 3, 3, 4, 7, 6, None)
SHAPES = [
    STMA,
    MOC,
    Shape([1], 1, 1, 1, 1, 1, None),
    Shape([2], 2, 1, 2, 1, 1, (2, 1, 1)),
    Shape([3, 2], 4, 1, 1, 12, 5, (3, 12, 5)),
    Shape([4], 4, 2, 3, 1, 17, (3, 1, 4)),
    Shape([0, 0], 2, 3, 1, 4, 5, (2, 1, 1)),
    Shape([0, 0], 0, 2, 3, 5, 4, None),
    Shape([9, 12], 12, 2, 1, 10, 8, (5, 3, 3)),
    Shape([12], 12, 2, 2, 5, 9, None),
]

# Every option by itself, and some together.
OPTIONS: list[dict[str, Any]] = [
    {"key": 0},
    {"key": 4},
    {"radius": "corrected"},
    {"movement_area": "circle"},
    {"movement_area": "center"},
    {"size_area": "circle"},
    {"size_area": "circle", "radius": "corrected"},
    {"size_area": "center"},
    {"moved": False},
    {"moved": False, "size_area": "circle", "movement_area": "circle", "key": 1},
    {"stride": 1},
    {"stride": 16},
    {"alpha": 0.0},
    {"alpha": 1.5},
    {"beta": 0.0},
    {"beta": 2.5},
    {"alpha": 1.0, "beta": 1.0},
]


def random_actors(shape: Shape, *, seed: int = 0) -> Tubelets:
    """Actors whose boxes are of 0 to a whole picture, some with their centers outside of it.

    In pixels of the grid all numbers are about odd 32nds, so that no rounding moves a center into another pixel. They
    are not quite, because what is predicted in half precision may be a 32nd, and where both agree there are two
    derivatives.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = len(shape.counts)
    grid = torch.tensor([shape.width, shape.height], dtype=torch.float64)
    each = (batch, shape.size, shape.frames, 2)

    def random(*sizes: int) -> Tensor:
        return torch.rand(sizes, generator=generator, dtype=torch.float64)

    start = (1.3 * random(batch, shape.size, 1, 2) - 0.15) * grid
    center = start + 3 * random(*each) - 1.5
    sides = random(*each) ** 2 * grid
    places = (16 * center).floor() / 16 + 1 / 32 + 0.003
    extents = (16 * sides).floor() / 16 + 1 / 32 + 0.01
    boxes = torch.cat([places, extents], -1) / grid.repeat(2)

    visible = random(batch, shape.size, shape.frames) < 0.7
    # Nearly all of them count.
    visible[:, :, shape.frames // 2] |= random(batch, shape.size) < 0.8
    labels = torch.randint(known_classes(shape) or 7, (batch, shape.size), generator=generator)
    return with_garbage(Tubelets(labels, boxes, torch.tensor(shape.counts), visible))


def known_classes(shape: Shape) -> int:
    """The number of classes of the maps, 0 if they have none."""
    if shape.classes is not None:
        return shape.classes[0]
    return shape.channels if shape.channels > 1 else 0


def with_garbage(targets: Tubelets) -> Tubelets:
    """The same, with what must never be looked at wherever nothing is said."""
    labels, boxes, counts, visible = (field.clone() for field in targets)
    boxes[~visible] = torch.tensor(GARBAGE_BOX, dtype=boxes.dtype)
    for sample, count in enumerate(counts.tolist()):
        for row in range(max(count, 0), labels.shape[1]):
            labels[sample, row] = GARBAGE_LABELS[row % 3]
            boxes[sample, row] = torch.tensor(GARBAGE_BOX, dtype=boxes.dtype)
            visible[sample, row] = row % 2 == 0
    return Tubelets(labels, boxes, counts, visible)


def random_maps(shape: Shape, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> CenterMaps:
    """Maps whose boxes have sides in the right order, some of them on one side of their pixels."""
    generator = torch.Generator().manual_seed(seed + 1000)
    batch = len(shape.counts)
    grid = (shape.height, shape.width)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    low = 2 * random(batch, shape.frames, 2, *grid) + 1
    high = 0.1 + 3 * random(batch, shape.frames, 2, *grid).abs() - low
    classes = None if shape.classes is None else 2 * random(batch, *shape.classes)
    maps = CenterMaps(
        3 * random(batch, shape.channels, *grid) - 1,
        2 * random(batch, shape.frames, 2, *grid),
        torch.cat([low, high], 2),
        classes,
    )
    return changed(maps, lambda each: each.to(dtype))


def changed(maps: CenterMaps, change: Callable[[Tensor], Tensor]) -> CenterMaps:
    """With another tensor for each map that there is."""
    centers, movement, sizes, classes = maps
    return CenterMaps(change(centers), change(movement), change(sizes), None if classes is None else change(classes))


def leaves_of(maps: CenterMaps) -> CenterMaps:
    """Copies on the device that want gradients."""
    return changed(maps, lambda each: each.to(DEVICE, copy=True).requires_grad_())


def given_maps(maps: CenterMaps) -> list[Tensor]:
    return [each for each in maps if each is not None]


def slopes_of(found: CenterLoss, maps: CenterMaps, cotangents: list[float]) -> list[Tensor]:
    """The gradients of a weighted sum of the total and its terms."""
    weighted = weighted_sum(cotangents, found[:5])
    return [each.cpu() for each in torch.autograd.grad(weighted, given_maps(maps))]


COTANGENTS = [0.7, -1.3, 0.4, 2.1, -0.6]


def results_of(
    maps: CenterMaps, targets: Tubelets, kind: Backend, cotangents: list[float] = COTANGENTS, **options: Any
) -> list[Tensor]:
    """The six fields of the loss, then the gradients of the maps."""
    leaves = leaves_of(maps)
    found = center_loss(leaves, targets.to(DEVICE), backend=kind, **options)
    return [*(field.detach().cpu() for field in found), *slopes_of(found, leaves, cotangents)]


def same_bits(one: list[Tensor], other: list[Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def check_losses(found: list[Tensor] | CenterLoss, maps: CenterMaps, targets: Tubelets, **options: Any) -> None:
    """The losses are those of the oracle, to 1e-12."""
    weights = options.pop("weights", CenterWeights())
    terms, divisors = center_terms(maps, targets, **options)
    total = math.fsum(weight * term for weight, term in zip(weights, terms, strict=True))
    wanted = torch.tensor([total, *terms], dtype=torch.float64)
    mine = torch.stack(list(found[:5])).detach().cpu()
    torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)

    # Without weights, any divisor gives 0.
    for one, other in zip(found[5].tolist(), divisors, strict=True):
        assert one == pytest.approx(other, rel=1e-12) or (other == 0 and one > 0)


def check(maps: CenterMaps, targets: Tubelets, kind: Backend, **options: Any) -> None:
    """The losses are those of the oracle, and the gradients those of the reference."""
    options = {"weights": WEIGHTS} | options
    found = results_of(maps, targets, kind, **options)
    check_losses(found, maps, targets, **options)

    if kind != "reference":
        wanted = results_of(maps, targets, "reference", **options)
        for mine, true in zip(found[6:], wanted[6:], strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-11, atol=1e-13)


@POISON
@EACH_KIND
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_sum_over_actors_and_pixels(shape: Shape, kind: Backend) -> None:
    check(random_maps(shape), random_actors(shape), kind)


@POISON
@EACH_KIND
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_are_as_documented(options: dict[str, Any], kind: Backend) -> None:
    shape = STMA._replace(counts=[3, 1], size=3)
    check(random_maps(shape, seed=1), random_actors(shape, seed=1), kind, **options)


@EACH_KIND
def test_by_default_the_weights_are_stmas_and_the_key_frame_is_the_middle_one(kind: Backend) -> None:
    maps = random_maps(STMA)
    targets = random_actors(STMA)
    found = center_loss(leaves_of(maps), targets.to(DEVICE), backend=kind)
    check_losses(found, maps, targets)
    # Equations 8 and 9: 0.05 is 0.5 times gamma, 0.1.
    wanted = 0.01 * found.classes + found.centers + 0.5 * found.movement + 0.5 * 0.1 * found.sizes
    torch.testing.assert_close(found.total, wanted)


def without_triton(kinds: list[Backend]) -> list[Any]:
    """Its interpreter would take minutes for what is large."""
    slow = pytest.mark.slow
    return [pytest.param(kind, marks=slow) if kind == "triton" and DEVICE.type == "cpu" else kind for kind in kinds]


# Areas of more than a thousand pixels, more than ten thousand pixels in all channels, and rows of as many.
LARGE = [Shape([16, 0, 9], 16, 2, 3, 45, 77, (3, 6, 10)), Shape([12], 12, 1, 1, 5, 10000, None)]


@pytest.mark.parametrize("kind", without_triton(KINDS))
@pytest.mark.parametrize("radius", ["published", "corrected"])
@pytest.mark.parametrize("shape", LARGE, ids=["picture", "strip"])
def test_large_boxes_on_a_large_grid(shape: Shape, radius: str, kind: Backend) -> None:
    check(random_maps(shape), random_actors(shape, seed=4), kind, radius=radius, movement_area="circle")


@pytest.mark.slow
@EACH_KIND
@pytest.mark.parametrize("seed", range(10))
def test_other_random_cases(seed: int, kind: Backend) -> None:
    options = OPTIONS[seed % len(OPTIONS)]
    shape = Shape([3, 0, 1], 3, 5, 1 + seed % 3, 3 + seed, 11 - seed, None if seed % 3 else (2, 2, 1))
    check(random_maps(shape, seed=seed), random_actors(shape, seed=seed), kind, **options)


# The gradient


@pytest.mark.parametrize("options", [{}, {"radius": "corrected", "size_area": "circle", "moved": False}], ids=str)
@pytest.mark.parametrize("shape", [Shape([2, 1], 2, 2, 1, 3, 4, (3, 1, 2)), Shape([2], 2, 1, 2, 4, 3, None)], ids=str)
def test_the_references_gradient_is_its_own_difference_quotient(shape: Shape, options: dict[str, Any]) -> None:
    """Of every field by itself."""
    targets = random_actors(shape, seed=3).to(DEVICE)
    maps = leaves_of(random_maps(shape))

    def fields(*given: Tensor) -> tuple[Tensor, ...]:
        return center_loss(CenterMaps(*given), targets, weights=WEIGHTS, backend="reference", **options)[:5]

    assert torch.autograd.gradcheck(fields, given_maps(maps))


@POISON
@EACH_KERNEL
@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (3,), (4,), (1, 4), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("shape", [STMA, MOC], ids=["STMA", "MOC"])
def test_losses_that_are_not_used_add_nothing(shape: Shape, chosen: tuple[int, ...], kind: Backend) -> None:
    """Each field by itself, and sums of some of them."""
    targets = random_actors(shape).to(DEVICE)
    slopes = []
    for backend in (kind, "reference"):
        maps = leaves_of(random_maps(shape))
        found = center_loss(maps, targets, weights=WEIGHTS, backend=backend)
        weighted = weighted_sum([COTANGENTS[field] for field in chosen], [found[field] for field in chosen])
        if not weighted.requires_grad:
            # The reference's 0 of the class, if the maps have none.
            slopes.append([torch.zeros_like(each) for each in given_maps(maps)])
            continue
        slopes.append(torch.autograd.grad(weighted, given_maps(maps), allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-13)


@EACH_KIND
@pytest.mark.parametrize("wanted", range(4))
def test_maps_that_want_no_gradient_get_none(wanted: int, kind: Backend) -> None:
    every = results_of(random_maps(STMA), random_actors(STMA), kind)[6:]
    leaves = leaves_of(random_maps(STMA))
    maps = changed(leaves, Tensor.detach)
    maps = maps._replace(**{CenterMaps._fields[wanted]: leaves[wanted]})
    found = center_loss(maps, random_actors(STMA).to(DEVICE), backend=kind)
    (slope,) = torch.autograd.grad(weighted_sum(COTANGENTS, found[:5]), [given_maps(leaves)[wanted]])
    torch.testing.assert_close(slope.cpu(), every[wanted])


@EACH_KIND
def test_targets_get_no_gradient(kind: Backend) -> None:
    targets = random_actors(STMA).to(DEVICE)
    boxes = targets.boxes.clone().requires_grad_()
    found = center_loss(leaves_of(random_maps(STMA)), targets._replace(boxes=boxes), backend=kind)
    found.total.backward()
    assert boxes.grad is None
    assert not found.divisors.requires_grad


@EACH_KIND
def test_without_gradients_there_is_nothing_to_differentiate(kind: Backend) -> None:
    with torch.no_grad():
        found = center_loss(leaves_of(random_maps(STMA)), random_actors(STMA).to(DEVICE), backend=kind)
    assert not any(field.requires_grad for field in found)


@EACH_KERNEL
def test_the_kernels_have_no_second_derivative(kind: Backend) -> None:
    maps = leaves_of(random_maps(STMA))
    found = center_loss(maps, random_actors(STMA).to(DEVICE), backend=kind)
    (slope,) = torch.autograd.grad(found.total.square(), [maps.centers], create_graph=True)
    with pytest.raises(RuntimeError, match="center_loss has no second derivative with the kernels: use backend='ref"):
        torch.autograd.grad(slope.sum(), [maps.centers])


def test_the_reference_has_a_second_derivative() -> None:
    shape = Shape([2], 2, 1, 1, 2, 3, (2, 1, 1))
    targets = random_actors(shape).to(DEVICE)
    maps = leaves_of(random_maps(shape))

    def total(*given: Tensor) -> Tensor:
        return center_loss(CenterMaps(*given), targets, backend="reference").total

    assert torch.autograd.gradgradcheck(total, given_maps(maps))


# What it does not look at, and what it must notice


@POISON
@EACH_KIND
def test_what_is_hidden_may_be_anything(kind: Backend) -> None:
    """Rows behind the count, frames in which an actor is not visible, and actors whom the key frame does not show."""
    targets = random_actors(STMA)
    targets.visible[2, 0, STMA.frames // 2] = False
    wanted = results_of(random_maps(STMA), targets, kind)
    assert all(value.isfinite().all() for value in wanted)

    hidden = torch.arange(STMA.size) >= targets.counts[:, None]
    hidden[2, 0] = True
    labels = targets.labels.masked_fill(hidden, 2**62)
    boxes = targets.boxes.masked_fill((hidden[..., None] | ~targets.visible)[..., None], -3.5)
    same_bits(results_of(random_maps(STMA), Tubelets(labels, boxes, *targets[2:]), kind), wanted)
    boxes = boxes.masked_fill(hidden[..., None, None], math.nan)
    same_bits(results_of(random_maps(STMA), Tubelets(labels, boxes, *targets[2:]), kind), wanted)


@EACH_KIND
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_counts_beyond_the_rows_are_clamped(dtype: torch.dtype, kind: Backend) -> None:
    shape = STMA._replace(counts=[3, 0, 3])
    targets = random_actors(shape)
    wanted = results_of(random_maps(shape), targets, kind)
    strange = torch.tensor([2**31 - 1, -(2**31), 4], dtype=dtype)
    same_bits(results_of(random_maps(shape), targets._replace(counts=strange), kind), wanted)


@EACH_KIND
@pytest.mark.parametrize("label", [-1, 4, 2**62, -(2**63)])
@pytest.mark.parametrize("shape", [STMA, MOC], ids=["STMA", "MOC"])
def test_a_label_without_a_class_makes_all_terms_nan(shape: Shape, label: int, kind: Backend) -> None:
    targets = random_actors(shape)
    targets.visible[0, 0] = True
    targets.boxes[0, 0] = torch.tensor([0.4, 0.6, 0.3, 0.2], dtype=torch.float64)
    targets.labels[0, 0] = label
    check_nan(random_maps(shape), targets, kind)


# The side, the frame, and what is there: each of them once, and in the slow tests all of them.
NOT_FINITE = [(0, 2, math.nan), (1, 0, math.inf), (2, 4, -math.inf), (3, 2, math.inf)]
ALL_NOT_FINITE = itertools.product(range(4), (0, 2, 4), (math.nan, math.inf, -math.inf))


@EACH_KIND
@pytest.mark.parametrize(
    ("side", "frame", "value"),
    [*NOT_FINITE, *(pytest.param(*each, marks=pytest.mark.slow) for each in ALL_NOT_FINITE if each not in NOT_FINITE)],
)
def test_a_box_that_is_not_finite_makes_all_terms_nan(side: int, frame: int, value: float, kind: Backend) -> None:
    targets = random_actors(STMA)
    targets.visible[0, 1] = True
    targets.boxes[0, 1] = torch.tensor([0.4, 0.6, 0.3, 0.2], dtype=torch.float64)
    targets.boxes[0, 1, frame, side] = value
    check_nan(random_maps(STMA), targets, kind)


def check_nan(maps: CenterMaps, targets: Tubelets, kind: Backend) -> None:
    """All losses are NaN, and what is learned from them shows it."""
    found = results_of(maps, targets, kind)
    assert all(loss.isnan() for loss in found[:5])
    assert not any(slope.isfinite().all() for slope in found[6:])


@EACH_KIND
def test_labels_of_maps_without_classes_may_be_anything(kind: Backend) -> None:
    shape = STMA._replace(classes=None)
    targets = random_actors(shape)
    wanted = results_of(random_maps(shape), targets, kind)
    assert wanted[1] == 0
    for label in GARBAGE_LABELS:
        strange = targets._replace(labels=torch.full_like(targets.labels, label))
        same_bits(results_of(random_maps(shape), strange, kind), wanted)


# Boxes that are unlike others


def actors_at(boxes: list[list[list[float]]], height: int, width: int, labels: list[int] | None = None) -> Tubelets:
    """A sample of actors (M, K, 4), visible in all frames, with boxes cxcywh in pixels of the grid."""
    grid = torch.tensor([width, height, width, height], dtype=torch.float64)
    shares = torch.tensor(boxes, dtype=torch.float64)[None] / grid
    numbers = torch.tensor([labels or [0] * len(boxes)])
    return Tubelets(numbers, shares, torch.tensor([len(boxes)]), torch.ones(shares.shape[:3], dtype=torch.bool))


ONE = Shape([1], 1, 1, 1, 6, 8, None)


@POISON
@EACH_KIND
@pytest.mark.parametrize("x", [-1e30, -100.0, -0.5, 7.96875, 8.0, 9.5, 1e30])
@pytest.mark.parametrize("y", [-0.0625, 6.0, 1e18])
def test_a_center_outside_of_the_picture_is_in_the_nearest_pixel(x: float, y: float, kind: Backend) -> None:
    targets = actors_at([[[x, y, 4.03125, 3.03125]]], ONE.height, ONE.width)
    check(random_maps(ONE), targets, kind)


@POISON
@EACH_KIND
@pytest.mark.parametrize("sides", [(0.0, 0.0), (0.0, 3.03125), (2.03125, 0.0), (1e-30, 1e-30), (300.0, 500.0)], ids=str)
@pytest.mark.parametrize("area", ["ellipse", "circle"])
def test_boxes_without_an_area_and_boxes_beyond_the_picture(
    area: str, sides: tuple[float, float], kind: Backend
) -> None:
    """The one's weight is that of e, the other's area is all of the grid."""
    targets = actors_at([[[3.5, 2.25, *sides]], [[5.5, 3.25, 4.03125, 4.03125]]], ONE.height, ONE.width)
    check(random_maps(ONE), targets, kind, movement_area=area, size_area=area)


@EACH_KERNEL
def test_sides_in_the_wrong_order_lose_what_the_reference_says(kind: Backend) -> None:
    """Nothing keeps a network from predicting a box whose left side is on the right."""
    maps = random_maps(STMA, seed=2)
    maps = maps._replace(sizes=maps.sizes - 2.5)
    low, high = maps.sizes.unflatten(2, (2, 2)).unbind(2)
    assert (low + high < 0).any(2).float().mean() > 0.2
    results = [results_of(maps, random_actors(STMA), each, weights=WEIGHTS) for each in (kind, "reference")]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-13)


@EACH_KIND
def test_of_equal_boxes_the_first_owns_the_pixels(kind: Backend) -> None:
    """Though others around it are smaller or larger."""
    small = [4.5, 3.5, 1.03125, 1.03125]
    equal = [[3.25, 2.5, 6.03125, 5.03125], [4.5, 3.5, 6.03125, 5.03125], [5.75, 2.5, 6.03125, 5.03125]]
    targets = actors_at([[[4.5, 2.5, 7.5, 5.5]], *([box] for box in equal), [small]], ONE.height, ONE.width)
    check(random_maps(ONE), targets, kind)

    # Who is where somebody else is owns nothing.
    pair = actors_at([[equal[0]], [equal[0]]], ONE.height, ONE.width)
    found = center_loss(leaves_of(random_maps(ONE)), pair.to(DEVICE), backend=kind)
    alone = center_loss(leaves_of(random_maps(ONE)), actors_at([[equal[0]]], 6, 8).to(DEVICE), backend=kind)
    for name in ("movement", "sizes"):
        torch.testing.assert_close(getattr(found, name), getattr(alone, name))
    torch.testing.assert_close(found.divisors[1:], alone.divisors[1:])


@EACH_KIND
def test_who_is_not_visible_in_a_frame_keeps_no_pixel_of_it_from_others(kind: Backend) -> None:
    shape = ONE._replace(counts=[2], size=2, frames=3)
    small = [[4.5, 3.5, 4.03125, 4.03125]] * 3
    large = [[3.5, 2.5, 8.03125, 6.03125]] * 3
    targets = actors_at([large, small], shape.height, shape.width)
    targets.visible[0, 1, 0] = False
    check(random_maps(shape), targets, kind)


@EACH_KIND
def test_actors_of_one_class_or_of_two_may_have_one_center(kind: Backend) -> None:
    """One pixel counts once in a channel."""
    shape = ONE._replace(counts=[3], size=3, channels=2)
    boxes = [[[4.5, 3.5, 4.03125, 4.03125]], [[4.25, 3.25, 2.03125, 5.03125]], [[4.75, 3.5, 3.03125, 3.03125]]]
    for labels in ([0, 0, 0], [1, 0, 1]):
        check(random_maps(shape), actors_at(boxes, shape.height, shape.width, labels), kind)


@EACH_KIND
def test_perfect_maps_lose_nothing_and_stay_where_they_are(kind: Backend) -> None:
    """On a grid whose sides are powers of two, so that no rounding makes them less than perfect."""
    height, width = 8, 16
    shape = Shape([1], 1, 3, 1, height, width, (2, height, width))
    boxes = [[3.5, 2.25, 4.5, 3.5], [4.25, 3.0, 4.5, 3.5], [5.5, 4.75, 5.5, 4.5]]
    targets = actors_at([boxes], height, width, [1])
    maps = random_maps(shape)
    assert maps.classes is not None
    maps.centers.fill_(-1e4)
    maps.centers[0, 0, 3, 4] = 1e4
    maps.classes[:, 0] = -1e4
    maps.classes[:, 1] = 1e4
    for frame, (x, y, w, h) in enumerate(boxes):
        maps.movement[0, frame, 0] = x - 4.5
        maps.movement[0, frame, 1] = y - 3.5
        for row, column in np.ndindex(height, width):
            across = (column + 0.5 - (x - w / 2), x + w / 2 - (column + 0.5))
            down = (row + 0.5 - (y - h / 2), y + h / 2 - (row + 0.5))
            sides = (across[0], down[0], across[1], down[1])
            maps.sizes[0, frame, :, row, column] = torch.tensor(sides, dtype=torch.float64)

    for moved in (True, False):
        found = results_of(maps, targets, kind, moved=moved)
        assert not any(loss.any() for loss in found[:5])
        # The box alone has two derivatives where it is right.
        d_centers, d_movement, _, d_classes = found[6:]
        assert not any(slope.any() for slope in (d_centers, d_movement, d_classes))


@EACH_KIND
def test_without_exponents_it_is_binary_cross_entropy(kind: Backend) -> None:
    maps = random_maps(MOC)
    targets = random_actors(MOC)
    found = center_loss(leaves_of(maps), targets.to(DEVICE), alpha=0.0, beta=0.0, backend=kind)
    wanted = torch.zeros_like(maps.centers)
    for sample, count in enumerate(MOC.counts):
        for row in range(count):
            if targets.visible[sample, row, 1]:
                x, y = (targets.boxes[sample, row, 1, :2] * torch.tensor([MOC.width, MOC.height])).tolist()
                column, line = min(max(int(x), 0), MOC.width - 1), min(max(int(y), 0), MOC.height - 1)
                wanted[sample, targets.labels[sample, row], line, column] = 1
    true = F.binary_cross_entropy_with_logits(maps.centers, wanted, reduction="sum") / found.divisors[0].cpu()
    torch.testing.assert_close(found.centers.cpu(), true)


@EACH_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-1e30, -200.0, 200.0, 1e30])
def test_logits_of_any_size_give_finite_losses_and_gradients(logit: float, dtype: torch.dtype, kind: Backend) -> None:
    maps = random_maps(STMA, dtype=dtype)
    assert maps.classes is not None
    maps.centers[:, :, ::2] = logit
    maps.classes[:, ::2] = logit
    found = results_of(maps, random_actors(STMA), kind)
    wanted = results_of(changed(maps, Tensor.double), random_actors(STMA), "reference")
    for mine, true in zip(found, wanted, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-6)


# Numbers, and how they lie in memory


@POISON
@EACH_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [STMA, MOC], ids=["STMA", "MOC"])
def test_half_precision_is_computed_in_float32(shape: Shape, dtype: torch.dtype, kind: Backend) -> None:
    """Losses have the error of float32, and gradients that of one rounding to the dtype of the maps besides."""
    maps = random_maps(shape, dtype=dtype)
    targets = random_actors(shape)
    targets = targets._replace(boxes=targets.boxes.float())
    check_precision(maps, targets, kind, torch.float32)


@EACH_KIND
@pytest.mark.parametrize(
    ("dtypes", "boxes"),
    [
        ((torch.float32, torch.float16, torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.float16, torch.float16, torch.float64), torch.float32),
        ((torch.bfloat16, torch.float64, torch.float32, torch.float16), torch.bfloat16),
        ((torch.float32, torch.float32, torch.float32, torch.float32), torch.float64),
        ((torch.float64, torch.float64, torch.float64, torch.float64), torch.float16),
    ],
    ids=str,
)
def test_dtypes_may_differ(dtypes: tuple[torch.dtype, ...], boxes: torch.dtype, kind: Backend) -> None:
    maps = random_maps(STMA)
    maps = CenterMaps(*(each.to(dtype) for each, dtype in zip(given_maps(maps), dtypes, strict=True)))
    targets = random_actors(STMA)
    targets = targets._replace(boxes=targets.boxes.to(boxes))
    check_precision(maps, targets, kind, torch.float64 if torch.float64 in dtypes else torch.float32)


def check_precision(maps: CenterMaps, targets: Tubelets, kind: Backend, computed: torch.dtype) -> None:
    """The truth is that of the same numbers in float64."""
    wanted = results_of(changed(maps, Tensor.double), targets, "reference")
    check_losses(wanted, maps, targets)
    found = results_of(maps, targets, kind)
    error = 16 * torch.finfo(computed).eps
    for mine, true in zip(found[:6], wanted[:6], strict=True):
        assert mine.dtype == computed
        torch.testing.assert_close(mine.double(), true, rtol=error, atol=0)
    for mine, true, like in zip(found[6:], wanted[6:], given_maps(maps), strict=True):
        assert mine.shape == like.shape
        assert mine.dtype == like.dtype
        stored = torch.finfo(like.dtype)
        scale = true.abs().max().item()
        # Half precision has its least numbers, too.
        torch.testing.assert_close(
            mine.double(), true, rtol=stored.eps, atol=error * scale + stored.smallest_normal * stored.eps
        )


def strange(value: Tensor) -> Tensor:
    """The same, with its first two dimensions the other way round in memory, and gaps between all elements."""
    wide = value.transpose(0, 1).repeat_interleave(2, -1)
    return wide[..., ::2].transpose(0, 1)


@EACH_KERNEL
def test_inputs_may_lie_in_memory_in_any_way(kind: Backend) -> None:
    maps = random_maps(STMA)
    targets = random_actors(STMA)
    wanted = results_of(maps, targets, kind)

    leaves = changed(maps, lambda each: strange(each.to(DEVICE)).requires_grad_())
    labels, boxes, counts, visible = targets.to(DEVICE)
    wide_counts = counts.repeat_interleave(2)[::2]
    given = Tubelets(strange(labels), strange(boxes), wide_counts, strange(visible))
    assert not any(field.is_contiguous() for field in (*given_maps(leaves), *given))
    found = center_loss(leaves, given, backend=kind)
    same_bits([*(field.detach().cpu() for field in found), *slopes_of(found, leaves, COTANGENTS)], wanted)


@EACH_KERNEL
def test_maps_may_have_their_channels_last(kind: Backend) -> None:
    """As cuDNN leaves them, with frames in the batch; and movement as channels of one convolution."""
    maps = random_maps(MOC._replace(classes=(4, 3, 2)))
    targets = random_actors(MOC)
    wanted = results_of(maps, targets, kind)

    def channels_last(each: Tensor) -> Tensor:
        pictures = each.flatten(0, -4).to(DEVICE, memory_format=torch.channels_last)
        return pictures.unflatten(0, each.shape[:-3]).requires_grad_()

    last = changed(maps, channels_last)
    assert not any(each.is_contiguous() for each in given_maps(last))
    found = center_loss(last, targets.to(DEVICE), backend=kind)
    slopes = slopes_of(found, last, COTANGENTS)
    same_bits([*(field.detach().cpu() for field in found), *slopes], wanted)


@EACH_KERNEL
def test_maps_may_be_broadcast(kind: Backend) -> None:
    maps = random_maps(STMA)
    wide = changed(maps, lambda each: each.to(DEVICE)[:1].expand_as(each))
    found = center_loss(wide, random_actors(STMA).to(DEVICE), backend=kind)
    copied = center_loss(leaves_of(wide), random_actors(STMA).to(DEVICE), backend=kind)
    same_bits(list(found), list(copied))


@EACH_KERNEL
def test_two_runs_give_the_same_bits(kind: Backend) -> None:
    shape = Shape([12, 0, 7], 12, 3, 2, 11, 9, None)
    maps = random_maps(shape, dtype=torch.float32)
    targets = random_actors(shape)
    same_bits(results_of(maps, targets, kind), results_of(maps, targets, kind))


@pytest.mark.skipif(not HAS_CPP, reason="the C++ kernels were not built")
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_move_no_bit(threads: int) -> None:
    shape = Shape([12, 0, 7], 12, 3, 2, 90, 70, None)
    maps = random_maps(shape, dtype=torch.float32)
    targets = random_actors(shape)
    before = torch.get_num_threads()
    wanted = results_of(maps, targets, "cpu")
    torch.set_num_threads(threads)
    try:
        same_bits(results_of(maps, targets, "cpu"), wanted)
    finally:
        torch.set_num_threads(before)


@EACH_KIND
def test_divisors_make_the_means_of_parts_those_of_the_whole(kind: Backend) -> None:
    """As several processes need them that share a batch."""
    maps = leaves_of(random_maps(STMA))
    targets = random_actors(STMA).to(DEVICE)
    whole = center_loss(maps, targets, backend=kind)
    parts = []
    for rows in (slice(0, 1), slice(2, 3)):
        of_rows = changed(maps, lambda each, rows=rows: each[rows])
        parts.append(center_loss(of_rows, Tubelets(*(field[rows] for field in targets)), backend=kind))
    divided = torch.stack([part.divisors for part in parts])
    for name, column in (("classes", 0), ("movement", 1), ("sizes", 2)):
        terms = torch.stack([getattr(part, name) for part in parts])
        together = (terms * divided[:, column]).sum() / divided[:, column].sum()
        torch.testing.assert_close(together, getattr(whole, name))
    torch.testing.assert_close(divided.sum(0), whole.divisors)


@EACH_KIND
def test_the_order_of_actors_means_nothing(kind: Backend) -> None:
    shape = Shape([12], 12, 2, 1, 10, 8, (5, 3, 3))
    targets = random_actors(shape)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    labels, boxes, counts, visible = targets
    shuffled = Tubelets(labels[:, order], boxes[:, order], counts, visible[:, order])
    maps = random_maps(shape)
    torch.testing.assert_close(results_of(maps, shuffled, kind), results_of(maps, targets, kind))


# torch.compile


def compiled_as_eager(kind: Backend, exact: bool = True, **compile_options: Any) -> None:
    torch.compiler.reset()
    compiled = torch.compile(center_loss, fullgraph=True, **compile_options)
    for shape in (STMA, MOC):
        targets = random_actors(shape).to(DEVICE)
        results = []
        for function in (compiled, center_loss):
            maps = leaves_of(random_maps(shape, dtype=torch.float32))
            found = function(maps, targets, weights=WEIGHTS, backend=kind)
            results.append([*(field.detach() for field in found), *slopes_of(found, maps, COTANGENTS)])
        error = 0 if exact else None
        torch.testing.assert_close(*results, rtol=error, atol=error)


@pytest.mark.parametrize("kind", [*KERNELS, pytest.param("reference", marks=pytest.mark.slow)])
def test_compiled_whole_it_gives_what_it_gives_eagerly(kind: Backend) -> None:
    compiled_as_eager(kind, backend="aot_eager")


@pytest.mark.slow
@NEEDS_COMPILER
@EACH_KIND
def test_compiled_by_inductor_it_gives_what_it_gives_eagerly(kind: Backend) -> None:
    """Inductor has its own order of adding up, where the operators are PyTorch's."""
    compiled_as_eager(kind, exact=kind != "reference")


# Errors


def wrong(**changes: Any) -> dict[str, Any]:
    """Arguments of two samples of three actors in four frames, on a grid of 5 x 6, with one of them changed."""
    options = {name: changes.pop(name) for name in list(changes) if name in OPTION_NAMES}
    maps = {
        "centers": torch.zeros(2, 1, 5, 6),
        "movement": torch.zeros(2, 4, 2, 5, 6),
        "sizes": torch.ones(2, 4, 4, 5, 6),
        "classes": torch.zeros(2, 7, 1, 2),
    }
    targets = {
        "labels": torch.zeros(2, 3, dtype=torch.int64),
        "boxes": torch.full((2, 3, 4, 4), 0.5),
        "counts": torch.tensor([3, 1]),
        "visible": torch.ones(2, 3, 4, dtype=torch.bool),
    }
    for name, value in changes.items():
        (maps if name in maps else targets)[name] = value
    return {"maps": CenterMaps(**maps), "targets": Tubelets(**targets), **options}


OPTION_NAMES = ("key", "radius", "movement_area", "size_area", "stride", "alpha", "beta", "check", "backend")

MAPS_MESSAGE = r"maps must be centers \(B, C, H, W\), movement \(B, K, 2, H, W\) and sizes \(B, K, 4, H, W\), got "
WRONG: list[tuple[dict[str, Any], str]] = [
    (wrong(centers=torch.zeros(2, 5, 6)), MAPS_MESSAGE + r"\(2, 5, 6\), \(2, 4, 2, 5, 6\) and \(2, 4, 4, 5, 6\)"),
    (wrong(centers=torch.zeros(2, 0, 5, 6)), MAPS_MESSAGE + r"\(2, 0, 5, 6\)"),
    (wrong(movement=torch.zeros(2, 8, 5, 6)), MAPS_MESSAGE + r".*\(2, 8, 5, 6\)"),
    (wrong(sizes=torch.zeros(2, 16, 5, 6)), MAPS_MESSAGE + r".*\(2, 16, 5, 6\)"),
    (
        wrong(movement=torch.zeros(2, 0, 2, 5, 6)),
        r"movement must be of one frame at least, got \(2, 0, 2, 5, 6\)",
    ),
    (
        wrong(movement=torch.zeros(2, 4, 3, 5, 6)),
        r"movement must be \(2, 4, 2, 5, 6\) to go with centers \(2, 1, 5, 6\), got \(2, 4, 3, 5, 6\)",
    ),
    (
        wrong(sizes=torch.zeros(2, 4, 4, 6, 5)),
        r"sizes must be \(2, 4, 4, 5, 6\) to go with centers \(2, 1, 5, 6\), got \(2, 4, 4, 6, 5\)",
    ),
    (wrong(classes=torch.zeros(1, 7, 1, 2)), r"classes must be \(2, A, h, w\), got \(1, 7, 1, 2\)"),
    (wrong(classes=torch.zeros(2, 7)), r"classes must be \(2, A, h, w\), got \(2, 7\)"),
    (wrong(classes=torch.zeros(2, 0, 1, 2)), r"classes must be \(2, A, h, w\), got \(2, 0, 1, 2\)"),
    (wrong(centers=torch.zeros(2, 1, 5, 6).int()), "centers must be floating point, got torch.int32"),
    (wrong(classes=torch.zeros(2, 7, 1, 2).long()), "classes must be floating point, got torch.int64"),
    (wrong(sizes=torch.zeros(2, 4, 4, 5, 6, device="meta")), "sizes is on meta, centers on cpu"),
    (wrong(labels=torch.zeros(2, 3)), "targets.labels must be int64, got torch.float32"),
    (wrong(labels=torch.zeros(2, 3, 1).long()), r"targets.labels must be \(2, 3\), got \(2, 3, 1\)"),
    (wrong(labels=torch.zeros(1, 3).long()), r"targets.labels must be \(2, 3\), got \(1, 3\)"),
    (wrong(boxes=torch.zeros(2, 3, 4)), r"targets.boxes must be \(2, 3, 4, 4\), got \(2, 3, 4\)"),
    (wrong(boxes=torch.zeros(2, 3, 5, 4)), r"targets.boxes must be \(2, 3, 4, 4\), got \(2, 3, 5, 4\)"),
    (wrong(boxes=torch.zeros(2, 3, 4, 4).long()), "targets.boxes must be floating point, got torch.int64"),
    (wrong(counts=torch.zeros(3).long()), r"targets.counts must be \(2,\), got \(3,\)"),
    (wrong(counts=torch.zeros(2)), "targets.counts must be int32 or int64, got torch.float32"),
    (wrong(visible=torch.zeros(2, 3, 4)), "targets.visible must be bool, got torch.float32"),
    (wrong(visible=torch.zeros(2, 3).bool()), r"targets.visible must be \(2, 3, 4\), got \(2, 3\)"),
    (wrong(boxes=torch.zeros(2, 3, 4, 4, device="meta")), "targets.boxes is on meta, the maps on cpu"),
    (wrong() | {"targets": [{"labels": [0]}]}, "targets must be Tubelets, got list"),
    (wrong(centers=torch.zeros(2, 3, 5, 6)), "centers must have 1 channel, or 7 as there are classes, got 3"),
    (wrong(key=4), "key must be 0 to 3, got 4"),
    (wrong(key=-1), "key must be 0 to 3, got -1"),
    (wrong(radius="cornernet"), r"radius must be .*published.*corrected.*, got 'cornernet'"),
    (wrong(movement_area="box"), r"movement_area must be .*ellipse.*circle.*center.*, got 'box'"),
    (wrong(size_area="box"), r"size_area must be .*ellipse.*circle.*center.*, got 'box'"),
    (wrong(stride=0), "stride must be at least 1, got 0"),
    (wrong(alpha=-0.5), r"alpha must be at least 0, got -0.5"),
    (wrong(alpha=math.nan), r"alpha must be at least 0, got nan"),
    (wrong(beta=-1), r"beta must be at least 0, got -1"),
    (wrong(check=True, counts=torch.tensor([3, 4])), r"targets.counts\[1\] must be 0 to 3, got 4"),
    (wrong(check=True, counts=torch.tensor([-1, 4])), r"targets.counts\[0\] must be 0 to 3, got -1"),
    (
        wrong(check=True, labels=torch.tensor([[0, 1, 7], [0, 9, 9]])),
        r"targets.labels\[0, 2\] must be 0 to 6, got 7",
    ),
    (
        wrong(check=True, classes=None, centers=torch.zeros(2, 3, 5, 6), labels=torch.tensor([[0, 1, 2], [3, 9, 9]])),
        r"targets.labels\[1, 0\] must be 0 to 2, got 3",
    ),
    (wrong(backend="cuda"), "backend must be .*, got 'cuda'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        center_loss(**arguments)


@EACH_KIND
@pytest.mark.parametrize("shape", [STMA, MOC, STMA._replace(classes=None)], ids=str)
def test_a_check_that_finds_nothing_changes_nothing(shape: Shape, kind: Backend) -> None:
    """Not even if the labels behind the counts are garbage."""
    maps = random_maps(shape)
    targets = random_actors(shape)
    same_bits(results_of(maps, targets, kind, check=True), results_of(maps, targets, kind))


@pytest.mark.parametrize("labels", [torch.zeros(2, 0).long(), torch.tensor([[-1], [2**63 - 1]])], ids=str)
def test_a_check_looks_at_no_labels_of_maps_without_classes(labels: Tensor) -> None:
    size = labels.shape[1]
    targets = {
        "labels": labels,
        "boxes": torch.full((2, size, 4, 4), 0.5),
        "counts": torch.full((2,), size),
        "visible": torch.ones(2, size, 4, dtype=torch.bool),
    }
    assert center_loss(**wrong(classes=None, check=True, **targets)).total.isfinite()
    with pytest.raises(ValueError, match=rf"targets.counts\[0\] must be 0 to {size}, got -1"):
        center_loss(**wrong(classes=None, check=True, **(targets | {"counts": torch.tensor([-1, 0])})))

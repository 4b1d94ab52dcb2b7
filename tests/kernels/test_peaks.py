"""The peaks of maps of centers, by kernels and reference, against loops over pixels in float64."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from actdet_kernels import CenterMaps, Peaks, center_peaks
from actdet_kernels.backend import Backend
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.device import DEVICE, HAS_CPP, HAS_TRITON, KERNELS, KINDS, NEEDS_TRITON, POISONED
from tests.kernels.peak_oracles import MapShape, check_peaks, converted, peaks_by_loops, random_maps

pytestmark = POISONED
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
EACH_KERNEL = pytest.mark.parametrize("kind", KERNELS)
# A seed cannot be shrunk, and every example takes the interpreter a tenth of a second.
drawn: Any = {
    "deadline": None,
    "derandomize": True,
    "max_examples": 20,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}
FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

# Shapes, and how many different logits there are. A Triton program has 1,024 lanes, and writes as many boxes at a time.
SHAPES = [
    (MapShape(2, 1, 18, 18, 3, (5, 18, 18)), 0),
    (MapShape(2, 1, 7, 12, 2), 0),
    (MapShape(1, 1, 1, 1, 1, (1, 1, 1)), 0),
    (MapShape(2, 1, 1, 9, 2, (3, 1, 2)), 0),
    (MapShape(2, 2, 9, 1, 2, (3, 4, 1)), 0),
    (MapShape(1, 1, 2, 2, 5), 0),
    (MapShape(2, 24, 9, 11, 2), 0),
    (MapShape(1, 1, 40, 33, 1, (2, 10, 8)), 0),
    (MapShape(2, 1, 10, 10, 2, (3, 3, 4)), 0),
    (MapShape(1, 2, 6, 5, 2, (4, 13, 20)), 0),
    (MapShape(2, 3, 8, 9, 2, (3, 4, 3)), 2),
    (MapShape(1, 3, 40, 33, 1), 3),
    (MapShape(2, 2, 6, 7, 1), 1),
]


def found(maps: CenterMaps, kind: Backend, **options: Any) -> Peaks:
    return Peaks(*(each.cpu() for each in center_peaks(converted(maps, DEVICE), backend=kind, **options)))


def check(maps: CenterMaps, kind: Backend, peaks: int = 10, moved: bool = True) -> Peaks:
    got = found(maps, kind, peaks=peaks, moved=moved)
    check_peaks(got, peaks_by_loops(maps, peaks, moved), maps)
    return got


def flat_maps(centers: Any, frames: int = 1, dtype: torch.dtype = FP32) -> CenterMaps:
    """Maps of one sample, in which nothing moves and all sides are 1."""
    logits = torch.as_tensor(centers, dtype=dtype)
    logits = logits[(None,) * (4 - logits.ndim)]
    grid = logits.shape[2:]
    return CenterMaps(
        logits, torch.zeros(1, frames, 2, *grid, dtype=dtype), torch.ones(1, frames, 4, *grid, dtype=dtype)
    )


@EACH_KIND
@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize(("shape", "values"), SHAPES, ids=str)
def test_peaks_are_those_of_the_loops(shape: MapShape, values: int, moved: bool, kind: Backend) -> None:
    maps = random_maps(shape, values=values, seed=1)
    got = check(maps, kind, moved=moved)
    assert got.classes.shape[2] == (0 if shape.classes is None else shape.classes[0])


@EACH_KIND
@pytest.mark.parametrize("peaks", [1, 2, 20, 99])
def test_any_number_of_peaks_may_be_asked_for(peaks: int, kind: Backend) -> None:
    """There are fewer peaks than 20, and fewer pixels than 99."""
    maps = random_maps(MapShape(2, 1, 9, 10, 3, (4, 3, 3)), seed=2)
    got = check(maps, kind, peaks=peaks)
    none = got.pixels < 0
    assert none.any() == (peaks >= 20)
    assert not any(each[none].any() for each in got[1:])


@EACH_KIND
@pytest.mark.parametrize(
    ("dtypes", "wide"),
    [
        ((FP16, FP16, FP16, FP16), FP32),
        ((BF16, BF16, BF16, BF16), FP32),
        ((FP32, FP32, FP32, FP32), FP32),
        ((FP16, BF16, FP32, BF16), FP32),
        ((FP32, FP16, BF16, FP64), FP64),
        ((BF16, FP64, FP32, FP16), FP64),
    ],
    ids=str,
)
def test_maps_may_have_any_dtypes(dtypes: tuple[torch.dtype, ...], wide: torch.dtype, kind: Backend) -> None:
    maps = random_maps(MapShape(2, 2, 8, 11, 2, (3, 4, 5)), seed=3)
    rounded = CenterMaps(*(cast(Tensor, each).to(dtype) for each, dtype in zip(maps, dtypes, strict=True)))
    assert check(rounded, kind).boxes.dtype == wide


# Which pixels are peaks


@EACH_KIND
def test_every_pixel_of_a_plateau_is_a_peak_and_the_first_comes_first(kind: Backend) -> None:
    got = check(flat_maps(torch.zeros(2, 3, 4)), kind, peaks=30)
    assert got.pixels[0].tolist() == [*range(12), *range(12), *[-1] * 6]
    assert got.channels[0].tolist() == [*[0] * 12, *[1] * 12, *[0] * 6]


@EACH_KIND
@pytest.mark.parametrize("dtype", [FP16, BF16, FP32, FP64])
def test_zeros_of_either_sign_are_equals(dtype: torch.dtype, kind: Backend) -> None:
    maps = flat_maps([[0.0, -1.0, -0.0, -1.0, 0.0, -0.0, -1.0, -0.0]], dtype=dtype)
    assert check(maps, kind).pixels[0].tolist() == [0, 2, 4, 5, 7, *[-1] * 5]


@EACH_KIND
def test_nothing_beyond_the_edge_is_a_neighbor(kind: Backend) -> None:
    """Neither the end of the row before, nor the other channel or sample, which lie beside it in memory."""
    logits = torch.full((2, 2, 5, 6), -math.inf)
    logits[:, :, ::4, ::5] = torch.tensor([[-8.0, -7.0], [-6.0, -5.0]])
    logits[:, :, 1, 5] = 2.0
    logits[:, :, 2, 0] = 1.0
    maps = CenterMaps(logits, *(each.repeat(2, 1, 1, 1, 1) for each in flat_maps(logits[0])[1:3]))
    got = check(maps, kind, peaks=12)
    assert got.pixels.tolist() == [[11, 11, 12, 12, 29, 29, 24, 24, 0, 0, -1, -1]] * 2


@EACH_KIND
def test_equals_in_one_lane_are_told_apart(kind: Backend) -> None:
    """Every 1,024th pixel, all of equal height, so that a Triton program has all of them in one lane."""
    logits = torch.full((3, 32, 64), -1.0)
    logits[:, 4::16, 7] = 0.5
    logits[1, 20, 40] = 0.5
    got = check(flat_maps(logits), kind, peaks=8)
    assert got.pixels[0].tolist() == [263, 1287, 263, 1287, 1320, 263, 1287, *got.pixels[0, 7:].tolist()]


@NEEDS_TRITON
@pytest.mark.parametrize("values", [0, 1])
def test_a_lane_may_have_more_logits_than_are_read_at_a_time(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a map of more than 1,024 times 1,024 pixels."""
    monkeypatch.setattr("actdet_kernels.triton.peaks.LANES", 16)
    check(random_maps(MapShape(1, 1, 20, 33, 2, (3, 5, 5)), values=values, seed=16, dtype=FP32), "triton", peaks=20)


@EACH_KIND
@pytest.mark.parametrize("dtype", [FP16, FP32, FP64])
def test_logits_that_are_not_numbers_are_no_peaks_and_hide_none(dtype: torch.dtype, kind: Backend) -> None:
    centers = random_maps(MapShape(3, 2, 9, 8, 2), seed=4).centers
    generator = torch.Generator().manual_seed(5)
    for value in (math.nan, -math.inf, math.inf):
        centers[torch.rand(centers.shape, generator=generator) < 0.15] = value
    centers[1] = math.nan
    centers[2, 0] = -math.inf
    centers[2, 1, 3, 3] = math.nan
    maps = random_maps(MapShape(3, 2, 9, 8, 2), seed=4)._replace(centers=centers)
    got = check(converted(maps, dtype), kind, peaks=9)
    assert (got.scores[0, :5] == 1).all()
    assert (got.pixels[1] == -1).all()


@EACH_KIND
def test_heights_of_any_size_keep_their_order(kind: Backend) -> None:
    """Among them those whose probabilities are all 0 or all 1, and the least numbers of float32."""
    heights = [3e38, 200.0, 199.0, 1e-3, 1e-38, 1e-45, 0.0, -1e-45, -1e-38, -1e-3, -199.0, -200.0, -3e38]
    order = torch.randperm(len(heights), generator=torch.Generator().manual_seed(6))
    logits = torch.full((1, 2 * len(heights)), math.nan)
    logits[0, ::2] = torch.tensor(heights)[order]
    got = check(flat_maps(logits), kind, peaks=len(heights))
    assert got.pixels[0].tolist() == (2 * order.argsort()).tolist()


@settings(**drawn)
@given(
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    channels=st.integers(1, 3),
    values=st.integers(1, 6),
    peaks=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
def test_what_is_found_is_a_local_maximum_and_nothing_better_is_left(
    height: int, width: int, channels: int, values: int, peaks: int, seed: int
) -> None:
    maps = random_maps(MapShape(1, channels, height, width, 1), values=values, seed=seed, dtype=FP32)
    logits = maps.centers.flatten()
    around = F.max_pool2d(maps.centers, 3, 1, 1).flatten()
    maxima = set((logits == around).nonzero().flatten().tolist())
    for kind in KINDS:
        got = found(maps, kind, peaks=peaks)
        exists = got.pixels[0] >= 0
        chosen = (got.channels[0] * height * width + got.pixels[0])[exists].tolist()
        assert len(set(chosen)) == len(chosen) == min(peaks, len(maxima))
        assert set(chosen) <= maxima

        # In the order of the results, and before all others.
        keys = [(-logits[number].item(), number) for number in chosen]
        assert keys == sorted(keys)
        assert all((-logits[other].item(), other) > keys[-1] for other in maxima - set(chosen))


# Where the boxes are


@EACH_KIND
@pytest.mark.parametrize("dtype", [FP16, FP32, FP64])
@pytest.mark.parametrize("moved", [True, False])
def test_movement_may_be_anything(dtype: torch.dtype, moved: bool, kind: Backend) -> None:
    maps = random_maps(MapShape(2, 1, 9, 13, 12), seed=7)
    values = [math.nan, math.inf, -math.inf, 1e30, -1e30, 300.0, -300.0, 0.5, -0.5, 0.25, 12.5, -12.5]
    for frame, value in enumerate(values):
        maps.movement[0, frame, 0] = value
        maps.movement[1, frame, 1] = value
    check(converted(maps, dtype), kind, peaks=7, moved=moved)


@EACH_KIND
def test_sides_that_are_not_finite_spoil_their_own_box_alone(kind: Backend) -> None:
    maps = random_maps(MapShape(1, 1, 6, 7, 4), seed=8, dtype=FP32)
    maps.sizes[0, 1, 0] = math.nan
    maps.sizes[0, 2, 3] = math.inf
    got = check(maps, kind, peaks=3)
    assert got.boxes[0, :, [0, 3]].isfinite().all()


@EACH_KIND
@pytest.mark.parametrize("coarse", [1, 4, 7])
def test_maps_of_known_actors_give_their_boxes(coarse: int, kind: Backend) -> None:
    """Of up to six actors in each sample, who leave the picture, too; each says nothing but in its own pixels."""
    height, width, frames, classes = 17, 23, 5, 6
    rng = np.random.default_rng(9)
    actors = [actors_apart(rng, count, frames, height, width) for count in (6, 1, 0, 4)]
    logits = torch.full((4, 1, height, width), -20.0, dtype=FP64)
    maps = CenterMaps(
        logits - torch.rand(logits.shape, generator=torch.Generator().manual_seed(10)),
        torch.full((4, frames, 2, height, width), math.nan, dtype=FP64),
        torch.full((4, frames, 4, height, width), math.nan, dtype=FP64),
        torch.zeros(4, classes, -(-height // coarse), -(-width // coarse), dtype=FP64),
    )
    for sample, boxes in enumerate(actors):
        for number, box in enumerate(boxes):
            draw(maps, sample, box, height=float(number) + 1)

    got = found(maps, kind, peaks=8)
    for sample, boxes in enumerate(actors):
        # The highest is the one that was drawn last.
        wanted = torch.from_numpy(boxes[::-1].copy())
        torch.testing.assert_close(got.boxes[sample, : len(boxes)], wanted, rtol=1e-12, atol=1e-12)
        heights = torch.arange(len(boxes), 0, -1, dtype=FP64)
        torch.testing.assert_close(got.scores[sample, : len(boxes)], heights.sigmoid())
        assert (got.scores[sample, len(boxes) :] < 1e-8).all()


def pixel_of(box: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """The pixel (x, y) in which the center of a box is, clamped to the grid."""
    x, y = (math.floor(place) for place in box[:2] * (width, height))
    return min(max(x, 0), width - 1), min(max(y, 0), height - 1)


def actors_apart(rng: np.random.Generator, count: int, frames: int, height: int, width: int) -> np.ndarray:
    """Boxes (count, frames, 4), whose centers are in other pixels in each frame, and far apart in the key frame."""
    actors: list[np.ndarray] = []
    while len(actors) < count:
        center = rng.uniform(0.1, 0.9, 2) + rng.uniform(-0.05, 0.05, (frames, 2)).cumsum(0)
        center[frames // 2] = center[frames // 2].clip(0.01, 0.99)
        box = np.concatenate([center, rng.uniform(0.05, 0.6, (frames, 2))], axis=1)
        for other in actors:
            pixels = [[pixel_of(each[j], height, width) for each in (box, other)] for j in range(frames)]
            distances = [max(abs(a[0] - b[0]), abs(a[1] - b[1])) for a, b in pixels]
            if min(distances) == 0 or distances[frames // 2] < 2:
                break
        else:
            actors.append(box)
    return np.stack(actors) if actors else np.zeros((0, frames, 4))


def draw(maps: CenterMaps, sample: int, box: np.ndarray, height: float) -> None:
    """Write an actor's box (K, 4) into the maps of a sample, with a peak of this height."""
    grid = maps.centers.shape[2:]
    x, y = pixel_of(box[len(box) // 2], *grid)
    maps.centers[sample, 0, y, x] = height
    for frame, each in enumerate(box):
        center = each[:2] * (grid[1], grid[0])
        half = each[2:] / 2 * (grid[1], grid[0])
        maps.movement[sample, frame, :, y, x] = torch.from_numpy(center - (x + 0.5, y + 0.5))
        u, v = pixel_of(each, *grid)
        middle = np.array([u + 0.5, v + 0.5])
        sides = np.concatenate([middle - (center - half), center + half - middle])
        maps.sizes[sample, frame, :, v, u] = torch.from_numpy(sides)


# Memory


@EACH_KERNEL
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_may_lie_in_memory_in_any_way(channels: int, kind: Backend) -> None:
    """Pixel by pixel, as networks in channels_last give them, and with rows that have other distances than pixels."""
    maps = random_maps(MapShape(2, channels, 9, 10, 3, (4, 5, 6)), seed=11, dtype=FP32)
    wanted = peaks_by_loops(maps, 10, True)
    by_pixel = CenterMaps(*(last_first(cast(Tensor, each)) for each in maps))
    strange = CenterMaps(*(cast(Tensor, each).transpose(-1, -2).contiguous().transpose(-1, -2) for each in maps))
    apart = CenterMaps(*(F.pad(cast(Tensor, each), (1, 2, 1, 1), value=99)[..., 1:-1, 1:-2] for each in maps))
    for other in (by_pixel, strange, apart):
        assert not other.movement.is_contiguous()
        check_peaks(found(other, kind), wanted, other)


def last_first(values: Tensor) -> Tensor:
    """The same map with the channels of a pixel side by side."""
    return values.movedim((-2, -1), (1, 2)).contiguous().movedim((1, 2), (-2, -1))


def test_maps_pixel_by_pixel_are_not_copied() -> None:
    from actdet_kernels.peaks import flat_map

    maps = random_maps(MapShape(2, 3, 9, 10, 3, (4, 5, 6)), seed=11)
    for each in maps:
        for values in (cast(Tensor, each), last_first(cast(Tensor, each))):
            flat = flat_map(values)
            assert flat.data_ptr() == values.data_ptr()
            assert torch.equal(flat, values.reshape(2, -1, values.shape[-2] * values.shape[-1]))


@EACH_KIND
def test_a_batch_may_be_empty(kind: Backend) -> None:
    got = found(random_maps(MapShape(0, 2, 4, 5, 3, (6, 2, 2))), kind, peaks=7)
    assert [tuple(each.shape) for each in got] == [(0, 7), (0, 7), (0, 7), (0, 7, 3, 4), (0, 7, 6)]


@EACH_KERNEL
def test_results_past_a_block_are_written(kind: Backend) -> None:
    """More boxes, and more class logits, than a Triton program writes at a time."""
    maps = random_maps(MapShape(1, 2, 30, 31, 9, (11, 4, 4)), seed=12, dtype=FP32)
    check(maps, kind, peaks=130)


@pytest.mark.skipif(not HAS_CPP, reason="the C++ kernels were not built")
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_of_cpu_kernels_change_nothing(threads: int) -> None:
    maps = random_maps(MapShape(9, 2, 70, 71, 2, (3, 9, 9)), values=9, seed=13, dtype=FP32)
    before = torch.get_num_threads()
    wanted = found(maps, "cpu")
    torch.set_num_threads(threads)
    try:
        for mine, true in zip(found(maps, "cpu"), wanted, strict=True):
            assert torch.equal(mine, true)
    finally:
        torch.set_num_threads(before)


# As PyTorch sees it


@EACH_KIND
def test_peaks_carry_no_graph(kind: Backend) -> None:
    maps = random_maps(MapShape(1, 1, 5, 6, 2, (3, 2, 2)), seed=14)
    leaves = CenterMaps(*(cast(Tensor, each).to(DEVICE).requires_grad_() for each in maps))
    assert not any(each.requires_grad for each in center_peaks(leaves, backend=kind))


@EACH_KERNEL
def test_compiled_whole_it_gives_what_it_gives_eagerly(kind: Backend) -> None:
    torch.compiler.reset()
    compiled = torch.compile(center_peaks, fullgraph=True, backend="aot_eager")
    for shape in (MapShape(2, 1, 6, 7, 2, (3, 3, 3)), MapShape(2, 1, 6, 7, 2)):
        maps = converted(random_maps(shape, seed=15, dtype=FP32), DEVICE)
        for mine, true in zip(compiled(maps, peaks=4, backend=kind), found(maps, kind, peaks=4), strict=True):
            assert torch.equal(mine.cpu(), true)


def wrong(**changes: Any) -> dict[str, Any]:
    given = {
        "centers": torch.zeros(2, 1, 4, 5),
        "movement": torch.zeros(2, 3, 2, 4, 5),
        "sizes": torch.zeros(2, 3, 4, 4, 5),
        "classes": torch.zeros(2, 6, 1, 2),
        "peaks": 10,
    }
    return given | changes


WRONG: list[tuple[dict[str, Any], str]] = [
    (wrong(peaks=0), "peaks must be at least 1, got 0"),
    (wrong(centers=torch.zeros(2, 4, 5)), r"maps must be centers \(B, C, H, W\), movement \(B, K, 2, H, W\) and"),
    (wrong(centers=torch.zeros(2, 0, 4, 5)), r"maps must be centers .*, got \(2, 0, 4, 5\), \(2, 3, 2, 4, 5\) and"),
    (wrong(movement=torch.zeros(2, 0, 2, 4, 5)), r"movement must be of one frame at least, got \(2, 0, 2, 4, 5\)"),
    (
        wrong(movement=torch.zeros(2, 3, 2, 5, 4)),
        r"movement must be \(2, 3, 2, 4, 5\) to go with centers \(2, 1, 4, 5\), got \(2, 3, 2, 5, 4\)",
    ),
    (wrong(sizes=torch.zeros(2, 2, 4, 4, 5)), r"sizes must be \(2, 3, 4, 4, 5\) to go with centers .*, got \(2, 2, 4"),
    (wrong(classes=torch.zeros(1, 6, 1, 2)), r"classes must be \(2, A, h, w\), got \(1, 6, 1, 2\)"),
    (wrong(classes=torch.zeros(2, 6, 1, 0)), r"classes must be \(2, A, h, w\), got \(2, 6, 1, 0\)"),
    (wrong(sizes=torch.zeros(2, 3, 4, 4, 5).int()), "sizes must be floating point, got torch.int32"),
    (wrong(classes=torch.zeros(2, 6, 1, 2, device="meta")), "classes is on meta, centers on cpu"),
    (wrong(backend="cuda"), "backend must be 'auto', 'triton', 'cpu' or 'reference', got 'cuda'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    maps = CenterMaps(*(arguments.pop(name) for name in CenterMaps._fields))
    with pytest.raises(ValueError, match=message):
        center_peaks(maps, **arguments)


@pytest.mark.skipif(not HAS_TRITON, reason="there is no Triton for this platform")
@pytest.mark.parametrize(
    ("centers", "classes", "peaks", "message"),
    [
        ((2**18 + 1, 64, 64), (3, 9, 9), 1, "a sample has 1073745920 logits of centers, more than 1073741824"),
        ((1, 64, 64), (3, 9, 9), 2**28, "268435456 peaks have 2147483648 numbers, more than 1073741824"),
        ((1, 64, 64), (2**11, 9, 9), 2**20, "1048576 peaks have 2147483648 numbers, more than 1073741824"),
        ((1, 1, 2**16), (3, 1, 2**15), 1, "grids of 1 x 65536 and 1 x 32768 are too large to be compared in 32 bits"),
    ],
)
def test_what_triton_cannot_count_is_left_to_others(
    centers: tuple[int, ...], classes: tuple[int, ...], peaks: int, message: str
) -> None:
    grid = centers[1:]
    maps = CenterMaps(
        *(torch.empty(1, *shape, device="meta") for shape in (centers, (2, 2, *grid), (2, 4, *grid), classes))
    )
    with pytest.raises(RuntimeError, match=message):
        center_peaks(maps, peaks=peaks, backend="triton")

"""Clips out of a pool of frames, by kernels and reference, against loops in float64, grid_sample and torchvision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as V
from actdet_kernels import frame_levels, gather_clips
from torch import Tensor

from tests.kernels import device
from tests.kernels.device import DEVICE, POISONED
from tests.kernels.oracles import changed_clips, clip_error, random_clips

pytestmark = POISONED
# Frames on a GPU are not copied for the C++ code.
KINDS: Any = [kind for kind in device.KINDS if kind != "cpu" or DEVICE.type == "cpu"]
LOW, HIGH = (torch.tensor([(value - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)])
             for value in (0.0, 1.0))  # fmt: skip

# frames of the pool, height, width, clips, frames of a clip: around the blocks of 512 pixels and 32 frames
CASES = [
    (6, 13, 21, 3, 5),
    (4, 16, 32, 2, 3),
    (3, 27, 19, 1, 2),
    (9, 3, 4, 2, 33),
    (5, 1, 40, 2, 2),
    (5, 40, 1, 2, 2),
    (1, 1, 1, 1, 1),
    (1, 5, 4, 2, 4),
    (2, 5, 4, 0, 3),
    (2, 5, 4, 2, 0),
]


def surrounded(value: Tensor) -> Tensor:
    """The same in the middle of what would show in the result: NaN, or bytes and indices unlike those around."""
    beyond = math.nan if value.is_floating_point() else 255 if value.dtype == torch.uint8 else 0
    room = torch.full((value.numel() + 128,), beyond, dtype=value.dtype, device=DEVICE)
    return room[64 : 64 + value.numel()].view(value.shape).copy_(value)


def gather(pool: Tensor, indices: Tensor, crops: Tensor | None, color: Tensor | None, **options: Any) -> Tensor:
    """`gather_clips` of tensors each within garbage, on the host."""
    crops, color = (None if value is None else surrounded(value) for value in (crops, color))
    levels = surrounded(frame_levels(pool))
    return gather_clips(surrounded(pool), surrounded(indices), crops, color, levels, **options).cpu()


def check(got: Tensor, wanted: np.ndarray, error: float) -> None:
    torch.testing.assert_close(got.double(), torch.from_numpy(wanted), rtol=0, atol=error, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", ["", "crops", "color", "crops and color"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_clips_are_the_loops(case: tuple[int, int, int, int, int], changes: str, kind: Any) -> None:
    pool, indices, crops, color = random_clips(case[:3], *case[3:], seed=1)
    pool[:, 0, 0], pool[:, -1, -1] = 0, 0  # unlike what lies around
    crops = crops if "crops" in changes else None
    color = color if "color" in changes else None
    wanted = changed_clips(pool, indices, crops, color)
    error = clip_error(pool, crops, color)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        got = gather(pool, indices, crops, color, dtype=dtype, backend=kind)
        assert (got.dtype, got.shape) == (dtype, (*case[3:4], 3, *case[4:], *case[1:3]))
        assert got.permute(0, 2, 3, 4, 1).is_contiguous()
        assert got.is_contiguous(memory_format=torch.channels_last_3d) or got.numel() == 0
        rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps * np.abs(wanted).max(initial=0)
        check(got, wanted, error + rounding)
    if kind == "triton":
        return
    exact = gather(pool, indices, crops, color, dtype=torch.float64, backend=kind)
    assert (exact.dtype, exact.stride()) == (torch.float64, got.stride())
    # The means of the frames, which color needs, are float32.
    check(exact, wanted, 1e-12 if color is None else clip_error(pool, None, color))


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_the_rounded_float32(kind: Any) -> None:
    """To the nearest, except in the interpreter, which truncates to bfloat16."""
    pool, indices, *changes = random_clips((5, 12, 17), 2, 3, seed=2)
    wide = gather(pool, indices, *changes, backend=kind)
    for dtype in (torch.float16, torch.bfloat16):
        got = gather(pool, indices, *changes, dtype=dtype, backend=kind)
        if kind == "triton" and dtype == torch.bfloat16 and DEVICE.type == "cpu":
            assert ((got.float() - wide).abs() <= torch.finfo(dtype).eps * wide.abs()).all()
        else:
            assert torch.equal(got, wide.to(dtype))


# Crops


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_of_the_whole_picture_changes_nothing_but_by_rounding(kind: Any) -> None:
    pool, indices, _, color = random_clips((4, 23, 19), 2, 3, seed=3)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2, 4)
    for factors in (None, color):
        one, other = (gather(pool, indices, crops, factors, backend=kind) for crops in (whole, None))
        assert (one - other).abs().max() <= clip_error(pool, whole, factors)


@pytest.mark.parametrize("kind", KINDS)
def test_without_changes_every_byte_is_its_value(kind: Any) -> None:
    """All 256 of them, in every channel: within two units of float32 at the size of mean / std, about 2."""
    pool = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    got = gather(pool, torch.tensor([[0]]), None, None, backend=kind)
    pixels = torch.arange(256, dtype=torch.float64).view(16, 16) / 255
    assert (got[0, :, 0] - (LOW + pixels[..., None] * (HIGH - LOW).double()).permute(2, 0, 1)).abs().max() < 1e-6
    assert torch.equal(got[0, :, 0].double().diff(dim=-1) > 0, torch.ones(3, 16, 15, dtype=torch.bool))


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_extent_mirrors_as_torchvision_does(kind: Any) -> None:
    pool, indices, *_ = random_clips((4, 11, 26), 2, 3, seed=4)
    plain = gather(pool, indices, None, None, backend=kind)
    for crop, flip in (([1.0, 0.0, -1.0, 1.0], V.horizontal_flip), ([0.0, 1.0, 1.0, -1.0], V.vertical_flip)):
        crops = torch.tensor([crop, crop])
        got = gather(pool, indices, crops, None, backend=kind)
        assert (got - flip(plain)).abs().max() <= clip_error(pool, crops, None)
        assert (got - plain).abs().max() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_those_of_grid_sample(kind: Any) -> None:
    """Within the picture, beyond its borders, of no size, far outside, hugely larger and mirrored both ways."""
    crops = torch.tensor([
        [0.2, 0.1, 0.6, 0.7], [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [-0.5, -0.25, 2.0, 1.5], [0.3, 0.6, 0.0, 0.0],
        [0.5, 0.5, 1e-6, 1e-6], [7.0, -9.0, 1.0, 1.0], [-500.0, -500.0, 1000.0, 1000.0], [0.9, 0.8, -0.7, -0.6],
    ])  # fmt: skip
    pool, *_ = random_clips((9, 14, 23), 1, 1, seed=5)
    indices = torch.arange(9)[:, None]
    got = gather(pool, indices, crops, None, backend=kind)
    matrix = torch.zeros(9, 2, 3, dtype=torch.float64)
    matrix[:, 0, 0], matrix[:, 1, 1] = crops[:, 2], crops[:, 3]
    matrix[:, :, 2] = 2 * crops[:, :2].double() + crops[:, 2:].double() - 1
    grid = F.affine_grid(matrix, [9, 3, 14, 23], align_corners=False)
    pixels = pool.permute(0, 3, 1, 2).double() / 255
    wanted = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    wanted = (wanted * (HIGH - LOW)[:, None, None] + LOW[:, None, None]).numpy()[:, :, None]
    scale = crops.abs().amax(1).clamp(min=1)  # a coordinate has its roundings at this scale
    for clip in range(9):
        check(got[clip], wanted[clip], clip_error(pool, crops, None) * scale[clip].item())
    assert (got[4] == got[4, :, :, :1, :1]).all()  # one place, wherever the pixel is
    corner = (pool[6, 0, -1].double() / 255 * (HIGH - LOW) + LOW).float()
    assert (got[6, :, 0] - corner[:, None, None]).abs().max() < 1e-6


# Color


@pytest.mark.parametrize("kind", KINDS)
def test_brightness_is_torchvisions(kind: Any) -> None:
    pool, indices, *_ = random_clips((4, 11, 13), 3, 2, seed=6)
    factors = torch.tensor([[0.0, 1.0, 1.0], [0.7, 1.0, 1.0], [1.9, 1.0, 1.0]])
    got = gather(pool, indices, None, factors, backend=kind)
    for clip, factor in enumerate(factors[:, 0].tolist()):
        pixels = V.adjust_brightness(pool[indices[clip]].permute(0, 3, 1, 2).double() / 255, factor)
        wanted = V.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).transpose(0, 1)
        check(got[clip], wanted.numpy(), clip_error(pool, None, factors))
    assert torch.equal(got[0].amin((1, 2, 3)), got[0].amax((1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_colors_are_the_loops_and_clamped(kind: Any) -> None:
    factors = torch.tensor([
        [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1000.0, 1.0, 1.0], [1.0, 1000.0, 1.0], [1.0, 1.0, 1000.0],
        [-1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, -1.0],
    ])  # fmt: skip
    pool, *_ = random_clips((18, 7, 9), 1, 1, seed=7)
    indices = torch.arange(18).view(9, 2)
    got = gather(pool, indices, None, factors, backend=kind)
    wanted = changed_clips(pool, indices, None, factors)
    for clip in range(9):
        check(got[clip], wanted[clip], clip_error(pool, None, factors[clip : clip + 1]))
    rounding = 2 * torch.finfo(torch.float32).eps
    lowest, highest = LOW[:, None, None, None].float(), HIGH[:, None, None, None].float()
    assert (got >= lowest - 3 * rounding).all()
    assert (got <= highest + 3 * rounding).all()
    assert (got[6] - lowest).abs().max() < 1e-6  # nothing is darker than black
    flat = got[0] * torch.tensor([0.229, 0.224, 0.225])[:, None, None, None]
    flat += torch.tensor([0.485, 0.456, 0.406])[:, None, None, None]
    assert (flat - frame_levels(pool)[:2].mean()).abs().max() < 1e-6


def test_the_mean_is_that_of_the_clip_and_not_of_its_crop() -> None:
    """A black and a white half: a contrast of 0 gives the gray between, whichever half is seen."""
    pool = torch.zeros(2, 4, 6, 3, dtype=torch.uint8)
    pool[:, :, :3] = 255
    pool[1] = 255
    crops, factors = torch.tensor([[0.0, 0.0, 0.3, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    for kind in KINDS:
        got = gather(pool, torch.tensor([[0, 1, 0, 0]]), crops, factors, backend=kind)
        assert (got - (LOW + 0.625 * (HIGH - LOW))[:, None, None, None]).abs().max() < 1e-6


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "triton"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (64, 9, 11), (2, 1700, 1700)], ids=str)
def test_frame_levels_are_the_exact_means(shape: tuple[int, int, int], kind: Any) -> None:
    """The last has sums beyond int32, and more bytes than are added up at a time."""
    pool = torch.randint(250, 256, (*shape, 3), generator=torch.Generator().manual_seed(8), dtype=torch.uint8)
    got = frame_levels(pool.to(DEVICE), backend=kind)
    sums = pool.numpy().reshape(shape[0], -1).sum(1, dtype=np.uint64)
    assert got.dtype == torch.float32
    assert torch.equal(got.cpu(), torch.from_numpy((sums / (255 * pool[0].numel())).astype(np.float32)))


# What is not there, and what is not finite


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [False, True])
def test_an_index_outside_the_pool_makes_its_frame_nan_and_no_other(changed: bool, kind: Any) -> None:
    pool, _, crops, color = random_clips((4, 6, 25), 4, 5, seed=9)
    indices = torch.tensor([[0, -1, 3, 4, 2], [-(2**63), 1, 2**63 - 1, 2**40, 1], [4, -1, 9, -9, 5], [3, 3, 3, 3, 3]])
    changes = (crops, color) if changed else (None, None)
    got = gather(pool, indices, *changes, backend=kind)
    unknown = (indices < 0) | (indices > 3)
    assert torch.equal(got.isnan(), unknown[:, None, :, None, None].expand_as(got))
    check(got, changed_clips(pool, indices, *changes), clip_error(pool, *changes))  # and the mean is of the others


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_its_clip_nan_and_no_other(bad: float, kind: Any) -> None:
    pool, _, crops, color = random_clips((16, 3, 5), 8, 2, seed=10)
    indices = torch.arange(16).view(8, 2)
    frame_means = frame_levels(pool)
    clean = gather_clips(pool, indices, crops, color, frame_means)
    for column in range(4):
        crops[column, column] = bad
    for column in range(3):
        color[4 + column, column] = bad
    frame_means[14] = bad
    values = (pool, indices, crops, color, frame_means)
    got = gather_clips(*(value.to(DEVICE) for value in values), backend=kind).cpu()
    assert got.isnan().all()
    crops[0, 0], color[4, 0], frame_means[14] = 0.5, 0.5, 0.5
    got = gather_clips(*(value.to(DEVICE) for value in values), backend=kind).cpu()
    assert got.isnan().flatten(1).all(1).tolist() == [False, True, True, True, False, True, True, False]
    assert not got[[0, 4, 7]].isnan().any()
    assert not clean.isnan().any()


# Memory


def test_a_pool_may_have_more_than_two_gigabytes() -> None:
    """Memory that nobody touches, except for the first and the last frames."""
    count = 2**31 // (128 * 128 * 3) + 3
    pool = torch.empty(count, 128, 128, 3, dtype=torch.uint8, device=DEVICE)
    some, *_ = random_clips((3, 128, 128), 1, 1, seed=11)
    pool[0], pool[-2:] = some[0], some[1:]
    indices = torch.tensor([[0, count - 2, count - 1, count]])
    wanted = changed_clips(some, torch.tensor([[0, 1, 2, 3]]))
    for kind in KINDS:
        got = gather_clips(pool, indices.to(DEVICE), backend=kind)
        check(got.cpu(), wanted, clip_error(some, None, None))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="needs the interpreter")
def test_the_triton_kernel_reads_nothing_outside_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it would count for nothing: whatever crops and indices hold."""
    from triton.runtime.interpreter import InterpreterBuilder

    load = InterpreterBuilder.create_masked_load
    read: list[np.ndarray] = []

    def recorded(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        if pointers.get_element_ty().is_uint8():
            read.append(pointers.data[mask.data])
        return load(self, pointers, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", recorded)
    pool, _, crops, color = random_clips((2, 5, 7), 8, 4, seed=15)
    crops[:7, 0] = torch.tensor([math.nan, math.inf, -math.inf, 1e38, -1e38, 5.0, -5.0])
    crops[:6, 3] = torch.tensor([1e38, -math.inf, math.nan, 1.0, -1e38, 0.0])
    indices = torch.tensor([[1, 1, 1, 1]] * 7 + [[2, -1, 2**63 - 1, -(2**63)]])
    for changes in ((crops, color), (None, None)):
        gather_clips(pool, indices, *changes, frame_levels(pool), backend="triton")
        addresses = np.concatenate(read) - pool.data_ptr()
        assert addresses.min() >= 0
        assert addresses.max() == pool.numel() - 1  # what is there is read
        read.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_any_strides_of_what_is_not_the_pool(kind: Any) -> None:
    pool, indices, crops, color = random_clips((5, 4, 6), 4, 6, seed=12)
    frame_means = frame_levels(pool).repeat_interleave(2)[::2]
    strided = (pool, indices[::2, ::3], crops[::2], color.mT.contiguous().mT[::2], frame_means)
    got = gather_clips(*(value.to(DEVICE) for value in strided), backend=kind)
    wanted = gather_clips(*(value.contiguous().to(DEVICE) for value in strided), backend=kind)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_clips_carry_no_graph(kind: Any) -> None:
    pool, indices, crops, color = random_clips((5, 4, 6), 2, 3, seed=13)
    values = (pool, indices, crops.requires_grad_(), color.requires_grad_(), frame_levels(pool))
    assert not gather_clips(*(value.to(DEVICE) for value in values), backend=kind).requires_grad


def test_frame_means_count_for_nothing_if_color_stays() -> None:
    pool, indices, crops, _ = random_clips((5, 4, 6), 2, 3, seed=14)
    frame_means = torch.full((5,), math.nan)
    for kind in KINDS:
        values = (value.to(DEVICE) for value in (pool, indices, crops))
        got = gather_clips(*values, frame_means=frame_means.to(DEVICE), backend=kind)
        assert torch.equal(got.cpu(), gather(pool, indices, crops, None, backend=kind))


# Errors

POOL, INDICES, CROPS, COLOR, FRAME_MEANS = torch.zeros(4, 3, 5, 3).byte(), torch.zeros(2, 6).long(), *map(
    torch.ones, ((2, 4), (2, 3), (4,))
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": POOL[0]}, r"frames must be \(F, H, W, 3\) and not empty, got \(3, 5, 3\)"),
        ({"frames": POOL[..., :2]}, r"frames must be \(F, H, W, 3\) and not empty, got \(4, 3, 5, 2\)"),
        ({"frames": POOL[:0]}, r"frames must be \(F, H, W, 3\) and not empty, got \(0, 3, 5, 3\)"),
        ({"frames": POOL.float()}, "frames must be uint8 and contiguous, got torch.float32 with strides"),
        ({"frames": POOL[:, :, ::2]}, r"frames must be uint8 and contiguous, got torch.uint8 with strides \(45, 15, 6"),
        ({"frames": POOL.to("meta")}, "indices must be torch.int64 on meta, got torch.int64 on cpu"),
        ({"indices": INDICES[0]}, r"indices must be \(B, T\), got \(6,\)"),
        ({"indices": INDICES.int()}, "indices must be torch.int64 on cpu, got torch.int32 on cpu"),
        ({"indices": INDICES.to("meta")}, "indices must be torch.int64 on cpu, got torch.int64 on meta"),
        ({"crops": CROPS[:1]}, r"crops must be \(2, 4\), got \(1, 4\)"),
        ({"crops": CROPS[:, :3]}, r"crops must be \(2, 4\), got \(2, 3\)"),
        ({"crops": CROPS.double()}, "crops must be torch.float32 on cpu, got torch.float64 on cpu"),
        ({"crops": CROPS.to("meta")}, "crops must be torch.float32 on cpu, got torch.float32 on meta"),
        ({"color": COLOR[0]}, r"color must be \(2, 3\), got \(3,\)"),
        ({"color": COLOR.half()}, "color must be torch.float32 on cpu, got torch.float16 on cpu"),
        ({"frame_means": FRAME_MEANS[1:]}, r"frame_means must be \(4,\), got \(3,\)"),
        ({"frame_means": FRAME_MEANS.double()}, "frame_means must be torch.float32 on cpu, got torch.float64"),
        ({"frame_means": None}, r"color needs frame_means, the result of frame_levels\(frames\)"),
        ({"dtype": torch.int64}, "dtype must be float16, bfloat16, float32 or float64, got torch.int64"),
    ],
)
def test_what_disagrees_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: Any = {"frames": POOL, "indices": INDICES, "crops": CROPS, "color": COLOR, "frame_means": FRAME_MEANS}
    gather_clips(**arguments)
    with pytest.raises(ValueError, match=f"^{message}"):
        gather_clips(**arguments | changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 2**23 + 1), (2**24 + 4, 1), (2, 2**25)])
def test_pictures_too_wide_for_places_in_float32_are_refused_where_they_are_stretched(
    shape: tuple[int, int], kind: Any
) -> None:
    frames = torch.empty(1, *shape, 3, dtype=torch.uint8)  # memory that nobody touches
    message = f"^with crops, frames may have at most 8388608 pixels a side, got {shape[0]} x {shape[1]}$"
    with pytest.raises(ValueError, match=message):
        gather_clips(frames, torch.tensor([[0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), backend=kind)


def test_the_widest_picture_and_wider_ones_that_stay_as_they_are_are_taken() -> None:
    widest, wider = (torch.empty(1, 1, size, 3, dtype=torch.uint8, device="meta") for size in (2**23, 2**24 + 4))
    indices, crop = torch.zeros(1, 1, dtype=torch.int64, device="meta"), torch.zeros(1, 4, device="meta")
    assert gather_clips(widest, indices, crop).shape == (1, 3, 1, 1, 2**23)
    assert gather_clips(wider, indices).shape == (1, 3, 1, 1, 2**24 + 4)


@pytest.mark.parametrize("frames", [POOL[0], POOL[:0], POOL.float(), POOL[:, ::2]])
def test_levels_of_other_frames_are_refused(frames: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^frames must be "):
        frame_levels(frames)

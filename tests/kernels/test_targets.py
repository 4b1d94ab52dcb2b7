"""Targets are padded as documented and refused where they cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from actdet_kernels import Targets, Tubelets, pad_targets


def sample(count: int, first: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    labels = torch.arange(first, first + count)
    return {"labels": labels, "boxes": torch.arange(1, 4 * count + 1, dtype=dtype).reshape(count, 4) / 100 + first}


@pytest.mark.parametrize(("max_targets", "size"), [(None, 3), (3, 3), (7, 7)])
def test_samples_fill_their_rows_from_the_front(max_targets: int | None, size: int) -> None:
    samples = [sample(1, 5), sample(0), sample(3, 2)]
    targets = pad_targets(samples, max_targets=max_targets)
    assert (targets.labels.shape, targets.boxes.shape, targets.counts.shape) == ((3, size), (3, size, 4), (3,))
    assert (targets.labels.dtype, targets.boxes.dtype, targets.counts.dtype) == (
        torch.int64,
        torch.float32,
        torch.int32,
    )
    assert targets.counts.tolist() == [1, 0, 3]
    for row, wanted in enumerate(samples):
        count = len(wanted["labels"])
        assert torch.equal(targets.labels[row, :count], wanted["labels"])
        assert torch.equal(targets.boxes[row, :count], wanted["boxes"])
    assert targets.valid.tolist() == [[column < count for column in range(size)] for count in (1, 0, 3)]


@pytest.mark.parametrize("samples", [[], [sample(0)], [sample(0), sample(0)]])
def test_without_any_target_one_row_is_left(samples: list[dict[str, torch.Tensor]]) -> None:
    targets = pad_targets(samples)
    batch = len(samples)
    assert (targets.labels.shape, targets.boxes.shape) == ((batch, 1), (batch, 1, 4))
    assert targets.counts.tolist() == [0] * batch
    assert not targets.valid.any()
    assert pad_targets(samples, max_targets=5).boxes.shape == (batch, 5, 4)


def test_types_follow_the_samples() -> None:
    narrow = {"labels": torch.tensor([1], dtype=torch.int32), "boxes": torch.rand(1, 4, dtype=torch.float64)}
    targets = pad_targets([narrow])
    assert targets.labels.dtype == torch.int64
    assert targets.boxes.dtype == torch.float64
    assert torch.equal(targets.boxes[0], narrow["boxes"])


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (torch.tensor([1.0, 2.7]), r"\(2,\) torch.float32"),
        (torch.tensor([True, False]), r"\(2,\) torch.bool"),
        (torch.tensor([[[1]], [[0]]]), r"\(2, 1, 1\) torch.int64"),
    ],
)
def test_labels_must_be_integers_of_one_or_two_dimensions(labels: torch.Tensor, got: str) -> None:
    bad = {"labels": labels, "boxes": torch.zeros(2, 4)}
    with pytest.raises(ValueError, match=rf"^targets\[1\]: labels must be \(m,\) or \(m, K\) integers, got {got}$"):
        pad_targets([sample(1), bad])


def test_integers_of_any_size_are_labels_and_so_are_none_of_any_type() -> None:
    tiny = {"labels": torch.tensor([200, 3], dtype=torch.uint8), "boxes": torch.zeros(2, 4)}
    nothing = {"labels": torch.tensor([]), "boxes": torch.zeros(0, 4)}
    targets = pad_targets([nothing, tiny, nothing])
    assert targets.labels.dtype == torch.int64
    assert targets.labels[1].tolist() == [200, 3]
    assert targets.counts.tolist() == [0, 2, 0]


def test_the_device_is_given_or_the_samples_own() -> None:
    on_meta = {name: value.to("meta") for name, value in sample(2).items()}
    assert {field.device.type for field in pad_targets([on_meta])} == {"meta"}
    assert {field.device.type for field in pad_targets([sample(2)])} == {"cpu"}
    assert {field.device.type for field in pad_targets([sample(2)], device="meta")} == {"meta"}
    moved = pad_targets([sample(2)]).to("meta")
    assert isinstance(moved, Targets)
    assert {field.device.type for field in moved} == {"meta"}


def test_too_many_targets_name_the_sample() -> None:
    with pytest.raises(ValueError, match=r"^targets\[1\]: 3 targets, but max_targets=2$"):
        pad_targets([sample(2), sample(3)], max_targets=2)
    with pytest.raises(ValueError, match=r"^targets\[0\]: 1 targets, but max_targets=0$"):
        pad_targets([sample(1)], max_targets=0)


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (2, 5), (8,), (0,), (2, 4, 1)])
def test_boxes_must_go_with_the_labels(shape: tuple[int, ...]) -> None:
    bad = {"labels": torch.tensor([0, 1]), "boxes": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"^targets\[1\]: boxes must be \(2, 4\) to go with 2 labels, got \("):
        pad_targets([sample(1), bad])


@pytest.mark.parametrize("shape", [(0,), (0, 4), (0, 0), (0, 7, 4)])
def test_boxes_of_nothing_have_any_shape(shape: tuple[int, ...]) -> None:
    nothing = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(shape)}
    frames = shape[1:2] if len(shape) == 3 else ()
    assert pad_targets([nothing]).boxes.shape == (1, 1, *frames, 4)
    if not frames:
        targets = pad_targets([nothing, sample(2)])
        assert targets.counts.tolist() == [0, 2]
        assert torch.equal(targets.boxes[1], sample(2)["boxes"])


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def test_names_arrays_and_lists_are_as_tensors() -> None:
    samples = [sample(0), sample(2, 3), sample(1)]
    wanted = pad_targets(samples)
    arrays = [{name: value.numpy() for name, value in each.items()} for each in samples]
    lists = [{name: value.tolist() for name, value in each.items()} for each in samples]
    assert lists[0] == {"labels": [], "boxes": []}
    lists_of_tensors = [{name: list(value) for name, value in each.items()} for each in samples]
    hugging_face = [{"class_labels": each["labels"], "boxes": each["boxes"], "image_id": 7} for each in samples]
    for given in (arrays, lists, lists_of_tensors, hugging_face, [samples[0], arrays[1], lists[2]]):
        assert same(pad_targets(given), wanted)


def test_a_target_may_have_several_labels() -> None:
    boxes = [[0.5, 0.5, 0.2, 0.2]] * 2
    samples = [
        {"labels": [[12, 17], [80]], "boxes": boxes},
        {"labels": [], "boxes": []},
        {"class_labels": np.array([3, 4]), "boxes": boxes},
        {"labels": torch.tensor([[5, 6, 7]]), "boxes": boxes[:1]},
    ]
    labels = pad_targets(samples).labels
    assert labels.shape == (4, 2, 3)
    assert labels[0].tolist() == [[12, 17, -1], [80, -1, -1]]
    assert labels[2].tolist() == [[3, -1, -1], [4, -1, -1]]
    assert labels[3, 0].tolist() == [5, 6, 7]
    assert pad_targets(samples, max_labels=5).labels.shape == (4, 2, 5)
    assert pad_targets(samples[2:3], max_labels=2).labels.tolist() == [[[3, -1], [4, -1]]]
    assert pad_targets([], max_labels=2).labels.shape == (0, 1, 2)
    assert pad_targets([{"labels": np.zeros((0, 4)), "boxes": []}]).labels.shape == (1, 1, 1)
    with pytest.raises(ValueError, match=r"targets\[3\]: 3 labels of a target, but max_labels=2"):
        pad_targets(samples, max_labels=2)
    with pytest.raises(ValueError, match=r"targets\[0\]: labels must be \(m,\) or \(m, K\) integers, got \(1, 0\)"):
        pad_targets([{"labels": [[]], "boxes": boxes[:1]}])


def test_the_dtype_is_that_of_boxes_that_are_there() -> None:
    exact = {"labels": [1], "boxes": np.array([[0.1, 0.2, 0.3, 0.4]])}
    targets = pad_targets([{"labels": [], "boxes": []}, exact, sample(1)])
    assert targets.boxes.dtype == torch.float64
    assert targets.boxes[1, 0].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert pad_targets([{"labels": [1], "boxes": [[0, 0, 1, 1]]}]).boxes.dtype == torch.float32


def tubelets(count: int, frames: int = 3) -> dict[str, torch.Tensor]:
    boxes = torch.arange(4.0 * count * frames).reshape(count, frames, 4) / 100
    visible = (torch.arange(count * frames) % 2 == 0).reshape(count, frames)
    return {"labels": torch.arange(count), "boxes": boxes, "visible": visible}


def test_boxes_of_frames_are_tubelets() -> None:
    one, two = tubelets(1), tubelets(2)
    unseen = {name: two[name] for name in ("labels", "boxes")}
    targets = pad_targets([two, {"labels": [], "boxes": []}, one, unseen], max_targets=4)
    assert isinstance(targets, Tubelets)
    assert (targets.boxes.shape, targets.visible.shape) == ((4, 4, 3, 4), (4, 4, 3))
    assert targets.counts.tolist() == [2, 0, 1, 2]
    for row, (wanted, count) in enumerate([(two, 2), (two, 0), (one, 1), (two, 2)]):
        assert torch.equal(targets.labels[row, :count], wanted["labels"][:count])
        assert torch.equal(targets.boxes[row, :count], wanted["boxes"][:count])
        seen = wanted["visible"][:count] if row < 3 else torch.ones(2, 3, dtype=torch.bool)
        assert torch.equal(targets.visible[row, :count], seen)
    assert not targets.visible[1].any()
    as_lists = [{name: value.tolist() for name, value in each.items()} for each in (two, one)]
    assert same(pad_targets(as_lists), pad_targets([two, one]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"labels": [1]}, r"targets\[1\] has no boxes; it has labels"),
        ({"boxes": [[0.0] * 4], "area": 3}, r"targets\[1\] has no labels; it has boxes, area"),
        ({}, r"targets\[1\] has no labels; it has nothing"),
        ([1, 2], r"targets\[1\] must be a mapping with labels and boxes, got list"),
        ({"labels": [1], "boxes": [[0.1, 0.2], [0.3]]}, r"targets\[1\]: boxes cannot be read as numbers: .*"),
        ({"labels": ["dog"], "boxes": [[0.0] * 4]}, r"targets\[1\]: labels cannot be read as numbers: .*"),
        ({"labels": [1], "boxes": None}, r"targets\[1\]: boxes cannot be read as numbers: .*"),
        (
            {"labels": 1, "boxes": [[0.0] * 4]},
            r"targets\[1\]: labels must be \(m,\) or \(m, K\) integers, got \(\) torch.int64",
        ),
        (
            {"labels": [], "boxes": [[0.0] * 4]},
            r"targets\[1\]: boxes must be \(0, 4\) to go with 0 labels, got \(1, 4\)",
        ),
    ],
)
def test_a_bad_sample_is_named(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        pad_targets([sample(1), bad])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample(2), r"boxes must be \(2, 3, 4\) to go with 2 labels and the frames of other samples, got \(2, 4\)"),
        (
            tubelets(2, 5),
            r"boxes must be \(2, 3, 4\) to go with 2 labels and the frames of other samples, got \(2, 5, 4\)",
        ),
        (tubelets(2) | {"visible": [1, 0]}, r"visible must be \(2, 3\) bool, got \(2,\) torch.int64"),
        (tubelets(2) | {"visible": torch.ones(2, 3)}, r"visible must be \(2, 3\) bool, got \(2, 3\) torch.float32"),
    ],
)
def test_a_bad_tubelet_is_named(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^targets\[1\]: {message}$"):
        pad_targets([tubelets(3), bad])

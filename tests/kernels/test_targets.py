"""Targets are padded as documented and refused where they cannot be."""

from __future__ import annotations

import pytest
import torch
from actdet_kernels import Targets, pad_targets


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
        (torch.tensor([[1], [0]]), r"\(2, 1\) torch.int64"),
    ],
)
def test_labels_must_be_a_row_of_integers(labels: torch.Tensor, got: str) -> None:
    bad = {"labels": labels, "boxes": torch.zeros(2, 4)}
    with pytest.raises(ValueError, match=rf"^targets\[1\]: labels must be \(m,\) integers, got {got}$"):
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

"""Divisions by groups never cut one, are stratified as far as groups allow, and are the same for the same seed."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actdet.data.groups import group_folds, hold_out_groups, read_groups
from actdet.errors import ActdetError, DataError
from tests.actdet.data.test_split import COLLAPSE, FIGHT, NONE, index

clips_in_groups = st.lists(
    st.tuples(st.sampled_from([FIGHT, COLLAPSE, NONE]), st.integers(0, 6)), min_size=2, max_size=40
).filter(lambda clips: any(label != NONE for label, _ in clips))


def table_of(labels: list[int], groups: list[str]) -> np.ndarray:
    """(groups, classes that are there) clips of each."""
    names = sorted(set(groups))
    present = sorted(set(labels))
    pairs = list(zip(groups, labels, strict=True))
    return np.array([[pairs.count((name, label)) for label in present] for name in names])


def can_be_divided(table: np.ndarray) -> bool:
    """Whether some division of the groups has each class on both sides; tries them all."""
    total = table.sum(0)
    for sides in product([False, True], repeat=len(table)):
        held = table[np.array(sides)].sum(0)
        if ((held > 0) & (held < total)).all():
            return True
    return False


@given(clips_in_groups, st.sampled_from([0.1, 0.2, 0.5, 0.8]), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_hold_out_cuts_no_group(clips: list[tuple[int, int]], share: float, seed: int) -> None:
    labels = [label for label, _ in clips]
    groups = [f"g{number}" for _, number in clips]
    table = table_of(labels, groups)
    try:
        train, held = hold_out_groups(index(labels), groups, share, seed)
    except DataError:
        assert not can_be_divided(table)
        return

    assert sorted(train + held) == list(range(len(clips)))
    assert (train, held) == (sorted(train), sorted(held))
    assert {groups[clip] for clip in train}.isdisjoint(groups[clip] for clip in held)
    for label in set(labels):
        sides = {clip in held for clip, own in enumerate(labels) if own == label}
        assert sides == {False, True}


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_share_is_met_where_groups_are_small(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat([FIGHT, COLLAPSE, NONE], [100, 60, 40])).tolist()
    groups = [f"g{number}" for number in random.integers(0, 50, len(labels))]
    _, held = hold_out_groups(index(labels), groups, 0.2, seed)
    for label, count in ((FIGHT, 100), (COLLAPSE, 60), (NONE, 40)):
        assert sum(labels[clip] == label for clip in held) == pytest.approx(0.2 * count, abs=2)


def test_hold_out_is_as_good_as_the_best_division_of_a_few_groups() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, 60).tolist()
    groups = [f"g{number}" for number in random.integers(0, 9, 60)]
    table = table_of(labels, groups)
    _, held = hold_out_groups(index(labels), groups, 0.3, 0)

    def distance(counts: np.ndarray) -> float:
        return float(((counts / table.sum(0) - 0.3) ** 2).sum())

    best = min(distance(table[np.array(sides)].sum(0)) for sides in product([False, True], repeat=len(table)))
    found = np.array([sum(labels[clip] == label for clip in held) for label in (0, 1, 2)])
    assert distance(found) == pytest.approx(best, abs=1e-9)


def test_divisions_follow_the_seed() -> None:
    labels = [FIGHT, COLLAPSE, NONE] * 20
    groups = [f"g{clip // 2}" for clip in range(60)]
    splits = [hold_out_groups(index(labels), groups, 0.2, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    folds = [group_folds(index(labels), groups, 3, seed) for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]
    assert all(type(clip) is int for part in (*splits[0], *folds[0][0]) for clip in part)


def test_a_share_of_nothing_holds_nothing_out() -> None:
    assert hold_out_groups(index([FIGHT, NONE]), ["a", "a"], 0, 0) == ([0, 1], [])


@given(st.integers(2, 5), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_folds_cut_no_group_and_hold_every_clip_out_once(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat([FIGHT, COLLAPSE, NONE], [60, 40, 40])).tolist()
    groups = [f"g{number}" for number in random.integers(0, 30, len(labels))]
    folds = group_folds(index(labels), groups, count, seed)
    assert len(folds) == count
    assert sorted(clip for _, held in folds for clip in held) == list(range(len(labels)))
    for train, held in folds:
        assert sorted(train + held) == list(range(len(labels)))
        assert {groups[clip] for clip in train}.isdisjoint(groups[clip] for clip in held)
        assert {labels[clip] for clip in held} == {FIGHT, COLLAPSE, NONE}


def test_a_class_in_one_group_alone_is_named() -> None:
    labels = [FIGHT, COLLAPSE, FIGHT, FIGHT]
    groups = ["door", "door", "yard", "hall"]
    message = r"^set: clips of class collapse are only in 1 of 3 groups \(door\): a split needs 2 or more groups"
    with pytest.raises(DataError, match=message):
        hold_out_groups(index(labels), groups, 0.2, 0)
    with pytest.raises(DataError, match=r"class collapse are only in 1 of 3 groups \(door\): 2 folds needs 2"):
        group_folds(index(labels), groups, 2, 0)


def test_classes_that_no_division_can_share_out_are_named() -> None:
    """Three groups, of which each two have a class that the third one lacks."""
    labels = [FIGHT, FIGHT, COLLAPSE, COLLAPSE, NONE, NONE]
    groups = ["a", "b", "b", "c", "c", "a"]
    with pytest.raises(
        DataError, match=r"its groups leave all clips of class .* on one side of the split; make smaller"
    ):
        hold_out_groups(index(labels), groups, 0.5, 0)


def test_without_any_action_there_is_nothing_to_divide() -> None:
    for divide in (
        lambda: hold_out_groups(index([NONE] * 3), ["a"] * 3, 0, 0),
        lambda: group_folds(index([NONE] * 3), ["a"] * 3, 2, 0),
    ):
        with pytest.raises(DataError, match=r"^set/annotations: none of the 3 clips has an action"):
            divide()


def test_shares_and_folds_out_of_range_are_refused() -> None:
    clips = index([FIGHT, NONE])
    for share in (-0.1, 1.0):
        with pytest.raises(ActdetError, match=rf"must be in \[0, 1\), got {share}"):
            hold_out_groups(clips, ["a", "b"], share, 0)
    with pytest.raises(ActdetError, match="2 or more folds, got 1"):
        group_folds(clips, ["a", "b"], 1, 0)


def test_a_file_says_the_group_of_each_clip(tmp_path: Path) -> None:
    path = tmp_path / "groups.txt"
    path.write_text("\ufeffvideo (1) home\r\n\r\nb\tyard\nother hall\nb yard\n", encoding="utf-8")
    assert read_groups(path, ["b", "video (1)"]) == ["yard", "home"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a door\nb\n", ":2: 'b' has no group; expected NAME GROUP"),
        ("a door\nb yard\na yard\n", ":3: clip a is in group yard here, but in group door in line 1"),
        ("a door\n", ": 1 of 2 clips have no group, b first; add a line NAME GROUP"),
        ("", ": 2 of 2 clips have no group, a first"),
    ],
)
def test_each_mistake_in_it_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "groups.txt"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_groups(path, ["a", "b"])
    assert str(caught.value).startswith(f"{path}{expected}")

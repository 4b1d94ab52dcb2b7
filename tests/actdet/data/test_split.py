"""Divisions of a data set are stratified, complete, and the same for the same seed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actdet.data.annotations import Annotation
from actdet.data.clips import Clip, ClipIndex
from actdet.data.split import folds, hold_out
from actdet.errors import ActdetError, DataError
from actdet.video.info import VideoInfo

FIGHT, COLLAPSE, NONE = 0, 1, 2
ROOT = Path("set")


def index(labels: list[int]) -> ClipIndex:
    """Clips of these classes, without any files."""
    return index_of([[] if label == NONE else [label] for label in labels])


def index_of(actions: list[list[int]]) -> ClipIndex:
    """Clips with several actions each."""
    pts = np.arange(25, dtype=np.int64)
    clips = []
    for number, labels in enumerate(actions):
        video = VideoInfo(f"{number}.mp4", 64, 32, 0, Fraction(1, 25), pts, 25, "h264", True, 0)
        annotations = tuple(Annotation(label, (1.0, 2.0, 30.0, 20.0)) for label in labels)
        clips.append(Clip(str(number), video, annotations))
    return ClipIndex(ROOT, ("fight", "collapse"), tuple(clips))


def shuffled(*counts: int) -> list[int]:
    return np.random.default_rng(0).permutation(np.repeat([FIGHT, COLLAPSE, NONE], counts)).tolist()


class_counts = st.tuples(*[st.integers(0, 40)] * 3).filter(lambda counts: counts[0] + counts[1] > 0)


@settings(max_examples=50, deadline=None)
@given(
    class_counts.map(lambda counts: tuple(max(count, 2) if count else 0 for count in counts)),
    st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.9]),
    st.integers(0, 1000),
)
def test_hold_out_takes_its_share_of_every_class(counts: tuple[int, ...], share: float, seed: int) -> None:
    labels = np.array(shuffled(*counts))
    train, val = hold_out(index(labels.tolist()), share, seed)
    assert sorted(train + val) == list(range(len(labels)))
    assert train == sorted(train)
    assert val == sorted(val)
    present = sum(count > 0 for count in counts)
    held = min(max(share * len(labels), present), len(labels) - present)
    assert len(val) == pytest.approx(held, abs=0.5)
    for label, count in enumerate(counts):
        assert (labels[val] == label).sum() == pytest.approx(len(val) * count / len(labels), abs=1)


def test_the_reports_share_is_exact_if_it_divides() -> None:
    labels = np.array(shuffled(50, 30, 20))
    train, val = hold_out(index(labels.tolist()), 0.2, seed=4)
    assert np.bincount(labels[val]).tolist() == [10, 6, 4]
    assert np.bincount(labels[train]).tolist() == [40, 24, 16]
    assert all(type(clip) is int for clip in train + val)


def test_a_share_of_nothing_holds_nothing_out() -> None:
    assert hold_out(index([FIGHT, NONE, COLLAPSE]), 0, seed=0) == ([0, 1, 2], [])


def test_hold_out_follows_the_seed() -> None:
    clips = index(shuffled(20, 20, 20))
    splits = [hold_out(clips, 0.2, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@settings(max_examples=50, deadline=None)
@given(class_counts, st.integers(2, 6), st.integers(0, 1000))
def test_folds_hold_every_clip_out_once(counts: tuple[int, ...], count: int, seed: int) -> None:
    counts = tuple(max(clips, count) if clips else 0 for clips in counts)
    labels = np.array(shuffled(*counts))
    pairs = folds(index(labels.tolist()), count, seed)
    assert len(pairs) == count
    assert sorted(clip for _, val in pairs for clip in val) == list(range(len(labels)))
    for train, val in pairs:
        assert sorted(train + val) == list(range(len(labels)))
        for label, clips in enumerate(counts):
            assert (labels[val] == label).sum() in (clips // count, -(-clips // count))


def test_folds_follow_the_seed() -> None:
    clips = index(shuffled(20, 20, 20))
    splits = [folds(clips, 5, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert all(type(clip) is int for pair in splits[0] for part in pair for clip in part)


@pytest.mark.parametrize("labels", [[NONE], [NONE] * 7])
def test_without_any_action_there_is_nothing_to_divide(labels: list[int]) -> None:
    message = f"^set/annotations: none of the {len(labels)} clips has an action: there is nothing to learn from$"
    for divide in (lambda: hold_out(index(labels), 0.2, 0), lambda: folds(index(labels), 2, 0)):
        with pytest.raises(DataError, match=message):
            divide()
    with pytest.raises(DataError, match=message):
        hold_out(index(labels), 0, 0)


@pytest.mark.parametrize(("rare", "name"), [(FIGHT, "fight"), (COLLAPSE, "collapse"), (NONE, "no action")])
def test_a_class_too_rare_is_named(rare: int, name: str) -> None:
    labels = [label for label in (FIGHT, COLLAPSE, NONE) for _ in range(1 if label == rare else 9)]
    with pytest.raises(
        DataError, match=f"^set: only 1 clip of class {name}: .*hold out none and train on all of them$"
    ):
        hold_out(index(labels), 0.2, 0)
    labels += [rare, rare]
    with pytest.raises(DataError, match=f"^set: only 3 clips of class {name} for 4 folds: use --folds 3 or fewer"):
        folds(index(labels), 4, 0)
    assert len(folds(index(labels), 3, 0)) == 3


def test_no_number_of_folds_is_advised_if_none_would_do() -> None:
    with pytest.raises(DataError, match=r"only 1 clip of class fight for 2 folds: add clips$"):
        folds(index([0, 1, 1, 2, 2]), 2, 0)


def test_shares_and_folds_out_of_range_are_refused() -> None:
    clips = index(shuffled(5, 5, 5))
    for share in (-0.1, 1.0, 1.5):
        with pytest.raises(ActdetError, match=rf"must be in \[0, 1\), got {share}"):
            hold_out(clips, share, 0)
    for count in (1, 0, -3):
        with pytest.raises(ActdetError, match=f"2 or more folds, got {count}"):
            folds(clips, count, 0)


@given(st.lists(st.lists(st.sampled_from([FIGHT, COLLAPSE]), max_size=4), min_size=30, max_size=30), st.randoms())
@settings(max_examples=30, deadline=None)
def test_the_order_of_lines_does_not_change_the_division(clips: list[list[int]], random: Random) -> None:
    """Six clips with one action or none come first, so that each class has enough clips."""
    clips = [[FIGHT], [COLLAPSE], [], [FIGHT], [COLLAPSE], [], *clips]
    both = [index_of(clips), index_of([random.sample(labels, len(labels)) for labels in clips])]
    assert hold_out(both[0], 0.2, 0) == hold_out(both[1], 0.2, 0)
    assert folds(both[0], 2, 0) == folds(both[1], 2, 0)
    assert both[0].labels.tolist() == [FIGHT if FIGHT in c else COLLAPSE if c else NONE for c in clips]

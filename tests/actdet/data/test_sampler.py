"""Algorithm 1: every epoch shows all clips, in batches that each hold an action."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actdet.data.sampler import balanced_batches

flags = st.lists(st.booleans(), min_size=1, max_size=60).filter(any).map(lambda values: np.array(values, bool))


@given(flags, st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 1000))
def test_batches_are_full_and_each_holds_an_action(positive: np.ndarray, size: int, seed: int, epoch: int) -> None:
    batches = balanced_batches(positive, size, seed=seed, epoch=epoch)
    full, rest = divmod(len(positive), size)
    assert [len(batch) for batch in batches] == [size] * full + [rest] * (rest > 0)
    for batch in batches:
        assert batch.dtype == np.int64
        assert positive[batch].any()


@given(flags, st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 1000))
def test_every_clip_appears_once_but_those_replaced(positive: np.ndarray, size: int, seed: int, epoch: int) -> None:
    batches = balanced_batches(positive, size, seed=seed, epoch=epoch)
    seen = Counter(np.concatenate(batches).tolist())
    absent = set(range(len(positive))) - set(seen)
    again = {clip: times - 1 for clip, times in seen.items() if times > 1}
    assert not positive[list(absent)].any()
    assert positive[list(again)].all()
    assert len(absent) == sum(again.values())
    # a replaced clip leaves a batch whose only action comes first
    lone = sum(bool(positive[batch[0]]) and positive[batch].sum() == 1 for batch in batches)
    assert len(absent) <= lone


@given(flags, st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 1000))
def test_an_epoch_can_be_had_again(positive: np.ndarray, size: int, seed: int, epoch: int) -> None:
    before = positive.copy()
    first, second = (balanced_batches(positive, size, seed=seed, epoch=epoch) for _ in range(2))
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]
    assert (positive == before).all()


def test_epochs_and_seeds_differ() -> None:
    positive = np.arange(40) % 3 == 0
    orders = [
        np.concatenate(balanced_batches(positive, 8, seed=seed, epoch=epoch)).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_nothing_is_replaced_where_every_clip_has_an_action() -> None:
    batches = balanced_batches(np.ones(23, bool), 4, seed=0, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(23))


def test_one_action_stands_in_for_every_batch() -> None:
    batches = balanced_batches(np.arange(20) == 7, 4, seed=3, epoch=5)
    assert all((batch == 7).sum() == 1 for batch in batches)
    assert sum(batch[0] == 7 for batch in batches) >= 4


def test_stand_ins_and_places_are_drawn_evenly() -> None:
    """Six actions among 60 clips, in batches of two: of every 30 batches about 24 need a stand-in."""
    positive = np.arange(60) < 6
    batches = [batch for epoch in range(200) for batch in balanced_batches(positive, 2, seed=1, epoch=epoch)]
    shown = np.bincount(np.concatenate(batches), minlength=60)
    assert shown[:6] == pytest.approx(shown[:6].mean(), rel=0.1)
    assert shown[6:] == pytest.approx(shown[6:].mean(), rel=0.25)
    first = np.bincount([batches[epoch * 30][1] for epoch in range(200)], minlength=60)
    assert (first > 0).sum() > 50  # nearly every clip came second in the first batch at some time


@pytest.mark.parametrize("clips", [0, 1, 9])
def test_without_any_action_there_is_nothing_to_balance(clips: int) -> None:
    with pytest.raises(ValueError, match="at least one clip with an action"):
        balanced_batches(np.zeros(clips, bool), 4, seed=0, epoch=0)

"""Every epoch shows all clips once, in batches that each have an action as far as there are enough actions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actdet.data.sampler import balanced_batches

flags = st.lists(st.booleans(), min_size=1, max_size=60).filter(any).map(lambda values: np.array(values, bool))


@given(flags, st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 1000))
def test_every_clip_comes_once_in_full_batches_with_an_action_each(
    positive: np.ndarray, size: int, seed: int, epoch: int
) -> None:
    batches = balanced_batches(positive, size, seed=seed, epoch=epoch)
    full, rest = divmod(len(positive), size)
    assert [len(batch) for batch in batches] == [size] * full + [rest] * (rest > 0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(positive)))
    assert {batch.dtype for batch in batches} == {np.dtype(np.int64)}
    assert sum(positive[batch].any() for batch in batches) == min(positive.sum(), len(batches))


@given(flags, st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 1000))
def test_the_same_seed_and_epoch_give_the_same_batches(positive: np.ndarray, size: int, seed: int, epoch: int) -> None:
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


def test_batches_and_places_are_drawn_evenly() -> None:
    """With six actions among 60 clips, most batches of two have none; which ones do is random."""
    positive = np.arange(60) < 6
    epochs = [balanced_batches(positive, 2, seed=1, epoch=epoch) for epoch in range(400)]
    with_action = np.mean([[positive[batch].any() for batch in batches] for batches in epochs], axis=0)
    assert with_action == pytest.approx(6 / 30, abs=0.08)

    # Nearly every clip came first at some time.
    first = np.bincount([batches[0][0] for batches in epochs], minlength=60)
    assert (first > 0).sum() > 50

    together = [tuple(positive[batch]) for batches in epochs for batch in batches]
    assert (True, True) not in together


@pytest.mark.parametrize("clips", [0, 1, 9])
def test_without_any_action_there_is_nothing_to_balance(clips: int) -> None:
    with pytest.raises(ValueError, match="at least one clip with an action"):
        balanced_batches(np.zeros(clips, bool), 4, seed=0, epoch=0)

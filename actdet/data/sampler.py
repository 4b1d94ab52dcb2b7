"""Which clips form the batches of an epoch: balanced batch sampling (algorithm 1 of the technical report)."""

from __future__ import annotations

import numpy as np


def balanced_batches(positive: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch, each with at least one positive clip.

    positive: (n,) bool, whether a clip holds an action. All n clips are shuffled and cut into batches of
    `batch_size` (the last may be shorter); where a batch has no positive clip, its first is replaced by a
    positive one drawn at random. The same (seed, epoch) gives the same batches.
    Returns int64 arrays of clip numbers. Raises ValueError without a positive clip.
    """
    positives = np.flatnonzero(positive)
    if len(positives) == 0:
        raise ValueError("balanced batches need at least one clip with an action")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(positive))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for batch in batches:
        if not positive[batch].any():
            batch[0] = rng.choice(positives)
    return batches

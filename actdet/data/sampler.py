"""Which clips form the batches of an epoch: balanced batch sampling, after algorithm 1 of the technical report."""

from __future__ import annotations

import numpy as np


def balanced_batches(positive: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: every clip once, and in as many batches as can be at least one positive clip.

    positive: (n,) bool, whether a clip holds an action. All n clips are shuffled and cut into batches of `batch_size`
    (the last may be shorter); a batch without a positive clip gets one from a batch that has several, in exchange for
    its first. (Algorithm 1 replaces that first clip: some are then shown twice in an epoch and others not at all, in
    batches of one all without an action.) The same (seed, epoch) gives the same batches.
    Returns int64 arrays of clip numbers. Raises ValueError without a positive clip.
    """
    if not positive.any():
        raise ValueError("balanced batches need at least one clip with an action")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(positive))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    spare = [(batch, place) for batch in batches for place in np.flatnonzero(positive[batch])[1:]]
    for taker in rng.permutation(len(batches)):
        if spare and not positive[batches[taker]].any():
            giver, place = spare.pop(rng.integers(len(spare)))
            giver[place], batches[taker][0] = batches[taker][0], giver[place]
    return batches

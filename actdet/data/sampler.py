"""Which clips form the batches of an epoch: balanced batch sampling, after algorithm 1 of the technical report."""

from __future__ import annotations

import numpy as np


def balanced_batches(positive: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Divide the clips into the batches of one epoch.

    Every clip is in exactly one batch, and as many batches as possible have at least one positive clip. All clips are
    shuffled and cut into batches. A batch without a positive clip then exchanges its first clip for a positive one of
    a batch that has several. (Algorithm 1 replaces that first clip instead of exchanging it, so an epoch shows some
    clips twice and others never; with batches of one clip it never shows any clip without an action.)

    Args:
        positive: (n,) bool, whether each clip has an action.
        batch_size: Clips in a batch; the last batch may be smaller.
        seed: With `epoch`, determines the batches.
        epoch: Number of the epoch.

    Returns:
        For each batch an int64 array with the numbers of its clips.

    Raises:
        ValueError: If no clip is positive.
    """
    if not positive.any():
        raise ValueError("balanced batches need at least one clip with an action")

    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(positive))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    # Each batch can spare all of its positive clips except the first.
    spare = [(batch, place) for batch in batches for place in np.flatnonzero(positive[batch])[1:]]
    for taker in rng.permutation(len(batches)):
        if spare and not positive[batches[taker]].any():
            giver, place = spare.pop(rng.integers(len(spare)))
            giver[place], batches[taker][0] = batches[taker][0], giver[place]
    return batches

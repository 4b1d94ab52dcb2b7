"""Top-k accuracy: the share of clips whose true class is among the k classes of the highest scores.

    top-k = mean over clips of [rank of the true class < k]

The rank counts the classes with a higher score, and those with an equal score that come before the true class.
"""

from __future__ import annotations

import numpy as np

from actdet.errors import ActdetError


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float | None:
    """Compute the top-k accuracy.

    Args:
        scores: (n, C) float, of any scale; higher is surer.
        labels: (n,) int, the true classes, in [0, C).
        k: How many classes may be named, at least 1. More than there are classes are never needed.

    Returns:
        A share in [0, 1]; None if there are no clips.

    Raises:
        ActdetError: The shapes do not fit, a score is NaN, a class does not exist or k is less than 1.
    """
    scores = np.asarray(scores)
    labels = np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ActdetError(f"scores of the shape {scores.shape} do not fit labels of the shape {labels.shape}")
    if k < 1:
        raise ActdetError(f"k must be at least 1, got {k}")
    if not len(labels):
        return None
    if np.isnan(scores).any():
        raise ActdetError("a score is NaN")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ActdetError(f"labels must lie in [0, {scores.shape[1]}), got {labels.min()} to {labels.max()}")

    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    ranks = np.sum((scores > own) | ((scores == own) & earlier), axis=1)
    return float(np.mean(ranks < k))

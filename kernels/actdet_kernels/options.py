"""How costs and losses are computed: what a call says once, and what every implementation is told as one."""

from __future__ import annotations

from typing import NamedTuple


class CostOptions(NamedTuple):
    """Of `pairwise_cost` and `match`, in the order in which their operators take them."""

    weights: tuple[float, float, float]
    class_cost: str
    alpha: float
    gamma: float
    box_term: str


class LossOptions(NamedTuple):
    """Of `set_loss`, in the order in which its operators take them."""

    weights: tuple[float, float, float]
    no_object_weight: float
    class_loss: str
    alpha: float
    gamma: float
    box_term: str
    per_layer: bool

"""The options of costs and losses, which a call gives one by one and every implementation takes as one tuple."""

from __future__ import annotations

from typing import NamedTuple


class CostOptions(NamedTuple):
    """The options of `pairwise_cost` and `match`, in the order in which their operators take them.

    Args:
        weights: cls, l1 and giou, as in `MatchWeights`.
        class_cost: "softmax", "focal", "varifocal" or "quality_focal".
        alpha: The weight of the focal and varifocal terms.
        gamma: Their exponent, and that of quality focal.
        box_term: "giou", "diou" or "ciou".
    """

    weights: tuple[float, float, float]
    class_cost: str
    alpha: float
    gamma: float
    box_term: str


class LossOptions(NamedTuple):
    """The options of `set_loss`, in the order in which its operators take them.

    Args:
        weights: cls, l1 and giou, as in `MatchWeights`.
        no_object_weight: The weight of no_object in the cross entropy, if there are no class weights.
        class_loss: "cross_entropy", "focal", "varifocal" or "quality_focal".
        alpha: The weight of the focal and varifocal terms.
        gamma: Their exponent, and that of quality focal.
        box_term: "giou", "diou" or "ciou".
        per_layer: Give the losses of each leading index instead of their sums.
    """

    weights: tuple[float, float, float]
    no_object_weight: float
    class_loss: str
    alpha: float
    gamma: float
    box_term: str
    per_layer: bool


class CenterOptions(NamedTuple):
    """The options of `center_loss`, in the order in which its operators take them.

    Args:
        weights: Of classes, centers, movement and sizes, as in `CenterWeights`.
        key: The number of the key frame.
        radius: "published" or "corrected".
        movement_area: "ellipse", "circle" or "center".
        size_area: "ellipse", "circle" or "center".
        moved: Whether the area for the sides follows the actor.
        stride: The sides of a pixel of the grid in pixels of the picture.
        alpha: The exponent of the probability.
        beta: The exponent that spares the neighbors of a center.
    """

    weights: tuple[float, float, float, float]
    key: int
    radius: str
    movement_area: str
    size_area: str
    moved: bool
    stride: int
    alpha: float
    beta: float

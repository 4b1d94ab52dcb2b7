"""The loss of detectors that find action tubelets by their centers, and its gradient.

A network gives maps over a grid of pixels: where the center of an actor is in the key frame, where it moves from there
in each of K frames, how far the sides of the box are from there, and which action it is. This is the loss of STMA
(Zhang and Zhao 2022, equations 3 to 9), of MOC (Li et al. 2020), and, with one frame, of TTFNet (Liu et al. 2020).

From top to bottom: the maps, the public function, its checks, the implementation by the reference, and that by the
kernels, with its autograd function, the operators of loss and gradient, and the operators' shapes.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from actdet_kernels import reference, reference_centers
from actdet_kernels.backend import Backend, implementation, kernel_module
from actdet_kernels.cost import check_choice
from actdet_kernels.operators import LIBRARY, operator
from actdet_kernels.options import CenterOptions
from actdet_kernels.targets import Tubelets, check_counts, check_values

Radius = Literal["published", "corrected"]
Area = Literal["ellipse", "circle", "center"]

# The part of an operator's schema that the fields of `CenterOptions` fill, with the chosen backend behind them.
OPTIONS = (
    "float[] weights, int key, str radius, str movement_area, str size_area, bool moved, int stride, float alpha, "
    "float beta, str chosen"
)


class CenterMaps(NamedTuple):
    """What a network says of B samples of K frames, on a grid of H x W pixels.

    Pixel (x, y) of the grid covers x to x + 1 and y to y + 1; the picture covers 0 to W and 0 to H.

    Args:
        centers: (B, C, H, W) floating point, the logit that the center of an actor in the key frame is in this pixel.
            With one channel that is of any class, otherwise of the channel's class.
        movement: (B, K, 2, H, W) floating point, for an actor whose center in the key frame is in this pixel: how far
            to the right of the pixel's middle, and how far below, its center is in each frame, in pixels of the grid.
        sizes: (B, K, 4, H, W) floating point, how far the left, upper, right and lower side of the box in each frame
            are from this pixel's middle, in pixels of the grid, positive outward.
        classes: (B, A, h, w) floating point, the logits of A classes, on a grid that may be coarser. None if the
            channels of `centers` are the classes.
    """

    centers: Tensor
    movement: Tensor
    sizes: Tensor
    classes: Tensor | None = None


class CenterWeights(NamedTuple):
    """The weights of the terms of `center_loss` in its total; STMA's (section 2.4), whose gamma is in `sizes`.

    Args:
        classes: The weight of the cross entropy.
        centers: The weight of the focal loss.
        movement: The weight of the L1 distance.
        sizes: The weight of 1 - GIoU.
    """

    classes: float = 0.01
    centers: float = 1.0
    movement: float = 0.5
    sizes: float = 0.05


class CenterLoss(NamedTuple):
    """The total of a center loss, and its terms without their weights, all 0-d; the kernels differentiate them once.

    They are float32, or float64 if one of the maps is.

    Args:
        total: The sum of the four terms, weighted by `CenterWeights`.
        classes: The cross entropy of the class.
        centers: The focal loss of the centers.
        movement: The L1 distance of the movement.
        sizes: 1 - GIoU of the boxes.
        divisors: (3,) what `classes` and `centers`, `movement`, and `sizes` were divided by: the number of actors, and
            two sums of weights, each at least as large as it has to be for a quotient. No gradient passes through it.
            With it, several processes can make their means one of the whole batch.
    """

    total: Tensor
    classes: Tensor
    centers: Tensor
    movement: Tensor
    sizes: Tensor
    divisors: Tensor


def center_loss(
    maps: CenterMaps,
    targets: Tubelets,
    *,
    weights: CenterWeights = CenterWeights(),
    key: int | None = None,
    radius: Radius = "published",
    movement_area: Area = "ellipse",
    size_area: Area = "ellipse",
    moved: bool = True,
    stride: int = 4,
    alpha: float = 2.0,
    beta: float = 4.0,
    check: bool = False,
    backend: Backend = "auto",
) -> CenterLoss:
    """Compare maps with the actors in K frames, without rendering any target.

    An actor i counts if its row is below the count and it is visible in the key frame. Let n be the number of those, at
    least 1; (x_ij, y_ij) the pixel in which the center of its box in frame j is, which is clamped to the grid; w_i and
    h_i the sides of its box in the key frame, in pixels of the grid; and p = sigmoid(centers).

    centers = -1/n sum over pixels and channels of
                  (1 - p)^alpha log p                   in the pixels of centers in the key frame
                  (1 - P)^beta p^alpha log(1 - p)       in all others                                        (eq. 3)
    P(x, y) = max over i of exp(-((x - x_i)^2 + (y - y_i)^2) / (2 sigma_i^2))    where both distances are <= r_i, or 0
    sigma_i = (2 r_i + 1) / 6,  r_i the integer part of CornerNet's radius for an IoU of 0.7, w_i and h_i rounded up

    An actor's area in frame j is a rectangle of pixels around (x_ij, y_ij), up to a_i to the left and the right and b_i
    above and below. Its pixels have the weights log(area of the key frame's box in pixels of the picture, at least e)
    times G over the sum of G over the area in the grid,

    G(x, y) = exp(-(x - x_ij)^2 / (2 s_a^2) - (y - y_ij)^2 / (2 s_b^2)),   s_a = (2 a_i + 1) / 6,  s_b = (2 b_i + 1) / 6

    Where areas of actors who are visible in frame j overlap, a pixel belongs to the one with the smallest box in the
    key frame, and of equals to the first. With "ellipse", a_i and b_i are the integer parts of 0.54 w_i / 2 and
    0.54 h_i / 2 (TTFNet); with "circle" both are r_i; with "center" both are 0, so that an actor has one pixel, as in
    MOC.

    movement = sum of weights times (|dx| + |dy|) / 2 / sum of weights                                    (eq. 4 and 5)
               over the frames in which the actor is visible, and the pixels of its area in the key frame. What is
               predicted there is compared with the way from the middle of pixel (x_i,key, y_i,key) to the center of
               the box in frame j, which is the same for all pixels of the area.
    sizes    = sum of weights times (1 - GIoU) / sum of weights                                           (eq. 6 and 7)
               over the frames in which the actor is visible, and the pixels of its area there. The predicted box is
               that of the sides around the pixel's middle.
    classes  = 1/n sum of -log softmax(classes)[label]
               at the pixel of the coarser grid in which the center of the key frame's box is. 0 without `maps.classes`.

    A quotient of no weights is 0. The quotients are TTFNet's means: as printed, equations 5 and 7 would divide by the
    number of pixels, too, by which G already is. An actor whose box is not finite in a frame in which it is visible,
    or for whose label the maps have no class, makes all terms NaN.

    Args:
        maps: What the network says.
        targets: B samples of M actors over K frames, with one label each. They get no gradient.
        weights: Of the terms in the total.
        key: The number of the key frame; by default the middle one, K // 2.
        radius: "published" is CornerNet's code, which is in CenterNet and MOC, too: it takes the root of a quadratic
            equation without its leading coefficient, and centers get two to three times the radius. What has been
            published was trained so, and with the right roots ("corrected") most radii on a small grid are 0.
        movement_area: Which pixels learn the movement.
        size_area: Which pixels learn the sides.
        moved: Whether the area for the sides follows the actor, so that the sides are positive. Otherwise it stays
            where it is in the key frame, and the box of an actor who has left that place has negative sides.
        stride: The sides of a pixel of the grid in pixels of the picture.
        alpha: The exponent of the probability, at least 0.
        beta: The exponent that spares the neighbors of a center, at least 0.
        check: Raise ValueError if a count is not in [0, M], or there is no class for a label. This waits for the
            device.
        backend: See `explain_backend`. The kernels add up in a fixed order, so two runs give the same bits.

    Returns:
        The total and its terms.

    Raises:
        ValueError: Shapes, dtypes or devices disagree, an option is unknown or out of its range, or `check` found
            something.
        RuntimeError: The backend that was asked for by name cannot run.
    """
    check_maps(maps)
    _check_targets(maps, targets)
    channels = maps.centers.shape[1]
    count = class_count(maps)
    if channels not in (1, count):
        raise ValueError(f"centers must have 1 channel, or {count} as there are classes, got {channels}")
    frames = maps.movement.shape[1]
    key = frames // 2 if key is None else key
    if not 0 <= key < frames:
        raise ValueError(f"key must be 0 to {frames - 1}, got {key}")
    check_choice("radius", radius, get_args(Radius))
    check_choice("movement_area", movement_area, get_args(Area))
    check_choice("size_area", size_area, get_args(Area))
    for name, value, least in (("stride", stride, 1), ("alpha", alpha, 0), ("beta", beta, 0)):
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if check:
        # Maps without classes have no use for labels, so any will do.
        if class_count(maps) > 0:
            check_values(targets, class_count(maps))
        else:
            check_counts("targets.counts", targets.counts, targets.labels.shape[1])

    options = CenterOptions(weights, key, radius, movement_area, size_area, moved, stride, alpha, beta)
    compute = implementation(backend, maps.centers.device, kernels=_by_kernels, reference=_by_reference)
    return compute(maps, targets, options)


def class_count(maps: CenterMaps) -> int:
    """Return the number of classes of the maps; 0 if they know none."""
    if maps.classes is not None:
        return maps.classes.shape[1]
    channels = maps.centers.shape[1]
    return channels if channels > 1 else 0


def check_maps(maps: CenterMaps) -> None:
    """Raise ValueError if maps disagree about shapes, dtypes or devices."""
    centers, movement, sizes, classes = maps
    if centers.ndim != 4 or movement.ndim != 5 or sizes.ndim != 5 or min(centers.shape[1:]) == 0:
        shapes = f"{tuple(centers.shape)}, {tuple(movement.shape)} and {tuple(sizes.shape)}"
        raise ValueError(
            f"maps must be centers (B, C, H, W), movement (B, K, 2, H, W) and sizes (B, K, 4, H, W), got {shapes}"
        )
    batch, _, *grid = centers.shape
    frames = movement.shape[1]
    if frames == 0:
        raise ValueError(f"movement must be of one frame at least, got {tuple(movement.shape)}")
    wanted = {"movement": (batch, frames, 2, *grid), "sizes": (batch, frames, 4, *grid)}
    for name, shape in wanted.items():
        found = tuple(getattr(maps, name).shape)
        if found != shape:
            raise ValueError(f"{name} must be {shape} to go with centers {tuple(centers.shape)}, got {found}")
    if classes is not None and (classes.ndim != 4 or len(classes) != batch or min(classes.shape[1:]) == 0):
        raise ValueError(f"classes must be ({batch}, A, h, w), got {tuple(classes.shape)}")

    for name, tensor in zip(CenterMaps._fields, maps, strict=True):
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.device != centers.device:
            raise ValueError(f"{name} is on {tensor.device}, centers on {centers.device}")


def _check_targets(maps: CenterMaps, targets: Tubelets) -> None:
    if not isinstance(targets, Tubelets):
        raise ValueError(f"targets must be Tubelets, got {type(targets).__name__}")
    batch, frames = maps.movement.shape[:2]
    size = targets.labels.shape[1] if targets.labels.ndim > 1 else 0
    wanted = {
        "labels": (batch, size),
        "boxes": (batch, size, frames, 4),
        "counts": (batch,),
        "visible": (batch, size, frames),
    }
    for name, shape in wanted.items():
        tensor = getattr(targets, name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"targets.{name} must be {shape}, got {tuple(tensor.shape)}")
        if tensor.device != maps.centers.device:
            raise ValueError(f"targets.{name} is on {tensor.device}, the maps on {maps.centers.device}")
    if targets.labels.dtype != torch.int64:
        raise ValueError(f"targets.labels must be int64, got {targets.labels.dtype}")
    if not targets.boxes.is_floating_point():
        raise ValueError(f"targets.boxes must be floating point, got {targets.boxes.dtype}")
    if targets.counts.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"targets.counts must be int32 or int64, got {targets.counts.dtype}")
    if targets.visible.dtype != torch.bool:
        raise ValueError(f"targets.visible must be bool, got {targets.visible.dtype}")


def _by_reference(maps: CenterMaps, targets: Tubelets, options: CenterOptions) -> CenterLoss:
    """Compute the losses by PyTorch's operators alone, which have derivatives of every order."""
    results = reference_centers.center_loss(*maps, targets, options)
    total = torch.stack([weight * term for weight, term in zip(options.weights, results[:4], strict=True)]).sum()
    return CenterLoss(total, *results)


def _by_kernels(chosen: str, maps: CenterMaps, targets: Tubelets, options: CenterOptions) -> CenterLoss:
    labels, boxes, counts, visible = targets
    goals = (labels, boxes.detach(), counts, visible)
    return CenterLoss(*DifferentiableCenterLoss.apply(*maps, *goals, *options, chosen))


class DifferentiableCenterLoss(torch.autograd.Function):
    """`center_loss` by the kernels, with its gradient. It returns the fields of `CenterLoss`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        tensors = arguments[:8]
        ctx.options = arguments[8:]
        results = _center_loss(*arguments)
        divisors = results[-1]
        ctx.save_for_backward(*tensors, divisors)
        ctx.mark_non_differentiable(divisors)

        # Losses that are not used then have the cotangent None, and the kernels skip them.
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *of_maps, d_classes = _center_loss_gradient(*ctx.saved_tensors, *cotangents[:-1], *ctx.options)
        classes = ctx.saved_tensors[3]
        return *of_maps, None if classes is None else d_classes, *[None] * (len(ctx.needs_input_grad) - 4)


# The fields of `CenterMaps`, and the targets.
_MAPS = "Tensor centers, Tensor movement, Tensor sizes, Tensor? classes"
_TARGETS = "Tensor labels, Tensor target_boxes, Tensor counts, Tensor visible"


@operator(f"center_loss({_MAPS}, {_TARGETS}, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
def _center_loss(
    centers: Tensor,
    movement: Tensor,
    sizes: Tensor,
    classes: Tensor | None,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Return the fields of `CenterLoss`. The last argument chooses the kernels."""
    *options, chosen = rest
    targets = Tubelets(labels, target_boxes, counts, visible)
    compute = kernel_module(chosen, "centers").center_loss
    return compute(CenterMaps(centers, movement, sizes, classes), targets, CenterOptions(*options))


@torch.library.register_fake("actdet_kernels::center_loss", lib=LIBRARY)
def _loss_shapes(centers: Tensor, movement: Tensor, sizes: Tensor, classes: Tensor | None, *rest: Any) -> Any:
    dtype = reference.widest(centers, movement, sizes, classes)
    losses = (centers.new_empty((), dtype=dtype) for _ in range(5))
    return *losses, centers.new_empty(3, dtype=dtype)


@operator(
    f"center_loss_gradient({_MAPS}, {_TARGETS}, Tensor divisors, Tensor? d_total, Tensor? d_classes, "
    f"Tensor? d_centers, Tensor? d_movement, Tensor? d_sizes, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _center_loss_gradient(
    centers: Tensor,
    movement: Tensor,
    sizes: Tensor,
    classes: Tensor | None,
    labels: Tensor,
    target_boxes: Tensor,
    counts: Tensor,
    visible: Tensor,
    divisors: Tensor,
    d_total: Tensor | None,
    d_classes: Tensor | None,
    d_centers: Tensor | None,
    d_movement: Tensor | None,
    d_sizes: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Return the gradients of the maps from those of the five losses, of which some may be None.

    They have the dtypes of the maps. Without `classes`, the last one is empty.
    """
    *options, chosen = rest
    maps = CenterMaps(centers, movement, sizes, classes)
    targets = Tubelets(labels, target_boxes, counts, visible)
    cotangents = (d_total, d_classes, d_centers, d_movement, d_sizes)
    compute = kernel_module(chosen, "centers").center_loss_gradient
    return compute(maps, targets, divisors, cotangents, CenterOptions(*options))


@torch.library.register_fake("actdet_kernels::center_loss_gradient", lib=LIBRARY)
def _gradient_shapes(centers: Tensor, movement: Tensor, sizes: Tensor, classes: Tensor | None, *rest: Any) -> Any:
    d_classes = centers.new_empty(0) if classes is None else classes.new_empty(classes.shape)
    return *(given.new_empty(given.shape) for given in (centers, movement, sizes)), d_classes


def _no_second_derivative(ctx: Any, *cotangents: Tensor | None) -> Any:
    raise RuntimeError(
        "center_loss has no second derivative with the kernels: use backend='reference' to differentiate its gradient"
    )


torch.library.register_autograd("actdet_kernels::center_loss_gradient", _no_second_derivative, lib=LIBRARY)

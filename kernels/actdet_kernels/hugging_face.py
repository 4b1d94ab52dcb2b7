"""The kernels in the losses of Hugging Face's transformers, by one call before or after its models are imported:

    from actdet_kernels.hugging_face import patch_transformers

    patch = patch_transformers()
    print(patch)  # what runs on the kernels now, and what stays as it was
    patch.undo()

This replaces methods of transformers' matchers and criteria, and no names in modules, so it does not matter which code
imported the classes, or derived from them, and when. Losses keep their names, order and weights. The differences are
those that detr.py lists, and these:

- Matchers give pairs on the device of the predictions, not on the CPU.
- A focal cost is not cut off where a probability is below 1e-8.
- `ImageLoss` weighs no_object by its `eos_coef`, even if its buffer `empty_weight` was changed.

A class that is derived from one of those, and is not transformers' own, keeps its own code.

From top to bottom: `patch_transformers`, the methods that it puts in place, the losses of RT-DETR and its relatives,
and the choice of a matcher and a criterion for an object of transformers, which is called `theirs` here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from actdet_kernels.detr import LOSSES, HungarianMatcher, ImageLoss, SetCriterion, pad_samples, pairs_of
from actdet_kernels.loss import set_loss
from actdet_kernels.targets import Targets, labels_of

__all__ = ["Patch", "patch_transformers"]

# What `Patch` tells about: the families of models whose losses run on the kernels, and what stays as it was.
REPLACED = (
    "Detr, TableTransformer, Yolos: matching and all losses",
    "ConditionalDetr, DabDetr, DeformableDetr: matching and all losses",
    "RTDetr, RTDetrV2: matching and all losses, those of denoising included",
    "DFine, Deimv2: matching, loss_vfl, loss_bbox and loss_giou, those of denoising included",
)
KEPT = (
    "DFine, Deimv2: loss_fgl and loss_ddf, of distributions over the places of edges",
    "Deimv2: loss_mal, whose targets are IoUs; with use_dense_one_to_one everything but the matching",
    "Detr and ConditionalDetr for segmentation: everything but the matching, as there are no mask losses here",
    "ConditionalDetr, DabDetr, DeformableDetr with a focal_alpha below 0, which weighs nothing: everything but the "
    "matching",
    "GroundingDino, LwDetr, RfDetr, MaskFormer, Mask2Former, OneFormer, Eomt: everything; they match otherwise",
)

# The criteria that have RT-DETR's matching and denoising.
RT_DETR_LOSSES = ("loss_rt_detr.RTDetrLoss", "loss_d_fine.DFineLoss", "loss_deimv2.Deimv2Loss")

Outputs = Mapping[str, Any]
Samples = Sequence[Mapping[str, Tensor]]

# The classes whose `forward` is replaced, with the original.
_originals: dict[type, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Patch:
    """What `patch_transformers` has done. Printed, it is a line for each family of models.

    Args:
        replaced: What runs on the kernels now.
        kept: What stays as it was.
    """

    replaced: tuple[str, ...] = REPLACED
    kept: tuple[str, ...] = KEPT

    def __str__(self) -> str:
        return "\n".join(["With kernels:", *self.replaced, "As before:", *self.kept])

    def undo(self) -> None:
        """Give all classes of transformers their own methods back, however often `patch_transformers` was called."""
        while _originals:
            kind, original = _originals.popitem()
            kind.forward = original  # pyright: ignore[reportAttributeAccessIssue]


def patch_transformers() -> Patch:
    """Let the object detectors of transformers match and compute losses by `match` and `set_loss`.

    Models may have been imported, made and used before. A second call changes nothing.

    Returns:
        What is replaced now, what is not, and the method that undoes it.

    Raises:
        ImportError: transformers is not installed, or is older than 4.48, which has no modules of these losses.
    """
    changes = {
        "loss_for_object_detection": {"HungarianMatcher": _matching, "ImageLoss": _image_losses},
        "loss_deformable_detr": {"DeformableDetrHungarianMatcher": _matching},
        "loss_rt_detr": {"RTDetrHungarianMatcher": _matching, "RTDetrLoss": _rt_detr_losses},
    }
    found = [
        (getattr(import_module(f"transformers.loss.{module}"), name), change)
        for module, classes in changes.items()
        for name, change in classes.items()
    ]
    for kind, change in found:
        if kind not in _originals:
            _originals[kind] = kind.forward
            kind.forward = change(kind.forward)
    return Patch()


def _matching(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the new `forward` of a matcher. It calls `original` for what the kernels do not replace."""

    @wraps(original)
    def forward(self: Any, outputs: Outputs, targets: Samples) -> list[tuple[Tensor, Tensor]]:
        matcher = _matcher_of(self)
        return original(self, outputs, targets) if matcher is None else matcher(outputs, targets)

    return forward


def _image_losses(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the new `forward` of DETR's criterion and those derived from it, which may call `original` likewise."""

    @wraps(original)
    def forward(self: Any, outputs: Outputs, targets: Samples) -> dict[str, Tensor]:
        criterion = _criterion_of(self)
        if criterion is None:
            return original(self, outputs, targets)
        names = ("logits", "pred_boxes", "auxiliary_outputs")
        return criterion({name: outputs[name] for name in names if name in outputs}, targets)

    return forward


def _rt_detr_losses(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the new `forward` of RT-DETR's criterion and those derived from it, which may call `original` likewise."""

    @wraps(original)
    def forward(self: Any, outputs: Outputs, targets: Samples) -> dict[str, Tensor]:
        matcher = _matcher_of(self.matcher)
        if matcher is None or not _is_one_of(self, RT_DETR_LOSSES):
            return original(self, outputs, targets)

        last = {name: value for name, value in outputs.items() if "auxiliary_outputs" not in name}
        others = outputs.get("auxiliary_outputs", ())
        layers = {"": last} | {f"_aux_{index}": layer for index, layer in enumerate(others)}

        varifocal = None
        if "vfl" in self.losses and 0 <= self.alpha <= 1 and self.gamma >= 0:
            varifocal = (self.alpha, self.gamma)

        supervised = list(_matched_layers(matcher, layers, targets, varifocal))
        if "dn_auxiliary_outputs" in outputs:
            if "denoising_meta_values" not in outputs:
                raise ValueError("outputs with dn_auxiliary_outputs must have denoising_meta_values")
            noisy = {f"_dn_{index}": layer for index, layer in enumerate(outputs["dn_auxiliary_outputs"])}
            pairs = self.get_cdn_matched_indices(outputs["denoising_meta_values"], targets)
            supervised += _paired_layers(noisy, targets, pairs, varifocal)
            groups = outputs["denoising_meta_values"]["dn_num_group"]
        else:
            groups = 1

        number = max(sum(len(labels_of(sample)) for sample in targets), 1)
        losses = {}
        for suffix, layer, pairs, ours in supervised:
            # In denoising every target has a query in each group.
            divisor = float(number * groups if suffix.startswith("_dn_") else number)
            for kind in self.losses:
                if kind == "masks" and suffix:
                    continue
                found = ours[kind] if kind in ours else self.get_loss(kind, layer, targets, pairs, divisor)
                losses |= {
                    f"{name}{suffix}": value * self.weight_dict[name]
                    for name, value in found.items()
                    if name in self.weight_dict
                }
        return losses

    return forward


# A layer with its losses: the suffix of their names, the outputs, the pairs, and losses by kind and name.
Supervised = tuple[str, Outputs, list[tuple[Tensor, Tensor]], dict[str, dict[str, Tensor]]]


def _matched_layers(
    matcher: HungarianMatcher, layers: Mapping[str, Outputs], targets: Samples, varifocal: tuple[float, float] | None
) -> Iterator[Supervised]:
    """Yield each layer with its losses. Successive layers of one shape are matched together."""
    for shape, neighbors in itertools.groupby(layers.items(), lambda item: item[1]["logits"].shape):
        suffixes, outputs = zip(*neighbors, strict=True)
        logits, boxes = _stacked(outputs)
        padded = pad_samples(targets, logits.device)
        matched = matcher.match(logits, boxes, padded)
        pairs = [pairs_of(layer, targets, shape[1]) for layer in matched.unbind()]
        losses = _losses_of(logits, boxes, padded, matched, varifocal)
        yield from zip(suffixes, outputs, pairs, losses, strict=True)


def _paired_layers(
    layers: Mapping[str, Outputs],
    targets: Samples,
    pairs: list[tuple[Tensor, Tensor]],
    varifocal: tuple[float, float] | None,
) -> Iterator[Supervised]:
    """Yield each layer with its losses when the pairs are known, and are those of all layers.

    A target may be in several pairs. It is then repeated for each of its queries, because `set_loss` takes one query
    for each target.
    """
    if not layers:
        return

    logits, boxes = _stacked(layers.values())
    repeated = [
        {"labels": labels_of(sample)[index.to(labels_of(sample).device)], "boxes": sample["boxes"][index]}
        for sample, (_, index) in zip(targets, pairs, strict=True)
    ]
    queries = torch.nn.utils.rnn.pad_sequence([query for query, _ in pairs], batch_first=True, padding_value=-1)

    # There is at least one row of padded targets, even if no sample has a pair.
    padded = pad_samples(repeated, logits.device)
    matched = queries.new_full(padded.labels.shape, -1)
    matched[:, : queries.shape[1]] = queries
    matched = matched.to(logits.device).expand(len(layers), -1, -1)

    of_layers = _losses_of(logits, boxes, padded, matched, varifocal)
    for (suffix, layer), losses in zip(layers.items(), of_layers, strict=True):
        yield suffix, layer, pairs, losses


def _stacked(layers: Iterable[Outputs]) -> tuple[Tensor, Tensor]:
    """Return the logits (L, B, N, C) and boxes (L, B, N, 4) of L layers."""
    logits, boxes = zip(*((layer["logits"], layer["pred_boxes"]) for layer in layers), strict=True)
    return torch.stack(logits), torch.stack(boxes)


def _losses_of(
    logits: Tensor, boxes: Tensor, targets: Targets, matched: Tensor, varifocal: tuple[float, float] | None
) -> list[dict[str, dict[str, Tensor]]]:
    """Return the losses of each layer by kind and name, divided by this process's number of targets, as in RT-DETR.

    `varifocal` is alpha and gamma of the varifocal loss. It is None if that loss is not asked for, or if they are out
    of the kernels' range.
    """
    if varifocal is None:
        # The class loss is not used, and needs no gradient.
        loss = set_loss(logits.detach(), boxes, targets, matched, class_loss="focal", per_layer=True)
    else:
        alpha, gamma = varifocal
        loss = set_loss(
            logits, boxes, targets, matched, class_loss="varifocal", alpha=alpha, gamma=gamma, per_layer=True
        )

    result = []
    for cls, l1, giou in zip(loss.cls.unbind(), loss.l1.unbind(), loss.giou.unbind(), strict=True):
        losses = {"boxes": {"loss_bbox": l1, "loss_giou": giou}}
        if varifocal is not None:
            losses["vfl"] = {"loss_vfl": cls}
        result.append(losses)
    return result


class _FocalImageLoss(SetCriterion):
    """`SetCriterion` with the focal loss, as transformers' DeformableDetrImageLoss computes it."""

    logs_class_error = False

    def __init__(
        self, matcher: HungarianMatcher, num_classes: int, losses: Iterable[str], focal_alpha: float, by_sigmoid: bool
    ) -> None:
        """Make the criterion.

        Args:
            matcher: As in `SetCriterion`.
            num_classes: As there.
            losses: As there.
            focal_alpha: As there.
            by_sigmoid: Let the cardinality count queries with a probability above 0.5, as later versions of
                transformers do. The first ones count queries whose class is not the last one.
        """
        super().__init__(num_classes, matcher, {}, losses=losses, focal_alpha=focal_alpha)
        self.by_sigmoid = by_sigmoid

    def _finds(self, logits: Tensor, predicted: Tensor) -> Tensor:
        return (logits.sigmoid() > 0.5).any(-1) if self.by_sigmoid else super()._finds(logits, predicted)


def _criterion_of(theirs: Any) -> SetCriterion | None:
    """Return what computes the losses of one of transformers' criteria, or None if that does it itself."""
    matcher = _matcher_of(theirs.matcher)
    if matcher is None or not set(theirs.losses) <= set(LOSSES):
        return None
    if _is_one_of(theirs, ["loss_for_object_detection.ImageLoss"]) and not matcher.focal:
        return ImageLoss(matcher, theirs.num_classes, theirs.eos_coef, theirs.losses)

    focal = _is_one_of(theirs, ["loss_deformable_detr.DeformableDetrImageLoss"]) and matcher.focal
    if focal and 0 <= theirs.focal_alpha <= 1:
        by_sigmoid = _counts_by_sigmoid(theirs)
        return _FocalImageLoss(matcher, theirs.num_classes, theirs.losses, theirs.focal_alpha, by_sigmoid)
    return None


def _counts_by_sigmoid(theirs: Any) -> bool:
    """Return whether the cardinality of this version of transformers counts queries by their sigmoid.

    Its two definitions are told apart by a query that only one of them counts. This runs on the CPU, so that nothing
    waits for the device.
    """
    unsure = {"logits": torch.tensor([[[-1.0, -2.0]]], device="cpu")}
    nothing = {"class_labels": torch.zeros(0, device="cpu")}
    return theirs.loss_cardinality(unsure, [nothing], [], 1)["cardinality_error"].item() == 0


def _matcher_of(theirs: Any) -> HungarianMatcher | None:
    """Return what matches as one of transformers' matchers does, or None if that does it itself."""
    if type(theirs) is HungarianMatcher:
        return theirs

    focal_options = {}
    if _is_one_of(theirs, ["loss_for_object_detection.HungarianMatcher"]):
        focal = False
    elif _is_one_of(theirs, ["loss_deformable_detr.DeformableDetrHungarianMatcher"]):
        focal = True
    elif _is_one_of(theirs, ["loss_rt_detr.RTDetrHungarianMatcher"]):
        focal = theirs.use_focal_loss
        if focal and not (0 <= theirs.alpha <= 1 and theirs.gamma >= 0):
            return None
        if focal:
            focal_options = {"alpha": theirs.alpha, "gamma": theirs.gamma}
    else:
        return None
    return HungarianMatcher(theirs.class_cost, theirs.bbox_cost, theirs.giou_cost, focal=focal, **focal_options)


def _is_one_of(criterion: Any, names: Iterable[str]) -> bool:
    """Return whether an object is of one of these classes of transformers itself, and not of a derived class."""
    kind = type(criterion)
    return f"{kind.__module__}.{kind.__qualname__}" in {f"transformers.loss.{name}" for name in names}

"""The matcher and the criterion of DETR under their usual names, so that existing code only changes its import.

    from actdet_kernels.detr import HungarianMatcher, SetCriterion  # in place of models.matcher and models.detr

    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    criterion = SetCriterion(91, matcher, weight_dict, eos_coef=0.1, losses=["labels", "boxes", "cardinality"])
    losses = criterion(outputs, targets)
    sum(losses[name] * weight for name, weight in weight_dict.items()).backward()

The models of Hugging Face's transformers build their criterion in a loss function, in which
`hugging_face.patch_transformers` replaces it.

All decoder layers are matched together, and their losses are computed together, by `match` and `set_loss`, without
waiting for the device. Values and gradients are those of the originals: Carion et al. 2020
(github.com/facebookresearch/detr), Zhu et al. 2021 (github.com/fundamentalvision/Deformable-DETR), and transformers'
loss_for_object_detection. The differences are:

- Boxes without an area have a GIoU of 0, where theirs is NaN.
- Boxes of a negative size are no error.
- Half precision is computed in float32.
- A cross entropy whose weights add up to zero is 0, where theirs is NaN.
- A label for which there is no logit makes the class loss NaN, where theirs stops the process.

The matcher and the criteria come first, then the functions that they and hugging_face.py use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actdet_kernels.cost import MatchWeights, check_focal
from actdet_kernels.loss import SetLoss, set_loss
from actdet_kernels.matching import match
from actdet_kernels.reference import FOCAL_ALPHA, FOCAL_GAMMA
from actdet_kernels.targets import Targets, Tubelets, labels_of, pad_targets

__all__ = ["HungarianMatcher", "ImageLoss", "SetCriterion"]

LOSSES = ("labels", "boxes", "cardinality")

# The methods by which the originals compute one loss of one layer. Code that overrides one would be ignored here.
SINGLE_LOSSES = ("get_loss", "loss_labels", "loss_boxes", "loss_cardinality")

# The outputs that hold those of other layers.
OTHER_LAYERS = ("aux_outputs", "auxiliary_outputs", "enc_outputs")

Pairs = Sequence[tuple[Any, Any]]


class HungarianMatcher(nn.Module):
    """The cheapest one-to-one matching of queries and targets (eq. 10 and 11).

    Args:
        cost_class: The weight of the class term.
        cost_bbox: The weight of the L1 distance of the boxes.
        cost_giou: The weight of 1 - GIoU.
        class_cost: transformers' name of cost_class, which it overrides.
        bbox_cost: transformers' name of cost_bbox, which it overrides.
        giou_cost: transformers' name of cost_giou, which it overrides.
        focal: Use the class term of Deformable DETR, in which every logit is a class, in place of -softmax.
        alpha: Of the focal term, in [0, 1].
        gamma: Of the focal term, at least 0.

    Raises:
        ValueError: All weights are 0, or alpha or gamma is out of its range.
    """

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        *,
        class_cost: float | None = None,
        bbox_cost: float | None = None,
        giou_cost: float | None = None,
        focal: bool = False,
        alpha: float = FOCAL_ALPHA,
        gamma: float = FOCAL_GAMMA,
    ) -> None:
        super().__init__()
        self.cost_class = cost_class if class_cost is None else class_cost
        self.cost_bbox = cost_bbox if bbox_cost is None else bbox_cost
        self.cost_giou = cost_giou if giou_cost is None else giou_cost
        self.focal = focal
        self.alpha = alpha
        self.gamma = gamma
        check_focal(alpha, gamma)
        if self.cost_class == self.cost_bbox == self.cost_giou == 0:
            raise ValueError("all costs of the matcher are 0")

    def extra_repr(self) -> str:
        focal = ", focal=True" if self.focal else ""
        if (self.alpha, self.gamma) != (FOCAL_ALPHA, FOCAL_GAMMA):
            focal += f", alpha={self.alpha}, gamma={self.gamma}"
        return f"cost_class={self.cost_class}, cost_bbox={self.cost_bbox}, cost_giou={self.cost_giou}{focal}"

    def match(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """Return the query of each target, which the criterion uses in place of lists of pairs.

        Args:
            logits: (..., B, N, C).
            boxes: (..., B, N, 4) cxcywh.
            targets: B samples of M padded rows.

        Returns:
            (..., B, M) int64, or -1 for no query.
        """
        weights = MatchWeights(self.cost_class, self.cost_bbox, self.cost_giou)
        class_cost = "focal" if self.focal else "softmax"
        return match(logits, boxes, targets, weights=weights, class_cost=class_cost, alpha=self.alpha, gamma=self.gamma)

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs of each sample.

        The pairs are on the device of the predictions, and are not waited for, because their number is known from the
        targets. The originals copy a cost matrix to the host, and their pairs are on the CPU. Both index tensors alike.

        Args:
            outputs: "pred_logits" or "logits" (B, N, C), and "pred_boxes" (B, N, 4) cxcywh.
            targets: For each sample "labels" or "class_labels" (m,), and "boxes" (m, 4) cxcywh.

        Returns:
            (queries, targets) of each sample, both (min(N, m),) int64, by ascending query.
        """
        logits = logits_of(outputs)
        matched = self.match(logits, outputs["pred_boxes"], pad_samples(targets, logits.device))
        return pairs_of(matched, targets, logits.shape[-2])


class SetCriterion(nn.Module):
    """The losses of DETR for every decoder layer, each without its weight.

    All layers are computed together, so a subclass cannot change a single loss: `forward` raises TypeError if it has
    `get_loss`, `loss_labels`, `loss_boxes` or `loss_cardinality`.

    Args:
        num_classes: The number of classes without no_object, which is the last logit.
        matcher: A `HungarianMatcher`, or any other callable with its arguments and results. Another one is called for
            one layer after the other, and its pairs are read on the host. `forward` raises ValueError if it gives a
            query or a target twice, or one that does not exist.
        weight_dict: Kept for the caller, who multiplies the losses by it.
        eos_coef: The weight of no_object in the cross entropy. The buffer `empty_weight` holds it for state dicts, as
            (num_classes + 1,) class weights, of which all others are 1. If that buffer is changed, replaced or loaded,
            its weights of all classes apply, which costs one wait for the device.
        losses: Some of "labels", "boxes" and "cardinality". There are no mask losses.
        focal_alpha: Given in place of `eos_coef`, it makes the class loss the sigmoid-focal loss of Deformable DETR, of
            this alpha and gamma 2, in which every logit is a class: `SetCriterion(num_classes, HungarianMatcher(...,
            focal=True), weight_dict, losses=losses, focal_alpha=0.25)`. As in the original, the cardinality still takes
            the last logit for no_object.

    Raises:
        ValueError: There are both or neither of `eos_coef` and `focal_alpha`, focal_alpha is not in [0, 1] or does not
            go with the matcher, or `losses` names an unknown loss.
    """

    matcher: Any
    empty_weight: Tensor | None
    logs_class_error = True

    def __init__(
        self,
        num_classes: int,
        matcher: Callable[..., Any],
        weight_dict: dict[str, float],
        eos_coef: float | None = None,
        losses: Iterable[str] = LOSSES,
        *,
        focal_alpha: float | None = None,
    ) -> None:
        super().__init__()

        if (eos_coef is None) == (focal_alpha is None):
            raise ValueError("SetCriterion needs either eos_coef (DETR) or focal_alpha (Deformable DETR)")
        if focal_alpha is not None and not 0 <= focal_alpha <= 1:
            raise ValueError(f"focal_alpha must be in [0, 1], got {focal_alpha}")
        if isinstance(matcher, HungarianMatcher) and matcher.focal != (eos_coef is None):
            raise ValueError("focal_alpha and HungarianMatcher(focal=True) go together, but only one is given")

        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.losses = list(losses)
        self.focal_alpha = focal_alpha
        _check_losses(self.losses)

        weight = None if eos_coef is None else torch.tensor([1.0] * num_classes + [eos_coef])
        self.register_buffer("empty_weight", weight)
        self._eos_coef = eos_coef

        # The buffer that `_eos_coef` belongs to, and how often that had been changed when it was read. The host can
        # compare both with the present ones without waiting for the device.
        self._weight_read = (weight, 0 if weight is None else weight._version)
        self._weighs_classes = False
        self.register_load_state_dict_post_hook(_take_changed_weight)

    @property
    def eos_coef(self) -> float | None:
        """The weight of no_object. Setting it also writes it into `empty_weight`."""
        return self._eos_coef

    @eos_coef.setter
    def eos_coef(self, value: float | None) -> None:
        self._eos_coef = value
        weight = self.empty_weight
        if weight is not None and value is not None:
            weight[-1] = value
        self._weight_read = (weight, 0 if weight is None else weight._version)

    def __getstate__(self) -> dict[str, Any]:
        # The copy of a tensor counts its changes from the start, so a copy of the criterion has to read its own buffer.
        return self.__dict__ | {"_weight_read": (None, 0)}

    def extra_repr(self) -> str:
        kind = f"focal_alpha={self.focal_alpha}" if self.eos_coef is None else f"eos_coef={self.eos_coef}"
        return f"num_classes={self.num_classes}, {kind}, losses={self.losses}"

    def forward(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Compute the losses of all layers.

        - "labels" gives loss_ce, and class_error, the percentage of matched queries whose class is not that of their
          target (100 if there are no pairs).
        - "boxes" gives loss_bbox and loss_giou, sums over the matched pairs divided by the number of targets. Where
          torch.distributed runs, that number is its average over the processes. It is at least 1.
        - "cardinality" gives cardinality_error, the mean over samples of how far the number of queries that are not
          no_object is from the number of targets.

        Args:
            outputs: Those of the last layer, as for the matcher. "aux_outputs" or "auxiliary_outputs" lists the same
                of other decoder layers, all of one shape. "enc_outputs" has the same of the encoder of a two-stage
                Deformable DETR, for which every target is of class 0.
            targets: As for the matcher. Those on another device are copied, three tensors in all.

        Returns:
            The losses by name, 0-d, float32, or float64 if logits or boxes are. Names of auxiliary layer i end in _i,
            those of the encoder in _enc. Only the last layer has class_error.

        Raises:
            ValueError: Shapes, dtypes or devices disagree, or the matcher's pairs are impossible.
            TypeError: A single loss is overridden.
        """
        for name in SINGLE_LOSSES:
            if hasattr(self, name):
                kind = type(self).__name__
                raise TypeError(f"{kind}.{name} would have no effect: SetCriterion computes all losses together")
        _check_losses(self.losses)
        _take_changed_weight(self)

        others = outputs.get("aux_outputs", outputs.get("auxiliary_outputs")) or []
        last = {name: value for name, value in outputs.items() if name not in OTHER_LAYERS}
        result, *auxiliary = self._of_layers([last, *others], targets)
        named = {str(index): layer for index, layer in enumerate(auxiliary)}
        if self.eos_coef is None and "enc_outputs" in outputs:
            binary = [{"labels": _zero_for_each(labels_of(sample)), "boxes": sample["boxes"]} for sample in targets]
            (named["enc"],) = self._of_layers([outputs["enc_outputs"]], binary)

        for suffix, layer in named.items():
            result |= {f"{name}_{suffix}": value for name, value in layer.items() if name != "class_error"}
        return result

    def _of_layers(
        self, layers: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """Return the losses of each layer."""
        logits = torch.stack([logits_of(layer) for layer in layers])
        boxes = torch.stack([layer["pred_boxes"] for layer in layers])
        focal = self.eos_coef is None
        if logits.shape[-1] != self.num_classes + (not focal):
            raise ValueError(
                f"with num_classes={self.num_classes} there must be {self.num_classes + (not focal)} logits, "
                f"got {logits.shape[-1]}"
            )

        padded = pad_samples(targets, logits.device)
        if type(self.matcher) is HungarianMatcher and "forward" not in vars(self.matcher):
            matched = self.matcher.match(logits, boxes, padded)
        else:
            counts = [len(labels_of(sample)) for sample in targets]
            shape = (logits.shape[-2], padded.labels.shape[1])
            matched = torch.stack([_from_pairs(self.matcher(layer, targets), counts, *shape) for layer in layers])
            matched = matched.to(logits.device, non_blocking=True)

        weight = self.empty_weight
        if weight is not None:
            weight = weight.to(logits.device, non_blocking=True) if self._weighs_classes else None

        loss = set_loss(
            logits,
            boxes,
            padded,
            matched,
            class_weights=weight,
            no_object_weight=self.eos_coef or 0.0,
            class_loss="focal" if focal else "cross_entropy",
            alpha=FOCAL_ALPHA if self.focal_alpha is None else self.focal_alpha,
            per_layer=True,
        )
        loss = _average_targets_over_processes(loss, padded, focal)

        predicted = logits.detach().argmax(-1)
        values = {}
        for kind in self.losses:
            if kind == "labels":
                values["loss_ce"] = loss.cls
                if self.logs_class_error:
                    values["class_error"] = _class_error(predicted, padded, matched)
            elif kind == "boxes":
                values["loss_bbox"] = loss.l1
                values["loss_giou"] = loss.giou
            elif kind == "cardinality":
                values["cardinality_error"] = _cardinality_error(self._finds(logits.detach(), predicted), padded)

        # Unlike the results of unbind, these may be changed in place, as `losses[name] *= weight` does.
        split = {name: torch.unsafe_split(value, 1) for name, value in values.items()}
        return [{name: parts[index].squeeze(0) for name, parts in split.items()} for index in range(len(layers))]

    def _finds(self, logits: Tensor, predicted: Tensor) -> Tensor:
        """Return which queries count in the cardinality, (L, B, N) bool. `predicted` has the largest logit of each."""
        return predicted != logits.shape[-1] - 1


class ImageLoss(SetCriterion):
    """`SetCriterion` with the arguments of transformers' ImageLoss, and without class_error.

    It has no buffer, because transformers builds a criterion for every batch, and moving a buffer would wait for the
    device. Box losses are divided by DETR's average number of targets over the processes. In transformers that is
    divided by the number of processes once more.

    Args:
        matcher: As in `SetCriterion`.
        num_classes: As there.
        eos_coef: As there.
        losses: As there.
    """

    logs_class_error = False

    def __init__(self, matcher: Callable[..., Any], num_classes: int, eos_coef: float, losses: Iterable[str]) -> None:
        super().__init__(num_classes, matcher, {}, eos_coef, losses)
        self.empty_weight = None


def logits_of(outputs: Mapping[str, Any]) -> Tensor:
    """Return the logits, which are called "pred_logits" in DETR and "logits" in Hugging Face's transformers."""
    return outputs["logits" if "logits" in outputs else "pred_logits"]


def _zero_for_each(labels: Any) -> Tensor:
    """Return class 0 for every target, (m,), also if the targets have several labels."""
    return torch.zeros(len(labels), dtype=torch.int64, device=labels.device if isinstance(labels, Tensor) else None)


def pad_samples(targets: Sequence[Mapping[str, Tensor]], device: torch.device) -> Targets:
    """Return the targets padded on `device`, or raise ValueError if they are tubelets, which DETR does not have."""
    padded = pad_targets(targets, device)
    if isinstance(padded, Tubelets):
        raise ValueError(f"boxes must be (m, 4) here, got tubelets of {padded.boxes.shape[2]} frames")
    return padded


def pairs_of(matched: Tensor, targets: Sequence[Mapping[str, Tensor]], queries: int) -> list[tuple[Tensor, Tensor]]:
    """Turn `matched (B, M)` into the pairs that a matcher returns, on the same device and without waiting for it.

    Args:
        matched: (B, M) int64, the query of each target.
        targets: The targets of each sample.
        queries: N, the number of queries of each sample.

    Returns:
        (queries, targets) of each sample, both (min(N, m),) int64, by ascending query.
    """
    sizes = [min(len(labels_of(sample)), queries) for sample in targets]

    # Targets without a query are sorted to the end, where they are cut off.
    by_query = matched.masked_fill(matched < 0, queries).sort(-1)
    return [(query[:size], target[:size]) for query, target, size in zip(*by_query, sizes, strict=True)]


def _from_pairs(pairs: Pairs, counts: list[int], number: int, size: int) -> Tensor:
    """Turn the pairs of every sample into what `match` returns, (B, size) int64 on the CPU.

    Args:
        pairs: (queries, targets) of each sample.
        counts: The number of targets of each sample.
        number: The number of queries of each sample.
        size: M, the number of padded targets.
    """
    if len(pairs) != len(counts):
        raise ValueError(f"the matcher must give pairs for {len(counts)} samples, got {len(pairs)}")

    rows = []
    for sample, (queries, targets) in enumerate(pairs):
        queries = torch.as_tensor(queries).tolist()
        targets = torch.as_tensor(targets).tolist()
        for kind, given, there in (("query", queries, number), ("target", targets, counts[sample])):
            for index in given:
                if not 0 <= index < there:
                    raise ValueError(
                        f"the matcher's {kind} indices of sample {sample} must be in [0, {there}), got {index}"
                    )
        if len(set(queries)) < len(queries) or len(set(targets)) < len(targets):
            raise ValueError(f"the matcher gives a query or a target of sample {sample} twice")

        query_of = dict(zip(targets, queries, strict=True))
        rows.append([query_of.get(target, -1) for target in range(size)])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, size)


def _average_targets_over_processes(loss: SetLoss, targets: Targets, focal: bool) -> SetLoss:
    """Divide losses by the average number of targets of all processes, at least 1, instead of that of this process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return loss

    own = targets.counts.sum().to(loss.l1.dtype)
    average = own.clone()
    torch.distributed.all_reduce(average)
    share = own.clamp(min=1) / (average / torch.distributed.get_world_size()).clamp(min=1)
    return loss._replace(cls=loss.cls * share if focal else loss.cls, l1=loss.l1 * share, giou=loss.giou * share)


def _class_error(predicted: Tensor, targets: Targets, matched: Tensor) -> Tensor:
    """Return the percentage of pairs (L,) whose query's class, of `predicted (L, B, N)`, is not its target's.

    Without pairs it is 100.
    """
    if predicted.shape[-1] == 0:
        return predicted.new_full(predicted.shape[:1], 100, dtype=torch.float32)

    pairs = matched >= 0
    found = predicted.gather(-1, matched.clamp(min=0))
    if targets.labels.ndim == 2:
        right = pairs & (found == targets.labels)
    else:
        right = pairs & (found[..., None] == targets.labels).any(-1)
    return 100 - 100 * right.sum((-2, -1)) / pairs.sum((-2, -1)).clamp(min=1)


def _cardinality_error(found: Tensor, targets: Targets) -> Tensor:
    """Return the mean over samples (L,) of |number of queries that find something - number of targets|."""
    if found.shape[1] == 0:
        return found.new_zeros(found.shape[:1], dtype=torch.float32)
    return (found.sum(-1) - targets.counts).abs().mean(-1, dtype=torch.float32)


def _check_losses(losses: list[str]) -> None:
    if "masks" in losses:
        raise ValueError("there are no mask losses here: leave 'masks' out of losses")
    for loss in losses:
        if loss not in LOSSES:
            raise ValueError(f"losses must be among {', '.join(map(repr, LOSSES))}, got {loss!r}")


def _take_changed_weight(criterion: SetCriterion, *_: Any) -> None:
    """Take the weights of classes from `empty_weight` if it was loaded, changed or replaced since it was last read.

    It is read only then, because reading waits for the device.
    """
    weight = criterion.empty_weight
    read, version = criterion._weight_read
    if weight is None or (weight is read and weight._version == version):
        return
    if criterion.eos_coef is None:
        raise ValueError("the focal loss of focal_alpha has no empty_weight")
    if weight.shape != (criterion.num_classes + 1,):
        raise ValueError(f"empty_weight must be ({criterion.num_classes + 1},), got {tuple(weight.shape)}")

    *classes, no_object = weight.tolist()
    criterion._weighs_classes = any(value != 1 for value in classes)
    # eos_coef is not rounded to the buffer's dtype, so it stays if the buffer holds just its rounded value.
    if no_object != torch.tensor(criterion.eos_coef).to(weight.dtype).item():
        criterion.eos_coef = no_object
    criterion._weight_read = (weight, weight._version)

"""The trained detector as one function for `actdet export`: frames as bytes go in, the answer for each clip comes out.

    uint8 frames -> normalization -> backbone without BatchNorm -> Transformer and heads -> the rule of `decision`

It computes what the detector computes, in operators that every runtime has, with any number of clips at a time. The set
of actions is not among its outputs, because its size depends on the values: `actions` makes it from `probabilities` and
`boxes`, which are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from actdet.data.augment import normalize
from actdet.models.backbones.folding import fold_norms
from actdet.models.backbones.r2plus1d import SPATIAL_STRIDE
from actdet.models.detr.decision import action_probabilities, decide
from actdet.models.detr.features import FramePairs
from actdet.models.exportable import Exportable
from actdet.models.family import Decision

if TYPE_CHECKING:
    from actdet.models.detr.detector import ActionDetector, Predictions


class ExportableDetector(Exportable):
    """Clips (B, T, S, S, 3) uint8 RGB to tensors by name.

    label: (B,) int64, class of the clip's surest action; the number of action classes if there is none.
    score: (B,) float32, the probability that the clip holds an action of the most likely class, in [0, 1].
    box: (B, 4) float32, cxcywh as shares of the picture, where that action is.
    probabilities: (B, N, C - 1) float32, for each query and class, that the query stands for such an action.
    logits: (B, N, C) float32, those of the detector; the last class is no_object.
    boxes: (B, N, 4) float32, those of the detector, cxcywh as shares of the picture.

    Args:
        detector: The detector. It is copied, to the CPU.
        no_object_weight: The weight of no_object in training, which the rule takes back.
        threshold: The lowest score at which an action counts.
    """

    def __init__(self, detector: ActionDetector, *, no_object_weight: float, threshold: float) -> None:
        super().__init__(detector)
        self.no_object_weight = no_object_weight
        self.threshold = threshold
        self._decide = partial(decide, no_object_weight=no_object_weight, threshold=threshold)

        # Only the last decoder layer's predictions are used.
        copied = self.network
        copied.config = replace(copied.config, deep_supervision=False)
        side = copied.config.image_size // SPATIAL_STRIDE
        copied.add_module("pool", exportable_pool((copied.grid[0], side, side), copied.grid))
        if not isinstance(copied.backbone, FramePairs):
            copied.add_module("backbone", fold_norms(copied.backbone))

        # What has replaced modules is in evaluation mode, too.
        self.eval()

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        features = self.network.backbone(self.normalized(clips))
        predictions = self.network.detect(features).final()
        return self._answer(predictions, predictions)

    def expected(self, network: ActionDetector, clips: Tensor, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        predictions = network(normalize(clips)).final()
        answer = self._answer(predictions, predictions._replace(logits=found["logits"], boxes=found["boxes"]))
        # The file's own logits and boxes come first: if they are wrong, what the rule makes of them says nothing.
        return dict(sorted(answer.items(), key=lambda item: item[0] in Decision._fields))

    def _answer(self, predictions: Predictions, of_rule: Predictions) -> dict[str, Tensor]:
        """The outputs by name, where the rule is applied to `of_rule`."""
        decision = self._decide(*of_rule)
        return {
            "label": decision.label,
            "score": decision.score,
            "box": decision.box,
            "probabilities": action_probabilities(predictions.logits, self.no_object_weight),
            **predictions._asdict(),
        }


def exportable_pool(sides: tuple[int, ...], grid: tuple[int, ...]) -> nn.Module:
    """What nn.AdaptiveAvgPool3d(grid) computes for features (B, C, *sides), in operators that ONNX has.

    Args:
        sides: T', H', W' of the features.
        grid: T", H", W" of the result; T" is T'.
    """
    if sides == grid:
        return nn.Identity()
    assert sides[0] == grid[0]
    if sides[1] % grid[1] == 0 and sides[2] % grid[2] == 0:
        return nn.AvgPool3d((1, sides[1] // grid[1], sides[2] // grid[2]))
    return _ProductPool(sides, grid)


class _ProductPool(nn.Module):
    """Averages over windows that may overlap, as products with two small matrices: one for rows, one for columns."""

    rows: Tensor
    columns: Tensor

    def __init__(self, sides: tuple[int, ...], grid: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("rows", _window_weights(sides[1], grid[1]))
        self.register_buffer("columns", _window_weights(sides[2], grid[2]).T.contiguous())

    def forward(self, features: Tensor) -> Tensor:
        # (H", H') @ (..., H', W') @ (W', W")
        return self.rows @ (features @ self.columns)


def _window_weights(side: int, cells: int) -> Tensor:
    """(cells, side) float32: how much each position counts in the average of each cell of adaptive pooling.

    Cell i covers the positions from floor(i * side / cells) to ceil((i + 1) * side / cells).
    """
    weights = torch.zeros(cells, side)
    for cell in range(cells):
        first = cell * side // cells
        end = -(-(cell + 1) * side // cells)
        weights[cell, first:end] = 1 / (end - first)
    return weights

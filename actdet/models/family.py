"""The contract of a model family: what training, evaluation and prediction need to know of a network, and no more.

A family is a network with its configuration, the losses that train it and the rule that turns its outputs into
actions. `actdet.models.detr` is the first. Another family is a folder beside it whose network has what `Family` lists;
nothing is inherited, and nothing has to be registered except the name that its checkpoints carry
(`actdet.models.checkpoints`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

Outputs = TypeVar("Outputs")

Truth = Literal["clip_box", "tubelet", "keyframe_box", "label"]
"""What a family learns from: a box per clip, a box in every frame of it, boxes of its key frame, or its label alone."""


class FamilyConfig(Protocol):
    """What the configuration of every family says; each adds its own settings. It is a frozen dataclass."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the action classes, in the order of their numbers."""
        ...

    @property
    def frames(self) -> int:
        """How many frames of a clip the network sees (T)."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square picture to which each frame is scaled, in pixels (S)."""
        ...


class Detection(Protocol):
    """An action that a family found in a clip; each family adds where it is."""

    @property
    def label(self) -> int:
        """Class, counted from 0."""
        ...

    @property
    def score(self) -> float:
        """How sure the family is of it, in [0, 1]."""
        ...


class Family(Protocol[Outputs]):
    """A network of a family, which is an nn.Module.

    `Outputs` is what its forward pass returns: a NamedTuple of tensors whose batch dimension is that of the clips.
    """

    @property
    def config(self) -> FamilyConfig:
        """What the network was built from; a checkpoint records it."""
        ...

    @property
    def truth(self) -> Truth:
        """What the loader has to cut out of the annotations for `losses`."""
        ...

    def forward(self, clips: Tensor) -> Outputs:
        """Compute the outputs for normalized clips (B, 3, T, S, S), floating point."""
        ...

    def losses(self, outputs: Outputs, targets: Any, weights: Any) -> dict[str, Tensor]:
        """Compare outputs with the truth, without waiting for the device.

        Args:
            outputs: What `forward` returned.
            targets: What the loader gives for `truth`, on the device of the outputs.
            weights: The family's own settings of its losses.

        Returns:
            0-d tensors by name. "total" is what training minimizes; the others are for the log.
        """
        ...

    def detections(self, outputs: Outputs, weights: Any, *, threshold: float) -> Sequence[Sequence[Detection]]:
        """Turn outputs into the actions of each clip, the surest first.

        This is the only place that knows the family's rule: which queries or peaks count, and which of them are one
        action.

        Args:
            outputs: What `forward` returned.
            weights: The settings of the losses that the network was trained with.
            threshold: The lowest score at which an action counts, in [0, 1].

        Returns:
            For each of the B clips its actions, none if it has none.
        """
        ...

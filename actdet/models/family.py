"""The contract of a model family: what training, evaluation and prediction need to know of a network, and no more.

A family is a network with its configuration, the losses that train it and the rule that turns its outputs into
actions. `actdet.models.detr` is the first. Another family is a folder beside it whose network has what `FamilyNetwork`
lists, and an entry in `actdet.models.families`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from actdet_kernels import Targets
from torch import Tensor, nn

from actdet.data.truth import TruthKind
from actdet.detections import THRESHOLD, Action
from actdet.distributed import ALONE, Processes
from actdet.models.config import FamilyConfig
from actdet.models.exportable import Exportable


class Decision(NamedTuple):
    """One answer for each of B clips."""

    label: Tensor
    """(B,) int64, class of the action; the number of action classes if there is none."""
    score: Tensor
    """(B,) the score of the most likely class, in [0, 1], whether it passed the threshold or not."""
    box: Tensor
    """(B, 4) cxcywh in [0, 1], where an action of the most likely class is."""
    likeliest: Tensor
    """(B,) int64, the most likely class, which `score` and `box` are of, whether it passed the threshold or not."""


class Tracks(NamedTuple):
    """Who is where in K neighboring frames of each of B clips, and what each of S actors does in each frame."""

    scores: Tensor
    """(B, S, K, C), the probability of each action class."""
    boxes: Tensor
    """(B, S, K, 4) x1 y1 x2 y2 in [0, 1]."""
    first: int = 0
    """Which of the T frames of a clip, numbered from 0, is the first of the K."""


class Detections(NamedTuple):
    """What a network finds in B clips."""

    decision: Decision
    """One answer for each clip."""
    actions: list[tuple[Action, ...]]
    """The set of actions of each clip, the surest first; none if it has none. The first one is what `decision` says."""
    tracks: tuple[Tracks, ...] = ()
    """What a network that follows actors from frame to frame says of all T frames of a clip, or of parts of it in turn.

    Each part begins after the one before it, and ends no earlier. Parts may overlap and may leave frames out, and their
    actors need not have the same order: evaluation and prediction link them, as they link the windows of a video. They
    take every row for an actor of his own, so where several rows of a part may be one actor, suppress all but the best
    (`actdet.models.suppression`). None if the network does not follow actors.
    """


class Candidates(NamedTuple):
    """All N places of each of B clips that a network considered, for figures that rank them, such as average precision.

    Confidences need not be probabilities, and several candidates may stand for one action.
    """

    label: Tensor
    """(B, N) int64, the most likely class."""
    confidence: Tensor
    """(B, N), by which candidates are ranked."""
    box: Tensor
    """(B, N, 4) cxcywh in [0, 1]."""


class Assessment(NamedTuple):
    """What the outputs for n clips come to, from which `actdet.evaluation.metrics` makes its figures."""

    detections: Detections
    """At the usual threshold."""
    candidates: Candidates
    """N for each clip."""
    targets: Targets
    """The annotations of the n clips, with one box for each action."""
    matched: Tensor
    """(n, M) int64, the candidate that training would compare with each annotation; negative for none."""
    losses: dict[str, float]
    """The losses over all n clips, by name: "total", and the terms in the `term_weights` of the loss's settings."""


class Outputs(Protocol):
    """What a network's forward pass returns: a NamedTuple of tensors."""

    def final(self) -> Any:
        """Return the part that detections are made of, a NamedTuple of tensors whose first dimension is the clips."""
        ...


ConfigT = TypeVar("ConfigT", bound=FamilyConfig)
OutputsT = TypeVar("OutputsT", bound=Outputs)


class FamilyNetwork(nn.Module, ABC, Generic[ConfigT, OutputsT]):
    """What the network of each family has: at least the methods without a body here.

    Attributes:
        config: What the network was built from; a checkpoint records it.
        truth: What the loader has to cut out of the annotations for `losses`.
        loss_names: The names of what `losses` returns, "total" first.
        rule: What the box and the score of an action are, in sentences for the readers of a report.
        backbone: The module that turns normalized clips (B, 3, T, S, S), floating point, into features. S is the image
            size, or 0.7 of it in `small_epochs`. It may have what some settings of a training need: a method
            `load_weights(source)` for `backbone_weights`, a flag `shallow` for `shallow_epochs`, and a flag
            `checkpointing`, as `backbones.r2plus1d.Backbone` has them.
    """

    config: ConfigT
    truth: TruthKind
    loss_names: tuple[str, ...]
    rule: str
    backbone: Any

    def forward(self, clips: Tensor) -> OutputsT:
        """Compute the outputs for normalized clips (B, 3, T, S, S), floating point."""
        return self.detect(self.backbone(clips))

    def hints(self, targets: Any) -> Any:
        """Make what a training step shows the network of the truth, such as noisy copies of it to clean up.

        Args:
            targets: What the loader gives for `truth`.

        Returns:
            A NamedTuple of tensors; None if there are no hints.
        """
        return None

    @abstractmethod
    def detect(self, features: Any, hints: Any = None) -> OutputsT:
        """Compute what follows the backbone.

        It may run under autocast. Bf16 has too few bits for a coordinate, so outputs should be computed in float32.

        Args:
            features: What the backbone returned.
            hints: In training what `hints` returned. `losses` finds what the network made of them in the outputs.
        """

    @abstractmethod
    def losses(
        self,
        outputs: OutputsT,
        targets: Any,
        weights: Any,
        *,
        auxiliary_output: Tensor | None = None,
        auxiliary_weight: float = 0.0,
        processes: Processes = ALONE,
    ) -> dict[str, Tensor]:
        """Compare outputs with the truth, without waiting for the device.

        Args:
            outputs: What `forward` returned.
            targets: What the loader gives for `truth`, on the device of the outputs.
            weights: The family's own settings of its losses.
            auxiliary_output: What the layer of `auxiliary_head` returned, if there is one.
            auxiliary_weight: Weight of the auxiliary loss in the total; 0 if there is none.
            processes: The processes that share the batch. The losses are of this process's share, and their mean over
                the processes is that of the whole batch.

        Returns:
            0-d tensors by the names in `loss_names`. "total" is what training minimizes; the others are for the log.
        """

    @abstractmethod
    def detections(self, final: Any, weights: Any, *, threshold: float = THRESHOLD) -> Detections:
        """Turn outputs into actions.

        This is the only place that knows the family's rule: which queries or peaks count, and which of them are one
        action.

        Args:
            final: What `Outputs.final` returned for B clips, on the network's device.
            weights: The settings of the losses that the network was trained with.
            threshold: The lowest score at which an action counts, in [0, 1].
        """

    @abstractmethod
    def assess(self, final: Any, targets: Any, weights: Any) -> Assessment:
        """Compare outputs with the truth, as an evaluation does.

        Args:
            final: What `Outputs.final` returned for n clips, on the CPU, in float32.
            targets: The annotations of the n clips, as the loader gives them for `truth`.
            weights: The settings of the losses that the network was trained with.
        """

    def exportable(self, weights: Any, *, threshold: float = THRESHOLD) -> Exportable:
        """Make the network as one function of frames, for `actdet export`.

        Args:
            weights: The settings of the losses that the network was trained with.
            threshold: The lowest score at which an action counts, in [0, 1].
        """
        return Exportable(self)

    def auxiliary_head(self) -> nn.Module | None:
        """Make the layer that only training has, from features to an output that `losses` compares with the truth, too.

        Returns:
            The layer; None if the family has no auxiliary loss.
        """
        return None

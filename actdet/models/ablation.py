"""What a family's paper measured of the parts of its detector: which settings each row changes, and what came of it.

Nothing here imports PyTorch, so that the command line can name the tables at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One training of an ablation."""

    reported: tuple[float, ...]
    """The paper's figures, in the order of the table's."""
    model: Mapping[str, Any] = {}
    """The settings of the network that it changes."""
    loss: Mapping[str, Any] = {}
    """The settings of the losses that it changes."""


class AblationTable(NamedTuple):
    """A table of a paper."""

    source: str
    """Which table of which paper it is."""
    figures: Mapping[str, tuple[str, ...]]
    """What is compared, by its name for people: the way to the figure in metrics.json."""
    rows: Mapping[str, Row]
    """The trainings, by their names. What two tables of a family call the same is the same row."""

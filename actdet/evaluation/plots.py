"""The plots of a report, as SVG: how a training went, and whether scores are the probabilities they claim to be."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actdet.evaluation.metrics import READABLE_TERMS, ReliabilityBin
from actdet.run_log import read_log

# Importing matplotlib takes a while, so it is imported only by the functions that draw.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Lines of fewer points show each of them.
_FEW_POINTS = 30


def training_curve(log: Path) -> str | None:
    """The loss with its terms, and the metrics of the held-out clips, over the epochs of a training.

    Args:
        log: The training's log.jsonl.

    Returns:
        SVG; None if the log has neither losses nor metrics.
    """
    from matplotlib.figure import Figure

    records = read_log(log)
    losses = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation" in record]
    if not losses and not validations:
        return None

    count = 2 if losses and validations else 1
    figure = Figure(figsize=(4.5 * count, 3), layout="constrained")
    plots = figure.subplots(1, count, squeeze=False)[0]
    if losses:
        _plot_losses(plots[0], losses)
    if validations:
        _plot_validations(plots[-1], validations)
    return _svg(figure)


def _plot_losses(axes: Any, records: Sequence[dict[str, Any]]) -> None:
    """Plot the training loss, and its terms times their weights, which add up to it."""
    lines = {}
    for term in records[0]["loss"]:
        # A loss that the training does not use is logged as 0.
        values = [record["loss"].get(term, 0.0) for record in records]
        if term != "total" and not any(values):
            continue

        # Logs of earlier versions do not record the weights, and the total has none.
        weights = [record.get("loss_weights", {}).get(term, 1.0) for record in records]
        label = READABLE_TERMS.get(term, term)
        lines[label] = [value * weight for value, weight in zip(values, weights, strict=True)]
    _plot(axes, records, lines)
    axes.set(title="training loss and its weighted terms", xlabel="epoch", yscale="log")


def _plot_validations(axes: Any, records: Sequence[dict[str, Any]]) -> None:
    """Plot the metrics of the held-out clips."""
    figures = {"video_accuracy": "video accuracy", "detection_accuracy": "detection accuracy", "mean_iou": "mean IoU"}
    lines = {label: [record["validation"][figure] for record in records] for figure, label in figures.items()}
    _plot(axes, records, lines)
    axes.set(title="held-out clips", xlabel="epoch", ylim=(0, 1.02))


def _plot(axes: Any, records: Sequence[dict[str, Any]], lines: dict[str, list[float | None]]) -> None:
    """Draw a line for each label in `lines`, with a value for each record, over the epochs of the records."""
    epochs = np.array([record["epoch"] for record in records])
    marker = "." if len(records) < _FEW_POINTS else None
    for label, values in lines.items():
        axes.plot(epochs, values, label=label, marker=marker)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def reliability_curve(bins: Sequence[ReliabilityBin]) -> str | None:
    """How often the detector is right by how sure it is, with the number of clips at each point.

    Args:
        bins: Clips with similar scores: their `count`, their mean `score`, and the share that is right, `accuracy`.

    Returns:
        SVG; None if there are no clips.
    """
    from matplotlib.figure import Figure

    filled = [part for part in bins if part.count]
    if not filled:
        return None

    figure = Figure(figsize=(4.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1, label="right as often as it is sure")

    scores = [part.score or 0.0 for part in filled]
    accuracies = [part.accuracy or 0.0 for part in filled]
    axes.plot(scores, accuracies, color="#1f77b4", marker="o", label="clips, and how many")
    for part, score, accuracy in zip(filled, scores, accuracies, strict=True):
        # In points: below high places and above low ones, where there is room.
        offset = (0, -13) if accuracy > 0.5 else (0, 7)
        axes.annotate(
            str(part.count),
            (score, accuracy),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )

    axes.set(xlabel="score", ylabel="share that is right", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """The figure as an SVG element, the same text whenever the figure is the same."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "actdet", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})

    # A page takes no XML declaration in its middle.
    text = buffer.getvalue()
    return text[text.index("<svg") :]

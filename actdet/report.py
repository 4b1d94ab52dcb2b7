"""The report of an evaluation: one folder that a person opens and a program reads.

metrics.json        the figures
report.html         the figures, the training curve and every clip in pictures, wrong ones first; stands alone
videos/NAME.mp4     clips with the decided box (class colour) and the annotated one (white)
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from actdet.config import NO_ACTION
from actdet.data.index import Clip, ClipIndex
from actdet.data.video import decode_frames, sample_frames
from actdet.errors import DataError
from actdet.evaluation import Evaluation
from actdet.files import write_bytes, write_json
from actdet.metrics import format_figure
from actdet.models.decision import THRESHOLD
from actdet.pictures import TRUTH, Mark, annotate_video, class_colour, data_url, draw, picture_size

STRIP = 4  # pictures of each clip in the report
MOST_VIDEOS = 48  # annotated videos that one report writes


@dataclass(frozen=True)
class _Row:
    name: str
    truth: str
    decided: str
    score: float
    iou: float | None
    right: bool
    located: bool
    pictures: list[str]
    video: str | None  # the address of the annotated one
    damage: str | None  # why there are neither pictures nor a video


def write_report(
    out: Path,
    title: str,
    evaluation: Evaluation,
    index: ClipIndex,
    *,
    started: float,
    notes: Sequence[str] = (),
    log: Path | None = None,
) -> None:
    """Write the folder `out` for the evaluation of clips of `index`.

    started: when the work began, by time.monotonic(), for the seconds in metrics.json. notes: lines of facts about the
    run. log: the log.jsonl of its training. A clip whose video is damaged, though what was evaluated of it is not, has
    no pictures. Raises DataError where the disk refuses.
    """
    _write_metrics(out, evaluation, started)  # which no full disk or damaged video takes away
    names = (*index.class_names, NO_ACTION)
    order = sorted(
        range(len(evaluation.clips)), key=lambda i: (_located(evaluation, i, len(names) - 1), i)
    )  # wrong ones first
    rows = []
    for place, i in enumerate(order):
        rows.append(_row(out, evaluation, i, index.clips[evaluation.clips[i]], names, with_video=place < MOST_VIDEOS))
    seconds = _write_metrics(out, evaluation, started)
    page = Environment(loader=PackageLoader("actdet", ""), autoescape=select_autoescape(default=True))
    html = page.get_template("report.html.jinja").render(
        title=title,
        metrics=evaluation.metrics,
        figure=format_figure,
        names=names,
        rows=rows,
        notes=notes,
        seconds=seconds,
        curve=_curve(log) if log else None,
        threshold=THRESHOLD,
    )
    write_bytes(out / "report.html", html.encode(errors="xmlcharrefreplace"))  # of a name that is not UTF-8


def _write_metrics(out: Path, evaluation: Evaluation, started: float) -> float:
    """Write metrics.json and return the seconds since `started`, which are in it."""
    seconds = time.monotonic() - started
    write_json(out / "metrics.json", {**asdict(evaluation.metrics), "seconds": round(seconds, 1)})
    return seconds


def _located(evaluation: Evaluation, i: int, no_action: int) -> bool:
    truth, label = int(evaluation.truth[i]), int(evaluation.decision.label[i])
    return truth == label and (truth == no_action or float(evaluation.iou[i]) >= 0.5)


def _row(out: Path, evaluation: Evaluation, i: int, clip: Clip, names: tuple[str, ...], *, with_video: bool) -> _Row:
    none = len(names) - 1
    truth, label = int(evaluation.truth[i]), int(evaluation.decision.label[i])
    score = float(evaluation.decision.score[i])
    marks = [Mark(_corners(box), "", TRUTH) for box in _wanted(evaluation, i)]
    if label == none:
        marks.append(Mark(None, f"no action (surest: {score:.2f})", "#bbbbbb"))
    else:
        box = _corners(evaluation.decision.box[i].tolist())
        marks.append(Mark(box, f"{names[label]} {score:.2f}", class_colour(label)))
    video = out / "videos" / f"{clip.name}.mp4"
    pictures, damage = [], None
    try:
        frames = decode_frames(clip.video, sample_frames(clip.video, STRIP), picture_size(clip.video))
        pictures = [data_url(draw(frame, marks)) for frame in frames]
        if with_video:
            annotate_video(clip.video, [marks] * len(clip.video.pts), video)
    except DataError as error:
        if error.path != clip.video.path:  # the disk's
            raise
        pictures, damage = [], error.problem
    return _Row(
        name=clip.name,
        truth=names[truth],
        decided=names[label],
        score=score,
        iou=float(evaluation.iou[i]) if truth == label != none else None,
        right=truth == label,
        located=_located(evaluation, i, none),
        pictures=pictures,
        video=f"videos/{quote(os.fsencode(video.name))}" if with_video and not damage else None,
        damage=damage,
    )


def _wanted(evaluation: Evaluation, i: int) -> list[list[float]]:
    return evaluation.targets.boxes[i, : int(evaluation.targets.counts[i])].tolist()


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def _curve(log: Path) -> str:
    """The training curve as SVG: the loss and its terms, and the held-out metrics where they were taken."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [r for r in records if "loss" in r]
    validations = [r for r in records if "validation" in r]
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    terms = {"total": "total (weighted)", "cls": "class", "l1": "L1", "giou": "GIoU"}
    if any(r["loss"]["auxiliary"] for r in losses):
        terms["auxiliary"] = "auxiliary"
    _plot(left, losses, terms, "loss")
    left.set(title="training loss", xlabel="epoch", yscale="log")
    figures = {
        "video_accuracy": "video accuracy",
        "detection_accuracy": "detection accuracy",
        "mean_iou": "mean IoU",
    }
    _plot(right, validations, figures, "validation")
    right.set(title="held-out clips", xlabel="epoch", ylim=(0, 1.02))
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "actdet", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _plot(axes: Any, records: list[dict[str, Any]], lines: dict[str, str], group: str) -> None:
    epochs = np.array([r["epoch"] for r in records])
    for key, label in lines.items():
        axes.plot(epochs, [r[group][key] for r in records], label=label, marker="." if len(records) < 30 else None)
    axes.grid(alpha=0.3)
    if records:
        axes.legend(fontsize="small")
    else:
        axes.text(0.5, 0.5, "none during training", ha="center", transform=axes.transAxes)

"""The report of an evaluation: one folder that a person opens and a program reads.

metrics.json        the figures
report.html         the figures, the training curve and every clip in pictures, wrong ones first; stands alone
videos/NAME.mp4     clips with the decided box (class colour) and the annotated one (white), if they were asked for
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from actdet.data.classes import NO_ACTION
from actdet.data.index import Clip, ClipIndex
from actdet.errors import DataError
from actdet.evaluation.clips import Evaluation
from actdet.evaluation.metrics import ReliabilityBin, format_figure
from actdet.files import write_bytes, write_json
from actdet.models.detr.decision import THRESHOLD
from actdet.pictures import TRUTH, Mark, annotate_video, class_colour, data_url, draw, no_action_mark, picture_size
from actdet.training.trainer import read_log
from actdet.video.decoding import decode_frames, sample_frames

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    settings: Mapping[str, Any] | None = None,
    log: Path | None = None,
    with_videos: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the folder `out` for the evaluation of clips of `index`.

    started: when the work began, by time.monotonic(), for the seconds in metrics.json. notes: lines of facts about the
    run. settings: of the model, by their names. log: the log.jsonl of its training. with_videos: whether to write
    annotated videos. progress: called with (frames drawn, frames in all). A clip whose video is damaged, though what
    was evaluated of it is not, has no pictures. Raises DataError where the disk refuses.
    """
    # Only who writes a report pays for the import.
    from jinja2 import Environment, PackageLoader, select_autoescape

    _write_metrics(out, evaluation, started)  # which no full disk or damaged video takes away
    names = (*index.class_names, NO_ACTION)
    order = sorted(
        range(len(evaluation.clips)), key=lambda i: (_located(evaluation, i, len(names) - 1), i)
    )  # wrong ones first
    clips = [index.clips[evaluation.clips[i]] for i in order]
    videos = MOST_VIDEOS if with_videos else 0
    total = STRIP * len(clips) + sum(len(clip.video.pts) for clip in clips[:videos])
    drawn = 0
    rows = []
    for place, (i, clip) in enumerate(zip(order, clips, strict=True)):
        advance = partial(_advance, progress, drawn + STRIP, total) if progress else None
        rows.append(_row(out, evaluation, i, clip, names, with_video=place < videos, progress=advance))
        drawn += STRIP + len(clip.video.pts) * (place < videos)
        if progress:
            progress(drawn, total)
    seconds = _write_metrics(out, evaluation, started)
    page = Environment(loader=PackageLoader("actdet", "evaluation"), autoescape=select_autoescape(default=True))
    html = page.get_template("report.html.jinja").render(
        title=title,
        metrics=evaluation.metrics,
        figure=format_figure,
        interval=_interval,
        names=names,
        rows=rows,
        notes=notes,
        seconds=seconds,
        settings=list(_settings(settings or {})),
        reliability=reliability_curve(evaluation.metrics.reliability),
        curve=_curve(log) if log else None,
        threshold=THRESHOLD,
    )
    write_bytes(out / "report.html", html.encode(errors="xmlcharrefreplace"))  # of a name that is not UTF-8


def _interval(bounds: tuple[float, float] | None) -> str:
    """A 95 % confidence interval behind what it belongs to."""
    return "" if bounds is None else f" ({bounds[0]:.1%} to {bounds[1]:.1%} with 95 % confidence)"


def _write_metrics(out: Path, evaluation: Evaluation, started: float) -> float:
    """Write metrics.json and return the seconds since `started`, which are in it."""
    seconds = time.monotonic() - started
    write_json(out / "metrics.json", {**asdict(evaluation.metrics), "seconds": round(seconds, 1)})
    return seconds


def _located(evaluation: Evaluation, i: int, no_action: int) -> bool:
    truth, label = int(evaluation.truth[i]), int(evaluation.decision.label[i])
    return truth == label and (truth == no_action or float(evaluation.iou[i]) >= 0.5)


def _advance(progress: Callable[[int, int], None], before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values as a person reads them; those of settings within settings after their own."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _settings(value)
        elif isinstance(value, tuple | list):
            yield name.replace("_", " "), ", ".join(map(str, value))
        elif isinstance(value, bool):
            yield name.replace("_", " "), "yes" if value else "no"
        else:
            yield name.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value)


def _row(
    out: Path,
    evaluation: Evaluation,
    i: int,
    clip: Clip,
    names: tuple[str, ...],
    *,
    with_video: bool,
    progress: Callable[[int, int], None] | None,
) -> _Row:
    none = len(names) - 1
    truth, label = int(evaluation.truth[i]), int(evaluation.decision.label[i])
    score = float(evaluation.decision.score[i])
    marks = [Mark(_corners(box), "", TRUTH) for box in _wanted(evaluation, i)]
    if label == none:
        marks.append(no_action_mark(score))
    else:
        box = _corners(evaluation.decision.box[i].tolist())
        marks.append(Mark(box, f"{names[label]} {score:.2f}", class_colour(label)))
    video = out / "videos" / f"{clip.name}.mp4"
    pictures: list[str] = []
    damage = None
    try:
        shown = sample_frames(clip.video, STRIP)
        times = (clip.video.pts[shown] - clip.video.pts[0]) * float(clip.video.time_base)
        frames = decode_frames(clip.video, shown, picture_size(clip.video))
        for frame, seconds in zip(frames, times.tolist(), strict=True):
            pictures.append(data_url(draw(frame, marks, seconds=seconds)))
        if with_video:
            annotate_video(clip.video, [marks] * len(clip.video.pts), video, progress=progress)
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


def _curve(log: Path) -> str | None:
    """The training curve as SVG: the loss and its terms, and the held-out metrics; None where the log has neither."""
    # Only who draws a curve pays for the import.
    from matplotlib.figure import Figure

    records = read_log(log)
    losses = [r for r in records if "loss" in r]
    validations = [r for r in records if "validation" in r]
    count = bool(losses) + bool(validations)
    if not count:
        return None
    figure = Figure(figsize=(4.5 * count, 3), layout="constrained")
    plots = iter(figure.subplots(1, count, squeeze=False)[0])
    if losses:
        terms = {"total": "total", "cls": "class", "l1": "L1", "giou": "GIoU"}
        if any(r["loss"]["auxiliary"] for r in losses):
            terms["auxiliary"] = "auxiliary"
        axes = next(plots)
        _plot(axes, [_weighted(record) for record in losses], terms, "loss")
        axes.set(title="training loss, terms by their weights", xlabel="epoch", yscale="log")
    if validations:
        figures = {
            "video_accuracy": "video accuracy",
            "detection_accuracy": "detection accuracy",
            "mean_iou": "mean IoU",
        }
        axes = next(plots)
        _plot(axes, validations, figures, "validation")
        axes.set(title="held-out clips", xlabel="epoch", ylim=(0, 1.02))
    return _svg(figure)


def _weighted(record: dict[str, Any]) -> dict[str, Any]:
    """A line of the log with each term of its loss by its weight, so that they add up to the total."""
    # Logs of earlier versions do not say the weights.
    weights = record.get("loss_weights", {})
    return record | {"loss": {name: value * weights.get(name, 1.0) for name, value in record["loss"].items()}}


def _plot(axes: Any, records: list[dict[str, Any]], lines: dict[str, str], group: str) -> None:
    epochs = np.array([r["epoch"] for r in records])
    for key, label in lines.items():
        axes.plot(epochs, [r[group][key] for r in records], label=label, marker="." if len(records) < 30 else None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def reliability_curve(bins: Sequence[ReliabilityBin]) -> str | None:
    """How often the detector is right, by how sure it is, as SVG; None where there are no clips.

    Args:
        bins: Clips whose scores are alike: their `count`, their mean `score` and the share that is right, `accuracy`.
    """
    from matplotlib.figure import Figure

    filled = [found for found in bins if found.count]
    if not filled:
        return None
    figure = Figure(figsize=(4.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1, label="as often right as it is sure")
    scores = [found.score or 0.0 for found in filled]
    accuracies = [found.accuracy or 0.0 for found in filled]
    axes.plot(scores, accuracies, color="#1f77b4", marker="o", label="clips, and how many")
    for found, score, accuracy in zip(filled, scores, accuracies, strict=True):
        place = (0, -13) if accuracy > 0.5 else (0, 7)
        axes.annotate(
            str(found.count), (score, accuracy), xytext=place, textcoords="offset points", ha="center", fontsize="small"
        )
    axes.set(xlabel="score", ylabel="share that is right", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _svg(figure)


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "actdet", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]

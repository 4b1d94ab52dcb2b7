"""The report of an evaluation: a folder with a page for people and figures for programs.

metrics.json        the figures
report.html         the figures, the training curve and pictures of every clip, wrong ones first; it needs no other file
videos/NAME.mp4     clips with the detector's box (color of its class) and the annotated one (white), if asked for
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from actdet.data.classes import NO_ACTION
from actdet.data.clips import Clip, ClipIndex
from actdet.detections import THRESHOLD
from actdet.errors import DataError
from actdet.evaluation.arrays import join_tubes
from actdet.evaluation.clips import Evaluation
from actdet.evaluation.metrics import format_figure
from actdet.evaluation.plots import reliability_curve, training_curve
from actdet.evaluation.tracks import cut_tubes, link_tracks, tracks_of_clip
from actdet.files import write_bytes, write_json
from actdet.pictures import CUT, TRUTH, Mark, annotate_video, class_color, data_url, draw, no_action_mark, picture_size
from actdet.run_folder import annotated_clip
from actdet.video.decoding import decode_frames

# The page shows so many pictures of each clip.
PICTURES = 4

# A report has annotated videos of at most so many clips, the first ones on its page.
MOST_VIDEOS = 48

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Row:
    """What the page says of a clip."""

    name: str
    annotated: str
    """The annotated classes."""
    predicted: str
    """The actions that were found, each with its score, the surest first."""
    iou: float | None
    """Of the surest action's box with the annotated one."""
    right: bool
    located: bool
    pictures: list[str]
    """The pictures, as addresses that contain them."""
    video: str | None
    """The address of the annotated video."""
    cut: bool
    """Whether the picture changes to another scene, so that scores are not reliable."""
    damage: str | None
    """Why there are neither pictures nor a video."""


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
    progress: Progress | None = None,
) -> None:
    """Write the report of an evaluation to the folder `out`.

    A clip has no pictures if its video is damaged, even if the frames that were evaluated are good.

    Args:
        out: The folder. It is made if it does not exist.
        title: Title of the page.
        evaluation: What to report.
        index: The data set whose clips were evaluated.
        started: When the work began, by `time.monotonic()`. metrics.json has the seconds since then.
        notes: Lines of facts about the run.
        settings: Settings of the model, by name.
        log: The log.jsonl of its training, for the training curve.
        with_videos: Whether to write annotated videos.
        progress: Called with (frames drawn, frames in all).

    Raises:
        DataError: If the disk refuses.
    """
    # This import takes a while, and only reports need it.
    from jinja2 import Environment, PackageLoader, select_autoescape

    # The figures come first, so that neither a full disk nor a damaged video takes them away.
    _write_metrics(out, evaluation, started)

    names = (*index.class_names, NO_ACTION)
    rows = _draw_clips(out, evaluation, index, names, MOST_VIDEOS if with_videos else 0, progress)
    seconds = _write_metrics(out, evaluation, started)

    environment = Environment(loader=PackageLoader("actdet", "evaluation"), autoescape=select_autoescape(default=True))
    html = environment.get_template("report.html.jinja").render(
        title=title,
        metrics=evaluation.metrics,
        figure=format_figure,
        interval=_format_interval,
        names=names,
        rows=rows,
        notes=notes,
        seconds=seconds,
        settings=list(_readable_settings(settings or {})),
        reliability=reliability_curve(evaluation.metrics.reliability),
        curve=training_curve(log) if log else None,
        threshold=THRESHOLD,
        rule=evaluation.rule,
    )
    # Names of files and classes need not be UTF-8.
    write_bytes(out / "report.html", html.encode(errors="xmlcharrefreplace"))


def _write_metrics(out: Path, evaluation: Evaluation, started: float) -> float:
    """Write metrics.json, and return the seconds since `started`, which are in it."""
    seconds = time.monotonic() - started
    write_json(out / "metrics.json", {**asdict(evaluation.metrics), "seconds": round(seconds, 1)})
    return seconds


def _format_interval(interval: tuple[float, float] | None) -> str:
    """A 95 % confidence interval, as it stands behind its figure."""
    return "" if interval is None else f" ({interval[0]:.1%} to {interval[1]:.1%} with 95 % confidence)"


def _readable_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of settings for people. Settings within settings follow under their own names."""
    for name, value in settings.items():
        readable_name = name.replace("_", " ")
        if isinstance(value, Mapping):
            yield from _readable_settings(value)
        elif isinstance(value, tuple | list):
            yield readable_name, ", ".join(map(str, value))
        elif isinstance(value, bool):
            yield readable_name, "yes" if value else "no"
        else:
            yield readable_name, f"{value:g}" if isinstance(value, float) else str(value)


def _draw_clips(
    out: Path,
    evaluation: Evaluation,
    index: ClipIndex,
    names: tuple[str, ...],
    most_videos: int,
    progress: Progress | None,
) -> list[_Row]:
    """The page's rows, wrong clips first. Of the first `most_videos` of them, annotated videos are written."""
    numbers = range(len(evaluation.clips))
    order = sorted(numbers, key=lambda number: (_is_located(evaluation, number, len(names) - 1), number))
    clips = [index.clips[evaluation.clips[number]] for number in order]
    total = PICTURES * len(clips) + sum(len(clip.frames) for clip in clips[:most_videos])

    drawn = 0
    rows = []
    for place, (number, clip) in enumerate(zip(order, clips, strict=True)):
        with_video = place < most_videos
        of_video = partial(_advance, progress, drawn + PICTURES, total) if progress else None
        rows.append(_row(out, evaluation, number, clip, names, with_video=with_video, progress=of_video))

        drawn += PICTURES
        if with_video:
            drawn += len(clip.frames)
        if progress:
            progress(drawn, total)
    return rows


def _advance(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Report `done` frames of one video as part of the whole work."""
    progress(before + done, total)


def _is_located(evaluation: Evaluation, number: int, no_action: int) -> bool:
    """Whether the answer to a clip is right, and its box, if there is an action, overlaps the annotated one enough."""
    truth = int(evaluation.truth[number])
    label = int(evaluation.decision.label[number])
    return truth == label and (truth == no_action or float(evaluation.iou[number]) >= 0.5)


def _row(
    out: Path,
    evaluation: Evaluation,
    number: int,
    clip: Clip,
    names: tuple[str, ...],
    *,
    with_video: bool,
    progress: Progress | None,
) -> _Row:
    """Draw a clip, write its annotated video if that is wanted, and say what the page says of it."""
    no_action = len(names) - 1
    truth = int(evaluation.truth[number])
    label = int(evaluation.decision.label[number])
    marks = _marks_of_frames(evaluation, number, clip, names)

    video = annotated_clip(out, clip.name)
    pictures: list[str] = []
    damage = None
    try:
        pictures = _pictures(clip, marks)
        if with_video:
            annotate_video(clip.video, marks, video, frames=clip.frames, progress=progress)
    except DataError as error:
        # Only a damaged clip is left without pictures; what the disk refuses ends the report.
        if error.path != clip.video.path:
            raise
        pictures = []
        damage = error.problem

    return _Row(
        name=clip.name,
        annotated=_annotated(evaluation, number, names),
        predicted=_predicted(evaluation, number, names),
        iou=float(evaluation.iou[number]) if truth == label != no_action else None,
        right=truth == label,
        located=_is_located(evaluation, number, no_action),
        pictures=pictures,
        video=f"videos/{quote(os.fsencode(video.name))}" if with_video and not damage else None,
        cut=evaluation.cuts[number],
        damage=damage,
    )


def _annotated(evaluation: Evaluation, number: int, names: tuple[str, ...]) -> str:
    """The classes that are annotated in a clip, in the order of their numbers."""
    count = int(evaluation.targets.counts[number])
    labels = sorted(set(evaluation.targets.labels[number, :count].tolist()))
    return ", ".join(names[label] for label in labels) if labels else NO_ACTION


def _predicted(evaluation: Evaluation, number: int, names: tuple[str, ...]) -> str:
    """The actions that were found in a clip, with their scores."""
    actions = evaluation.actions[number]
    if not actions:
        return f"{NO_ACTION} (top score: {float(evaluation.decision.score[number]):.2f})"
    return ", ".join(f"{names[action.label]} {action.score:.2f}" for action in actions)


def _marks_of_frames(
    evaluation: Evaluation, number: int, clip: Clip, names: tuple[str, ...]
) -> Sequence[Sequence[Mark]]:
    """The marks of each frame of a clip: the same on all of them, unless the detector follows actors."""
    cut = [CUT] if evaluation.cuts[number] else []
    if not evaluation.tracks:
        return [cut + _marks(evaluation, number, names)] * len(clip.frames)

    parts = tracks_of_clip(clip, evaluation.tracks, number, evaluation.frames)
    found = join_tubes([cut_tubes(0, track) for track in link_tracks(parts)])
    found = found.take(found.scores >= THRESHOLD)
    width = clip.video.width
    height = clip.video.height
    if not len(found):
        marks = [[*cut, no_action_mark(float(evaluation.decision.score[number]))] for _ in clip.frames]
    else:
        marks = [list(cut) for _ in clip.frames]

    def add(frames: np.ndarray, boxes: np.ndarray, label: str, color: str) -> None:
        for frame, (x1, y1, x2, y2) in zip(frames.tolist(), boxes.tolist(), strict=True):
            mark = Mark((x1 / width, y1 / height, x2 / width, y2 / height), label, color)
            marks[frame - clip.frames.start].append(mark)

    for tube in clip.tubes:
        if len(tube.boxes):
            add(tube.frames, tube.boxes, "", TRUTH)
    for row, (label, score) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), strict=True)):
        inside = slice(found.offsets[row], found.offsets[row + 1])
        add(found.frames[inside], found.boxes[inside], f"{names[label]} {score:.2f}", class_color(label))
    return marks


def _marks(evaluation: Evaluation, number: int, names: tuple[str, ...]) -> list[Mark]:
    """The annotated boxes of a clip, and the detector's boxes or a note that it found no action."""
    count = int(evaluation.targets.counts[number])
    annotated = evaluation.targets.boxes[number, :count].tolist()
    marks = [Mark(_corners(box), "", TRUTH) for box in annotated]

    actions = evaluation.actions[number]
    if not actions:
        marks.append(no_action_mark(float(evaluation.decision.score[number])))
    for label, score, box in actions:
        marks.append(Mark(box, f"{names[label]} {score:.2f}", class_color(label)))
    return marks


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box given by its center, width and height."""
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def _pictures(clip: Clip, marks: Sequence[Sequence[Mark]]) -> list[str]:
    """Frames of a clip at equal distances, with the time and marks on them, as addresses that contain them.

    Args:
        clip: The clip.
        marks: Those of each of its frames.
    """
    shown = clip.sample(PICTURES)
    times = (clip.video.pts[shown] - clip.video.pts[0]) * float(clip.video.time_base)
    frames = decode_frames(clip.video, shown, picture_size(clip.video))
    return [
        data_url(draw(frame, marks[index - clip.frames.start], seconds=seconds))
        for frame, index, seconds in zip(frames, shown.tolist(), times.tolist(), strict=True)
    ]

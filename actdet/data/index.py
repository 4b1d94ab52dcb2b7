"""Makes the clip index: the clips of a data set, checked, with the timestamps of all their frames.

`load_index` stops at the first problem, or leaves out the clips that have one; `survey` lists all problems. What
demuxing told of the videos is kept in `ROOT/.actdet-index.json` (`probe_cache`); annotations are read every time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Literal, NamedTuple

import numpy as np

from actdet.data.annotations import EVERY_FORM, OTHER_FORMS, Annotation, check_annotations, forms
from actdet.data.classes import CLASS_FILE, CLASS_NAMES, class_names_of, read_class_names
from actdet.data.clips import Clip, ClipIndex
from actdet.data.layout import annotation_file, find_files
from actdet.data.probe_cache import ProbeCache
from actdet.data.tubes import clip_annotations, read_tubes
from actdet.data.windows import cut_windows
from actdet.detections import Tube
from actdet.errors import DataError
from actdet.video.decoding import stream_frames
from actdet.video.info import VideoInfo

BadFiles = Literal["stop", "skip"]

# Called with the number of videos that are done, and the number of all.
Progress = Callable[[int, int], None]

# Videos that last so many times as long as an action had better be cut into windows.
_LONG = 4

# If at least so many lines all fit another form, that is hardly by chance.
_TELLING_LINES = 8


@dataclass
class Survey:
    """Everything that is found in a data set."""

    class_names: tuple[str, ...]
    clips: list[Clip] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    other_form: bool = False
    """Whether all annotations are of another form than the expected one; then the first problem says of which."""


def load_index(
    root: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    window: float = 0.0,
    bad_files: BadFiles = "stop",
    progress: Progress | None = None,
) -> ClipIndex:
    """Load the index of a data set.

    Args:
        root: Folder with videos/ and annotations/, and perhaps classes.txt.
        class_names: Names of the classes, in the order of their ids. By default those in `root`'s classes.txt, or
            `CLASS_NAMES` if there is no such file.
        window: The seconds of the windows into which videos with tables of tubes are cut; 0 leaves them whole.
        bad_files: "stop" raises the first problem; "skip" leaves out the files that have one and notes them in
            `left_out`.
        progress: Called with (videos done, videos in all).

    Raises:
        DataError: For the first problem. With "skip", only if no clip is left, if all annotations are of another form,
            or if the data set's own class names differ from `class_names`.
    """
    root = Path(root)
    found = _survey(root, class_names, decode=False, progress=progress, first=bad_files == "stop", window=window)
    problems = found.problems
    if problems and (bad_files == "stop" or not found.clips or found.other_form):
        raise problems[0]
    index = ClipIndex(root, found.class_names, tuple(found.clips), tuple(problems), tuple(found.notes))
    return cut_windows(index, window)


def survey(
    root: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    decode: bool = True,
    progress: Progress | None = None,
) -> Survey:
    """Find everything in a data set, good or bad.

    Args:
        root: Folder with videos/ and annotations/, and perhaps classes.txt.
        class_names: As in `load_index`.
        decode: Whether to decode every frame of every video, too.
        progress: Called with (videos done, videos in all).

    Raises:
        DataError: If the data set's own class names differ from `class_names`.
    """
    return _survey(Path(root), class_names, decode=decode, progress=progress, first=False)


def find_problems(
    root: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    decode: bool = True,
    progress: Progress | None = None,
) -> list[DataError]:
    """Return everything that is wrong with a data set; the arguments are those of `survey`."""
    return survey(root, class_names, decode=decode, progress=progress).problems


def _survey(
    root: Path,
    asked: Sequence[str] | None,
    *,
    decode: bool,
    progress: Progress | None,
    first: bool,
    window: float = 0.0,
) -> Survey:
    """Inspect the videos one after the other.

    With `first` the survey ends at the first problem, unless it is with a line that may be of another form: only all
    lines together tell whether all annotations are.
    """
    found = Survey(class_names_of(root, asked))
    videos, found.problems, found.notes = find_files(root)
    if found.problems and first:
        return found

    cache = ProbeCache(root / ".actdet-index.json", videos)
    stopping = Event()
    inspect = partial(_inspect, cache=cache, class_names=found.class_names, decode=decode, stopping=stopping)
    lines = 0
    possible = set(EVERY_FORM)
    try:
        # Threads suffice, because FFmpeg works without the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for done, video in enumerate(pool.map(inspect, videos), start=1):
                    if progress:
                        progress(done, len(videos))
                    found.clips += video.clips
                    found.problems += video.problems
                    lines += video.lines
                    possible &= video.forms

                    only_lines = all(problem.line is not None for problem in found.problems)
                    may_be_other = only_lines and possible - {"corners"}
                    if first and found.problems and not may_be_other:
                        return found
            finally:
                # The pool waits for what its threads are doing, which may be to decode a long video.
                stopping.set()
    finally:
        cache.save(keep={path.name for path in videos})

    _judge_forms(root, found, lines, possible)
    _add_notes(root, found, asked, window)
    return found


def _judge_forms(root: Path, found: Survey, lines: int, possible: Collection[str]) -> None:
    """Look at all annotations together.

    If all lines are of another form, one problem says so in place of a problem for each line. If they fit our form but
    another one as well, a note asks which they are.
    """
    folder = root / "annotations"
    if "corners" in possible:
        if "size" in possible and lines >= _TELLING_LINES:
            found.notes.append(
                f"{folder}: all {lines} lines are read as corners, <x1> <y1> <x2> <y2>, but could also be "
                f"{OTHER_FORMS['size']}. Is that right?"
            )
        return

    for form in OTHER_FORMS:
        # One or two lines with a slip in them may look like sizes, but never like fractions of the picture.
        if form in possible and (form == "yolo" or lines > 2):
            which = f"all {lines} lines look" if lines > 1 else "the only line looks"
            problem = f"{which} like {OTHER_FORMS[form]}; expected <class_id> <x1> <y1> <x2> <y2> in pixels"
            others = [other for other in found.problems if other.line is None or other.path.endswith(".csv")]
            found.problems = [DataError(folder, problem), *others]
            found.other_form = True
            return


def _add_notes(root: Path, found: Survey, asked: Sequence[str] | None, window: float) -> None:
    """Note what is not an error, but may be unintended."""
    found.notes += [f"{clip.video.path}: {remark}" for clip in found.clips for remark in clip.video.remarks]

    bare = sum(not clip.annotated for clip in found.clips)
    if 2 * bare > len(found.clips) and not found.other_form:
        found.notes.append(
            f"{root / 'annotations'}: {bare} of {len(found.clips)} clips have no annotation file and count as clips "
            "without an action. Is that right? An empty file for each of them would say so"
        )

    tables = [clip for clip in found.clips if clip.table]
    if tables and not window:
        of_videos = float(np.median([clip.seconds for clip in tables]))
        of_actions = float(np.median([_action_seconds(clip, tube) for clip in tables for tube in clip.table or ()]))
        if of_videos > _LONG * of_actions:
            found.notes.append(
                f"{root / 'annotations'}: videos with tables last {of_videos:.1f} seconds, and their actions "
                f"{of_actions:.1f} (medians). A detector of whole clips sees few frames of such an action; actdet "
                f"train --window {2 * of_actions:.1f} cuts the videos into parts"
            )

    if asked is not None and tuple(asked) != CLASS_NAMES and read_class_names(root) is None:
        found.notes.append(
            f"{root / CLASS_FILE}: no such file; write the class names into it, one per line, and every command will "
            "know them"
        )


def _action_seconds(clip: Clip, tube: Tube) -> float:
    """Return how long an action lasts, as if all frames of its clip did equally long."""
    return float(tube.frames[-1] + 1 - tube.frames[0]) / len(clip.frames) * clip.seconds


class _Inspected(NamedTuple):
    """A video as a clip, or what is wrong with it."""

    clips: Sequence[Clip]
    """The clip; none if anything is wrong with it."""
    problems: Sequence[DataError]
    lines: int = 0
    """How many lines of actions its annotation file has; none if it is a table."""
    forms: Set[str] = EVERY_FORM
    """The forms that all of these lines may have."""


def _inspect(path: Path, cache: ProbeCache, class_names: Sequence[str], decode: bool, stopping: Event) -> _Inspected:
    """Inspect one video and its annotation file; decoding ends early when `stopping` is set."""
    try:
        video = cache.probe(path)
    except DataError as problem:
        return _Inspected([], [problem])

    truth = _read_truth(path, video, class_names)
    problems = truth.problems
    if decode:
        try:
            for _ in stream_frames(video, range(len(video.pts)), size=(16, 16)):
                if stopping.is_set():
                    break
        except DataError as problem:
            problems.append(problem)

    clip = Clip(path.stem, video, tuple(truth.annotations), truth.annotated, truth.table)
    return _Inspected([] if problems else [clip], problems, truth.lines, truth.forms)


class _Truth(NamedTuple):
    """What an annotation file says; fields as in `Clip` and `_Inspected`."""

    annotations: Sequence[Annotation]
    annotated: bool
    table: tuple[Tube, ...] | None
    problems: list[DataError]
    lines: int = 0
    forms: Set[str] = EVERY_FORM


def _read_truth(path: Path, video: VideoInfo, class_names: Sequence[str]) -> _Truth:
    """Read the annotation file of the video in `path`."""
    file = annotation_file(path.parent.parent, path.stem)
    if file.suffix == ".csv":
        tubes, problems = read_tubes(file, video, class_names)
        annotations = clip_annotations(tubes, video.width, video.height)
        return _Truth(annotations, True, tuple(tubes), problems)

    annotations, problems = check_annotations(file, video.width, video.height, class_names)
    lines, possible = forms(file, video.width, video.height)
    return _Truth(annotations, os.path.lexists(file), None, problems, lines, possible)

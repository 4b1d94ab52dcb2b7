"""The clip index: what a data set holds, checked, with the timestamps of all frames kept between runs.

    ROOT/videos/NAME.<any container>     beside     ROOT/annotations/NAME.txt     and, perhaps,     ROOT/classes.txt

`load_index` stops at the first problem or leaves out what has one, `survey` lists them all. What demuxing told is kept
in `ROOT/.actdet-index.json`; a file whose size or time changed is read again, annotations are read every time.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Literal, NamedTuple

import numpy as np

from actdet.data.annotations import EVERY_FORM, OTHER_FORMS, Annotation, check_annotations, forms
from actdet.data.classes import CLASS_FILE, CLASS_NAMES, class_names_of, read_class_names
from actdet.errors import DataError
from actdet.files import is_temporary, write_bytes
from actdet.video.decoding import VideoInfo, probe, stream_frames

BadFiles = Literal["stop", "skip"]

# What systems, cameras and annotation tools leave beside videos and annotations.
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")
_TOOL_FILES = ("classes.txt", "predefined_classes.txt", "labels.txt", "notes.txt", "readme.txt")
_NO_VIDEOS = (".csv", ".db", ".html", ".ini", ".json", ".log", ".md", ".pdf", ".srt", ".thm", ".txt", ".vtt", ".xml")
_NO_ANNOTATIONS = (".db", ".html", ".ini", ".log", ".md", ".names", ".pdf")

# From so many lines on it is no chance that all of them could be of another form.
_TELLING_LINES = 8

# The fields of a VideoInfo that JSON takes as they are.
_PLAIN_FACTS = (
    "width",
    "height",
    "rotation",
    "end",
    "codec",
    "timed",
    "skipped",
    "bytes",
    "remarks",
    "alone",
    "pixel_format",
)

Progress = Callable[[int, int], None]  # told how many videos are done, of how many


@dataclass(frozen=True, eq=False)
class Clip:
    """A video and what happens in it."""

    name: str
    video: VideoInfo
    annotations: tuple[Annotation, ...]
    annotated: bool = True
    """Whether it has an annotation file, be it an empty one."""


@dataclass(frozen=True, eq=False)
class ClipIndex:
    """The clips of a data set, sorted by name."""

    root: Path
    class_names: tuple[str, ...]
    clips: tuple[Clip, ...]
    left_out: tuple[DataError, ...] = ()
    """What is wrong with the files that were left out."""
    notes: tuple[str, ...] = ()
    """Lines `PATH: TEXT` about what is no error, but may not be meant."""

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64, to stratify by: the lowest class id among a clip's actions, `len(class_names)` for none."""
        none = len(self.class_names)
        return np.array([min((a.label for a in clip.annotations), default=none) for clip in self.clips], np.int64)

    def median_seconds(self) -> float:
        """The length of a typical clip."""
        return float(np.median([clip.video.seconds for clip in self.clips]))

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """labels (n, M) int64, boxes (n, M, 4) float32 cxcywh in [0, 1] and counts (n,) int32.

        M is the largest number of annotations of any clip, at least 1; rows past the count are zero. A clip's rows are
        sorted by class, then by box: the order of the lines in its annotation file changes nothing.
        """
        counts = np.array([len(clip.annotations) for clip in self.clips], np.int32)
        padded = max(1, counts.max(initial=0))
        labels = np.zeros((len(counts), padded), np.int64)
        boxes = np.zeros((len(counts), padded, 4), np.float32)
        for i, clip in enumerate(self.clips):
            for j, (label, (x1, y1, x2, y2)) in enumerate(sorted(clip.annotations)):
                width, height = clip.video.width, clip.video.height
                labels[i, j] = label
                boxes[i, j] = (
                    (x1 + x2) / 2 / width,
                    (y1 + y2) / 2 / height,
                    (x2 - x1) / width,
                    (y2 - y1) / height,
                )
        return labels, boxes, counts


@dataclass
class Survey:
    """All that is found in a data set."""

    class_names: tuple[str, ...]
    clips: list[Clip] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    other_form: bool = False
    """Whether all annotations are of another form than the expected one, as the first problem says."""


def load_index(
    root: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    bad_files: BadFiles = "stop",
    progress: Progress | None = None,
) -> ClipIndex:
    """The index of the data set in `root`.

    Args:
        root: Folder with videos/ and annotations/, and perhaps classes.txt.
        class_names: Names of the classes, in the order of their ids; by default those of `root`'s classes.txt, or else
            `CLASS_NAMES`.
        bad_files: `stop` raises the first problem found, `skip` leaves out what has one, and notes it in `left_out`.
        progress: Called with (videos done, videos in all).

    Raises:
        DataError: for the first problem; with `skip` where no clip is left, and where all annotations are of another
            form or the data set's classes are others than `class_names`.
    """
    root = Path(root)
    found = _survey(root, class_names, decode=False, progress=progress, first=bad_files == "stop")
    problems = found.problems
    if problems and (bad_files == "stop" or not found.clips or found.other_form):
        raise problems[0]
    return ClipIndex(root, found.class_names, tuple(found.clips), tuple(problems), tuple(found.notes))


def survey(
    root: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    decode: bool = True,
    progress: Progress | None = None,
) -> Survey:
    """Everything that is found in the data set in `root`, bad or good; `decode` also decodes every frame of it.

    Raises DataError where its class names are others than `class_names`.
    """
    return _survey(Path(root), class_names, decode=decode, progress=progress, first=False)


def find_problems(
    root: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    decode: bool = True,
    progress: Progress | None = None,
) -> list[DataError]:
    """Everything that is wrong with the data set in `root`; `decode` also decodes every frame of it."""
    return survey(root, class_names, decode=decode, progress=progress).problems


def _survey(root: Path, asked: Sequence[str] | None, *, decode: bool, progress: Progress | None, first: bool) -> Survey:
    """What is found; with `first` up to the first problem, but for what may be wrong with all annotations alike."""
    found = Survey(class_names_of(root, asked))
    videos, found.problems, found.notes = _layout(root)
    if found.problems and first:
        return found

    cache = _Cache(root / ".actdet-index.json", videos)
    stopping = Event()
    inspect = partial(_inspect, cache=cache, class_names=found.class_names, decode=decode, stopping=stopping)
    lines, possible = 0, set(EVERY_FORM)
    try:
        # Threads suffice: FFmpeg works without the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for done, video in enumerate(pool.map(inspect, videos), start=1):
                    if progress:
                        progress(done, len(videos))
                    found.clips += video.clips
                    found.problems += video.problems
                    lines += video.lines
                    possible &= video.forms
                    of_lines = all(problem.line is not None for problem in found.problems)
                    if first and found.problems and not (of_lines and possible - {"corners"}):
                        return found
            finally:
                stopping.set()
    finally:
        cache.save(keep={path.name for path in videos})
    _judge_forms(root, found, lines, possible)
    _add_notes(root, found, asked)
    return found


def _judge_forms(root: Path, found: Survey, lines: int, possible: Collection[str]) -> None:
    """Say in one problem, in place of one for each line, that all lines are of another form; or ask, if they may be."""
    folder = root / "annotations"
    if "corners" in possible:
        if "size" in possible and lines >= _TELLING_LINES:
            found.notes.append(
                f"{folder}: all {lines} lines are read as corners, <x1> <y1> <x2> <y2>, but could as well be "
                f"{OTHER_FORMS['size']}: is that right?"
            )
        return

    for form in OTHER_FORMS:
        if form in possible and (form == "yolo" or lines > 2):
            which = f"all {lines} lines look" if lines > 1 else "the only line looks"
            problem = f"{which} like {OTHER_FORMS[form]}; expected is <class_id> <x1> <y1> <x2> <y2> in pixels"
            of_files = [problem for problem in found.problems if problem.line is None]
            found.problems, found.other_form = [DataError(folder, problem), *of_files], True
            return


def _add_notes(root: Path, found: Survey, asked: Sequence[str] | None) -> None:
    """What may not be meant, though nothing is wrong with it."""
    found.notes += [f"{clip.video.path}: {remark}" for clip in found.clips for remark in clip.video.remarks]
    bare = sum(not clip.annotated for clip in found.clips)
    if 2 * bare > len(found.clips) and not found.other_form:
        found.notes.append(
            f"{root / 'annotations'}: {bare} of {len(found.clips)} clips have no annotation file, and count as clips "
            "without an action: is that right? An empty file for each would say so"
        )
    if asked is not None and tuple(asked) != CLASS_NAMES and read_class_names(root) is None:
        found.notes.append(
            f"{root / CLASS_FILE}: no such file; with the class names in it, a name a line, every command knows them"
        )


def _layout(root: Path) -> tuple[list[Path], list[DataError], list[str]]:
    """The videos of the data set, sorted by name, what is wrong with its folders, and what is passed over in them."""
    folders = videos, annotations = root / "videos", root / "annotations"
    for folder, content in (
        (root, "videos/ and annotations/"),
        (videos, "the videos"),
        (annotations, "NAME.txt"),
    ):
        if not folder.is_dir():
            return [], [DataError(folder, f"no such folder; expected is a folder with {content}")], []
    problems: list[DataError] = []
    files: list[list[Path]] = []
    strays: list[list[Path]] = []
    for folder in folders:
        entries = sorted(path for path in folder.iterdir() if not is_temporary(path))
        strays.append([path for path in entries if path.name.startswith(".")])
        entries = [path for path in entries if not path.name.startswith(".")]
        problems += [
            DataError(path, f"is a folder; expected are only files in {folder.name}/")
            for path in entries
            if path.is_dir()
        ]
        files.append([path for path in entries if not path.is_dir()])

    by_stem = defaultdict(list)
    for path in files[0]:
        if path.suffix.lower() not in _NO_VIDEOS:
            by_stem[path.stem].append(path)
    for path in files[0]:
        if path.suffix.lower() == ".txt" and path.stem in by_stem:
            problems.append(DataError(path, f"is no video; an annotation file is expected in {annotations}"))
        elif path.suffix.lower() in _NO_VIDEOS:
            strays[0].append(path)
    for stem, (first, *others) in by_stem.items():
        problems += [DataError(p, f"has the same name as {first.name}; {stem}.txt needs one video") for p in others]
    for path in files[1]:
        name, known = path.name.lower(), path.stem in by_stem
        if not known and (name in _TOOL_FILES or path.suffix.lower() in _NO_ANNOTATIONS):
            strays[1].append(path)
        elif path.suffix != ".txt":
            problems.append(DataError(path, "is no annotation file; expected is NAME.txt for a video NAME"))
        elif not known:
            problems.append(DataError(path, f"no video of this name; expected is videos/{path.stem}.<extension>"))
    if not by_stem:
        problems.append(DataError(videos, "holds no video; expected is at least one"))
    notes = [_passed_over(root, folder, paths) for folder, paths in zip(folders, strays, strict=True) if paths]
    return sorted((paths[0] for paths in by_stem.values()), key=lambda path: path.stem), problems, notes


def _passed_over(root: Path, folder: Path, strays: Sequence[Path]) -> str:
    """A note on files of a folder that are neither videos nor annotations."""
    shown = ", ".join(path.name for path in strays[:5])
    more = f" and {len(strays) - 5} more" * (len(strays) > 5)
    classes = any(path.name.lower() in ("classes.txt", "predefined_classes.txt") for path in strays)
    place = f"; class names are read from {root / CLASS_FILE}" * classes
    return f"{folder}: passed over {shown}{more}{place}"


class _Inspected(NamedTuple):
    """A video as a clip, or what is wrong with it; how many lines its annotations have, and what `forms` all may be."""

    clips: Sequence[Clip]
    problems: Sequence[DataError]
    lines: int = 0
    forms: Set[str] = EVERY_FORM


def _inspect(path: Path, cache: _Cache, class_names: Sequence[str], decode: bool, stopping: Event) -> _Inspected:
    """The clip of one video, or all that is wrong with it."""
    try:
        video = cache.probe(path)
    except DataError as problem:
        return _Inspected([], [problem])
    text = path.parent.parent / "annotations" / f"{path.stem}.txt"
    annotations, problems = check_annotations(text, video.width, video.height, class_names)
    lines, possible = forms(text, video.width, video.height)
    if decode:
        try:
            for _ in stream_frames(video, range(len(video.pts)), size=(16, 16)):
                if stopping.is_set():
                    break
        except DataError as problem:
            problems.append(problem)
    clip = Clip(path.stem, video, tuple(annotations), annotated=os.path.lexists(text))
    return _Inspected([] if problems else [clip], problems, lines, possible)


class _Cache:
    """What `probe` told of each file, by name, size and time of change; a damaged cache counts as none."""

    _VERSION = 4

    def __init__(self, path: Path, videos: Sequence[Path]) -> None:
        self._path = path
        self._changed = False
        self._entries: dict[str, Any] = {}
        try:
            # A frame takes no more bytes here than in its video: what is larger is not read, nor what is no file.
            size = path.stat().st_size if path.is_file() else math.inf
            if size > 4096 * (len(videos) + 1) + sum(os.path.getsize(video) for video in videos if video.is_file()):
                return
            stored = json.loads(path.read_bytes())
            if stored["version"] == self._VERSION and isinstance(stored["videos"], dict):
                self._entries = stored["videos"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass

    def probe(self, path: Path) -> VideoInfo:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(path, f"cannot be read: {error.strerror}") from None
        key = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        try:
            entry = self._entries[path.name]
            if {name: entry[name] for name in key} == key:
                return _from_json(path, entry)
        except (ValueError, KeyError, TypeError, ArithmeticError):
            pass
        info = probe(path)
        self._entries[path.name] = key | _to_json(info)
        self._changed = True
        return info

    def save(self, keep: set[str]) -> None:
        """Writes what changed, whole or not at all; where that cannot be, goes without."""
        entries = {name: entry for name, entry in self._entries.items() if name in keep}
        if not self._changed and len(entries) == len(self._entries):
            return
        text = json.dumps({"version": self._VERSION, "videos": entries}, separators=(",", ":"))
        try:
            write_bytes(self._path, text.encode())
        except DataError as error:
            reason = error.__cause__
            without = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)
            if not isinstance(reason, OSError) or reason.errno not in without:
                raise


def _to_json(info: VideoInfo) -> dict[str, Any]:
    steps = np.diff(info.pts, prepend=0).tolist()
    facts = {name: getattr(info, name) for name in _PLAIN_FACTS}
    facts |= {"time_base": str(info.time_base), "pts_steps": steps}
    return facts | {"entries": info.entries.tolist(), "places": info.places.tolist()}


def _from_json(path: Path, entry: dict[str, Any]) -> VideoInfo:
    """The facts that are kept; a ValueError, TypeError or KeyError for what `probe` cannot have told."""
    facts: dict[str, Any] = {name: entry[name] for name in _PLAIN_FACTS}
    sizes = facts["width"], facts["height"]
    steps, entries, places = entry["pts_steps"], entry["entries"], entry["places"]
    single = (*sizes, facts["rotation"], facts["end"], facts["skipped"], facts["bytes"])
    numbers = (*single, *steps, *entries, *places)
    base, remarks = re.fullmatch("([0-9]{1,18})(/[0-9]{1,18})?", entry["time_base"]), facts["remarks"]
    of_types = (
        set(map(type, numbers)) == {int}
        and isinstance(steps, list)
        and len(steps) > 0
        and isinstance(entries, list)
        and isinstance(places, list)
        and isinstance(facts["timed"], bool)
        and isinstance(facts["alone"], bool)
        and isinstance(facts["codec"], str)
        and isinstance(facts["pixel_format"], str)
        and isinstance(remarks, list)
        and all(isinstance(remark, str) and remark.isprintable() for remark in remarks)
    )
    if not of_types or base is None:
        raise ValueError("a value of another type")

    first, last = steps[0], sum(steps)
    bounded = (
        min(sizes) >= 1
        and max(sizes) <= 2**16
        and facts["rotation"] in (0, 90, 180, 270)
        and min(steps[1:], default=1) >= 1
        and -(2**62) <= first <= last < facts["end"] <= 2**62
        and facts["skipped"] >= 0
        and facts["bytes"] == entry["size"]
        and entries == sorted(set(entries))
        and (not entries or 0 <= entries[0] <= entries[-1] < len(steps))
        and (not places or sorted(place for place in places if place != -1) == list(range(len(steps))))
        and Fraction(entry["time_base"]) > 0
    )
    if not bounded:
        raise ValueError("a value out of bounds")
    facts["remarks"] = tuple(remarks)
    return VideoInfo(
        path=str(path),
        time_base=Fraction(entry["time_base"]),
        pts=np.cumsum(np.array(steps, np.int64)),
        entries=np.array(entries, np.int64),
        places=np.array(places, np.int64),
        **facts,
    )

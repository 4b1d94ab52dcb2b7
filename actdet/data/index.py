"""The clip index: what a data set holds, checked, with the timestamps of all frames kept between runs.

    ROOT/videos/NAME.<any container>     beside     ROOT/annotations/NAME.txt

`load_index` stops at the first problem, `find_problems` lists them all. What demuxing told is kept in
`ROOT/.actdet-index.json`; a file whose size or time changed is read again, annotations are read every time.
"""

from __future__ import annotations

import errno
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from actdet.data.annotations import Annotation, check_annotations
from actdet.data.video import VideoInfo, probe, stream_frames
from actdet.errors import DataError
from actdet.files import write_bytes

CLASS_NAMES = ("fight", "collapse")

# The fields of a VideoInfo that JSON takes as they are.
_PLAIN_FACTS = ("width", "height", "rotation", "end", "codec", "timed", "skipped", "bytes", "alone")

Progress = Callable[[int, int], None]  # told how many videos are done, of how many


@dataclass(frozen=True, eq=False)
class Clip:
    """A video and what happens in it."""

    name: str
    video: VideoInfo
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, eq=False)
class ClipIndex:
    """The clips of a data set, sorted by name."""

    root: Path
    class_names: tuple[str, ...]
    clips: tuple[Clip, ...]

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64, to stratify by: the class of a clip's first annotation, `len(class_names)` for none."""
        none = len(self.class_names)
        return np.array([c.annotations[0].label if c.annotations else none for c in self.clips], np.int64)

    def median_seconds(self) -> float:
        """The length of a typical clip."""
        return float(np.median([clip.video.seconds for clip in self.clips]))

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """labels (n, M) int64, boxes (n, M, 4) float32 cxcywh in [0, 1] and counts (n,) int32.

        M is the largest number of annotations of any clip, at least 1; rows past the count are zero.
        """
        counts = np.array([len(clip.annotations) for clip in self.clips], np.int32)
        padded = max(1, counts.max(initial=0))
        labels = np.zeros((len(counts), padded), np.int64)
        boxes = np.zeros((len(counts), padded, 4), np.float32)
        for i, clip in enumerate(self.clips):
            for j, (label, (x1, y1, x2, y2)) in enumerate(clip.annotations):
                width, height = clip.video.width, clip.video.height
                labels[i, j] = label
                boxes[i, j] = (
                    (x1 + x2) / 2 / width,
                    (y1 + y2) / 2 / height,
                    (x2 - x1) / width,
                    (y2 - y1) / height,
                )
        return labels, boxes, counts


def load_index(
    root: str | os.PathLike[str],
    class_names: Sequence[str] = CLASS_NAMES,
    *,
    progress: Progress | None = None,
) -> ClipIndex:
    """The index of the data set in `root`; raises the first problem found."""
    root = Path(root)
    clips = []
    for found in _survey(root, class_names, decode=False, progress=progress):
        if isinstance(found, DataError):
            raise found
        clips.append(found)
    return ClipIndex(root, tuple(class_names), tuple(clips))


def find_problems(
    root: str | os.PathLike[str],
    class_names: Sequence[str] = CLASS_NAMES,
    *,
    decode: bool = True,
    progress: Progress | None = None,
) -> list[DataError]:
    """Everything that is wrong with the data set in `root`; `decode` also decodes every frame of it."""
    found = _survey(Path(root), class_names, decode=decode, progress=progress)
    return [item for item in found if isinstance(item, DataError)]


def _survey(
    root: Path, class_names: Sequence[str], *, decode: bool, progress: Progress | None
) -> Iterator[Clip | DataError]:
    """All problems of the folders, then each video in order as a clip, or as its problems."""
    videos, problems = _layout(root)
    yield from problems
    cache = _Cache(root / ".actdet-index.json")
    stopping = Event()
    inspect = partial(_inspect, cache=cache, class_names=class_names, decode=decode, stopping=stopping)
    try:
        # Threads suffice: FFmpeg works without the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for done, found in enumerate(pool.map(inspect, videos), start=1):
                    if progress:
                        progress(done, len(videos))
                    yield from found
            finally:
                stopping.set()
    finally:
        cache.save(keep={path.name for path in videos})


def _layout(root: Path) -> tuple[list[Path], list[DataError]]:
    """The videos of the data set, sorted by name, and what is wrong with its folders."""
    folders = videos, annotations = root / "videos", root / "annotations"
    for folder, content in (
        (root, "videos/ and annotations/"),
        (videos, "the videos"),
        (annotations, "NAME.txt"),
    ):
        if not folder.is_dir():
            return [], [DataError(folder, f"no such folder; expected is a folder with {content}")]
    problems = []
    files: list[list[Path]] = []
    for folder in folders:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        problems += [
            DataError(path, f"is a folder; expected are only files in {folder.name}/")
            for path in entries
            if path.is_dir()
        ]
        files.append([path for path in entries if not path.is_dir()])
    by_stem = defaultdict(list)
    for path in files[0]:
        by_stem[path.stem].append(path)
    for stem, (first, *others) in by_stem.items():
        problems += [DataError(p, f"has the same name as {first.name}; {stem}.txt needs one video") for p in others]
    for path in files[1]:
        if path.suffix != ".txt":
            problems.append(DataError(path, "is no annotation file; expected is NAME.txt for a video NAME"))
        elif path.stem not in by_stem:
            problems.append(DataError(path, f"no video of this name; expected is videos/{path.stem}.<extension>"))
    if not files[0]:
        problems.append(DataError(videos, "holds no video; expected is at least one"))
    return sorted((paths[0] for paths in by_stem.values()), key=lambda path: path.stem), problems


def _inspect(
    path: Path, cache: _Cache, class_names: Sequence[str], decode: bool, stopping: Event
) -> Sequence[Clip | DataError]:
    """The clip of one video, or all that is wrong with it."""
    try:
        video = cache.probe(path)
    except DataError as problem:
        return [problem]
    text = path.parent.parent / "annotations" / f"{path.stem}.txt"
    annotations, problems = check_annotations(text, video.width, video.height, class_names)
    if decode:
        try:
            for _ in stream_frames(video, range(len(video.pts)), size=(16, 16)):
                if stopping.is_set():
                    break
        except DataError as problem:
            problems.append(problem)
    return problems or [Clip(path.stem, video, tuple(annotations))]


class _Cache:
    """What `probe` told of each file, by name, size and time of change; a damaged cache counts as none."""

    _VERSION = 3

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        self._entries: dict[str, Any] = {}
        try:
            stored = json.loads(path.read_bytes())
            if stored["version"] == self._VERSION:
                self._entries = dict(stored["videos"])
        except (OSError, ValueError, KeyError, TypeError):
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
        """Writes what changed, whole or not at all; a folder that cannot be written to goes without."""
        entries = {name: entry for name, entry in self._entries.items() if name in keep}
        if not self._changed and len(entries) == len(self._entries):
            return
        text = json.dumps({"version": self._VERSION, "videos": entries}, separators=(",", ":"))
        try:
            write_bytes(self._path, text.encode())
        except DataError as error:
            reason = error.__cause__
            if not isinstance(reason, OSError) or reason.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise


def _to_json(info: VideoInfo) -> dict[str, Any]:
    steps = np.diff(info.pts, prepend=0).tolist()
    facts = {name: getattr(info, name) for name in _PLAIN_FACTS}
    facts |= {"time_base": str(info.time_base), "pts_steps": steps, "remarks": info.remarks}
    return facts | {"entries": info.entries.tolist(), "places": info.places.tolist()}


def _from_json(path: Path, entry: dict[str, Any]) -> VideoInfo:
    return VideoInfo(
        path=str(path),
        time_base=Fraction(entry["time_base"]),
        pts=np.cumsum(np.array(entry["pts_steps"], np.int64)),
        entries=np.array(entry["entries"], np.int64),
        places=np.array(entry["places"], np.int64),
        remarks=tuple(entry["remarks"]),
        **{name: entry[name] for name in _PLAIN_FACTS},
    )

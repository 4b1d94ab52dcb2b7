"""The files that `actdet predict` leaves: of which videos, under which names, and that they replace nobody else's."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType

from actdet.errors import ActdetError, DataError
from actdet.files import any_within, short_name, write_json
from actdet.pictures import is_annotated, is_timeline
from actdet.prediction.predictor import Gap, Window, damage_error
from actdet.video.decoding import VideoInfo

# What a file in a folder is a video by; files that are given themselves are tried whatever their names.
_SUFFIXES = """
    .3g2 .3gp .asf .avi .dav .divx .dv .f4v .flv .h264 .h265 .hevc .m1v .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpe
    .mpeg .mpg .mts .mxf .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv
"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())

_WRITTEN_BY = {"written_by": "actdet predict"}
_MOST_WRITING = 20  # a result is written anew when this many times as long has passed as that takes


@dataclass(frozen=True)
class Job:
    """A video and its results."""

    video: Path
    name: str  # what lines about it begin with
    json: Path
    timeline: Path
    annotated: Path


def plan_jobs(given: Sequence[Path], out: Path, *, annotate: bool) -> list[Job]:
    """A job for each video file among `given` and in the folders among them.

    Raises DataError where a folder holds no video or cannot be read, where `out` cannot be written to, and where a
    result would replace what this program has not written there.
    """
    found: dict[str, tuple[Path, Path]] = {}
    for path in given:
        inside = _videos_in(path) if path.is_dir() else None
        if inside == []:
            raise DataError(path, "holds no video; expected is at least one")
        for video in [path] if inside is None else inside:
            found.setdefault(os.path.abspath(video), (video, video.relative_to(path) if inside else Path(video.name)))

    videos = [video for video, _ in found.values()]
    jobs = []
    for video, name in zip(videos, _names(list(found), [name for _, name in found.values()]), strict=True):
        folder, result = out / name.parent, name.name
        label = video.name if len(name.parts) == 1 else str(name.with_name(video.name))
        targets = [folder / short_name(result, suffix) for suffix in (".json", ".png", ".mp4")]
        jobs.append(Job(video, label, *targets))

    for job in jobs:
        for target in (job.json, job.timeline, job.annotated)[: 2 + annotate]:
            if any_within([target], videos):
                what = "is one of the videos, the annotated one would replace it"
                raise DataError(target, f"{what}: give another --out")
        check_ours(job, annotate=annotate)
    for folder in dict.fromkeys(job.json.parent for job in jobs):
        _check_writable(folder)
    return jobs


def _videos_in(folder: Path) -> list[Path]:
    """The videos in a folder and the folders in it, but for hidden ones and those that were annotated here."""

    def refuse(error: OSError) -> None:
        raise DataError(error.filename, f"cannot be read: {error.strerror}")

    videos = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in sorted(files) if not name.startswith(".")):
            suffix = path.suffix.lower()
            if suffix in VIDEO_SUFFIXES and path.is_file() and not (suffix == ".mp4" and is_annotated(path)):
                videos.append(path)
    return videos


def _names(paths: Sequence[str], names: Sequence[Path]) -> list[Path]:
    """Different names, without a suffix, for the results of different absolute `paths`.

    They are `names` where these differ; otherwise they begin at the folder that all have in common, and keep the
    suffix where that is needed.
    """
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    whole = [Path(os.path.relpath(path, common)) for path in paths]
    bare = [name.with_name(name.stem) for name in whole]
    for candidates in ([name.with_name(name.stem) for name in names], bare):
        if len(set(candidates)) == len(candidates):
            return candidates
    return whole


def check_ours(job: Job, *, annotate: bool) -> None:
    """Raises DataError where a result would replace what this program has not written there."""
    ours = [(job.json, _is_result), (job.timeline, is_timeline)]
    if annotate:
        ours.append((job.annotated, is_annotated))
    for path, is_ours in ours:
        if os.path.lexists(path) and not (path.is_file() and is_ours(path)):
            raise DataError(
                path, "is no result of actdet predict, and would be replaced: give another --out, or move it"
            )


def _is_result(path: Path) -> bool:
    """Whether `Result` has written this file."""
    ((key, value),) = _WRITTEN_BY.items()
    begin = f'{{\n  "{key}": "{value}",\n'.encode()
    try:
        with open(path, "rb") as file:
            return file.read(len(begin)) == begin
    except OSError:
        return False


def _check_writable(folder: Path) -> None:
    """Makes the folder; raises DataError where that, or a file in it, is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".") as file:
            file.write(b"1")
            file.flush()
    except (FileExistsError, NotADirectoryError):
        raise DataError(folder, "is or lies in a file, not a folder: give another --out") from None
    except OSError as error:
        raise DataError(folder, f"cannot be written to: {error.strerror or error}; give another --out") from None


@dataclass
class Result:
    """The JSON of a video, which is on the disk while windows are found, and says whether that is all of them.

    Within `with` it is not; an error or an interruption that leaves the block is told in it, and raised.
    """

    job: Job
    video: VideoInfo
    windows: list[Window] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    timeline: str | None = None
    annotated: str | None = None
    _complete: bool = False
    _problem: str | None = "not all of it has been looked at"
    _due: float = 0.0

    @property
    def damage(self) -> list[Gap]:
        return [gap for gap in self.gaps if gap.damaged]

    def __enter__(self) -> Result:
        self.write()
        return self

    def add(self, finding: Window | Gap) -> None:
        if isinstance(finding, Window):
            self.windows.append(finding)
        else:
            self.gaps.append(finding)
        if time.monotonic() >= self._due:
            self.write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._complete = error is None and not self.damage
        if isinstance(error, ActdetError):
            self._problem = str(error)
        elif error is not None:
            self._problem = "it was stopped"
        else:
            self._problem = str(damage_error(self.video, self.damage)) if self.damage else None
        self.write()

    def write(self) -> None:
        """Write all that was found so far; raises DataError where the disk refuses."""
        began = time.monotonic()
        until = max((finding.end for finding in (*self.windows, *self.gaps)), default=0.0)
        facts = {
            "video": str(self.job.video),
            "seconds": self.video.seconds,
            "complete": self._complete,
            "problem": self._problem,
            "until": until,
            "timeline": self.timeline,
            "annotated": self.annotated,
            "windows": [asdict(window) for window in self.windows],
            "gaps": [asdict(gap) for gap in self.gaps],
        }
        write_json(self.job.json, _WRITTEN_BY | facts)
        ended = time.monotonic()
        self._due = ended + _MOST_WRITING * (ended - began)


def describe(job: Job, finding: Window | Gap) -> str:
    """What the terminal says of it."""
    start = f"{job.name}  {finding.start:7.2f} to {finding.end:7.2f} s  "
    if isinstance(finding, Gap):
        return start + ("not looked at: damaged" if finding.damaged else "not looked at: no frames")
    cut = "  (a cut to another scene: not to be trusted)" if finding.cut else ""
    if not finding.actions:
        return f"{start}{'no action':12} {finding.score:.2f}{cut}"
    return start + "; ".join(f"{found.action:12} {found.score:.2f}  box {found.box}" for found in finding.actions) + cut

"""The files that `actdet predict` writes: for which videos, under which names, and without replacing anybody else's."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import Any

from actdet.errors import ActdetError, DataError
from actdet.files import any_within, remove_abandoned, short_name, write_json
from actdet.pictures import is_annotated, is_timeline
from actdet.prediction.actors import ActorLinker, FoundTube
from actdet.prediction.predictor import Gap, Window, damage_error
from actdet.video.info import VideoInfo

# Files with these suffixes are the videos of a folder. A file that is given itself is tried whatever its name is.
_SUFFIXES = """
    .3g2 .3gp .asf .avi .dav .divx .dv .f4v .flv .h264 .h265 .hevc .m1v .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpe
    .mpeg .mpg .mts .mxf .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv
"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())

# The first entry of each result, by which it is recognized later.
_AUTHOR_KEY = "written_by"
_AUTHOR = "actdet predict"

# That of tubes, whose file might have the name of the result of another video, which was called NAME.tubes itself.
_AUTHOR_OF_TUBES = "actdet predict, tubes"

# A result is written again once so many times as long has passed as writing it took.
_MOST_WRITING = 20


@dataclass(frozen=True)
class Job:
    """A video and the paths of its results."""

    video: Path
    name: str
    """What lines of output about it begin with."""
    json: Path
    tubes: Path
    """Written only if the detector follows actors."""
    timeline: Path
    annotated: Path


def plan_jobs(given: Sequence[Path], out: Path, *, annotate: bool) -> list[Job]:
    """Plan the results of videos, and check that they can be written.

    Args:
        given: Video files, and folders of them.
        out: Folder for the results. It is made here.
        annotate: Whether annotated videos will be written.

    Returns:
        A job for each video file; a file that is given twice has one.

    Raises:
        DataError: If a folder contains no videos or cannot be read, if `out` cannot be written to, or if a result would
            replace a file that this program did not write.
    """
    # From the absolute path of each video to the path that was given and to a name for its results.
    found: dict[str, tuple[Path, Path]] = {}
    for path in given:
        if not path.is_dir():
            found.setdefault(os.path.abspath(path), (path, Path(path.name)))
            continue
        videos_inside = _videos_in(path)
        if not videos_inside:
            raise DataError(path, "contains no videos")
        for video in videos_inside:
            found.setdefault(os.path.abspath(video), (video, video.relative_to(path)))

    videos = [video for video, _ in found.values()]
    names = _distinct_names(list(found), [name for _, name in found.values()])
    jobs = [_job(video, name, out) for video, name in zip(videos, names, strict=True)]

    for job in jobs:
        for target in _targets(job, annotate=annotate):
            if any_within([target], videos):
                raise DataError(target, "is one of the videos and would be replaced by a result; choose another --out")
        check_ours(job, annotate=annotate)
    for folder in dict.fromkeys(job.json.parent for job in jobs):
        _check_writable(folder)
        remove_abandoned(folder)
    return jobs


def _videos_in(folder: Path) -> list[Path]:
    """The videos in a folder and its subfolders, except hidden ones and those that this program annotated."""

    def refuse(error: OSError) -> None:
        raise DataError(error.filename, f"cannot be read: {error.strerror}")

    videos = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        # What remains in this list are the subfolders that os.walk goes on to.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            suffix = path.suffix.lower()
            if name.startswith(".") or suffix not in VIDEO_SUFFIXES or not path.is_file():
                continue
            if suffix == ".mp4" and is_annotated(path):
                continue
            videos.append(path)
    return videos


def _distinct_names(paths: Sequence[str], names: Sequence[Path]) -> list[Path]:
    """Different names for the results of different videos, relative to the folder of the results.

    Args:
        paths: The absolute path of each video.
        names: The name that each would have by itself, with its suffix.

    Returns:
        `names` without suffixes if these differ. Otherwise, the paths from the folder that all videos have in common,
        without suffixes if these differ, else with them.
    """
    bare = [name.with_name(name.stem) for name in names]
    if len(set(bare)) == len(bare):
        return bare

    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    whole = [Path(os.path.relpath(path, common)) for path in paths]
    bare = [name.with_name(name.stem) for name in whole]
    if len(set(bare)) == len(bare):
        return bare
    return whole


def _job(video: Path, name: Path, out: Path) -> Job:
    """The job of a video whose results are called `name` in the folder `out`."""
    folder = out / name.parent
    return Job(
        video=video,
        name=video.name if len(name.parts) == 1 else str(name.with_name(video.name)),
        json=folder / short_name(name.name, ".json"),
        tubes=folder / short_name(name.name, ".tubes.json"),
        timeline=folder / short_name(name.name, ".png"),
        annotated=folder / short_name(name.name, ".mp4"),
    )


def _targets(job: Job, *, annotate: bool) -> list[Path]:
    """The files that a job writes."""
    targets = [job.json, job.tubes, job.timeline]
    if annotate:
        targets.append(job.annotated)
    return targets


def check_ours(job: Job, *, annotate: bool) -> None:
    """Check that this program wrote each file that the results of `job` would replace.

    Raises:
        DataError: For the first file that it did not write.
    """
    is_ours = {job.json: _is_result, job.tubes: _is_tubes, job.timeline: is_timeline, job.annotated: is_annotated}
    for path in _targets(job, annotate=annotate):
        if os.path.lexists(path) and not (path.is_file() and is_ours[path](path)):
            problem = "was not written by actdet predict and would be replaced; move it or choose another --out"
            raise DataError(path, problem)


def _is_result(path: Path) -> bool:
    """Whether `Result` wrote this file about windows."""
    return _is_by(path, _AUTHOR)


def _is_tubes(path: Path) -> bool:
    """Whether `Result` wrote this file about tubes."""
    return _is_by(path, _AUTHOR_OF_TUBES)


def _is_by(path: Path, author: str) -> bool:
    """Whether a file begins with the name of this author."""
    beginning = f'{{\n  "{_AUTHOR_KEY}": "{author}",\n'.encode()
    try:
        with open(path, "rb") as file:
            return file.read(len(beginning)) == beginning
    except OSError:
        return False


def _check_writable(folder: Path) -> None:
    """Make the folder, and check that a file can be written to it; raises DataError if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".") as file:
            file.write(b"1")
            file.flush()
    except (FileExistsError, NotADirectoryError):
        raise DataError(folder, "is not a folder but a file, or lies in one; choose another --out") from None
    except OSError as error:
        raise DataError(folder, f"cannot be written to: {error.strerror or error}; choose another --out") from None


@dataclass
class Result:
    """The JSON file of a video, which is on the disk while windows are found and says whether it is complete.

    Context manager: while active, the file is marked as incomplete. At the end it is complete if no frames were lost
    and no error is raised; otherwise it says what the problem was, and the error is raised on.
    """

    job: Job
    video: VideoInfo
    actors: ActorLinker | None = None
    """Links the windows, if the detector follows actors."""
    windows: list[Window] = field(default_factory=list)
    tubes: list[FoundTube] = field(default_factory=list)
    """What actors do, as far as it has ended."""
    gaps: list[Gap] = field(default_factory=list)
    timeline: str | None = None
    """File name of the timeline, once it is written."""
    annotated: str | None = None
    """File name of the annotated video, once it is written."""
    _complete: bool = False
    _problem: str | None = "not all of it has been looked at"
    _due: float = 0.0

    @property
    def damage(self) -> list[Gap]:
        """The gaps in which frames are lost."""
        return [gap for gap in self.gaps if gap.damaged]

    def __enter__(self) -> Result:
        if self.actors is None:
            # Those of an earlier detector are of another result. `check_ours` has looked whose they are.
            self.job.tubes.unlink(missing_ok=True)
        self.write()
        return self

    def add(self, finding: Window | Gap) -> None:
        """Add a window or a gap, and write the file if the last time was long enough ago."""
        if isinstance(finding, Window):
            if self.actors is not None:
                for part in finding.tracks:
                    self.tubes += self.actors.add(part)
            # Tracks are linked now, and a day of them would fill the memory.
            self.windows.append(replace(finding, tracks=()))
        else:
            self.gaps.append(finding)
        if time.monotonic() >= self._due:
            self.write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        damage = self.damage
        if self.actors is not None:
            self.tubes += self.actors.finish()
            self.tubes.sort(key=lambda tube: (tube.first_frame, tube.actor))
        self._complete = error is None and not damage
        if isinstance(error, ActdetError):
            self._problem = str(error)
        elif error is not None:
            self._problem = "it was stopped"
        elif damage:
            self._problem = str(damage_error(self.video, damage))
        else:
            self._problem = None
        self.write()

    def write(self) -> None:
        """Write all that was found so far; raises DataError if the disk refuses."""
        began = time.monotonic()
        until = max((finding.end for finding in (*self.windows, *self.gaps)), default=0.0)
        facts = {
            _AUTHOR_KEY: _AUTHOR,
            "video": str(self.job.video),
            "seconds": self.video.seconds,
            "complete": self._complete,
            "problem": self._problem,
            "until": until,
            "timeline": self.timeline,
            "annotated": self.annotated,
            "tubes": None if self.actors is None else self.job.tubes.name,
            "windows": [_window_facts(window) for window in self.windows],
            "gaps": [asdict(gap) for gap in self.gaps],
        }
        write_json(self.job.json, facts)
        if self.actors is not None:
            tubes = {
                _AUTHOR_KEY: _AUTHOR_OF_TUBES,
                "video": str(self.job.video),
                "complete": self._complete,
                "problem": self._problem,
                "tubes": [tube.facts() for tube in self.tubes],
            }
            write_json(self.job.tubes, tubes)

        ended = time.monotonic()
        self._due = ended + _MOST_WRITING * (ended - began)


def _window_facts(window: Window) -> dict[str, Any]:
    """A window as JSON has it; tracks are in a file of their own, as tubes."""
    facts = asdict(window)
    del facts["tracks"]
    return facts


def describe_tube(job: Job, tube: FoundTube) -> str:
    """The line of output about what an actor does."""
    when = f"{tube.start:7.2f} to {tube.end:7.2f} s"
    return f"{job.name}  {when}  actor {tube.actor}: {tube.action} {tube.score:.2f}"


def describe(job: Job, finding: Window | Gap) -> str:
    """The line of output about a window or a gap."""
    line = f"{job.name}  {finding.start:7.2f} to {finding.end:7.2f} s  "
    if isinstance(finding, Gap):
        return line + ("not looked at: damaged" if finding.damaged else "not looked at: no frames")

    if finding.actions:
        line += "; ".join(f"{found.action:12} {found.score:.2f}  box {found.box}" for found in finding.actions)
    else:
        line += f"{'no action':12} {finding.score:.2f}"
    if finding.cut:
        line += "  (not reliable: the window has a cut to another scene)"
    return line

"""Makes a data set of ours of one in another format: tube files, class names, splits, and links to the videos.

What is written is recorded in `converted.json`, so that a later run replaces only what this program wrote and nobody
has changed since.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

from actdet.data.classes import CLASS_FILE, class_names_of, problem_of
from actdet.data.division import GROUPS, TEST, TRAIN
from actdet.data.formats.ava import read_ava
from actdet.data.formats.cvat import read_cvat
from actdet.data.formats.files import VideoFiles, facts_of
from actdet.data.formats.jhmdb import read_jhmdb
from actdet.data.formats.label_studio import read_label_studio
from actdet.data.formats.le2i import read_le2i
from actdet.data.formats.source import Facts, LeftOut, Source, SourceVideo, Split, UnusableError, fit_tube, last_part
from actdet.data.formats.ucf101_24 import read_ucf101_24
from actdet.data.reading import read_text_lines
from actdet.data.tubes import tube_file
from actdet.detections import Tube
from actdet.errors import ActdetError, DataError
from actdet.files import check_own, read_own_json, replacing, sole_writer, write_bytes, write_json
from actdet.video.encoding import read_comment
from actdet.video.images import picture_files, write_pictures

Format = Literal["cvat", "label-studio", "ucf101-24", "jhmdb", "ava", "le2i"]
VideoMode = Literal["link", "copy", "none"]
Progress = Callable[[int, int], None]

_READERS: dict[Format, Callable[[Path, Sequence[str] | None], Source]] = {
    "cvat": read_cvat,
    "label-studio": read_label_studio,
    "ucf101-24": read_ucf101_24,
    "jhmdb": read_jhmdb,
    "ava": read_ava,
    "le2i": read_le2i,
}

_RECORD = "converted.json"

# What videos made of pictures say in their metadata. The number goes up when they would be encoded differently.
_STAMP = "actdet convert: "
_VERSION = 1

_MOST_NAME_BYTES = 200

# Frames that all tracks of a video may have together.
_MOST_FRAMES = 10**7


@dataclass(frozen=True, eq=False)
class _Clip:
    """A video as it will be in the data set."""

    name: str
    sources: tuple[str, ...]
    """Its names in the source, several if several tasks were about the same file."""
    path: Path | None
    """A file, or a folder of pictures; None if only its annotation is written."""
    tubes: list[Tube]
    group: str | None
    rate: Fraction


@dataclass(frozen=True, eq=False)
class Conversion:
    """A data set that is read and can be written as one of ours."""

    class_names: tuple[str, ...]
    clips: tuple[_Clip, ...]
    split: Split | None
    """By names of clips."""
    mode: VideoMode
    left_out: tuple[str, ...]
    """What was left out and why: a line for each reason, with a count."""

    @property
    def tubes(self) -> list[Tube]:
        """Those of all clips."""
        return [tube for clip in self.clips for tube in clip.tubes]


def read_dataset(
    kind: Format,
    data: Path,
    out: Path,
    *,
    videos: VideoMode = "link",
    video_folder: Path | None = None,
    class_names: Sequence[str] | None = None,
    split: str = "1",
    progress: Progress | None = None,
) -> Conversion:
    """Read a data set in another format, and find its videos; nothing is written.

    Args:
        kind: The format of `data`.
        data: A file or folder, as the reader of that format wants it.
        out: Where it will be written; videos are not looked for there.
        videos: Whether `out` will get links to the videos, copies of them, or none. Without videos, those whose
            annotation says how large and how long they are need not be there.
        video_folder: Where the videos are; by default in `data`, or beside it if it is a file.
        class_names: The classes to take, in the order of their ids; by default those of the source.
        split: Which of the source's splits to write, counted from 1, or a file that lists the videos to test on.
        progress: Called with (videos read, videos in all).

    Raises:
        DataError: If something cannot be read.
        ActdetError: If nothing is left, or if there is no such split.
    """
    if not data.exists():
        raise DataError(data, "no such file or folder")
    source = _READERS[kind](data, class_names)
    if not source.class_names:
        raise DataError(data, "has no action of any class: say with --class-names which there could be")
    if problem := problem_of(source.class_names):
        raise DataError(data, f"{problem}: rename it there, or say with --class-names which classes to take")
    folder = video_folder or (data if data.is_dir() else data.parent)
    clips = _find_clips(source, VideoFiles(folder, without=out), videos, progress)
    if not clips:
        lines = source.left_out.lines()
        reason = f": {lines[0]}" if lines else "; it has none"
        raise ActdetError(f"{data}: no video of it can be converted{reason}")

    chosen = _choose_split(source, clips, split)
    return Conversion(source.class_names, tuple(clips), chosen, videos, tuple(source.left_out.lines()))


def write_dataset(conversion: Conversion, out: Path, progress: Progress | None = None) -> None:
    """Write annotations/NAME.csv, classes.txt, videos/, and train.txt, test.txt and groups.txt if there are such.

    Folders of pictures become video files, whether the videos are linked or copied.

    Args:
        conversion: From `read_dataset`.
        out: The folder.
        progress: Called with (videos written, videos in all).

    Raises:
        DataError: If the disk refuses, or if `out` has other class names.
        ActdetError: If `out` has files that would be replaced and that this command did not write.
    """
    with sole_writer(out):
        class_names_of(out, conversion.class_names)
        _write(conversion, out, progress)


class _Found(NamedTuple):
    """A video of the source with its file, and what has to be known of it; or why it is left out."""

    video: SourceVideo
    path: Path | None
    facts: Facts | None
    reason: str = ""


def _find_clips(source: Source, files: VideoFiles, mode: VideoMode, progress: Progress | None) -> list[_Clip]:
    """Find the files of all videos, and read what happens in them."""

    def find(video: SourceVideo) -> _Found:
        path = files.find(video)
        if path is None:
            facts = video.facts if mode == "none" else None
            reason = "videos that were not found" if facts is None else ""
            return _Found(video, None, facts, reason)
        try:
            return _Found(video, path, facts_of(path, video.rate))
        except DataError as error:
            return _Found(video, path, None, f"videos of which one {error.problem}")

    # Threads suffice: FFmpeg works without the interpreter's lock.
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(find, source.videos):
            found.append(result)
            if progress:
                progress(len(found), len(source.videos))

    usable: list[tuple[_Found, list[Tube]]] = []
    for each in found:
        where = each.video.name
        if each.facts is None:
            source.left_out.add(each.reason, where)
            continue
        try:
            usable.append((each, list(_fitted(each.video, each.facts, source.left_out))))
        except UnusableError as error:
            source.left_out.add(str(error), where)
    return _name_clips(usable, source)


def _fitted(video: SourceVideo, facts: Facts, left_out: LeftOut) -> Iterator[Tube]:
    """Yield what happens in a video, cut to it.

    Raises:
        UnusableError: If it is more than a file of tubes may hold. A span takes a few bytes and can stand for a whole
            video, so a small file could fill the memory.
    """
    frames = 0
    for tube in video.tubes(facts):
        fitted = fit_tube(tube, facts, video.name, left_out)
        if fitted is None:
            continue
        frames += len(fitted.frames)
        if frames > _MOST_FRAMES:
            raise UnusableError(f"videos whose tracks have more than {_MOST_FRAMES} frames together")
        yield fitted


def _name_clips(usable: Sequence[tuple[_Found, list[Tube]]], source: Source) -> list[_Clip]:
    """Give each video a name of its own, and put together what several tasks say of one file."""
    by_file: dict[str, list[tuple[_Found, list[Tube]]]] = defaultdict(list)
    for each, tubes in usable:
        by_file[str(each.path or each.video.name)].append((each, tubes))

    by_name: dict[str, list[list[tuple[_Found, list[Tube]]]]] = defaultdict(list)
    for parts in by_file.values():
        by_name[_short_name(parts[0][0])].append(parts)

    clips = []
    taken: dict[str, str] = {}
    for short, alike in by_name.items():
        for parts in alike:
            first = parts[0][0]
            name = short if len(alike) == 1 else _long_name(first)
            if not _is_file_name(name):
                source.left_out.add("videos whose name cannot be that of a file", first.video.name)
                continue
            if name in taken:
                problem = f"has the same name here as {taken[name]}, {name}; rename one of them"
                raise DataError(first.path or first.video.name, problem)
            taken[name] = str(first.path or first.video.name)
            clips.append(
                _Clip(
                    name=name,
                    sources=tuple(found.video.name for found, _ in parts),
                    path=first.path,
                    tubes=[tube for _, tubes in parts for tube in tubes],
                    group=first.video.group,
                    rate=first.video.rate,
                )
            )
    return sorted(clips, key=lambda clip: clip.name)


def _short_name(found: _Found) -> str:
    return found.video.clip_name or last_part(str(found.path or found.video.name))


def _long_name(found: _Found) -> str:
    """Return a name with that of the folder before it, for videos whose files are called the same."""
    parts = str(found.path or found.video.name).replace("\\", "/").split("/")
    return "_".join([*parts[-2:-1], last_part(parts[-1])])


def _is_file_name(name: str) -> bool:
    length = len(os.fsencode(name))
    return name.isprintable() and not name.startswith(".") and "/" not in name and 0 < length <= _MOST_NAME_BYTES


def _choose_split(source: Source, clips: Sequence[_Clip], split: str) -> Split | None:
    """Return the split that was asked for, by names of clips; None if the source has none."""
    if not re.fullmatch("[0-9]{1,3}", split):
        return _listed_split(Path(split), clips, source)
    number = int(split)
    if number == 1 and not source.splits:
        return None
    if not 1 <= number <= len(source.splits):
        has = f"splits 1 to {len(source.splits)}" if source.splits else "no splits of its own"
        raise ActdetError(f"--split {split}: this data set has {has}; give one of these, or a file")

    chosen = source.splits[number - 1]
    train = [clip.name for clip in clips if not chosen.train.isdisjoint(clip.sources)]
    test = [clip.name for clip in clips if not chosen.test.isdisjoint(clip.sources)]
    return Split(frozenset(train) - frozenset(test), frozenset(test))


def _listed_split(path: Path, clips: Sequence[_Clip], source: Source) -> Split:
    """Return the split that a list of test videos makes, such as UCF101's testlist01.txt: CLASS/NAME.avi a line."""
    lines = read_text_lines(path, 2**24, 10**6, "a split number, or a list of the videos to test on, one per line")
    names: dict[str, str] = {}
    for clip in clips:
        names |= dict.fromkeys((clip.name, *map(last_part, clip.sources)), clip.name)

    test = set()
    for line in filter(None, map(str.strip, lines)):
        # Some lists have a number behind the name.
        name = names.get(last_part(line)) or names.get(last_part(line.rpartition(" ")[0]))
        if name is None:
            source.left_out.add("videos of the split list that are not in the data set", line[:100])
        else:
            test.add(name)
    if not test:
        raise DataError(path, "names none of the videos; expected the videos to test on, one per line")
    return Split(frozenset(clip.name for clip in clips) - test, frozenset(test))


def _write(conversion: Conversion, out: Path, progress: Progress | None) -> None:
    """Write everything, the annotations first: a data set whose videos are missing is not taken for a whole one."""
    clips = conversion.clips
    class_names = conversion.class_names
    tables = {out / "annotations" / f"{clip.name}.csv": clip.tubes for clip in clips}
    texts = {path: tube_file(path, tubes, class_names) for path, tubes in tables.items()}
    texts[out / CLASS_FILE] = _lines(class_names)
    if conversion.split is not None:
        texts[out / TRAIN] = _lines(sorted(conversion.split.train))
        texts[out / TEST] = _lines(sorted(conversion.split.test))
    if any(clip.group for clip in clips):
        # groups.txt must name all clips; one without a group has nothing in common with any other.
        groups = {clip.name: "_".join((clip.group or clip.name).split()) for clip in clips}
        texts[out / GROUPS] = _lines(f"{name} {group}" for name, group in groups.items())
    for clip in clips:
        other = out / "annotations" / f"{clip.name}.txt"
        if other.exists():
            raise ActdetError(f"{other} annotates the same video: remove it, or choose another folder")

    # Nothing is written before it is clear that nothing foreign would be replaced.
    record = _Record(out)
    jobs = [] if conversion.mode == "none" else _video_jobs(clips, out, conversion.mode)
    check_own([out / _RECORD], lambda path: record.is_ours)
    check_own(texts, lambda path: record.has(path) or _holds(path, texts[path]))
    for job in jobs:
        check_own([job.target], lambda path, job=job: record.has(path) or job.is_done() or job.is_ours())

    for path, text in texts.items():
        write_bytes(path, text)
        record.add(path)
    for number, job in enumerate(jobs, start=1):
        if not job.is_done():
            job.run()
        record.add(job.target)
        if progress:
            progress(number, len(jobs))
    record.write()


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _holds(path: Path, text: bytes) -> bool:
    """Whether a file holds just this text."""
    return path.is_file() and path.read_bytes() == text


class _VideoJob(NamedTuple):
    """A video to make."""

    source: Path
    target: Path
    mode: VideoMode
    """`link` or `copy`; a folder of pictures is encoded in both cases."""
    rate: Fraction

    def is_done(self) -> bool:
        """Whether the target is what this job would make of it."""
        if self.source.is_dir():
            return self.target.is_file() and read_comment(self.target) == self._stamp()
        if self.mode == "link":
            return self.target.is_symlink() and os.readlink(self.target) == str(self.source.absolute())
        if self.target.is_symlink() or not self.target.is_file():
            return False
        return filecmp.cmp(self.source, self.target, shallow=False)

    def is_ours(self) -> bool:
        """Whether the target is a video that this command has encoded, of whatever pictures."""
        return self.target.is_file() and read_comment(self.target).startswith(_STAMP)

    def run(self) -> None:
        """Make the target, all of it or nothing."""
        if self.source.is_dir():
            write_pictures(picture_files(self.source), self.target, self.rate, self._stamp())
        elif self.mode == "copy":
            with replacing(self.target) as temporary:
                shutil.copyfile(self.source, temporary)
        else:
            try:
                self.target.parent.mkdir(parents=True, exist_ok=True)
                self.target.unlink(missing_ok=True)
                self.target.symlink_to(self.source.absolute())
            except OSError as error:
                raise DataError(self.target, f"cannot be written: {error.strerror or error}") from error

    def _stamp(self) -> str:
        pictures = picture_files(self.source)
        size = sum(picture.stat().st_size for picture in pictures)
        return f"{_STAMP}{len(pictures)} pictures of {size} bytes, {self.rate} per second, version {_VERSION}"


def _video_jobs(clips: Sequence[_Clip], out: Path, mode: VideoMode) -> list[_VideoJob]:
    """Return what to do for the videos; nothing for those that lie where they should."""
    jobs = []
    for clip in clips:
        assert clip.path is not None
        suffix = ".mp4" if clip.path.is_dir() else clip.path.suffix
        target = out / "videos" / (clip.name + suffix)
        if target.absolute() != clip.path.absolute():
            jobs.append(_VideoJob(clip.path, target, mode, clip.rate))
    return jobs


class _Record:
    """Remembers in `converted.json` what this command wrote into a folder, and how it looked then."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._path = out / _RECORD
        stored = read_own_json(self._path) if self._path.is_file() else None
        files = stored.get("files") if isinstance(stored, dict) else None
        self.is_ours = isinstance(files, dict)
        self._marks: dict[str, str] = dict(files) if isinstance(files, dict) else {}

    def has(self, path: Path) -> bool:
        """Whether this command wrote the file, and nobody has changed it since."""
        return self._marks.get(self._key(path)) == _mark(path)

    def add(self, path: Path) -> None:
        """Remember a file as it is now."""
        self._marks[self._key(path)] = _mark(path)

    def write(self) -> None:
        """Write the record."""
        write_json(self._path, {"written by": "actdet convert", "files": dict(sorted(self._marks.items()))})

    def _key(self, path: Path) -> str:
        return path.relative_to(self._out).as_posix()


def _mark(path: Path) -> str:
    """Return how a file looks: where a link leads, what a text says, how large a video is and when it changed."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if not path.is_file():
        return "not a file"
    if path.parent.name == "videos":
        facts = path.stat()
        return f"{facts.st_size} bytes, changed at {facts.st_mtime_ns} ns"
    return "sha256 " + hashlib.sha256(path.read_bytes()).hexdigest()

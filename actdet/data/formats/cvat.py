"""CVAT, "CVAT for video 1.1": an XML file for each task, with tracks of boxes. Reads and writes it.

In CVAT's own files a track has a box for every frame of its life, in those of other programs perhaps only for its
keyframes. Both mean the same: between two boxes it moves on a straight line, a box that is `outside` ends it until the
next one that is not, and a last box that is not `outside` lasts to the end of the task.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import ParseError, XMLParser
from xml.sax.saxutils import quoteattr

import numpy as np

from actdet.data.boxes import parse_number
from actdet.data.classes import NO_ACTION
from actdet.data.formats.source import (
    ClassMap,
    Facts,
    LeftOut,
    Source,
    SourceVideo,
    UnusableError,
    facts_at_rate,
)
from actdet.data.reading import open_regular
from actdet.data.tubes import interpolate, thin
from actdet.detections import Tube
from actdet.errors import DataError
from actdet.files import write_bytes

# A task of an hour with ten actors, a box each in every frame, has 150 MB. It is never in memory as a whole.
_MOST_BYTES = 2**31
_CHUNK = 2**20
_EXPECTED = "an export of CVAT, as CVAT for video 1.1"

# Frames behind that are a mistake: days of video.
_MOST_FRAME = 10**7

# What the head of a file says of a task, as texts.
_Task = dict[str, str]
_TASK_TAGS = ("id", "name", "source", "size", "stop_frame", "width", "height")

# Elements of an export lie in fewer others.
_MOST_DEPTH = 50

# Shapes that a track may have, but that say less of where somebody is than a box.
_OTHER_SHAPES = ("polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton")


def read_cvat(data: Path, class_names: Sequence[str] | None) -> Source:
    """Read the exports of CVAT.

    Args:
        data: An XML file, or a folder with some in it or below.
        class_names: The labels to take, in the order of their class ids; by default all that the tasks have.

    Raises:
        DataError: If one of the files is not such an export.
    """
    paths = sorted(data.rglob("*.xml")) if data.is_dir() else [data]
    if not paths:
        raise DataError(data, f"contains no .xml file; expected {_EXPECTED}")
    files = [(path, _read_file(path)) for path in paths]

    left_out = LeftOut()
    if class_names is None:
        # Labels in the order of the first task that has them; others may have more.
        known = dict.fromkeys(name for _, file in files for name in file.labels)
        used = dict.fromkeys(track.label for _, file in files for track in file.tracks)
        class_names = [name for name in known | used if name != NO_ACTION]
    classes = ClassMap(class_names, left_out)

    videos = []
    for path, file in files:
        left_out.add("shapes that are not boxes", path.name, file.other_shapes)
        by_task: dict[str, list[_Track]] = defaultdict(list)
        for track in file.tracks:
            by_task[track.task].append(track)
        tasks = file.tasks or [{}]
        for task in tasks:
            # Only exports of whole projects, which have several tasks, say which track is of which.
            tracks = by_task[task.get("id", "")] if len(tasks) > 1 else file.tracks
            videos.append(_video(path, task, tracks, classes, left_out))
    return Source(tuple(class_names), videos, left_out=left_out)


def write_cvat(
    path: Path, tubes: Sequence[Tube], class_names: Sequence[str], facts: Facts, video_name: str = ""
) -> None:
    """Write tubes so that CVAT can import them into a task, all of the file or nothing.

    Args:
        path: The XML file.
        tubes: A track each. A tube without boxes gets the whole picture.
        class_names: Labels of the task, in the order of the class ids.
        facts: Of the video.
        video_name: What the task is called.

    Raises:
        DataError: If the disk refuses.
    """
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "<version>1.1</version>", "<meta><task>"]
    lines += [f"<name>{_escape(video_name)}</name>", f"<size>{len(facts.times)}</size>", "<mode>interpolation</mode>"]
    lines += ["<labels>"]
    lines += [f"<label><name>{_escape(name)}</name></label>" for name in class_names]
    lines += ["</labels>"]
    lines += [f"<original_size><width>{facts.width}</width><height>{facts.height}</height></original_size>"]
    lines += [f"<source>{_escape(video_name)}</source>", "</task></meta>"]
    for number, tube in enumerate(tubes):
        lines.append(f'<track id="{number}" label={quoteattr(class_names[tube.label])} source="file">')
        lines += _box_lines(tube, facts)
        lines.append("</track>")
    lines.append("</annotations>")
    write_bytes(path, ("\n".join(lines) + "\n").encode(errors="replace"))


class _Box(NamedTuple):
    frame: int
    outside: bool
    corners: tuple[float, float, float, float]


@dataclass
class _Track:
    label: str
    task: str
    boxes: list[_Box] = field(default_factory=list)


class _File:
    """Takes in an XML file piece by piece, and keeps the tracks. It is what XMLParser calls its target."""

    def __init__(self, path: Path) -> None:
        self.labels: list[str] = []
        self.tasks: list[_Task] = []
        self.tracks: list[_Track] = []
        self.other_shapes = 0
        self._path = path
        self._tags: list[str] = []
        self._text = ""
        self._track: _Track | None = None

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """A document type can define entities that fill the memory or name other files. CVAT writes none."""
        raise DataError(self._path, f"has a document type ({name}), which is not read; expected {_EXPECTED}")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._tags and tag != "annotations":
            raise DataError(self._path, f"begins with <{tag}>; expected <annotations>, {_EXPECTED}")
        if len(self._tags) > _MOST_DEPTH:
            raise DataError(self._path, f"has elements inside of {_MOST_DEPTH} others; expected {_EXPECTED}")
        self._tags.append(tag)
        self._text = ""

        if tag in ("task", "job") and "meta" in self._tags:
            self.tasks.append({})
        elif tag == "image":
            raise DataError(self._path, 'is "CVAT for images"; export it again as "CVAT for video 1.1"')
        elif tag == "track":
            self._track = _Track(attributes.get("label", ""), attributes.get("task_id", ""))
            self.tracks.append(self._track)
        elif tag == "box" and self._track is not None:
            self._track.boxes.append(self._box(attributes))
        elif tag in _OTHER_SHAPES and self._track is not None:
            self.other_shapes += 1

    def data(self, text: str) -> None:
        # Only short texts in the head of the file matter.
        if "meta" in self._tags and len(self._text) < 1000:
            self._text += text

    def end(self, tag: str) -> None:
        self._tags.pop()
        text = self._text.strip()
        self._text = ""
        if tag == "track":
            self._track = None
        elif tag == "name" and self._tags[-2:] == ["labels", "label"]:
            self.labels.append(text)
        elif self.tasks and self._tags[-1:] in (["task"], ["job"], ["original_size"]) and tag in _TASK_TAGS:
            self.tasks[-1][tag] = text
        elif tag == "source" and self._tags[-1:] == ["meta"] and self.tasks:
            self.tasks[-1]["source"] = text

    def close(self) -> None:
        pass

    def _box(self, attributes: dict[str, str]) -> _Box:
        try:
            frame = parse_number("frame", attributes.get("frame", ""))
            if frame != int(frame) or not 0 <= frame <= _MOST_FRAME:
                raise ValueError(f"frame = {attributes['frame']!r} is not a whole number from 0 to {_MOST_FRAME}")
            names = ("xtl", "ytl", "xbr", "ybr")
            left, top, right, bottom = (parse_number(name, attributes.get(name, "")) for name in names)
            rotation = parse_number("rotation", attributes.get("rotation", "0"))
        except ValueError as error:
            track = len(self.tracks) - 1
            raise DataError(self._path, f"a box of track number {track} is wrong: {error}; export it again") from None
        return _Box(int(frame), attributes.get("outside") == "1", _upright(left, top, right, bottom, rotation))


def _read_file(path: Path) -> _File:
    """Read one export."""
    file = _File(path)
    parser = XMLParser(target=file)
    try:
        with open_regular(path, _MOST_BYTES, _EXPECTED) as stream:
            while chunk := stream.read(_CHUNK):
                parser.feed(chunk)
        parser.close()
    except ParseError as error:
        line, _ = error.position
        raise DataError(path, f"is not XML ({error}); expected {_EXPECTED}", line) from None
    except (ValueError, LookupError) as error:
        raise DataError(path, f"is not XML in an encoding that can be read ({error}); expected {_EXPECTED}") from None
    return file


def _video(path: Path, task: _Task, tracks: list[_Track], classes: ClassMap, left_out: LeftOut) -> SourceVideo:
    """Return the video of a task."""
    names = [name for name in (task.get("source"), task.get("name"), path.stem, path.parent.name) if name]
    width, height, size = (_whole(task.get(tag, ""), 0) for tag in ("width", "height", "size"))
    stop_frame = _whole(task.get("stop_frame", ""), _MOST_FRAME)

    def tubes(facts: Facts) -> Iterator[Tube]:
        if width and height and (width, height) != (facts.width, facts.height):
            raise UnusableError("videos of another size than the annotated ones")
        last = min(stop_frame, len(facts.times) - 1)
        for track in tracks:
            label = classes.label(track.label, names[0])
            tube = _tube(track, last)
            if label is not None and tube is not None:
                yield replace(tube, label=label)

    facts = None
    if min(width, height, size) > 0:
        frames = size if stop_frame == _MOST_FRAME else stop_frame + 1
        facts = facts_at_rate(width, height, min(frames, _MOST_FRAME), Fraction(25))
    return SourceVideo(names[0], tubes, facts, other_names=tuple(names[1:]))


def _tube(track: _Track, last: int) -> Tube | None:
    """Return what a track says: boxes of all frames in which it is not outside, up to frame `last`."""
    by_frame = {box.frame: box for box in track.boxes}
    boxes = [by_frame[frame] for frame in sorted(by_frame)]
    if not boxes or all(box.outside for box in boxes):
        return None
    if not boxes[-1].outside and boxes[-1].frame < last:
        boxes.append(boxes[-1]._replace(frame=last))

    outside = np.array([box.outside for box in boxes])
    frames = np.array([box.frame for box in boxes], np.int64)
    corners = np.array([box.corners for box in boxes], np.float32)
    whole = interpolate(Tube(0, frames, corners), filled=~outside)

    shown = ~np.isin(whole.frames, frames[outside])
    return Tube(0, whole.frames[shown], whole.boxes[shown])


def _upright(left: float, top: float, right: float, bottom: float, degrees: float) -> tuple[float, float, float, float]:
    """Return the upright box around one that is turned about its center."""
    if not degrees:
        return left, top, right, bottom
    cosine = abs(math.cos(math.radians(degrees)))
    sine = abs(math.sin(math.radians(degrees)))
    across = ((right - left) * cosine + (bottom - top) * sine) / 2
    down = ((right - left) * sine + (bottom - top) * cosine) / 2
    x = (left + right) / 2
    y = (top + bottom) / 2
    return x - across, y - down, x + across, y + down


def _whole(text: str, otherwise: int) -> int:
    """Return the whole number from 0 that a text spells, or `otherwise`."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else otherwise


def _box_lines(tube: Tube, facts: Facts) -> list[str]:
    """Return the elements of a track: its keyframes, and one that is outside wherever it ends."""
    if not len(tube.boxes):
        whole = np.array([0, 0, facts.width, facts.height], np.float32)
        tube = replace(tube, boxes=np.tile(whole, (len(tube.frames), 1)))
    kept, filled = thin(tube)

    lines = []
    following = np.append(kept.frames[1:], len(facts.times) + 1)
    for frame, box, is_filled, behind in zip(kept.frames, kept.boxes, filled, following, strict=True):
        lines.append(_box_line(frame, box, outside=False))
        if not is_filled and behind > frame + 1 and frame + 1 < len(facts.times):
            lines.append(_box_line(frame + 1, box, outside=True))
    return lines


def _box_line(frame: int, box: np.ndarray, *, outside: bool) -> str:
    corners = " ".join(f'{name}="{value}"' for name, value in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True))
    return f'<box frame="{frame}" keyframe="1" outside="{int(outside)}" occluded="0" {corners} z_order="0"/>'


def _escape(text: str) -> str:
    """Return a name as XML can hold it."""
    text = "".join(char for char in text if char.isprintable())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""Label Studio's JSON for videos: regions with keyframes, and spans of a timeline. Reads and writes it.

A region is shown at each keyframe of its `sequence`. If the keyframe is `enabled`, it moves on a straight line to the
next one, or stays until the end of the video if there is none. Exports with `interpolate_key_frames=1` have a keyframe
for every frame, and so mean the same. Frames are counted from 1, positions are percent of the picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from actdet.data.boxes import check_number
from actdet.data.classes import NO_ACTION
from actdet.data.formats.source import VIDEO_ENDINGS, ClassMap, Facts, LeftOut, Source, SourceVideo
from actdet.data.reading import read_json_file
from actdet.data.tubes import interpolate, nearest_frames, thin
from actdet.detections import Tube
from actdet.errors import DataError
from actdet.files import to_json, write_bytes
from actdet.wording import short_repr

_MOST_BYTES = 2**29
_EXPECTED = "an export of Label Studio, as JSON or JSON-MIN"

# Label Studio puts this before the name of a file that was uploaded.
_UPLOAD = re.compile("[0-9a-f]{8}-(.+)")

# Where a region keeps its labels, by the kind of the control that made it.
_LABEL_KEYS = ("labels", "videorectanglelabels", "rectanglelabels", "choices")

# Frames behind that are a mistake: days of video.
_MOST_FRAME = 10**7


def read_label_studio(data: Path, class_names: Sequence[str] | None) -> Source:
    """Read exports of Label Studio.

    Args:
        data: A JSON file, or a folder with some in it or below.
        class_names: The labels to take, in the order of their class ids; by default all that regions have, in the order
            of the alphabet, since an export does not list those of the project.

    Raises:
        DataError: If one of the files is not such an export.
    """
    paths = sorted(data.rglob("*.json")) if data.is_dir() else [data]
    if not paths:
        raise DataError(data, f"contains no .json file; expected {_EXPECTED}")

    left_out = LeftOut()
    tasks = [task for path in paths for task in _read_file(path, left_out)]
    if class_names is None:
        names = {name for task in tasks for region in task.regions for name in region.labels}
        class_names = sorted(names - {NO_ACTION})
    classes = ClassMap(class_names, left_out)
    videos = [_video(task, classes, left_out) for task in tasks]
    return Source(tuple(class_names), videos, left_out=left_out)


def write_label_studio(
    path: Path, tubes: Sequence[Tube], class_names: Sequence[str], facts: Facts, video_url: str
) -> None:
    """Write tubes as a task that Label Studio can import, all of the file or nothing.

    Its labeling interface needs a `Video` called video and, for it, `VideoRectangle` called box with `Labels` called
    videoLabels, and `TimelineLabels` called timeline for tubes without boxes.

    Args:
        path: The JSON file.
        tubes: A region each.
        class_names: Labels, in the order of the class ids.
        facts: Of the video.
        video_url: Where Label Studio finds it.

    Raises:
        DataError: If the disk refuses.
    """
    result = [
        _box_region(number, tube, class_names[tube.label], facts)
        if len(tube.boxes)
        else _timeline_region(number, tube, class_names[tube.label])
        for number, tube in enumerate(tubes)
    ]
    task = {"data": {"video": video_url}, "annotations": [{"result": result}]}
    write_bytes(path, (to_json(path, [task], indent=1) + "\n").encode(errors="replace"))


class _Keyframe(NamedTuple):
    frame: int
    """Counted from 1, as Label Studio counts."""
    enabled: bool
    percent: tuple[float, float, float, float]
    """x, y, width, height, before the turn."""
    degrees: float
    """By which the box is turned clockwise, about its corner at x, y."""


class _Region(NamedTuple):
    """One actor's action; one of the two lists is empty."""

    labels: tuple[str, ...]
    keyframes: list[_Keyframe]
    ranges: list[tuple[int, int]]
    """First and last frame, counted from 1."""
    frames: int
    """How many Label Studio thinks that the video has; 0 if it does not say."""
    seconds: float
    """How long it thinks that the video is; 0 if it does not say."""


class _Task(NamedTuple):
    video: str
    regions: list[_Region]


class _FormatError(Exception):
    """Something in an export is not as it should be. The text says what."""


def _read_file(path: Path, left_out: LeftOut) -> Iterator[_Task]:
    """Yield the annotated tasks of one export."""
    content = read_json_file(path, _MOST_BYTES, _EXPECTED)
    tasks = content if isinstance(content, list) else [content]
    for number, task in enumerate(tasks):
        where = f"task number {number}"
        try:
            task = _dict(task, "it")
            video = _video_of(task)
            if video is None:
                left_out.add("tasks without a video", path.name)
                continue
            where += f" ({short_repr(video)})"
            result = _result_of(task, video, left_out)
            if result is None:
                left_out.add("tasks that nobody has annotated", video)
                continue
            yield _Task(video, list(_regions(result, video, left_out)))
        except _FormatError as error:
            raise DataError(path, f"{where}: {error}; expected {_EXPECTED}") from None


def _video_of(task: dict[str, Any]) -> str | None:
    """Return the path or URL of a task's video; JSON-MIN has it beside the regions instead of in `data`."""
    fields = _dict(task.get("data", task), "data")
    texts = [value for value in fields.values() if isinstance(value, str)]
    for text in texts:
        if Path(_path_in(text)).suffix.lower() in VIDEO_ENDINGS:
            return text
    video = fields.get("video")
    return video if isinstance(video, str) and video else None


def _path_in(url: str) -> str:
    """Return the path that a URL names, such as /data/local-files/?d=folder/video.mp4."""
    try:
        parts = urlsplit(url)
        local = parse_qs(parts.query).get("d", [])
    except ValueError:
        return url
    return unquote(local[0] if local else parts.path)


def _result_of(task: dict[str, Any], video: str, left_out: LeftOut) -> list[dict[str, Any]] | None:
    """Return the regions of one annotation of a task, None if it has none."""
    if "data" not in task:
        # JSON-MIN: each control is a field with its regions, without the words around them.
        lists = [value for value in task.values() if isinstance(value, list)]
        return [{"value": value} for values in lists for value in values if isinstance(value, dict)]

    annotations = [_dict(each, "an annotation") for each in _list(task.get("annotations", []), "annotations")]
    valid = [each for each in annotations if not each.get("was_cancelled")]
    if not valid:
        return None

    # Several people may have annotated a task. Label Studio marks the annotation that was agreed on.
    left_out.add("annotations of a task beside the one that was taken", video, len(valid) - 1)
    chosen = next((each for each in valid if each.get("ground_truth")), valid[0])
    return [_dict(each, "a region") for each in _list(chosen.get("result", []), "result")]


def _regions(result: list[dict[str, Any]], video: str, left_out: LeftOut) -> Iterator[_Region]:
    """Yield the regions of an annotation that are boxes or spans."""
    # Choices for a region are entries of their own, with the same id. They may be what the actor does, and the label of
    # the region what kind of actor it is; the class names that are asked for tell which of them count.
    labels_by_id: dict[str, list[str]] = {}
    for entry in result:
        value = entry.get("value")
        if isinstance(value, dict) and "sequence" not in value:
            labels_by_id.setdefault(str(entry.get("id")), []).extend(_labels(value))

    for entry in result:
        value = _dict(entry.get("value", {}), "the value of a region")
        frames = _number(value.get("framesCount", 0), "framesCount")
        seconds = _number(value.get("duration", 0), "duration")
        if "sequence" in value:
            labels = list(dict.fromkeys([*_labels(value), *labels_by_id.get(str(entry.get("id")), [])]))
            keyframes = [_keyframe(each) for each in _list(value["sequence"], "a sequence")]
            yield _Region(tuple(labels), keyframes, [], int(frames), seconds)
        elif "ranges" in value:
            labels = [str(name) for name in _list(value.get("timelinelabels", []), "timelinelabels")]
            ranges = [_range(each) for each in _list(value["ranges"], "ranges")]
            yield _Region(tuple(labels), [], ranges, int(frames), seconds)
        else:
            continue
        if not labels:
            left_out.add("regions without a label", video)


def _labels(value: dict[str, Any]) -> list[str]:
    for key in _LABEL_KEYS:
        if isinstance(value.get(key), list):
            return [str(name) for name in value[key]]
    return []


def _keyframe(entry: object) -> _Keyframe:
    fields = _dict(entry, "a keyframe")
    x, y, width, height = (_number(fields.get(name), name) for name in ("x", "y", "width", "height"))
    enabled = fields.get("enabled", True)
    if not isinstance(enabled, bool):
        raise _FormatError(f"enabled = {short_repr(enabled)} is neither true nor false")
    degrees = _number(fields.get("rotation", 0), "rotation")
    return _Keyframe(_frame(fields.get("frame"), "frame"), enabled, (x, y, width, height), degrees)


def _range(entry: object) -> tuple[int, int]:
    fields = _dict(entry, "a range")
    return _frame(fields.get("start"), "start"), _frame(fields.get("end"), "end")


def _video(task: _Task, classes: ClassMap, left_out: LeftOut) -> SourceVideo:
    """Return the video of a task."""
    name = _path_in(task.video)
    upload = _UPLOAD.fullmatch(name.rpartition("/")[2])
    other_names = (upload[1],) if upload else ()

    def tubes(facts: Facts) -> Iterator[Tube]:
        for region in task.regions:
            for text in region.labels:
                label = classes.label(text, name)
                if label is None:
                    continue
                if region.keyframes:
                    yield _box_tube(region, label, facts)
                if region.ranges:
                    yield _span_tube(region, label, facts)

    return SourceVideo(name, tubes, other_names=other_names)


def _real_frames(frames: np.ndarray, region: _Region, facts: Facts) -> np.ndarray:
    """Return the frames of the video that Label Studio means.

    It does not read the rate of a video but takes that of the labeling interface, so its frames are those of the video
    only if both have as many. Otherwise the time tells.

    Args:
        frames: (n,) int, counted from 1.
        region: They are of.
        facts: Of the video.
    """
    count = len(facts.times)
    if region.frames <= 0 or abs(region.frames - count) <= 1:
        return np.maximum(frames - 1, 0)
    seconds = (frames - 1) * ((region.seconds or facts.seconds) / region.frames)
    return nearest_frames(facts.times, seconds)


def _box_tube(region: _Region, label: int, facts: Facts) -> Tube:
    """Return what a region with keyframes says."""
    ordered = sorted(region.keyframes, key=lambda keyframe: keyframe.frame)
    frames = _real_frames(np.array([keyframe.frame for keyframe in ordered]), region, facts)

    # Of several keyframes that fall on one frame the last one counts.
    by_frame = dict(zip(frames.tolist(), ordered, strict=True))
    last_frame = len(facts.times) - 1
    final = ordered[-1]
    if final.enabled and max(by_frame) < last_frame:
        by_frame[last_frame] = final

    boxes = [_corners(keyframe, facts) for keyframe in by_frame.values()]
    tube = Tube(label, np.array(list(by_frame), np.int64), np.array(boxes, np.float32))
    return interpolate(tube, np.array([keyframe.enabled for keyframe in by_frame.values()]))


def _span_tube(region: _Region, label: int, facts: Facts) -> Tube:
    """Return what a region of the timeline says."""
    spans = [np.zeros(0, np.int64)]
    for first, last in region.ranges:
        start, end = _real_frames(np.array([first, last]), region, facts).tolist()
        spans.append(np.arange(start, min(end, len(facts.times) - 1) + 1))
    return Tube(label, np.unique(np.concatenate(spans)), np.zeros((0, 4), np.float32))


def _corners(keyframe: _Keyframe, facts: Facts) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 of the upright box around a keyframe's box, in pixels."""
    x, y, width, height = keyframe.percent
    left = x / 100 * facts.width
    top = y / 100 * facts.height
    across = width / 100 * facts.width
    down = height / 100 * facts.height

    cosine = math.cos(math.radians(keyframe.degrees))
    sine = math.sin(math.radians(keyframe.degrees))
    xs = [left + u * cosine - v * sine for u in (0, across) for v in (0, down)]
    ys = [top + u * sine + v * cosine for u in (0, across) for v in (0, down)]
    return min(xs), min(ys), max(xs), max(ys)


def _dict(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _FormatError(f"{what} is not an object")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _FormatError(f"{what} is not a list")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _FormatError(f"{name} = {short_repr(value)} is not a finite number")
    try:
        return check_number(name, float(value), value)
    except ValueError as error:
        raise _FormatError(str(error)) from None


def _frame(value: object, name: str) -> int:
    number = _number(value, name)
    if not 0 <= number <= _MOST_FRAME:
        raise _FormatError(f"{name} = {value!r} is not a frame from 1 to {_MOST_FRAME}")
    return round(number)


def _box_region(number: int, tube: Tube, name: str, facts: Facts) -> dict[str, Any]:
    """Return a tube as Label Studio keeps it."""
    kept, filled = thin(tube)
    percent = 100 / np.array([facts.width, facts.height, facts.width, facts.height])
    adjacent = np.append(np.diff(kept.frames) == 1, False)

    sequence = []
    enabled = (filled | adjacent).tolist()
    for frame, box, is_enabled in zip(kept.frames.tolist(), kept.boxes.astype(np.float64), enabled, strict=True):
        x1, y1, x2, y2 = (box * percent).tolist()
        place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
        sequence.append({"frame": frame + 1, "enabled": is_enabled, "time": float(facts.times[frame])} | place)
    value = {"sequence": sequence, "framesCount": len(facts.times), "duration": facts.seconds, "labels": [name]}
    return {
        "id": f"tube{number}",
        "type": "videorectangle",
        "from_name": "box",
        "to_name": "video",
        "value": value,
    }


def _timeline_region(number: int, tube: Tube, name: str) -> dict[str, Any]:
    """Return a tube without boxes as Label Studio keeps it: its spans of frames without a gap."""
    starts = np.flatnonzero(np.diff(tube.frames, prepend=-2) > 1)
    ends = np.append(starts[1:], len(tube.frames)) - 1
    ranges = [
        {"start": int(tube.frames[start]) + 1, "end": int(tube.frames[end]) + 1}
        for start, end in zip(starts, ends, strict=True)
    ]
    return {
        "id": f"tube{number}",
        "type": "timelinelabels",
        "from_name": "timeline",
        "to_name": "video",
        "value": {"ranges": ranges, "timelinelabels": [name]},
    }

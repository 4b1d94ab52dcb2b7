"""What demuxing told of each video of a data set, such as the times of all frames, kept in a file between runs.

A video is demuxed again if its size or its time of change is another one. The file may be missing, damaged or hostile:
everything in it is checked, and what cannot be true counts as not there.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from actdet.errors import DataError
from actdet.files import remove_abandoned, write_bytes
from actdet.video.info import VideoInfo, probe

# The number of the file's format; a file with another number counts as empty.
_VERSION = 5

# The fields of a VideoInfo that JSON takes as they are.
_PLAIN_FACTS = (
    "width",
    "height",
    "rotation",
    "end",
    "codec",
    "has_timestamps",
    "skipped",
    "bytes",
    "remarks",
    "alone",
    "pixel_format",
)


class ProbeCache:
    """What `probe` told of the videos of a data set; several threads may use it at once."""

    def __init__(self, path: Path, videos: Sequence[Path]) -> None:
        """Read the file.

        Args:
            path: The file.
            videos: All videos of the data set.
        """
        self._path = path
        self._changed = False
        self._entries: dict[str, Any] = {}
        try:
            # A frame takes no more bytes here than in its video, so a larger file is not ours and is not read.
            size = path.stat().st_size if path.is_file() else math.inf
            if size > 4096 * (len(videos) + 1) + sum(os.path.getsize(video) for video in videos if video.is_file()):
                return
            stored = json.loads(path.read_bytes())
            if stored["version"] == _VERSION and isinstance(stored["videos"], dict):
                self._entries = stored["videos"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass

    def probe(self, path: Path) -> VideoInfo:
        """Return what is known of a video; probe it if nothing is.

        Raises:
            DataError: If it is not a whole video.
        """
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
        """Write the file, all of it or nothing, if it would change.

        In a folder that may not be written to, nothing is kept.

        Args:
            keep: The file names of the videos to keep; others are forgotten.

        Raises:
            DataError: If the disk is full or fails.
        """
        entries = {name: entry for name, entry in self._entries.items() if name in keep}
        if not self._changed and len(entries) == len(self._entries):
            return

        text = json.dumps({"version": _VERSION, "videos": entries}, separators=(",", ":"))
        remove_abandoned(self._path.parent)
        try:
            write_bytes(self._path, text.encode())
        except DataError as error:
            reason = error.__cause__
            forbidden = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)
            if not isinstance(reason, OSError) or reason.errno not in forbidden:
                raise


def _to_json(info: VideoInfo) -> dict[str, Any]:
    facts = {name: getattr(info, name) for name in _PLAIN_FACTS}
    facts["time_base"] = str(info.time_base)
    # The steps from one timestamp to the next are shorter to write than the timestamps.
    facts["pts_steps"] = np.diff(info.pts, prepend=0).tolist()
    facts["seek_points"] = info.seek_points.tolist()
    facts["places"] = info.places.tolist()
    return facts


def _from_json(path: Path, entry: dict[str, Any]) -> VideoInfo:
    """Return the facts of a video from its entry in the file.

    Raises:
        ValueError, TypeError, KeyError, ArithmeticError: If `probe` cannot have told this.
    """
    facts: dict[str, Any] = {name: entry[name] for name in _PLAIN_FACTS}
    steps = entry["pts_steps"]
    seek_points = entry["seek_points"]
    places = entry["places"]
    if not re.fullmatch("([0-9]{1,18})(/[0-9]{1,18})?", entry["time_base"]):
        raise ValueError("a time base of another form")
    time_base = Fraction(entry["time_base"])

    # The types come first, so that the bounds below compare only integers.
    remarks = facts["remarks"]
    singles = [facts[name] for name in ("width", "height", "rotation", "end", "skipped", "bytes")]
    are_of_type = (
        set(map(type, (*singles, *steps, *seek_points, *places))) == {int}
        and isinstance(steps, list)
        and len(steps) > 0
        and isinstance(seek_points, list)
        and isinstance(places, list)
        and isinstance(facts["has_timestamps"], bool)
        and isinstance(facts["alone"], bool)
        and isinstance(facts["codec"], str)
        and isinstance(facts["pixel_format"], str)
        and isinstance(remarks, list)
        and all(isinstance(remark, str) and remark.isprintable() for remark in remarks)
    )
    if not are_of_type:
        raise ValueError("a value of another type")

    first = steps[0]
    last = sum(steps)
    sides = (facts["width"], facts["height"])
    are_in_bounds = (
        min(sides) >= 1
        and max(sides) <= 2**16
        and facts["rotation"] in (0, 90, 180, 270)
        and min(steps[1:], default=1) >= 1
        and -(2**62) <= first <= last < facts["end"] <= 2**62
        and facts["skipped"] >= 0
        and facts["bytes"] == entry["size"]
        and seek_points == sorted(set(seek_points))
        and (not seek_points or 0 <= seek_points[0] <= seek_points[-1] < len(steps))
        and (not places or sorted(place for place in places if place != -1) == list(range(len(steps))))
        and time_base > 0
    )
    if not are_in_bounds:
        raise ValueError("a value out of bounds")

    facts["remarks"] = tuple(remarks)
    return VideoInfo(
        path=str(path),
        time_base=time_base,
        pts=np.cumsum(np.array(steps, np.int64)),
        seek_points=np.array(seek_points, np.int64),
        places=np.array(places, np.int64),
        **facts,
    )

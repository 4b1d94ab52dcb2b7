"""Where a data set keeps its files, and what else lies beside them.

    ROOT/videos/NAME.<any container>
    ROOT/annotations/NAME.txt          a line for each action, or
    ROOT/annotations/NAME.csv          a table of tubes
    ROOT/classes.txt                   perhaps

A video and the annotation file of the same name are a clip; a video may do without one.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from actdet.data.classes import CLASS_FILE
from actdet.errors import DataError
from actdet.files import NAME_BYTES, is_temporary

# What operating systems, cameras and annotation tools leave beside videos and annotations.
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")
_CLASS_FILES = ("classes.txt", "predefined_classes.txt")
_TOOL_FILES = (*_CLASS_FILES, "labels.txt", "notes.txt", "readme.txt")
_NO_VIDEOS = (".csv", ".db", ".html", ".ini", ".json", ".log", ".md", ".pdf", ".srt", ".thm", ".txt", ".vtt", ".xml")
_NO_ANNOTATIONS = (".db", ".html", ".ini", ".log", ".md", ".names", ".pdf")

# Lines of actions, and tables of tubes.
_ANNOTATIONS = (".txt", ".csv")

# How many of the files that are passed over a note lists by name.
_MOST_LISTED = 5


class Layout(NamedTuple):
    """The videos of a data set, and what else is in its folders."""

    videos: list[Path]
    """Sorted by name."""
    problems: list[DataError]
    """What is wrong with the folders and the names of the files in them."""
    notes: list[str]
    """A line on each folder with files that are neither videos nor annotations."""


def annotation_file(root: Path, name: str) -> Path:
    """Return where the annotations of the video called `name` are: its table if there is one, else its lines."""
    table = root / "annotations" / f"{name}.csv"
    return table if os.path.lexists(table) else root / "annotations" / f"{name}.txt"


def find_files(root: Path) -> Layout:
    """Look through the folders of the data set in `root`, without opening any file."""
    videos = root / "videos"
    annotations = root / "annotations"
    for folder, content in (
        (root, "videos/ and annotations/"),
        (videos, "the videos"),
        (annotations, "NAME.txt or NAME.csv"),
    ):
        if not folder.is_dir():
            return Layout([], [DataError(folder, f"folder not found; expected a folder containing {content}")], [])

    video_files, video_strays, problems = _contents(videos)
    texts, text_strays, more_problems = _contents(annotations)
    problems += more_problems

    # Containers have so many suffixes that a file counts as a video unless its suffix says otherwise.
    by_stem = defaultdict(list)
    for path in video_files:
        if path.suffix.lower() not in _NO_VIDEOS:
            by_stem[path.stem].append(path)

    for path in video_files:
        if path.suffix.lower() == ".txt" and path.stem in by_stem:
            problems.append(DataError(path, f"is not a video; annotation files are expected in {annotations}"))
        elif path.suffix.lower() in _NO_VIDEOS:
            video_strays.append(path)

    for first, *others in by_stem.values():
        problem = f"has the same name as {first.name}; an annotation file can belong to only one video"
        problems += [DataError(path, problem) for path in others]

    for stem, (path, *_) in by_stem.items():
        if len(os.fsencode(f"{stem}.txt")) > NAME_BYTES:
            most = NAME_BYTES - len(".txt")
            problems.append(
                DataError(path, f"its name leaves no room for .txt in its place: shorten it to {most} bytes")
            )

    annotated = set()
    for path in texts:
        name = path.name.lower()
        is_known = path.stem in by_stem
        if not is_known and (name in _TOOL_FILES or path.suffix.lower() in _NO_ANNOTATIONS):
            text_strays.append(path)
        elif path.suffix not in _ANNOTATIONS:
            expected = "NAME.txt or NAME.csv for a video called NAME"
            problems.append(DataError(path, f"is not an annotation file; expected {expected}"))
        elif not is_known:
            problems.append(DataError(path, f"no video of this name; expected videos/{path.stem}.<extension>"))
        elif path.stem in annotated:
            # Files are sorted, so the table comes first.
            problems.append(DataError(path, f"annotates the same video as {path.stem}.csv; expected one of them"))
        else:
            annotated.add(path.stem)

    if not by_stem:
        problems.append(DataError(videos, "contains no videos"))
    found = sorted((paths[0] for paths in by_stem.values()), key=lambda path: path.stem)
    both = ((videos, video_strays), (annotations, text_strays))
    notes = [_passed_over(root, folder, strays) for folder, strays in both if strays]
    return Layout(found, problems, notes)


def _contents(folder: Path) -> tuple[list[Path], list[Path], list[DataError]]:
    """Divide what is in a folder into files, hidden files, and problems: the folders among them."""
    entries = sorted(path for path in folder.iterdir() if not is_temporary(path))
    hidden = [path for path in entries if path.name.startswith(".")]
    visible = [path for path in entries if not path.name.startswith(".")]

    problem = f"is a folder; expected only files in {folder.name}/"
    problems = [DataError(path, problem) for path in visible if path.is_dir()]
    return [path for path in visible if not path.is_dir()], hidden, problems


def _passed_over(root: Path, folder: Path, strays: Sequence[Path]) -> str:
    """Return a note on files of a folder that are neither videos nor annotations."""
    note = f"{folder}: passed over {', '.join(path.name for path in strays[:_MOST_LISTED])}"
    if len(strays) > _MOST_LISTED:
        note += f" and {len(strays) - _MOST_LISTED} more"
    if any(path.name.lower() in _CLASS_FILES for path in strays):
        note += f"; class names are read from {root / CLASS_FILE}"
    return note

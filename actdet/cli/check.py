"""`actdet check`: what is wrong with a data set, and what is in it."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from actdet.cli.data import print_notes
from actdet.cli.progress import ProgressBar
from actdet.cli.terminal import print_line, print_lines
from actdet.data.classes import NO_ACTION
from actdet.data.clips import ClipIndex
from actdet.data.division import find_wrong_files
from actdet.data.index import Survey, survey
from actdet.errors import ActdetError
from actdet.wording import counted


def check(data: Positional[Path], /, class_names: tuple[str, ...] = (), decode: bool = True) -> None:
    """Validate a data set: list everything that is wrong with its videos and annotations, and count its actions.

    For instance: actdet check data/mine

    Args:
        data: Folder with videos/ and annotations/.
        class_names: Names of the action classes, in the order of their ids in the annotation files. By default those in
            DATA/classes.txt, one name per line, or fight and collapse if there is no such file.
        decode: Whether to decode every frame as well, instead of reading only the containers.
    """
    with ProgressBar(desc="check", unit="video") as bar:
        found = survey(data, class_names or None, decode=decode, progress=bar.show)

    problems = [*found.problems]
    if not found.other_form:
        problems += find_wrong_files(ClipIndex(data, found.class_names, tuple(found.clips), tuple(found.problems)))

    print_lines(problems)
    print_notes(found.notes)
    if problems:
        raise ActdetError(f"{counted(len(problems), 'problem')} in {data}")
    print_line(f"{data}: {counted(len(found.clips), 'clip')} ({_describe_actions(found)}), nothing wrong")


def _describe_actions(found: Survey) -> str:
    """How many actions of each class there are, and how many clips without any."""
    parts = []
    for label, name in enumerate(found.class_names):
        counts = [sum(annotation.label == label for annotation in clip.annotations) for clip in found.clips]
        actions = sum(counts)
        clips = sum(count > 0 for count in counts)

        part = f"{actions} {name}"
        if actions > clips:
            part += f" in {counted(clips, 'clip')}"
        parts.append(part)

    bare = [clip for clip in found.clips if not clip.annotations]
    with_file = sum(clip.annotated for clip in bare)
    part = f"{len(bare)} {NO_ACTION}"
    if with_file < len(bare):
        part += f": {with_file} with an empty file, {len(bare) - with_file} with none"
    parts.append(part)
    return ", ".join(parts) + _describe_tubes(found)


def _describe_tubes(found: Survey) -> str:
    """How many tubes and boxes the tables hold, and what a detector of tubes should know; nothing without tubes."""
    tables = [clip.table for clip in found.clips if clip.table]
    if not tables:
        return ""
    tubes = [tube for table in tables for tube in table]
    boxes = sum(len(tube.boxes) for tube in tubes)
    without = sum(not len(tube.boxes) for tube in tubes)

    text = f"; {counted(len(tubes), 'tube')} of {counted(boxes, 'box', 'boxes')} in {counted(len(tables), 'clip')}"
    if without:
        text += f", {without} of them without any"
    text += f"; at most {max(map(len, tables))} in one"

    # A tube may have gaps, such as frames in which its actor is hidden.
    gaps = sum(int(tube.frames[-1] - tube.frames[0]) + 1 - len(tube.frames) for tube in tubes)
    if gaps:
        text += f"; {counted(gaps, 'frame')} within tubes without a box"
    return text

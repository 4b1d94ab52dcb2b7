"""The names of a data set's classes: `ROOT/classes.txt`, a name a line, in the order of their ids from 0 on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from actdet.data.annotations import read_lines
from actdet.errors import ActdetError, DataError
from actdet.files import write_bytes

CLASS_NAMES = ("fight", "collapse")  # where nobody says otherwise
NO_ACTION = "no action"  # what a clip is called that has no action of any class
CLASS_FILE = "classes.txt"

_MOST_CHARACTERS = 100


def class_names_of(root: str | os.PathLike[str], asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """The class names of the data set in `root`: those that its file says, or `asked`, or else `CLASS_NAMES`.

    Raises DataError where the file says others than `asked`, or the same in another order: the ids in the annotation
    files would mean something else. Raises ActdetError for names that cannot be such.
    """
    written = read_class_names(root)
    if asked is None:
        return written or CLASS_NAMES
    if problem := _problem(asked):
        raise ActdetError(problem)
    if written and written != tuple(asked):
        raise DataError(
            Path(root, CLASS_FILE),
            f"the classes of this data set are {_listed(written)}, but --class-names or the model says "
            f"{_listed(asked)}: they must be the same, in the same order",
        )
    return tuple(asked)


def read_class_names(root: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """What the data set's own file says; None where it has none. Raises DataError for anything but a list of names."""
    path = Path(root, CLASS_FILE)
    if not os.path.exists(path):
        return None
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if problem := _problem(names):
        raise DataError(path, f"{problem}; expected is a name a line, in the order of the ids")
    return tuple(names)


def write_class_names(root: Path, names: Sequence[str]) -> None:
    """Write the data set's own file, all of it or nothing."""
    write_bytes(root / CLASS_FILE, "".join(f"{name}\n" for name in names).encode())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{number} = {name}" for number, name in enumerate(names))


def _problem(names: Sequence[str]) -> str | None:
    """What is wrong with these names, or None."""
    if not names:
        return "there is no class name"
    for number, name in enumerate(names):
        if not name.strip():
            return f"the name of class {number} is empty"
        if not name.isprintable() or len(name) > _MOST_CHARACTERS:
            return f"the name of class {number} is no line of at most {_MOST_CHARACTERS} printable characters"
        if name in names[:number]:
            return f"the name {name!r} comes twice, as class {names.index(name)} and {number}"
        if name == NO_ACTION:
            return f"no class can be called {NO_ACTION!r}: that is a clip without one"
    return None

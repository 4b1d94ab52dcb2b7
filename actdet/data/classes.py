"""The class names of a data set: `ROOT/classes.txt`, one name per line, in the order of the class ids from 0."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from actdet.data.annotations import read_lines
from actdet.errors import ActdetError, DataError
from actdet.files import write_bytes
from actdet.wording import short_repr

# The class names of a data set that does not name its classes, if the caller does not name them either.
CLASS_NAMES = ("fight", "collapse")

# What a clip is called that shows no action of any class.
NO_ACTION = "no action"

CLASS_FILE = "classes.txt"

_MOST_CHARACTERS = 100


def class_names_of(root: str | os.PathLike[str], asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the class names of the data set in `root`.

    Args:
        root: The data set's folder.
        asked: The names that the caller expects, in the order of their ids; None accepts any.

    Returns:
        The names in the data set's own file. If it has no such file, `asked`, or else `CLASS_NAMES`.

    Raises:
        DataError: If the file lists other names than `asked`, or the same names in another order. The class ids in the
            annotation files would then mean something else.
        ActdetError: If `asked` are not valid names.
    """
    written = read_class_names(root)
    if asked is None:
        return written or CLASS_NAMES

    if problem := problem_of(asked):
        raise ActdetError(problem)
    if written and written != tuple(asked):
        raise DataError(
            Path(root, CLASS_FILE),
            f"the classes of this data set are {_listed(written)}, but the option or the model says {_listed(asked)}; "
            "both must list the same names in the same order",
        )
    return tuple(asked)


def read_class_names(root: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Return the names in the data set's own file, or None if it has no such file.

    Raises:
        DataError: If the file is not a list of valid names.
    """
    path = Path(root, CLASS_FILE)
    if not os.path.exists(path):
        return None

    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if problem := problem_of(names):
        raise DataError(path, f"{problem}; expected one name per line, in the order of the class ids")
    return tuple(names)


def write_class_names(root: Path, names: Sequence[str]) -> None:
    """Write the data set's own file, all of it or nothing."""
    write_bytes(root / CLASS_FILE, "".join(f"{name}\n" for name in names).encode())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{number} = {name}" for number, name in enumerate(names))


def problem_of(names: Sequence[str]) -> str | None:
    """Say what is wrong with the names of classes; None if they are valid."""
    if not names:
        return "there is no class name"
    for number, name in enumerate(names):
        if not name.strip():
            return f"the name of class {number} is empty"
        if not name.isprintable() or len(name) > _MOST_CHARACTERS:
            characters = f"one line of at most {_MOST_CHARACTERS} printable characters"
            return f"the name of class {number}, {short_repr(name)}, is not {characters}"
        if name != name.strip():
            return f"the name of class {number}, {name!r}, begins or ends with a space"
        if name in names[:number]:
            return f"the name {name!r} is used twice, for class {names.index(name)} and {number}"
        if name == NO_ACTION:
            return f"no class can be called {NO_ACTION!r}, the name for a clip without any action"
    return None

"""The folder of a run or of a report: it has one writer at a time, and nobody else's files are replaced in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from actdet.distributed import ALONE, Processes
from actdet.errors import ActdetError
from actdet.files import any_within, check_own, read_own_json, short_name, sole_writer
from actdet.pictures import is_annotated
from actdet.run_log import FIGURES

# Every page of a report has this in its head.
_GENERATOR = b'<meta name="generator" content="actdet">'


@contextmanager
def sole_writers(out: Path, processes: Processes = ALONE) -> Iterator[None]:
    """While active, these processes, of which the first one writes, are the only ones that use the folder `out`.

    Raises:
        ActdetError: In all of the processes, if others use the folder.
    """
    refused = None
    with ExitStack() as stack:
        if processes.rank == 0:
            try:
                stack.enter_context(sole_writer(out))
            except ActdetError as error:
                refused = error

        # All processes must raise the error, since the others would wait for the first one forever.
        refused, *_ = processes.gather(refused)
        if refused is not None:
            raise refused
        yield


def check_apart(data: Path, out: Path, parts: Sequence[str] = ()) -> None:
    """Check that a report would not be written among the files of a data set.

    Args:
        data: The data set's folder.
        out: The folder of the report.
        parts: Folders in it that get reports of their own.

    Raises:
        ActdetError: If the report would be.
    """
    videos = data / "videos"
    folders = [out, *(out / part for part in parts)]
    pictures = {(folder / "videos").resolve() for folder in folders}
    linked = {path.resolve().parent for path in videos.glob("*") if path.is_symlink()}

    among = any_within([*folders, *pictures], [videos, data / "annotations"])
    if among or data.resolve() in pictures.union(folder.resolve() for folder in folders) or pictures & linked:
        raise ActdetError(f"{out}: its files would be written among those of the data set {data}: give another --out")


def check_replaceable(out: Path, clip_names: Sequence[str]) -> None:
    """Check that a report in `out` would replace only what this program has written.

    Args:
        out: The folder of the report.
        clip_names: The clips that it will have videos of.

    Raises:
        ActdetError: If it would replace something else, or be mixed with a data set.
    """
    if (out / "videos").is_dir() and (out / "annotations").is_dir():
        raise ActdetError(f"{out} holds a data set, with which a report would be mixed: give another --out")
    check_own([out / "metrics.json"], lambda path: read_metrics(path.parent) is not None)
    check_own([out / "report.html"], lambda path: path.is_file() and _GENERATOR in path.read_bytes()[:1000])
    check_own((annotated_clip(out, name) for name in clip_names), is_annotated)


def annotated_clip(out: Path, name: str) -> Path:
    """The annotated video of the clip `name` in the report in `out`."""
    return out / "videos" / short_name(name, ".mp4")


def is_reported(out: Path) -> bool:
    """Return whether the report in `out` is complete; its page is written last."""
    return (out / "report.html").is_file() and read_metrics(out) is not None


def read_metrics(out: Path) -> dict[str, Any] | None:
    """Return the figures that a report has left in `out`, or None if there are none."""
    found = read_own_json(out / "metrics.json")
    return found if isinstance(found, dict) and found.keys() >= {*FIGURES, "confusion"} else None

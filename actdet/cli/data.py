"""How the commands read a data set, and what they say about its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from actdet.cli.progress import ProgressBar
from actdet.cli.terminal import print_line
from actdet.data.classes import CLASS_NAMES
from actdet.data.clips import ClipIndex
from actdet.data.division import Division
from actdet.data.index import BadFiles, load_index


def read_index(
    data: Path,
    class_names: tuple[str, ...],
    bad_files: BadFiles = "stop",
    *,
    window: float = 0.0,
    quiet: bool = False,
) -> ClipIndex:
    """Read the index of a data set behind a progress bar, and print a line for each note on it.

    Args:
        data: Folder with videos/ and annotations/.
        class_names: The names that the user gave; the data set's own hold if this is empty or `CLASS_NAMES` itself.
        bad_files: What a bad file does: `stop` raises an error, `skip` leaves out its clip.
        window: The seconds of the windows into which videos with tables of tubes are cut; 0 leaves them whole.
        quiet: Whether to show and print nothing.

    Returns:
        The index.

    Raises:
        DataError: The data set, or with `stop` one of its files, cannot be used.
    """
    # The very object is compared: a user who types the same names gets a new one, and means them.
    asked = None if class_names is CLASS_NAMES else class_names or None

    with ProgressBar(desc="read", unit="video", leave=False, disable=quiet) as bar:
        index = load_index(data, asked, window=window, bad_files=bad_files, progress=bar.show)
    if not quiet:
        print_notes(index.notes)
    return index


def print_notes(notes: Iterable[str]) -> None:
    """Print what is worth knowing about a data set, a line each."""
    for note in notes:
        print_line(f"note: {note}")


def print_division(division: Division) -> None:
    """Print in a line which files divided the clips, if any did."""
    if division.reason:
        print_line(f"split: {division.reason}")


def print_left_out(problems: Iterable[object]) -> None:
    """Print why clips were left out, a line each."""
    for problem in problems:
        print_line(f"left out: {problem}")

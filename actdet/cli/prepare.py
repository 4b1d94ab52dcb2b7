"""`actdet prepare`: the same data set, small and quick to read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from actdet.cli.data import print_left_out, read_index
from actdet.cli.progress import ProgressBar
from actdet.cli.terminal import print_line
from actdet.data.index import BadFiles
from actdet.data.prepare import PrepareConfig, Prepared, prepare_dataset
from actdet.files import check_own, read_own_json, write_json


def prepare(
    data: Positional[Path],
    out: Positional[Path],
    /,
    class_names: tuple[str, ...] = (),
    bad_files: BadFiles = "stop",
    config: PrepareConfig = PrepareConfig(),
) -> None:
    """Re-encode the data set in DATA to OUT, small and with many keyframes, so that its frames are quick to read.

    For instance: actdet prepare data/mine data/mine_256
    If it is interrupted, run the same command again to resume.

    Args:
        data: Folder with videos/ and annotations/.
        out: Folder for the same clips, their annotations in pixels of the new size, and prepared.json, which says what
            this saves.
        class_names: Names of the action classes, in the order of their ids in the annotation files. By default those in
            DATA/classes.txt, one name per line, or fight and collapse if there is no such file. OUT gets such a file.
        bad_files: What a bad file does: stop ends the command, skip leaves out the file's clip and lists it.
    """
    index = read_index(data, class_names, bad_files)

    facts_path = out / "prepared.json"
    check_own([facts_path], _is_prepared_json)
    with ProgressBar(desc="prepare", unit="clip") as bar:
        prepared = prepare_dataset(index, out, config, bad_files=bad_files, progress=bar.show)
    write_json(facts_path, _facts(prepared) | asdict(config))

    print_left_out(prepared.left_out)
    clips = len(prepared.index.clips)
    already = clips - prepared.encoded
    if already:
        print_line(f"{out}: {clips} clips, {already} of them were there already")
    else:
        print_line(f"{out}: {clips} clips")
    print_line(f"videos: {prepared.bytes_before / 1e6:.1f} MB before, {prepared.bytes_after / 1e6:.1f} MB after")
    print_line(
        f"reading 16 frames of a clip: {1e3 * prepared.seconds_before:.1f} ms before, "
        f"{1e3 * prepared.seconds_after:.1f} ms after (median of {prepared.measured} clips)"
    )


def _is_prepared_json(path: Path) -> bool:
    """Whether this command wrote the file."""
    return "bytes_before" in (read_own_json(path) or ())


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What prepared.json says of a prepared data set, which is all but the clips themselves."""
    facts = {name: value for name, value in vars(prepared).items() if name != "index"}
    facts["left_out"] = [str(problem) for problem in prepared.left_out]
    return facts

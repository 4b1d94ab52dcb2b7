"""Files are replaced as a whole and only if they are the program's own, and a folder has one writer."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from actdet import files
from actdet.errors import ActdetError, DataError
from actdet.files import (
    check_own,
    read_own_json,
    remove_abandoned,
    sole_writer,
    sole_writer_of,
    temporary_name,
    write_json,
)

# A process that writes in a folder until it is killed.
HOLD = """
import signal, sys
from pathlib import Path
from actdet.files import sole_writer

with sole_writer(Path(sys.argv[1])):
    print("holding", flush=True)
    signal.pause()
"""


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with sole_writer(folder):
        (folder / "mine").touch()
        with (
            pytest.raises(ActdetError, match=f"^{folder}: another actdet process is writing there") as caught,
            sole_writer(folder),
        ):
            pass
        assert "\n" not in str(caught.value)

        # A folder inside it is another one.
        with sole_writer(folder / "part"):
            pass
    with sole_writer(folder):
        pass
    assert os.listdir(folder) == ["mine"]


@pytest.mark.parametrize("name", ["door.json", "x" * 255])
def test_a_result_has_one_writer(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with sole_writer_of(path):
        with pytest.raises(DataError, match=f"^{path}: another actdet process is writing there"), sole_writer_of(path):
            pass
        with sole_writer_of(tmp_path / "yard.json"):
            pass
    with sole_writer_of(path):
        path.touch()
    assert os.listdir(tmp_path) == [name]


def test_a_killed_process_is_no_writer(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        with pytest.raises(ActdetError, match="another actdet process"), sole_writer(tmp_path):
            pass
        process.kill()
    assert os.listdir(tmp_path) == [".actdet-lock"]
    with sole_writer(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_was_made_in_vain_goes(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with pytest.raises(error), sole_writer(tmp_path / name):
            raise error
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == []


def test_only_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    # Above the largest process id that Linux gives.
    dead = 2**22 + 1
    left = [f".a.{dead}.partial.mp4", f".last.{dead}.partial.safetensors", f".b c.{dead}.partial"]
    kept = [temporary_name(Path("a.mp4")), "a.mp4", ".a.partial.mp4", f"a.{dead}.partial.mp4", f".a.{dead}.mp4"]
    for name in (*left, *kept):
        (tmp_path / name).touch()
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_abandoned(tmp_path / "missing")


@pytest.mark.parametrize(("hours", "stays"), [(0, True), (23, True), (25, False)])
def test_what_another_machine_writes_to_a_shared_folder_stays(tmp_path: Path, hours: float, stays: bool) -> None:
    """Containers number their processes each for itself, so its process may well be one that is not here."""
    theirs = tmp_path / f".a.0123abcd-{2**22 + 1}.partial.mp4"
    theirs.touch()
    written = time.time() - 3600 * hours
    os.utime(theirs, (written, written))
    remove_abandoned(tmp_path)
    assert theirs.exists() == stays


def test_a_machine_has_names_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even for a process of the same number, as the first one of every container is."""
    path = tmp_path / "a.json"
    mine = temporary_name(path)
    assert temporary_name(path) == mine
    monkeypatch.setattr(files, "_machine", lambda: "0123abcd")
    theirs = temporary_name(path)
    assert theirs != mine
    (tmp_path / theirs).touch()
    (tmp_path / theirs.replace(str(os.getpid()), str(2**22 + 1))).touch()
    remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == [theirs]


def test_a_writer_begins_without_what_killed_processes_left(tmp_path: Path) -> None:
    left = Path(f".a.{2**22 + 1}.partial.mp4")
    mine = Path(temporary_name(Path("a.mp4")))
    for folder in (tmp_path, tmp_path / "videos", tmp_path / "videos" / "deeper"):
        folder.mkdir(exist_ok=True)
        for name in (left, mine):
            (folder / name).touch()
    with sole_writer(tmp_path):
        pass
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.mp4")) == sorted(
        [mine, Path("videos") / mine, Path("videos/deeper") / mine, Path("videos/deeper") / left]
    )


def test_what_others_wrote_is_not_replaced(tmp_path: Path) -> None:
    own = tmp_path / "own"
    other = tmp_path / "other"
    link = tmp_path / "link"
    own.write_text("mine")
    other.write_text("yours")
    link.symlink_to("nowhere")
    missing = tmp_path / "missing"
    check_own([own, missing], lambda path: path.read_text() == "mine")
    for foreign in (other, link):
        with pytest.raises(ActdetError, match=f"^{foreign} was not written by this command"):
            check_own([own, foreign], lambda path: path.name == "own")


@pytest.mark.parametrize("value", [math.nan, {"a": [1.0, -math.inf]}, [{"b": math.inf}]])
def test_json_has_no_number_that_is_not_finite(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1.5)
    with pytest.raises(DataError, match=f"^{path}: cannot be written: one of its numbers is not finite$"):
        write_json(path, value)
    assert read_own_json(path) == 1.5


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"hello", b"[" * 100_000, None])
def test_what_is_no_json_reads_as_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    path.mkdir() if content is None else path.write_bytes(content)
    assert read_own_json(path) is None
    assert read_own_json(tmp_path / "missing") is None

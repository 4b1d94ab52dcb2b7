"""The command lists what it can do, exits 0 only when its work was done, and says in one line what went wrong."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from actdet.cli.main import app
from tests.actdet.command import Actdet

COMMANDS = [
    "train",
    "evaluate",
    "score",
    "predict",
    "export",
    "crossval",
    "ablate",
    "render",
    "check",
    "convert",
    "prepare",
    "env",
    "demo",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(actdet_command: Actdet, command: str) -> None:
    outcome = actdet_command(command, "--help")
    assert outcome.code == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", outcome.out).split())
    assert f"For instance: actdet {command}" in text


def test_help_lists_the_commands(actdet_command: Actdet) -> None:
    outcome = actdet_command("--help")
    assert outcome.code == 0
    assert re.findall(r"^  (\w+) ", outcome.out, flags=re.MULTILINE) == COMMANDS == list(app.functions)


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


SHORTAGES = {
    "MemoryError": (MemoryError(), "too little memory"),
    "PyTorch": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "too little memory"),
    "C++": (RuntimeError("std::bad_alloc"), "too little memory"),
    "threads": (RuntimeError("can't start new thread"), "too little memory"),
    "import": (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "too little memory"),
    "system": (OSError(errno.ENOMEM, "Cannot allocate memory"), "too little memory"),
    "NumPy": (_caused(ImportError("Error importing numpy"), ImportError("failed to map segment")), "too little memory"),
    "files": (OSError(errno.EMFILE, "Too many open files", "a.mp4"), "too many files are open"),
    "all files": (OSError(errno.ENFILE, "Too many open files in system"), "too many files are open"),
}


@pytest.mark.parametrize(("error", "words"), SHORTAGES.values(), ids=SHORTAGES)
def test_what_the_system_is_short_of_is_said_in_one_line(
    actdet_command: Actdet, data: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def survey(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("actdet.cli.check.survey", survey)
    assert actdet_command("check", data).complaint().startswith(words)


def test_other_errors_are_not_taken_for_a_shortage(
    actdet_command: Actdet, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actdet.cli.check.survey", None)
    with pytest.raises(TypeError, match="not callable"):
        actdet_command("check", data)


NO_FILES = """
import contextlib, os, resource, sys
import actdet.__main__, actdet.cli.main

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
with contextlib.suppress(OSError):
    while True:
        os.open(os.devnull, os.O_RDONLY)
"""

NO_MEMORY = """
import resource, sys

resource.setrlimit(resource.RLIMIT_AS, (60 * 2**20, 60 * 2**20))
"""


@pytest.mark.parametrize(
    ("limit", "words"),
    [(NO_FILES, "too many files are open"), (NO_MEMORY, "too little memory")],
    ids=["files", "memory"],
)
def test_a_limit_of_the_system_ends_in_one_line(data: Path, limit: str, words: str) -> None:
    """No file can be opened any more, or the memory suffices for Python but not for NumPy."""
    code = f"{limit}\nsys.argv = ['actdet', 'check', {str(data)!r}]\nfrom actdet.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"actdet: {words}")
    assert "Traceback" not in done.stderr

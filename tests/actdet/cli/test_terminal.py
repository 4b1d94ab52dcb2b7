"""No name of a file or of a class reaches the terminal raw."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest

from actdet.cli.terminal import print_line, printable, tqdm
from tests.actdet.command import Actdet, Outcome
from tests.actdet.tiny import TRAIN_OPTIONS

UGLY = "a\x1b[2J\x1b]0;title\x07b\nactdet: all is well\rc\u202egnp.d\x9b31m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Tür auf 1.mp4", "Tür auf 1.mp4"),
        ("動画 👨‍👩‍👧 می‌خواهم", "動画 👨‍👩‍👧 می‌خواهم"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("\x00\x07\x08\x7f", r"\x00\x07\x08\x7f"),
        ("\x85\x9b31m\u2028\u2029", r"\x85\x9b31m\u2028\u2029"),
        ("exe.\u202egpj\u2066\u2069\u200f\u061c", r"exe.\u202egpj\u2066\u2069\u200f\u061c"),
    ],
)
def test_only_what_misleads_is_escaped(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == shown
    print_line(text)
    assert capsys.readouterr().out == f"{shown}\n"


def test_a_bar_shows_its_description_escaped() -> None:
    stream = io.StringIO()
    with tqdm(desc=UGLY, total=2, file=stream) as bar:
        bar.update()
        bar.set_description("next\n\x1b[A")
    assert printable(UGLY) in stream.getvalue()
    assert r"next\n\x1b[A: " in stream.getvalue()
    assert not is_raw(stream.getvalue())


def is_raw(text: str) -> bool:
    """Whether `text` holds more than printable text, the line ends of print and the returns of progress bars."""
    return re.search("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]|^actdet: all is well", text, re.MULTILINE) is not None


def clean(outcome: Outcome) -> Outcome:
    """`outcome`, after checking that nothing in it is raw."""
    assert not is_raw(outcome.out + outcome.err)
    return outcome


def test_names_of_files_are_shown_escaped(actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(rendered, tmp_path / UGLY))
    first = sorted((root / "videos").iterdir())[0]
    video = first.rename(first.with_name(f"{UGLY}.webm"))
    (root / "annotations" / f"{first.stem}.txt").rename(root / "annotations" / f"{UGLY}.txt")
    assert clean(actdet_command("check", root)).code == 0

    outcome = clean(actdet_command("predict", model, video, "--out", tmp_path / f"out{UGLY}"))
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) == 2

    video.write_bytes(b"")
    outcome = clean(actdet_command("check", root))
    assert outcome.out.splitlines()[0].startswith(printable(str(video)))
    out = ["--out", tmp_path / "o"]
    for words in (
        ["check", root],
        ["train", root, *TRAIN_OPTIONS, *out],
        ["evaluate", model, root, *out],
        ["predict", model, video, *out],
    ):
        assert clean(actdet_command(*words)).code == 1


def test_names_of_classes_are_shown_escaped(actdet_command: Actdet, data: Path) -> None:
    (data / "classes.txt").unlink(missing_ok=True)
    outcome = clean(actdet_command("check", data, "--class-names", "fight", UGLY))
    complaint = outcome.complaint()
    assert complaint.startswith(r"the name of class 1, 'a\x1b[2J")
    assert complaint.endswith("', is not one line of at most 100 printable characters")


@pytest.mark.parametrize(
    "words", [[UGLY], ["check", f"--{UGLY}"], ["check", "d", UGLY], ["render", "--clips", UGLY, "o"]]
)
def test_what_was_typed_is_shown_escaped(actdet_command: Actdet, words: list[str]) -> None:
    outcome = clean(actdet_command(*words))
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)

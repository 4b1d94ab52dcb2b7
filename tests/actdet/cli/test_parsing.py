"""The command line: its options are known before anything is imported, and what is mistyped is said in one line."""

from __future__ import annotations

import re
from functools import partial
from importlib.metadata import version

import pytest

from actdet.cli.main import app
from actdet.cli.parsing import options_of
from tests.actdet.command import Actdet


def mistake(actdet_command: Actdet, *words: object) -> str:
    """The one line that a mistyped command line gets."""
    outcome = actdet_command(*words)
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith("actdet: ")
    return line.removeprefix("actdet: ")


@pytest.mark.parametrize("name", app.functions)
def test_the_options_that_are_known_are_those_that_help_lists(actdet_command: Actdet, name: str) -> None:
    listed = re.findall(
        r"^ *(-h|--[a-z][\w-]*)(?:, (--[\w-]+))?", actdet_command(name, "--help").out, flags=re.MULTILINE
    )
    assert {option for pair in listed for option in pair if option} == set(options_of(app.functions[name]))


@pytest.mark.parametrize("name", app.functions)
def test_help_shows_both_ways_of_a_switch(actdet_command: Actdet, name: str) -> None:
    """So that its text, which says what the setting does, is not read as what switching it off does."""
    text = actdet_command(name, "--help").out
    for option in options_of(app.functions[name]):
        if option.startswith("--no-") and not option.startswith("--no-object"):
            assert re.search(rf"^\W*--{option.removeprefix('--no-')}, {option}\b", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("words", "value"), [([], True), (["--jitter"], True), (["--no-jitter"], False)], ids=str)
def test_a_switch_does_what_it_says(words: list[str], value: bool) -> None:
    run = app.parse(["train", "data", *words])
    assert isinstance(run, partial)
    assert run.keywords["config"].augment.jitter is value


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no command given; actdet --help lists all commands"),
        (["predct", "m", "v"], "there is no command predct (did you mean predict?); actdet --help lists all commands"),
        (["Train", "d"], "there is no command Train (did you mean train?); actdet --help lists all commands"),
        (["qqq"], "there is no command qqq; actdet --help lists all commands"),
        (
            ["--verson"],
            "no option --verson before the command (did you mean --version?); actdet --help lists all commands",
        ),
        (
            ["train", "d", "--epoch", 3],
            "actdet train has no option --epoch (did you mean --epochs?); actdet train --help lists all options",
        ),
        (
            ["crossval", "--fold=3", "d"],
            "actdet crossval has no option --fold (did you mean --folds?); actdet crossval --help lists all options",
        ),
        (
            ["predict", "m", "v", "--noannotate"],
            "actdet predict has no option --noannotate (did you mean --no-annotate?); "
            "actdet predict --help lists all options",
        ),
        (["env", "-v"], "actdet env has no option -v; actdet env --help lists all options"),
    ],
    ids=str,
)
def test_what_is_mistyped_is_named_and_what_was_meant(actdet_command: Actdet, words: list[object], line: str) -> None:
    assert mistake(actdet_command, *words) == line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train", "d", "--epochs"], ["--epochs", "actdet train --help"]),
        (["train", "d", "--epochs", "three"], ["--epochs", "three", "actdet train --help"]),
        (["train", "d", "--precision", "fp8"], ["--precision", "fp8", "bf16", "actdet train --help"]),
        (["render"], ["PATH", "actdet render --help"]),
        (["check", "d", "e"], ["e", "actdet check --help"]),
    ],
    ids=str,
)
def test_a_bad_value_is_named_with_its_option(actdet_command: Actdet, words: list[object], parts: list[str]) -> None:
    line = mistake(actdet_command, *words)
    assert all(part in line for part in parts)


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--class-names", "fight", "collapse", "--decode", "--", "no/such"],
        ["check", "no/such", "--class_names=fight"],
        ["prepare", "no/such", "out", "--short-side", "-4"],
    ],
    ids=str,
)
def test_what_is_typed_well_is_done(actdet_command: Actdet, words: list[object]) -> None:
    assert actdet_command(*words).code == 1
    assert "Traceback" not in actdet_command(*words).err


def test_the_version_is_that_of_the_package(actdet_command: Actdet) -> None:
    assert actdet_command("--version").out == f"actdet {version('actdet')}\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["train", "d", "--lr", "fast"], "--lr must be a number, got 'fast'; actdet train --help says more"),
        (
            ["train", "d", "--epochs", "1.5"],
            "--epochs must be a whole number, got '1.5'; actdet train --help says more",
        ),
        (
            ["train", "d", "--val-share", "most"],
            "--val-share must be a number, got most; actdet train --help says more",
        ),
        (["demo", "--clips", "1.5"], "--clips must be a whole number, got 1.5; actdet demo --help says more"),
        (["render", "d", "--clips", ""], "--clips must be a whole number, got ''; actdet render --help says more"),
        (
            ["train", "d", "--cache", "disk"],
            "--cache must be one of 'auto', 'memory', 'none', got 'disk'; actdet train --help says more",
        ),
        (["crossval", "d", "--folds"], "--folds needs a value; actdet crossval --help says more"),
        (["train", "d", "--lr", "--seed", 3], "--lr needs a value; actdet train --help says more"),
    ],
)
def test_a_wrong_value_is_answered_by_what_would_be_right(
    actdet_command: Actdet, words: list[object], problem: str
) -> None:
    assert mistake(actdet_command, *words) == problem


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "x", "--nonsense", 3],
        ["train"],
        ["nonsense"],
        [],
        ["predict", "m", "v", "--threshold", "much"],
        ["train", "x", "--precision", "fp8"],
        ["train", "x", "--epochs", "1.5"],
    ],
    ids=str,
)
def test_a_mistyped_command_exits_2_and_names_it(actdet_command: Actdet, arguments: list[object]) -> None:
    outcome = actdet_command(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "--help" in outcome.err
    if len(arguments) > 1:
        assert str(arguments[-2]) in outcome.err

"""The command line: which command is meant, what it is called with, and what to say where it is mistyped.

Nothing here, and nothing that it needs, imports PyTorch: help and a mistyped option come at once.
"""

from __future__ import annotations

import inspect
import io
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import partial, wraps
from importlib.metadata import PackageNotFoundError, version
from itertools import dropwhile, takewhile
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes

Command = Callable[..., None]

NOT_INSTALLED = "not installed"


class UsageError(Exception):
    """The command line is mistyped; its text is one line for the user."""


class Commands:
    """The commands of a program: functions whose positional-only parameters are arguments, all others options.

    An option whose default is a dataclass stands for one option for each of its fields.
    """

    def __init__(self, program: str, about: str) -> None:
        self.program = program
        self.about = about
        self.functions: dict[str, Command] = {}

    def command(self, function: Command | None = None, *, name: str | None = None) -> Any:
        """Decorator: `function` is the command `name`, by default that of the function."""
        if function is None:
            return partial(self.command, name=name)
        self.functions[name or function.__name__] = function
        return function

    def parse(self, words: Sequence[str]) -> Callable[[], None]:
        """What a command line asks for, ready to be called.

        Raises UsageError where it is mistyped, and SystemExit when it has printed the help of a command.
        """
        first, *rest = words or [""]
        if first in ("-h", "--help"):
            return partial(print, self.help())
        if first == "--version":
            return partial(print, f"{self.program} {version_of(self.program)}")

        if first not in self.functions:
            raise UsageError(f"{self._unknown(first)}; {self.program} --help lists all commands")
        function, program = self.functions[first], f"{self.program} {first}"
        options = list(options_of(function))
        for word in _option_words(rest):
            if word.replace("_", "-") not in options:
                problem = f"{program} has no option {word}{_meant(word, options)}"
                raise UsageError(f"{problem}; {program} --help lists all options")
        return _parse(function, program, rest)

    def help(self) -> str:
        """The commands, each with the first line of its documentation."""
        width = min(shutil.get_terminal_size().columns, 120)
        indent = max(map(len, self.functions)) + 4
        lines = [f"usage: {self.program} COMMAND ...", "", self.about, ""]
        for name, function in self.functions.items():
            summary = inspect.getdoc(function) or ""
            paragraph = f"  {name:{indent - 2}}{summary.partition(chr(10))[0]}"
            lines += textwrap.wrap(paragraph, width, subsequent_indent=" " * indent)
        lines += ["", f"{self.program} COMMAND --help says more; {self.program} --version which this is."]
        return "\n".join(lines)

    def _unknown(self, word: str) -> str:
        if not word:
            return "no command given"
        if word.startswith("-"):
            known = ["--help", "--version"]
            return f"no option {word} before the command{_meant(word, known)}"
        return f"there is no command {word}{_meant(word, list(self.functions))}"


def version_of(package: str) -> str:
    """The version of an installed package, or NOT_INSTALLED."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def options_of(function: Command) -> Iterator[str]:
    """The names of a command's options as they are typed, such as --batch-size and --no-jitter."""
    yield from ("-h", "--help")
    parameters = inspect.signature(function).parameters.values()
    yield from _names({p.name: p.default for p in parameters if p.kind is not p.POSITIONAL_ONLY})


def _names(values: Mapping[str, object]) -> Iterator[str]:
    for name, value in values.items():
        typed = name.replace("_", "-")
        if is_dataclass(value):
            yield from _names(vars(value))
        elif isinstance(value, bool):
            yield from (f"--{typed}", f"--no-{typed}")
        else:
            yield f"--{typed}"


def _option_words(words: Sequence[str]) -> Iterator[str]:
    """The words that are meant as options, without their values; a negative number is none, nor what follows "--"."""
    for word in words:
        if word == "--":
            return
        name = word.partition("=")[0]
        if name.startswith("-") and name != "-" and not _is_number(name):
            yield name


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _meant(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word.replace("_", "-"), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _parse(function: Command, program: str, words: Sequence[str]) -> Callable[[], None]:
    @wraps(function)
    def deferred(*arguments: Any, **options: Any) -> Callable[[], None]:
        return partial(function, *arguments, **options)

    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(deferred, prog=program, args=words, config=(OmitArgPrefixes,))
    except SystemExit as end:
        if end.code in (0, None):
            raise
        problem = _message_in(complaint.getvalue())
        raise UsageError(f"{problem}; {program} --help says more") from None


# What tyro and Python say of a wrong value, and what is said instead.
_PLAINER = (
    (r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 must be a whole number, got \2"),
    (r"^Error parsing (\S+): could not convert string to float: (.*)", r"\1 must be a number, got \2"),
    (r"^invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*)\)", r"\2 must be one of \3, got \1"),
    (r"^Missing value for argument '(\S+)'\. Expected 1 values", r"\1 needs a value"),
)


def _message_in(panel: str) -> str:
    """What tyro complains of, in one line: the paragraph that follows the title of its panel, up to the next rule."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", panel).splitlines()
    texts = [re.sub(r"^[│|] | *[│|]$", "", line).strip() for line in lines]
    paragraph = dropwhile(_is_rule, texts[1:])
    message = " ".join(takewhile(lambda text: not _is_rule(text), paragraph)).rstrip(".")
    for pattern, words in _PLAINER:
        message = re.sub(pattern, words, message)
    return message


def _is_rule(text: str) -> bool:
    return re.search(r"\w", text) is None

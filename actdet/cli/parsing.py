"""The command line: which command is meant, what it is called with, and what to say if it is mistyped.

Nothing here, and nothing that it needs, imports PyTorch: help and complaints about a mistyped option come at once.
"""

from __future__ import annotations

import inspect
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import is_dataclass, replace
from difflib import get_close_matches
from functools import partial, wraps
from importlib.metadata import PackageNotFoundError, version
from itertools import dropwhile, pairwise, takewhile
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes

from actdet.errors import SettingError
from actdet.models.families import FAMILIES, config_class, loss_class

Command = Callable[..., None]

NOT_INSTALLED = "not installed"


class UsageError(Exception):
    """The command line is mistyped; its text is one line for the user."""


class Commands:
    """The commands of a program.

    Args:
        program: The name of the program, as it is typed.
        about: What the program is for, in one line.
        functions: One for each command, with the name that is typed. Its positional-only parameters are arguments, all
            others are options, and an option whose default is a dataclass stands for one option for each of its fields.
            Its docstring is the help of the command.
    """

    def __init__(self, program: str, about: str, functions: Sequence[Command]) -> None:
        self.program = program
        self.about = about
        self.functions = {function.__name__: function for function in functions}

    def parse(self, words: Sequence[str]) -> Callable[[], None]:
        """What a command line asks for, ready to be called.

        Args:
            words: What was typed after the name of the program.

        Returns:
            A function without arguments that does it.

        Raises:
            UsageError: The command line is mistyped.
            SystemExit: The help of a command was asked for, and is printed.
        """
        first, *rest = words or [""]
        if first in ("-h", "--help"):
            return partial(print, self.help())
        if first == "--version":
            return partial(print, f"{self.program} {version_of(self.program)}")
        if first not in self.functions:
            raise UsageError(f"{self._describe_unknown(first)}; {self.program} --help lists all commands")

        function = _with_family(self.functions[first], rest)
        program = f"{self.program} {first}"
        if function is not self.functions[first]:
            program += f" --family {_value_of('--family', rest)}"
        _check_options(function, program, rest)
        return _parse(function, program, rest)

    def help(self) -> str:
        """The commands, each with the first line of its docstring."""
        width = min(shutil.get_terminal_size().columns, 120)
        indent = max(map(len, self.functions)) + 4

        lines = [f"usage: {self.program} COMMAND ...", "", self.about, ""]
        for name, function in self.functions.items():
            summary, _, _ = (inspect.getdoc(function) or "").partition("\n")
            paragraph = f"  {name:{indent - 2}}{summary}"
            lines += textwrap.wrap(paragraph, width, subsequent_indent=" " * indent)

        lines.append("")
        lines.append(f"{self.program} COMMAND --help explains a command; {self.program} --version prints the version.")
        return "\n".join(lines)

    def _describe_unknown(self, word: str) -> str:
        if not word:
            return "no command given"
        if word.startswith("-"):
            return f"no option {word} before the command{_suggestion(word, ['--help', '--version'])}"
        return f"there is no command {word}{_suggestion(word, list(self.functions))}"


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


def _names(defaults: Mapping[str, object]) -> Iterator[str]:
    """The names as they are typed of options with these names and defaults."""
    for name, default in defaults.items():
        typed = name.replace("_", "-")
        if is_dataclass(default):
            yield from _names(vars(default))
        elif isinstance(default, bool):
            yield from (f"--{typed}", f"--no-{typed}")
        else:
            yield f"--{typed}"


def _check_options(function: Command, program: str, words: Sequence[str]) -> None:
    """Raises UsageError for the first of `words` that is meant as an option and is none of the command's.

    tyro would list everything that resembles it, over many lines.
    """
    options = list(options_of(function))
    for word in _option_words(words):
        if word.replace("_", "-") not in options:
            problem = f"{program} has no option {word}{_suggestion(word, options)}"
            raise UsageError(f"{problem}; {program} --help lists all options")


def _option_words(words: Sequence[str]) -> Iterator[str]:
    """The words that are meant as options, without their values; a negative number is none, nor what follows "--"."""
    for word in words:
        if word == "--":
            return
        name, _, _ = word.partition("=")
        if name.startswith("-") and name != "-" and not _is_number(name):
            yield name


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _suggestion(word: str, known: Sequence[str]) -> str:
    """What was probably meant, in parentheses, if anything known resembles `word`."""
    close = get_close_matches(word.replace("_", "-"), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _with_family(function: Command, words: Sequence[str]) -> Command:
    """A command with the options of the family that `words` ask for, if it has families at all.

    Raises:
        UsageError: There is no such family.
    """
    signature = inspect.signature(function)
    family = _value_of("--family", words)
    if "family" not in signature.parameters or family is None:
        return function
    if family not in FAMILIES:
        raise UsageError(f"there is no family {family}{_suggestion(family, list(FAMILIES))}: use {', '.join(FAMILIES)}")

    config = signature.parameters["config"].default
    defaults = {"model": config_class(family)(), "config": replace(config, loss=loss_class(family)())}

    @wraps(function)
    def of_family(*arguments: Any, **options: Any) -> None:
        function(*arguments, **options)

    parameters = [
        parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in signature.parameters.items()
    ]
    of_family.__dict__["__signature__"] = signature.replace(parameters=parameters)
    return of_family


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The last value that an option has among `words`; None if it has none."""
    value = None
    for word, following in pairwise([*words, ""]):
        if word == option:
            value = following or None
        elif word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
    return value


@contextmanager
def setting_errors() -> Iterator[None]:
    """Context manager: while active, tyro passes on the SettingError of a setting that its class refuses.

    By itself tyro takes every ValueError for a mistyped word, prints a panel about it and exits.
    """
    panel = io.StringIO()
    try:
        with redirect_stderr(panel):
            yield
    except SystemExit as end:
        error: BaseException | None = end
        while error is not None and not isinstance(error, SettingError):
            error = error.__context__
        if error is not None:
            raise error from None
        print(panel.getvalue(), end="", file=sys.stderr)
        raise


def _parse(function: Command, program: str, words: Sequence[str]) -> Callable[[], None]:
    """`function` with the arguments and options that `words` give it, not called yet."""

    # tyro calls what it parses for, so it is given a function of the same signature that only binds the values.
    @wraps(function)
    def bind(*arguments: Any, **options: Any) -> Callable[[], None]:
        return partial(function, *arguments, **options)

    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint), setting_errors():
            return tyro.cli(bind, prog=program, args=words, config=(OmitArgPrefixes,))
    except SystemExit as end:
        if end.code in (0, None):
            raise
        problem = _message_in(complaint.getvalue())
        raise UsageError(f"{problem}; {program} --help says more") from None


# What tyro and Python say about a wrong value, and what is said instead.
_PLAINER = (
    (r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 must be a whole number, got \2"),
    (r"^Error parsing (\S+): could not convert string to float: (.*)", r"\1 must be a number, got \2"),
    (r"^invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*)\)", r"\2 must be one of \3, got \1"),
    (r"^Error parsing (\S+): no type matching \{None\}\|INT .* from \['(.*)'\]", r"\1 must be a whole number, got \2"),
    (r"^Error parsing (\S+): no type matching \{None\}\|FLOAT .* from \['(.*)'\]", r"\1 must be a number, got \2"),
    (r"^Missing value for argument '(\S+)'\. Expected 1 values", r"\1 needs a value"),
)


def _message_in(panel: str) -> str:
    """What tyro complains about, in one line.

    Args:
        panel: What it printed: a frame with a title, and in it paragraphs between rules.

    Returns:
        The first paragraph below the title, in plainer words if those are known.
    """
    lines = re.sub(r"\x1b\[[\d;]*m", "", panel).splitlines()
    texts = [re.sub(r"^[│|] | *[│|]$", "", line).strip() for line in lines]

    paragraph = dropwhile(_is_rule, texts[1:])
    message = " ".join(takewhile(lambda text: not _is_rule(text), paragraph)).rstrip(".")

    for pattern, words in _PLAINER:
        message = re.sub(pattern, words, message)
    return message


def _is_rule(text: str) -> bool:
    """Whether a line of a panel is a rule or empty."""
    return re.search(r"\w", text) is None

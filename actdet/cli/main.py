"""The entry point of the command `actdet`: which commands there are, and how they end.

Importing this file imports every command's file, and none of them imports PyTorch before it runs.
"""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

from actdet.cli.ablate import ablate
from actdet.cli.check import check
from actdet.cli.convert import convert
from actdet.cli.crossval import crossval
from actdet.cli.demo import demo
from actdet.cli.env import env
from actdet.cli.evaluate import evaluate
from actdet.cli.export import export
from actdet.cli.parsing import Commands, UsageError
from actdet.cli.predict import predict
from actdet.cli.prepare import prepare
from actdet.cli.render import render
from actdet.cli.score import score
from actdet.cli.signals import interrupt_on_signals, launched_by_torchrun, received_signal
from actdet.cli.terminal import print_line
from actdet.cli.train import train
from actdet.errors import ActdetError, Stopped, shortage

# In the order in which help lists them.
app = Commands(
    "actdet",
    "Set prediction for video action detection.",
    [
        train,
        evaluate,
        score,
        predict,
        export,
        crossval,
        ablate,
        render,
        check,
        convert,
        prepare,
        env,
        demo,
    ],
)

# The exit status of an error that the user can fix.
_FAILED = 1

# The exit status of a mistyped command line.
_MISTYPED = 2

# The exit status of a command that a signal stopped is this plus the number of the signal: 130 for SIGINT, 143 for
# SIGTERM, as shells report it.
_SIGNAL = 128


def main() -> None:
    """Run the command that `sys.argv` asks for, and exit; the status is 0 only if its work was done.

    An error is one line on stderr.
    """
    interrupt_on_signals()

    # The names of files need not be valid UTF-8.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    try:
        _refuse_torchrun()
        run = app.parse(sys.argv[1:])
        run()
    except UsageError as error:
        _exit(_MISTYPED, error)
    except Stopped as error:
        _exit(_SIGNAL + received_signal(), error)
    except ActdetError as error:
        _exit(_FAILED, error)
    except KeyboardInterrupt:
        _exit(_SIGNAL + received_signal(), "interrupted")
    except Exception as error:
        problem = _problem_of_system(error)
        # Anything else is a bug, and its traceback helps to find it.
        if problem is None:
            raise
        _exit(_FAILED, problem)


def _exit(status: int, problem: object) -> NoReturn:
    print_line(f"actdet: {problem}", file=sys.stderr)
    sys.exit(status)


def _refuse_torchrun() -> None:
    """Raises ActdetError when torchrun has started several processes of a command that runs in one."""
    if launched_by_torchrun() and os.environ["WORLD_SIZE"] != "1" and sys.argv[1:2] != ["train"]:
        raise ActdetError("only `actdet train` supports torchrun with several processes")


def _problem_of_system(error: Exception) -> str | None:
    """What the system refused, such as memory or a file, if that is what `error` says."""
    problem = shortage(error)
    if problem is None and isinstance(error, OSError):
        problem = f"{error.filename or 'input or output'}: {error.strerror or error}"
    return problem

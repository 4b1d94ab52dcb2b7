"""What SIGINT (Ctrl-C) and SIGTERM do: they interrupt a command at once, or let a training save its state first."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from actdet.errors import ActdetError

# The number of the signal that this command got, or 0: handlers of signals have nowhere else to leave it.
_received = 0


class Interrupted(KeyboardInterrupt):
    """A signal has asked this command to end.

    Python does not count it as Ctrl-C: an exact KeyboardInterrupt that leaves an `exec`, as some imports have, makes
    `python -m` end with the status of SIGINT later, whatever the program asks for.
    """


def interrupt_on_signals() -> None:
    """From now on SIGINT and SIGTERM raise Interrupted, but a SIGINT that this process was told to ignore does not."""
    global _received

    def interrupt(number: int, frame: FrameType | None) -> None:
        global _received
        _received = number
        raise Interrupted

    _received = 0
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)


def received_signal() -> int:
    """The number of the signal that this command got, or that of SIGINT before `interrupt_on_signals`."""
    return _received or signal.SIGINT


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Context manager: the first SIGINT or SIGTERM only makes the function it gives return True.

    A second one interrupts at once.
    """

    def note(number: int, frame: FrameType | None) -> None:
        global _received
        if _received:
            raise Interrupted
        _received = number

    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: _received != 0
    except ActdetError:
        # When one process has failed, torchrun sends SIGTERM to the others, which must still say why they stop.
        if launched_by_torchrun():
            handlers[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def launched_by_torchrun() -> bool:
    """What torch.distributed.is_torchelastic_launched says, without importing PyTorch."""
    return "TORCHELASTIC_RUN_ID" in os.environ

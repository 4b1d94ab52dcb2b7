"""The first signal interrupts a command, or is left to the training that it finds running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actdet.cli.signals import deferred_signals, received_signal
from actdet.errors import ActdetError

pytestmark = pytest.mark.usefixtures("own_handlers")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_unless_it_is_deferred(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert received_signal() == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_an_exec_leaves_the_exit_status_alone(tmp_path: Path, number: signal.Signals) -> None:
    """Imports execute text, such as that of a dataclass, and Python remembers a Ctrl-C that came meanwhile."""
    lines = [
        "import signal, sys",
        "from actdet.cli.signals import interrupt_on_signals, received_signal",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "interrupt_on_signals()",
        "try:",
        f"    exec('signal.raise_signal({int(number)})')",
        "except KeyboardInterrupt:",
        "    sys.exit(128 + received_signal())",
    ]
    (tmp_path / "interrupted.py").write_text("\n".join(lines))
    places = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "interrupted"]
    process = subprocess.run(command, env={**os.environ, "PYTHONPATH": places}, check=False)
    assert process.returncode == 128 + number


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_only_the_first_signal_is_deferred(first: signal.Signals, second: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with deferred_signals() as asked_to_stop:
        assert not asked_to_stop()
        os.kill(os.getpid(), first)
        assert asked_to_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)
    assert received_signal() == first
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize("torchrun", [False, True])
def test_torchrun_does_not_interrupt_what_a_failed_process_says(
    monkeypatch: pytest.MonkeyPatch, torchrun: bool
) -> None:
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ActdetError), deferred_signals():
        raise ActdetError("another process of this job has failed")
    assert signal.getsignal(signal.SIGTERM) == (signal.SIG_IGN if torchrun else handler)

"""actdet env says what is on this machine."""

from __future__ import annotations

import re

import torch

from tests.actdet.command import Actdet


def test_env_says_what_is_here(actdet_command: Actdet) -> None:
    outcome = actdet_command("env")
    assert (outcome.code, outcome.err) == (0, "")
    found = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in outcome.out.splitlines() if "  " in line)
    assert torch.__version__.startswith(found["torch"])
    assert found["device"].startswith("CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    for line in ("precision", "reader", "dali", "matching and loss"):
        assert line in outcome.out

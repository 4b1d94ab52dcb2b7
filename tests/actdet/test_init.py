"""The package's surface, and what importing parts of it must not drag in."""

from __future__ import annotations

import subprocess
import sys

import pytest

import actdet


def test_every_public_name_is_there() -> None:
    assert all(getattr(actdet, name).__module__.startswith("actdet.") for name in actdet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = actdet.nonsense  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("actdet.data.rendered", ("torch",)),
        ("actdet.data.prepare", ("torch",)),
        ("actdet.data.readers", ("torchvision", "torchmetrics", "matplotlib")),
    ],
)
def test_spawned_processes_start_light(module: str, heavy: tuple[str, ...]) -> None:
    """They import the script's module and that of their work; with all of the program each start takes seconds."""
    code = f"import sys, actdet.__main__, {module}; print(*sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

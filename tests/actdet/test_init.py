"""The package's surface, and what importing parts of it must not drag in."""

from __future__ import annotations

import subprocess
import sys

import pytest

import actdet
from actdet.__main__ import spin_briefly


def test_every_public_name_is_there() -> None:
    assert all(getattr(actdet, name).__module__.startswith("actdet.") for name in actdet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = actdet.nonsense  # pyright: ignore[reportAttributeAccessIssue]


# In the order in which one process imports them, with what none of those up to there may bring.
IMPORTS: dict[str, set[str]] = {
    "actdet.synthetic.rendered": {"torch"},
    "actdet.data.prepare": {"torch"},
    "actdet.video.readers": {"torchvision", "torchmetrics", "matplotlib"},
    # What predict and train start with: what splits, measures and draws comes when it is used.
    "actdet.prediction.predictor": {"torchmetrics", "transformers", "sklearn", "scipy", "matplotlib", "jinja2"},
    "actdet.training.experiments": {"torchmetrics", "transformers", "sklearn", "scipy", "matplotlib", "jinja2"},
}


def test_modules_import_only_what_they_use() -> None:
    """Spawned processes import the script's module and that of their work; with all of it each takes seconds."""
    code = f"""
import importlib, sys
import actdet.__main__

for module, heavy in {IMPORTS}.items():
    importlib.import_module(module)
    print(module, *sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(IMPORTS)


NO_WORK = [
    ["--help"],
    ["--version"],
    ["trian", "data"],
    ["train", "--help"],
    ["train", "data", "--epoch", "3"],
    ["train", "data", "--epochs", "three"],
    ["predict"],
    ["check", "no/such/folder"],
    ["prepare", "no/such/folder", "out"],
]


def test_commands_without_work_for_the_network_import_none_of_it() -> None:
    """One process runs them one after the other, and says after each what it has imported so far."""
    heavy = {"torch", "torchvision", "torchmetrics", "transformers", "sklearn", "scipy", "matplotlib", "jinja2"}
    code = f"""
import contextlib, io, sys
from actdet.__main__ import main

for words in {NO_WORK}:
    sys.argv = ["actdet", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main()
    print(words, *sorted({heavy} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(words) for words in NO_WORK]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
    ids=str,
)
def test_threads_spin_briefly_unless_somebody_says_otherwise(given: dict[str, str], found: dict[str, str]) -> None:
    environment = dict(given)
    spin_briefly(environment)
    assert environment == found

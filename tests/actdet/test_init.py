"""The public names of the package, and what importing parts of it must not import as well."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest

import actdet
from actdet.__main__ import spin_briefly
from actdet.errors import ActdetError


def test_every_public_name_is_there() -> None:
    homes = {name for names in actdet._HOMES.values() for name in names}
    assert homes | {"__version__"} == set(actdet.__all__)
    assert all(getattr(actdet, name).__module__.startswith("actdet.") for name in homes)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = actdet.nonsense  # pyright: ignore[reportAttributeAccessIssue]


def test_dir_lists_the_public_names_alone() -> None:
    """Importing more of the package, as this process has, adds none."""
    assert dir(actdet) == sorted(actdet.__all__)


def test_the_version_is_the_installed_one() -> None:
    assert actdet.__version__ == version("actdet")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: actdet.ModelConfig(image_size=40),
        lambda: actdet.ModelConfig(queries=0),
        lambda: actdet.TrainConfig(lr=float("nan")),
        lambda: actdet.TrainConfig(small_epochs=60),
        lambda: actdet.LossConfig(giou_weight=-1.0),
        lambda: actdet.AugmentConfig(flip=2.0),
    ],
)
def test_a_wrong_setting_is_an_error_of_both_kinds(wrong: Callable[[], object]) -> None:
    """Commands catch the one kind, and Python code that knows nothing of actdet the other."""
    with pytest.raises(ActdetError):
        wrong()
    with pytest.raises(ValueError, match="must be"):
        wrong()


# Modules in the order in which one process imports them. Up to each of them, none of its libraries may be there.
IMPORTS: dict[str, set[str]] = {
    "actdet": {"torch", "numpy", "tyro"},
    "actdet.synthetic.rendered": {"torch"},
    "actdet.data.prepare": {"torch"},
    "actdet.video.readers": {"torchvision", "torchmetrics", "matplotlib"},
    # What predict and train start with. The libraries that split, measure and draw are imported when they are used.
    "actdet.prediction.predictor": {"torchmetrics", "transformers", "sklearn", "scipy", "matplotlib", "jinja2"},
    "actdet.training.run": {"torchmetrics", "transformers", "sklearn", "scipy", "matplotlib", "jinja2"},
}


def test_modules_import_only_what_they_use() -> None:
    """Spawned processes import the module of the script and that of their work; with everything each takes seconds."""
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
    """One process runs them one after another, and says after each what it has imported so far."""
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

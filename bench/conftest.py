"""Collects the rows of a run and writes them with `--results FILE`: all that `report.py` reads.

A row is one benchmark, or one thing counted. Every row says where and when: device, versions, commit, date. What has no
time, because it is absent, cannot do it, or disagrees with the reference, says why.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

PACKAGES = ("torch", "triton", "numpy", "scipy", "lapx", "lapcpp", "laprust", "torch-linear-assignment", "transformers")
PACKAGES += ("av", "torchcodec", "opencv-python-headless", "nvidia-dali-cuda120", "nvidia-dali-cuda130")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, metavar="FILE", help="write the rows of this run as JSON")


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config) -> Callable[..., None]:
    """Add a row. The file is written anew with each, so that a run that is cut off leaves what it has."""
    path, rows = pytestconfig.getoption("--results"), []

    def add(**row: Any) -> None:
        rows.append(row | about())
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
            path.with_suffix(".part").replace(path)

    return add


@cache
def about() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": device_name(),
        "versions": versions,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return f"{models[0] if models else 'CPU'}, {torch.get_num_threads()} threads"


def commit() -> str:
    """$COMMIT, or the commit of the checkout, "+" where files differ from it; "unknown" outside of git."""
    if named := os.environ.get("COMMIT"):
        return named
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

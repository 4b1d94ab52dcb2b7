"""What can be said of the kernels without a GPU: launches, inner steps of the solver, what a step is compiled to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from bench.cases import CENTERS, REGIMES, SIZES, CenterSize, Size, make_centers, make_problem
from bench.counting import count
from bench.opponents import CENTER_LOSS, CRITERION, MATCH, Absent
from bench.sass import compiled_rows

CAPABILITIES = (75, 80, 90, 100)  # the disassembler knows none before


@pytest.mark.parametrize("name", ["actdet", "huggingface"])
@pytest.mark.parametrize("operation", ["match", "criterion"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_launches(record: Callable[..., None], size: Size, operation: str, name: str) -> None:
    function = {"match": MATCH, "criterion": CRITERION}[operation][name]
    try:
        launches, reads = count(function, make_problem(size, REGIMES[0], torch.device("cpu")))
    except Absent as reason:
        pytest.skip(str(reason))
    assert launches > 0
    assert (reads == 0) == (name == "actdet")
    record(kind="counted", operation=operation, size=str(size), name=name, launches=launches, reads=reads)


@pytest.mark.parametrize("name", ["actdet", "eager PyTorch"])
@pytest.mark.parametrize("size", CENTERS, ids=str)
def test_launches_of_centers(record: Callable[..., None], size: CenterSize, name: str) -> None:
    """The whole criterion, forward and backward; that in PyTorch is the plainest one."""
    launches, reads = count(CENTER_LOSS[name], make_centers(size, torch.device("cpu")))
    assert launches > 0
    assert reads == 0
    record(kind="counted", operation="centers", size=str(size), name=name, launches=launches, reads=reads)


@pytest.mark.timeout(3600)
def test_steps(record: Callable[..., None]) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "bench.steps"]
    lines = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    for line in lines:
        row = json.loads(line)
        assert 0 <= row["placed"] <= row["rows"]
        record(kind="steps", **row)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_inner_step(record: Callable[..., None], capability: int) -> None:
    for row in compiled_rows(capability):
        assert row["spill"] == 0
        assert row["step"]["barriers"] == (0 if row["warps"] == 1 else 2)  # around one trip through shared memory
        assert row["step"]["reductions"] + row["step"]["shuffles"] >= 2
        record(kind="compiled", **row)

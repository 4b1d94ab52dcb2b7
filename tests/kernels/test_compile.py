"""Every kernel compiles ahead of time, without a GPU, spills nothing, and is not compiled again for other sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="there is no Triton for this platform")

REGISTERS = 224  # a thread's, of the 255 that there are: the largest block takes 206, with Triton 3.3


@pytest.mark.parametrize("capability", [60, 90])
def test_kernels_compile_without_a_spill(capability: int) -> None:
    script = Path(__file__).parent / "ahead_of_time.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    if "is not defined for option 'gpu-name'" in done.stderr:
        pytest.skip(f"this Triton's ptxas has no code for sm_{capability}")
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == {
        "assign_kernel",
        "pairwise_cost_kernel",
        "match_kernel",
        "set_loss_kernel",
        "total_kernel",
        "gradient_kernel",
    }
    for kernel in kernels:
        assert kernel["stack"] == 0, kernel
        assert kernel["registers"] <= REGISTERS, kernel
        assert kernel["recompiled_for"] == [], kernel


def test_few_block_sizes_serve_all_target_counts() -> None:
    from actdet_kernels.assignment import block_size

    assert {block_size(12, targets) for targets in range(1, 101)} == {16, 32, 64, 128}
    assert {block_size(100, targets) for targets in range(1, 101)} == {128}

"""Every kernel passes the static gates, and they fail where they should. Needs neither a GPU nor a C compiler."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import actdet_kernels
import pytest

from tests.kernels.device import TESTED_TRITONS, folder_of_triton

pytest.importorskip("triton", reason="there is no Triton for this platform")

# Warps of 32 threads that fit in the 65,536 registers of a multiprocessor, in fours, for each count of registers.
WARPS = {registers: 65536 // (32 * -(-registers // 8) * 8) // 4 * 4 for registers in range(33, 256)}
OCCUPANCY_STEPS = {registers for registers, warps in WARPS.items() if WARPS.get(registers + 1) != warps}

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(900)  # Triton caches what it compiles, but the first time takes its time


def run(*command: str | Path, interpret: str, first: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """`first`: where Python looks for modules before it looks where they usually are."""
    path = os.pathsep.join([*map(str, first), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": interpret, "PATH": ""}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


def rows_of(file: Path, *capabilities: str, first: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """What the command finds, though whoever calls it has the kernels interpreted."""
    chosen = ("--capability", *capabilities) if capabilities else ()
    done = run("-m", "actdet_kernels.gates", *chosen, "--json", file, interpret="1", first=first)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("all passed"), done.stdout
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of an architecture that every supported Triton has code for."""
    return rows_of(tmp_path_factory.mktemp("gates") / "rows.json", "90")


def assert_passed(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert 0 < row["registers"] <= row["limit"]
        assert row["limit"] in OCCUPANCY_STEPS
        assert row["spill"] == 0
        assert row["seconds"] <= 20
        assert {"kernel", "case", "shared", "triton", "torch", "date"} < set(row)


def test_every_kernel_passes(rows: list[dict[str, Any]]) -> None:
    assert {row["capability"] for row in rows} == {90}
    assert_passed(rows)


@pytest.mark.slow
def test_every_kernel_passes_for_every_architecture(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.json")
    assert {row["capability"] for row in rows} <= {60, 70, 75, 80, 86, 89, 90, 100, 120}
    assert {75, 80, 86, 89, 90} <= {row["capability"] for row in rows}
    assert_passed(rows)


@pytest.mark.slow
@pytest.mark.parametrize("version", TESTED_TRITONS)
def test_every_kernel_passes_with_other_versions_of_triton(version: str, tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.json", "90", first=[folder_of_triton(version)])
    assert {row["triton"] for row in rows} == {version}
    assert_passed(rows)


def test_make_installs_the_versions_that_are_tested() -> None:
    """3.3 to the newest, one release of each minor version."""
    makefile = (ROOT / "Makefile").read_text()
    (versions,) = re.findall(r"^TRITONS := (.*)$", makefile, re.MULTILINE)
    minors = [tuple(map(int, version.split(".")[:2])) for version in versions.split()]
    assert minors == [(3, minor) for minor in range(3, 3 + len(minors))]
    assert versions.split()[-1] == TESTED_TRITONS[-1]
    assert set(TESTED_TRITONS) < set(versions.split())
    (tested,) = re.findall(r"^TESTED_TRITONS := (.*)$", makefile, re.MULTILINE)
    assert tested == f"{TESTED_TRITONS[0]} $(lastword $(TRITONS))"


def test_every_kernel_has_a_case(rows: list[dict[str, Any]]) -> None:
    sources = [file.read_text() for file in Path(actdet_kernels.__file__).parent.rglob("*.py")]
    kernels = {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)}
    assert kernels == {row["kernel"] for row in rows}
    launched = {name for source in sources for name in re.findall(r"\blaunch\(\s*(\w+),", source)}
    assert launched == kernels


# A file, because Triton reads a kernel's source there, and the processes that compile import it again.
FAULTY = """
import sys
import triton
import triton.language as tl
from actdet_kernels import gates
from actdet_kernels.gate_cases import FP32, Case, assign, tensor
from actdet_kernels.triton import launch

@triton.jit
def sized_kernel(out, size):
    tl.store(out + size, 0.0)

@triton.jit
def wrong_kernel(out):
    tl.store(out, nothing)

def launch_one(kernel, **sizes):
    launch.launch(kernel, 1, out=tensor(FP32, 9), **sizes, num_warps=1)

gates.CAPABILITIES = (35, 90)  # no ptxas that comes with Triton knows sm_35
gates.CASES = [
    Case("fine", lambda: assign(12, 5, FP32), {"assign_kernel": 96}),
    Case("tight", lambda: assign(12, 5, FP32), {"assign_kernel": 16}),
    Case("spilling", lambda: assign(8000, 5, FP32), {"assign_kernel": 255}),
    Case("sized", lambda: launch_one(sized_kernel, size=7), {"sized_kernel": 96}),
    Case("wrong", lambda: launch_one(wrong_kernel), {"wrong_kernel": 96}),
    Case("no limit", lambda: assign(12, 5, FP32), {}),
]
if __name__ == "__main__":
    sys.exit(gates.main())
"""


def test_faults_are_named_and_an_architecture_without_code_is_none(tmp_path: Path) -> None:
    script, file = tmp_path / "faulty.py", tmp_path / "rows.json"
    script.write_text(FAULTY)
    done = run(script, "--capability", "35", "90", "--json", file, interpret="0")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    for case, fault in {
        "assign_kernel (tight)": r"\d+ registers, 16 allowed",
        "assign_kernel (spilling)": r"\d+ bytes spilled",
        "sized_kernel (sized)": "compiled again for other values of size",
        "wrong_kernel (wrong)": r"CompilationError: .*nothing is not defined.*",
        "assign_kernel (no limit)": r"\d+ registers, 0 allowed",
    }.items():
        wanted = re.compile(rf"{re.escape(case)}: {fault} on (sm_35, )?sm_90")
        assert any(map(wanted.fullmatch, lines)), done.stdout
        assert case in lines[-1]
    assert lines[-1].startswith("FAILED: ")
    assert "fine" not in lines[-1]
    fine = next(line.split() for line in lines if " fine " in line)
    assert fine[-3:-1] == ["no", "code"]
    compiled = [(row["case"], row["capability"]) for row in json.loads(file.read_text())]
    assert compiled == [(case, 90) for case in ("fine", "tight", "spilling", "sized", "no limit")]


def test_code_for_no_architecture_at_all_is_a_failure() -> None:
    from actdet_kernels.gates import NO_CODE, Row, failure

    def row(error: str) -> Row:
        return Row("some_kernel", "case", "16", 1, 255, 35, "", error=error)

    assert failure([row(NO_CODE), row(NO_CODE)]) == "this Triton has code for none of these architectures"
    assert failure([row(NO_CODE), row("")]) is None


def test_a_kernel_that_takes_long_to_compile_is_a_fault() -> None:
    from actdet_kernels.gates import Row

    def faults(seconds: float) -> list[str]:
        return Row("some_kernel", "case", "16", 1, 255, 90, "", registers=9, seconds=seconds).faults()

    assert faults(20) == []
    assert faults(31.4) == ["31 s to compile, 20 allowed"]


def test_few_block_sizes_serve_all_target_counts() -> None:
    from actdet_kernels.triton.assignment import block_size

    assert {block_size(12, targets) for targets in range(1, 101)} == {32, 64, 128}
    assert {block_size(100, targets) for targets in range(1, 101)} == {128}

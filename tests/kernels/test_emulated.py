"""The compiled PTX of every kernel in the emulator, against the oracles, and of atomic additions of every Triton."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.device import NEEDS_TRITON, TESTED_TRITONS, folder_of_triton
from tests.kernels.written_ptx import ATOM, RED


def lines_of(script: str, *arguments: object, first: Sequence[Path] = (), timeout: int = 1100) -> list[dict[str, Any]]:
    """What a script beside this one prints. `first`: where Python looks for modules before it looks elsewhere."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, first), *sys.path])
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@NEEDS_TRITON
@pytest.mark.parametrize("version", ["", *(pytest.param(each, marks=pytest.mark.slow) for each in TESTED_TRITONS)])
def test_atomic_additions_of_every_triton_are_emulated(version: str) -> None:
    """For the oldest architecture, for Ampere and for the H100."""
    first = [folder_of_triton(version)] if version else []
    rows = lines_of("atomics.py", 60, 80, 90, first=first)
    assert {row["triton"] for row in rows} == {version} or not version
    assert [row for row in rows if row["wrong"]] == []
    assert [row for row in rows if bool(row["races"]) != (row["case"] == "racing")] == []

    # The forms that were met. If nobody reads its result, it is a reduction from 3.9 on, and the H100 packs float32.
    has_reductions = tuple(map(int, rows[0]["triton"].split(".")[:2])) >= (3, 9)
    types = ["u64", "f32", "f64"]
    starts = [ATOM, "red.global.add", *([RED] if has_reductions else [])]
    forms = {f"{start}.{type}" for start in starts for type in types}
    forms.add(f"{RED if has_reductions else ATOM}.v4.f32")
    assert {atomic for row in rows for atomic in row["atomics"]} == forms


def emulated(*arguments: object) -> dict[str, str]:
    return {name: found for line in lines_of("emulated.py", *arguments) for name, found in line.items()}


KERNELS = {"assign", "cost", "match", "loss", "clips", "norm", "attention", "centers", "peaks", "suppression"}

# Clips have no barriers.
BARRIERS = KERNELS - {"clips"}

# All of the gates' architectures. The ordinary run has that of the H100, and the matching for that of the P100, the
# oldest.
CAPABILITIES = (60, 70, 75, 80, 86, 89, 90, 100, 120)


def assert_nothing_is_wrong(found: dict[str, str]) -> None:
    assert {name.split()[0] for name in found} == KERNELS
    assert {name: fault for name, fault in found.items() if fault} == {}


@NEEDS_TRITON
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "capability",
    [pytest.param(value, marks=[] if value == 90 else [pytest.mark.slow]) for value in CAPABILITIES],
)
def test_compiled_kernels_are_right_and_free_of_races(capability: int) -> None:
    assert_nothing_is_wrong(emulated(capability, "lockstep", 0))


@NEEDS_TRITON
def test_the_compiled_matching_is_right_on_the_oldest_architecture() -> None:
    found = emulated(60, "lockstep", 0, "match")
    assert len(found) > 3
    assert not any(found.values()), found


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capability", [60, 90])
def test_compiled_kernels_are_right_at_real_sizes(capability: int) -> None:
    assert_nothing_is_wrong(emulated(capability, "lockstep", 0, "--large"))


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sizes", [(), ("--large",)], ids=["small", "large"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("capability", [60, 90])
def test_the_order_of_warps_does_not_matter(capability: int, seed: int, sizes: tuple[str, ...]) -> None:
    """One warp at a time, which others interrupt at random: what a missing barrier lets through changes results."""
    assert_nothing_is_wrong(emulated(capability, "warps", seed, *sizes))


@NEEDS_TRITON
def test_every_architecture_of_the_gates_is_emulated() -> None:
    from actdet_kernels import gates

    assert CAPABILITIES == gates.CAPABILITIES


@NEEDS_TRITON
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("capability", "kernels"),
    [
        (90, {"assign"}),
        *(pytest.param(capability, BARRIERS, marks=pytest.mark.slow) for capability in (60, 80, 90)),
    ],
)
def test_every_barrier_is_missed(capability: int, kernels: set[str]) -> None:
    noticed = emulated(capability, "barriers", 0, *(kernels if kernels != BARRIERS else ()))
    assert {name.split()[0] for name in noticed} == kernels
    assert [name for name, found in noticed.items() if not found] == []

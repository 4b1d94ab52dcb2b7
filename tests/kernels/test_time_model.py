"""The model of time of the emulator, on PTX written here, and the command that prints it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.device import NEEDS_TRITON
from tests.kernels.ptxsim import timing
from tests.kernels.ptxsim.parser import parse
from tests.kernels.ptxsim.timing import Cost, Estimate, estimate
from tests.kernels.written_ptx import ATOM, ENTRY, RED, run

# Not the model's own, so that it can be computed by hand and stays right when the model's guesses are replaced.
BY_HAND = {
    "load parameter": Cost(1, 10),
    "integer": Cost(1, 3),
    "integer64": Cost(2, 4),
    "load global, hits L1": Cost(1, 20),
    "load global, hits L2": Cost(1, 200),
    "store global": Cost(1, 2),
    "barrier": Cost(1, 7),
    "branch": Cost(1, 5),
}
ROUND_TRIP = """
    ld.global.b32 	%r2, [%rd1];
    add.s32 	%r3, %r2, 1;
    bar.sync 	0;
    st.global.b32 	[%rd1], %r3;
"""


def modeled(body: str, threads: int = 32, cache: str = "L1") -> Estimate:
    machine = run(body, np.zeros(threads, "u8"), threads)
    [[trace]] = machine.traces
    return estimate(machine.generator, trace, cache)


@pytest.mark.parametrize(
    ("threads", "cache", "wanted"),
    [
        # Cycles at which each begins, with the four instructions of ENTRY before and the one behind: ld.param 0,
        # mul.wide 1, add.s64 10, ld.global 15, add.s32 35, bar 36, st 44, ret 45, of which the last takes 1 and 5.
        (32, "L1", 51),
        # The load takes 180 cycles longer.
        (32, "L2", 231),
        # A slot of eight warps on four schedulers takes two cycles: 0, 2, 10, 16, 36, 38, 47, 49.
        (256, "L1", 56),
    ],
)
def test_a_round_trip_takes_what_it_does_by_hand(
    monkeypatch: pytest.MonkeyPatch, threads: int, cache: str, wanted: int
) -> None:
    monkeypatch.setattr(timing, "TABLE", BY_HAND)
    found = modeled(ROUND_TRIP, threads, cache)
    assert found.cycles == wanted
    # Of `mov`, which is free, nothing is counted.
    assert found.instructions == 8
    assert found.counts["barrier"] == 1
    assert found.counts[f"load global, hits {cache}"] == 1
    assert sum(found.spent.values()) == wanted


def test_a_loop_counts_each_round() -> None:
    """Five rounds of two integers' instructions and a branch; the others are those of ENTRY, `ret` among them."""
    loop = """
    mov.b32 	%r2, 0;
    $again:
    add.s32 	%r2, %r2, 1;
    setp.lt.u32 	%p1, %r2, 5;
    @%p1 bra 	$again;
    """
    found = modeled(loop)
    assert found.counts == {"load parameter": 1, "integer": 1 + 2 * 5, "integer64": 1, "branch": 5 + 1}


@pytest.mark.parametrize(
    ("chained", "independent", "kind"),
    [
        ("add.f32 %r2, %r2, %r3", "add.f32 %r2, %r4, %r3", "float32"),
        ("fma.rn.f64 %rd3, %rd3, %rd4, %rd4", "fma.rn.f64 %rd3, %rd4, %rd4, %rd4", "float64"),
        ("xor.b32 %r2, %r3, %r2", "xor.b32 %r2, %r3, %r4", "integer"),
        ("shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1", "shfl.sync.bfly.b32 %r2, %r3, 1, 31, -1", "shuffle"),
        (f"{ATOM}.u64 %rd3, [%rd1], %rd3", f"{ATOM}.u64 %rd3, [%rd1], %rd4", "atomic global"),
        # Through a move, which is free.
        ("add.f32 %r2, %r2, %r3;\nmov.b32 %r5, %r2;\nmov.b32 %r2, %r5", "add.f32 %r2, %r4, %r3", "float32"),
    ],
)
def test_a_chain_waits_for_each_result(chained: str, independent: str, kind: str) -> None:
    slots, latency = timing.TABLE[kind]
    # The differences, so that what is around them does not matter.
    chain = [modeled(f"{chained};\n" * count) for count in (4, 12)]
    assert chain[1].cycles - chain[0].cycles == 8 * (slots - 1 + latency)
    alone = [modeled(f"{independent};\n" * count) for count in (4, 12)]
    assert alone[1].cycles - alone[0].cycles == 8 * slots
    assert chain[1].instructions == alone[1].instructions


def test_nobody_waits_for_a_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even who reads the register that has its address."""
    monkeypatch.setitem(timing.TABLE, "reduction global", Cost(3, 100))
    several = [modeled(f"{RED}.u64 [%rd1], %rd3;\nadd.s64 %rd4, %rd1, 8;\n" * count) for count in (4, 12)]
    assert several[1].cycles - several[0].cycles == 8 * (3 + timing.TABLE["integer64"].slots)


@pytest.mark.parametrize("kind", sorted(BY_HAND))
@pytest.mark.parametrize("threads", [32, 128, 512])
def test_what_takes_longer_is_never_quicker(monkeypatch: pytest.MonkeyPatch, kind: str, threads: int) -> None:
    cache = "L2" if kind.endswith("L2") else "L1"
    before = modeled(ROUND_TRIP, threads, cache)
    slots, latency = timing.TABLE[kind]
    monkeypatch.setitem(timing.TABLE, kind, Cost(slots, latency + 100))
    slower = modeled(ROUND_TRIP, threads, cache)
    assert slower.cycles >= before.cycles
    # Nobody reads what was stored; the instruction itself is never for nothing.
    assert slower.cycles > before.cycles or kind in ("store global", "integer")
    monkeypatch.setitem(timing.TABLE, kind, Cost(slots + 1, latency))
    assert modeled(ROUND_TRIP, threads, cache).cycles > before.cycles
    assert modeled(ROUND_TRIP, 2 * threads, cache).cycles >= before.cycles


@pytest.mark.parametrize(
    ("instruction", "wanted"),
    [
        ("mov.b64 %rd3, {%r1, %r2}", "free"),
        ("cvt.u64.u32 %rd3, %r1", "free"),
        ("shl.b64 %rd3, %rd3, 32", "free"),
        ("shl.b64 %rd3, %rd3, 3", "integer64"),
        ("cvt.s64.s32 %rd3, %r1", "integer"),
        ("cvt.rn.f32.s32 %r2, %r1", "conversion"),
        ("mul.wide.u32 %rd3, %r1, 8", "integer"),
        ("mul.lo.s64 %rd3, %rd3, %rd3", "product of 64 bits"),
        ("min.s64 %rd3, %rd3, %rd3", "min, max of 64 bits"),
        ("setp.lt.u64 %p1, %rd1, %rd2", "integer64"),
        ("min.f32 %r2, %r2, %r2", "integer"),
        ("mul.f32 %r2, %r2, %r2", "float32"),
        ("div.full.f32 %r2, %r2, %r2", "float32 quotient"),
        ("ex2.approx.ftz.f32 %r2, %r2", "special function"),
        ("add.f64 %rd3, %rd3, %rd3", "float64"),
        ("max.f64 %rd3, %rd3, %rd3", "min, max of float64"),
        ("div.rn.f64 %rd3, %rd3, %rd3", "float64 quotient"),
        ("div.s32 %r2, %r2, %r2", "integer quotient"),
        ("ld.shared.b32 %r2, [%r1]", "load shared"),
        ("ld.global.v2.b32 {%r2, %r3}, [%rd1]", "load global, hits L1"),
        ("st.shared.b32 [%r1], %r2", "store shared"),
        ("bar.warp.sync -1", "warp barrier"),
        ("bar.sync 0", "barrier"),
        ("redux.sync.min.s32 %r2, %r2, -1", "redux"),
        ("atom.global.gpu.relaxed.add.u64 %rd3, [%rd1], %rd3", "atomic global"),
        ("red.global.gpu.relaxed.add.v2.f32 [%rd1], {%r2, %r3}", "reduction global"),
    ],
)
def test_the_model_knows_what_an_instruction_is(instruction: str, wanted: str) -> None:
    program = parse(ENTRY.format(body=f"{instruction};", threads=32))
    assert timing.class_of(program.instructions[-2]) == wanted


def model(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, as README has it."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "kernels"), *sys.path])}
    command = [sys.executable, "-m", "tests.kernels.ptxsim", "model", *map(str, arguments)]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=250)


@NEEDS_TRITON
def test_the_models_command_prints_what_it_writes(tmp_path: Path) -> None:
    done = model("--capability", 60, "--only", "assign 100x20", "--json", tmp_path / "rows.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A MODEL of one program, nothing measured")

    header, _, *printed = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["capability"] for row in rows] == [60]
    for cells, row in zip(printed, rows, strict=True):
        assert len(cells) == len(header)
        assert cells[:3] == ["`assign`", "100x20", f"sm_{row['capability']}"]
        assert cells[3:10] == [str(value) for value in list(row.values())[3:10]]
        # A warp for 32 columns; it takes at least a step for each of 20 targets.
        assert row["warps"] == 4
        assert row["instructions"] > 20 * 32
        assert row["instructions"] < row["cycles_l1"] < row["cycles_l2"]


@NEEDS_TRITON
def test_a_case_that_the_model_does_not_have() -> None:
    done = model("--only", "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("--only nothing: no case begins so; there are match 12x5x3, ")

"""The emulator of compiled kernels: its own instructions and barriers, and every kernel's PTX against the oracles."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from device import NEEDS_TRITON
from ptxsim.generator import Generator
from ptxsim.machine import Machine
from ptxsim.memory import GLOBAL_BASE, Fault, Space
from ptxsim.parser import parse

# Its own instructions, on PTX written here

ENTRY = """
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
	.param .u64 .ptr .global .align 1 p0
)
.reqntid {threads}
{{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [p0];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd2, %r1, 8;
	add.s64 	%rd1, %rd1, %rd2;
{body}
	ret;
}}
"""


def run(body: str, memory: np.ndarray, threads: int = 32, mode: str = "lockstep", seed: int = 0) -> Machine:
    """One CTA, which sees `memory`, of 8 bytes each, at p0; %rd1 is the address of a thread's own."""
    program = parse(ENTRY.format(body=body, threads=threads))
    machine = Machine(program, Generator(program), programs=1, shared_size=1024)
    space = Space("global", memory.nbytes, GLOBAL_BASE, machine.granules["global"], machine.report)
    space.bytes[: memory.nbytes] = memory.view(np.uint8)
    space.valid[: memory.nbytes] = True
    try:
        machine.run(space, [np.uint64(GLOBAL_BASE)], mode, seed)
    finally:
        memory.view(np.uint8)[:] = space.bytes[: memory.nbytes]
    return machine


def results_of(instruction: str, kinds: str, *operands: list[float]) -> np.ndarray:
    """What an instruction makes of up to 32 values of each operand; kinds: NumPy's of the result and the operands."""
    memory = np.zeros((4, 32), "u8")
    for place, (kind, values) in enumerate(zip(kinds.split()[1:], operands, strict=True)):
        row = np.zeros((32, 8 // np.dtype(kind).itemsize), kind)
        row[: len(values), 0] = values
        memory[place] = row.view("u8")[:, 0]

    names = []
    lines = []
    for place, kind in enumerate(kinds.split()[1:], 1):
        size = np.dtype(kind).itemsize
        names.append({2: "%rs", 4: "%r", 8: "%rd"}[size] + str(place + 2))
        lines.append(f"ld.global.b{8 * size} {names[-1]}, [%rd1+{256 * (place - 1)}];")
    kind = kinds.split()[0]
    size = np.dtype(kind).itemsize
    to = {2: "%rs", 4: "%r", 8: "%rd"}[size] + "8"
    lines.append(instruction.format(to, *names) + ";")
    lines.append(f"st.global.b{8 * size} [%rd1+768], {to};")
    machine = run("\n".join(lines), memory.reshape(-1))
    assert not machine.findings
    return memory[3].view(kind)[:: 8 // size][: len(operands[0])]


WORDS = [0, 1, 5, 31, 2**31 - 1, 2**31, 2**32 - 1, 0xDEADBEEF]
OTHERS = [7, 2**32 - 1, 3, 2**31, 2**31 - 1, 2, 2**32 - 1, 0x12345678]
FLOATS = [0.0, -1.5, 3.25, 1e30, -2e-20, math.inf, -math.inf, math.nan]
MORE = [2.0, 0.5, -7.0, 1e-5, 4.0, 1.0, 2.0, 1.0]


def signed(value: int, bits: int = 32) -> int:
    return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


# instruction, kinds of the result and the operands, and the same in Python's integers, which have no width
INTEGERS: list[tuple[str, str, Callable[..., int]]] = [
    ("add.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: a + b),
    ("sub.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: a - b),
    ("mul.lo.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: a * b),
    ("mul.hi.u32 {}, {}, {}", "u4 u4 u4", lambda a, b: a * b >> 32),
    ("mul.hi.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: signed(a) * signed(b) >> 32),
    ("mul.wide.u32 {}, {}, {}", "u8 u4 u4", lambda a, b: a * b),
    ("mul.wide.s32 {}, {}, {}", "u8 u4 u4", lambda a, b: signed(a) * signed(b)),
    ("min.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: min(signed(a), signed(b))),
    ("max.u32 {}, {}, {}", "u4 u4 u4", max),
    ("and.b32 {}, {}, {}", "u4 u4 u4", lambda a, b: a & b),
    ("xor.b32 {}, {}, {}", "u4 u4 u4", lambda a, b: a ^ b),
    ("shl.b32 {}, {}, {}", "u4 u4 u4", lambda a, b: a << b if b < 32 else 0),
    ("shr.u32 {}, {}, {}", "u4 u4 u4", lambda a, b: a >> min(b, 32)),
    ("shr.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: signed(a) >> min(b, 32)),
    ("min.s64 {}, {}, {}", "u8 u8 u8", lambda a, b: min(signed(a, 64), signed(b, 64))),
    ("add.s64 {}, {}, {}", "u8 u8 u8", lambda a, b: a + b),
    ("popc.b32 {}, {}", "u4 u4", lambda a: a.bit_count()),
    ("cvt.s64.s32 {}, {}", "u8 u4", signed),
    ("cvt.u64.u32 {}, {}", "u8 u4", lambda a: a),
]


@pytest.mark.parametrize(("instruction", "kinds", "wanted"), INTEGERS, ids=[case[0] for case in INTEGERS])
def test_integers_are_pythons_modulo_their_width(instruction: str, kinds: str, wanted: Callable[..., int]) -> None:
    operands = [WORDS, OTHERS][: len(kinds.split()) - 1]
    got = results_of(instruction, kinds, *operands)
    width = 8 * np.dtype(kinds.split()[0]).itemsize
    assert got.tolist() == [wanted(*values) % 2**width for values in zip(*operands, strict=True)]


REALS: list[tuple[str, str, Callable[..., float]]] = [
    ("add.rn.f32 {}, {}, {}", "f4 f4 f4", lambda a, b: a + b),
    ("sub.f32 {}, {}, {}", "f4 f4 f4", lambda a, b: a - b),
    ("mul.rn.f32 {}, {}, {}", "f4 f4 f4", lambda a, b: a * b),
    ("div.full.f32 {}, {}, {}", "f4 f4 f4", lambda a, b: a / b),
    ("min.f32 {}, {}, {}", "f4 f4 f4", lambda a, b: b if math.isnan(a) else min(a, b)),
    ("max.NaN.f32 {}, {}, {}", "f4 f4 f4", lambda a, b: a if math.isnan(a) else max(a, b)),
    ("add.f64 {}, {}, {}", "f8 f8 f8", lambda a, b: a + b),
    ("mul.f64 {}, {}, {}", "f8 f8 f8", lambda a, b: a * b),
    ("neg.f32 {}, {}", "f4 f4", lambda a: -a),
    ("abs.f32 {}, {}", "f4 f4", abs),
    ("cvt.f64.f32 {}, {}", "f8 f4", lambda a: a),
]


@pytest.mark.parametrize(("instruction", "kinds", "wanted"), REALS, ids=[case[0] for case in REALS])
def test_floats_are_pythons_rounded_once(instruction: str, kinds: str, wanted: Callable[..., float]) -> None:
    operands = [np.array(values, kinds[:2]) for values in (FLOATS, MORE)][: len(kinds.split()) - 1]
    if kinds == "f8 f4":
        operands = [operands[0].astype("f4")]
    got = results_of(instruction, kinds, *operands)
    exact = [wanted(*values) for values in zip(*(operand.tolist() for operand in operands), strict=True)]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, np.array(exact).astype(kinds[:2]))


@pytest.mark.parametrize(
    ("relation", "wanted"),
    [
        ("lt", lambda a, b: a < b),
        ("ge", lambda a, b: a >= b),
        ("ne", lambda a, b: a == a and a != b),
        ("neu", lambda a, b: a != b),
        ("ltu", lambda a, b: not a >= b),
        ("geu", lambda a, b: not a < b),
        ("nan", lambda a, b: a != a),
    ],
)
def test_comparisons_know_nan(relation: str, wanted: Callable[[float, float], bool]) -> None:
    values = np.array([1.0, 2.0, 2.0, -math.inf, math.nan], "f4")
    others = np.array([2.0, 1.0, 2.0, math.inf, 0.0], "f4")
    got = results_of(f"setp.{relation}.f32 %p1, {{1}}, {{2}}; selp.b32 {{0}}, 1, 0, %p1", "u4 f4 f4", values, others)
    assert got.tolist() == [wanted(a, b) for a, b in zip(values.tolist(), others.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("operation", "lane"),
    [
        ("bfly.b32 {}, {}, 5, 31", lambda i: i ^ 5),
        ("up.b32 {}, {}, 3, 0", lambda i: i - 3 if i >= 3 else i),
        ("down.b32 {}, {}, 2, 31", lambda i: i + 2 if i < 30 else i),
        ("idx.b32 {}, {}, 9, 31", lambda i: 9),
    ],
)
def test_shuffles_read_the_other_lane(operation: str, lane: Callable[[int], int]) -> None:
    values = [10 * i + 1 for i in range(32)]
    got = results_of(f"shfl.sync.{operation}, -1", "u4 u4", values)
    assert got.tolist() == [values[lane(i)] for i in range(32)]


def test_redux_is_over_the_warp() -> None:
    values = [(7 * i + 3) % 32 for i in range(32)]
    for operation, wanted in (("min.s32", min), ("max.u32", max), ("add.s32", sum)):
        assert results_of(f"redux.sync.{operation} {{}}, {{}}, -1", "u4 u4", values).tolist() == [wanted(values)] * 32


# Barriers: each thread of two warps reads what one of the other warp wrote

WRITE = "mov.u32 %r2, global_smem; shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3; st.shared.b32 [%r4], %r1;"
BARRIER = "bar.sync 0;"
READ = "xor.b32 %r5, %r3, 128; add.s32 %r6, %r2, %r5; ld.shared.b32 %r7, [%r6];"
KEEP = "cvt.u64.u32 %rd3, %r7; st.global.b64 [%rd1], %rd3;"
MODES = [("lockstep", 0), *(("warps", seed) for seed in range(5))]


def skipped_by(first: int) -> str:
    """A barrier that threads from `first` on jump over."""
    return f"setp.ge.u32 %p1, %r1, {first};\n@%p1 bra $over;\nbar.sync 0;\n$over:"


def exchanged(*parts: str, mode: str, seed: int) -> tuple[Machine, list[int]]:
    memory = np.zeros(64, "u8")
    machine = run("\n".join(parts).replace("; ", ";\n"), memory, 64, mode, seed)
    return machine, memory.tolist()


@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_a_barrier_orders_what_it_separates(mode: str, seed: int) -> None:
    machine, got = exchanged(WRITE, BARRIER, READ, KEEP, mode=mode, seed=seed)
    assert not machine.findings
    assert got == [thread ^ 32 for thread in range(64)]


@pytest.mark.parametrize("parts", [(WRITE, READ, KEEP), (WRITE, READ, BARRIER, KEEP), (BARRIER, WRITE, READ, KEEP)])
@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_a_barrier_that_is_missing_or_moved_is_a_race(parts: tuple[str, ...], mode: str, seed: int) -> None:
    machine, _ = exchanged(*parts, mode=mode, seed=seed)
    assert {kind for kind, *_ in machine.findings} & {"RAW between warps", "WAR between warps"}


@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_a_barrier_that_one_warp_skips_is_found(mode: str, seed: int) -> None:
    """The hardware counts it with the next one, where the other warp waits: each goes on where it should not."""
    machine, _ = exchanged(WRITE, skipped_by(32), READ, BARRIER, KEEP, mode=mode, seed=seed)
    assert "barrier at several places" in {kind for kind, *_ in machine.findings}


@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_a_barrier_that_half_a_warp_skips_is_a_deadlock(mode: str, seed: int) -> None:
    with pytest.raises(Fault, match="wait for each other at different places"):
        exchanged(WRITE, skipped_by(16), READ, BARRIER, KEEP, mode=mode, seed=seed)


@pytest.mark.parametrize("offset", [512, -8, 4])
def test_what_is_no_arguments_or_misaligned_stops(offset: int) -> None:
    with pytest.raises(Fault, match=r"misaligned|out of bounds|outside"):
        run(f"st.global.b64 [%rd1+{offset}], %rd1;", np.zeros(32, "u8"))


def test_what_cannot_be_emulated_is_named() -> None:
    with pytest.raises(NotImplementedError, match="atom"):
        run("atom.global.add.u32 %r2, [%rd1], 1;", np.zeros(32, "u8"))


# Every kernel


def emulated(*arguments: object, timeout: int = 1100) -> dict[str, str]:
    script = Path(__file__).parent / "emulated.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return {name: found for line in done.stdout.splitlines() for name, found in json.loads(line).items()}


KERNELS = {"assign", "cost", "match", "loss", "clips"}

# All of the gates' architectures. The ordinary run has the oldest, the first with `redux`, and that of the H100.
CAPABILITIES = (60, 70, 75, 80, 86, 89, 90, 100, 120)
QUICK = (60, 80, 90)


def assert_nothing_is_wrong(found: dict[str, str]) -> None:
    assert {name.split()[0] for name in found} == KERNELS
    assert {name: fault for name, fault in found.items() if fault} == {}


@NEEDS_TRITON
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "capability",
    [pytest.param(value, marks=[] if value in QUICK else [pytest.mark.slow]) for value in CAPABILITIES],
)
def test_compiled_kernels_are_right_and_free_of_races(capability: int) -> None:
    assert_nothing_is_wrong(emulated(capability, "lockstep", 0))


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
def test_every_barrier_of_the_solver_is_missed() -> None:
    noticed = emulated(90, "barriers", 0)
    assert noticed
    assert [line for line, found in noticed.items() if not found] == []

"""The emulator of compiled kernels: its own instructions and barriers, and every kernel's PTX against the oracles."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.device import NEEDS_TRITON, TESTED_TRITONS, folder_of_triton
from tests.kernels.ptxsim import timing
from tests.kernels.ptxsim.generator import Generator
from tests.kernels.ptxsim.machine import Machine
from tests.kernels.ptxsim.memory import GLOBAL_BASE, Fault, Space
from tests.kernels.ptxsim.parser import parse
from tests.kernels.ptxsim.timing import Cost, Estimate, estimate

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


def run(
    body: str, memory: np.ndarray, threads: int = 32, mode: str = "lockstep", seed: int = 0, programs: int = 1
) -> Machine:
    """CTAs that see `memory`, of 8 bytes each, at p0; %rd1 is the address of a thread's own."""
    program = parse(ENTRY.format(body=body, threads=threads))
    machine = Machine(program, Generator(program), programs, shared_size=1024)
    space = Space("global", memory.nbytes, GLOBAL_BASE, machine.granules["global"], machine.report)
    space.bytes[: memory.nbytes] = memory.view(np.uint8)
    space.valid[: memory.nbytes] = True
    try:
        machine.run(space, [np.uint64(GLOBAL_BASE)], mode, seed, together=2)
    finally:
        memory.view(np.uint8)[:] = space.bytes[: memory.nbytes]
    return machine


def results_of(instruction: str, kinds: str, *operands: Sequence[float] | np.ndarray) -> np.ndarray:
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
    ("abs.f32 {}, {}", "f4 f4", math.fabs),
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


@pytest.mark.parametrize("instruction", ["st.global.b64", "red.global.gpu.relaxed.add.u64"])
@pytest.mark.parametrize("offset", [512, -8, 4])
def test_what_is_no_arguments_or_misaligned_stops(instruction: str, offset: int) -> None:
    with pytest.raises(Fault, match=r"misaligned|out of bounds|outside"):
        run(f"{instruction} [%rd1+{offset}], %rd1;", np.zeros(32, "u8"))


@pytest.mark.parametrize(
    "opcode",
    [
        "atom.add.u32",
        "atom.global.gpu.acq_rel.add.u32",
        "atom.global.cta.relaxed.add.u32",
        "atom.shared.gpu.relaxed.add.u32",
        "atom.global.gpu.relaxed.max.u32",
        "atom.global.gpu.relaxed.add.noftz.f16x2",
    ],
)
def test_what_cannot_be_emulated_is_named(opcode: str) -> None:
    with pytest.raises(NotImplementedError, match=opcode):
        run(f"{opcode} %r2, [%rd1], 1;", np.zeros(32, "u8"))


# Atomic additions: %rd3 is an address that all threads share

EVERYBODYS = "sub.s64 %rd3, %rd1, %rd2;"
ATOM = "atom.global.gpu.relaxed.add"
RED = "red.global.gpu.relaxed.add"
# How a thread's number becomes a value of each type, and the register that holds it.
VALUES = {
    "u32": ("mov.b32 %r4, %r1;", "%r4"),
    "u64": ("cvt.u64.u32 %rd4, %r1;", "%rd4"),
    "f32": ("cvt.rn.f32.u32 %r4, %r1;", "%r4"),
    "f64": ("cvt.rn.f64.u32 %rd4, %r1;", "%rd4"),
}


def added(*parts: str, memory: np.ndarray, mode: str = "lockstep", seed: int = 0, programs: int = 1) -> Machine:
    """As `run`, with two warps in each CTA; `memory` may be of any type and shape."""
    body = "\n".join((EVERYBODYS, *parts)).replace("; ", ";\n")
    return run(body, memory.reshape(-1).view(np.uint8), 64, mode, seed, programs)


def numpy_kind(type: str) -> np.dtype:
    return np.dtype(type.replace("u", "uint").replace("f", "float"))


def kinds_of(machine: Machine) -> set[str]:
    return {kind for kind, *_ in machine.findings}


@pytest.mark.parametrize("type", VALUES)
@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_atomics_add_what_all_threads_give(type: str, mode: str, seed: int) -> None:
    """Each thread of three programs adds its number to one of four places, of which each has a value already."""
    kind = numpy_kind(type)
    memory = np.zeros((64, 8 // kind.itemsize), kind)
    memory[:4, 0] = [5, 6, 7, 8]
    place = "and.b32 %r2, %r1, 3; mul.wide.u32 %rd5, %r2, 8; add.s64 %rd3, %rd3, %rd5;"
    conversion, value = VALUES[type]
    parts = (place, conversion, f"{RED}.{type} [%rd3], {value};")
    machine = added(*parts, memory=memory, mode=mode, seed=seed, programs=3)
    assert not machine.findings
    wanted = np.zeros_like(memory)
    wanted[:4, 0] = [5 + place + 3 * sum(range(place, 64, 4)) for place in range(4)]
    assert memory.tolist() == wanted.tolist()


@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_masked_lanes_add_nothing(mode: str, seed: int) -> None:
    memory = np.zeros(64, "u8")
    predicate = "and.b32 %r2, %r1, 5; setp.eq.u32 %p1, %r2, 5; mov.b64 %rd4, 7;"
    machine = added(predicate, f"@%p1 {RED}.u64 [%rd3], %rd4;", memory=memory, mode=mode, seed=seed)
    assert not machine.findings
    assert memory.tolist() == [7 * sum(thread & 5 == 5 for thread in range(64)), *[0] * 63]


@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_an_atomic_gives_what_was_there_before(mode: str, seed: int) -> None:
    """Nobody sees the same; of a warp, each lane sees what those before it added. Masked lanes keep what they had."""
    memory = np.zeros(65, "u8")
    before = "mov.b64 %rd4, 3; mov.b64 %rd5, 99; and.b32 %r2, %r1, 7; setp.ne.u32 %p1, %r2, 2;"
    parts = (before, f"@%p1 {ATOM}.u64 %rd5, [%rd3+512], %rd4;", "st.global.b64 [%rd1], %rd5;")
    machine = added(*parts, memory=memory, mode=mode, seed=seed)
    assert not machine.findings
    assert memory[64] == 3 * 56
    seen = memory[:64].reshape(2, 4, 8)
    assert (seen[:, :, 2] == 99).all()
    warps = np.delete(seen, 2, axis=2).reshape(2, 28)
    assert warps[0, 0] in ([0] if mode == "lockstep" else [0, 3 * 28])
    assert warps[1, 0] == 3 * 28 - warps[0, 0]
    assert (np.diff(warps.astype("i8"), axis=1) == 3).all()


def test_lanes_are_served_in_their_order() -> None:
    """In float32, ones that are added to 2^24 are lost, so that sums tell which of them were added before."""
    values = np.ones(64, "f4")
    values[[3, 7, 40]] = [2**24, 4, 0.5]
    sums = np.add.accumulate(values)
    assert sums[-1] != np.add.accumulate(values[::-1])[-1]

    memory = np.zeros((65, 2), "f4")
    memory[:64, 0] = values
    parts = ("ld.global.b32 %r4, [%rd1];", f"{ATOM}.f32 %r5, [%rd3+512], %r4;", "st.global.b32 [%rd1+4], %r5;")
    assert not added(*parts, memory=memory).findings
    assert memory[:64, 1].tolist() == [0, *sums[:-1].tolist()]
    assert memory[64].tolist() == [sums[-1], 0]


def test_vectors_are_added_element_by_element() -> None:
    """Two threads to each of 32 places of two numbers; a register may be a result and a value, too."""
    memory = np.zeros((64, 2), "f4")
    memory[:32] = 100 * np.arange(64).reshape(32, 2)
    begin = memory[:32].copy()
    place = "and.b32 %r2, %r1, 31; mul.wide.u32 %rd5, %r2, 8; add.s64 %rd5, %rd3, %rd5;"
    value = "cvt.rn.f32.u32 %r4, %r1; add.f32 %r5, %r4, 0f3F000000;"
    add = f"{ATOM}.v2.f32 {{ %r5, %r4 }}, [ %rd5 + 0 ], {{ %r4, %r5 }};"
    upper = "setp.ge.u32 %p1, %r1, 32; @%p1 st.global.v2.b32 [%rd1], {%r5, %r4};"
    assert not added(place, value, add, upper, memory=memory).findings
    lower = np.arange(32)[:, None] + np.array([0, 0.5])
    assert memory[:32].tolist() == (begin + lower + lower + 32).tolist()
    assert memory[32:].tolist() == (begin + lower).tolist()


def test_a_vector_is_aligned_as_a_whole() -> None:
    with pytest.raises(Fault, match="misaligned atomic"):
        run("red.global.gpu.relaxed.add.v4.f32 [%rd1], {%r2, %r3, %r4, %r5};", np.zeros(64, "u8"))


@pytest.mark.parametrize(("type", "wanted"), [("f32", [0, 0, 2]), ("f64", [1.5, 0.5, 2])])
def test_denormal_numbers_are_zero_in_atomics_of_float32(type: str, wanted: list[float]) -> None:
    """Two numbers that are denormal, two of which the sum is, and two that are none, in units of the least normal."""
    kind = numpy_kind(type)
    tiny = np.finfo(kind).tiny
    memory = np.zeros((128, 8 // kind.itemsize), kind)
    memory[:3, 0] = tiny * np.array([0.75, 1.5, 1])
    memory[64:67, 0] = tiny * np.array([0.75, -1, 1])
    _, value = VALUES[type]
    load = f"ld.global.b{8 * kind.itemsize} {value}, [%rd1+512];"
    assert not added(load, f"{RED}.{type} [%rd1], {value};", memory=memory).findings
    assert memory[:64, 0].tolist() == [*(tiny * np.array(wanted)).tolist(), *[0] * 61]


ADD = f"{RED}.u64 [%rd3], %rd4;"


@pytest.mark.parametrize("plain", ["st.global.b64 [%rd3], %rd5;", "ld.global.b64 %rd5, [%rd3];"])
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_an_atomic_and_another_access_are_a_race(plain: str, is_first: bool, mode: str, seed: int) -> None:
    """The lanes of one warp add zeros, and a lane of the other accesses the same place."""
    who = "mov.b64 %rd4, 0; mov.b64 %rd5, 0; setp.lt.u32 %p1, %r1, 32; setp.eq.u32 %p2, %r1, 40;"
    accesses = [f"@%p2 {plain}", f"@%p1 {ADD}"]
    accesses = accesses if is_first else accesses[::-1]
    what = "write" if plain.startswith("st") else "read"
    kinds = [f"atomic after {what} between warps", f"{what} after atomic between warps"]

    machine = added(who, *accesses, memory=np.zeros(64, "u8"), mode=mode, seed=seed)
    (found,) = kinds_of(machine)
    assert found in ([kinds[not is_first]] if mode == "lockstep" else kinds)

    machine = added(who, accesses[0], BARRIER, accesses[1], memory=np.zeros(64, "u8"), mode=mode, seed=seed)
    assert not machine.findings


@pytest.mark.parametrize("plain", ["st.global.b64 [%rd3], %rd5;", "ld.global.b64 %rd5, [%rd3];"])
@pytest.mark.parametrize("is_first", [True, False])
def test_an_atomic_and_another_access_within_a_warp_are_a_race(plain: str, is_first: bool) -> None:
    shuffle = "shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;"
    who = f"mov.b64 %rd4, 1; mov.b64 %rd5, 0; setp.eq.u32 %p1, %r1, 3; setp.eq.u32 %p2, %r1, 4; {shuffle}"
    accesses = [f"@%p2 {plain}", f"@%p1 {ADD}"]
    accesses = accesses if is_first else accesses[::-1]
    machine = added(who, *accesses, memory=np.zeros(64, "u8"))
    assert [kind.endswith("within a warp") for kind in kinds_of(machine)] == [True]
    assert not added(who, accesses[0], "bar.warp.sync -1;", accesses[1], memory=np.zeros(64, "u8")).findings
    # At a shuffle, only what was read before is done.
    machine = added(who, accesses[0], shuffle, accesses[1], memory=np.zeros(64, "u8"))
    assert bool(machine.findings) != (is_first and plain.startswith("ld"))
    # The same thread is no other.
    own = [access.replace("%p2", "%p1") for access in accesses]
    assert not added(who, *own, memory=np.zeros(64, "u8")).findings


@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_what_was_before_an_atomic_is_not_forgotten(mode: str, seed: int) -> None:
    """A store and an addition of one warp, and an addition of the other one, which is a race with the store alone."""
    who = "mov.b64 %rd4, 1; setp.lt.u32 %p1, %r1, 1;"
    machine = added(who, "@%p1 st.global.b64 [%rd3], %rd4;", ADD, memory=np.zeros(64, "u8"), mode=mode, seed=seed)
    assert kinds_of(machine) & {"atomic after write between warps", "write after atomic between warps"}


@pytest.mark.parametrize("lane", [0, 31, 32, 63])
@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_additions_of_all_warps_are_remembered(lane: int, mode: str, seed: int) -> None:
    """Two warps add, of which either one reads."""
    who = f"mov.b64 %rd4, 1; setp.eq.u32 %p1, %r1, {lane};"
    read = "@%p1 ld.global.b64 %rd5, [%rd3];"
    machine = added(who, ADD, read, memory=np.zeros(64, "u8"), mode=mode, seed=seed)
    assert kinds_of(machine) & {"read after atomic between warps", "atomic after read between warps"}
    assert not added(who, ADD, BARRIER, read, memory=np.zeros(64, "u8"), mode=mode, seed=seed).findings


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (ADD, "ld.global.b64 %rd5, [%rd3];", "read after atomic between warps"),
        (ADD, "st.global.b64 [%rd3], %rd5;", "write after atomic between warps"),
        ("ld.global.b64 %rd5, [%rd3];", ADD, "atomic after read between warps"),
        ("ld.global.b64 %rd6, [%rd3];", "st.global.b64 [%rd3], %rd5;", "WAR between warps"),
    ],
)
@pytest.mark.parametrize(("mode", "seed"), MODES)
def test_a_barrier_does_not_order_programs(first: str, second: str, kind: str, mode: str, seed: int) -> None:
    """One thread of each program makes the first access; that of the last program makes the second one, too.

    The last to make the first access is the one that makes the second: those of the others must not be forgotten.
    """

    def kinds_with(programs: int) -> set[str]:
        who = "mov.b64 %rd4, 1; mov.b64 %rd5, 8; mov.u32 %r2, %ctaid.x; setp.eq.u32 %p1, %r1, 0;"
        last = f"setp.eq.u32 %p2, %r2, {programs - 1}; and.pred %p2, %p2, %p1;"
        parts = (who, last, f"@%p1 {first}", BARRIER, f"@%p2 {second}")
        return kinds_of(added(*parts, memory=np.zeros(64, "u8"), mode=mode, seed=seed, programs=programs))

    assert kinds_with(programs=1) == set()
    # Two run at once in lockstep: the last with another one, and alone.
    assert kinds_with(programs=2) == {kind}
    assert kinds_with(programs=3) == {kind}


def test_neighbors_of_an_atomic_are_other_places() -> None:
    """One warp adds to the lower half of eight bytes, of which the other reads the upper one."""
    who = "setp.lt.u32 %p1, %r1, 32; mov.b32 %r4, 0f3F800000;"
    parts = (who, f"@%p1 {RED}.f32 [%rd3], %r4;", "@!%p1 ld.global.b32 %r5, [%rd3+4];")
    memory = np.zeros(128, "f4")
    assert not added(*parts, memory=memory).findings
    assert memory[0] == 32


# The model of time

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


# What Triton makes of atomic additions, and every kernel


def lines_of(script: str, *arguments: object, first: Sequence[Path] = (), timeout: int = 1100) -> list[dict[str, Any]]:
    """What a script beside this one prints. `first`: where Python looks for modules before it looks elsewhere."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, first), *sys.path])
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@NEEDS_TRITON
@pytest.mark.parametrize("version", ["", *TESTED_TRITONS])
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


KERNELS = {"assign", "cost", "match", "loss", "clips", "norm", "attention"}

# Clips have no barriers; of the norm's, Triton puts some where nothing needs them.
BARRIERS = KERNELS - {"clips", "norm", "attention"}

# All of the gates' architectures. The ordinary run has the oldest, and that of the H100.
CAPABILITIES = (60, 70, 75, 80, 86, 89, 90, 100, 120)
QUICK = (60, 90)


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

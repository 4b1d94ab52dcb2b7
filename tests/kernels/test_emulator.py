"""The emulator of compiled kernels: its instructions, barriers and atomic additions, on PTX written here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.kernels import needed_barriers
from tests.kernels.ptxsim.machine import Machine
from tests.kernels.ptxsim.memory import Fault
from tests.kernels.written_ptx import ATOM, RED, run

# Its own instructions, on PTX written here


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


def quotient(dividend: int, divisor: int) -> int:
    """Rounded toward zero."""
    rounded_down = abs(dividend) // abs(divisor)
    return rounded_down if (dividend < 0) == (divisor < 0) else -rounded_down


# instruction, kinds of the result and the operands, and the same in Python's integers, which have no width
INTEGERS: list[tuple[str, str, Callable[..., int]]] = [
    ("add.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: a + b),
    ("sub.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: a - b),
    ("mul.lo.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: a * b),
    ("mul.hi.u32 {}, {}, {}", "u4 u4 u4", lambda a, b: a * b >> 32),
    ("mul.hi.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: signed(a) * signed(b) >> 32),
    ("mul.wide.u32 {}, {}, {}", "u8 u4 u4", lambda a, b: a * b),
    ("mul.wide.s32 {}, {}, {}", "u8 u4 u4", lambda a, b: signed(a) * signed(b)),
    ("div.u32 {}, {}, {}", "u4 u4 u4", lambda a, b: a // b),
    ("div.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: quotient(signed(a), signed(b))),
    ("div.u64 {}, {}, {}", "u8 u8 u8", lambda a, b: a // b),
    ("rem.u32 {}, {}, {}", "u4 u4 u4", lambda a, b: a % b),
    ("rem.s32 {}, {}, {}", "u4 u4 u4", lambda a, b: signed(a) - quotient(signed(a), signed(b)) * signed(b)),
    ("rem.u64 {}, {}, {}", "u8 u8 u8", lambda a, b: a % b),
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


def test_a_scope_that_ends_on_a_line_of_its_own_does_not_end_the_kernel() -> None:
    """Triton 3.3 takes the upper half of a float64 so. What follows has a label, which a branch before it names."""
    lines = [
        "ld.global.b64 %rd3, [%rd1];",
        "bra.uni $L__BB0_2;",
        "$L__BB0_3:",
        "cvt.u64.u32 %rd4, %r5;",
        "st.global.b64 [%rd1], %rd4;",
        "bra.uni $L__BB0_4;",
        "$L__BB0_2:",
        "\t{",
        "\t.reg .b32 %temp; ",
        "\tmov.b64 \t{%temp, %r5}, %rd3;",
        "\t}",
        "bra.uni $L__BB0_3;",
        "$L__BB0_4:",
    ]
    memory = np.arange(32, dtype=np.uint64) << 33
    run("\n".join(lines), memory)
    assert memory.tolist() == [2 * number for number in range(32)]


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

    # The same numbers in the upper halves of registers, and in the other order in the lower ones: two results.
    high, low = (each.view("u4") >> 16 for each in (values, values[::-1]))
    other_high, other_low = (each.view("u4") >> 16 for each in (others, others[::-1]))
    both = f"setp.{relation}.bf16x2 %p1|%p2, {{1}}, {{2}}; selp.b32 %r1, 1, 0, %p1; selp.b32 {{0}}, 2, 0, %p2; "
    both += "or.b32 {0}, {0}, %r1"
    got = results_of(both, "u4 u4 u4", high << 16 | low, other_high << 16 | other_low)
    upper = [wanted(a, b) for a, b in zip(values.tolist(), others.tolist(), strict=True)]
    assert got.tolist() == [2 * first + last for first, last in zip(upper, upper[::-1], strict=True)]


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


W = needed_barriers.WRITE
R = needed_barriers.READ
A = needed_barriers.ADDITION


@pytest.mark.parametrize(
    ("ends", "accesses", "needed"),
    [
        ([7], [(0, W, 0), (1, R, 40)], {7}),
        ([7], [(0, R, 0), (1, W, 40)], {7}),
        ([7], [(0, W, 0), (1, W, 40)], {7}),
        ([7], [(0, A, 0), (1, R, 40)], {7}),
        # Two reads, two additions, one warp, and one epoch need no barrier.
        ([7], [(0, R, 0), (1, R, 40)], set()),
        ([7], [(0, A, 0), (1, A, 40)], set()),
        ([7], [(0, W, 0), (1, R, 31)], set()),
        ([7], [(1, W, 0), (1, R, 40)], set()),
        # Each of two barriers does without the other, and of three the one in the middle has something to order.
        ([7, 8], [(0, W, 0), (2, R, 40)], set()),
        ([7, 8, 9], [(1, W, 0), (2, R, 40), (0, R, 0), (3, R, 40)], {8}),
        # A barrier in a loop.
        ([7, 7, 7], [(0, W, 0), (3, R, 40)], {7}),
        ([7, 8, 7], [(0, W, 0), (3, R, 40)], set()),
    ],
)
def test_the_barriers_that_are_needed(ends: list[int], accesses: list[tuple[int, int, int]], needed: set[int]) -> None:
    """Accesses to one place, each with its epoch, kind and thread; another place and another CTA change nothing."""
    log = needed_barriers.Log()
    for cta in range(2):
        log.ends |= {(cta, epoch): site for epoch, site in enumerate(ends)}
    rows = [(0, epoch, 5, thread, kind) for epoch, kind, thread in accesses]
    rows += [(1, epoch, 5, 0, W) for epoch in range(len(ends) + 1)]
    rows += [(0, epoch, 6 + epoch, 32 * epoch, W) for epoch in range(len(ends) + 1)]
    log.accesses.append(np.array(rows))
    assert needed_barriers.needed_barriers(log) == needed

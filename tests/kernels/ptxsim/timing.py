"""A MODEL of time, not a measurement: the trace of one program, issued in order, with the constants below.

A warp issues its instructions in order, each as soon as its operands are there. The W warps of a program share four
schedulers, so that an issue slot takes max(1, W / 4) cycles. PTX is not what runs: `slots` says how many machine
instructions ptxas is taken to make of one instruction, and what only renames or pairs registers is free.

Limits:

- Every constant is a guess, the same for all architectures.
- All warps are taken to do the same. Where some do more than others, what any of them does is counted, one after the
  other. An instruction under a predicate counts whether or not it is executed.
- Left out are the launch, competition between programs, bank conflicts, atomics that wait for others to the same
  place, misses of the instruction cache, and what ptxas reorders, contracts or removes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from .generator import Generator
from .machine import WARP
from .parser import WIDTHS, Instruction, Program

CLOCK_GHZ = 1.7

SCHEDULERS = 4


class Cost(NamedTuple):
    """What an instruction takes.

    Args:
        slots: Of its warp's scheduler.
        latency: Cycles from its last slot until its result may be read. After a barrier or a branch, the warp itself
            waits for as long.
    """

    slots: int
    latency: int


# Guesses, all of them.
TABLE = {
    "free": Cost(0, 0),
    "integer": Cost(1, 5),
    "integer64": Cost(2, 8),
    "min, max of 64 bits": Cost(4, 14),
    "product of 64 bits": Cost(4, 16),
    "integer quotient": Cost(20, 80),
    "float32": Cost(1, 4),
    "float32 quotient": Cost(8, 45),
    "float64": Cost(2, 8),
    "min, max of float64": Cost(4, 16),
    "float64 quotient": Cost(40, 200),
    "special function": Cost(4, 30),
    "conversion": Cost(2, 8),
    "shuffle": Cost(2, 24),
    "redux": Cost(2, 20),
    "barrier": Cost(1, 28),
    "warp barrier": Cost(1, 5),
    "branch": Cost(1, 8),
    "load parameter": Cost(1, 30),
    "load shared": Cost(1, 29),
    "store shared": Cost(1, 4),
    "load matrix": Cost(1, 33),
    "store matrix": Cost(1, 33),
    "load global, hits L1": Cost(1, 35),
    "load global, hits L2": Cost(1, 260),
    "store global": Cost(1, 4),
    "atomic global": Cost(1, 300),
    "reduction global": Cost(1, 4),
}

# Behind these, the warp itself waits, not only who reads a result.
STALLING = ("barrier", "branch")

# Instructions whose first operand is no result.
NO_RESULT = ("st", "stmatrix", "red", "bra", "bar", "barrier")

# Of a register that nobody wrote: it may be read from the start, and waits for nothing.
ALWAYS = (0.0, "")

CLASSES = {
    "mov": "free",
    "cvta": "free",
    "bra": "branch",
    "ret": "branch",
    "exit": "branch",
    "shfl": "shuffle",
    "redux": "redux",
    "vote": "integer",
    "ldmatrix": "load matrix",
    "stmatrix": "store matrix",
    "atom": "atomic global",
    "red": "reduction global",
}
SPECIAL_FUNCTIONS = ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh")


@dataclass
class Estimate:
    """What the model says of one program.

    Args:
        cycles: From its first instruction to its last.
        counts: How many instructions of each class a warp executed; those that are free are not among them.
        spent: Where the cycles went: "issue", or waiting for a result, or behind a branch or barrier, of that class.
    """

    cycles: float
    counts: Counter[str]
    spent: dict[str, float]

    @property
    def instructions(self) -> int:
        return self.counts.total()

    @property
    def microseconds(self) -> float:
        return self.cycles / CLOCK_GHZ / 1000


def class_of(instruction: Instruction, cache: str = "L1") -> str:
    """The row of TABLE for an instruction; `cache` is "L1" or "L2", where loads from global memory hit."""
    base = instruction.base
    if base in CLASSES:
        return CLASSES[base]
    if base in ("bar", "barrier"):
        return "warp barrier" if "warp" in instruction.parts else "barrier"
    if base == "ld" and "param" in instruction.parts:
        return "load parameter"
    if base == "ld":
        return "load shared" if instruction.is_shared else f"load global, hits {cache}"
    if base == "st":
        return "store shared" if instruction.is_shared else "store global"
    if base == "cvt":
        return class_of_conversion(instruction)
    if instruction.type == "f64":
        return class_of_float64(instruction)
    if base in SPECIAL_FUNCTIONS:
        return "special function"
    if base in ("div", "rem"):
        return "float32 quotient" if instruction.type.startswith("f") else "integer quotient"
    if instruction.type in ("f32", "f32x2") and base in ("add", "sub", "mul", "fma"):
        return "float32"
    # A product of 32 bits that is kept in 64 is one machine instruction.
    if WIDTHS[instruction.type] == 64 and "wide" not in instruction.parts:
        return class_of_integer64(instruction)
    return "integer"


def class_of_conversion(instruction: Instruction) -> str:
    target, source = instruction.types
    if not (target[0] in "us" and source[0] in "us"):
        return "conversion"
    # The other half of a pair of registers is zero, or is not looked at.
    is_free = {target, source} in ({"u64", "u32"}, {"u32", "u16"})
    return "free" if is_free else "integer"


def class_of_float64(instruction: Instruction) -> str:
    if instruction.base in ("div", "sqrt"):
        return "float64 quotient"
    if instruction.base in ("min", "max"):
        return "min, max of float64"
    return "special function" if instruction.base == "rcp" else "float64"


def class_of_integer64(instruction: Instruction) -> str:
    base = instruction.base
    # How Triton pairs registers of 32 bits, and takes the upper one of a pair.
    if base == "or" or (base in ("shl", "shr") and instruction.operands[2] == "32"):
        return "free"
    if base in ("min", "max"):
        return "min, max of 64 bits"
    return "product of 64 bits" if base in ("mul", "mad") else "integer64"


def registers_in(operand: str, program: Program) -> list[str]:
    """The registers in an operand; special ones do not count, since their values are there from the start."""
    return [name for name in re.findall(r"%\w+", operand) if name in program.registers]


class Step(NamedTuple):
    """What the model must know of an instruction."""

    kind: str
    reads: list[str]
    writes: list[str]


def step_of(instruction: Instruction, program: Program, cache: str) -> Step:
    named = [registers_in(operand, program) for operand in instruction.operands]
    results = 0 if instruction.base in NO_RESULT else 1
    writes = [register for operand in named[:results] for register in operand]
    reads = [register for operand in named[results:] for register in operand]
    reads += registers_in(instruction.predicate, program)
    return Step(class_of(instruction, cache), reads, writes)


def estimate(generator: Generator, trace: list[int], cache: str = "L1") -> Estimate:
    """The cycles of one program.

    Args:
        generator: Of the program, whose warps are as many as its threads make.
        trace: The numbers of the segments that it ran, in order.
        cache: "L1" or "L2", where loads from global memory hit.

    Returns:
        The estimate.
    """
    program = generator.program
    cycles_a_slot = max(1.0, program.threads / WARP / SCHEDULERS)
    segments = [
        [step_of(instruction, program, cache) for instruction in segment.instructions] for segment in generator.segments
    ]

    now = 0.0
    # When each register may be read, and the class of what it waits for.
    ready: dict[str, tuple[float, str]] = {}
    counts: Counter[str] = Counter()
    spent: dict[str, float] = defaultdict(float)
    for index in trace:
        for kind, reads, writes in segments[index]:
            last_operand = max((ready.get(register, ALWAYS) for register in reads), default=ALWAYS)
            if kind == "free":
                ready |= dict.fromkeys(writes, last_operand)
                continue

            arrival, producer = last_operand
            if arrival > now:
                spent[producer] += arrival - now
                now = arrival
            slots, latency = TABLE[kind]
            begun = now
            now += slots * cycles_a_slot
            spent["issue"] += slots * cycles_a_slot
            counts[kind] += 1
            if kind in STALLING:
                spent[kind] += latency
                now += latency
            ready |= dict.fromkeys(writes, (begun + (slots - 1) * cycles_a_slot + latency, kind))
    return Estimate(now, counts, dict(spent))

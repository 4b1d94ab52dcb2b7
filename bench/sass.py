"""What the solver's inner step is made of, read from the machine code of the compiled kernels; no GPU is needed."""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton.backends
from actdet_kernels import gate_cases, gates
from actdet_kernels.triton import assignment

CASES: dict[str, Callable[[], object]] = {
    "assign, 12 x 4": lambda: gate_cases.assign(12, 4, gate_cases.FP32),
    "assign, 100 x 63": lambda: gate_cases.assign(100, 63, gate_cases.FP32),
    "assign, 300 x 100": lambda: gate_cases.assign(300, 100, gate_cases.FP32),
    "assign, 900 x 100": lambda: gate_cases.assign(900, 100, gate_cases.FP32),
    "assign, 1024 x 1024": lambda: gate_cases.assign(1024, 1024, gate_cases.FP32),
    "match, 12 queries": lambda: gate_cases.match(12, 3, "softmax", gate_cases.FP32),
    "match, 100 queries": lambda: gate_cases.match(100, 92, "softmax", gate_cases.FP32),
    "match, 300 queries": lambda: gate_cases.match(300, 92, "softmax", gate_cases.FP32),
    "match, 900 queries": lambda: gate_cases.match(900, 92, "softmax", gate_cases.FP32),
}
KINDS = {
    "barriers": ("BAR",),
    "shuffles": ("SHFL",),
    "reductions": ("REDUX", "CREDUX"),
    "loads": ("LDG",),
    "special": ("MUFU",),
}

LABEL = re.compile(r"\.(L_x_\d+):")
LINE = re.compile(r'//## File ".*?/(\w+\.py)", line (\d+)')
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")


class Instruction(NamedTuple):
    operation: str  # without its suffixes
    target: str  # the label that a conditional branch goes to, or ""
    lines: frozenset[tuple[str, int]]  # of the source: the line and those that it was inlined into


def compiled_rows(capability: int) -> Iterator[dict[str, Any]]:
    """For each case what `gates` knows, the instructions of the kernel, and of one step of its search for a path."""
    for case, call in CASES.items():
        ((kernel, values),) = gates.launches_of(call, capability)
        row = gates.compile_launch(gate_cases.Case(case, call, {}), kernel, values, capability)
        if row.error:
            raise RuntimeError(f"{case}: {row.error}")
        instructions, labels = disassemble(gates.compiled_for(kernel, values, capability).asm["cubin"])
        step = inner_step(instructions, labels)
        yield {
            "kernel": row.kernel,
            "case": case,
            "capability": capability,
            "warps": row.warps,
            "registers": row.registers,
            "spill": row.spill,
            "shared": row.shared,
            "instructions": len(instructions),
            "step": {"instructions": len(step)} | {kind: count(step, names) for kind, names in KINDS.items()},
        }


def disassemble(cubin: bytes) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions, and the index of the one behind each label."""
    tool = Path(triton.backends.__file__).parent / "nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--print-line-info-inline", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    lines: list[tuple[str, int]] = []
    fresh = True
    for line in text.splitlines():
        if found := LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := LINE.search(line):
            lines = [*([] if fresh else lines), (found[1], int(found[2]))]
            fresh = False
        elif found := INSTRUCTION.search(line):
            predicate, operation, operands = found.groups()
            operation = operation.partition(".")[0]
            conditional = operation == "BRA" and (predicate or operands.lstrip().startswith(("P", "!P", "UP", "!UP")))
            target = re.search(r"L_x_\d+", operands) if conditional else None
            instructions.append(Instruction(operation, target[0] if target else "", frozenset(lines)))
            fresh = True
    return instructions, labels


def inner_step(instructions: list[Instruction], labels: dict[str, int]) -> list[Instruction]:
    """The loop that looks for the nearest column: the last of the shortest that hold its reduction.

    The last, because `match_kernel` holds two solvers, and the one for fewer targets than queries comes second. A loop
    ends with a conditional branch; what jumps back without one is a detour for warps that have diverged.
    """
    source, first = inspect.getsourcelines(assignment.least_and_first.fn)
    looks = {("assignment.py", line) for line in range(first, first + len(source))}
    reducing = ("REDUX", "CREDUX", "SHFL")
    here = [i for i, one in enumerate(instructions) if one.operation in reducing and one.lines & looks]
    loops = [
        (labels[one.target], i)
        for i, one in enumerate(instructions)
        if one.target and labels.get(one.target, i + 1) <= i
    ]
    searches = [loop for loop in loops if any(loop[0] <= i <= loop[1] for i in here) and in_search(instructions, loop)]
    innermost = [
        loop for loop in searches if not any(loop[0] <= a and b <= loop[1] and (a, b) != loop for a, b in searches)
    ]
    start, end = max(innermost)
    return instructions[start : end + 1]


def in_search(instructions: list[Instruction], loop: tuple[int, int]) -> bool:
    """Whether a loop belongs to the search for a path and not to the greedy start."""
    source, first = inspect.getsourcelines(assignment.greedy_start.fn)
    greedy = {("assignment.py", line) for line in range(first, first + len(source))}
    return not any(one.lines & greedy for one in instructions[loop[0] : loop[1] + 1])


def count(instructions: list[Instruction], names: tuple[str, ...]) -> int:
    return Counter(one.operation in names for one in instructions)[True]

"""PTX text to instructions, labels and registers.

It reads what Triton writes: one entry, no functions, registers declared at the top or in a scope of inline assembly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# Bits of the types of registers, parameters and accesses to memory.
WIDTHS = {"pred": 1, "bf16": 16, "f16x2": 32, "bf16x2": 32, "f32x2": 64}
WIDTHS |= {f"{kind}{bits}": bits for kind in "busf" for bits in (8, 16, 32, 64)}

MEMORY = ("ld", "st", "ldmatrix", "stmatrix", "atom", "red", "ldu")
WRITING = ("st", "stmatrix", "atom", "red")
COLLECTIVE = ("shfl", "redux", "vote", "match", "activemask")

FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
ENTRY = re.compile(r"\.visible \.entry (?P<name>\S+?)\((?P<parameters>.*?)\)(?P<directives>.*?)\{", re.DOTALL)
PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,\n]*?(\w+)\s*,?\n")
THREADS = re.compile(r"\.reqntid\s+(\d+)")
REGISTER = re.compile(r"\.reg\s+\.(\w+)\s+(\S+)$")
REGISTER_RANGE = re.compile(r"(.*)<(\d+)>")
LABEL = re.compile(r"([$\w]+):$")
INSTRUCTION = re.compile(r"(?:@(!?%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)


@dataclass
class Instruction:
    """One instruction of a program.

    Args:
        opcode: With all its modifiers, such as "ld.shared.b32".
        operands: As they are written, those of a vector in braces as one.
        predicate: "%p1", "!%p1", or empty if all threads execute it.
        index: Its place in the program, from 0.
        line: Its line of the PTX, from 1.
        place: File and line of the source, and those that it was inlined at.
    """

    opcode: str
    operands: list[str]
    predicate: str
    index: int
    line: int
    place: str

    @cached_property
    def parts(self) -> list[str]:
        """What the dots of the opcode separate; `::` is written as an underscore."""
        return self.opcode.replace("::", "_").split(".")

    @property
    def base(self) -> str:
        return self.parts[0]

    @cached_property
    def types(self) -> list[str]:
        return [part for part in self.parts[1:] if part in WIDTHS]

    @property
    def type(self) -> str:
        """The last type, which is that of the operands if the result has another."""
        return self.types[-1]

    @property
    def is_shared(self) -> bool:
        """Whether an access to memory is to shared memory; otherwise it is to global memory."""
        return any(part.startswith("shared") for part in self.parts)

    def __str__(self) -> str:
        guard = f"@{self.predicate} " if self.predicate else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}"


class Parameter(NamedTuple):
    """One parameter of a kernel."""

    name: str
    type: str


@dataclass
class Program:
    """One kernel.

    Args:
        name: Of the entry.
        instructions: All of them, in order.
        labels: The index of the instruction behind each label.
        registers: The type of each register.
        parameters: In order.
        threads: Of one CTA.
    """

    name: str
    instructions: list[Instruction]
    labels: dict[str, int]
    registers: dict[str, str]
    parameters: list[Parameter]
    threads: int


def parse(text: str) -> Program:
    """Reads the PTX of one kernel.

    Args:
        text: What Triton compiled.

    Returns:
        The program.

    Raises:
        SyntaxError: A statement is neither an instruction, a label nor a directive.
    """
    entry = ENTRY.search(text)
    if entry is None:
        raise SyntaxError("there is no entry")

    reader = BodyReader({number: path.rpartition("/")[2] for number, path in FILE.findall(text)})
    lines_before = text[: entry.end()].count("\n") + 1
    for number, line in enumerate(text.splitlines()[lines_before:], lines_before + 1):
        # Within it, scopes may end on lines that are indented.
        if line == "}":
            break
        reader.read_line(line, number)

    return Program(
        name=entry["name"],
        instructions=reader.instructions,
        labels=reader.labels,
        registers=reader.registers,
        parameters=[Parameter(name, type) for type, name in PARAMETER.findall(entry["parameters"] + "\n")],
        threads=int(THREADS.findall(entry["directives"])[0]),
    )


class BodyReader:
    """Reads what is between the braces of an entry, line by line.

    Args:
        files: The names of the source files by the numbers that `.loc` gives them.

    Attributes:
        instructions: As in `Program`, and so are the two others.
        labels: See there.
        registers: See there.
    """

    def __init__(self, files: dict[str, str]):
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.registers: dict[str, str] = {}
        self._files = files
        self._place = "?"
        # Scopes of inline assembly may all declare the same name: from what they call a register to what it is here.
        self._scoped: dict[str, str] = {}
        self._scoped_count = 0

    def read_line(self, line: str, number: int) -> None:
        """Reads a line, which is the one of that number, from 1."""
        line = line.split("//")[0].strip()
        if line.startswith(".loc"):
            self._read_location(line)
            return

        # A scope of inline assembly opens and closes on lines that hold statements, too.
        line = re.sub(r"^\{\s*(?=\.reg)", "", line)
        line = re.sub(r"\s*;\s*\}$", ";", line)
        for statement in line.split(";"):
            if statement.strip():
                self._read_statement(statement.strip(), number)

    def _read_location(self, line: str) -> None:
        words = line.replace(",", " ").split()
        # Line 0 is what belongs to no line: the place before goes on.
        if words[2] == "0":
            return
        self._place = f"{self._files.get(words[1], words[1])}:{words[2]}"
        if "inlined_at" in words:
            file, source_line = words[words.index("inlined_at") + 1 :][:2]
            self._place += f" < {self._files.get(file, '?')}:{source_line}"

    def _read_statement(self, statement: str, number: int) -> None:
        if found := REGISTER.match(statement):
            self._declare(found[1], found[2])
        elif found := LABEL.match(statement):
            self.labels[found[1]] = len(self.instructions)
        elif found := INSTRUCTION.match(statement):
            predicate, opcode, operands = found.groups()
            predicate = self._unscoped(predicate or "")
            instruction = Instruction(
                opcode, self._split(operands), predicate, len(self.instructions), number, self._place
            )
            self.instructions.append(instruction)
        elif not statement.startswith((".", "{", "}")):
            raise SyntaxError(f"line {number}: {statement}")

    def _declare(self, type: str, names: str) -> None:
        """Registers of that type: `%r<5>` for %r0 to %r4, or one name, which is that of a scope."""
        if ranged := REGISTER_RANGE.match(names):
            self.registers.update({f"{ranged[1]}{index}": type for index in range(int(ranged[2]))})
            return
        self._scoped_count += 1
        self._scoped[names] = f"%scoped{self._scoped_count}"
        self.registers[self._scoped[names]] = type

    def _split(self, text: str) -> list[str]:
        """Operands, which commas outside of braces and brackets separate."""
        operands = [""]
        depth = 0
        for character in text:
            if character in "{[":
                depth += 1
            elif character in "}]":
                depth -= 1
            if character == "," and depth == 0:
                operands.append("")
            else:
                operands[-1] += character

        operands = [self._unscoped(re.sub(r"\s+", " ", operand).strip()) for operand in operands]
        return [operand for operand in operands if operand]

    def _unscoped(self, text: str) -> str:
        """The same with the registers of scopes as they are called here."""
        for name, register in self._scoped.items():
            text = re.sub(rf"(?<![%\w]){re.escape(name)}(?!\w)", register, text)
        return text

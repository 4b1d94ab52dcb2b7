"""PTX text to instructions, labels and registers.

It reads what Triton writes: one entry, no functions, registers declared at the top or in a scope of inline assembly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

WIDTHS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "u16": 16, "u32": 32, "u64": 64, "s16": 16, "s32": 32,
          "s64": 64, "f16": 16, "f32": 32, "f64": 64}  # fmt: skip
TYPES = re.compile(r"^(pred|[busf](8|16|32|64)|bf16|bf16x2|f16x2|f32x2)$")
MEMORY = ("ld", "st", "ldmatrix", "stmatrix", "atom", "red", "ldu")
COLLECTIVE = ("shfl", "redux", "vote", "match", "activemask")


@dataclass
class Instruction:
    opcode: str
    operands: list[str]
    predicate: str = ""  # "%p1" or "!%p1"
    line: int = 0  # of the PTX, from 1
    place: str = ""  # file:line of the source, innermost first
    parts: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        return self.parts[0]

    def type(self, index: int = -1) -> str:
        return [part for part in self.parts[1:] if TYPES.match(part)][index]

    def __str__(self) -> str:
        return f"{'@' + self.predicate + ' ' if self.predicate else ''}{self.opcode} {', '.join(self.operands)}"


@dataclass
class Program:
    name: str
    instructions: list[Instruction]
    labels: dict[str, int]
    registers: dict[str, str]  # name to type
    params: list[tuple[str, str]]  # name, type
    threads: int
    text: str


def parse(text: str) -> Program:
    files: dict[str, str] = {}
    for number, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M):
        files[number] = path.rpartition("/")[2]
    entry = re.search(r"\.visible \.entry (\S+?)\((.*?)\)(.*?)\{", text, re.S)
    name = entry[1]
    params = [(p[1], p[0]) for p in re.findall(r"\.param\s+\.(\w+)[^,\n]*?(\w+)\s*,?\n", entry[2] + "\n")]
    threads = int(re.search(r"\.reqntid\s+(\d+)", entry[3])[1])
    first = text[: entry.end()].count("\n")
    instructions, labels, registers, places, scopes = [], {}, {}, ["?"], 0
    rename: dict[str, str] = {}
    for number, line in enumerate(text.splitlines()[first:], first + 1):
        line = line.split("//")[0].strip()
        if line == "}" and number > first + 3:
            break
        if line.startswith(".loc"):
            words = line.replace(",", " ").split()
            here = f"{files.get(words[1], words[1])}:{words[2]}"
            if "inlined_at" in words:
                at = words.index("inlined_at")
                here += f" < {files.get(words[at + 1], '?')}:{words[at + 2]}"
            places = [here] if words[2] != "0" else places
            continue
        line = re.sub(r"^\{\s*(?=\.reg)", "", line)  # a scope of inline assembly
        line = re.sub(r"\s*;\s*\}$", ";", line)
        for statement in filter(None, (part.strip() for part in line.split(";"))):
            if found := re.match(r"\.reg\s+\.(\w+)\s+(\S+)$", statement):
                kind, names = found.groups()
                if ranged := re.match(r"(.*)<(\d+)>", names):
                    registers.update({f"{ranged[1]}{i}": kind for i in range(int(ranged[2]))})
                else:
                    scopes += 1
                    rename[names] = f"%scoped{scopes}"
                    registers[rename[names]] = kind
            elif found := re.match(r"([$\w]+):$", statement):
                labels[found[1]] = len(instructions)
            elif found := re.match(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", statement, re.S):
                operands = [rename.get(o, o) for o in split_operands(found[3], rename)]
                parts = found[2].replace("::", "_").split(".")
                instructions.append(Instruction(found[2], operands, found[1] or "", number, places[0], parts))
            elif not statement.startswith((".", "{")):
                raise SyntaxError(f"line {number}: {statement}")
    return Program(name, instructions, labels, registers, params, threads, text)


def split_operands(text: str, rename: dict[str, str]) -> list[str]:
    out, depth = [""], 0
    for c in text:
        depth += (c in "{[") - (c in "}]")
        if c == "," and depth == 0:
            out.append("")
        else:
            out[-1] += c
    out = [re.sub(r"\s+", " ", o).strip() for o in out]
    for old, new in rename.items():
        out = [re.sub(rf"(?<![%\w]){old}(?!\w)", new, o) for o in out]
    return [o for o in out if o]

"""Instructions to Python: one function for every stretch between memory accesses.

Registers are rows of NumPy arrays, one value a thread, held as unsigned bits with signed and floating-point views of
the same memory: %r7 is `r7` (uint32), `r7s` (int32), `r7f` (float32); %rd7 likewise in 64 bits, and as pairs of float32
in `rd7p`; %rs7 in 16 bits, %p7 bool. An instruction becomes a call of a ufunc that writes into its destination, with
`where=mask` if only some threads take part.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import CodeType

from .parser import COLLECTIVE, MEMORY, WIDTHS, Instruction, Program

# What lanes of a warp, or threads of a CTA, do together.
TOGETHER = (*COLLECTIVE, "bar", "barrier")

# Relations of `setp` that are one function of NumPy. Of floating-point numbers, only `neu` is true if one is NaN.
RELATIONS = {
    "eq": "equal",
    "ne": "not_equal",
    "neu": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "lo": "less",
    "ls": "less_equal",
    "hi": "greater",
    "hs": "greater_equal",
}
# A relation that is true if one of the numbers is NaN, as what it is the opposite of.
OPPOSITES = {"ltu": "greater_equal", "leu": "greater", "gtu": "less_equal", "geu": "less"}

SPECIAL_REGISTERS = {
    "%tid.x": "thread_x",
    "%ctaid.x": "cta_x",
    "%ntid.x": "thread_count_x",
    "%nctaid.x": "cta_count_x",
    "%laneid": "lane",
}
PACKED = ("bf16x2", "f16x2")
ARITHMETIC = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide"}
BITWISE = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}
BITS = {"bfe": "extract_field", "bfi": "insert_field", "prmt": "pick_bytes", "popc": "count_ones"}
ROUNDINGS = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
WIDENED = {"f16": "half_to_float", "bf16": "brain_to_float"}
# The atomics that can be emulated. What does not say so is relaxed and of the whole GPU, too.
ADDITION = re.compile(r"(atom|red)\.global(\.gpu)?(\.relaxed)?\.add(\.v[24])?\.(u32|u64|f32|f64)")
NARROWED = {"f16": "float_to_half", "bf16": "float_to_brain", "f16x2": "float_to_half", "bf16x2": "float_to_brain"}


@dataclass
class Segment:
    """Instructions that run without a pause: at most one access to memory or barrier, at the end.

    Args:
        index: Its number.
        instructions: In order.
        next: The number of the segment after it; -1 for the end of the program.
    """

    index: int
    instructions: list[Instruction]
    next: int

    @property
    def together(self) -> bool:
        """Whether it begins with what the lanes of a warp do together."""
        return self.instructions[0].base in TOGETHER


def segments_of(program: Program) -> tuple[list[Segment], dict[str, int]]:
    """The segments, and the number of the one that begins at each label; -1 for the end of the program."""
    count = len(program.instructions)
    starts = {0, *program.labels.values()}
    for instruction in program.instructions:
        accesses_memory = instruction.base in MEMORY and "param" not in instruction.parts
        if accesses_memory or instruction.base in ("bra", "ret", "exit", "bar", "barrier", "brx"):
            starts.add(instruction.index + 1)

    # Lanes that diverged wait for each other at the first collective of a stretch, which therefore begins a segment.
    has_met = False
    for instruction in program.instructions:
        if instruction.index in starts:
            has_met = False
        if not has_met and instruction.base in TOGETHER:
            starts.add(instruction.index)
            has_met = True

    bounds = [*sorted(start for start in starts if start < count), count]
    segments = [
        Segment(index, program.instructions[start:end], index + 1 if end < count else -1)
        for index, (start, end) in enumerate(pairwise(bounds))
    ]
    numbers = {start: index for index, start in enumerate(bounds[:-1])}
    return segments, {label: numbers.get(start, -1) for label, start in program.labels.items()}


class Generator:
    """The Python source of a program.

    Segment 3 is a function all_3() for all threads, and some_3(mask) for those of a mask. It returns the number of the
    segment to go on with, or one of the constants of `arithmetic`.

    Args:
        program: What to translate.

    Attributes:
        segments: Of the program.
        labels: The number of the segment that begins at each label.
        constants: The type and the bits of each constant, by the name that the source gives it.
        source: The functions for all threads.
        code: The same, compiled.
    """

    def __init__(self, program: Program):
        self.program = program
        self.segments, self.labels = segments_of(program)
        self.constants: dict[str, tuple[str, int]] = {}
        self.source = "\n".join(self.function(segment, False) for segment in self.segments)
        self.code = compile(self.source, f"<ptx {program.name}>", "exec")
        self._masked: dict[int, CodeType] = {}

    def function(self, segment: Segment, masked: bool) -> str:
        """The source of one segment.

        Raises:
            NotImplementedError: An instruction is none that can be emulated.
        """
        lines = [f"def some_{segment.index}(mask):" if masked else f"def all_{segment.index}():"]
        for instruction in segment.instructions:
            try:
                lines += self._statements(instruction, masked, segment)
            except Exception as error:
                raise NotImplementedError(f"line {instruction.line}: {instruction}: {error!r}") from error
        if not lines[-1].startswith("return"):
            lines.append(f"return {segment.next}")
        return "\n    ".join(lines)

    def masked_code(self, index: int) -> CodeType:
        """The function some_<index>, compiled: only for threads that diverged, so that most segments never need it."""
        if index not in self._masked:
            before = len(self.constants)
            source = self.function(self.segments[index], True)
            assert len(self.constants) == before
            self._masked[index] = compile(source, f"<ptx {self.program.name} masked>", "exec")
        return self._masked[index]

    # Operands

    def _value(self, operand: str, type: str) -> str:
        """An operand as an expression of the NumPy type that `type` reads; a register of that type can be written."""
        if operand in SPECIAL_REGISTERS:
            return SPECIAL_REGISTERS[operand]
        if operand.startswith("-%"):
            raise NotImplementedError(operand)
        if not operand.startswith("%"):
            return self._constant(operand, type)

        register = operand[1:]
        if type == "pred":
            return register
        if type == "f32x2":
            return f"{register}p"
        width = WIDTHS[type]
        is_signed = type.startswith("s")
        if width < WIDTHS[self.program.registers[operand]]:
            # The low bits of a wider register.
            low = f"{register}.astype(uint{width})"
            return f"{low}.view(int{width})" if is_signed else low
        if is_signed:
            return f"{register}s"
        if type.startswith("f") and type not in PACKED:
            return f"{register}f"
        return register

    def _constant(self, text: str, type: str) -> str:
        """The name of a constant, an array as registers are."""
        if type == "pred":
            return "true" if int(text, 0) else "false"
        width = WIDTHS[type]
        if text.startswith("0f"):
            bits = int(text[2:], 16)
            if width == 64:
                (number,) = struct.unpack("<f", struct.pack("<I", bits))
                (bits,) = struct.unpack("<Q", struct.pack("<d", number))
        elif text.startswith("0d"):
            bits = int(text[2:], 16)
        elif re.match(r"^-?(0x[0-9a-fA-F]+|\d+)U?$", text):
            bits = int(text.rstrip("U"), 0) & (2**width - 1)
        elif re.match(r"^[A-Za-z_$][\w$]*$", text):
            # The only name that Triton gives an address is that of all shared memory.
            return f"shared_base_{width}"
        else:
            raise NotImplementedError(f"operand {text}")

        kind = numpy_type(type)
        name = f"{kind}_0x{bits:x}"
        self.constants[name] = (kind, bits)
        return name

    def _address(self, operand: str) -> tuple[str, int]:
        """The register and the offset, in bytes, of an operand in brackets."""
        found = re.match(r"^\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$", operand)
        if found is None:
            raise NotImplementedError(operand)
        base, offset = found.groups()
        return base[1:] if base.startswith("%") else "shared_base_32", int(offset or "0", 0)

    # Statements

    def _statements(self, instruction: Instruction, masked: bool, segment: Segment) -> list[str]:
        """The lines of an instruction, whose own predicate narrows the mask."""
        if instruction.base == "bra":
            return self._branch(instruction, masked, segment)
        if instruction.predicate:
            condition = condition_of(instruction)
            narrowed = f"({condition}) & mask" if masked else condition
            return [f"chosen = {narrowed}", *self._unguarded(instruction, "chosen")]
        if instruction.base in ("ret", "exit"):
            return ["return EXIT"]
        return self._unguarded(instruction, "mask" if masked else "")

    def _branch(self, instruction: Instruction, masked: bool, segment: Segment) -> list[str]:
        target = self.labels[instruction.operands[0]]
        if not instruction.predicate:
            return [f"return {target}"]
        condition = condition_of(instruction)
        if masked:
            return [f"return branch(({condition}) & mask, mask, {target}, {segment.next})"]
        return [
            f"taken = count_nonzero({condition})",
            f"if taken == thread_count: return {target}",
            f"if taken == 0: return {segment.next}",
            f"return branch({condition}, true, {target}, {segment.next})",
        ]

    def _unguarded(self, instruction: Instruction, mask: str) -> list[str]:
        """The lines of an instruction for the threads of a mask, all of them if it is empty."""
        if instruction.base not in TRANSLATIONS:
            raise NotImplementedError(instruction.opcode)
        return TRANSLATIONS[instruction.base](self, instruction, mask)

    # Memory and what lanes do together: calls of the machine, which take the mask and the instruction's index

    def _barrier(self, instruction: Instruction, mask: str) -> list[str]:
        if instruction.predicate:
            raise NotImplementedError(instruction.opcode)
        if "warp" in instruction.parts:
            return [f"warp_sync({mask or None}, {instruction.index})"]
        return [f"barrier({mask or None}, {instruction.index})", "return BARRIER"]

    def _load(self, instruction: Instruction, mask: str) -> list[str]:
        target, source = instruction.operands
        if "param" in instruction.parts:
            names = [parameter.name for parameter in self.program.parameters]
            type = "u64" if target.startswith("%rd") else instruction.type
            return copied(f"parameter_{names.index(source.strip('[]'))}", self._value(target, type), mask)

        is_signed = instruction.type.startswith("s")
        names = ["None" if name == "_" else name[1:] + ("s" if is_signed else "") for name in members(target)]
        return [self._access("load", instruction, source, names, [str(is_signed)], mask)]

    def _store(self, instruction: Instruction, mask: str) -> list[str]:
        place, source = instruction.operands
        type = f"b{WIDTHS[instruction.type]}"
        values = [self._value(name, type) for name in members(source)]
        return [self._access("store", instruction, place, values, [], mask)]

    def _atomic(self, instruction: Instruction, mask: str) -> list[str]:
        """`atom`, or `red`, which has no result."""
        if not ADDITION.fullmatch(instruction.opcode):
            raise NotImplementedError(instruction.opcode)
        *results, place, source = instruction.operands
        type = instruction.type
        values = [self._value(name, type) for name in members(source)]
        names = members(results[0]) if results else ["_"] * len(values)
        targets = ["None" if name == "_" else self._value(name, type) for name in names]
        return [self._access("add", instruction, place, targets, [f"({', '.join(values)},)"], mask)]

    def _access(
        self, method: str, instruction: Instruction, place: str, values: list[str], options: list[str], mask: str
    ) -> str:
        """A call of `memory.View`."""
        space = "shared" if instruction.is_shared else "global_memory"
        address, offset = self._address(place)
        size = WIDTHS[instruction.type] // 8
        vector = f"({', '.join(values)},)"
        arguments = [address, str(offset), vector, str(size), *options, mask or "None", str(instruction.index)]
        return f"{space}.{method}({', '.join(arguments)})"

    def _matrix(self, instruction: Instruction, mask: str) -> list[str]:
        loads = instruction.base == "ldmatrix"
        place, registers = reversed(instruction.operands) if loads else instruction.operands
        address, offset = self._address(place)
        names = ", ".join(name[1:] for name in members(registers))
        transposed = "trans" in instruction.parts
        function = "load_matrices" if loads else "store_matrices"
        return [f"{function}({address}, {offset}, ({names},), {transposed}, {mask or None}, {instruction.index})"]

    def _shuffle(self, instruction: Instruction, mask: str) -> list[str]:
        results, source, lane, clamp, *_ = instruction.operands
        target, _, in_range = results.partition("|")
        is_fixed = not (lane.startswith("%") or clamp.startswith("%"))
        arguments = [
            self._value(source, "b32"),
            repr(instruction.parts[2]),
            self._value(lane, "b32"),
            self._value(clamp, "b32"),
            mask or "None",
            str(instruction.index),
            str(is_fixed),
        ]
        lines = [f"shuffled, in_range = shuffle({', '.join(arguments)})", *copied("shuffled", target[1:], mask)]
        if in_range:
            lines += copied("in_range", in_range[1:], mask)
        return lines

    def _reduce(self, instruction: Instruction, mask: str) -> list[str]:
        target, source, *_ = instruction.operands
        type = instruction.type
        arguments = [
            self._value(source, type),
            repr(instruction.parts[2]),
            str("NaN" in instruction.parts),
            str("abs" in instruction.parts),
            mask or "None",
            str(instruction.index),
        ]
        return copied(f"redux({', '.join(arguments)})", self._value(target, type), mask)

    def _vote(self, instruction: Instruction, mask: str) -> list[str]:
        target, source, *_ = instruction.operands
        asked = f"~{source[2:]}" if source.startswith("!") else source[1:]
        mode = instruction.parts[2]
        return copied(f"vote({asked}, {mode!r}, {mask or None}, {instruction.index})", target[1:], mask)

    # Moves and conversions

    def _move(self, instruction: Instruction, mask: str) -> list[str]:
        target, source = instruction.operands
        if source.startswith("{"):
            return self._pack(instruction, mask)
        if target.startswith("{"):
            return self._unpack(instruction, mask)
        type = instruction.type if instruction.type == "pred" else f"b{WIDTHS[instruction.type]}"
        return copied(self._value(source, type), self._value(target, type), mask)

    def _pack(self, instruction: Instruction, mask: str) -> list[str]:
        target, source = instruction.operands
        width = WIDTHS[instruction.type]
        low, high = (self._value(name, f"b{width // 2}") for name in members(source))
        return copied(f"{low} | ({high}.astype(uint{width}) << uint{width}({width // 2}))", target[1:], mask)

    def _unpack(self, instruction: Instruction, mask: str) -> list[str]:
        target, source = instruction.operands
        width = WIDTHS[instruction.type]
        low_name, high_name = members(target)
        low = self._value(source, f"b{width}")
        high = f"({low} >> uint{width}({width // 2}))"

        lines = []
        for name, half in ((low_name, low), (high_name, high)):
            if name != "_":
                lines += copied(f"{half}.astype(uint{width // 2})", name[1:], mask)
        return lines

    def _select(self, instruction: Instruction, mask: str) -> list[str]:
        target, if_true, if_false, condition = instruction.operands
        type = f"b{WIDTHS[instruction.type]}"
        values = f"{self._value(if_true, type)}, {self._value(if_false, type)}"
        return copied(f"where({self._value(condition, 'pred')}, {values})", target[1:], mask)

    def _convert(self, instruction: Instruction, mask: str) -> list[str]:
        target_type, source_type = instruction.types
        target = instruction.operands[0][1:]
        if target_type in PACKED:
            # The first operand becomes the upper half.
            halves = [
                f"{NARROWED[target_type]}({self._value(operand, 'f32')}).astype(uint32)"
                for operand in instruction.operands[1:3]
            ]
            return copied(f"({halves[1]} | ({halves[0]} << uint32(16)))", target, mask)

        operand = instruction.operands[1]
        if source_type in WIDENED:
            source = f"{WIDENED[source_type]}({operand[1:]})"
        else:
            source = self._value(operand, source_type)
        if target_type in NARROWED:
            return copied(f"{NARROWED[target_type]}({source})", target, mask)
        if target_type.startswith("f"):
            return copied(self._to_float(instruction, source), f"{target}f", mask)

        to = f"{target}s" if target_type.startswith("s") else target
        from_float = source_type.startswith(("f", "bf"))
        integer = self._float_to_integer(instruction, source) if from_float else self._to_integer(instruction, source)
        return copied(integer, to, mask)

    def _to_float(self, instruction: Instruction, source: str) -> str:
        """A conversion to float32 or float64 as an expression."""
        for part in instruction.parts:
            if part in ROUNDINGS:
                return f"{ROUNDINGS[part]}({source})"
        if any(part in instruction.parts for part in ("rz", "rm", "rp")):
            raise NotImplementedError(instruction.opcode)
        if "sat" in instruction.parts:
            source = f"clip({source}, 0, 1)"
        return f"{source}.astype({numpy_type(instruction.types[0])})"

    def _float_to_integer(self, instruction: Instruction, source: str) -> str:
        rounding = next(part for part in instruction.parts if part in ROUNDINGS)
        return f"float_to_integer({source}, {numpy_type(instruction.types[0])}, {rounding!r})"

    def _to_integer(self, instruction: Instruction, source: str) -> str:
        """From another integer; a wider register is filled with zeros or with the sign."""
        if "sat" in instruction.parts:
            raise NotImplementedError(instruction.opcode)
        type = numpy_type(instruction.types[0])
        width = WIDTHS[instruction.types[0]]
        register_width = WIDTHS[self.program.registers[instruction.operands[0]]]
        converted = f"{source}.astype({type})"
        if width < register_width:
            converted += f".astype({type.removesuffix(str(width))}{register_width})"
        return converted

    # Comparisons

    def _compare(self, instruction: Instruction, mask: str) -> list[str]:
        target, left_operand, right_operand, *others = instruction.operands
        type = instruction.type
        if type in PACKED:
            return self._compare_halves(instruction, mask)
        if "|" in target:
            raise NotImplementedError("two results")
        is_float = type.startswith(("f", "bf"))
        if type in WIDENED:
            left, right = (f"{WIDENED[type]}({operand[1:]})" for operand in (left_operand, right_operand))
        else:
            kind = type if is_float or type.startswith("s") else f"u{WIDTHS[type]}"
            left, right = (self._value(operand, kind) for operand in (left_operand, right_operand))

        relation = instruction.parts[1]
        # NumPy's `not_equal` is true of NaN, PTX's `ne` is not.
        is_one_function = relation in RELATIONS and not (is_float and relation == "ne")
        if is_one_function and not others:
            return called(RELATIONS[relation], [left, right], target[1:], mask)
        if is_one_function:
            expression = f"{RELATIONS[relation]}({left}, {right})"
        else:
            expression = self._float_relation(relation, left, right)
        for combination in BITWISE:
            if combination in instruction.parts[2:]:
                (operand,) = others
                other = f"~{operand[2:]}" if operand.startswith("!") else operand[1:]
                expression = f"{BITWISE[combination]}({expression}, {other})"
        return copied(expression, target[1:], mask)

    def _compare_halves(self, instruction: Instruction, mask: str) -> list[str]:
        """Two comparisons: of lower halves of the operands into the first target, of upper ones into the second."""
        targets, *operands = instruction.operands
        relation = instruction.parts[1]
        lines = []
        for target, half in zip(targets.split("|"), ("lower_half", "upper_half"), strict=True):
            widened = WIDENED[instruction.type.removesuffix("x2")]
            left, right = (f"{widened}({half}({operand[1:]}))" for operand in operands)
            if relation in RELATIONS and relation != "ne":
                expression = f"{RELATIONS[relation]}({left}, {right})"
            else:
                expression = self._float_relation(relation, left, right)
            lines += copied(expression, target[1:], mask)
        return lines

    def _float_relation(self, relation: str, left: str, right: str) -> str:
        """A relation that is no single function of NumPy."""
        if relation in OPPOSITES:
            return f"~{OPPOSITES[relation]}({left}, {right})"
        ordered_and_different = f"(less({left}, {right}) | greater({left}, {right}))"
        any_nan = f"(isnan({left}) | isnan({right}))"
        return {
            "ne": ordered_and_different,
            "equ": f"~{ordered_and_different}",
            "nan": any_nan,
            "num": f"~{any_nan}",
        }[relation]

    # Arithmetic

    def _arithmetic(self, instruction: Instruction, mask: str) -> list[str]:
        """Sums, differences, products and quotients; `mad` and `fma` are products with a sum."""
        type = instruction.type
        if type == "f32x2":
            return self._pairs(instruction, mask)
        if type in WIDENED and instruction.types[0] == "f32":
            return self._mixed(instruction, mask)
        if type == "bf16":
            raise NotImplementedError(instruction.opcode)
        if type == "f16":
            function = ARITHMETIC[instruction.base]
            operands = ", ".join(operand[1:] for operand in instruction.operands[1:])
            return copied(f"on_halves({function}, {operands})", instruction.operands[0][1:], mask)
        if type.startswith("f"):
            return self._float_arithmetic(instruction, mask)
        return self._integer_arithmetic(instruction, mask)

    def _pairs(self, instruction: Instruction, mask: str) -> list[str]:
        """Two float32 in each register of 64 bits."""
        function = "fma32" if instruction.base == "fma" else ARITHMETIC[instruction.base]
        operands = ", ".join(self._value(operand, "f32x2") for operand in instruction.operands[1:])
        return copied(f"{function}({operands}).view(uint64)", instruction.operands[0][1:], mask)

    def _mixed(self, instruction: Instruction, mask: str) -> list[str]:
        """Operands of 16 bits with a float32 as the last one, to which the result is added."""
        function = "fma32" if instruction.base == "fma" else ARITHMETIC[instruction.base]
        target, *narrow, wide = instruction.operands
        operands = [f"{WIDENED[instruction.type]}({operand[1:]})" for operand in narrow]
        operands.append(self._value(wide, "f32"))
        return copied(f"{function}({', '.join(operands)})", self._value(target, "f32"), mask)

    def _float_arithmetic(self, instruction: Instruction, mask: str) -> list[str]:
        if any(part in instruction.parts for part in ("rz", "rm", "rp", "sat")):
            raise NotImplementedError("rounding")
        target, *operands = (self._value(operand, instruction.type) for operand in instruction.operands)
        flush = "ftz" in instruction.parts
        if instruction.base == "fma":
            if instruction.type == "f32":
                return copied(f"fma32({', '.join(operands)}, {flush})", target, mask)
            return copied(f"fma64({', '.join(operands)})", target, mask)
        function = ARITHMETIC[instruction.base]
        if flush:
            return copied(f"flushed({function}({', '.join(operands)}))", target, mask)
        return called(function, operands, target, mask)

    def _integer_arithmetic(self, instruction: Instruction, mask: str) -> list[str]:
        type = instruction.type
        if "sat" in instruction.parts or instruction.base == "fma":
            raise NotImplementedError(instruction.opcode)
        target, *operands = (self._value(operand, type) for operand in instruction.operands)
        if instruction.base == "div":
            return copied(f"integer_quotient({', '.join(operands)})", target, mask)
        if "wide" in instruction.parts:
            wide = f"{type[0]}{2 * WIDTHS[type]}"
            product = f"multiply({operands[0]}, {operands[1]}, dtype={numpy_type(wide)})"
            if instruction.base == "mad":
                product = f"add({product}, {self._value(instruction.operands[3], wide)})"
            return copied(product, self._value(instruction.operands[0], wide), mask)
        if "hi" in instruction.parts:
            product = f"upper_product({operands[0]}, {operands[1]})"
            return copied(f"{product} + {operands[2]}" if instruction.base == "mad" else product, target, mask)

        # The low bits of signed and of unsigned results are the same.
        target, *operands = (self._value(operand, f"u{WIDTHS[type]}") for operand in instruction.operands)
        if instruction.base == "mad":
            return called("add", [f"multiply({operands[0]}, {operands[1]})", operands[2]], target, mask)
        return called(ARITHMETIC[instruction.base], operands, target, mask)

    def _remainder(self, instruction: Instruction, mask: str) -> list[str]:
        target, *operands = (self._value(operand, instruction.type) for operand in instruction.operands)
        return copied(f"integer_remainder({', '.join(operands)})", target, mask)

    def _extreme(self, instruction: Instruction, mask: str) -> list[str]:
        """`min` and `max` of two or three; those of floating-point numbers ignore NaN unless told otherwise."""
        if instruction.type == "bf16":
            raise NotImplementedError(instruction.opcode)
        target, first, *rest = (self._value(operand, instruction.type) for operand in instruction.operands)
        ignores_nan = instruction.type.startswith("f") and "NaN" not in instruction.parts
        function = f"f{instruction.base}" if ignores_nan else f"{instruction.base}imum"
        lines = called(function, [first, rest[0]], target, mask)
        if len(rest) == 2:
            lines += called(function, [target, rest[1]], target, mask)
        return lines

    def _approximate(self, instruction: Instruction, mask: str) -> list[str]:
        type = instruction.type
        if type == "f16":
            raise NotImplementedError(instruction.opcode)
        target, source = (self._value(operand, type) for operand in instruction.operands)
        return copied(f"approximate({instruction.base!r}, {source}, {'rn' in instruction.parts})", target, mask)

    def _sign(self, instruction: Instruction, mask: str) -> list[str]:
        """`abs` and `neg`."""
        type = instruction.type
        if type in WIDENED:
            raise NotImplementedError(instruction.opcode)
        signed = type if type.startswith("f") else f"s{WIDTHS[type]}"
        target, source = (self._value(operand, signed) for operand in instruction.operands)
        result = f"{'absolute' if instruction.base == 'abs' else 'negative'}({source})"
        return copied(f"flushed({result})" if "ftz" in instruction.parts else result, target, mask)

    def _copy_sign(self, instruction: Instruction, mask: str) -> list[str]:
        target, sign, magnitude = (self._value(operand, instruction.type) for operand in instruction.operands)
        return copied(f"copysign({magnitude}, {sign})", target, mask)

    # Bits

    def _bitwise(self, instruction: Instruction, mask: str) -> list[str]:
        target, *operands = (self._value(operand, instruction.type) for operand in instruction.operands)
        return called(BITWISE[instruction.base], operands, target, mask)

    def _invert(self, instruction: Instruction, mask: str) -> list[str]:
        target, source = (self._value(operand, instruction.type) for operand in instruction.operands)
        return called("invert", [source], target, mask)

    def _shift(self, instruction: Instruction, mask: str) -> list[str]:
        width = WIDTHS[instruction.type]
        keeps_sign = instruction.base == "shr" and instruction.type.startswith("s")
        type = f"{'s' if keeps_sign else 'u'}{width}"
        target, source = (self._value(operand, type) for operand in instruction.operands[:2])
        by = instruction.operands[2]
        direction = "left" if instruction.base == "shl" else "right"
        if by.startswith("%"):
            return copied(f"shift_{direction}({source}, {self._value(by, 'u32')}, {width})", target, mask)

        # A constant is known to be less than the width, which is all that NumPy defines, or not to be.
        if int(by, 0) < width:
            return called(f"{direction}_shift", [source, self._constant(by, type)], target, mask)
        if keeps_sign:
            return called("right_shift", [source, self._constant(str(width - 1), type)], target, mask)
        return copied(self._constant("0", type), target, mask)

    def _bits(self, instruction: Instruction, mask: str) -> list[str]:
        type = instruction.type
        target, *operands = (self._value(operand, type) for operand in instruction.operands)
        if not type.startswith("s"):
            # The result of `popc.b64` has 32 bits.
            target = instruction.operands[0][1:]
        return copied(f"{BITS[instruction.base]}({', '.join(operands)})", target, mask)


def condition_of(instruction: Instruction) -> str:
    """The predicate of an instruction as an expression."""
    negated, _, register = instruction.predicate.rpartition("%")
    return f"~{register}" if negated else register


def members(vector: str) -> list[str]:
    """The operands in braces, or the one that is not in braces."""
    return [name.strip() for name in vector.strip("{} ").split(",")]


def numpy_type(type: str) -> str:
    """What NumPy calls a type; what it does not know are unsigned bits."""
    if type in PACKED:
        return f"uint{WIDTHS[type]}"
    return {"s": "int", "f": "float"}.get(type[0], "uint") + str(WIDTHS[type])


def called(function: str, operands: list[str], target: str, mask: str) -> list[str]:
    """A ufunc that writes into a register, for the threads of a mask, all of them if it is empty."""
    where = f", where={mask}" if mask else ""
    return [f"{function}({', '.join(operands)}, out={target}{where})"]


def copied(expression: str, target: str, mask: str) -> list[str]:
    """As `called`, for any expression."""
    where = f", where={mask}" if mask else ""
    return [f"copyto({target}, {expression}{where})"]


TRANSLATIONS: dict[str, Callable[[Generator, Instruction, str], list[str]]] = {
    "bar": Generator._barrier,
    "barrier": Generator._barrier,
    "ld": Generator._load,
    "st": Generator._store,
    **dict.fromkeys(("atom", "red"), Generator._atomic),
    "ldmatrix": Generator._matrix,
    "stmatrix": Generator._matrix,
    "shfl": Generator._shuffle,
    "redux": Generator._reduce,
    "vote": Generator._vote,
    "mov": Generator._move,
    "cvta": Generator._move,
    "selp": Generator._select,
    "cvt": Generator._convert,
    "setp": Generator._compare,
    **dict.fromkeys(("add", "sub", "mul", "mad", "div", "fma"), Generator._arithmetic),
    "rem": Generator._remainder,
    **dict.fromkeys(("min", "max"), Generator._extreme),
    **dict.fromkeys(("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"), Generator._approximate),
    **dict.fromkeys(("abs", "neg"), Generator._sign),
    "copysign": Generator._copy_sign,
    **dict.fromkeys(BITWISE, Generator._bitwise),
    "not": Generator._invert,
    **dict.fromkeys(("shl", "shr"), Generator._shift),
    **dict.fromkeys(BITS, Generator._bits),
}

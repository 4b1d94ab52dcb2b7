"""Instructions to Python: one function for every stretch between memory accesses.

Registers are rows of NumPy arrays, one value a thread, held as unsigned bits with signed and floating-point views of
the same memory: %r7 is `r7` (uint32), `r7s` (int32), `r7f` (float32); %rd7 likewise in 64 bits, %rs7 in 16, %p7 bool.
An instruction becomes a call of a ufunc that writes into its destination, `where=m` if only some threads take part.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from itertools import pairwise

from .parser import COLLECTIVE, MEMORY, TYPES, WIDTHS, Instruction, Program

COMPARE = {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
           "lo": "less", "ls": "less_equal", "hi": "greater", "hs": "greater_equal"}  # fmt: skip
UNORDERED = {"equ": "not_equal_o", "neu": "not_equal", "ltu": "greater_equal", "leu": "greater", "gtu": "less_equal",
             "geu": "less"}  # fmt: skip


@dataclass
class Segment:
    """Instructions that run without a pause: at most one access to memory or barrier, at the end."""

    index: int
    instructions: list[Instruction]
    start: int
    next: int = -1  # the segment after it; -1 for the end

    @property
    def together(self) -> bool:
        """Whether it begins with what the lanes of a warp do together."""
        return bool(self.instructions) and self.instructions[0].base in (*COLLECTIVE, "bar", "barrier")


def segments_of(program: Program) -> tuple[list[Segment], dict[str, int]]:
    starts = set(program.labels.values()) | {0}
    for i, ins in enumerate(program.instructions):
        if ins.base in ("bra", "ret", "exit", "bar", "barrier", "brx") or (
            ins.base in MEMORY and "param" not in ins.parts
        ):
            starts.add(i + 1)
    met = False  # lanes that diverged wait for each other at the first collective of a stretch, which begins a segment
    for i, ins in enumerate(program.instructions):
        met = met and i not in starts
        if not met and ins.base in (*COLLECTIVE, "bar", "barrier"):
            starts.add(i)
            met = True
    bounds = [*sorted(s for s in starts if s < len(program.instructions)), len(program.instructions)]
    segments = [Segment(k, program.instructions[a:b], a) for k, (a, b) in enumerate(pairwise(bounds))]
    at = {segment.start: segment.index for segment in segments}
    for segment in segments:
        segment.next = segment.index + 1 if segment.index + 1 < len(segments) else -1
    return segments, {label: at.get(start, -1) for label, start in program.labels.items()}


class Generator:
    """The Python source of a program: all_<k>() for all threads of segment k, some_<k>(m) for those of the mask m."""

    def __init__(self, program: Program):
        self.program = program
        self.segments, self.labels = segments_of(program)
        self.together = [segment.together for segment in self.segments]
        self.constants: dict[str, tuple[str, int]] = {}  # name: dtype, bits
        self.source = "\n".join(self.function(segment, False) for segment in self.segments)
        self.code = compile(self.source, f"<ptx {program.name}>", "exec")
        self.masked: dict[int, object] = {}

    def function(self, segment: Segment, masked: bool) -> str:
        lines = [f"def {'some' if masked else 'all'}_{segment.index}({'m' if masked else ''}):"]
        for ins in segment.instructions:
            try:
                lines += self.emit(ins, masked, segment)
            except Exception as error:
                raise NotImplementedError(f"line {ins.line}: {ins}: {error!r}") from error
        if not lines[-1].startswith("return"):
            lines.append(f"return {segment.next}")
        return "\n    ".join(lines)

    def masked_code(self, index: int) -> object:
        """Of some_<index>, which most segments never need: for threads that diverged."""
        if index not in self.masked:
            before = len(self.constants)
            source = self.function(self.segments[index], True)
            assert len(self.constants) == before
            self.masked[index] = compile(source, f"<ptx {self.program.name} masked>", "exec")
        return self.masked[index]

    # operands -------------------------------------------------------------------------------------------------------

    def value(self, operand: str, type: str) -> str:
        """An operand as an expression of the NumPy type that `type` reads."""
        if operand.startswith("-%"):
            raise NotImplementedError(operand)
        suffix = {"s": "s", "f": "f"}.get(type[0], "") if type not in ("bf16", "bf16x2", "f16x2") else ""
        if operand.startswith("%") and operand not in ("%tid.x", "%ctaid.x", "%nctaid.x", "%ntid.x", "%laneid"):
            kind = WIDTHS[self.program.registers[operand]]
            if type in ("pred", "f32x2"):
                return operand[1:] + ("p" if type == "f32x2" else "")
            width = int(re.sub(r"\D", "", type.split("x")[0])) if type not in ("bf16x2", "f16x2") else 32
            if width < kind:  # the low bits
                low = f"{operand[1:]}.astype(u{width // 8})"
                return f"{low}.view(i{width // 8})" if suffix == "s" else low
            return operand[1:] + suffix
        if operand.startswith("%"):
            return {"%tid.x": "tid_x", "%ctaid.x": "ctaid_x", "%nctaid.x": "nctaid_x", "%ntid.x": "ntid_x",
                    "%laneid": "laneid"}[operand]  # fmt: skip
        return self.constant(operand, type)

    def constant(self, text: str, type: str) -> str:
        if type == "pred":
            return "true" if int(text, 0) else "false"
        width = 64 if type.endswith("64") else 16 if type.endswith("16") else 8 if type.endswith("8") else 32
        if text.startswith("0f"):
            bits = int(text[2:], 16)
            if width == 64:
                bits = struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", bits))[0]))[0]
        elif text.startswith("0d"):
            bits = int(text[2:], 16)
        elif text.startswith("0x") and width == 16 and type.startswith(("bf", "f")):
            bits = int(text, 16)
        elif re.match(r"^-?(0x[0-9a-fA-F]+|\d+)U?$", text):
            bits = int(text.rstrip("U"), 0) & (2**width - 1)
        elif re.match(r"^[A-Za-z_$][\w$]*$", text):
            return "shared_base" if width == 32 else "shared_base64"
        else:
            raise NotImplementedError(f"operand {text}")
        kind = {"s": "i", "f": "f"}.get(type[0], "u") + str(width // 8)
        name = f"k{kind}_{bits:x}"
        self.constants[name] = (kind, bits)
        return name

    def target(self, operand: str, type: str) -> str:
        """Where a result of `type` goes, as an array that may be written."""
        return self.value(operand, type)

    def address(self, operand: str) -> tuple[str, int]:
        found = re.match(r"^\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]$", operand)
        base, offset = found[1], int(found[2] or "0", 0)
        return (base[1:] if base.startswith("%") else "shared_base"), offset

    # instructions ---------------------------------------------------------------------------------------------------

    def emit(self, ins: Instruction, masked: bool, segment: Segment) -> list[str]:
        base = ins.base
        if ins.predicate:
            p = ins.predicate.lstrip("!")[1:]
            condition = f"~{p}" if ins.predicate.startswith("!") else p
            if base != "bra":
                mask = f"({condition}) & m" if masked else condition
                return [f"q = {mask}", *self.write(ins, "q")]
            target = self.labels[ins.operands[0]]
            if masked:
                return [f"return branch(({condition}) & m, m, {target}, {segment.next})"]
            flip = ins.predicate.startswith("!")
            yes, no = (segment.next, target) if flip else (target, segment.next)
            return [f"n = count({p})", f"if n == T: return {yes}", f"if n == 0: return {no}",
                    f"return branch({condition}, true, {target}, {segment.next})"]  # fmt: skip
        if base == "bra":
            return [f"return {self.labels[ins.operands[0]]}"]
        if base in ("ret", "exit"):
            return ["return EXIT"]
        return self.write(ins, "m" if masked else "")

    def write(self, ins: Instruction, m: str) -> list[str]:
        """The lines of an instruction for the threads of mask `m`, all where it is empty."""
        base, parts, ops = ins.base, ins.parts, ins.operands
        mask = m or "None"
        site = id_of(self.program, ins)
        where = f", where={m}" if m else ""

        def ufunc(name: str, *arguments: str, to: str, extra: str = "") -> list[str]:
            return [f"{name}({', '.join(arguments)}, out={to}{extra}{where})"]

        def assign(to: str, expression: str) -> list[str]:
            return [f"copyto({to}, {expression}{where})"]

        if base in ("bar", "barrier"):
            if "warp" in parts:
                return [f"warp_sync({mask}, {site})"]
            return [f"barrier({mask}, {site})", "return BARRIER"]
        if base == "ld" and "param" in parts:
            index = [name for name, _ in self.program.params].index(ops[1].strip("[]"))
            return assign(self.value(ops[0], "u64" if ops[0].startswith("%rd") else ins.type()), f"P{index}")
        if base in ("ld", "st"):
            space = "shared" if any(p.startswith("shared") for p in parts) else "glob"
            place, values = (ops[1], ops[0]) if base == "ld" else (ops[0], ops[1])
            address, offset = self.address(place)
            type = ins.type()
            width = int(re.sub(r"\D", "", type))
            names = [o.strip() for o in values.strip("{} ").split(",")]
            if base == "ld":
                signed = type[0] == "s"
                targets = ", ".join("None" if o == "_" else o[1:] + ("s" if signed else "") for o in names)
                return [f"{space}.load({address}, {offset}, ({targets},), {width // 8}, {signed}, {mask}, {site})"]
            sources = ", ".join(self.value(o, f"b{width}") for o in names)
            return [f"{space}.store({address}, {offset}, ({sources},), {width // 8}, {mask}, {site})"]
        if base in ("ldmatrix", "stmatrix"):
            place, values = (ops[1], ops[0]) if base == "ldmatrix" else (ops[0], ops[1])
            address, offset = self.address(place)
            names = ", ".join(o.strip()[1:] for o in values.strip("{} ").split(","))
            call = f"matrix_{base[:2]}({address}, {offset}, ({names},), {'trans' in parts}, {mask}, {site})"
            return [call]
        if base == "shfl":
            to, _, flag = ops[0].partition("|")
            mode = parts[2]
            lane, clamp = self.value(ops[2], "b32"), self.value(ops[3], "b32")
            fixed = not (ops[2].startswith("%") or ops[3].startswith("%"))
            call = f"shuffle({self.value(ops[1], 'b32')}, {mode!r}, {lane}, {clamp}, {mask}, {site}, {fixed})"
            if flag:
                return [f"x, y = {call}", *assign(to[1:], "x"), *assign(flag[1:], "y")]
            return assign(to[1:], f"{call}[0]")
        if base == "redux":
            type = ins.type()
            call = (
                f"redux({self.value(ops[1], type)}, {parts[2]!r}, {'NaN' in parts}, {'abs' in parts}, {mask}, {site})"
            )
            return assign(self.target(ops[0], type), call)
        if base == "vote":
            asked = self.value(ops[1].lstrip("!"), "pred")
            call = f"vote({asked}, {ops[1].startswith('!')}, {parts[2]!r}, {mask}, {site})"
            return assign(ops[0][1:], call)
        if base == "mov" and ops[1].startswith("{"):  # pack
            low, high = (o.strip() for o in ops[1].strip("{}").split(","))
            half = int(parts[1][1:]) // 2
            a, b = self.value(low, f"b{half}"), self.value(high, f"b{half}")
            return assign(ops[0][1:], f"{a} | ({b}.astype(u{half // 4}) << ku{half // 4}_{half:x}_)")
        if base == "mov" and ops[0].startswith("{"):  # unpack
            half = int(parts[1][1:]) // 2
            lines = []
            for k, name in enumerate(o.strip() for o in ops[0].strip("{}").split(",")):
                if name != "_":
                    source = self.value(ops[1], f"b{2 * half}")
                    shifted = f"({source} >> ku{half // 4}_{half:x}_)" if k else source
                    lines += assign(name[1:], f"{shifted}.astype(u{half // 8})")
            return lines
        if base in ("mov", "cvta"):
            type = ins.type()
            return assign(self.target(ops[0], "b" + type[1:] if type != "pred" else type),
                          self.value(ops[1], "b" + type[1:] if type != "pred" else type))  # fmt: skip
        if base == "setp":
            return self.compare(ins, m)
        if base == "selp":
            type = "b" + ins.type()[1:]
            chosen = f"choose({self.value(ops[3], 'pred')}, {self.value(ops[1], type)}, {self.value(ops[2], type)})"
            return assign(ops[0][1:], chosen)
        if base == "cvt":
            return self.convert(ins, assign)
        type = ins.type()
        if type == "f32x2":
            name = {"add": "add", "sub": "subtract", "mul": "multiply", "fma": "fma32"}[base]
            return assign(ops[0][1:], f"{name}({', '.join(self.value(o, type) for o in ops[1:])}).view(u8)")
        if type in ("f16", "bf16") and ins.type(0) == "f32" and base in ("add", "sub", "fma"):  # of mixed precision
            widen = "half_to_f4" if type == "f16" else "brain_to_f4"
            args = [f"{widen}({o[1:]})" for o in ops[1:-1]] + [self.value(ops[-1], "f32")]
            name = {"add": "add", "sub": "subtract", "fma": "fma32"}[base]
            return assign(self.target(ops[0], "f32"), f"{name}({', '.join(args)})")
        to = self.target(ops[0], type)
        args = [self.value(o, type) for o in ops[1:]]
        floating = type.startswith("f") or type == "bf16"
        ftz = "ftz" in parts
        if base in ("and", "or", "xor"):
            return ufunc({"and": "bitand", "or": "bitor", "xor": "bitxor"}[base], *args, to=to)
        if base == "not":
            return ufunc("invert", *args, to=to)
        if base in ("min", "max") and floating:
            name = {"min": "fmin", "max": "fmax"}[base] if "NaN" not in parts else f"{base}imum"
            for_two = ufunc(name, args[0], args[1], to=to)
            return for_two + (ufunc(name, to, args[2], to=to) if len(args) > 2 else [])
        if base in ("min", "max"):
            return ufunc(f"{base}imum", *args, to=to)
        if base in ("add", "sub", "mul") and floating:
            name = {"add": "add", "sub": "subtract", "mul": "multiply"}[base]
            if type == "f16":
                return assign(ops[0][1:], f"half_op({name}, {', '.join(o[1:] for o in ops[1:])})")
            if "rz" in parts or "rm" in parts or "rp" in parts or "sat" in parts:
                raise NotImplementedError("rounding")
            return assign(to, f"flush({name}({', '.join(args)}))") if ftz else ufunc(name, *args, to=to)
        if base in ("add", "sub"):
            unsigned = [self.value(o, "u" + type[1:]) for o in ops[1:]]
            return ufunc({"add": "add", "sub": "subtract"}[base], *unsigned, to=self.target(ops[0], "u" + type[1:]))
        if base in ("mul", "mad") and not floating:
            wide = int(type[1:]) * 2 // 8
            if "wide" in parts:
                kind = type[0]
                to = self.target(ops[0], f"{kind}{wide * 8}")
                product = f"multiply({args[0]}, {args[1]}, dtype={'i' if kind == 's' else 'u'}{wide})"
                extra = self.value(ops[3], f"{kind}{wide * 8}") if base == "mad" else None
                return assign(to, product if extra is None else f"add({product}, {extra})")
            if "hi" in parts:
                return assign(to, f"mul_hi({args[0]}, {args[1]})" + (f" + {args[2]}" if base == "mad" else ""))
            unsigned = [self.value(o, "u" + type[1:]) for o in ops[1:]]
            to = self.target(ops[0], "u" + type[1:])
            if base == "mul":
                return ufunc("multiply", *unsigned, to=to)
            return ufunc("add", f"multiply({unsigned[0]}, {unsigned[1]})", unsigned[2], to=to)
        if base == "fma":
            return assign(to, f"{'fma64' if type == 'f64' else 'fma32'}({', '.join(args)}, {ftz})")
        if base == "div" and floating:
            return assign(to, f"divide_{'approx' if 'rn' not in parts else 'exact'}({', '.join(args)}, {ftz})")
        if base in ("div", "rem"):
            return assign(to, f"int_{base}({', '.join(args)})")
        if base in ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"):
            return assign(to, f"approximate({base!r}, {args[0]}, {type!r}, {'rn' in parts}, {ftz})")
        if base in ("abs", "neg"):
            if type == "f16":
                raise NotImplementedError
            signed = type if floating else "s" + type[1:]
            call = f"{'absolute' if base == 'abs' else 'negative'}({self.value(ops[1], signed)})"
            return assign(self.target(ops[0], signed), f"flush({call})" if ftz else call)
        if base in ("shl", "shr"):
            signed = base == "shr" and type[0] == "s"
            a = self.value(ops[1], ("s" if signed else "u") + type[1:])
            to = self.target(ops[0], ("s" if signed else "u") + type[1:])
            width = int(type[1:])
            if not ops[2].startswith("%"):
                by = int(ops[2], 0)
                if by >= width:
                    by, a = (width - 1, a) if signed else (0, self.constant("0", type))
                name = "left_shift" if base == "shl" else "right_shift"
                return ufunc(name, a, self.constant(str(by), ("s" if signed else "u") + type[1:]), to=to)
            return assign(to, f"shift_{base}({a}, {self.value(ops[2], 'u32')}, {width})")
        if base in ("bfe", "bfi", "prmt", "popc", "clz", "brev", "lop3", "fns", "bfind"):
            return assign(ops[0][1:] if not type.startswith("s") else to, f"bits_{base}({', '.join(args)})")
        if base == "copysign":
            return assign(to, f"copysign({args[1]}, {args[0]})")
        if base == "testp":
            raise NotImplementedError
        raise NotImplementedError(ins.opcode)

    def compare(self, ins: Instruction, m: str) -> list[str]:
        ops, parts, type = ins.operands, ins.parts, ins.type()
        relation = parts[1]
        kind = type
        if type[0] != "f" and type != "bf16":
            kind = ("s" if type[0] == "s" else "u") + type[1:]
        if type in ("f16", "bf16"):
            a, b = (f"{'half' if type == 'f16' else 'brain'}_to_f4({o[1:]})" for o in ops[1:3])
        else:
            a, b = self.value(ops[1], kind), self.value(ops[2], kind)
        if kind[0] == "s" or kind[0] == "u" or (relation in COMPARE and relation != "ne"):
            expression = f"{COMPARE[relation]}({a}, {b})"
        elif relation == "ne":  # ordered
            expression = f"(less({a}, {b}) | greater({a}, {b}))"
        elif relation == "neu":
            expression = f"not_equal({a}, {b})"
        elif relation == "equ":
            expression = f"~(less({a}, {b}) | greater({a}, {b}))"
        elif relation in ("nan", "num"):
            expression = f"{'' if relation == 'nan' else '~'}(isnan({a}) | isnan({b}))"
        else:
            expression = f"~{UNORDERED[relation]}({a}, {b})"
        combine = next((part for part in parts[2:] if part in ("and", "or", "xor")), None)
        if combine:
            q = ops[3]
            q = f"~{q[2:]}" if q.startswith("!") else q[1:]
            expression = f"bit{combine}({expression}, {q})"
        to = ops[0].partition("|")
        where = f", where={m}" if m else ""
        if not combine and re.match(r"^\w+\([^()]*\)$", expression):
            lines = [f"{expression[:-1]}, {to[0][1:]}{where})"]
        else:
            lines = [f"copyto({to[0][1:]}, {expression}{where})"]
        if to[2]:
            raise NotImplementedError("two results")
        return lines

    def convert(self, ins: Instruction, assign) -> list[str]:
        parts, ops = ins.parts, ins.operands
        types = [part for part in parts[1:] if TYPES.match(part)]
        to_type, from_type = types
        rounding = next((p for p in parts if p in ("rni", "rzi", "rmi", "rpi")), "")
        if to_type in ("bf16x2", "f16x2"):
            high, low = (self.value(o, "f32") for o in ops[1:3])
            name = "f4_to_brain" if to_type == "bf16x2" else "f4_to_half"
            return assign(ops[0][1:], f"({name}({low}).astype(u4) | ({name}({high}).astype(u4) << ku4_10_))")
        source = {"f16": f"half_to_f4({ops[1][1:]})", "bf16": f"brain_to_f4({ops[1][1:]})"}.get(from_type)
        source = source or self.value(ops[1], from_type)
        if to_type in ("f16", "bf16"):
            return assign(ops[0][1:], f"{'f4_to_half' if to_type == 'f16' else 'f4_to_brain'}({source})")
        register = ops[0][1:]
        if to_type.startswith("f"):
            kind = "f4" if to_type == "f32" else "f8"
            if rounding:
                name = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[rounding]
                return assign(register + "f", f"{name}({source})")
            if any(p in parts for p in ("rz", "rm", "rp")):
                raise NotImplementedError(ins.opcode)
            clamp = f"clip({source}, 0, 1)" if "sat" in parts else source
            return assign(register + "f", f"{clamp}.astype({kind})")
        size = int(to_type[1:]) // 8
        kind = ("i" if to_type[0] == "s" else "u") + str(size)
        width = WIDTHS[self.program.registers[ops[0]]] // 8
        if from_type.startswith(("f", "bf")):
            return assign(register + ("s" if kind[0] == "i" else ""), f"float_to_int({source}, {kind}, {rounding!r})")
        if "sat" in parts:
            raise NotImplementedError(ins.opcode)
        same = f"{source}.astype({kind})"
        if size < width:
            same += f".astype({kind[0]}{width})"
        return assign(register + ("s" if kind[0] == "i" else ""), same)


def id_of(program: Program, ins: Instruction) -> int:
    table = program.__dict__.setdefault("_ids", {id(x): k for k, x in enumerate(program.instructions)})
    return table[id(ins)]

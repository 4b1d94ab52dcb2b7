"""Runs atomic additions that Triton compiled in the emulator, against PyTorch.

A process of its own, for the reason that `emulated` has, and with the Triton that Python finds:

    python -m tests.kernels.atomics CAPABILITY...

Prints a line of JSON for each case: its name, the architecture, the type and the order of warps; what was wrong with
the result, which is empty if nothing was; the races; and which atomics Triton made of it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from itertools import product

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels.ptxsim.launch import Emulator
from tests.kernels.ptxsim.memory import Fault

# Each thread has four values.
PROGRAMS = 3
BLOCK = 512
KEYS = 7

# What inline assembly calls each type, and a register of it.
INLINE = {torch.int64: ("u64", "l"), torch.float32: ("f32", "f"), torch.float64: ("f64", "d")}


@triton.jit
def sums_kernel(values, keys, sums, before, KEEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Adds each value to the sum of its key, if that is not negative. KEEPS: stores what the sum was before."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + place)
    found = tl.atomic_add(sums + key, tl.load(values + place), mask=key >= 0, sem="relaxed")
    if KEEPS:
        tl.store(before + place, found, mask=key >= 0)


@triton.jit
def inline_kernel(values, keys, sums, ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, BLOCK: tl.constexpr):
    """As `sums_kernel`, but in assembly that is for sm_60, too, where ptxas refuses what `tl.atomic_add` becomes."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + place)
    tl.inline_asm_elementwise(
        ASSEMBLY,  # pyright: ignore[reportArgumentType]
        CONSTRAINTS,  # pyright: ignore[reportArgumentType]
        [(sums + key).to(tl.int64), tl.load(values + place), key],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def rows_kernel(values, sums, BLOCK: tl.constexpr):
    """Adds up rows, a program each. Triton packs neighbors where the architecture can add them at once."""
    column = tl.arange(0, BLOCK)
    tl.atomic_add(sums + column, tl.load(values + tl.program_id(0) * BLOCK + column), sem="relaxed")


@triton.jit
def total_kernel(values, total, before, KEEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Each program adds the sum of its values. KEEPS: stores in each of its places what the total was before."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.atomic_add(total, tl.sum(tl.load(values + place)), sem="relaxed")
    if KEEPS:
        tl.store(before + place, tl.zeros((BLOCK,), found.dtype) + found)


@triton.jit
def racing_kernel(values, total, before, BLOCK: tl.constexpr):
    """As `total_kernel`, but the total is read without an atomic, while other programs may add to it."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(total)
    tl.atomic_add(total, tl.sum(tl.load(values + place)), sem="relaxed")
    tl.store(before + place, tl.zeros((BLOCK,), found.dtype) + found)


def random_values(dtype: torch.dtype) -> Tensor:
    """Whole numbers above zero, the sums of which are exact in any order."""
    return torch.randint(1, 10, (PROGRAMS, BLOCK), generator=torch.Generator().manual_seed(0)).to(dtype)


def random_keys() -> Tensor:
    """Some are negative."""
    return torch.randint(-1, KEYS, (PROGRAMS, BLOCK), generator=torch.Generator().manual_seed(1))


def assert_one_after_the_other(start: Tensor, values: Tensor, before: Tensor) -> None:
    """In some order, each addition found what the one before it left."""
    order = before.argsort()
    left = start + values[order].cumsum(0)
    assert before[order].tolist() == [start.item(), *left[:-1].tolist()]


def sums_case(emulator: Emulator, dtype: torch.dtype, keeps: bool) -> None:
    values = random_values(dtype)
    keys = random_keys()
    start = torch.arange(KEYS).to(dtype)
    sums, before = start.clone(), torch.full_like(values, -7)
    emulator.launch(sums_kernel, PROGRAMS, values=values, keys=keys, sums=sums, before=before, KEEPS=keeps, BLOCK=BLOCK)

    added = keys >= 0
    assert sums.tolist() == start.index_add(0, keys[added], values[added]).tolist()
    assert (before[~added] == -7).all()
    if keeps:
        for key in range(KEYS):
            assert_one_after_the_other(start[key], values[keys == key], before[keys == key])


def inline_case(emulator: Emulator, dtype: torch.dtype) -> None:
    values = random_values(dtype)
    keys = random_keys()
    sums = torch.arange(KEYS).to(dtype)
    wanted = sums.index_add(0, keys[keys >= 0], values[keys >= 0])
    type, register = INLINE[dtype]
    options = {
        "ASSEMBLY": f"{{ .reg .pred p; setp.ge.s64 p, $3, 0; @p red.global.add.{type} [$1], $2; mov.b32 $0, 0; }}",
        # A result that nobody needs, but Triton; the address, the value and the key.
        "CONSTRAINTS": f"=r,l,{register},l",
    }
    emulator.launch(inline_kernel, PROGRAMS, values=values, keys=keys, sums=sums, **options, BLOCK=BLOCK)
    assert sums.tolist() == wanted.tolist()


def rows_case(emulator: Emulator, dtype: torch.dtype) -> None:
    values = random_values(dtype)
    sums = torch.arange(BLOCK).to(dtype)
    wanted = sums + values.sum(0)
    emulator.launch(rows_kernel, PROGRAMS, values=values, sums=sums, BLOCK=BLOCK)
    assert sums.tolist() == wanted.tolist()


def total_case(emulator: Emulator, dtype: torch.dtype, keeps: bool) -> None:
    values = random_values(dtype)
    start = torch.tensor([3]).to(dtype)
    total, before = start.clone(), torch.full_like(values, -7)
    emulator.launch(total_kernel, PROGRAMS, values=values, total=total, before=before, KEEPS=keeps, BLOCK=BLOCK)
    assert total.item() == 3 + values.sum().item()
    if keeps:
        assert (before == before[:, :1]).all()
        assert_one_after_the_other(start, values.sum(1), before[:, 0])


def racing_case(emulator: Emulator, dtype: torch.dtype) -> None:
    """Of what is read, nothing is right or wrong."""
    values = random_values(dtype)
    total, before = torch.zeros(1, dtype=dtype), torch.zeros_like(values)
    emulator.launch(racing_kernel, PROGRAMS, values=values, total=total, before=before, BLOCK=BLOCK)
    assert total.item() == values.sum().item()


CASES: dict[str, Callable[[Emulator, torch.dtype], None]] = {
    "sums": lambda emulator, dtype: sums_case(emulator, dtype, keeps=False),
    "sums, kept": lambda emulator, dtype: sums_case(emulator, dtype, keeps=True),
    "inline": inline_case,
    "rows": rows_case,
    "total": lambda emulator, dtype: total_case(emulator, dtype, keeps=False),
    "total, kept": lambda emulator, dtype: total_case(emulator, dtype, keeps=True),
    "racing": racing_case,
}
DTYPES = {"int64": torch.int64, "float32": torch.float32, "float64": torch.float64}
MODES = ("lockstep", "warps")


def wrong_with(case: Callable[[Emulator, torch.dtype], None], emulator: Emulator, dtype: torch.dtype) -> str:
    try:
        case(emulator, dtype)
    except (AssertionError, Fault, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def atomics_of(emulator: Emulator) -> list[str]:
    """The opcodes of those in the kernels that were launched."""
    programs = [record.machine.program for record in emulator.records]
    instructions = [instruction for program in programs for instruction in program.instructions]
    return sorted({instruction.opcode for instruction in instructions if instruction.base in ("atom", "red")})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("capability", type=int, nargs="+", help="the architectures to compile for, 90 for sm_90")
    options = parser.parse_args()
    for capability, (name, case), dtype, mode in product(options.capability, CASES.items(), DTYPES, MODES):
        emulator = Emulator(capability, mode)
        found = {
            "case": name,
            "capability": capability,
            "dtype": dtype,
            "mode": mode,
            "wrong": wrong_with(case, emulator, DTYPES[dtype]),
            "races": sorted({kind for kind, *_ in emulator.races()}),
            "atomics": atomics_of(emulator),
            "triton": triton.__version__,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

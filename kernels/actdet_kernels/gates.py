"""Static gates: every kernel is compiled for every architecture, without a GPU, and held to written limits.

python -m actdet_kernels.gates [--capability 60 90] [--json rows.json]

No kernel may spill, take more registers than its case allows, take longer to compile than LONGEST, or be compiled again
for other sizes. The cases are in `gate_cases`. The kernels that each would launch are compiled with the settings of
that launch.

The version of Triton is the one that Python finds. To use another one, put its folder first on PYTHONPATH.

From top to bottom: the rows of the result, the command, and the compilation.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.backends
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from actdet_kernels.gate_cases import BF16, BOOL, CASES, FP16, FP32, FP64, I8, I32, I64, U8, Case
from actdet_kernels.triton import launch

# The most seconds of one core that compiling may take. Wall-clock time would depend on what else runs. Two or three are
# usual; a kernel in which every thread computes what all should share takes minutes.
LONGEST = 20

# The architectures for which every kernel is compiled: 90 is sm_90.
CAPABILITIES = (60, 70, 75, 80, 86, 89, 90, 100, 120)

# The error of a row whose architecture is unknown to this Triton's ptxas, or too old for the operation.
NO_CODE = "no code"

# What Triton calls pointers to these.
POINTERS = {
    FP16: "*fp16", BF16: "*bf16", FP32: "*fp32", FP64: "*fp64",
    I8: "*i8", U8: "*u8", I32: "*i32", I64: "*i64", BOOL: "*i1",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What a launch takes on one architecture.

    Args:
        kernel: The name of the kernel.
        case: The inputs of the case.
        block: The kernel's block sizes.
        warps: The warps of a program.
        limit: The most registers that are allowed.
        capability: The architecture; 90 is sm_90.
        recompiled_for: The sizes for other values of which the kernel would be compiled again.
        registers: The registers of a thread.
        spill: The bytes of a thread's stack and local memory, to which registers are spilled.
        shared: The bytes of a program's shared memory.
        seconds: The seconds of a core that compiling took; nearly none if Triton found the kernel in its cache.
        error: Why registers, spill and shared are missing: NO_CODE, or what went wrong.
    """

    kernel: str
    case: str
    block: str
    warps: int
    limit: int
    capability: int
    recompiled_for: str
    registers: int = 0
    spill: int = 0
    shared: int = 0
    seconds: float = 0
    error: str = ""

    def faults(self) -> list[str]:
        """Return what breaks the rules. An architecture without code is no fault."""
        faults = []
        if self.error not in ("", NO_CODE):
            faults.append(self.error)
        if self.registers > self.limit:
            faults.append(f"{self.registers} registers, {self.limit} allowed")
        if self.spill:
            faults.append(f"{self.spill} bytes spilled")
        if self.seconds > LONGEST:
            faults.append(f"{self.seconds:.0f} s to compile, {LONGEST} allowed")
        if self.recompiled_for:
            faults.append(f"compiled again for other values of {self.recompiled_for}")
        return faults

    def cell(self) -> str:
        """Return the registers for a table, with an exclamation mark if there is a fault."""
        if self.error:
            return NO_CODE if self.error == NO_CODE else "error"
        return f"{self.registers}!" if self.faults() else str(self.registers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, print its table, and return the exit code: 1 if a kernel breaks a rule, otherwise 0."""
    parser = argparse.ArgumentParser("python -m actdet_kernels.gates", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--capability", type=int, nargs="+", default=CAPABILITIES, help="90 for sm_90")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a row for each kernel, case and architecture")
    options = parser.parse_args(arguments)

    started = time.perf_counter()
    rows: list[Row] = []
    print_line("kernel", "case", "block", "warps", "limit", [f"sm_{capability}" for capability in options.capability])
    workers = min(os.cpu_count() or 1, len(options.capability))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for case in [[pool.submit(compile_case, i, sm) for sm in options.capability] for i in range(len(CASES))]:
            for compiled in zip(*(future.result() for future in case), strict=True):
                row = compiled[0]
                print_line(row.kernel, row.case, row.block, row.warps, row.limit, [row.cell() for row in compiled])
                rows += compiled

    where: dict[str, list[str]] = {}
    for row in rows:
        for fault in row.faults():
            where.setdefault(f"{row.kernel} ({row.case}): {fault}", []).append(f"sm_{row.capability}")
    for fault, architectures in where.items():
        print(f"{fault} on {', '.join(architectures)}")

    if options.json:
        date = datetime.date.today().isoformat()
        about = {"triton": triton.__version__, "torch": torch.__version__, "date": date}
        table = [json.dumps(asdict(row) | about) for row in rows if not row.error]
        # Each row is a line, so that differences between two files are readable.
        options.json.write_text("[\n" + ",\n".join(table) + "\n]\n")

    failed = failure(rows)
    seconds = time.perf_counter() - started
    passed = f"all passed, with Triton {triton.__version__} and PyTorch {torch.__version__}, in {seconds:.0f} s"
    print(f"FAILED: {failed}" if failed else passed)
    return 1 if failed else 0


def print_line(kernel: str, case: str, block: str, warps: object, limit: object, cells: Iterable[str]) -> None:
    """Print a line of the table, with a cell for each architecture."""
    text = f"{kernel:<20}  {case:<26}  {block:>5}  {warps:>5}  {limit:>5}" + "".join(f"{cell:>9}" for cell in cells)
    print(text, flush=True)


def failure(rows: Sequence[Row]) -> str | None:
    """Return what failed, in one line, or None."""
    failed = dict.fromkeys(f"{row.kernel} ({row.case})" for row in rows if row.faults())
    if failed:
        return ", ".join(failed)
    if all(row.error for row in rows):
        return "this Triton has code for none of these architectures"
    return None


def compile_case(index: int, capability: int) -> list[Row]:
    """Return a row for each launch of a case. This runs in another process, in which kernels are never interpreted."""
    case = CASES[index]
    return [compile_launch(case, kernel, values, capability) for kernel, values in launches_of(case.call, capability)]


def launches_of(call: Callable[[], object], capability: int) -> list[tuple[Any, dict[str, Any]]]:
    """Return the kernels that a call would launch on such a GPU, with their arguments and settings."""
    launches = []

    def record(kernel: Any, programs: int, **arguments: Any) -> None:
        launches.append((kernel, arguments))

    with (
        mock.patch.object(launch, "launch", record),
        mock.patch.object(launch, "capability", return_value=divmod(capability, 10)),
    ):
        call()
    return launches


def taken_by(kernel: Any, values: dict[str, Any], capability: int) -> dict[str, Any]:
    """Compile a kernel, and return its registers, spilled bytes and shared memory, or the error."""
    try:
        # Triton prints all assembly that ptxas refuses.
        with contextlib.redirect_stdout(io.StringIO()):
            compiled = compiled_for(kernel, values, capability)
        return resources(compiled.asm["cubin"]) | {"shared": compiled.metadata.shared}
    except Exception as error:
        unknown = "is not defined for option 'gpu-name'" in str(error)
        return {"error": NO_CODE if unknown else cause(error)}


def compile_launch(case: Case, kernel: Any, values: dict[str, Any], capability: int) -> Row:
    """Compile a kernel for an architecture, with the arguments and settings of a launch, and return what it takes."""
    started = core_seconds()
    if capability < case.least_capability:
        taken: dict[str, Any] = {"error": NO_CODE}
    else:
        taken = taken_by(kernel, values, capability)

    sizes = [name for name in kernel.arg_names if isinstance(values[name], int)]
    again = [parameter for parameter in kernel.params if not (parameter.is_constexpr or parameter.do_not_specialize)]
    return Row(
        kernel=kernel.__name__,
        case=case.inputs,
        block="x".join(str(values[name]) for name in kernel.arg_names if name.startswith("BLOCK")),
        warps=values.get("num_warps", 4),
        limit=case.limits.get(kernel.__name__, 0),
        capability=capability,
        seconds=round(core_seconds() - started, 2),
        recompiled_for=", ".join(parameter.name for parameter in again if parameter.name in sizes),
        **taken,
    )


def core_seconds() -> float:
    """Return the seconds of a core that this process has taken, with the programs that it ran, such as ptxas."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compiled_for(kernel: Any, values: dict[str, Any], capability: int) -> Any:
    """Compile a kernel as Triton does before such a launch, on tensors that start at a multiple of 16 bytes."""
    signature = {}
    constants = {}
    attributes = {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[index,] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"

    options = {name: value for name, value in values.items() if name not in kernel.arg_names}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def cause(error: BaseException) -> str:
    """Return the first cause of an error in one line, without the code that Triton quotes up to a caret.

    Triton raises once more for each function that was being compiled.
    """
    while error.__cause__:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {str(error).rpartition('^')[2]}".split())


def resources(cubin: bytes) -> dict[str, Any]:
    """Return the registers of a thread, and the bytes of its stack and local memory, to which registers are spilled."""
    tool = Path(triton.backends.__file__).parent / "nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    fields = dict(field.split(":")[:2] for field in text.split() if field.startswith(("REG:", "STACK:", "LOCAL:")))
    return {"registers": int(fields["REG"]), "spill": int(fields["STACK"]) + int(fields["LOCAL"])}


if __name__ == "__main__":
    # The processes that compile inherit the environment, and cannot compile interpreted kernels.
    os.environ.pop("TRITON_INTERPRET", None)
    sys.exit(main())

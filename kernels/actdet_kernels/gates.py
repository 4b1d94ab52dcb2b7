"""Static gates: every kernel is compiled for every architecture, without a GPU, and held to limits written here.

python -m actdet_kernels.gates [--capability 60 90] [--json rows.json]

No kernel may spill, take more registers than its case allows, take longer to compile than LONGEST, or be compiled again
for other sizes. A case is a call on tensors without data. The kernels that it would launch are compiled with the
settings of that launch. A new kernel needs one more line in CASES.

The version of Triton is the one that Python finds. To use another one, put its folder first on PYTHONPATH.

Assignments of more than 2048 rows or columns are no case, because those of 4096 spill on sm_60, sm_70 and sm_120.

From top to bottom: the calls of which cases are made, CASES, the rows of the result, the command, and the compilation.
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
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
import triton.backends
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from actdet_kernels.options import CostOptions, LossOptions
from actdet_kernels.targets import Targets, Tubelets
from actdet_kernels.triton import assignment, clips, cost, launch, loss, matching, norm

# The most registers of a thread with which 48, 40, 36, 32, 28, 24, 20, 16, 12 and 8 warps fit in the 65,536 registers
# of a multiprocessor. With one register more, fewer warps run at a time.
OCCUPANCY_STEPS = (40, 48, 56, 64, 72, 80, 96, 128, 168, 255)

# The most seconds of one core that compiling may take. Wall-clock time would depend on what else runs. Two or three are
# usual; a kernel in which every thread computes what all should share takes minutes.
LONGEST = 20

# The architectures for which every kernel is compiled: 90 is sm_90.
CAPABILITIES = (60, 70, 75, 80, 86, 89, 90, 100, 120)

# The error of a row whose architecture is unknown to this Triton's ptxas.
NO_CODE = "no code"

WEIGHTS = (2.0, 5.0, 2.0)
FP16, BF16, FP32, FP64, U8, I32, I64, BOOL = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64, torch.bool,
)  # fmt: skip
POINTERS = {
    FP16: "*fp16", BF16: "*bf16", FP32: "*fp32", FP64: "*fp64", U8: "*u8", I32: "*i32", I64: "*i64", BOOL: "*i1",
}  # fmt: skip


class Case(NamedTuple):
    """A call, and how many registers a thread of each kernel that it launches may take.

    A limit is one of OCCUPANCY_STEPS, and no architecture exceeded it with any Triton from 3.3 to 3.9. Counts move from
    one version of Triton to the next, and within a step that does not change how many warps run.

    Args:
        inputs: What the call is about, for people.
        call: Calls an operation of `actdet_kernels.triton` on tensors of the device "meta".
        limits: The most registers of a thread, by the name of the kernel.
    """

    inputs: str
    call: Callable[[], object]
    limits: dict[str, int]


def tensor(dtype: torch.dtype, *shape: int) -> Tensor:
    """Return a tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


class Predictions(NamedTuple):
    """The first arguments of cost, matching and loss."""

    logits: Tensor
    boxes: Tensor
    targets: Targets | Tubelets


def predictions(
    queries: int,
    classes: int,
    logits: torch.dtype,
    boxes: torch.dtype,
    layers: tuple[int, ...] = (),
    labels: tuple[int, ...] = (),
) -> Predictions:
    """Return one sample of 8 targets, without data.

    Args:
        queries: The number of queries.
        classes: The number of logits.
        logits: The dtype of the logits.
        boxes: The dtype of the predicted boxes.
        layers: The leading dimensions.
        labels: (K,) if a target has K labels, and () if it has one.
    """
    targets = Targets(tensor(I64, 1, 8, *labels), tensor(FP32, 1, 8, 4), tensor(I32, 1))
    return Predictions(tensor(logits, *layers, 1, queries, classes), tensor(boxes, *layers, 1, queries, 4), targets)


def tubelets(dtype: torch.dtype) -> Predictions:
    """Return one sample of 8 tubelets over 32 frames, under two layers, without data."""
    targets = Tubelets(tensor(I64, 1, 8), tensor(FP32, 1, 8, 32, 4), tensor(I64, 1), tensor(BOOL, 1, 8, 32))
    return Predictions(tensor(dtype, 2, 1, 64, 3), tensor(dtype, 2, 1, 64, 32, 4), targets)


def pairwise_cost(class_cost: str, predictions: Predictions, gamma: float = 2.0, box_term: str = "giou") -> object:
    """Call the cost with these options, as the following functions call theirs."""
    options = CostOptions(WEIGHTS, class_cost, 0.25, gamma, box_term)
    return cost.pairwise_cost(*predictions, options, predictions.boxes.dtype)


def assign(rows: int, columns: int, dtype: torch.dtype, counts: Tensor | None = None, duals: bool = False) -> object:
    """Call the assignment of one problem."""
    return assignment.solve_assignment(tensor(dtype, 1, rows, columns), counts, maximize=False, duals=duals)


def match(
    queries: int,
    classes: int,
    class_cost: str,
    dtype: torch.dtype,
    gamma: float = 2.0,
    box_term: str = "giou",
    labels: tuple[int, ...] = (),
) -> object:
    """Call the matching of one sample."""
    inputs = predictions(queries, classes, dtype, dtype, labels=labels)
    return matching.match(*inputs, CostOptions(WEIGHTS, class_cost, 0.25, gamma, box_term))


def set_loss(
    class_loss: str,
    predictions: Predictions,
    per_layer: bool = False,
    gamma: float = 2.0,
    box_term: str = "giou",
    class_weights: Tensor | None = None,
) -> object:
    """Call the loss, and its gradient from that of the total."""
    matched = tensor(I64, 1, 8)
    options = LossOptions(WEIGHTS, 0.1, class_loss, 0.25, gamma, box_term, per_layer)
    *_, divisors = loss.set_loss(*predictions, matched, class_weights, options)
    cotangents = (tensor(divisors.dtype), None, None, None)
    return loss.set_loss_gradient(*predictions, matched, class_weights, divisors, cotangents, options)


def of_losses(loss: int, total: int, gradient: int) -> dict[str, int]:
    """Return the limits of a case of `set_loss`."""
    return {"set_loss_kernel": loss, "total_kernel": total, "gradient_kernel": gradient}


def gather_clips(dtype: torch.dtype, crops: bool = False, color: bool = False) -> object:
    """Call for 24 clips of 16 frames out of 100,000, which have 15 GB, so that offsets need 64 bits."""
    changes = (
        tensor(FP32, 24, 4) if crops else None,
        tensor(FP32, 24, 3) if color else None,
        tensor(FP32, 100_000) if color else None,
    )
    return clips.gather_clips(tensor(U8, 100_000, 224, 224, 3), tensor(I64, 24, 16), *changes, dtype)


def batch_norm(channels: int, dtype: torch.dtype, relu: bool) -> object:
    """Call the batch normalization of 8 clips' features after an R(2+1)D stem, and its gradient."""
    x = tensor(dtype, 8, channels, 16, 56, 56).to(memory_format=torch.channels_last_3d)
    compute = torch.promote_types(dtype, FP32)
    weight = tensor(compute, channels)
    bias = tensor(compute, channels)
    y, statistics = norm.batch_norm(x, weight, bias, relu, 1e-5)
    return norm.batch_norm_gradient(y, x, weight, bias, statistics, relu)


def of_norm(sums: int, apply: int, gradient_sums: int, gradient: int, small: int) -> dict[str, int]:
    """Return the limits of a case of `batch_norm`. `small` is that of both kernels that add up the sums."""
    limits = {"feature_sums_kernel": sums, "normalize_kernel": apply}
    limits |= {"gradient_sums_kernel": gradient_sums, "feature_gradient_kernel": gradient}
    return limits | {"statistics_kernel": small, "weight_gradient_kernel": small}


CASES = [
    Case(
        "softmax, fp16 and fp32",
        lambda: pairwise_cost("softmax", predictions(100, 92, FP16, FP32)),
        {"pairwise_cost_kernel": 168},
    ),
    Case(
        "focal, bf16", lambda: pairwise_cost("focal", predictions(100, 91, BF16, BF16)), {"pairwise_cost_kernel": 168}
    ),
    Case(
        "softmax, fp64",
        lambda: pairwise_cost("softmax", predictions(100, 92, FP64, FP64)),
        {"pairwise_cost_kernel": 255},
    ),
    Case("tubelets, softmax, fp32", lambda: pairwise_cost("softmax", tubelets(FP32)), {"pairwise_cost_kernel": 168}),
    Case(
        "gamma 1.5, bf16",
        lambda: pairwise_cost("focal", predictions(100, 91, BF16, BF16), gamma=1.5),
        {"pairwise_cost_kernel": 168},
    ),
    Case(
        "tubelets, CIoU, fp32",
        lambda: pairwise_cost("softmax", tubelets(FP32), box_term="ciou"),
        {"pairwise_cost_kernel": 255},
    ),
    Case(
        "quality focal tubes, fp32",
        lambda: pairwise_cost("quality_focal", tubelets(FP32)),
        {"pairwise_cost_kernel": 168},
    ),
    Case(
        "several labels, bf16",
        lambda: pairwise_cost("focal", predictions(100, 80, BF16, BF16, labels=(4,))),
        {"pairwise_cost_kernel": 168},
    ),
    Case("12 x 5, bf16", lambda: assign(12, 5, BF16), {"assign_kernel": 96}),
    Case("100 x 63, fp32, duals", lambda: assign(100, 63, FP32, tensor(I64, 1), duals=True), {"assign_kernel": 128}),
    Case("100 x 63, fp64, duals", lambda: assign(100, 63, FP64, duals=True), {"assign_kernel": 168}),
    Case("300 x 100, fp32", lambda: assign(300, 100, FP32), {"assign_kernel": 128}),
    Case("1024 x 1024, fp32", lambda: assign(1024, 1024, FP32), {"assign_kernel": 168}),
    Case("2000 x 63, fp32", lambda: assign(2000, 63, FP32, tensor(I32, 1)), {"assign_kernel": 255}),
    Case("2000 x 63, fp64, duals", lambda: assign(2000, 63, FP64, duals=True), {"assign_kernel": 255}),
    Case("12 queries, softmax, fp32", lambda: match(12, 3, "softmax", FP32), {"match_kernel": 168}),
    Case("100 queries, softmax, bf16", lambda: match(100, 92, "softmax", BF16), {"match_kernel": 255}),
    Case("300 queries, softmax, fp32", lambda: match(300, 92, "softmax", FP32), {"match_kernel": 255}),
    Case("200 queries, focal, fp64", lambda: match(200, 91, "focal", FP64), {"match_kernel": 255}),
    Case("900 queries, focal, fp16", lambda: match(900, 91, "focal", FP16), {"match_kernel": 128}),
    Case("900 queries, softmax, fp32", lambda: match(900, 92, "softmax", FP32), {"match_kernel": 128}),
    Case("200 queries, gamma 1.5, fp64", lambda: match(200, 91, "focal", FP64, gamma=1.5), {"match_kernel": 255}),
    Case("300 queries, CIoU, fp32", lambda: match(300, 92, "softmax", FP32, box_term="ciou"), {"match_kernel": 255}),
    Case("200 queries, CIoU, fp64", lambda: match(200, 91, "focal", FP64, box_term="ciou"), {"match_kernel": 255}),
    Case("300 queries, varifocal, bf16", lambda: match(300, 80, "varifocal", BF16), {"match_kernel": 255}),
    Case("200 queries, quality, fp64", lambda: match(200, 80, "quality_focal", FP64), {"match_kernel": 255}),
    Case("100 queries, labels, fp32", lambda: match(100, 80, "focal", FP32, labels=(4,)), {"match_kernel": 255}),
    Case(
        "cross entropy, 3, fp32",
        lambda: set_loss("cross_entropy", predictions(12, 3, FP32, FP32)),
        of_losses(56, 80, 56),
    ),
    Case(
        "cross entropy, 92, bf16",
        lambda: set_loss("cross_entropy", predictions(100, 92, BF16, FP32, (6,)), per_layer=True),
        of_losses(80, 168, 96),
    ),
    Case(
        "focal, 91, fp32",
        lambda: set_loss("focal", predictions(100, 91, FP32, FP32, (6,))),
        of_losses(96, 168, 128),
    ),
    Case(
        "focal, weights, 91, fp32",
        lambda: set_loss("focal", predictions(100, 91, FP32, FP32), class_weights=tensor(FP32, 91)),
        of_losses(96, 80, 128),
    ),
    Case(
        "varifocal, 80, bf16",
        lambda: set_loss("varifocal", predictions(300, 80, BF16, FP32)),
        of_losses(96, 80, 96),
    ),
    Case(
        "quality focal tubes, fp64",
        lambda: set_loss("quality_focal", tubelets(FP64), gamma=1.5),
        of_losses(80, 255, 128),
    ),
    Case(
        "gamma 1.5, 91, fp32",
        lambda: set_loss("focal", predictions(100, 91, FP32, FP32), gamma=1.5),
        of_losses(80, 80, 128),
    ),
    Case(
        "several labels, 80, bf16",
        lambda: set_loss("focal", predictions(300, 80, BF16, FP32, labels=(4,))),
        of_losses(128, 80, 128),
    ),
    Case("tubelets, fp64", lambda: set_loss("cross_entropy", tubelets(FP64)), of_losses(80, 255, 128)),
    Case(
        "tubelets, CIoU, fp64",
        lambda: set_loss("cross_entropy", tubelets(FP64), box_term="ciou"),
        of_losses(96, 255, 128),
    ),
    Case("all changes, bf16", lambda: gather_clips(BF16, crops=True, color=True), {"gather_clips_kernel": 128}),
    Case("all changes, fp32", lambda: gather_clips(FP32, crops=True, color=True), {"gather_clips_kernel": 128}),
    Case("crops, fp16", lambda: gather_clips(FP16, crops=True), {"gather_clips_kernel": 96}),
    Case("color, fp16", lambda: gather_clips(FP16, color=True), {"gather_clips_kernel": 56}),
    Case("no change, fp32", lambda: gather_clips(FP32), {"gather_clips_kernel": 40}),
    Case("norm, 144, bf16", lambda: batch_norm(144, BF16, relu=True), of_norm(128, 128, 168, 168, 128)),
    Case("norm, 45, fp32", lambda: batch_norm(45, FP32, relu=True), of_norm(255, 255, 255, 255, 128)),
    Case("norm, 64, fp64", lambda: batch_norm(64, FP64, relu=False), of_norm(168, 168, 168, 168, 128)),
]


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
        """Return what breaks the rules. An architecture that this Triton does not know is no fault."""
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


def compile_launch(case: Case, kernel: Any, values: dict[str, Any], capability: int) -> Row:
    """Compile a kernel for an architecture, with the arguments and settings of a launch, and return what it takes."""
    started = core_seconds()
    try:
        # Triton prints all assembly that ptxas refuses.
        with contextlib.redirect_stdout(io.StringIO()):
            compiled = compiled_for(kernel, values, capability)
        taken: dict[str, Any] = resources(compiled.asm["cubin"]) | {"shared": compiled.metadata.shared}
    except Exception as error:
        unknown = "is not defined for option 'gpu-name'" in str(error)
        taken = {"error": NO_CODE if unknown else cause(error)}

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

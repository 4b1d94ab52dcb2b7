"""What a model of time says of one program of each kernel. Nothing is measured.

    python -m tests.kernels.ptxsim model [--capability 60 90] [--only match] [--json docs/model.json]

In a checkout, without a GPU. Kernels are compiled for each architecture and run in the emulator; `timing` makes
instructions, barriers and cycles of what was run, with loads from global memory that hit L1 and L2. A program does the
work of one sample in `assign` and `match`, of 16 queries in `set_loss` and `gradient`, and all of it in `total`; of
several programs, the slowest counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Interpreted kernels cannot be compiled.
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from actdet_kernels import Targets, assign, match, set_loss
from torch import Tensor

from .launch import Emulator, Record
from .timing import CLOCK_GHZ, Estimate, estimate


@dataclass(frozen=True)
class Row:
    """What the model says of one launch.

    Args:
        kernel: Without "_kernel".
        case: The sizes, queries x targets or queries x targets x classes.
        capability: The architecture, 90 for sm_90.
        warps: Of a program.
        instructions: That each warp executes, without those that are free.
        barriers: That each warp passes.
        cycles_l1: If all loads from global memory hit L1.
        cycles_l2: If all of them hit L2.
        microseconds_l1: The same at `timing.CLOCK_GHZ`.
        microseconds_l2: See there.
        most: What most of `cycles_l1` are spent on, with percentages.
        triton: The version that compiled it.
        date: When this was.
    """

    kernel: str
    case: str
    capability: int
    warps: int
    instructions: int
    barriers: int
    cycles_l1: int
    cycles_l2: int
    microseconds_l1: float
    microseconds_l2: float
    most: str
    triton: str
    date: str

    def cells(self) -> list[str]:
        """As `COLUMNS` has them."""
        numbers = [self.warps, self.instructions, self.barriers]
        times = [self.cycles_l1, self.cycles_l2, self.microseconds_l1, self.microseconds_l2]
        return [f"`{self.kernel}`", self.case, f"sm_{self.capability}", *map(str, numbers + times), self.most]


COLUMNS = (
    "kernel",
    "case",
    "architecture",
    "warps",
    "instructions",
    "barriers",
    "cycles, L1",
    "cycles, L2",
    "µs, L1",
    "µs, L2",
    "most of it, L1",
)


def assignment(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    assign(torch.rand(1, rows, columns, generator=generator), backend="triton")


def predictions(queries: int, size: int, classes: int) -> tuple[Tensor, Tensor, Targets]:
    """Logits and boxes of one sample, and its targets; all of it is random."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, queries, classes, generator=generator)
    boxes = random_boxes(queries, generator)
    wanted = random_boxes(size, generator)
    labels = torch.randint(0, classes - 1, (1, size), generator=generator)
    return logits, boxes, Targets(labels, wanted, torch.tensor([size], dtype=torch.int32))


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    boxes = torch.rand(1, count, 4, generator=generator)
    # Small enough that many do not overlap.
    boxes[..., 2:] *= 0.4
    return boxes


def matching(queries: int, size: int, classes: int) -> None:
    match(*predictions(queries, size, classes), backend="triton")


def criterion(queries: int, size: int, classes: int, class_loss: Any = "cross_entropy") -> None:
    """The losses and their gradients, whatever query each target has."""
    logits, boxes, targets = predictions(queries, size, classes)
    matched = torch.arange(size).expand(1, size)
    predicted = (logits.requires_grad_(), boxes.requires_grad_())
    set_loss(*predicted, targets, matched, class_loss=class_loss, backend="triton").total.backward()


CASES: dict[str, Callable[[], None]] = {
    "match 12x5x3": lambda: matching(12, 5, 3),
    "match 100x20x92": lambda: matching(100, 20, 92),
    "match 300x30x92": lambda: matching(300, 30, 92),
    "assign 100x20": lambda: assignment(100, 20),
    "assign 100x63": lambda: assignment(100, 63),
    "assign 300x100": lambda: assignment(300, 100),
    "criterion 100x20x92": lambda: criterion(100, 20, 92),
    "criterion 100x20x91 focal": lambda: criterion(100, 20, 91, "focal"),
}


def rows_of(case: str, capability: int) -> list[Row]:
    """A row for each kernel that a case launches."""
    emulator = Emulator(capability)
    with emulator.active():
        CASES[case]()
    return [row_of(record, case.partition(" ")[2]) for record in emulator.records]


def row_of(record: Record, case: str) -> Row:
    near = slowest(record, "L1")
    far = slowest(record, "L2")
    return Row(
        kernel=record.kernel.removesuffix("_kernel"),
        case=case,
        capability=record.capability,
        warps=record.warps,
        instructions=near.instructions,
        barriers=near.counts["barrier"],
        cycles_l1=round(near.cycles),
        cycles_l2=round(far.cycles),
        microseconds_l1=round(near.microseconds, 1),
        microseconds_l2=round(far.microseconds, 1),
        most=most_of(near),
        triton=triton.__version__,
        date=datetime.date.today().isoformat(),
    )


def slowest(record: Record, cache: str) -> Estimate:
    """Of the programs of a launch, which ran in lockstep, so that all warps of one have one trace."""
    machine = record.machine
    estimates = [estimate(machine.generator, trace, cache) for [trace] in machine.traces]
    return max(estimates, key=lambda one: one.cycles)


def most_of(one: Estimate) -> str:
    shares = sorted(one.spent.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {cycles / one.cycles:.0%}" for name, cycles in shares)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.kernels.ptxsim", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["model"])
    parser.add_argument("--capability", type=int, nargs="+", default=[90], help="90 for sm_90, which is the default")
    parser.add_argument("--only", default="", metavar="WORD", help="only the cases whose name begins with WORD")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a row for each kernel, case and architecture")
    options = parser.parse_args()
    cases = [case for case in CASES if case.startswith(options.only)]
    if not cases:
        sys.exit(f"--only {options.only}: no case begins so; there are {', '.join(CASES)}")

    print(f"A MODEL of one program, nothing measured: all latencies and the clock of {CLOCK_GHZ} GHz are guesses.\n")
    print(line(COLUMNS))
    print(line(["---"] * len(COLUMNS)))
    rows = []
    for capability in options.capability:
        for case in cases:
            for row in rows_of(case, capability):
                print(line(row.cells()), flush=True)
                rows.append(row)
    if options.json:
        options.json.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()

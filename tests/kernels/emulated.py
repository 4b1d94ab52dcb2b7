"""Runs the compiled PTX of every kernel in the emulator, against the oracles.

A process of its own, because kernels that were imported under TRITON_INTERPRET=1 cannot be compiled:
python tests/kernels/emulated.py CAPABILITY MODE SEED [WORD]. Prints, for each case whose name begins with WORD, a line
of JSON with what was wrong, which is empty if nothing was. With "barriers" instead of MODE: what was noticed without
each of the barriers that the assignment runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import numpy as np
import torch
from actdet_kernels import (
    MatchWeights,
    frame_levels,
    gather_clips,
    match,
    pairwise_cost,
    set_loss,
    solve_assignment,
)
from oracles import (
    changed_clips,
    clip_error,
    costs,
    criterion,
    loss_case,
    random_boxes,
    random_clips,
    random_logits,
    random_targets,
    random_tubelets,
    soft_class_loss,
    tubelet_costs,
)
from ptxsim import launch
from ptxsim.generator import Generator
from ptxsim.launch import Emulator
from ptxsim.memory import Fault
from ptxsim.parser import Program
from scipy.optimize import linear_sum_assignment
from torch import Tensor

WEIGHTS = MatchWeights(1.3, 4.1, 0.7)
FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def cheapest(cost: Tensor, chosen: Tensor, count: int) -> None:
    """The rows chosen for the first `count` columns of a cost (N, M) are one-to-one and as cheap as SciPy's."""
    pairs = [(row, column) for column, row in enumerate(chosen.tolist()) if row != -1]
    assert all(0 <= row < len(cost) and column < count for row, column in pairs), pairs
    assert len({row for row, _ in pairs}) == len(pairs) == min(len(cost), count), pairs

    matrix = cost[:, :count].double().numpy()
    best = matrix[linear_sum_assignment(matrix)].sum()
    got = sum(matrix[pair] for pair in pairs)
    # The kernel's costs are rounded to float32: at most ten roundings of a cost in each pair.
    scale = max(1.0, float(np.abs(matrix).max(initial=0)))
    assert got - best <= 20 * len(pairs) * torch.finfo(FP32).eps * scale, f"{got}, SciPy has {best}"


def assign_case(rows: int, columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows + columns)
    cost = torch.rand(2, rows, columns, generator=generator, dtype=FP64).to(dtype)
    # Many ties in the second.
    cost[1] = (4 * cost[1]).round()
    counts = torch.tensor([columns, columns // 2])
    solution = solve_assignment(cost, counts, backend="triton")
    for problem, count in enumerate(counts.tolist()):
        cheapest(cost[problem], solution.row_of_column[problem], count)
    assert solution.status.tolist() == [0, 0], solution.status


def cost_case(
    dtype: torch.dtype, kind: Any, frames: int | None = None, gamma: float = 2.0, box_term: Any = "giou"
) -> None:
    counts = [5, 2, 0]
    logits = random_logits(3, 20, 7, seed=1, dtype=dtype)
    tube = () if frames is None else (frames,)
    boxes = random_boxes(3, 20, *tube, seed=1, dtype=dtype)
    if frames is None:
        targets = random_targets(counts, 5, 6, seed=1)
        wanted = costs(logits, boxes, targets, WEIGHTS, kind, gamma=gamma, box_term=box_term)
    else:
        targets = random_tubelets(counts, 5, frames, 6, seed=1)
        wanted = tubelet_costs(logits, boxes, targets, WEIGHTS, kind, box_term)
    options: Any = {"weights": WEIGHTS, "class_cost": kind, "gamma": gamma, "box_term": box_term}
    got = pairwise_cost(logits, boxes, targets, **options, backend="triton")
    eps = torch.finfo(torch.promote_types(dtype, FP32)).eps
    torch.testing.assert_close(got.double(), wanted, rtol=torch.finfo(dtype).eps + 16 * eps, atol=32 * eps)


def match_case(queries: int, size: int, classes: int, dtype: torch.dtype, kind: Any) -> None:
    counts = [size, size // 2]
    logits = random_logits(2, queries, classes, seed=2, dtype=dtype)
    boxes = random_boxes(2, queries, seed=2, dtype=dtype)
    targets = random_targets(counts, size, classes - 1, seed=2)
    wanted = costs(logits, boxes, targets, WEIGHTS, kind)
    matched = match(logits, boxes, targets, weights=WEIGHTS, class_cost=kind, backend="triton")
    for sample, count in enumerate(counts):
        cheapest(wanted[sample], matched[sample], count)


def loss_and_gradient_case(
    queries: int,
    classes: int,
    dtype: torch.dtype,
    kind: Any,
    gamma: float = 2.0,
    box_term: Any = "giou",
    weighted: bool = False,
) -> None:
    logits, boxes, targets, matched = loss_case((2,), queries, classes, [5, 0, 3], 6, kind)
    # Both sides start from what the kernel's type can hold.
    leaves = [[value.to(dtype).to(kept).requires_grad_() for value in (logits, boxes)] for kept in (dtype, FP64)]
    weights = torch.linspace(0.5, 2, classes) if weighted else None
    options: Any = {"gamma": gamma, "box_term": box_term, "class_weights": weights}
    got = set_loss(*leaves[0], targets, matched, weights=WEIGHTS, class_loss=kind, **options, backend="triton")
    terms = criterion(*leaves[1], targets, matched, 0.1, kind, **options)
    if kind in ("varifocal", "quality_focal"):
        terms = (soft_class_loss(*leaves[1], targets, matched, kind, 0.25, gamma), *terms[1:])
    total = sum(weight * term for weight, term in zip(WEIGHTS, terms, strict=True))

    eps = torch.finfo(torch.promote_types(dtype, FP32)).eps
    for mine, theirs in zip(got, (total, *terms), strict=True):
        torch.testing.assert_close(mine.detach().double(), theirs.detach().double(), rtol=64 * eps, atol=64 * eps)

    got.total.backward()
    total.backward()
    for mine, theirs in zip(*leaves, strict=True):
        scale = float(theirs.grad.abs().max())
        tolerance = torch.finfo(dtype).eps + 64 * eps
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance * scale)


def clip_case(dtype: torch.dtype, windows: bool, colour: bool) -> None:
    pool, indices, crops, factors = random_clips((6, 13, 21), 3, 5, seed=1)
    crops = crops if windows else None
    factors = factors if colour else None
    got = gather_clips(pool, indices, crops, factors, frame_levels(pool), dtype=dtype, backend="triton")
    wanted = torch.from_numpy(changed_clips(pool, indices, crops, factors))
    rounding = 0.0 if dtype == FP32 else torch.finfo(dtype).eps
    error = clip_error(pool, crops, factors)
    torch.testing.assert_close(got.double(), wanted, rtol=rounding, atol=error, equal_nan=True)


CASES: dict[str, Callable[[], None]] = {
    "assign 12x5 bf16": lambda: assign_case(12, 5, BF16),
    "assign 5x12 fp32": lambda: assign_case(5, 12, FP32),
    "assign 40x12 fp64": lambda: assign_case(40, 12, FP64),
    "assign 130x12 fp32": lambda: assign_case(130, 12, FP32),
    "cost softmax fp32": lambda: cost_case(FP32, "softmax"),
    "cost focal bf16": lambda: cost_case(BF16, "focal"),
    "cost gamma fp32": lambda: cost_case(FP32, "focal", gamma=1.5),
    "cost tubelets fp64": lambda: cost_case(FP64, "softmax", frames=3),
    "cost ciou tubelets fp32": lambda: cost_case(FP32, "softmax", frames=3, box_term="ciou"),
    "match 12x5 softmax fp32": lambda: match_case(12, 5, 3, FP32, "softmax"),
    "match 36x6 focal bf16": lambda: match_case(36, 6, 20, BF16, "focal"),
    "loss cross_entropy fp32": lambda: loss_and_gradient_case(12, 4, FP32, "cross_entropy"),
    "loss focal bf16": lambda: loss_and_gradient_case(20, 20, BF16, "focal"),
    "loss gamma fp32": lambda: loss_and_gradient_case(12, 4, FP32, "focal", gamma=1.5),
    "loss ciou fp32": lambda: loss_and_gradient_case(12, 4, FP32, "cross_entropy", box_term="ciou"),
    "loss weights fp32": lambda: loss_and_gradient_case(12, 4, FP32, "cross_entropy", weighted=True),
    "loss weights focal bf16": lambda: loss_and_gradient_case(20, 20, BF16, "focal", weighted=True),
    "loss varifocal fp32": lambda: loss_and_gradient_case(12, 4, FP32, "varifocal", gamma=1.5),
    "loss quality_focal fp32": lambda: loss_and_gradient_case(12, 4, FP32, "quality_focal"),
    "clips bf16": lambda: clip_case(BF16, windows=True, colour=True),
    "clips fp32": lambda: clip_case(FP32, windows=True, colour=False),
}


def wrong_with(case: Callable[[], None], emulator: Emulator) -> str:
    try:
        with emulator.active():
            case()
    except (AssertionError, Fault, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    if not emulator.records:
        return "nothing was launched"
    return "; ".join(f"{count} x {' / '.join(key)}" for key, count in emulator.races().items())


def without_each_barrier(capability: int) -> dict[str, str]:
    """Removes the barriers of a solver of several warps one by one, and says what was noticed of it."""
    cost = torch.rand(1, 130, 12, generator=torch.Generator().manual_seed(2))
    launch.COMPILED.clear()
    emulator = Emulator(capability)
    with emulator.active():
        solve_assignment(cost, backend="triton")
    assert not emulator.races()
    [(key, (generator, shared))] = launch.COMPILED.items()
    program = generator.program
    ran = {site for _, traces in emulator.records[0].machine.traces for trace in traces for site in trace}

    noticed = {}
    for segment in generator.segments:
        for index, instruction in enumerate(segment.instructions, segment.start):
            if segment.index not in ran or instruction.base != "bar" or "warp" in instruction.parts:
                continue
            # A barrier of the warp alone: what it orders within the warp stays as it was.
            weaker = replace(instruction, opcode="bar.warp.sync", operands=["-1"], parts=["bar", "warp", "sync"])
            changed = [*program.instructions[:index], weaker, *program.instructions[index + 1 :]]
            # A fresh copy, since a program remembers the numbers of its instructions.
            mutant = Program(**{f.name: getattr(program, f.name) for f in fields(program)} | {"instructions": changed})
            launch.COMPILED[key] = Generator(mutant), shared
            emulator = Emulator(capability)
            try:
                with emulator.active():
                    solve_assignment(cost, backend="triton")
                found = ", ".join(sorted({kind for kind, *_ in emulator.races()}))
            except Fault as fault:
                found = str(fault)
            noticed[f"line {instruction.line}"] = found
    return noticed


if __name__ == "__main__":
    capability, mode, seed, *words = sys.argv[1:]
    if mode == "barriers":
        print(json.dumps(without_each_barrier(int(capability))))
        sys.exit()
    for name, case in CASES.items():
        if not words or name.startswith(words[0]):
            print(json.dumps({name: wrong_with(case, Emulator(int(capability), mode, int(seed)))}), flush=True)

"""Counts the inner steps of the solver, by running the kernels in Triton's interpreter: TRITON_INTERPRET=1 steps.py

Writes one JSON object a line. The steps depend on the costs alone, so they are the same on every device. Some problems
of each size are solved, not all: the interpreter takes milliseconds for a step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from actdet_kernels import Targets, Tubelets, assign, match
from actdet_kernels.triton import assignment

from bench.cases import MATRICES, REGIMES, SIZES, Matrices, Problem, make_cost, make_problem
from bench.interpreter import quick_interpreter

MOST_PROBLEMS = 2
MOST_ENTRIES = 2**17  # of the matrices of one size: of large ones, one is solved
CPU = torch.device("cpu")


def main() -> None:
    torch.set_num_threads(1)
    for operation, sizes in (("match", SIZES), ("assign", MATRICES)):
        for size in sizes:
            for regime in REGIMES:
                print(json.dumps(count(operation, size, regime)), flush=True)


def count(operation: str, size: Any, regime: str) -> dict[str, Any]:
    """The mean and the largest number of steps of a problem, and how many rows the greedy start places."""
    if operation == "match":
        problems = [lambda one=one: match(*one, backend="triton") for one in single(make_problem(size, regime, CPU))]
        smaller, larger = sorted((size.queries, size.targets))
    else:
        matrices = make_cost(Matrices(min(size.problems, MOST_PROBLEMS), *size[1:]), regime, CPU)
        problems = [lambda one=one: assign(one[None], backend="triton") for one in matrices]
        smaller, larger = sorted(size[1:])
    problems = problems[: max(MOST_ENTRIES // (smaller * larger), 1)]
    searches = [searches_of(problem) for problem in problems]
    steps = [sum(search) for search in searches]
    return {
        "operation": operation,
        "size": str(size),
        "regime": regime,
        "problems": len(problems),
        "rows": smaller,
        "placed": sum(smaller - len(search) for search in searches) / len(problems),
        "steps": sum(steps) / len(problems),
        "most": max(steps),
    }


def single(problem: Problem) -> list[tuple[Any, ...]]:
    """Some problems of a batch, each a batch of its own."""
    logits, boxes, targets = problem
    kind: type[Targets | Tubelets] = type(targets)
    return [
        (logits[-1, sample, None], boxes[-1, sample, None], kind(*(value[sample, None] for value in targets)))
        for sample in range(min(len(targets.labels), MOST_PROBLEMS))
    ]


def searches_of(solve: Callable[[], Any]) -> list[int]:
    """How many steps it takes to place each row that the greedy start leaves: a step looks for the nearest column."""
    searches: list[int] = []
    # In the interpreter it takes and gives tensors; by its signature, what a kernel is compiled from.
    look: Any = assignment.least_and_first

    def counted(distance: Any, tie: Any, redux: Any) -> Any:
        nearest, first = look(distance, tie, redux)
        if len(distance.shape) == 1:
            searches[-1] += 1
            if first.handle.data.item() < distance.shape[0]:  # a free column: the search is over
                searches.append(0)
        return nearest, first

    searches.append(0)
    with quick_interpreter(), mock.patch.object(assignment, "least_and_first", counted):
        solve()
    return searches[:-1]


if __name__ == "__main__":
    sys.exit(main())

"""The aims in bench/README.md say what the committed rows of the H100 say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
README = (BENCH / "README.md").read_text()
ROWS = [row for file in (BENCH / "results").glob("h100_*.json") for row in json.loads(file.read_text())]


def time(operation: str, size: str, regime: str, name: str = "actdet", figure: str = "graph_us") -> float:
    """Microseconds."""
    key = {"kind": "time", "operation": operation, "size": size, "regime": regime, "name": name}
    (row,) = [row for row in ROWS if row.items() >= key.items()]
    return row[figure]["median"]


def line(aim: str) -> str:
    """What was found, without emphasis."""
    (found,) = [line for line in README.splitlines() if line.startswith(f"| {aim}")]
    return found.split(" | ")[1].removesuffix(" |").replace("**", "")


@pytest.mark.parametrize(("aim", "operation"), [("`match` at 100 queries", "match"), ("criterion at 100", "criterion")])
def test_times_in_a_graph(aim: str, operation: str) -> None:
    found = [time(operation, "B16xL6xN100xM20", regime) for regime in ("trained", "uniform", "near-identical")]
    assert line(aim) == "{:.1f} us trained, {:.1f} us uniform, {:.1f} us near-identical".format(*found)


def test_assignment_against_another_on_the_gpu() -> None:
    peer = "torch-linear-assignment"
    theirs = [row for row in ROWS if row["kind"] == "time" and row["name"] == peer]
    pairs: list[tuple[float, float]] = []
    for row in theirs:
        key = (row["operation"], row["size"], row["regime"])
        slow: Any = row["eager_us"]["median"]
        assert row["graph_us"] is None
        pairs.append((slow / time(*key), slow / time(*key, figure="eager_us")))
    graph, eager = zip(*pairs, strict=True)
    ratios = f"{min(graph):.1f} to {max(graph):.0f} times"
    assert line("`assign` 8 times").startswith(ratios)
    assert line("`assign` 8 times").endswith(f"launched one by one, {min(eager):.1f} to {max(eager):.1f}")


def test_the_training_step() -> None:
    ours, plain = (time("training step", "8 of 16x224x224", "bf16", name, "wall_us") for name in ("actdet", "plain"))
    assert line("24 clips") == f"{3e-6 * ours:.2f} s at 8 clips a step"
    assert line("3 times the plain step") == f"{plain / ours:.2f}"
    (step,) = [row for row in ROWS if row["kind"] == "step" and row["name"] == "actdet"]
    assert line("40 % of the card") == f"{100 * step['share_of_matmul']:.0f} %"

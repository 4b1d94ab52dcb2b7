"""Turns the rows that the benchmarks write into Markdown tables and plots.

python -m bench.report FILE... [--out DIR]               writes DIR/report.md and its plots
python -m bench.report bench/results/*.json --readme     writes the same into bench/README.md and bench/results
"""

from __future__ import annotations

import argparse
import html
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.rows import COMPILED, KEYS, STEP, ReportError, Row, grouped, read

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- report: begin -->", "<!-- report: end -->"
OURS = "actdet"
DASH = "—"
LEGEND = (
    "Median times; in brackets, the time of an opponent over that of actdet, **bold** where actdet is slower. On a GPU,"
    " calls are replayed from a CUDA graph; † marks those that cannot be captured and are launched one by one."
)
RESOURCES = (
    "Peak memory is (input + what the call allocates) / (input + output). Of copy rate: the bytes of input and output"
    " over the time in a graph, as a share of what a large copy reaches on this card."
)


class Time(NamedTuple):
    us: float
    uncaptured: bool = False


class Comparison(NamedTuple):
    """An opponent's time over that of actdet."""

    ratio: float
    name: str
    line: tuple[str, str]
    uncaptured: bool

    def __str__(self) -> str:
        return plain(f"{times(self.ratio)} ({self.name}, {', '.join(self.line)})")


Lines = dict[tuple[str, str], dict[str, Row]]  # (size, regime) -> name -> row


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON: a list of rows")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/bench"), help="default: %(default)s")
    where.add_argument("--readme", action="store_true", help="write into bench/README.md, and plots to bench/results")
    options = parser.parse_args(arguments)
    plots = README.parent / "results" if options.readme else options.out
    try:
        rows = read(options.files)
        text = within_readme(report(rows, images="results/")) if options.readme else report(rows, images="")
        plots.mkdir(parents=True, exist_ok=True)
        for name, figure in figures(rows).items():
            figure.savefig(plots / name, metadata={"Software": None})
        (README if options.readme else plots / "report.md").write_text(text, encoding="utf-8")
    except ReportError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or plots}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


# Markdown


def report(rows: Sequence[Row], images: str) -> str:
    """All of it; `images` stands before the names of the plots."""
    blocks = [LEGEND]
    for device, of_device in grouped(rows, lambda row: row["device"]).items():
        blocks += [f"## {plain(device)}", about(of_device)]
        of_kind = grouped(of_device, lambda row: row["kind"])
        for operation, timed in grouped(of_kind.get("time", []), lambda row: row["operation"]).items():
            lines = lines_of(timed)
            blocks += [f"### {plain(operation)}: time", *time_table(lines), summary(lines)]
            if comparisons(lines):
                alt = f"{operation} on {device}: time of each opponent over that of actdet"
                blocks.append(f"![{plain(alt)}]({images}{plot_name(device, operation)})")
            if any("graph_us" in row for row in timed):
                blocks += [f"### {plain(operation)}: resources", RESOURCES, resources_table(lines)]
        for kind, title, make in (
            ("steps", "Steps of the solver", steps_table),
            ("compiled", "What the kernels compile to", compiled_table),
            ("counted", "Launches and reads", counted_table),
            ("step", "The training step: where the time goes", parts_table),
            ("account", "The training step on paper", account_table),
            ("memory", "The largest batch, by estimate", memory_table),
            ("decode", "Reading video: rates", rates_table),
            ("stall", "The share of training that waits for clips", stall_table),
            ("start", "From the command to its work", start_table),
        ):
            if kind in of_kind:
                blocks += [f"### {title}", make(of_kind[kind])]
    return "\n\n".join(blocks) + "\n"


def within_readme(text: str) -> str:
    lines = README.read_text(encoding="utf-8").splitlines()
    for marker in (BEGIN, END):
        if lines.count(marker) != 1:
            raise ReportError(f"{README}: {lines.count(marker)} lines are {marker}, not one")
    begin, end = lines.index(BEGIN), lines.index(END)
    if end < begin:
        raise ReportError(f"{README}: {END} stands before {BEGIN}")
    return "\n".join([*lines[: begin + 1], "", text, *lines[end:]]) + "\n"


def about(rows: Sequence[Row]) -> str:
    dates = sorted({row["date"] for row in rows})
    commits = dict.fromkeys(row["commit"] for row in rows)
    versions: dict[str, dict[str, None]] = {}
    for row in rows:
        for package, version in row["versions"].items():
            versions.setdefault(package, {})[str(version)] = None
    packages = [f"{package} {' and '.join(found)}" for package, found in versions.items()]
    return plain(f"{', '.join(dates)}; commit {', '.join(commits)}; {', '.join(packages)}.")


def time_table(lines: Lines) -> list[str]:
    """The table, and the numbered reasons why a time is not in it."""
    names, reasons, body = names_of(lines), [], []
    for line, rows in lines.items():
        ours, cells = time_of(rows.get(OURS)), []
        for name in names:
            if time := time_of(rows.get(name)):
                cells.append(compared(time, ours if name != OURS else None))
                continue
            reason = plain(rows[name]["why"] if name in rows else "not measured")
            reasons += [reason] if reason not in reasons else []
            cells.append(f"{DASH} <sup>{reasons.index(reason) + 1}</sup>")
        body.append([*map(plain, line), *cells])
    numbered = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return [table(["size", "regime", *map(plain, names)], body, texts=2), *([numbered] if reasons else [])]


def summary(lines: Lines) -> str:
    found = comparisons(lines)
    lost = {comparison.line for comparison in found if comparison.ratio < 1}
    contested = [line for line, rows in lines.items() if any(time_of(rows[name]) for name in rows if name != OURS)]
    won = [line for line in contested if line not in lost and time_of(lines[line].get(OURS))]
    parts = [f"actdet is fastest in {len(won)} of {len(contested)} lines"]
    if found:
        parts += [f"worst ratio {min(found)}", f"best {max(found)}"]
    if alone := len(lines) - len(contested):
        parts.append(f"no opponent has a time in {alone} more")
    return "; ".join(parts) + "."


def resources_table(lines: Lines) -> str:
    body = []
    for line, rows in lines.items():
        ours = rows.get(OURS, {})
        for name, row in rows.items():
            if "graph_us" not in row or "why" in row:
                continue
            times_of = [
                compared(median(row, field), median(ours, field) if name != OURS else None)
                for field in ("graph_us", "eager_us", "host_us")
            ]
            moved, graph = row["input_bytes"] + row["output_bytes"], median(row, "graph_us")
            rate = f"{digits(1e8 * moved / graph.us / row['copy_bytes_per_s'])} %" if graph else DASH
            memory = times((row["input_bytes"] + row["peak_bytes"]) / moved)
            counts = [row["launches"], row["synchronizations"]]
            body.append([*map(plain, (*line, name)), *times_of, *counts, memory, rate])
    columns = ["graph", "eager", "host", "launches", "synchronizations", "peak memory", "of copy rate"]
    return table(["size", "regime", "name", *columns], body, texts=3)


def steps_table(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        placed = f"{digits(row['placed'])} of {row['rows']}"
        found = [row["problems"], placed, digits(row["steps"]), row["most"]]
        body.append([*(plain(row[field]) for field in KEYS["steps"]), *found])
    header = ["operation", "size", "regime", "problems", "placed at the start", "steps, mean", "steps, most"]
    return table(header, body, texts=3)


def compiled_table(rows: Sequence[Row]) -> str:
    steps = STEP if any(row["step"] for row in rows) else ()
    body = []
    for row in rows:
        of_step = [row["step"][column] if row["step"] else DASH for column in steps]
        found = [row[column] for column in COMPILED]
        body.append([f"`{row['kernel']}`", plain(row["case"]), f"sm_{row['capability']}", *found, *of_step])
    header = ["kernel", "case", "architecture", *COMPILED, *(f"{column} of a step" for column in steps)]
    return table(header, body, texts=3)


def counted_table(rows: Sequence[Row]) -> str:
    ours = {(row["operation"], row["size"]): row["launches"] for row in rows if row["name"] == OURS}
    body = []
    for row in rows:
        least, launches = ours.get((row["operation"], row["size"])), f"{row['launches']:,}"
        if least and row["name"] != OURS:
            launches += f" ({emphasized(row['launches'] / least)})"
        body.append([*(plain(row[field]) for field in KEYS["counted"]), launches, row["reads"]])
    return table(["operation", "size", "name", "launches, at least", "reads by the host"], body, texts=3)


def parts_table(rows: Sequence[Row]) -> str:
    """Parts of a step, its rate, and the memory at its peak."""
    parts = list(dict.fromkeys(part for row in rows for part in row["parts"]))
    shares = any("share_of_matmul" in row for row in rows)
    body = []
    for row in rows:
        times_of = [duration(row["parts"][part]) if part in row["parts"] else DASH for part in parts]
        cells = [digits(row["clips_per_s"]), *times_of, f"{digits(row['peak_bytes'] / 1e9)} GB"]
        cells += [f"{digits(100 * row['share_of_matmul'])} %"] if shares else []
        body.append([*(plain(row[field]) for field in KEYS["step"][1:]), *cells])
    named = [part.removesuffix("_us") for part in parts]
    header = [
        "size",
        "precision",
        "name",
        "clips/s",
        *named,
        "peak memory",
        *(["of the card's rate"] if shares else []),
    ]
    return table(header, body, texts=3)


def account_table(rows: Sequence[Row]) -> str:
    """What each stage needs, and the least time that it takes by the data sheets; the sum is the step's."""
    cards = list(dict.fromkeys(card for row in rows for card in row["floor_us"]))
    body = []
    for (size, precision), stages in grouped(rows, lambda row: (row["size"], row["precision"])).items():
        for row in stages:
            floors = [duration(row["floor_us"][card]) for card in cards]
            needs = [f"{digits(row['flop'] / 1e9)}", f"{digits(row['bytes'] / 1e9)}"]
            body.append([plain(size), precision, plain(row["stage"]), *needs, *floors])
        floors = [f"**{duration(sum(row['floor_us'][card] for row in stages))}**" for card in cards]
        needs = [f"**{digits(sum(row[field] for row in stages) / 1e9)}**" for field in ("flop", "bytes")]
        body.append([plain(size), precision, "**all**", *needs, *floors])
    return table(["size", "precision", "stage", "GFLOP", "GB", *map(plain, cards)], body, texts=3)


def memory_table(rows: Sequence[Row]) -> str:
    memories = list(dict.fromkeys(memory for row in rows for memory in row["batches"]))
    body = [
        [plain(row["size"]), row["precision"], "yes" if row["checkpointing"] else "no"]
        + [row["batches"].get(memory, DASH) for memory in memories]
        for row in rows
    ]
    return table(["clips", "precision", "checkpointing", *memories], body, texts=3)


def rates_table(rows: Sequence[Row]) -> str:
    """Also how far the pictures are from PyAV's, on average."""
    body = []
    for row in rows:
        cells = [digits(row["clips_per_s"]), digits(row["bytes_per_s"] / 1e6), digits(row["frames_per_s"])]
        body.append([*(plain(row[field]) for field in KEYS["decode"]), *cells, digits(row["difference"])])
    header = ["size", "regime", "name", "clips/s", "MB/s of the file", "wanted frames/s", "of 255 from PyAV's"]
    return table(header, body, texts=3)


def stall_table(rows: Sequence[Row]) -> str:
    body = [
        [
            plain(row["size"]),
            row["reader"],
            row["epoch"],
            digits(row["clips_per_s"]),
            f"{digits(100 * row['data_share'])} %",
        ]
        for row in rows
    ]
    return table(["batches", "reader", "epoch", "clips/s", "waits for clips"], body, texts=2)


def start_table(rows: Sequence[Row]) -> str:
    body = [
        [f"`{plain(row['command'])}`", digits(row["cpu_s"]), DASH if row["limit_s"] is None else digits(row["limit_s"])]
        for row in rows
    ]
    return table(["command", "s of one core", "at most"], body, texts=1)


def table(header: Sequence[str], body: Iterable[Sequence[object]], texts: int) -> str:
    """In Markdown; the first `texts` columns are flush left, and all others right."""
    rule = ["---"] * texts + ["--:"] * (len(header) - texts)
    shown = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in body]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *shown))


# Cells


def compared(time: Time | None, ours: Time | None) -> str:
    if time is None:
        return DASH
    ratio = f" ({emphasized(time.us / ours.us)})" if ours else ""
    return duration(time.us) + "†" * time.uncaptured + ratio


def emphasized(ratio: float) -> str:
    return f"**{times(ratio)}**" if ratio < 1 else times(ratio)


def times(ratio: float) -> str:
    return f"{digits(ratio)}x"


def duration(us: float) -> str:
    us = rounded(us)
    if us < 1e3:
        return f"{digits(us)} µs"
    return f"{digits(us / 1e3)} ms" if us < 1e6 else f"{digits(us / 1e6)} s"


def digits(value: float) -> str:
    """Three significant digits, and all of those before the point."""
    if value == 0:
        return "0"
    value = rounded(value) if value < 1000 else value
    return f"{value:,.{max(2 - math.floor(math.log10(value)), 0)}f}"


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return " ".join(html.escape(text, quote=False).replace("|", r"\|").split())


# Rows


def lines_of(timed: Iterable[Row]) -> Lines:
    lines: Lines = {}
    for row in timed:
        lines.setdefault((row["size"], row["regime"]), {})[row["name"]] = row
    return lines


def names_of(lines: Lines) -> list[str]:
    """actdet, and then its opponents."""
    return list(dict.fromkeys([OURS, *(name for rows in lines.values() for name in rows)]))


def time_of(row: Row | None) -> Time | None:
    """In a graph where it can be captured; None where there is no time."""
    if row is None or "why" in row:
        return None
    if "graph_us" not in row:
        return median(row, "wall_us")
    return median(row, "graph_us") or Time(row["eager_us"]["median"], uncaptured=True)


def median(row: Row, field: str) -> Time | None:
    return Time(row[field]["median"]) if row.get(field) and "why" not in row else None


def comparisons(lines: Lines) -> list[Comparison]:
    found = []
    for line, rows in lines.items():
        if ours := time_of(rows.get(OURS)):
            others = {name: time_of(row) for name, row in rows.items() if name != OURS}
            found += [
                Comparison(time.us / ours.us, name, line, time.uncaptured) for name, time in others.items() if time
            ]
    return found


# Plots


def plot_name(device: str, operation: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{device} {operation}".lower()).strip("-") + ".png"


def figures(rows: Iterable[Row]) -> dict[str, Figure]:
    """File name -> a plot, for each device and operation with something to compare."""
    plots = {}
    for device, timed in grouped((row for row in rows if row["kind"] == "time"), lambda row: row["device"]).items():
        for operation, of_operation in grouped(timed, lambda row: row["operation"]).items():
            lines = lines_of(of_operation)
            if comparisons(lines):
                plots[plot_name(device, operation)] = figure_of(lines, f"{operation} on {device}")
    return plots


def figure_of(lines: Lines, title: str) -> Figure:
    """A dot for each opponent and line, hollow where it is not captured in a graph."""
    figure = Figure(figsize=(9, 1.8 + 0.28 * len(lines)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    heights, found = {line: height for height, line in enumerate(lines)}, comparisons(lines)
    for number, name in enumerate(names_of(lines)[1:]):
        dots = [comparison for comparison in found if comparison.name == name]
        if dots:
            color, ratios = f"C{number}", [dot.ratio for dot in dots]
            faces = ["white" if dot.uncaptured else color for dot in dots]
            axes.scatter([], [], color=color, label=name)
            axes.scatter(ratios, [heights[dot.line] for dot in dots], c=faces, edgecolors=color, zorder=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    ratios = [comparison.ratio for comparison in found]
    axes.set_xlim(min(0.5, 0.7 * min(ratios)), max(2, 1.4 * max(ratios)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:,g}x"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(list(heights.values()), [", ".join(line) for line in heights])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    hollow = "; hollow: not in a CUDA graph" if any(comparison.uncaptured for comparison in found) else ""
    axes.set_xlabel(f"time over that of actdet (right of 1: actdet is faster{hollow})")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())

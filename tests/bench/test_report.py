"""The benchmarks' tables hold what their rows say, and losses and missing times are seen."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import report
from bench import rows as rows_module

CPU, GPU = "Some CPU", "Card | 9000"
SMALL, LARGE = "B16xL6xN100xM20", "1 of 1024x1024"
STEP = {"instructions": 11, "barriers": 12, "shuffles": 13, "reductions": 14, "loads": 15, "special": 16}
SIZES = {"input_bytes": 900, "output_bytes": 100}  # of every timed row


def about(device: str, kind: str) -> dict[str, Any]:
    versions = {"torch": "2.9.0", "triton": "3.5.0"}
    return {"device": device, "versions": versions, "commit": "abc1234", "date": "2026-02-03", "kind": kind}


def quantiles(us: float) -> dict[str, float]:
    return {"median": us, "p10": 0.9 * us, "p90": 1.1 * us, "rounds": 30}


def timed(name: str, result: float | str, size: str = LARGE, regime: str = "uniform") -> dict[str, Any]:
    """On a CPU: microseconds, or why there are none."""
    row = about(CPU, "time") | {"operation": "assign", "size": size, "regime": regime, "name": name}
    return row | ({"why": result} if isinstance(result, str) else {"wall_us": quantiles(result), **SIZES})


def timed_on_gpu(name: str, graph: float | None, eager: float, **fields: Any) -> dict[str, Any]:
    row = about(GPU, "time") | {"operation": "match", "size": SMALL, "regime": "trained", "name": name}
    row |= {"graph_us": None if graph is None else quantiles(graph), "eager_us": quantiles(eager)}
    row |= {"host_us": quantiles(2 * eager), "launches": 1, "synchronizations": 0}
    return row | {"peak_bytes": 0, "copy_bytes_per_s": 2e9} | SIZES | fields


def counted(name: str, launches: int, reads: int) -> dict[str, Any]:
    row = {"operation": "match", "size": SMALL, "name": name, "launches": launches, "reads": reads}
    return about(CPU, "counted") | row


def compiled(capability: int, step: dict[str, int] | None) -> dict[str, Any]:
    row = {"kernel": "match_kernel", "case": "100 queries", "capability": capability, "warps": 4, "registers": 168}
    return about(CPU, "compiled") | row | {"spill": 8, "shared": 2048, "instructions": 12345, "step": step}


def decoded(name: str, clips_per_s: float) -> dict[str, Any]:
    row = about(CPU, "decode") | {"size": "H.264, GOP 30", "regime": "uniform", "name": name, "difference": 1.234}
    return row | {"clips_per_s": clips_per_s, "bytes_per_s": 2.5e6 * clips_per_s, "frames_per_s": 16 * clips_per_s}


STALL = about(CPU, "stall") | {"size": "8 of 8x48x48", "reader": "pyav", "epoch": 1}
STALL |= {"clips_per_s": 12.345, "data_share": 0.0321}
START = about(CPU, "start") | {"command": "actdet --help", "cpu_s": 0.4321, "limit_s": 1.0}
STEPS = about(CPU, "steps") | {"operation": "match", "size": SMALL, "regime": "trained", "problems": 96, "rows": 20}
STEPS |= {"placed": 18.25, "steps": 1.5, "most": 7}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def report_of(rows: Sequence[dict[str, Any]], out: Path) -> str:
    file = write(out.parent / "rows.json", rows)
    assert report.main([str(file), "--out", str(out)]) == 0
    return (out / "report.md").read_text()


def body(text: str, heading: str) -> list[list[str]]:
    """The header and lines of the table below a heading."""
    section = text.split(f"\n### {heading}\n")[1].split("\n#")[0]
    rows = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in section.splitlines() if line.startswith("| ")]
    return [rows[0], *rows[2:]]


def test_a_cell_has_the_time_and_the_ratio_and_a_loss_is_bold(out: Path) -> None:
    rows = [timed("scipy", 2180.4), timed("actdet", 126.0), timed("lapx", 54.2), timed("other", 2.5e6)]
    text = report_of(rows, out)
    header, line = body(text, "assign: time")
    assert header == ["size", "regime", "actdet", "scipy", "lapx", "other"]
    assert line == [LARGE, "uniform", "126 µs", "2.18 ms (17.3x)", "54.2 µs (**0.430x**)", "2.50 s (19,841x)"]
    assert "\n| --- | --- | --: | --: | --: | --: |\n" in text


def test_the_summary_counts_losses_and_names_the_extremes(out: Path) -> None:
    rows = [timed("actdet", 100.0), timed("scipy", 300.0), timed("lapx", 200.0)]
    rows += [timed("actdet", 100.0, regime="trained"), timed("scipy", 900.0, regime="trained")]
    rows += [
        timed("lapx", 50.0, regime="trained"),
        timed("actdet", 100.0, "5 of 9x9"),
        timed("scipy", "no", "5 of 9x9"),
    ]
    rows += [timed("actdet", "no", "6 of 9x9"), timed("scipy", 1.0, "6 of 9x9")]
    assert (
        f"\nactdet is fastest in 1 of 3 lines; worst ratio 0.500x (lapx, {LARGE}, trained); "
        f"best 9.00x (scipy, {LARGE}, trained); no opponent has a time in 1 more.\n"
    ) in report_of(rows, out)


def test_a_missing_time_has_its_reason_once(out: Path) -> None:
    rows = [timed("actdet", 100.0), timed("scipy", "not <here>"), timed("lapx", "disagrees\nwith it")]
    rows += [timed("actdet", "out of memory", "5 of 9x9"), timed("scipy", "not <here>", "5 of 9x9")]
    text = report_of(rows, out)
    assert body(text, "assign: time")[1:] == [
        [LARGE, "uniform", "100 µs", "— <sup>1</sup>", "— <sup>2</sup>"],
        ["5 of 9x9", "uniform", "— <sup>3</sup>", "— <sup>1</sup>", "— <sup>4</sup>"],
    ]
    assert "\n\n1. not &lt;here&gt;\n2. disagrees with it\n3. out of memory\n4. not measured\n\n" in text
    assert "fastest in 0 of 0 lines; no opponent has a time in 2 more." in text
    assert "![" not in text
    assert not list(out.glob("*.png"))


def test_an_opponent_has_its_time_where_actdet_has_none(out: Path) -> None:
    rows = [timed("actdet", "absent"), timed("scipy", 300.0)]
    assert body(report_of(rows, out), "assign: time")[1][2:] == ["— <sup>1</sup>", "300 µs"]


def test_on_a_gpu_the_graph_counts_and_what_cannot_be_captured_is_marked(out: Path) -> None:
    text = report_of([timed_on_gpu("actdet", 10.0, 40.0), timed_on_gpu("scipy", None, 5000.0)], out)
    assert body(text, "match: time")[1] == [SMALL, "trained", "10.0 µs", "5.00 ms† (500x)"]


def test_resources_on_a_gpu(out: Path) -> None:
    rows = [
        timed_on_gpu("actdet", 1.0, 40.0, peak_bytes=150),
        timed_on_gpu("scipy", None, 20.0, launches=1234, synchronizations=6),
        timed_on_gpu("lapx", None, 20.0, regime="uniform", why="absent"),
    ]
    text = report_of(rows, out)
    assert body(text, "match: resources")[1:] == [
        [SMALL, "trained", "actdet", "1.00 µs", "40.0 µs", "80.0 µs", "1", "0", "1.05x", "50.0 %"],
        [SMALL, "trained", "scipy", "—", "20.0 µs (**0.500x**)", "40.0 µs (**0.500x**)", "1,234", "6", "0.900x", "—"],
    ]
    assert r"## Card \| 9000" in text
    assert "resources" not in report_of([timed("actdet", 1.0), timed("scipy", 2.0)], out)


def test_steps_compiled_and_counted_tables(out: Path) -> None:
    rows = [STEPS, compiled(90, STEP), compiled(100, None), counted("actdet", 2, 0)]
    text = report_of([*rows, counted("eager", 2468, 6), counted("less", 1, 0)], out)
    assert body(text, "Steps of the solver")[1] == ["match", SMALL, "trained", "96", "18.2 of 20", "1.50", "7"]
    header, first, second = body(text, "What the kernels compile to")
    assert header[8:] == [f"{column} of a step" for column in STEP]
    assert first[:8] == ["`match_kernel`", "100 queries", "sm_90", "4", "168", "8", "2,048", "12,345"]
    assert first[8:] == ["11", "12", "13", "14", "15", "16"]
    assert second[2:3] + second[8:] == ["sm_100"] + ["—"] * 6
    assert [line[2:] for line in body(text, "Launches and reads")[1:]] == [
        ["actdet", "2", "0"],
        ["eager", "2,468 (1,234x)", "6"],
        ["less", "1 (**0.500x**)", "0"],
    ]


def test_rates_of_decoding_and_the_share_that_waits(out: Path) -> None:
    text = report_of([decoded("actdet", 4.0), decoded("OpenCV | 5", 0.5), STALL, STALL | {"epoch": 2}], out)
    header, *lines = body(text, "Reading video: rates")
    assert header == ["size", "regime", "name", "clips/s", "MB/s of the file", "wanted frames/s", "of 255 from PyAV's"]
    assert lines == [
        ["H.264, GOP 30", "uniform", "actdet", "4.00", "10.0", "64.0", "1.23"],
        ["H.264, GOP 30", "uniform", r"OpenCV \| 5", "0.500", "1.25", "8.00", "1.23"],
    ]
    assert body(text, "The share of training that waits for clips") == [
        ["batches", "reader", "epoch", "clips/s", "waits for clips"],
        ["8 of 8x48x48", "pyav", "1", "12.3", "3.21 %"],
        ["8 of 8x48x48", "pyav", "2", "12.3", "3.21 %"],
    ]


def test_what_a_command_takes_to_start_has_its_limit_beside_it(out: Path) -> None:
    free = START | {"command": "actdet train a|b", "cpu_s": 4.5, "limit_s": None}
    assert body(report_of([START, free], out), "From the command to its work") == [
        ["command", "s of one core", "at most"],
        ["`actdet --help`", "0.432", "1.00"],
        [r"`actdet train a\|b`", "4.50", report.DASH],
    ]


def test_a_device_has_one_section_with_all_that_it_was_measured_with(out: Path) -> None:
    later = timed("scipy", 2.0) | {"date": "2026-01-02", "commit": "fff", "versions": {"torch": "3.0"}}
    text = report_of([timed("actdet", 1.0), timed_on_gpu("actdet", 1.0, 2.0), later], out)
    assert re.findall(r"^## (.*)", text, flags=re.MULTILINE) == [CPU, r"Card \| 9000"]
    assert "\n2026-01-02, 2026-02-03; commit abc1234, fff; torch 2.9.0 and 3.0, triton 3.5.0.\n" in text


@pytest.mark.parametrize(
    ("us", "shown"),
    [(0.01234, "0.0123 µs"), (9.996, "10.0 µs"), (999.4, "999 µs"), (999.6, "1.00 ms"), (999_600, "1.00 s")],
)
def test_durations_have_three_digits_and_their_unit(us: float, shown: str) -> None:
    assert report.duration(us) == shown


def test_each_comparison_has_its_plot_and_is_a_dot_in_it(out: Path) -> None:
    rows = [timed("actdet", 1.0), timed("scipy", 2.0), timed("lapx", "absent")]
    rows += [timed_on_gpu("actdet", 10.0, 1.0), timed_on_gpu("scipy", None, 5.0)]
    text = report_of(rows, out)
    names = ["some-cpu-assign.png", "card-9000-match.png"]
    assert re.findall(r"!\[.*\]\((.*)\)", text) == names
    for name in names:
        assert (out / name).read_bytes().startswith(b"\x89PNG\r\n")
    (axes,) = report.figures(rows)["card-9000-match.png"].axes
    in_the_legend, dots = axes.collections
    assert in_the_legend.get_label() == "scipy"
    assert np.asarray(dots.get_offsets()).tolist() == [[0.5, 0]]
    assert np.asarray(dots.get_facecolor()).tolist() == [[1, 1, 1, 1]]
    assert axes.get_xlim()[0] < 0.4
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{SMALL}, trained"]


def test_files_are_read_together_and_a_second_run_gives_the_same_bytes(tmp_path: Path, out: Path) -> None:
    files = [write(tmp_path / "a.json", [timed("actdet", 1.0)]), write(tmp_path / "b.json", [timed("scipy", 3.0)])]
    runs = []
    for _ in range(2):
        assert report.main([*map(str, files), "--out", str(out)]) == 0
        runs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert runs[0] == runs[1]
    assert runs[0].keys() == {"report.md", "some-cpu-assign.png"}
    assert "3.00 µs (3.00x)" in runs[0]["report.md"].decode()


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{report.BEGIN}\nthe report before\n{report.END}\n\nlast\n")
    monkeypatch.setattr(report, "README", path)
    return path


def test_the_readme_keeps_what_is_around_the_report(tmp_path: Path, readme: Path) -> None:
    file = write(tmp_path / "rows.json", [timed("actdet", 1.0), timed("scipy", 3.0)])
    assert report.main([str(file), "--readme"]) == 0
    once = readme.read_text()
    assert report.main([str(file), "--readme"]) == 0
    assert readme.read_text() == once
    assert once.startswith(f"# Title\n\n{report.BEGIN}\n\n{report.LEGEND}\n\n## {CPU}\n")
    assert once.endswith(f"\n\n{report.END}\n\nlast\n")
    assert "the report before" not in once
    (plot,) = re.findall(r"!\[.*\]\((.*)\)", once)
    assert plot == "results/some-cpu-assign.png"
    assert (readme.parent / plot).is_file()


@pytest.mark.parametrize("text", ["# Title\n", f"{report.END}\n{report.BEGIN}\n", f"{report.BEGIN}\n" * 2])
def test_a_readme_without_its_markers_is_left_alone(
    text: str, tmp_path: Path, readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme.write_text(text)
    file = write(tmp_path / "rows.json", [timed("actdet", 1.0), timed("scipy", 3.0)])
    assert report.main([str(file), "--readme"]) == 1
    assert capsys.readouterr().err.startswith(f"{readme}: ")
    assert readme.read_text() == text
    assert not (readme.parent / "results").exists()


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != field}


GOOD = timed("actdet", 1.0)
ON_GPU = timed_on_gpu("actdet", 1.0, 2.0)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ({"rows": []}, "not a list of rows"),
        ([GOOD, 3], "row 2: not an object"),
        ([GOOD, without(GOOD, "kind")], "row 2: has no kind"),
        (
            [GOOD | {"kind": ["time"]}],
            "row 1: kind is ['time'], not one of time, steps, compiled, counted, step, account, memory, decode, stall, "
            "start",
        ),
        *(([without(GOOD, field)], f"row 1: has no {field}") for field in ("device", "versions", "commit", "date")),
        *(([without(GOOD, field)], f"row 1: has no {field}") for field in ("size", "name", "wall_us")),
        *(([without(ON_GPU, field)], f"row 1: has no {field}") for field in rows_module.GPU_FIELDS),
        *(([without(STEPS, field)], f"row 1: has no {field}") for field in rows_module.FIELDS["steps"]),
        *(([without(compiled(90, None), field)], f"row 1: has no {field}") for field in rows_module.FIELDS["compiled"]),
        *(([without(counted("a", 1, 1), field)], f"row 1: has no {field}") for field in rows_module.FIELDS["counted"]),
        *(([without(decoded("a", 1.0), field)], f"row 1: has no {field}") for field in rows_module.FIELDS["decode"]),
        *(([without(STALL, field)], f"row 1: has no {field}") for field in rows_module.FIELDS["stall"]),
        *(([without(START, field)], f"row 1: has no {field}") for field in rows_module.FIELDS["start"]),
        ([START | {"limit_s": "1"}], "row 1: limit_s is '1', not int | float | None"),
        ([decoded("a", 0.0)], "row 1: clips_per_s is 0.0, which is too little"),
        ([GOOD | {"wall_us": {"p10": 1.0}}], "row 1: wall_us: has no median"),
        ([GOOD | {"wall_us": {"median": 0}}], "row 1: wall_us: median is 0, which is too little"),
        ([GOOD | {"wall_us": None}], "row 1: wall_us is None, not dict"),
        ([GOOD | {"why": None}], "row 1: why is None, not str"),
        ([ON_GPU | {"launches": 1.5}], "row 1: launches is 1.5, not int"),
        ([ON_GPU | {"copy_bytes_per_s": 0.0}], "row 1: copy_bytes_per_s is 0.0, which is too little"),
        ([STEPS | {"steps": -1}], "row 1: steps is -1, which is too little"),
        ([STEPS | {"steps": "7"}], "row 1: steps is '7', not int | float"),
        ([STEPS | {"steps": float("nan")}], "not JSON: NaN is no number"),
        ([compiled(90, without(STEP, "loads"))], "row 1: step: has no loads"),
    ],
)
def test_a_faulty_row_is_named_in_one_line(
    rows: Any, fault: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "rows.json", rows)
    assert report.main([str(file), "--out", str(out)]) == 1
    assert re.fullmatch(rf"{re.escape(str(file))}[:,] {re.escape(fault)}\n", capsys.readouterr().err)
    assert not out.exists()


def test_a_row_measured_twice_is_refused(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write(tmp_path / name, [GOOD]) for name in ("a.json", "b.json"))
    assert report.main([str(first), str(second), "--out", str(out)]) == 1
    what = f"{CPU}, time, assign, {LARGE}, uniform, actdet"
    assert capsys.readouterr().err == f"{second}, row 1: {what} is already in {first}, row 1\n"


def test_files_that_cannot_be_read_are_named_in_one_line(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, broken, binary = (tmp_path / name for name in ("missing.json", "broken.json", "binary.json"))
    broken.write_text("[{]")
    binary.write_bytes(b"\xff\xfe")
    for file, fault in ((missing, "No such file or directory"), (broken, "not JSON: "), (binary, "not JSON: ")):
        assert report.main([str(file), "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{file}: {fault}")
        assert error.count("\n") == 1

"""The figures in README and docs are those of the JSON files that the commands beside them wrote."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FIGURES = (ROOT / "docs/figures.md").read_text()
DATA = (ROOT / "docs/data.md").read_text()
TRAINING = (ROOT / "docs/training.md").read_text()
TUBELET = (ROOT / "docs/tubelet.md").read_text()
STMA = (ROOT / "docs/stma.md").read_text()
COLUMNS = ("video_accuracy", "detection_accuracy", "mean_iou")


def figures_of(row: str, page: str = FIGURES) -> list[float]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {row} |"))
    return [float(number) for number in re.findall(r"\b\d\.\d+\b", line)]


def test_a_newcomer_reads_it_in_minutes() -> None:
    assert len(README.splitlines()) <= 120


def test_the_targets_that_a_newcomer_needs_are_named_and_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("install", "demo", "test", "test-all", "bench"):
        assert re.search(rf"\bmake {target}\b", README), target
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("page", [README, FIGURES], ids=["README", "figures"])
@pytest.mark.parametrize(("row", "name"), [("`make demo`", "demo"), ("its detector on 300 more", "demo_300")])
def test_demo_rows(row: str, name: str, page: str) -> None:
    metrics = json.loads((ROOT / f"docs/{name}.json").read_text())
    assert figures_of(row, page) == [pytest.approx(metrics[name], abs=5.1e-4) for name in COLUMNS]


def test_the_demos_detector_is_worth_showing() -> None:
    metrics = json.loads((ROOT / "docs/demo.json").read_text())
    assert metrics["video_accuracy"] >= 0.9
    assert metrics["detection_accuracy"] >= 0.8
    assert metrics["mean_iou"] >= 0.6


@pytest.mark.parametrize(
    ("name", "row", "unseen"),
    [
        ("tubelet", "2600 rendered videos, 1 epoch of windows, EfficientNet-Lite0", "windows of 60 videos"),
        ("tubelet_scratch", "600 rendered videos, 4 epochs, R(2+1)D-18 from scratch", "videos"),
        ("stma", "2600 rendered videos, 1 epoch of windows, both backbones EfficientNet-Lite0", "windows of 60 videos"),
    ],
)
def test_rows_of_tubes(name: str, row: str, unseen: str) -> None:
    page = STMA if name == "stma" else TUBELET
    metrics = json.loads((ROOT / f"docs/{name}.json").read_text())
    tubes = metrics["tubes"]
    wanted = [tubes["frame_map"], tubes["video_map"]["0.2"], tubes["video_map"]["0.5"]]
    assert figures_of(row, page) == pytest.approx(wanted, abs=5.1e-4)
    assert f"| {tubes['switches']} in {tubes['tubes']} tubes | {metrics['clips']} {unseen} |" in page


def test_what_a_frame_of_a_stream_costs() -> None:
    for row in json.loads((ROOT / "docs/stma_stream.json").read_text()):
        assert f"| {row['name']} | {row['mean_ms']:.1f} | {row['median_ms']:.1f} | {row['gflop']:.2f} |" in STMA


def test_stma_classes() -> None:
    classes = json.loads((ROOT / "docs/stma.json").read_text())["tubes"]["classes"]
    fight, collapse = (f"{classes[name]['frame']:.3f}" for name in ("fight", "collapse"))
    assert f"Fights have a frame-AP of {fight}, collapses of {collapse}." in " ".join(STMA.split())


def test_tubelet_classes() -> None:
    classes = json.loads((ROOT / "docs/tubelet.json").read_text())["tubes"]["classes"]
    fight, collapse = (f"{classes[name]['frame']:.3f}" for name in ("fight", "collapse"))
    assert f"Fights have a frame-AP of {fight}, collapses, which are rarer and shorter, of {collapse}" in (
        " ".join(TUBELET.split())
    )


@pytest.mark.parametrize("name", ["crossval_scratch", "crossval_rendered"])
def test_cross_validation_rows(name: str) -> None:
    result = json.loads((ROOT / f"docs/{name}.json").read_text())
    wanted = [result[column][part] for column in COLUMNS for part in ("mean", "std")]
    assert figures_of(f"`{name}`") == [pytest.approx(value, abs=5.1e-4) for value in wanted]


def test_ablation_rows() -> None:
    for name, row in json.loads((ROOT / "docs/ablation.json").read_text())["rows"].items():
        wanted = [row[part][column] for column in COLUMNS for part in ("measured", "reported")]
        assert figures_of(name) == [pytest.approx(value, abs=5.1e-4) for value in wanted]


def test_what_prepare_saves() -> None:
    saved = json.loads((ROOT / "docs/prepare.json").read_text())
    for name, unit, scale in (("bytes", "MB", 1e-6), ("seconds", "ms", 1e3)):
        before, after = (f"{saved[f'{name}_{when}'] * scale:.1f} {unit}" for when in ("before", "after"))
        assert f"from {before} to {after}" in DATA


GATES = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docs/gates").glob("*.json")}


def test_the_gates_table_is_what_the_command_wrote() -> None:
    found = {}
    for row in GATES["3.8.0"]:
        kernel = f"`{row['kernel'].removesuffix('_kernel')}`"
        found.setdefault((kernel, row["case"], row["block"], str(row["limit"])), []).append(str(row["registers"]))
    assert kernel_rows("## Gates") == [[*case, *registers] for case, registers in found.items()]


@pytest.mark.parametrize("version", GATES)
def test_the_table_of_tritons_is_what_the_commands_wrote(version: str) -> None:
    rows = GATES[version]
    assert {row["triton"] for row in rows} == {version}
    assert {row["case"] for row in rows} == {row["case"] for row in GATES["3.8.0"]}
    most = {}
    for row in rows:
        most[row["kernel"]] = max(most.get(row["kernel"], 0), row["registers"])
    capabilities = sorted({row["capability"] for row in rows})
    wanted = [
        ", ".join(map(str, capabilities)),
        *map(str, most.values()),
        str(max(row["spill"] for row in rows)),
        f"{max(row['seconds'] for row in rows):.0f}",
    ]
    text = (ROOT / "kernels/README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {version} |")]
    assert line.strip("| ").split(" | ")[1:] == wanted


def test_the_model_of_time_is_what_the_command_wrote() -> None:
    wanted = []
    for row in json.loads((ROOT / "docs/model.json").read_text()):
        del row["triton"], row["date"]
        kernel, case, capability, *others = row.values()
        wanted.append([f"`{kernel}`", case, f"sm_{capability}", *map(str, others)])
    assert kernel_rows("## A model of time") == wanted


def kernel_rows(heading: str) -> list[list[str]]:
    """The cells of the rows below a heading of the kernels' README, each of which begins with a kernel's name."""
    section = (ROOT / "kernels/README.md").read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]


def test_the_benchmarks_tables_are_what_the_report_makes_of_the_rows() -> None:
    from bench import report

    rows = report.read(sorted((ROOT / "bench/results").glob("*.json")))
    text = report.within_readme(report.report(rows, images="results/"))
    assert text == report.README.read_text()
    assert re.findall(r"\(results/(.*?png)\)", text) == list(report.figures(rows))
    assert all((ROOT / "bench/results" / name).is_file() for name in report.figures(rows))


def test_every_command_in_the_readme_exists() -> None:
    from actdet.cli.main import app

    pages = [README, FIGURES, DATA, TRAINING]
    blocks = [block for page in pages for block in re.findall(r"^```\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)]
    named = {name for block in blocks for name in re.findall(r"^actdet (\w+)", block, flags=re.MULTILINE)}
    assert named <= set(app.functions)
    assert named >= {"check", "prepare", "train", "crossval", "ablate", "evaluate", "predict", "env"}


def test_what_was_prepared_is_what_is_trained_on() -> None:
    (prepared,) = re.findall(r"^actdet prepare \S+ (\S+)", README, flags=re.MULTILINE)
    trained = re.findall(r"\bactdet (?:train|crossval|ablate) (data/\S+)", README + TRAINING)
    assert set(trained) == {prepared}

"""`actdet score`: what it prints and writes, and that a mistake ends in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from actdet.cli.parsing import Commands, UsageError
from actdet.cli.score import score
from actdet.errors import ActdetError
from tests.actdet.command import leftovers

BOX = "[0, 0, 9, 9]"
TRUTH = "".join(
    f'{{"video": "{video}", "class": "{name}", "frames": {list(range(20))}, "boxes": {[[0, 0, 9, 9]] * 20}}}\n'
    for video, name in (("a", "run"), ("b", "jump"))
)
# Class run is found in every frame, jump in none; in frame 30 there is nothing.
FOUND = "".join(
    f'{{"video": "a", "frame": {frame}, "class": "run", "score": 0.5, "box": {BOX}}}\n' for frame in range(20)
)
AVA_TRUTH = "a,0902,0.1,0.1,0.5,0.5,1,0\na,0903,0.1,0.1,0.5,0.5,2,0\n"
AVA_FOUND = "a,0902,0.1,0.1,0.5,0.5,1,0.9\na,0950,0.1,0.1,0.5,0.5,1,0.95\n"

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in a folder with files, and returns what it prints."""
    for name, text in (("t.jsonl", TRUTH), ("d.jsonl", FOUND), ("t.csv", AVA_TRUTH), ("d.csv", AVA_FOUND)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> str:
        capsys.readouterr()
        Commands("actdet", "", [score]).parse(["score", *words])()
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("protocol", "first", "second"),
    [
        ("act", "all frames, hard NMS 0.3", "annotated frames only, hard NMS 0.3"),
        ("moc", "all frames, soft NMS 0.6", "annotated frames only, soft NMS 0.6"),
        ("yowo", "annotated frames only, boxes as given", "all frames, boxes as given"),
    ],
)
def test_every_figure_names_its_protocol_and_variant(run: Run, protocol: str, first: str, second: str) -> None:
    """Of two classes one is found: half of everything."""
    lines = run("d.jsonl", "t.jsonl", "--protocol", protocol).splitlines()
    figures = [line for line in lines if re.match(r"\w+-mAP ", line)]
    assert len(figures) == 6
    for line in figures:
        assert f"[{protocol}]" in line
        assert " 50.00 " in line
    assert first in figures[0]
    assert second in figures[1]
    others = {"act", "moc", "yowo", "ava"} - {protocol}
    assert not any(re.search(rf"\b{other}\b", line) for other in others for line in lines)


def test_the_tables(run: Run) -> None:
    lines = run("d.jsonl", "t.jsonl", "--protocol", "act", "--frames", "all").splitlines()
    assert "note: 1 of 2 videos have no detection" in lines
    head = next(line for line in lines if line.startswith("class "))
    assert head.split()[1:] == ["frame@0.5", "all", "video@0.2", "video@0.5", "video@0.75", "video@0.5:0.95"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[lines.index(head) + 1 :][:2]}
    assert rows == {"jump": ["0.00"] * 5, "run": ["100.00"] * 5}
    errors = next(line for line in lines if line.startswith("frame@0.5 all "))
    assert errors.split()[2:] == ["50.00", "0.00", "0.00", "0.00", "0.00", "50.00"]


@pytest.mark.parametrize(("frames", "count"), [("all", 1), ("annotated", 1), (None, 2)])
def test_frames_limit_the_variants(run: Run, frames: str | None, count: int) -> None:
    words = ["--frames", frames] if frames else []
    assert run("d.jsonl", "t.jsonl", "--protocol", "act", *words).count("frame-mAP [act]") == count


def test_json(run: Run, tmp_path: Path) -> None:
    assert run("d.jsonl", "t.jsonl", "--protocol", "act", "--json", "out.json").endswith("figures: out.json\n")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["protocol"] == "act"
    assert [(figure["name"], figure["iou"], figure["value"]) for figure in written["figures"]][:3] == [
        ("frame-mAP", "0.5", 0.5),
        ("frame-mAP", "0.5", 0.5),
        ("video-mAP", "0.2", 0.5),
    ]
    assert written["figures"][0]["classes"]["run"] == {"ap": 1.0, "truths": 20, "detections": 20}
    assert written["figures"][0]["errors"]["missed"] == 0.5
    assert written["figures"][-1]["errors"] is None

    # Written again, and without what a killed process left of it.
    (tmp_path / f".out.{2**22 + 1}.partial.json").write_text("half")
    run("d.jsonl", "t.jsonl", "--protocol", "moc", "--json", "out.json")
    assert not leftovers(tmp_path)
    assert json.loads((tmp_path / "out.json").read_text())["protocol"] == "moc"


def test_a_file_of_something_else_is_not_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("{}")
    with pytest.raises(ActdetError, match=r"out\.json was not written by this command"):
        run("d.jsonl", "t.jsonl", "--protocol", "act", "--json", "out.json")
    assert (tmp_path / "out.json").read_text() == "{}"


@pytest.mark.parametrize(("protocol", "value"), [("ava", "25.00"), ("ava-ignore-empty", "100.00")])
def test_ava(run: Run, protocol: str, value: str) -> None:
    """Class 1 has a false alarm in an empty key frame first, class 2 is never found."""
    out = run("d.csv", "t.csv", "--protocol", protocol)
    (figure,) = (line for line in out.splitlines() if line.startswith("frame-mAP"))
    assert f"[{protocol}]" in figure
    assert f" {value} " in figure
    assert "note: without --label-map every class that has truth counts" in out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["d.csv", "t.csv", "--protocol", "ava", "--frames", "all"], "--frames means nothing for AVA"),
        (["d.csv", "t.csv", "--protocol", "ava", "--split", "1"], "--split means nothing for AVA"),
        (
            ["d.jsonl", "t.jsonl", "--protocol", "act", "--label-map", "x"],
            "--label-map means nothing for the protocol",
        ),
        (["d.jsonl", "t.jsonl", "--protocol", "act", "--split", "1"], "only truth in ACT's pickles has splits"),
        (["none", "t.jsonl", "--protocol", "act"], "none: file not found; expected JSON lines"),
        (["d.jsonl", "none.pkl", "--protocol", "act"], "none.pkl: file not found; expected ACT's truth"),
        (["d.jsonl", "d.csv", "--protocol", "act"], "d.csv:1: is not JSON"),
        (["d.jsonl", "t.csv", "--protocol", "ava"], "d.jsonl:1: "),
        (["t.jsonl", "d.jsonl", "--protocol", "act"], 't.jsonl:1: "score" must be a number'),
    ],
)
def test_mistakes_end_in_one_line(run: Run, words: list[str], problem: str) -> None:
    with pytest.raises(ActdetError) as caught:
        run(*words)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [["d.jsonl", "t.jsonl"], ["d.jsonl", "t.jsonl", "--protocol", "coco"], ["d.jsonl", "--protocol", "act"], []],
)
def test_a_mistyped_command_line(run: Run, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        run(*words)
    assert "\n" not in str(caught.value)


def test_neither_help_nor_the_work_needs_torch(tmp_path: Path, run: Run) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from actdet.cli.score import score\n"
        "assert 'numpy' not in sys.modules and 'torch' not in sys.modules, sorted(sys.modules)\n"
        "score(Path('d.jsonl'), Path('t.jsonl'), 'act')\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

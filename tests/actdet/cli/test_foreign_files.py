"""No command replaces files that it has not written, and none writes into a folder while another one does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from actdet.files import sole_writer
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.training.folders import contents_of
from tests.actdet.video.videos import write_video

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


def words_of(command: str, data: Path, model: Path, out: Path) -> list[object]:
    """A command line that writes to `out`."""
    lines: dict[str, list[object]] = {
        "train": ["train", data, "--out", out, *OPTIONS],
        "resume": ["train", data, "--out", out, "--resume"],
        "evaluate": ["evaluate", model, data, "--out", out, "--workers", 0],
        "crossval": ["crossval", data, "--folds", 2, "--out", out, *OPTIONS],
        "ablate": ["ablate", data, "--out", out, *OPTIONS],
        "render": ["render", out, "--clips", 1],
        "prepare": ["prepare", data, out],
        "demo": ["demo", "--out", out],
        "export": ["export", model, "--format", "pt2", "--out", out / "model.pt2"],
    }
    return lines[command]


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("command", ["train", "resume", "evaluate", "crossval", "ablate", "render", "prepare", "demo"])
def test_a_folder_that_another_process_writes_to_is_refused(
    actdet_command: Actdet, rendered: Path, trained: Path, model: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "o"
    if command == "resume":
        shutil.copytree(trained, out)
        (out / "report.html").unlink()
    held = out / "data" / "train" if command == "demo" else out
    with sole_writer(held):
        before = contents_of(out)
        complaint = actdet_command(*words_of(command, rendered, model, out)).complaint()
        assert complaint.startswith(f"{held}: another actdet process is writing there")
        assert contents_of(out) == before


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("command", ["train", "evaluate", "crossval", "ablate", "render", "prepare", "demo", "export"])
@pytest.mark.parametrize("place", ["a file", "in a file"])
def test_a_folder_that_cannot_be_made_is_named(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, command: str, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" if place == "a file" else tmp_path / "file" / "o"
    assert str(tmp_path / "file") in actdet_command(*words_of(command, rendered, model, out)).complaint()
    assert (tmp_path / "file").read_text() == "mine"


def _own_video(out: Path) -> None:
    (out / "videos").mkdir(parents=True)
    for name in ("fight_0000", "collapse_0001"):
        write_video(out / "videos" / f"{name}.mp4", frames=9)


def _own_page(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "report.html").write_text("<!doctype html><title>the yearly report</title>")


def _own_figures(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "metrics.json").write_text('{"video_accuracy": 1, "mine": 2}')


def _other_data(out: Path) -> None:
    for folder in ("videos", "annotations"):
        (out / folder).mkdir(parents=True)
    write_video(out / "videos" / "door.mp4", frames=9)


FOREIGN: dict[str, Callable[[Path], None]] = {
    "videos of these names": _own_video,
    "a page": _own_page,
    "figures": _own_figures,
    "another data set": _other_data,
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("command", ["train", "evaluate", "crossval"])
def test_a_report_replaces_nobodys_files(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, make: Callable[[Path], None], command: str
) -> None:
    out = tmp_path / "o"
    make(out / "fold_1" if command == "crossval" else out)
    before = contents_of(out)
    arguments: dict[str, list[object]] = {
        "train": ["train", rendered, "--out", out, "--val-share", 0.7, "--epochs", 1, *OPTIONS],
        "evaluate": ["evaluate", model, rendered, "--out", out, "--workers", 0],
        "crossval": ["crossval", rendered, "--folds", 2, "--out", out, "--epochs", 1, *OPTIONS],
    }
    assert "another" in actdet_command(*arguments[command]).complaint()
    assert {name: value for name, value in contents_of(out).items() if name != "settings.json"} == before


def test_a_report_replaces_no_prepared_data_set(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    assert actdet_command("prepare", rendered, out, "--short-side", 32).code == 0
    before = contents_of(out)
    complaint = actdet_command("evaluate", model, rendered, "--out", out, "--workers", 0).complaint()
    assert complaint.startswith(f"{out} holds a data set, with which a report would be mixed")

    shutil.rmtree(out / "annotations")
    complaint = actdet_command("evaluate", model, rendered, "--out", out, "--workers", 0).complaint()
    assert "was not written by this command" in complaint
    assert {name: value for name, value in before.items() if not name.startswith("annotations")} == contents_of(out)


def test_a_report_replaces_an_earlier_one(actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path) -> None:
    for _ in range(2):
        outcome = actdet_command("evaluate", model, rendered, "--out", tmp_path / "o", "--workers", 0)
        assert outcome.code == 0, outcome.err
    # But no training begins beside it.
    complaint = actdet_command("train", rendered, "--out", tmp_path / "o", *OPTIONS).complaint()
    assert complaint.startswith(f"{tmp_path / 'o'} holds a report already")


@pytest.mark.parametrize(
    ("command", "name"),
    [("train", "log.jsonl"), ("crossval", "crossval.json"), ("crossval", "settings.json"), ("ablate", "ablation.json")],
)
def test_a_run_replaces_nobodys_files(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, command: str, name: str
) -> None:
    (tmp_path / name).write_text("this is mine\n")
    options = ["--folds", 2] if command == "crossval" else []
    complaint = actdet_command(command, rendered, "--out", tmp_path, *options, *OPTIONS).complaint()
    assert str(tmp_path) in complaint
    assert contents_of(tmp_path) == {name: b"this is mine\n"}


@pytest.mark.parametrize("name", ["prepared.json", "annotations/fight_0000.txt", "annotations/collapse_0001.txt"])
def test_prepare_replaces_nobodys_files(actdet_command: Actdet, rendered: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("1 2 3 30 40\n")
    complaint = actdet_command("prepare", rendered, tmp_path).complaint()
    assert complaint.startswith(f"{path} was not written by this command")
    assert contents_of(tmp_path) == {name: b"1 2 3 30 40\n"}

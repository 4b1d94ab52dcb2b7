"""The command does its work, exits 0 only then, and says what it did."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import av
import pytest
import torch

from actdet.models.checkpoints import load_detector, read_about
from actdet.prediction import predictor as prediction
from actdet.prediction.predictor import Predictor, Window
from actdet.training import experiments
from actdet.video.decoding import probe
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import write_video

COMMANDS = ["train", "evaluate", "predict", "crossval", "ablate", "render", "check", "prepare", "env", "demo"]
OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]
FIGURES = ("video_accuracy", "detection_accuracy", "mean_iou")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(actdet_command: Actdet, command: str) -> None:
    outcome = actdet_command(command, "--help")
    assert outcome.code == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", outcome.out).split())
    assert f"For instance: actdet {command}" in text


def test_help_lists_the_commands(actdet_command: Actdet) -> None:
    outcome = actdet_command("--help")
    assert outcome.code == 0
    assert all(command in outcome.out for command in COMMANDS)


def test_env_says_what_is_here(actdet_command: Actdet) -> None:
    outcome = actdet_command("env")
    assert (outcome.code, outcome.err) == (0, "")
    found = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in outcome.out.splitlines() if "  " in line)
    assert torch.__version__.startswith(found["torch"])
    assert found["device"].startswith("CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    for line in ("precision", "reader", "dali", "matching and loss"):
        assert line in outcome.out


def test_render_made_a_data_set_that_check_finds_good(actdet_command: Actdet, rendered: Path) -> None:
    outcome = actdet_command("check", rendered)
    assert outcome.code == 0
    assert outcome.out == f"{rendered}: 12 clips (4 fight, 4 collapse, 4 no action), nothing wrong\n"
    again = actdet_command("render", rendered, "--clips", 3)
    assert str(rendered / "videos") in again.complaint()


@pytest.mark.usefixtures("tiny_backbone")
def test_train_leaves_model_report_and_log(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "best.safetensors",
        "log.jsonl",
        "metrics.json",
        "model.safetensors",
        "report.html",
        "videos",
    }
    detector, about = load_detector(trained / "model.safetensors")
    assert (about.model.image_size, about.model.frames, about.model.decoder_layers) == (32, 8, 1)
    assert not detector.training
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["clips"] == len(about.held_out) == 3
    assert {path.stem for path in (trained / "videos").iterdir()} == set(about.held_out)


@pytest.mark.parametrize("held_out", [False, True])
def test_evaluate_measures_all_clips_or_those_held_out(
    actdet_command: Actdet, rendered: Path, trained: Path, model: Path, tmp_path: Path, held_out: bool
) -> None:
    flags = ["--held-out"] if held_out else []
    outcome = actdet_command("evaluate", model, rendered, "--out", tmp_path / "e", "--workers", 0, *flags)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["clips"] == (3 if held_out else 12)
    assert f"{metrics['clips']} clips: video accuracy {metrics['video_accuracy']:.3f}" in outcome.out
    assert f"mean IoU {metrics['mean_iou']:.3f}" in outcome.out
    assert (tmp_path / "e" / "report.html").is_file()
    if held_out:
        before = json.loads((trained / "metrics.json").read_text())
        assert metrics["confusion"] == before["confusion"]
        assert metrics["mean_iou"] == pytest.approx(before["mean_iou"], abs=0.01)  # bf16 where the CPU has it


@pytest.mark.parametrize(("flags", "videos"), [([], 12), (["--no-videos"], 0)])
def test_evaluate_shows_how_far_drawing_is(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, flags: list[str], videos: int
) -> None:
    outcome = actdet_command("evaluate", model, rendered, "--out", tmp_path, "--workers", 0, *flags)
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.glob("videos/*.mp4"))) == videos
    frames = 12 * 4 + sum(len(probe(path).pts) for path in tmp_path.glob("videos/*.mp4"))
    last = re.split("[\r\n]", outcome.err.strip())[-1]
    assert last.startswith("draw: 100%")
    assert f" {frames}/{frames} [" in last
    assert "evaluate: " in outcome.err
    page = (tmp_path / "report.html").read_text()
    assert "<td>decoder layers</td><td>1</td>" in page  # what the detector was made with


def test_help_says_what_without_videos_means(actdet_command: Actdet) -> None:
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", actdet_command("evaluate", "--help").out).split())
    assert "--videos, --no-videos Whether to write annotated videos" in text


def test_predict_writes_windows_and_videos(actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path) -> None:
    clip = sorted((rendered / "videos").iterdir())[0]
    outcome = actdet_command("predict", model, clip, "--out", tmp_path / "p", "--threshold", 0)
    assert outcome.code == 0, outcome.err
    (line,) = (line for line in outcome.out.splitlines() if line.startswith(clip.name))
    (window,) = json.loads((tmp_path / "p" / f"{clip.stem}.json").read_text())["windows"]
    assert f"{window['action']}" in line
    assert f"{window['score']:.2f}" in line
    assert len(window["box"]) == 4
    with av.open(str(tmp_path / "p" / f"{clip.stem}.mp4")) as drawn, av.open(str(clip)) as source:
        assert sum(1 for _ in drawn.decode(video=0)) == sum(1 for _ in source.decode(video=0))


def test_the_device_that_is_asked_for_is_taken(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing further down chooses one by itself."""
    for module in (experiments, prediction):
        monkeypatch.setattr(module, "choose_device", None)
    options = ["--epochs", 1, "--val-share", 0, *OPTIONS]
    outcome = actdet_command("train", rendered, "--out", tmp_path / "t", "--device", "cpu", *options)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("CPU, ")
    clip = sorted((rendered / "videos").iterdir())[0]
    for words in (["evaluate", model, rendered, "--workers", 0], ["predict", model, clip, "--no-annotate"]):
        outcome = actdet_command(*words, "--out", tmp_path / str(words[0]), "--device", "cpu")
        assert outcome.code == 0, outcome.err


def test_predict_goes_on_after_a_broken_video(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path
) -> None:
    good, bad = sorted((rendered / "videos").iterdir())[0], tmp_path / "bad.webm"
    bad.write_bytes(b"nothing")
    outcome = actdet_command("predict", model, bad, good, "--out", tmp_path / "p", "--no-annotate")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    first, second = outcome.complaints
    assert first.startswith(f"actdet: {bad}: ")
    assert second == "actdet: 1 of 2 videos could not be read whole"
    assert {path.name for path in (tmp_path / "p").iterdir()} == {f"{good.stem}.json", f"{good.stem}.png"}


def test_predict_prints_windows_as_they_are_found(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, found, printed = sorted((rendered / "videos").iterdir())[0], [], []

    def findings(self: Predictor, video: object) -> Iterator[Window]:
        for number in range(3):
            found.append(Window(float(number), number + 2.0, None, 0.25, None))
            yield found[-1]
            printed.append(sys.stdout.getvalue().splitlines())  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setattr(Predictor, "findings", findings)
    outcome = actdet_command("predict", model, clip, "--out", tmp_path / "p", "--no-annotate")
    assert outcome.code == 0, outcome.err
    lines = [f"{clip.name}  {n:7.2f} to {n + 2:7.2f} s  no action    0.25" for n in range(3)]
    assert printed == [lines[:1], lines[:2], lines]
    assert outcome.out.splitlines() == [*lines, f"results: {tmp_path / 'p'}"]
    assert json.loads((tmp_path / "p" / f"{clip.stem}.json").read_text())["windows"] == [
        asdict(w) | {"actions": []} for w in found
    ]


def test_a_prepared_data_set_is_whole_and_trains(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small set"
    outcome = actdet_command("prepare", rendered, out, "--short-side", 48, "--gop", 4)
    assert (outcome.code, outcome.complaints) == (0, []), outcome.err
    clips, videos, reading = outcome.out.splitlines()
    assert clips == f"{out}: 12 clips"
    sizes = [sum(path.stat().st_size for path in (root / "videos").iterdir()) for root in (rendered, out)]
    assert videos == f"videos: {sizes[0] / 1e6:.1f} MB before, {sizes[1] / 1e6:.1f} MB after"
    assert re.fullmatch(
        r"reading 16 frames of a clip: \d+\.\d ms before, \d+\.\d ms after \(median of 8 clips\)", reading
    )
    figures = json.loads((out / "prepared.json").read_text())
    assert [figures["bytes_before"], figures["bytes_after"]] == sizes
    assert (figures["encoded"], figures["short_side"], figures["gop"]) == (12, 48, 4)
    checked = actdet_command("check", out)
    assert checked.out == f"{out}: 12 clips (4 fight, 4 collapse, 4 no action), nothing wrong\n"
    again = actdet_command("prepare", rendered, out, "--short-side", 48, "--gop", 4)
    assert again.out.splitlines()[0] == f"{out}: 12 clips, 12 of them were there already"
    trained = actdet_command("train", out, "--out", tmp_path / "run", "--epochs", 1, *OPTIONS)
    assert trained.code == 0, trained.err
    assert (tmp_path / "run" / "metrics.json").is_file()


def _times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("model.safetensors"))}


def test_crossval_trains_each_fold_once(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    arguments = ("crossval", rendered, "--folds", 2, "--epochs", 1, "--out", out, *OPTIONS)
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err
    result = json.loads((out / "crossval.json").read_text())
    parts = [json.loads((out / f"fold_{k}" / "metrics.json").read_text()) for k in (1, 2)]
    assert [part["clips"] for part in parts] == [6, 6]
    held = [set(read_about(out / f"fold_{k}" / "model.safetensors").held_out) for k in (1, 2)]
    assert len(held[0] | held[1]) == 12
    for figure in FIGURES:
        a, b = (part[figure] for part in parts)
        assert result[figure]["mean"] == pytest.approx((a + b) / 2)
        assert result[figure]["std"] == pytest.approx(abs(a - b) / 2**0.5)  # of a sample of two
        assert f"{(a + b) / 2:.3f} +- {abs(a - b) / 2**0.5:.3f}" in outcome.out
    times = _times(out)
    assert len(times) == 2
    again = actdet_command(*arguments)
    assert (again.code, _times(out)) == (0, times)
    assert again.out == outcome.out
    other = actdet_command(*arguments, "--seed", 5)
    assert str(out) in other.complaint()
    assert _times(out) == times


def test_crossval_goes_on_where_a_fold_lost_its_report(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    arguments = ("crossval", rendered, "--folds", 2, "--epochs", 1, "--out", out, *OPTIONS)
    first = actdet_command(*arguments)
    (out / "fold_2" / "metrics.json").unlink()
    again = actdet_command(*arguments)
    assert again.code == 0, again.err
    assert again.out == first.out


def test_figures_that_a_fold_has_not_are_left_out_of_its_means(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folds' clips have no action but in the first; an earlier version measured less."""
    none = {"mean_iou": None, "average_precision": None, "video_accuracy": 0.5, "detection_accuracy": 0.5}
    some = {"mean_iou": 0.25, "average_precision": None, "video_accuracy": 1.0, "detection_accuracy": 0.0}
    folds = iter([some, none])

    def part(*arguments: object, **options: object) -> Generator[Any, Any, dict[str, float | None]]:
        yield from ()
        return next(folds)

    monkeypatch.setattr(experiments, "_part", part)
    outcome = actdet_command("crossval", rendered, "--folds", 2, "--out", tmp_path / "cv", *OPTIONS)
    assert outcome.code == 0, outcome.err
    for line in (
        "video accuracy       0.750 +- 0.354",
        "mean iou             0.250 +- n/a",
        "average precision    n/a +- n/a",
        "located iou          n/a +- n/a",
    ):
        assert line in outcome.out.splitlines()
    result = json.loads((tmp_path / "cv" / "crossval.json").read_text())
    assert result["mean_iou"] == {"mean": 0.25, "std": None}
    assert result["each"][1]["mean_iou"] is None


def test_crossval_of_other_labels_is_another_one(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    arguments = ("crossval", data, "--folds", 2, "--epochs", 1, "--out", out, *OPTIONS)
    assert actdet_command(*arguments).code == 0
    (out / "fold_2" / "metrics.json").unlink()
    text = next((data / "annotations").glob("fight*.txt"))
    text.write_text("1" + text.read_text()[1:])
    assert actdet_command(*arguments).complaint().startswith(f"{out} holds an experiment with other settings, clips or")


def test_ablate_prints_its_table_and_trains_each_row_once(
    actdet_command: Actdet, rendered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ab"
    arguments = ("ablate", rendered, "--epochs", 1, "--out", out, *OPTIONS)
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    reported = {  # table 3 of the report
        "full loss": (1.000, 0.833, 0.51),
        "no GIoU loss": (1.000, 0.667, 0.43),
        "no L1 loss": (0.833, 0.500, 0.38),
        "classification only": (1.000, 0.167, 0.22),
    }
    assert rows.keys() == reported.keys()
    for name, theirs in reported.items():
        measured = json.loads((out / name.replace(" ", "_") / "metrics.json").read_text())
        (line,) = (line for line in outcome.out.splitlines() if line.startswith(name))
        cells = [f"{measured[figure]:.3f} ({value:.3f})" for figure, value in zip(FIGURES, theirs, strict=True)]
        assert re.split(r"\s{2,}", line.removeprefix(name).strip()) == cells
        assert rows[name]["measured"] == {figure: measured[figure] for figure in FIGURES}
    times = _times(out)
    again = actdet_command(*arguments)
    assert (again.code, _times(out), again.out) == (0, times, outcome.out)


def test_train_says_which_paths_it_takes(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    options = [*MODEL_OPTIONS, *TRAIN_OPTIONS, "--epochs", 1, "--ema-decay", 0.9, "--checkpointing"]
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *options)
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("CPU, ")]
    for part in (
        "float32 (asked for)",
        "step eager (a CPU has no CUDA graphs)",
        "2-D convolutions (",
        "reader pyav (",
        "1 MiB of decoded clips kept in memory",
    ):
        assert f"; {part}" in line


def test_decoded_clips_are_kept_on_the_disk_for_the_next_run(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTDET_CACHE", str(tmp_path / "cache"))
    arguments = ("train", rendered, "--val-share", 0, "--epochs", 1, *OPTIONS, "--disk-cache", 0.5)
    outcome = actdet_command(*arguments, "--out", tmp_path / "one")
    assert outcome.code == 0, outcome.err
    assert "reader pyav (it keeps decoded clips on the disk)" in outcome.out
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/clips").glob("*.npy")}
    assert len(kept) == 12
    assert actdet_command(*arguments, "--cache", "none", "--out", tmp_path / "two").code == 0
    assert {path: path.stat().st_mtime_ns for path in kept}.keys() == kept.keys()
    one, two = ((tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("one", "two"))
    assert [json.loads(line)["loss"] for line in one] == [json.loads(line)["loss"] for line in two]
    complaint = actdet_command(*arguments, "--reader", "dali", "--out", tmp_path / "three").complaint()
    assert complaint == "reader dali keeps nothing on the disk: use reader pyav, or no --disk-cache"
    complaint = actdet_command("train", rendered, *OPTIONS, "--disk-cache", -1).complaint()
    assert complaint == "disk_cache must be in [0, 1000000], got -1.0"


def test_videos_with_odd_names_and_sizes_train(actdet_command: Actdet, tmp_path: Path) -> None:
    """Spaces, brackets, umlauts; 97 x 55 pixels; a video of one frame."""
    videos, texts = tmp_path / "my data" / "videos", tmp_path / "my data" / "annotations"
    videos.mkdir(parents=True)
    texts.mkdir()
    for number, (name, frames) in enumerate([("Tür auf", 9), ("<b> & 100%", 12), ("x#1?", 1), ("[red]", 30)]):
        write_video(videos / f"{name}.mkv", "mjpeg", frames=frames, size=(97, 55))
        (texts / f"{name}.txt").write_text(f"{number % 2} 3 4 50 51\n")
    out = tmp_path / "my run"
    outcome = actdet_command("train", tmp_path / "my data", "--epochs", 1, "--out", out, "--val-share", 0.5, *OPTIONS)
    assert outcome.code == 0, outcome.err
    assert len(list((out / "videos").iterdir())) == 2


def test_names_that_are_not_utf8_train_and_print(actdet_command: Actdet, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    for folder in ("videos", "annotations"):
        (data / folder).mkdir(parents=True)
    for number in range(4):
        name = os.fsdecode(b"t\xfcr %d" % number)
        write_video(tmp_path / "clip.mkv", "mjpeg", frames=9).rename(data / "videos" / f"{name}.mkv")
        (data / "annotations" / f"{name}.txt").write_text(f"{number % 2} 3 4 40 41\n")
    outcome = actdet_command("train", data, "--epochs", 1, "--out", out, "--val-share", 0.5, *OPTIONS)
    assert outcome.code == 0, outcome.err
    links = re.findall('<a href="([^"]+)"', (out / "report.html").read_text())
    assert len(links) == 2
    assert all(os.path.isfile(os.fsencode(out) + b"/" + unquote_to_bytes(link)) for link in links)
    video = min((data / "videos").iterdir())
    outcome = actdet_command("predict", out / "model.safetensors", video, "--out", tmp_path / "found")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("t\\udcfcr 0.mkv  ")
    video.write_text("")
    assert "t\\udcfcr 0.mkv: is empty" in actdet_command("train", data, "--out", tmp_path / "o").complaint()

"""actdet train leaves a model, a report and a log, whatever the clips are called, and says how it trains."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote_to_bytes

import pytest
from torchvision.models.video import R2Plus1D_18_Weights

from actdet import distributed
from actdet.models.checkpoints import load_model, read_info
from actdet.models.detr.config import ModelConfig
from actdet.models.detr.features import FramePairs
from actdet.prediction import predictor as prediction
from actdet.training import duration
from actdet.training import trainer as training
from tests.actdet.command import Actdet, leftovers, small_disk
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import write_video

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


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
    detector, about = load_model(trained / "model.safetensors")
    assert isinstance(about.model, ModelConfig)
    assert (about.model.image_size, about.model.frames, about.model.decoder_layers) == (32, 8, 1)
    assert not detector.training
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["clips"] == len(about.held_out) == 3
    assert {path.stem for path in (trained / "videos").iterdir()} == set(about.held_out)


def test_the_device_that_is_asked_for_is_taken(
    actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The predictor, which can choose one, does not."""
    monkeypatch.setattr(prediction, "choose_device", None)
    options = ["--epochs", 1, "--val-share", 0, *OPTIONS]
    outcome = actdet_command("train", rendered, "--out", tmp_path / "t", "--device", "cpu", *options)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("CPU, ")
    clip = sorted((rendered / "videos").iterdir())[0]
    for words in (["evaluate", model, rendered, "--workers", 0], ["predict", model, clip, "--no-annotate"]):
        outcome = actdet_command(*words, "--out", tmp_path / str(words[0]), "--device", "cpu")
        assert outcome.code == 0, outcome.err


@pytest.mark.usefixtures("no_bf16_units")
def test_a_backbone_of_pictures_trains_is_evaluated_and_exported(
    actdet_command: Actdet, rendered: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--backbone", "efficientnet-lite0", "--backbone-weights", "imagenet", "--auxiliary-weight", 2]
    trained = actdet_command("train", rendered, "--out", run, "--epochs", 1, *OPTIONS, *words)
    assert trained.code == 0, trained.err
    detector, about = load_model(run / "model.safetensors")
    assert isinstance(about.model, ModelConfig)
    assert about.model.backbone == "efficientnet-lite0"
    assert isinstance(detector.backbone, FramePairs)

    again = tmp_path / "again"
    options = ["--held-out", "--workers", 0, "--no-videos", "--out", again]
    evaluated = actdet_command("evaluate", run / "model.safetensors", rendered, *options)
    assert evaluated.code == 0, evaluated.err
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (run, again))
    assert {**first, "seconds": None} == {**second, "seconds": None}

    exported = actdet_command("export", run / "model.safetensors", "--format", "pt2", "--out", tmp_path / "model.pt2")
    assert exported.code == 0, exported.err


def test_train_says_which_paths_it_takes(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "--epochs", 1, "--ema-decay", 0.9, "--checkpointing"]
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *options)
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("CPU, ")]
    for part in (
        "float32 (asked for)",
        "step eager (a CPU has no CUDA graphs)",
        "reader pyav (",
        "1 MiB of decoded clips kept in memory",
    ):
        assert f"; {part}" in line
    # The small backbone has none that are factorized.
    assert "convolutions" not in line


@pytest.mark.parametrize("seconds", [1.0, 25.0])
def test_train_says_how_long_it_takes_if_that_is_long(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Nine of the twelve clips are trained on, so an epoch would take 9 s, or 3 min 45 s."""
    monkeypatch.setattr(duration, "is_short", lambda *_: False)
    monkeypatch.setattr(duration, "seconds_per_clip", lambda *_: seconds)
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *OPTIONS, "--epochs", 2)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith("an epoch takes")]
    if seconds == 1.0:
        assert lines == []
    else:
        assert lines == ["an epoch takes about 3 min 40 s here, all 2 about 7 min 30 s: fewer --epochs take less"]


def _losses(run: Path) -> list[Any]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_decoded_clips_are_kept_on_the_disk_for_the_next_run(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTDET_CACHE", str(tmp_path / "cache"))
    arguments = ("train", rendered, "--val-share", 0, "--epochs", 1, *OPTIONS, "--disk-cache", 0.5)
    outcome = actdet_command(*arguments, "--out", tmp_path / "one")
    assert outcome.code == 0, outcome.err
    assert "reader pyav (it keeps decoded clips on the disk)" in outcome.out
    kept = set((tmp_path / "cache/clips").glob("*.npy"))
    assert len(kept) == 12

    assert actdet_command(*arguments, "--cache", "none", "--out", tmp_path / "two").code == 0
    assert set((tmp_path / "cache/clips").glob("*.npy")) == kept
    one, two = (_losses(tmp_path / run) for run in ("one", "two"))
    assert one == two

    complaint = actdet_command(*arguments, "--reader", "dali", "--out", tmp_path / "three").complaint()
    assert complaint == "reader dali keeps nothing on the disk: use reader pyav, or no --disk-cache"
    complaint = actdet_command("train", rendered, *OPTIONS, "--disk-cache", -1).complaint()
    assert complaint == "disk_cache must be in [0, 1000000], got -1.0"


def test_videos_with_odd_names_and_sizes_train(actdet_command: Actdet, tmp_path: Path) -> None:
    """Spaces, brackets, umlauts; 97 x 55 pixels; a video of one frame."""
    videos = tmp_path / "my data" / "videos"
    texts = tmp_path / "my data" / "annotations"
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
    data = tmp_path / "data"
    out = tmp_path / "run"
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


def test_kinetics_weights_without_a_network(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(self: object, **options: object) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(R2Plus1D_18_Weights, "get_state_dict", offline)
    outcome = actdet_command("train", rendered, "--out", tmp_path / "o", *MODEL_OPTIONS, "--workers", 0)
    complaint = outcome.complaint()
    assert "Temporary failure in name resolution" in complaint
    assert "--backbone-weights none" in complaint


def test_processes_of_torchrun_share_no_gpu(
    actdet_command: Actdet, rendered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "join_processes", lambda: nullcontext(distributed.Processes(0, 2)))
    complaint = actdet_command("train", rendered, "--device", "cuda:1").complaint()
    assert complaint == "--device must be auto or cpu for several processes: torchrun gives each its own GPU"


def test_a_run_in_the_folder_of_a_failed_one_begins_a_new_log(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    arguments = ("train", rendered, "--val-share", 0, "--out", tmp_path / "o", "--epochs", 2, *OPTIONS)
    assert "not finite" in actdet_command(*arguments, "--lr", 1e38).complaint()
    assert actdet_command(*arguments).code == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_no_space_left_for_the_model(actdet_command: Actdet, rendered: Path, tmp_path: Path, share: float) -> None:
    out = tmp_path / "o"
    with small_disk(1_000_000):
        outcome = actdet_command("train", rendered, "--val-share", share, "--epochs", 1, "--out", out, *OPTIONS)
    assert outcome.complaint().startswith(f"{out / 'model.safetensors'}: cannot be written: ")
    assert [path.name for path in out.iterdir()] == ["log.jsonl"]


def test_no_space_left_for_the_first_file(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    (data / ".actdet-index.json").unlink(missing_ok=True)
    with small_disk(10):
        outcome = actdet_command("train", data, "--epochs", 1, "--out", tmp_path / "o", *OPTIONS)
    assert "cannot be written" in outcome.complaint()
    assert not leftovers(tmp_path)


def test_the_lists_of_a_data_set_say_what_is_held_out(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    names = sorted(path.stem for path in (data / "videos").iterdir())
    (data / "train.txt").write_bytes("\r\n".join(["\ufeff" + names[0], *names[1::2]]).encode())
    (data / "test.txt").write_text("\n".join(names[4::2]))
    arguments = ("train", data, "--epochs", 1, *OPTIONS)
    outcome = actdet_command(*arguments, "--out", tmp_path / "a")
    assert outcome.code == 0, outcome.err
    lists = f"{data / 'train.txt'} and test.txt"
    assert (
        f"split: {lists}: 7 clips to train on, 4 held out; 1 in neither list are not used" in outcome.out.splitlines()
    )
    detector = tmp_path / "a" / "model.safetensors"
    info = read_info(detector)
    assert info.training is not None
    assert set(info.training["training_clips"]) == {names[0], *names[1::2]}
    assert set(info.held_out) == set(names[4::2])
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["clips"] == 4

    # With a share the test clips are for later, and evaluate takes them.
    outcome = actdet_command(*arguments, "--out", tmp_path / "b", "--val-share", 0.4)
    assert outcome.code == 0, outcome.err
    info = read_info(tmp_path / "b" / "model.safetensors")
    assert info.training is not None
    used = {*info.training["training_clips"], *info.held_out}
    assert used == {names[0], *names[1::2]}
    assert len(info.held_out) == 3
    assert f"split: {data / 'train.txt'}: 4 of its 7 clips to train on, 3 held out; the 4 in test.txt" in outcome.out


def test_train_keeps_the_groups_of_a_data_set_whole(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    names = sorted(path.stem for path in (data / "videos").iterdir())
    group_of = {name: f"room{i % 4}" for i, name in enumerate(names)}
    (data / "groups.txt").write_text("".join(f"{name} {group}\n" for name, group in group_of.items()))
    outcome = actdet_command("train", data, "--out", tmp_path / "run", "--epochs", 1, *OPTIONS)
    assert outcome.code == 0, outcome.err
    assert f"split: {data / 'groups.txt'}: 4 groups, none of them on both sides" in outcome.out.splitlines()
    held = set(read_info(tmp_path / "run" / "model.safetensors").held_out)
    assert held
    assert {group_of[name] for name in held}.isdisjoint(group_of[name] for name in set(names) - held)

    none = tmp_path / "none.txt"
    complaint = actdet_command("train", data, "--groups", none, *OPTIONS).complaint()
    assert complaint == f"{none}: file not found; expected a line NAME GROUP for each clip"


def test_untrimmed_videos_are_trained_on_in_windows(
    actdet_command: Actdet, rendered: Path, tiny_backbone: None, tmp_path: Path
) -> None:
    """Training, a resumed training, and an evaluation of the model cut the videos alike."""
    data = tmp_path / "data"
    shutil.copytree(rendered, data)
    for text in (data / "annotations").iterdir():
        rows = [line.split() for line in text.read_text().splitlines()]
        lines = [f"{frame},1,{label},{','.join(box)},1\n" for label, *box in rows for frame in (0, 5)]
        text.with_suffix(".csv").write_text("frame,track,class,x1,y1,x2,y2,interpolate\n" + "".join(lines))
        text.unlink()

    run = tmp_path / "run"
    options = [*OPTIONS, "--epochs", 1, "--window", 1, "--seed", 3]
    outcome = actdet_command("train", data, "--out", run, *options)
    assert outcome.code == 0, outcome.err
    assert "split: 12 videos in windows, none of them on both sides" in outcome.out
    info = read_info(run / "model.safetensors")
    assert info.window == 1
    assert all(re.fullmatch(r"\w+@[01]\.\d\d", name) for name in info.held_out)
    assert len(info.held_out) > len({name.partition("@")[0] for name in info.held_out}) >= 3
    assert {path.stem for path in (run / "videos").iterdir()} == set(info.held_out)
    first = json.loads((run / "metrics.json").read_text())

    (run / "metrics.json").unlink()
    outcome = actdet_command("train", data, "--out", run, "--resume")
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "metrics.json").read_text()) | {"seconds": first["seconds"]} == first

    words = ["evaluate", run / "model.safetensors", data, "--held-out", "--workers", 0, "--no-videos"]
    outcome = actdet_command(*words, "--out", tmp_path / "e")
    assert outcome.code == 0, outcome.err
    again = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert again["clips"] == first["clips"] == len(info.held_out)
    assert again["video_accuracy"] == first["video_accuracy"]

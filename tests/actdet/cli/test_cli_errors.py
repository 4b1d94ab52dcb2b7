"""What is wrong with what a user typed or gave is said in one line, and nothing is begun."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.video import R2Plus1D_18_Weights

from actdet import distributed
from actdet.cli import main as cli
from actdet.cli.main import app
from actdet.models.checkpoints import read_about
from tests.actdet.command import Actdet
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import cut, write_sound, write_video

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]
COMMANDS = list(app.functions)


def test_check_lists_all_problems(actdet_command: Actdet, data: Path) -> None:
    videos = sorted((data / "videos").iterdir())
    cut(videos[0], 0.6)
    videos[1].write_bytes(b"")
    texts = [data / "annotations" / f"{video.stem}.txt" for video in videos]
    texts[2].write_text("0 1 2 3\n7 1 2 30 40\n")
    texts[3].with_name("nobody.txt").write_text("")
    outcome = actdet_command("check", data)
    assert outcome.complaint() == f"5 problems in {data}"
    for beginning in (f"{videos[0]}: ", f"{videos[1]}: ", f"{texts[2]}:1: ", f"{texts[2]}:2: "):
        assert any(line.startswith(beginning) for line in outcome.out.splitlines()), beginning
    assert str(data / "annotations" / "nobody.txt") in outcome.out
    assert len(outcome.out.splitlines()) == 5


def _missing(path: Path) -> None:
    path.unlink()


def _sound(path: Path) -> None:
    write_sound(path.with_suffix(".mp4"))
    path.with_suffix(".mp4").replace(path)


BAD_VIDEOS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: cut(path, 0.5),
    "no video": lambda path: path.write_text("this is text\n" * 100),
    "only sound": _sound,
}


BAD_LINES = {
    "few fields": "0 1 2 3",
    "many fields": "0 1 2 30 40 5",
    "words": "fight 1 2 30 40",
    "unknown class": "2 1 2 30 40",
    "negative class": "-1 1 2 30 40",
    "not a number": "0 1 2 x 40",
    "NaN": "0 1 2 nan 40",
    "swapped": "0 30 2 1 40",
    "outside": "0 1 2 30 400",
    "fractions": "0 0.1 0.2 0.3 0.4",
}


@pytest.mark.parametrize("damage", BAD_VIDEOS.values(), ids=BAD_VIDEOS)
def test_a_bad_video_is_named(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    video = sorted((data / "videos").iterdir())[2]
    damage(video)
    for arguments in (
        ("train", data, "--out", tmp_path / "o", "--epochs", 1, *OPTIONS),
        ("evaluate", model, data, "--out", tmp_path / "o", "--workers", 0),
    ):
        assert actdet_command(*arguments).complaint().startswith(f"{video}: ")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_annotation_is_named_with_its_line(actdet_command: Actdet, data: Path, tmp_path: Path, line: str) -> None:
    text = sorted((data / "annotations").iterdir())[5]
    text.write_text(f"0 1 2 30 40\n{line}\n")
    outcome = actdet_command("train", data, "--out", tmp_path / "o", *OPTIONS)
    assert outcome.complaint().startswith(f"{text}:2: ")


def _annotate_nobody(data: Path) -> None:
    (data / "annotations" / "nobody.txt").write_text("")


def _no_positive(data: Path) -> None:
    for path in (data / "annotations").iterdir():
        path.write_text("")


def _one_collapse(data: Path) -> None:
    for path in sorted((data / "annotations").glob("collapse*"))[1:]:
        path.unlink()
        (data / "videos" / f"{path.stem}.webm").unlink()


@pytest.mark.parametrize(
    ("change", "command", "beginning", "word"),
    [
        (lambda d: shutil.rmtree(d / "videos"), ["train"], "videos: ", "no such folder"),
        (lambda d: shutil.rmtree(d / "annotations"), ["train"], "annotations: ", "no such folder"),
        (_annotate_nobody, ["train"], "annotations/nobody.txt: ", "no video of this name"),
        (_no_positive, ["train"], "annotations: ", "none of the 12 clips has an action"),
        (_no_positive, ["train", "--val-share", 0], "annotations: ", "none of the 12 clips has an action"),
        (_one_collapse, ["train"], ": ", "only 1 clip of class collapse"),
        (_one_collapse, ["crossval", "--folds", 2], ": ", "only 1 clip of class collapse for 2 folds: add clips"),
        (lambda d: None, ["crossval"], ": ", "only 4 clips of class fight for 5 folds"),
    ],
)
def test_a_bad_data_set_is_named(
    actdet_command: Actdet,
    data: Path,
    tmp_path: Path,
    change: Callable[[Path], object],
    command: list[object],
    beginning: str,
    word: str,
) -> None:
    change(data)
    outcome = actdet_command(command[0], data, *command[1:], "--epochs", 1, "--out", tmp_path / "o", *OPTIONS)
    complaint = outcome.complaint()
    assert complaint.startswith(f"{data}{'/' * (beginning[0] != ':')}{beginning}")
    assert word in complaint


def test_the_advice_for_too_many_folds_works(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    arguments = ("crossval", rendered, "--epochs", 1, "--out", tmp_path / "o", *OPTIONS)
    assert "use --folds 4 or fewer" in actdet_command(*arguments).complaint()
    assert actdet_command(*arguments, "--folds", 4).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--warmup", 9, "--epochs", 3], "the 3 epochs, got 9.0"),
        (["--small-epochs", 4, "--epochs", 3], "small_epochs must be fewer than the 3 epochs, got 4"),
        (["--shallow-epochs", 3, "--epochs", 3], "shallow_epochs must be fewer than the 3 epochs, got 3"),
        (["--shallow-epochs", 1, "--backbone-weights", "kinetics"], "from scratch: give backbone_weights none"),
        (["--frames", 9], "frames must be a multiple of 8, got 9"),
        (["--image-size", 40], "image_size must be a multiple of 16"),
        pytest.param(
            ["--precision", "fp16"],
            "fp16 needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has it"),
        ),
        (["--backbone-weights", "/no/such/file.pth"], "/no/such/file.pth: no such file"),
    ],
)
def test_bad_settings_are_refused(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, arguments: list[object], words: str
) -> None:
    options = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True))
    options |= zip(arguments[::2], arguments[1::2], strict=True)
    options = itertools.chain.from_iterable(options.items())
    outcome = actdet_command("train", rendered, "--out", tmp_path / "o", *options)
    assert words in outcome.complaint()
    assert not (tmp_path / "o" / "model.safetensors").exists()


NUMBERS = {
    "train": {
        "--image-size": [16, 10**9],
        "--frames": [0, 10**12],
        "--queries": [0, 10**25],
        "--encoder-layers": [-1, 10**6],
        "--decoder-layers": [0, 10**6],
        "--dropout": [-0.1, 1, "nan"],
        "--cls-weight": [-1, "inf", "nan"],
        "--l1-weight": [-1, "inf", "nan"],
        "--giou-weight": [-1, "1e308", "nan"],
        "--no-object-weight": [0, "1e-300", "inf", "nan"],
        "--flip": [2, -0.5, "nan"],
        "--crop": [1, "nan"],
        "--colour": [-1, 1, "nan"],
        "--mixup": [-1, "1e308", "inf", "nan"],
        "--epochs": [0, 10**12],
        "--batch-size": [0, 10**12],
        "--lr": [0, -1, "1e308", "inf", "nan"],
        "--min-lr": [-1, "1e308", "nan"],
        "--warmup": [-1, "inf", "nan"],
        "--weight-decay": [-1, "inf", "nan"],
        "--clip-norm": [0, "inf", "nan"],
        "--auxiliary-weight": [-1, "inf", "nan"],
        "--small-epochs": [-1, 10**15],
        "--shallow-epochs": [-1, 10**15],
        "--ema-decay": [1, "nan"],
        "--seed": [-1, 2**32, 10**30],
        "--eval-every": [0, 10**15],
        "--workers": [-1, 10**9],
        "--disk-cache": [-1, "1e300", "inf", "nan"],
        "--val-share": [-0.1, 1, 1.5, "nan"],
    },
    "evaluate": {"--workers": [-1, 10**9]},
    "predict": {"--threshold": [-0.1, 1.5, "inf", "nan"]},
    "crossval": {"--folds": [-3, 0, 1, 10**12]},
    "ablate": {"--val-share": [-0.1, 1, "nan"]},
    "render": {
        "--clips": [0, 10**12],
        "--seed": [-1, 2**64],
        "--width": [-64, 10**9],
        "--height": [0, 10**9],
        "--frames": [1, 10**12],
        "--fps": [0, 10**9],
        "--workers": [-1, 10**9],
    },
    "prepare": {"--short-side": [-2, 10**9], "--gop": [0, 10**12], "--workers": [-1, 10**9]},
    "demo": {"--clips": [0, -1, 10**12], "--epochs": [0, 10**12]},
}


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [(c, option, value) for c, options in NUMBERS.items() for option, values in options.items() for value in values],
)
def test_numbers_have_bounds_that_are_checked_first(
    actdet_command: Actdet, tmp_path: Path, command: str, option: str, value: object
) -> None:
    """None of the files is there, so whatever is done before is seen in the complaint."""
    out = tmp_path / "out"
    places: list[object] = ["no/such"] * {"render": 0, "demo": 0, "evaluate": 2, "predict": 2}.get(command, 1)
    places += [out] if command in ("render", "prepare") else ["--out", out]
    complaint = actdet_command(command, *places, f"{option}={value}").complaint()
    name = option.removeprefix("--").replace("-", "_")
    assert re.match(rf"{name} must be (in [\[(].*, .*[\])]|shorter than the \d+ epochs), got ", complaint)
    assert float(complaint.rpartition(" ")[2]) == pytest.approx(float(str(value)), nan_ok=True)
    assert not out.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_option_is_among_those(actdet_command: Actdet, command: str) -> None:
    text = actdet_command(command, "--help").out
    options = set(re.findall(r"(--[\w-]+) (?:\{None\}\|)?(?:INT|FLOAT)\b", text))
    assert options <= (NUMBERS["train"] | NUMBERS.get(command, {})).keys()
    assert options >= NUMBERS.get(command, {}).keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "x", "--nonsense", 3],
        ["train"],
        ["nonsense"],
        [],
        ["predict", "m", "v", "--threshold", "much"],
        ["train", "x", "--precision", "fp8"],
        ["train", "x", "--epochs", "1.5"],
    ],
    ids=str,
)
def test_a_mistyped_command_exits_2_and_names_it(actdet_command: Actdet, arguments: list[object]) -> None:
    outcome = actdet_command(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "--help" in outcome.err
    if len(arguments) > 1:
        assert str(arguments[-2]) in outcome.err


def _pickled(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("epoch 1"),
        _pickled,
        lambda path: save_file({"a": torch.ones(2)}, path),
        lambda path: path.mkdir(),
    ],
    ids=["missing", "empty", "text", "pickle", "another's", "folder"],
)
def test_a_bad_checkpoint_is_named(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "model.safetensors"
    make(path)
    clip = sorted((rendered / "videos").iterdir())[0]
    for arguments in (("evaluate", path, rendered), ("predict", path, clip)):
        assert actdet_command(*arguments, "--out", tmp_path / "o").complaint().startswith(f"{path}: ")


def test_a_cut_checkpoint_is_named(actdet_command: Actdet, rendered: Path, model: Path, tmp_path: Path) -> None:
    path = cut(Path(shutil.copy(model, tmp_path)), 0.9)
    assert actdet_command("evaluate", path, rendered).complaint().startswith(f"{path}: ")


def test_held_out_clips_of_another_data_set_are_missed(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path
) -> None:
    for name in read_about(model).held_out:
        (data / "videos" / f"{name}.webm").unlink()
        (data / "annotations" / f"{name}.txt").unlink()
    outcome = actdet_command("evaluate", model, data, "--held-out", "--out", tmp_path / "o", "--workers", 0)
    assert outcome.complaint().startswith(f"{data}: holds none of the 3 clips")


@pytest.mark.parametrize("name", ["gone.mp4", "sound.m4a", "text.mp4", "empty.mp4"])
def test_predict_names_a_bad_video(actdet_command: Actdet, model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "sound.m4a":
        write_sound(path)
    elif name != "gone.mp4":
        path.write_text("text" * (name == "text.mp4"))
    outcome = actdet_command("predict", model, path, "--out", tmp_path / "o")
    assert outcome.code == 1
    assert outcome.complaints[0].startswith(f"actdet: {path}: ")
    assert "Traceback" not in outcome.err
    # There are no results to point at.
    assert outcome.out == ""


def test_predict_refuses_no_video(actdet_command: Actdet, model: Path) -> None:
    assert "no video given" in actdet_command("predict", model).complaint()


@pytest.mark.parametrize("place", [".", "link"])
def test_predict_replaces_none_of_its_videos(
    actdet_command: Actdet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    door, yard = (write_video(tmp_path / name, frames=9) for name in ("door.mp4", "yard.mkv"))
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = door.read_bytes()
    outcome = actdet_command("predict", model, yard, door, "--out", place)
    assert outcome.complaint().startswith(f"{Path(place, 'door.mp4')}: is one of the videos")
    assert outcome.out == ""
    assert actdet_command("predict", model, "door.mp4", "--out", place, "--no-annotate").code == 0
    assert actdet_command("predict", model, yard, "--out", place).code == 0
    assert door.read_bytes() == before
    assert (tmp_path / "yard.mp4").is_file()


def _report(command: str, data: Path, model: Path, out: Path) -> list[object]:
    if command == "evaluate":
        return [command, model, data, "--out", out, "--workers", 0]
    return [command, data, "--out", out, "--epochs", 1, *OPTIONS, *["--folds", 2] * (command == "crossval")]


@pytest.mark.parametrize("place", ["data", "data/videos", "data/annotations/run", "near", "above"])
@pytest.mark.parametrize("command", ["train", "evaluate", "crossval", "ablate"])
def test_no_report_is_written_among_the_clips(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path, command: str, place: str
) -> None:
    """near: its videos/ is the data set's; above: the data set has links to the files in its videos/."""
    out = tmp_path / place
    if place == "near":
        out.mkdir()
        (out / "videos").symlink_to(data / "videos")
    elif place == "above":
        shutil.copytree(data / "videos", out / "videos")
        for video in (data / "videos").iterdir():
            video.unlink()
            video.symlink_to(out / "videos" / video.name)
    before = {path for path in tmp_path.rglob("*") if path.name != ".actdet-index.json"}
    complaint = actdet_command(*_report(command, data, model, out)).complaint()
    assert complaint.startswith(f"{out}: its files would be written among those of the data set {data}")
    assert {path for path in tmp_path.rglob("*") if path.name != ".actdet-index.json"} == before


@pytest.mark.parametrize("command", ["crossval", "ablate"])
def test_no_part_of_an_experiment_is_written_among_the_clips(
    actdet_command: Actdet, data: Path, model: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / {"crossval": "fold_2", "ablate": "no_L1_loss"}[command]).symlink_to(data / "annotations")
    assert actdet_command(*_report(command, data, model, out)).complaint().startswith(f"{out}: ")
    assert len(list(out.iterdir())) == 1


@pytest.mark.parametrize("command", ["train", "evaluate", "crossval"])
def test_a_report_may_lie_beside_the_clips(actdet_command: Actdet, data: Path, model: Path, command: str) -> None:
    outcome = actdet_command(*_report(command, data, model, data / "runs"))
    assert outcome.code == 0, outcome.err
    assert actdet_command("check", data).code == 0


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


def test_a_folder_that_holds_a_run_is_kept(actdet_command: Actdet, rendered: Path, trained: Path) -> None:
    before = (trained / "metrics.json").read_bytes()
    outcome = actdet_command("train", rendered, "--out", trained, "--epochs", 1, *OPTIONS)
    assert outcome.complaint().startswith(f"{trained} holds a run already")
    outcome = actdet_command("train", rendered, "--out", trained, "--epochs", 1, *OPTIONS, "--resume")
    assert outcome.complaint().startswith(f"{trained}: nothing to resume")
    assert (trained / "metrics.json").read_bytes() == before


def test_prepare_says_what_is_wrong(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "out", sorted((data / "videos").iterdir())[3].name
    assert f"{tmp_path / 'no'}: no such folder" in actdet_command("prepare", tmp_path / "no", out).complaint()
    assert "within the data set" in actdet_command("prepare", data, data / "out").complaint()
    assert actdet_command("prepare", data, out, "--gop", 0).complaint() == "gop must be in [1, 10000], got 0"
    assert actdet_command("prepare", data, out, "--short-side", 99).complaint() == "short_side must be even, got 99"
    cut(data / "videos" / name, 0.6)
    assert actdet_command("prepare", data, out).complaint().startswith(f"{data / 'videos' / name}: ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--step", "graph"], "step graph needs a GPU: use auto, eager or compile"),
        (["--step", "compile", "--checkpointing"], "step compile decides itself what to compute twice"),
        (["--ema-decay", "1.0"], "ema_decay must be in [0, 1), got 1.0"),
    ],
)
def test_a_step_that_cannot_be_had_is_refused(
    actdet_command: Actdet, rendered: Path, tmp_path: Path, options: list[str], problem: str
) -> None:
    outcome = actdet_command("train", rendered, "--out", tmp_path / "run", *MODEL_OPTIONS, *TRAIN_OPTIONS, *options)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"actdet: {problem}")
    assert not (tmp_path / "run").exists()


def test_more_actions_than_queries_are_refused(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    text = sorted((data / "annotations").iterdir())[0]
    text.write_text("0 1 2 30 40\n" * 4)
    outcome = actdet_command("train", data, "--queries", 3, "--out", tmp_path / "o", *OPTIONS)
    assert text.stem in outcome.complaint()
    assert "--queries 4" in outcome.complaint()


SHORTAGES = {
    "MemoryError": (MemoryError(), "too little memory"),
    "PyTorch": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "too little memory"),
    "C++": (RuntimeError("std::bad_alloc"), "too little memory"),
    "threads": (RuntimeError("can't start new thread"), "too little memory"),
    "import": (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "too little memory"),
    "system": (OSError(errno.ENOMEM, "Cannot allocate memory"), "too little memory"),
    "files": (OSError(errno.EMFILE, "Too many open files", "a.mp4"), "too many files are open"),
    "all files": (OSError(errno.ENFILE, "Too many open files in system"), "too many files are open"),
}


@pytest.mark.parametrize(("error", "words"), SHORTAGES.values(), ids=SHORTAGES)
def test_what_the_system_is_short_of_is_said_in_one_line(
    actdet_command: Actdet, data: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def survey(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "survey", survey)
    assert actdet_command("check", data).complaint().startswith(words)


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "crossval", "ablate", "demo"])
def test_a_device_is_looked_for_before_any_work(actdet_command: Actdet, tmp_path: Path, command: str) -> None:
    """None of the files is there, so whatever is done before is seen in the complaint."""
    places = ["no/such"] * {"demo": 0, "evaluate": 2, "predict": 2}.get(command, 1)
    for device in ("tpu", "cuda:99"):
        complaint = actdet_command(command, *places, "--out", tmp_path / "out", "--device", device).complaint()
        assert complaint.startswith("device ")
        assert device in complaint
    assert not (tmp_path / "out").exists()


def test_processes_of_torchrun_share_no_gpu(
    actdet_command: Actdet, rendered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "join_processes", lambda: nullcontext(distributed.Processes(0, 2)))
    complaint = actdet_command("train", rendered, "--device", "cuda:1").complaint()
    assert complaint == "device is auto or cpu in several processes: torchrun gives each its own GPU"


def test_other_errors_are_not_taken_for_a_shortage(
    actdet_command: Actdet, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "survey", None)
    with pytest.raises(TypeError, match="not callable"):
        actdet_command("check", data)


NO_FILES = """
import contextlib, os, resource, sys
from actdet import __main__
from actdet.cli import main as cli

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
with contextlib.suppress(OSError):
    while True:
        os.open(os.devnull, os.O_RDONLY)
"""
NO_MEMORY = """
import resource, sys

resource.setrlimit(resource.RLIMIT_AS, (60 * 2**20, 60 * 2**20))
"""


@pytest.mark.parametrize(
    ("limit", "words"),
    [(NO_FILES, "too many files are open"), (NO_MEMORY, "too little memory")],
    ids=["files", "memory"],
)
def test_a_limit_of_the_system_ends_in_one_line(data: Path, limit: str, words: str) -> None:
    """No descriptor is left; the memory suffices for Python, and for no NumPy."""
    code = f"{limit}\nsys.argv = ['actdet', 'check', {str(data)!r}]\nfrom actdet.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"actdet: {words}")
    assert "Traceback" not in done.stderr

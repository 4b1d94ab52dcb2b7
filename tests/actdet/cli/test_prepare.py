"""actdet prepare makes a data set that is whole and trains, and goes on when what was wrong is repaired."""

from __future__ import annotations

import json
import re
from pathlib import Path

from actdet.data.index import load_index
from tests.actdet.command import Actdet, leftovers, small_disk
from tests.actdet.tiny import MODEL_OPTIONS, TRAIN_OPTIONS
from tests.actdet.video.videos import corrupt, cut, write_video

OPTIONS = [*MODEL_OPTIONS, *TRAIN_OPTIONS]


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


def test_prepare_says_what_is_wrong(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert f"{tmp_path / 'no'}: folder not found" in actdet_command("prepare", tmp_path / "no", out).complaint()
    assert "within the data set" in actdet_command("prepare", data, data / "out").complaint()
    assert actdet_command("prepare", data, out, "--gop", 0).complaint() == "gop must be in [1, 10000], got 0"
    assert actdet_command("prepare", data, out, "--short-side", 99).complaint() == "short_side must be even, got 99"

    video = sorted((data / "videos").iterdir())[3]
    cut(video, 0.6)
    assert actdet_command("prepare", data, out).complaint().startswith(f"{video}: ")
    assert not out.exists()


def test_prepare_names_damage_and_goes_on_once_repaired(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    video = sorted((data / "videos").iterdir())[3]
    video.unlink()
    bad = write_video(data / "videos" / f"{video.stem}.mkv", "mjpeg", frames=200, size=(64, 64))
    corrupt(bad, range(190, 195))

    complaint = actdet_command("prepare", data, out, "--workers", 2).complaint()
    assert complaint.startswith(f"{bad}: only the first 190 of its 200 frames decode")
    assert not leftovers(out)
    assert not (out / "videos" / f"{video.stem}.mp4").exists()
    made = len(list((out / "videos").iterdir()))

    bad.unlink()
    write_video(bad, "mjpeg", frames=20, size=(64, 64))
    outcome = actdet_command("prepare", data, out)
    assert outcome.code == 0, outcome.err
    already = f", {made} of them were there already" if made else ""
    assert outcome.out.splitlines()[0] == f"{out}: 12 clips{already}"

    other = actdet_command("prepare", data, out, "--gop", 9)
    assert "requested short side 256, GOP 9" in other.complaint()


def test_no_space_left_for_a_prepared_video(actdet_command: Actdet, rendered: Path, tmp_path: Path) -> None:
    # The cache of the index is written before the disk is full.
    load_index(rendered)
    with small_disk(1200):
        outcome = actdet_command("prepare", rendered, tmp_path / "o")
    assert re.match(rf"{tmp_path}/o/videos/\w+\.mp4: cannot be written: ", outcome.complaint())
    assert not leftovers(tmp_path)
    assert not list((tmp_path / "o" / "videos").iterdir())


def test_groups_and_lists_go_with_a_prepared_data_set(actdet_command: Actdet, data: Path, tmp_path: Path) -> None:
    """A clip that cannot be read is in none of them."""
    names = sorted(path.stem for path in (data / "videos").iterdir())
    next((data / "videos").glob(f"{names[3]}.*")).write_bytes(b"")
    (data / "groups.txt").write_text("".join(f"{name} room{i % 4}\n" for i, name in enumerate(names)))
    (data / "train.txt").write_text("".join(f"{name}\n" for i, name in enumerate(names) if i % 4))
    (data / "test.txt").write_text("".join(f"{name}\n" for i, name in enumerate(names) if not i % 4))
    out = tmp_path / "out"
    arguments = ("prepare", data, out, "--short-side", 32, "--bad-files", "skip")
    outcome = actdet_command(*arguments)
    assert outcome.code == 0, outcome.err
    for name in ("groups.txt", "train.txt", "test.txt"):
        lines = (data / name).read_text().splitlines()
        assert (out / name).read_text().splitlines() == [line for line in lines if line.split()[0] != names[3]]
    assert actdet_command("check", out).code == 0

    # A later run takes over what has changed, but replaces nothing of anybody else's.
    (data / "test.txt").write_text("")
    assert actdet_command(*arguments).code == 0
    assert (out / "test.txt").read_text() == ""
    other = tmp_path / "other"
    other.mkdir()
    (other / "groups.txt").write_text("mine")
    complaint = actdet_command("prepare", data, other, *arguments[3:]).complaint()
    assert complaint.startswith(f"{other / 'groups.txt'} was not written by this command")
    assert [path.name for path in other.iterdir()] == ["groups.txt"]

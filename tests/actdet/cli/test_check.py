"""actdet check lists everything that is wrong with a data set, and counts what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.actdet.command import Actdet, lines_without_bars
from tests.actdet.video.videos import cut, join, write_video


def test_render_made_a_data_set_that_check_finds_good(actdet_command: Actdet, rendered: Path) -> None:
    outcome = actdet_command("check", rendered)
    assert outcome.code == 0
    assert outcome.out == f"{rendered}: 12 clips (4 fight, 4 collapse, 4 no action), nothing wrong\n"
    again = actdet_command("render", rendered, "--clips", 3)
    assert str(rendered / "videos") in again.complaint()


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


def test_check_counts_every_action(actdet_command: Actdet, data: Path) -> None:
    fight = min((data / "annotations").glob("fight*"))
    other = min((data / "annotations").glob("none*"))
    counts = set()
    for lines in ("0 1 2 30 40\n1 5 5 60 60\n0 3 3 50 50\n", "1 5 5 60 60\n0 1 2 30 40\n0 3 3 50 50\n"):
        fight.write_text(lines)
        counts.add(actdet_command("check", data, "--no-decode").out)
    assert counts == {f"{data}: 12 clips (5 fight in 4 clips, 5 collapse, 4 no action), nothing wrong\n"}

    fight.write_text("1 5 5 60 60\n1 3 3 50 50\n")
    other.unlink()
    outcome = actdet_command("check", data, "--no-decode")
    counted = "3 fight, 6 collapse in 5 clips, 4 no action: 3 with an empty file, 1 with none"
    assert outcome.out == f"{data}: 12 clips ({counted}), nothing wrong\n"


def test_check_counts_tubes(actdet_command: Actdet, data: Path) -> None:
    texts = sorted((data / "annotations").glob("fight*"))
    tables = [text.with_suffix(".csv") for text in texts]
    for text in texts:
        text.unlink()
    tables[0].write_text("frame,track,class,x1,y1,x2,y2\n0,1,fight,1,1,30,30\n2,1,fight,1,1,30,30\n0,2,fight,9,9,30,30")
    tables[1].write_text("frame,track,class,interpolate\n2,1,collapse,1\n9,1,collapse,0\n")
    outcome = actdet_command("check", data, "--no-decode")
    counted = "2 fight in 1 clip, 5 collapse, 6 no action: 4 with an empty file, 2 with none"
    tubes = "3 tubes of 3 boxes in 2 clips, 1 of them without any; at most 2 in one"
    tubes += "; 1 frame within tubes without a box"
    note, result = outcome.out.splitlines()
    assert result == f"{data}: 12 clips ({counted}; {tubes}), nothing wrong"
    assert note.startswith(f"note: {data / 'annotations'}: videos with tables last 2.1 seconds")

    tables[0].write_text("frame,track,class,x1,y1,x2,y2\n0,1,fight,1,1,30\n")
    outcome = actdet_command("check", data, "--no-decode")
    assert outcome.complaint() == f"1 problem in {data}"
    assert outcome.out.startswith(f"{tables[0]}:2: has 6 fields; expected 7")


def test_check_looks_at_groups_and_lists(actdet_command: Actdet, data: Path) -> None:
    names = sorted(path.stem for path in (data / "videos").iterdir())
    groups = data / "groups.txt"
    groups.write_text("".join(f"{name} {name}\n" for name in names))
    (data / "train.txt").write_text("\n".join(names[:8]))
    (data / "test.txt").write_text("\n".join(names[8:]))
    good = actdet_command("check", data, "--no-decode")
    assert (good.code, good.out.count("\n")) == (0, 1), good.out

    groups.write_text("".join(f"{name} {name}\n" for name in names[1:]))
    (data / "test.txt").write_text(f"{names[9]}\n{names[0]}\n")
    outcome = actdet_command("check", data, "--no-decode")
    assert outcome.complaint() == f"2 problems in {data}"
    first, second = outcome.out.splitlines()
    assert first.startswith(f"{groups}: 1 of 12 clips have no group, {names[0]} first; ")
    assert second.startswith(f"{data / 'test.txt'}:2: clip {names[0]} is in line 1 of train.txt, too; ")


def test_check_takes_a_bad_clip_for_one_of_a_list(actdet_command: Actdet, data: Path) -> None:
    names = sorted(path.stem for path in (data / "videos").iterdir())
    (data / "train.txt").write_text("\n".join(names[:8]))
    (data / "test.txt").write_text("\n".join(names[8:]))
    bad = next((data / "videos").glob(f"{names[0]}.*"))
    bad.write_bytes(b"")
    outcome = actdet_command("check", data, "--no-decode")
    assert outcome.complaint() == f"1 problem in {data}"
    assert outcome.out.startswith(f"{bad}: ")


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_check_says_that_recordings_were_joined(actdet_command: Actdet, tmp_path: Path, codec: str) -> None:
    """Two files behind each other, of which the second begins at time 0 again."""
    for folder in ("videos", "annotations"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    parts = [write_video(tmp_path / f"{number}.ts", codec, frames=30) for number in range(2)]
    path = join(tmp_path / "set" / "videos" / "door.ts", *parts)
    outcome = actdet_command("check", tmp_path / "set")
    assert outcome.code == 0, outcome.err
    note = f"note: {path}: its timestamps go back at frame 30 (1.20 s); they were continued"
    assert note in lines_without_bars(outcome.out + outcome.err)

    # A clip with such a name could have no annotation file.
    long = path.rename(path.with_name(f"{'x' * 252}.ts"))
    problem = f"{long}: its name leaves no room for .txt in its place: shorten it to 251 bytes"
    assert actdet_command("check", tmp_path / "set").out.splitlines()[0] == problem


@pytest.mark.parametrize("size", [(4096, 2), (8192, 16), (2, 4096)])
def test_check_refuses_pictures_of_extreme_shape(
    actdet_command: Actdet, data: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = write_video(data / "videos" / "odd.mkv", "mjpeg", frames=3, size=size)
    outcome = actdet_command("check", data)
    assert outcome.complaint() == f"1 problem in {data}"
    assert outcome.out.startswith(f"{path}: ")
    assert f"{size[0]} x {size[1]}" in outcome.out

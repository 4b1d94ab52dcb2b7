"""Groups stay whole, lists are followed, and what is wrong with their files is said with file, line and value."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actdet.data.clips import ClipIndex
from actdet.data.division import divide, divide_into_folds, find_wrong_files, read_list, without_clips
from actdet.data.split import folds, hold_out
from actdet.errors import ActdetError, DataError
from tests.actdet.data.test_split import COLLAPSE, FIGHT, NONE, index

TWELVE = [FIGHT, COLLAPSE, NONE] * 4


def clips(root: Path, labels: list[int] = TWELVE, *left_out: str) -> ClipIndex:
    """Clips "clip 0", "clip 1" and so on; the video files of others were bad."""
    found = replace(index(labels), root=root)
    named = tuple(replace(clip, name=f"clip {clip.name}") for clip in found.clips)
    problems = tuple(DataError(root / "videos" / f"{name}.mp4", "is empty") for name in left_out)
    return replace(found, clips=named, left_out=problems)


def listed(*numbers: int) -> str:
    return "".join(f"clip {number}\n" for number in numbers)


def groups_in(path: Path) -> dict[str, str]:
    """The file read anew, without the program: what is before the last blank of a line, and what is behind it."""
    text = path.read_bytes().decode("utf-8-sig")
    return dict(re.findall(r"^[ \t]*(\S.*?)[ \t]+(\S+)[ \t\r]*$", text, flags=re.MULTILINE))


def write_random_groups(path: Path, count: int, groups: int, seed: int) -> None:
    """As a Windows editor may save them: a BOM, CRLF, blank lines, tabs, a line on a clip that is not there."""
    random = np.random.default_rng(seed)
    lines = [f"clip {i}{random.choice([' ', chr(9), '  '])}room{random.integers(groups)}" for i in range(count)]
    lines += ["", "another clip room0", "   "]
    path.write_bytes(("\ufeff" + "\r\n".join(random.permutation(lines)) + "\r\n").encode())


def assert_divided(found: ClipIndex, split: tuple[list[int], list[int]], path: Path) -> None:
    """No group of the file is on both sides, each class is on both, and no clip is twice."""
    by_name = groups_in(path)
    sides = [{by_name[found.clips[i].name] for i in side} for side in split]
    assert sides[0].isdisjoint(sides[1])
    labels = [{int(found.labels[i]) for i in side} for side in split]
    assert labels[0] == labels[1] == set(found.labels.tolist())
    assert len({*split[0], *split[1]}) == len(split[0]) + len(split[1])
    assert list(split) == [sorted(side) for side in split]


@pytest.mark.parametrize("share", [None, 0.0, 0.2, 0.4])
@pytest.mark.parametrize("seed", [0, 7])
def test_without_files_the_classes_alone_divide(tmp_path: Path, share: float | None, seed: int) -> None:
    found = clips(tmp_path, TWELVE * 3)
    division = divide(found, share, seed)
    wanted = 0.2 if share is None else share
    assert division.splits == [hold_out(found, wanted, seed)]
    assert (division.reason, division.settings) == ("", {"val_share": wanted})

    division = divide_into_folds(found, 3, seed)
    assert division.splits == folds(found, 3, seed)
    assert (division.reason, division.settings) == ("", {"folds": 3})


@pytest.mark.parametrize("seed", range(25))
def test_no_group_of_the_file_is_on_both_sides(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    found = clips(tmp_path, random.permutation(np.repeat([FIGHT, COLLAPSE, NONE], [30, 20, 15])).tolist())
    own = tmp_path / "groups.txt"
    write_random_groups(own, len(found.clips), 12, seed)

    division = divide(found, None, seed)
    (split,) = division.splits
    assert_divided(found, split, own)
    assert len(split[0]) + len(split[1]) == len(found.clips)
    assert division.reason == f"{own}: {len(set(division.settings['groups']))} groups, none of them on both sides"

    division = divide_into_folds(found, 3, seed)
    for split in division.splits:
        assert_divided(found, split, own)
    assert sorted(i for _, held in division.splits for i in held) == list(range(len(found.clips)))
    assert str(own) in division.reason

    # A file that was asked for takes the place of the data set's own.
    other = tmp_path / "cameras"
    write_random_groups(other, len(found.clips), 9, seed + 100)
    for division in (divide(found, 0.3, seed, other), divide_into_folds(found, 2, seed, other)):
        for split in division.splits:
            assert_divided(found, split, other)
        assert f"{other}: " in division.reason
        assert str(own) not in division.reason


def test_folds_keep_each_class_on_both_sides_if_there_are_such_folds(tmp_path: Path) -> None:
    """Few and unequal groups, for which a balanced division may leave out a class."""
    divided = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        found = clips(tmp_path, random.integers(0, 3, 14).tolist())
        write_random_groups(tmp_path / "groups.txt", 14, 5, seed)
        try:
            division = divide_into_folds(found, 2, seed)
        except DataError:
            continue
        divided += 1
        for split in division.splits:
            assert_divided(found, split, tmp_path / "groups.txt")
    assert divided > 20


def test_the_lists_are_followed(tmp_path: Path) -> None:
    found = clips(tmp_path)
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf clip 7 \r\n\r\nclip 0\r\nclip 1\r\n")
    (tmp_path / "test.txt").write_text(listed(11, 2))
    division = divide(found, None, 0)
    assert division.splits == [([0, 1, 7], [2, 11])]
    assert division.reason == (
        f"{tmp_path / 'train.txt'} and test.txt: 3 clips to train on, 2 held out; 7 in neither list are not used"
    )
    assert division.settings == {
        "val_share": None,
        "train_list": ["clip 0", "clip 1", "clip 7"],
        "test_list": ["clip 2", "clip 11"],
    }
    assert json.loads(json.dumps(division.settings)) == division.settings


@pytest.mark.parametrize("with_groups", [False, True])
def test_a_share_or_folds_leave_the_test_list_alone(tmp_path: Path, with_groups: bool) -> None:
    found = clips(tmp_path, TWELVE * 5)
    test = range(0, 60, 7)
    train = [i for i in range(60) if i not in test]
    (tmp_path / "train.txt").write_text(listed(*reversed(train)))
    (tmp_path / "test.txt").write_text(listed(*test))
    path = tmp_path / "groups.txt"
    if with_groups:
        path.write_text("".join(f"clip {i} {'test' if i in test else i % 11}\n" for i in range(60)))

    division = divide(found, 0.3, 0)
    (split,) = division.splits
    assert sorted(split[0] + split[1]) == train
    assert len(split[1]) == pytest.approx(0.3 * len(train), abs=4)
    assert division.reason.startswith(
        f"{tmp_path / 'train.txt'}: {len(split[0])} of its 51 clips to train on, {len(split[1])} held out; "
        "the 9 in test.txt are not used"
    )
    assert divide(found, 0, 0).splits == [(train, [])]

    folded = divide_into_folds(found, 3, 0)
    assert sorted(i for _, held in folded.splits for i in held) == train
    assert all(sorted(kept + held) == train for kept, held in folded.splits)
    assert folded.reason.startswith(f"{tmp_path / 'train.txt'}: folds of its 51 clips; the 9 in test.txt are not used")
    for each in (split, *folded.splits):
        if with_groups:
            assert_divided(found, each, path)
        assert {int(found.labels[i]) for i in each[1]} == {FIGHT, COLLAPSE, NONE}


GOOD = {"train.txt": listed(0, 1, 2), "test.txt": listed(3, 4)}

MISTAKES = {
    "a name that is not there": (
        {"train.txt": "clip 0\n\nclip 00\n"},
        "train.txt:3: 'clip 00' is no clip of {root}; expected the name of a video without its extension",
    ),
    "a name with its extension": ({"test.txt": "clip 3.mp4\n"}, "test.txt:1: 'clip 3.mp4' is no clip of {root}; "),
    "a name twice": (
        {"test.txt": "clip 3\nclip 4\nclip 3\n"},
        "test.txt:3: clip clip 3 is in line 1 already; remove one of the lines",
    ),
    "a name in both lists": (
        {"test.txt": "clip 3\nclip 1\n"},
        "test.txt:2: clip clip 1 is in line 2 of train.txt, too; remove it from one of the lists",
    ),
    "an empty list": ({"test.txt": ""}, "test.txt: is empty; expected the name of a clip on each line"),
    "a list of blank lines": ({"train.txt": "\r\n  \r\n"}, "train.txt: is empty; "),
    "a list that is alone": ({"test.txt": None}, "test.txt: file not found, but there is a train.txt; "),
    "the other list alone": ({"train.txt": None}, "train.txt: file not found, but there is a test.txt; "),
    "nothing to learn from": (
        {"train.txt": listed(2, 5)},
        "train.txt: none of the 2 clips that it names has an action: there is nothing to learn from",
    ),
    "only clips that were left out": (
        {"test.txt": "bad\n"},
        "test.txt: all clips that it names were left out; ",
    ),
    "a list that is no text": ({"train.txt": b"clip \xff\n"}, "train.txt: byte 5 is not UTF-8 text"),
    "groups that lack clips": (
        {"groups.txt": "clip 0 door\nclip 1 yard\n"},
        "groups.txt: 10 of 12 clips have no group, clip 2 first; add a line NAME GROUP",
    ),
    "a line without a group": ({"groups.txt": "door\n"}, "groups.txt:1: 'door' has no group; expected NAME GROUP"),
    "a group that the lists cut": (
        {"groups.txt": "".join(f"clip {i} {'home' if i in (1, 4) else i}\n" for i in range(12))},
        "test.txt: clip clip 4 is of group home in {root}/groups.txt, as is clip 1 in train.txt; ",
    ),
}


@pytest.mark.parametrize(("files", "words"), MISTAKES.values(), ids=MISTAKES)
def test_each_mistake_is_named(tmp_path: Path, files: dict[str, str | bytes | None], words: str) -> None:
    found = clips(tmp_path, TWELVE, "bad")
    for name, text in (GOOD | files).items():
        if text is not None:
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    wanted = f"{tmp_path}/{words.format(root=tmp_path)}"
    for run in (
        lambda: divide(found, None, 0),
        lambda: divide(found, 0.5, 0),
        lambda: divide_into_folds(found, 2, 0),
    ):
        with pytest.raises(DataError) as caught:
            run()
        assert str(caught.value).startswith(wanted)
        assert "\n" not in str(caught.value)
    (problem,) = find_wrong_files(found)
    assert str(problem).startswith(wanted)


def test_clips_that_were_left_out_may_be_listed(tmp_path: Path) -> None:
    found = clips(tmp_path, TWELVE, "bad", "worse")
    (tmp_path / "train.txt").write_text("bad\n" + listed(0, 1))
    (tmp_path / "test.txt").write_text(listed(2) + "worse\n")
    assert divide(found, None, 0).splits == [([0, 1], [2])]
    assert find_wrong_files(found) == []


def test_problems_of_groups_and_lists_are_all_found(tmp_path: Path) -> None:
    assert find_wrong_files(clips(tmp_path)) == []
    (tmp_path / "groups.txt").write_text("")
    (tmp_path / "train.txt").write_text("")
    (tmp_path / "test.txt").write_text(listed(1))
    problems = [str(problem).removeprefix(f"{tmp_path}/") for problem in find_wrong_files(clips(tmp_path))]
    assert [problem.partition(":")[0] for problem in problems] == ["groups.txt", "train.txt"]


def test_a_share_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ActdetError, match=r"must be in \[0, 1\), got 1.5"):
        divide(clips(tmp_path), 1.5, 0)


def test_a_list_gives_clips_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_text(listed(9, 2, 4))
    assert read_list(path, clips(tmp_path)) == [2, 4, 9]
    with pytest.raises(DataError, match="file not found; expected the name of a clip on each line"):
        read_list(tmp_path / "none", clips(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("groups.txt", "a b home\na yard\n\nb  hall\n", "a b home\n\nb  hall\n"),
        ("train.txt", "a\na b\nb\n", "a b\nb\n"),
        ("test.txt", "\ufeffb\r\n a \r\n", "b\n"),
    ],
)
def test_lines_about_clips_can_be_left_out(tmp_path: Path, name: str, text: str, kept: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert without_clips(path, {"a"}) == kept

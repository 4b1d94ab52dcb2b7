"""The files of a data set are found, what does not belong there is named, and what others leave is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from actdet.data.layout import annotation_file, find_files


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A data set whose files are empty: only their names count here."""
    for name in ("videos/a.mp4", "videos/b.x.webm", "annotations/a.txt", "annotations/b.x.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_videos_are_found_sorted_by_name(folders: Path) -> None:
    (folders / "videos" / "B.mkv").touch()
    (folders / "videos" / "a b.avi").touch()
    videos, problems, notes = find_files(folders)
    assert [path.name for path in videos] == ["B.mkv", "a.mp4", "a b.avi", "b.x.webm"]
    assert problems == []
    assert notes == []


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (".", "folder not found; expected a folder containing videos/ and annotations/"),
        ("videos", "folder not found; expected a folder containing the videos"),
        ("annotations", "folder not found; expected a folder containing NAME.txt or NAME.csv"),
        ("videos/*", "contains no videos"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, missing: str, expected: str) -> None:
    root = tmp_path / "set"
    for folder in (".", "videos", "annotations"):
        if missing not in (".", folder):
            (root / folder).mkdir(parents=True, exist_ok=True)
    videos, (problem,), notes = find_files(root)
    assert (videos, notes) == ([], [])
    assert problem.path == str(root / missing.removesuffix("*"))
    assert problem.problem == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("videos/sub/", "is a folder; expected only files in videos/"),
        ("annotations/sub/", "is a folder; expected only files in annotations/"),
        ("videos/a.webm", "has the same name as a.mp4; an annotation file can belong to only one video"),
        ("videos/a.txt", "is not a video; annotation files are expected in {root}/annotations"),
        ("annotations/a.json", "is not an annotation file; expected NAME.txt or NAME.csv for a video called NAME"),
        ("annotations/a.TXT", "is not an annotation file; expected NAME.txt or NAME.csv for a video called NAME"),
        ("annotations/a.CSV", "is not an annotation file; expected NAME.txt or NAME.csv for a video called NAME"),
        ("annotations/c.txt", "no video of this name; expected videos/c.<extension>"),
        ("annotations/c.csv", "no video of this name; expected videos/c.<extension>"),
    ],
)
def test_what_does_not_belong_there_is_named(folders: Path, name: str, expected: str) -> None:
    path = folders / name
    if name.endswith("/"):
        path.mkdir()
    else:
        path.touch()
    _, (problem,), notes = find_files(folders)
    assert problem.path == str(path)
    assert problem.problem == expected.format(root=folders)
    assert notes == []


def test_a_video_has_lines_or_a_table(folders: Path) -> None:
    (folders / "annotations" / "a.csv").touch()
    _, (problem,), _ = find_files(folders)
    assert problem.path == str(folders / "annotations" / "a.txt")
    assert problem.problem == "annotates the same video as a.csv; expected one of them"

    (folders / "annotations" / "a.txt").unlink()
    videos, problems, notes = find_files(folders)
    assert [video.stem for video in videos] == ["a", "b.x"]
    assert (problems, notes) == ([], [])


def test_the_annotation_file_is_found_by_the_name_of_the_video(folders: Path) -> None:
    annotations = folders / "annotations"
    assert annotation_file(folders, "a") == annotations / "a.txt"
    assert annotation_file(folders, "b.x") == annotations / "b.x.txt"
    (annotations / "b.x.csv").touch()
    assert annotation_file(folders, "b.x") == annotations / "b.x.csv"
    assert annotation_file(folders, "none") == annotations / "none.txt"


STRAYS = {
    "videos": ["Thumbs.db", ".DS_Store", "desktop.ini", "notes.md", "classes.txt", "a.srt", "README.TXT"],
    "annotations": ["Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "classes.txt", "readme.md", "obj.names"],
}


def test_stray_files_are_passed_over_with_a_note(folders: Path) -> None:
    for folder, names in STRAYS.items():
        for name in names:
            (folders / folder / name).write_text("fight\ncollapse\n")
        (folders / folder / ".a.1.partial.mp4").touch()
        (folders / folder / ".hidden").mkdir()
    videos, problems, notes = find_files(folders)
    assert [path.name for path in videos] == ["a.mp4", "b.x.webm"]
    assert problems == []
    for folder, note in zip(STRAYS, notes, strict=True):
        assert note.startswith(f"{folders / folder}: passed over .DS_Store, .hidden, ")
        more = len(STRAYS[folder]) + 1 - 5
        assert note.endswith(f"and {more} more; class names are read from {folders / 'classes.txt'}")
        assert "partial" not in note


def test_a_note_on_few_files_lists_them_all(folders: Path) -> None:
    (folders / "videos" / "notes.md").touch()
    assert find_files(folders).notes == [f"{folders / 'videos'}: passed over notes.md"]


def test_an_annotation_file_may_be_called_as_a_stray_file(folders: Path) -> None:
    (folders / "videos" / "classes.mkv").touch()
    (folders / "annotations" / "classes.txt").touch()
    videos, problems, notes = find_files(folders)
    assert [path.name for path in videos] == ["a.mp4", "b.x.webm", "classes.mkv"]
    assert (problems, notes) == ([], [])

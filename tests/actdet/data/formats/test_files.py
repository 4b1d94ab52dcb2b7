"""Videos are found by the names that a source has for them, as files or as folders of pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from actdet.data.formats.files import VideoFiles, facts_of
from actdet.data.formats.source import SourceVideo
from actdet.errors import DataError
from tests.actdet.video.test_images import write_pictures_of
from tests.actdet.video.videos import write_video


def found(root: Path, name: str, *others: str, without: Path | None = None) -> str | None:
    """Where the video is, from `root` on."""
    video = SourceVideo(name, lambda facts: [], other_names=others)
    path = VideoFiles(root, without or root / "out").find(video)
    return None if path is None else path.relative_to(root).as_posix()


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_a_video_is_found_by_the_last_part_of_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/door.mp4", "yard.MKV", "notes.txt", ".hidden.mp4")
    for name in ("door.mp4", "door", "x/y/door.avi", "C:\\films\\door.mp4"):
        assert found(tmp_path, name) == "a/b/door.mp4"
    assert found(tmp_path, "yard") == "yard.MKV"
    for name in ("notes", "notes.txt", ".hidden", "doo", ""):
        assert found(tmp_path, name) is None


def test_other_names_are_tried_in_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "c.mp4")
    assert found(tmp_path, "a", "c", "b") == "c.mp4"


def test_of_several_videos_the_one_in_the_named_folders_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "Home_01/Videos/video (1).avi", "Home_02/Videos/video (1).avi")
    assert found(tmp_path, "Home_02/video (1)") == "Home_02/Videos/video (1).avi"
    with pytest.raises(DataError, match=r"has the same name as .*; remove or rename one of them"):
        found(tmp_path, "video (1)")


def test_folders_of_pictures_are_videos_but_not_those_of_optical_flow(tmp_path: Path) -> None:
    write_pictures_of(tmp_path / "rgb-images" / "Biking" / "v_1", 2)
    write_pictures_of(tmp_path / "brox-images" / "Biking" / "v_1", 2)
    write_pictures_of(tmp_path / "FlowBrox04" / "Biking" / "v_1", 2)
    assert found(tmp_path, "Biking/v_1") == "rgb-images/Biking/v_1"

    touch(tmp_path, "videos/v_1.avi")
    assert found(tmp_path, "v_1") == "videos/v_1.avi"


def test_links_are_followed_and_do_not_lead_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "door.mp4")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    assert found(tmp_path / "root", "door") == "link/door.mp4"


def test_the_folder_that_is_written_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "door.mp4", "out/videos/door.mp4")
    assert found(tmp_path, "door") == "door.mp4"
    assert found(tmp_path / "out", "door", without=tmp_path / "out") == "videos/door.mp4"


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder not found; expected a folder with videos"):
        VideoFiles(tmp_path / "none", tmp_path)


def test_facts_are_those_of_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=3, size=(64, 48), pts=[0, 40, 100])
    facts = facts_of(path, Fraction(10))
    assert (facts.width, facts.height) == (64, 48)
    assert facts.times.tolist() == pytest.approx([0, 0.04, 0.1])


def test_facts_of_pictures_have_the_rate_that_is_given(tmp_path: Path) -> None:
    facts = facts_of(write_pictures_of(tmp_path / "v", 3, size=(30, 21)), Fraction(10))
    assert (facts.width, facts.height, facts.seconds) == (30, 21, pytest.approx(0.3))
    assert facts.times.tolist() == pytest.approx([0, 0.1, 0.2])

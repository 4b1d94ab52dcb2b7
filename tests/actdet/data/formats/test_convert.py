"""A data set in another format becomes one of ours, and nothing that other people wrote is replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from actdet.data.formats.convert import Format, Progress, read_dataset, write_dataset
from actdet.data.groups import read_groups
from actdet.data.tubes import read_tubes
from actdet.errors import ActdetError, DataError
from actdet.video.encoding import read_comment
from actdet.video.info import probe
from tests.actdet.command import small_disk
from tests.actdet.data.formats.sources import plain
from tests.actdet.data.formats.test_cvat import META, box, document, track
from tests.actdet.data.formats.test_label_studio import keyframe, region, task
from tests.actdet.data.formats.test_le2i import write as write_le2i
from tests.actdet.data.formats.test_ucf101_24 import BIKING, GOLF, ROPE, ground_truth, write_pickle
from tests.actdet.video.test_images import write_pictures_of
from tests.actdet.video.videos import write_video

NAMES = ["v_Biking_g07_c03", "v_GolfSwing_g08_c02", "v_RopeClimbing_g01_c01"]


def convert(
    kind: Format,
    data: Path,
    out: Path,
    *,
    reading: Progress | None = None,
    writing: Progress | None = None,
    **options: Any,
) -> Converted:
    """Read and write a data set, as the command does."""
    conversion = read_dataset(kind, data, out, progress=reading, **options)
    write_dataset(conversion, out, writing)
    split = conversion.split
    return Converted(
        class_names=conversion.class_names,
        videos=len(conversion.clips),
        tubes=len(conversion.tubes),
        boxes=sum(len(tube.boxes) for tube in conversion.tubes),
        train=len(split.train) if split else 0,
        test=len(split.test) if split else 0,
        left_out=conversion.left_out,
    )


class Converted(NamedTuple):
    """How much was converted."""

    class_names: tuple[str, ...]
    videos: int
    tubes: int
    boxes: int
    train: int
    test: int
    left_out: tuple[str, ...]


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def cvat(tmp_path: Path) -> Path:
    """An export, and beside it the video that it is about."""
    folder = tmp_path / "exports"
    folder.mkdir()
    tracks = track(box(2, 10), box(6, 400), box(7, 30, outside=1)), track(box(39, 5), label="a &amp; b")
    (folder / "annotations.xml").write_text(document(*tracks))
    write_video(folder / "door.mp4", frames=40, size=(320, 240))
    return folder


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """A video file, a folder of pictures, and one video that is missing."""
    folder = tmp_path / "ucf24"
    folder.mkdir()
    write_pickle(folder / "UCF101v2-GT.pkl", ground_truth())
    write_pictures_of(folder / "rgb-images" / ROPE, 40, size=(320, 240))
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "v_GolfSwing_g08_c02.mp4", frames=9, size=(160, 120))
    return folder


def test_annotations_become_tube_files_beside_links_to_the_videos(cvat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    converted = convert("cvat", cvat, out)
    assert (converted.class_names, converted.videos, converted.tubes) == (("fight", "a & b"), 1, 2)
    assert (converted.boxes, converted.train, converted.test) == (5, 0, 0)
    assert (out / "classes.txt").read_text() == "fight\na & b\n"
    assert os.readlink(out / "videos" / "door.mp4") == str(cvat / "door.mp4")

    tubes, problems = read_tubes(
        out / "annotations" / "door.csv", probe(out / "videos" / "door.mp4"), ["fight", "a & b"]
    )
    assert problems == []
    assert plain(tubes[1]) == (1, [39], [[5, 20, 35, 60]])
    # From x = 10 to 400 in four frames; the last ones reach out of the picture, or are outside.
    assert plain(tubes[0]) == (0, [2, 3, 4, 5], [[10 + 97.5 * k, 20, min(40 + 97.5 * k, 320), 60] for k in range(4)])
    assert converted.left_out == (
        "boxes outside the picture, or without an area: 1 (first in door.mp4)",
        "parts of boxes that reached out of the picture: 1 (first in door.mp4)",
    )


def test_label_studio_needs_the_videos(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps([task(region(keyframe(40, 25))), task(video="none.mp4")]))
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films" / "door.mp4", frames=40, size=(320, 240))
    out = tmp_path / "out"
    converted = convert("label-studio", tmp_path / "export.json", out, video_folder=tmp_path / "films")
    assert converted.left_out == ("videos that were not found: 1 (first in none.mp4)",)
    assert (out / "annotations" / "door.csv").read_text() == "frame,track,class,x1,y1,x2,y2\n39,1,fight,80,60,112,108\n"
    assert [path.name for path in (out / "videos").iterdir()] == ["door.mp4"]


def test_pictures_become_videos_and_splits_become_lists(ucf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    converted = convert("ucf101-24", ucf, out)
    assert (converted.videos, converted.tubes, converted.boxes) == (2, 3, 4)
    assert (converted.train, converted.test) == (1, 1)
    assert converted.left_out == (f"videos that were not found: 1 (first in {BIKING})",)
    assert (out / "train.txt").read_text() == "v_GolfSwing_g08_c02\n"
    assert (out / "test.txt").read_text() == "v_RopeClimbing_g01_c01\n"
    assert (out / "groups.txt").read_text() == (
        "v_GolfSwing_g08_c02 GolfSwing_g08\nv_RopeClimbing_g01_c01 RopeClimbing_g01\n"
    )
    encoded = out / "videos" / "v_RopeClimbing_g01_c01.mp4"
    assert len(probe(encoded).pts) == 40
    assert read_comment(encoded).startswith("actdet convert: 40 pictures of ")
    assert (out / "videos" / "v_GolfSwing_g08_c02.mp4").is_symlink()


def test_without_videos_the_annotation_alone_is_written(ucf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    converted = convert("ucf101-24", ucf, out, videos="none")
    assert (converted.videos, converted.left_out) == (3, ())
    assert sorted(path.stem for path in (out / "annotations").iterdir()) == NAMES
    assert not (out / "videos").exists()
    assert (out / "annotations" / f"{NAMES[0]}.csv").read_text() == "frame,track,class,x1,y1,x2,y2\n"


def test_videos_can_be_copied(cvat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("cvat", cvat, out, videos="copy")
    copied = out / "videos" / "door.mp4"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (cvat / "door.mp4").read_bytes()

    # A copy that is there is not made again.
    before = copied.stat()
    convert("cvat", cvat, out, videos="copy")
    assert copied.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("videos", ["link", "copy"])
def test_running_it_again_changes_nothing(ucf: Path, tmp_path: Path, videos: Any) -> None:
    out = tmp_path / "out"
    convert("ucf101-24", ucf, out, videos=videos)
    before = contents(out)
    times = {path: path.lstat().st_mtime_ns for path in (out / "videos").iterdir()}
    convert("ucf101-24", ucf, out, videos=videos)
    assert contents(out) == before
    assert times == {path: path.lstat().st_mtime_ns for path in (out / "videos").iterdir()}


def test_a_changed_source_replaces_what_this_command_wrote(cvat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("cvat", cvat, out)
    (cvat / "annotations.xml").write_text(document(track(box(39, 7))))
    convert("cvat", cvat, out)
    assert (out / "annotations" / "door.csv").read_text().splitlines()[1:] == ["39,1,fight,7,20,37,60"]


def test_a_link_that_leads_elsewhere_by_now_is_made_anew(cvat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("cvat", cvat, out)
    moved = tmp_path / "moved"
    cvat.rename(moved)
    convert("cvat", moved, out)
    assert os.readlink(out / "videos" / "door.mp4") == str(moved / "door.mp4")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("annotations/door.csv", "frame,track,class\n3,1,fight\n"),
        ("classes.txt", "fight\na & b\n\n\n"),
        ("videos/door.mp4", "mine"),
        ("converted.json", '{"mine": 1}'),
    ],
)
@pytest.mark.parametrize("is_later", [False, True], ids=["before", "after"])
def test_what_people_wrote_is_not_replaced(cvat: Path, tmp_path: Path, name: str, text: str, is_later: bool) -> None:
    out = tmp_path / "out"
    path = out / name
    if is_later:
        convert("cvat", cvat, out)
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (cvat / "annotations.xml").write_text(document(track(box(39, 7)), track(box(1, 1), label="a &amp; b")))
    before = contents(out)

    with pytest.raises(ActdetError) as caught:
        convert("cvat", cvat, out)
    assert str(caught.value) == f"{path} was not written by this command and would be replaced: choose another folder"
    assert contents(out) == before


def test_other_class_names_in_the_folder_are_refused(cvat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "classes.txt").write_text("a & b\nfight\n")
    with pytest.raises(DataError, match="the classes of this data set are 0 = a & b, 1 = fight"):
        convert("cvat", cvat, out)
    convert("cvat", cvat, out, class_names=["a & b", "fight"])


def test_an_annotation_file_of_the_other_kind_is_refused(cvat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "annotations").mkdir(parents=True)
    (out / "annotations" / "door.txt").touch()
    with pytest.raises(ActdetError, match=r"door\.txt annotates the same video: remove it, or choose another folder"):
        convert("cvat", cvat, out)


def test_the_folder_of_the_videos_can_be_the_data_set_itself(cvat: Path) -> None:
    (cvat / "videos").mkdir()
    (cvat / "door.mp4").rename(cvat / "videos" / "door.mp4")
    for _ in range(2):
        converted = convert("cvat", cvat / "annotations.xml", cvat)
        assert converted.videos == 1
        assert not (cvat / "videos" / "door.mp4").is_symlink()
    assert (cvat / "annotations" / "door.csv").exists()


def test_the_written_folder_may_lie_in_that_of_the_videos(cvat: Path) -> None:
    for _ in range(2):
        convert("cvat", cvat, cvat / "out", videos="copy")
    assert [path.name for path in (cvat / "out" / "videos").iterdir()] == ["door.mp4"]


def test_a_video_without_a_group_is_one_of_its_own(ucf: Path, tmp_path: Path) -> None:
    """Training asks that groups.txt names every clip."""
    content = ground_truth()
    for key in ("nframes", "resolution", "gttubes"):
        content[key]["GolfSwing/my swing"] = content[key].pop(GOLF)
    content["train_videos"] = [["GolfSwing/my swing"]]
    path = write_pickle(ucf / "UCF101v2-GT.pkl", content)
    out = tmp_path / "out"
    convert("ucf101-24", path, out, videos="none")
    assert (out / "groups.txt").read_text() == (
        "my swing my_swing\nv_Biking_g07_c03 Biking_g07\nv_RopeClimbing_g01_c01 RopeClimbing_g01\n"
    )
    assert read_groups(out / "groups.txt", sorted(path.stem for path in (out / "annotations").iterdir()))


def test_videos_of_the_same_name_get_that_of_their_folder(tmp_path: Path) -> None:
    for place in ("Home_01", "Home_02"):
        write_le2i(tmp_path / "le2i", "2\n3\n2,1,10,20,30,40\n3,1,10,20,30,40\n", place=place)
        (tmp_path / "le2i" / place / "Videos").mkdir()
        write_video(tmp_path / "le2i" / place / "Videos" / "video (1).avi", "mpeg4", frames=5)
    out = tmp_path / "out"
    convert("le2i", tmp_path / "le2i", out)
    names = ["Home_01_video (1)", "Home_02_video (1)"]
    assert sorted(path.stem for path in (out / "annotations").iterdir()) == names
    assert sorted(path.stem for path in (out / "videos").iterdir()) == names
    assert (out / "groups.txt").read_text() == "Home_01_video (1) Home_01\nHome_02_video (1) Home_02\n"


def test_two_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    for place in ("one", "two"):
        (exports / place).mkdir(parents=True)
        meta = META.replace("door.mp4", f"{place}/door.mp4")
        (exports / place / "annotations.xml").write_text(document(track(box(39, 1)), meta=meta))
        write_video(exports / place / "door.mp4", frames=40, size=(320, 240))
    out = tmp_path / "out"
    convert("cvat", exports, out)
    assert sorted(path.stem for path in (out / "annotations").iterdir()) == ["one_door", "two_door"]


def test_several_tasks_about_one_video_are_put_together(cvat: Path, tmp_path: Path) -> None:
    (cvat / "more.xml").write_text(document(track(box(39, 50))))
    converted = convert("cvat", cvat, tmp_path / "out")
    assert (converted.videos, converted.tubes) == (1, 3)


@pytest.mark.parametrize("split", ["2", "0", "999"])
def test_a_split_that_is_not_there_is_refused(ucf: Path, tmp_path: Path, split: str) -> None:
    with pytest.raises(ActdetError, match=rf"--split {split}: this data set has splits 1 to 1; give one of these"):
        convert("ucf101-24", ucf, tmp_path / "out", split=split)
    assert not (tmp_path / "out").exists()


def test_a_list_says_which_videos_are_for_testing(ucf: Path, tmp_path: Path) -> None:
    path = tmp_path / "testlist01.txt"
    path.write_text("GolfSwing/v_GolfSwing_g08_c02.avi 2\r\nv_Biking_g07_c03\n\nDiving/v_Diving_g01_c01.avi\n")
    out = tmp_path / "out"
    converted = convert("ucf101-24", ucf, out, videos="none", split=str(path))
    assert (out / "test.txt").read_text().split() == NAMES[:2]
    assert (out / "train.txt").read_text().split() == NAMES[2:]
    assert converted.left_out == (
        "videos of the split list that are not in the data set: 1 (first in Diving/v_Diving_g01_c01.avi)",
    )


@pytest.mark.parametrize(("text", "expected"), [("v_x\n", "names none of the videos"), (None, "file not found")])
def test_a_list_without_a_video_is_refused(ucf: Path, tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=expected):
        convert("ucf101-24", ucf, tmp_path / "out", videos="none", split=str(path))


def test_where_nothing_is_left_the_reason_is_said(cvat: Path, tmp_path: Path) -> None:
    (cvat / "door.mp4").unlink()
    with pytest.raises(ActdetError, match=r"no video of it can be converted: videos that were not found: 1 \(first in"):
        convert("cvat", cvat, tmp_path / "out")
    (cvat / "door.mp4").write_text("no video")
    with pytest.raises(ActdetError, match="no video of it can be converted: videos of which one "):
        convert("cvat", cvat, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ((), "has no action of any class: say with --class-names which there could be"),
        (
            ("fight\nflight",),
            r"the name of class 0, 'fight\nflight', is not one line of at most 100 printable characters",
        ),
        (("fight", "x" * 10**6), "xxxx', is not one line of at most 100 printable characters"),
        (("fight", "fight "), "the name of class 1, 'fight ', begins or ends with a space"),
        (("", "fight"), "the name of class 0 is empty"),
    ],
    ids=["none", "two lines", "long", "space", "empty"],
)
def test_labels_that_cannot_be_class_names_are_refused(tmp_path: Path, labels: tuple[str, ...], problem: str) -> None:
    """The error names the file, not the folder that would be written; some other labels can still be taken."""
    write_video(tmp_path / "door.mp4", frames=9)
    path = tmp_path / "export.json"
    path.write_text(
        json.dumps([task(*(region(keyframe(1, 1), labels=(label,)) for label in labels), video="door.mp4")])
    )
    with pytest.raises(DataError) as caught:
        convert("label-studio", path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)
    assert "--class-names" in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "out").exists()

    converted = convert("label-studio", path, tmp_path / "out", class_names=["fight"])
    assert (converted.videos, converted.tubes) == (1, labels.count("fight"))
    assert all(len(line) < 600 for line in converted.left_out)


def test_spans_that_would_fill_the_memory_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A span of a whole video takes a few bytes, and there may be many."""
    monkeypatch.setattr("actdet.data.formats.convert._MOST_FRAMES", 100)
    write_video(tmp_path / "door.mp4", frames=40)
    span = {"value": {"ranges": [{"start": 1, "end": 40}], "timelinelabels": ["fight"]}}
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task(*[span] * 3, video="door.mp4")]))
    with pytest.raises(ActdetError, match="videos whose tracks have more than 100 frames together: 1"):
        convert("label-studio", path, tmp_path / "out")
    path.write_text(json.dumps([task(*[span] * 2, video="door.mp4")]))
    assert convert("label-studio", path, tmp_path / "out").tubes == 2


@pytest.mark.parametrize("name", ["..", ".hidden.mp4", "a\nb.mp4", "x" * 300 + ".mp4"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    content = ground_truth()
    for key in ("nframes", "resolution", "gttubes"):
        content[key][f"Biking/{name}"] = content[key].pop(BIKING)
    content["test_videos"] = [[ROPE, f"Biking/{name}"]]
    path = write_pickle(tmp_path / "GT.pkl", content)
    converted = convert("ucf101-24", path, tmp_path / "out", videos="none")
    assert converted.videos == 2
    assert converted.left_out == (f"videos whose name cannot be that of a file: 1 (first in Biking/{name})",)
    assert sorted(path.stem for path in (tmp_path / "out" / "annotations").iterdir()) == NAMES[1:]


def test_a_full_disk_leaves_no_half_of_a_file(ucf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with small_disk(4096), pytest.raises(DataError, match="cannot be written: File too large"):
        convert("ucf101-24", ucf, out)
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    convert("ucf101-24", ucf, out)
    assert len(probe(out / "videos" / f"{NAMES[2]}.mp4").pts) == 40


def test_a_missing_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        convert("ava", tmp_path / "none", tmp_path / "out")


def test_progress_is_told(ucf: Path, tmp_path: Path) -> None:
    read: list[tuple[int, int]] = []
    written: list[tuple[int, int]] = []
    convert(
        "ucf101-24",
        ucf,
        tmp_path / "out",
        reading=lambda *done: read.append(done),
        writing=lambda *done: written.append(done),
    )
    assert read == [(1, 3), (2, 3), (3, 3)]
    assert written == [(1, 2), (2, 2)]


def test_boxes_keep_their_precision(tmp_path: Path) -> None:
    """Of tubes that a source gives as float32 each number is written so that it is read as the same."""
    content = ground_truth()
    rows = np.random.default_rng(0).uniform(1, 100, (9, 5)).astype(np.float32)
    rows[:, 0] = np.arange(1, 10)
    rows[:, 3:] += rows[:, 1:3]
    content["gttubes"][GOLF] = {1: [rows]}
    content["resolution"][GOLF] = (240, 320)
    out = tmp_path / "out"
    convert("ucf101-24", write_pickle(tmp_path / "GT.pkl", content), out, videos="none")
    lines = (out / "annotations" / f"{NAMES[1]}.csv").read_text().splitlines()[1:]
    written = np.array([line.split(",")[3:] for line in lines]).astype(np.float32)
    np.testing.assert_array_equal(written, rows[:, 1:])

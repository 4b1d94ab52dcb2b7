"""Boxes are drawn where they belong, in the color of their class, on every frame, and the file plays."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from PIL import Image, ImageColor

from actdet import pictures as pictures_module
from actdet.pictures import (
    COLORS,
    NOT_LOOKED_AT,
    TRUTH,
    Mark,
    actor_timeline,
    annotate_video,
    class_color,
    clock,
    data_url,
    draw,
    is_timeline,
    no_action_mark,
    picture_size,
    timeline,
)
from actdet.video.decoding import decode_frames
from actdet.video.info import probe
from tests.actdet.video.videos import shown_number, write_video

RED = "#ff0000"
BOX = (0.0, 0.0, 1.0, 1.0)


def _is(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (picture == color).all(-1)


def test_a_box_is_drawn_on_its_edges_alone() -> None:
    picture = np.full((160, 320, 3), 50, np.uint8)
    drawn = draw(picture, [Mark((0.25, 0.25, 0.75, 0.5), "", RED)])
    red = _is(drawn, (255, 0, 0))
    rows, columns = np.nonzero(red)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (80, 240, 40, 80)
    assert red[40, 80:241].all()
    assert red[80, 80:241].all()
    assert red[40:81, 80].all()
    assert red[40:81, 240].all()
    assert not red[44:77, 84:237].any()

    # Black is the line's outline.
    black = _is(drawn, (0, 0, 0))
    assert not black[44:77, 84:237].any()
    assert (drawn[~red & ~black] == 50).all()

    # A copy was drawn on.
    assert (picture == 50).all()


@pytest.mark.parametrize("wall", [0, 128, 240, 255])
@pytest.mark.parametrize("color", [*COLORS, TRUTH])
def test_a_box_stands_out_on_any_wall(wall: int, color: str) -> None:
    """Across each of its sides, brightness changes by at least a third of its range, even if the wall is as bright."""
    drawn = draw(np.full((360, 480, 3), wall, np.uint8), [Mark((0.25, 0.25, 0.75, 0.75), "", color)])
    gray = np.asarray(Image.fromarray(drawn).convert("L")).astype(int)
    for across in (gray[180, 105:135], gray[180, 345:375], gray[75:105, 240], gray[255:285, 240]):
        assert np.ptp(across) >= 85
        assert across[0] == across[-1] == wall


@pytest.mark.parametrize("size", [(360, 480), (720, 1280), (20, 480), (1920, 480)])
@pytest.mark.parametrize("seconds", [0.0, 7.25, 3727.25])
def test_the_time_stands_in_the_lower_left_corner(size: tuple[int, int], seconds: float) -> None:
    picture = np.full((*size, 3), 200, np.uint8)
    drawn = draw(picture, [], seconds=seconds)
    rows, columns = np.nonzero((drawn != 200).any(-1))
    assert rows.max() == size[0] - 1
    assert columns.min() == 0
    assert columns.max() < size[1] * 0.5
    assert np.ptp(rows) <= max(25, size[0] / 12)

    # It has white letters, and other ones a second later.
    assert (_is(drawn, (255, 255, 255)) & (np.indices(size)[0] >= rows.min())).any()
    assert (draw(picture, [], seconds=seconds + 1) != drawn).any()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0:00.00"),
        (7.254, "0:07.25"),
        (59.996, "1:00.00"),
        (61.5, "1:01.50"),
        (3599.999, "1:00:00.00"),
        (3727.25, "1:02:07.25"),
        (360000.0, "100:00:00.00"),
    ],
)
def test_a_time_is_written_as_players_show_it(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_no_action_is_not_what_nobody_looked_at() -> None:
    picture = np.zeros((360, 480, 3), np.uint8)
    drawn = [draw(picture, marks) for marks in ([], [NOT_LOOKED_AT], [no_action_mark(0.31)], [no_action_mark(0.32)])]
    assert all((a != b).any() for a, b in combinations(drawn, 2))


@pytest.mark.parametrize(
    "boxes", [[(0.3, 0.3, 0.6, 0.6)] * 3, [(0.0, 0.0, 1.0, 1.0)] * 3, [None, (0.0, 0.0, 0.5, 0.5)]]
)
def test_labels_of_several_actions_do_not_hide_each_other(
    boxes: list[tuple[float, float, float, float] | None],
) -> None:
    picture = np.zeros((360, 480, 3), np.uint8)
    marks = [Mark(box, f"action {i} 0.9", class_color(i)) for i, box in enumerate(boxes)]
    together = draw(picture, marks)
    for mark in marks:
        color = ImageColor.getrgb(mark.color)[:3]
        label = _is(draw(picture, [Mark(None, *mark[1:])]), color).sum()
        assert _is(together, color).sum() >= label


@pytest.mark.parametrize("text", ["Sturz für é", "падение", "drop \udcff", "two\nlines", "a" * 300])
def test_any_name_is_drawn(text: str) -> None:
    picture = np.zeros((240, 320, 3), np.uint8)
    drawn = draw(picture, [Mark((0.2, 0.5, 0.8, 0.9), text, RED)])
    assert (drawn[120 - 20 : 120] != 0).any()


def test_letters_of_other_languages_differ() -> None:
    picture = np.zeros((240, 320, 3), np.uint8)
    drawn = [draw(picture, [Mark(None, letter, RED)]) for letter in "uüéßжЖφł"]
    assert all((a != b).any() for a, b in combinations(drawn, 2))


def test_marks_are_drawn_in_their_order_and_none_is_none() -> None:
    picture = np.full((160, 320, 3), 50, np.uint8)
    box = (0.25, 0.25, 0.75, 0.5)
    drawn = draw(picture, [Mark(box, "", "#ffffff"), Mark(box, "", RED)])
    assert _is(drawn, (255, 0, 0))[40, 100]
    assert not _is(drawn, (255, 255, 255)).any()
    assert (draw(picture, []) == picture).all()


@pytest.mark.parametrize(
    "box",
    [(0.4, 0.4, 0.6, 0.6), (0.0, 0.0, 1.0, 1.0), (0.95, 0.0, 1.0, 0.1), (-0.2, -0.3, 1.3, 1.2), (0.5, 0.5, 0.5, 0.5)],
)
def test_a_label_is_whole_within_the_picture(box: tuple[float, float, float, float]) -> None:
    """Its ground has the color of the box and lies on the picture, wherever the box is."""
    picture = np.zeros((240, 320, 3), np.uint8)
    unlabeled = draw(picture, [Mark(box, "", RED)])
    drawn = draw(picture, [Mark(box, "fight 0.99", RED)])
    ys, xs = np.nonzero((drawn != unlabeled).any(-1))

    # The size of the same label without a box.
    alone = np.nonzero(draw(picture, [Mark(None, "fight 0.99", RED)]).any(-1))
    height = np.ptp(alone[0]) + 1
    width = np.ptp(alone[1]) + 1
    if box == (0.4, 0.4, 0.6, 0.6):
        assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == pytest.approx((width, height), abs=3)
    assert len(xs) > 0.5 * width * height


def test_labels_without_a_box_do_not_hide_each_other() -> None:
    picture = np.zeros((240, 320, 3), np.uint8)
    drawn = draw(picture, [Mark(None, "one", "#00ff00"), Mark(None, "two", RED)])
    green, red = (np.nonzero(_is(drawn, color))[0] for color in ((0, 255, 0), (255, 0, 0)))
    assert green.max() < red.min()


def test_classes_have_colors_that_differ() -> None:
    assert len({class_color(i) for i in range(len(COLORS))}) == len(COLORS) >= 2
    assert class_color(len(COLORS)) == class_color(0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 360), (360, 480)),
        ((1920, 1080), (720, 1280)),
        ((160, 120), (360, 480)),
        ((97, 55), (272, 480)),
        ((501, 333), (332, 500)),
        ((1080, 2400), (2400, 1080)),
        ((16, 1000), (2500, 40)),
        ((40, 2400), (2520, 42)),
        ((2400, 40), (20, 1280)),
        ((1280, 20), (20, 1280)),
        ((512, 8), (16, 512)),
    ],
)
def test_a_picture_is_large_enough_to_read_and_small_enough_to_send(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    video = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=1, size=size))
    height, width = picture_size(video)
    assert (height, width) == pytest.approx(expected, abs=2)
    assert height % 2 == width % 2 == 0


@pytest.mark.parametrize(
    ("size", "frames", "rotation"),
    [((480, 320), 12, 0), ((97, 55), 9, 0), ((64, 48), 1, 0), ((64, 48), 2, 0), ((1400, 40), 3, 0), ((96, 64), 9, 90)],
)
def test_every_frame_of_an_annotated_video_is_there_and_marked(
    tmp_path: Path, size: tuple[int, int], frames: int, rotation: int
) -> None:
    codec = "libx264" if rotation else "mjpeg"
    name = "v.mp4" if rotation else "v.mkv"
    source = probe(write_video(tmp_path / name, codec, frames=frames, size=size, rotation=rotation))
    marks = [[Mark((0.5, 0.6, 0.9, 0.9), "", "#00ff00")] if i % 2 == 0 else [] for i in range(frames)]
    annotate_video(source, marks, tmp_path / "out" / "o.mp4")
    drawn = probe(tmp_path / "out" / "o.mp4")
    pictures = decode_frames(drawn, range(frames)).astype(int)
    assert len(drawn.pts) == frames
    height, width = pictures.shape[1:3]
    assert (height, width) == picture_size(source)
    assert width / height == pytest.approx(source.width / source.height, rel=0.06)
    times = (drawn.pts - drawn.pts[0]) * float(drawn.time_base)
    assert times.tolist() == pytest.approx(((source.pts - source.pts[0]) * float(source.time_base)).tolist(), abs=2e-3)
    for number, picture in enumerate(pictures):
        if not rotation:
            assert shown_number(picture.astype(np.uint8)) == number
        y = round(0.75 * height)
        x = round(0.5 * width)
        edge = picture[y, max(x - 2, 0) : x + 5]
        greenish = (edge[:, 1] - edge[:, (0, 2)].max(1)).max() > 25
        assert greenish == (number % 2 == 0), number
        inside = picture[y, round(0.7 * width)]
        assert abs(inside[1] - max(inside[0], inside[2])) < 25


@pytest.mark.parametrize("size", [(16, 1000), (8, 512), (512, 8), (64, 4096)])
def test_what_is_tall_or_flat_is_drawn_on_in_bounds(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures = np.zeros((2, size[1], size[0], 3), np.uint8)
    source = probe(write_video(tmp_path / "v.mkv", "mjpeg", 2, size, pictures=pictures))
    annotate_video(source, [[Mark((0.1, 0.1, 0.9, 0.9), "fight 0.99", "#00ff00")]] * 2, tmp_path / "o.mp4")
    drawn = probe(tmp_path / "o.mp4")
    assert len(drawn.pts) == 2
    assert drawn.width * drawn.height <= 1280 * 2560


def test_marks_must_be_one_list_a_frame(tmp_path: Path) -> None:
    source = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=4))
    with pytest.raises(ValueError, match="zip"):
        annotate_video(source, [[]] * 3, tmp_path / "o.mp4")
    assert not list(tmp_path.glob("*o.mp4")) + list(tmp_path.glob(".*"))


def test_an_annotated_video_shows_its_own_time(tmp_path: Path) -> None:
    """It counts from the first frame of the source, whose time stamp need not be 0."""
    source = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=4, pts=[5000, 5040, 5080, 9000]))
    annotate_video(source, [[]] * 4, tmp_path / "o.mp4")
    video = probe(tmp_path / "o.mp4")
    times = ((source.pts - source.pts[0]) * float(source.time_base)).tolist()
    for picture, seconds in zip(decode_frames(video, range(4)).astype(int), times, strict=True):
        expected = draw(np.zeros((*picture.shape[:2], 3), np.uint8), [], seconds=seconds)[-15:, :60]
        assert np.abs(picture[-15:, :60] - expected).mean() < 12


@pytest.mark.parametrize("encoder", ["libx264", "libvpx-vp9"])
def test_the_file_plays_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str) -> None:
    """H.264 or VP9 in MP4 with 4:2:0 color, which browsers play."""
    monkeypatch.setattr(pictures_module, "choose_encoder", lambda: encoder)
    source = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=4))
    annotate_video(source, [[]] * 4, tmp_path / "o.mp4")
    with av.open(str(tmp_path / "o.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in {"h264", "vp9", "libvpx-vp9", "libdav1d"}
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate or 0) == pytest.approx(25, rel=0.02)


class Stretch(NamedTuple):
    start: float
    end: float
    actions: list[Any]
    cut: bool = False


class Found(NamedTuple):
    action: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Said:
    action: str
    score: float


def _rows(png: bytes) -> np.ndarray:
    """The pixels of the plot within the axes, without the frame around it."""
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    dark = (picture < 40).all(-1)
    lines = np.flatnonzero(dark.mean(1) > 0.5)
    columns = np.flatnonzero(dark.mean(0) > 0.5)
    return picture[lines[0] + 3 : lines[-1] - 2, columns[0] + 3 : columns[-1] - 2]


def _share(row: np.ndarray, color: str) -> float:
    """The share of pixels in a row that have about this color."""
    return float((np.abs(row.astype(int) - ImageColor.getrgb(color)[:3]).max(-1) < 12).mean())


@pytest.mark.parametrize("kind", [Said, lambda name, score: (name, score), lambda name, score: Found(name, score, BOX)])
def test_a_timeline_shows_when_what_was_found(kind: Callable[[str, float], Any]) -> None:
    """100 s of video: fights for 10 s in all, a collapse for 5 s, and 20 s at which nobody looked."""
    windows = [
        Stretch(40.0, 60.0, []),
        Stretch(0.0, 10.0, [kind("fight", 0.9)]),
        Stretch(5.0, 10.0, [kind("fight", 1.0), kind("collapse", 1.0)]),
        Stretch(5.0, 40.0, []),
        Stretch(80.0, 100.0, []),
    ]
    plot = _rows(timeline(windows, 100.0, ("fight", "collapse")))
    fight = plot[len(plot) // 4]
    collapse = plot[len(plot) * 3 // 4]
    assert _share(fight, class_color(0)) == pytest.approx(0.10, abs=0.012)
    assert _share(collapse, class_color(1)) == pytest.approx(0.05, abs=0.012)
    assert _share(fight, "#eeeeee") == pytest.approx(0.70, abs=0.02)
    assert _share(collapse, "#eeeeee") == pytest.approx(0.75, abs=0.02)
    assert _share(fight, "#ffffff") == _share(collapse, "#ffffff") == pytest.approx(0.20, abs=0.02)


@pytest.mark.parametrize("score", [0.25, 0.5, 1.0])
def test_a_bar_is_as_high_as_its_score(score: float) -> None:
    plot = _rows(timeline([Stretch(0, 10, [(0, score)]), Stretch(10, 20, [])], 20.0, ("fight",)))
    bar = plot[:, plot.shape[1] // 4]
    ground = plot[:, plot.shape[1] * 3 // 4]
    assert _share(bar, class_color(0)) / _share(ground, "#eeeeee") == pytest.approx(score, abs=0.05)


@pytest.mark.parametrize("cut", [True, False])
def test_windows_with_a_cut_are_hatched(cut: bool) -> None:
    """A dark pattern lies over the second half of the video, in which a fight was found, and over nothing else."""
    plot = _rows(timeline([Stretch(0, 10, [(0, 1.0)]), Stretch(10, 20, [(0, 1.0)], cut)], 20.0, ("fight",)))
    middle = plot.shape[1] // 2
    dark = np.asarray(plot.max(-1) < 130)
    assert not dark[:, : middle - 3].any()
    assert 0.02 * cut <= dark[:, middle + 3 :].mean() <= 0.5 * cut
    # What was found stays visible.
    assert _share(plot[:, middle + 3 :].reshape(-1, 3), class_color(0)) > 0.4


def test_a_moment_of_a_day_is_seen() -> None:
    windows = [Stretch(i * 5.0, i * 5.0 + 10, [(1, 0.9)] if i == 9000 else []) for i in range(17280)]
    plot = _rows(timeline(windows, 86400.0, ("fight", "collapse")))
    assert _share(plot[len(plot) * 3 // 4], class_color(1)) > 0


@pytest.mark.parametrize("windows", [[], [Stretch(0.0, 0.0, [])], [Stretch(0.0, 1e7, [(0, math.nan)])]])
@pytest.mark.parametrize("seconds", [0.0, 0.04, 1e7])
def test_a_timeline_of_anything_is_a_picture(windows: list[Stretch], seconds: float) -> None:
    names = ("$\\frac{", "中文", "drop \udcff", "two\nlines", "a" * 200)
    assert Image.open(io.BytesIO(timeline(windows, seconds, names))).format == "PNG"


class Acting(NamedTuple):
    actor: int
    action: str
    score: float
    start: float
    end: float


def test_a_timeline_has_a_row_for_each_actor(tmp_path: Path) -> None:
    """100 s of video: actor 2 fights and later collapses, actor 5 collapses, and at 20 s nobody looked."""
    tubes = [
        Acting(5, "collapse", 1.0, 10.0, 30.0),
        Acting(2, "fight", 1.0, 5.0, 15.0),
        Acting(2, "collapse", 0.5, 50.0, 55.0),
    ]
    windows = [Stretch(0.0, 50.0, []), Stretch(40.0, 80.0, [])]
    png = actor_timeline(tubes, windows, 100.0, ("fight", "collapse"))
    (tmp_path / "timeline.png").write_bytes(png)
    assert is_timeline(tmp_path / "timeline.png")

    plot = _rows(png)
    # The lower part of each row, which lower bars reach, too.
    first, second = plot[len(plot) * 7 // 16], plot[len(plot) * 15 // 16]
    assert _share(first, class_color(0)) == pytest.approx(0.10, abs=0.012)
    assert _share(first, class_color(1)) == pytest.approx(0.05, abs=0.012)
    assert _share(second, class_color(0)) == 0
    assert _share(second, class_color(1)) == pytest.approx(0.20, abs=0.012)
    assert _share(first, "#ffffff") == _share(second, "#ffffff") == pytest.approx(0.20, abs=0.02)
    # In the upper part of its row a bar of a score of a half is not.
    assert _share(plot[len(plot) // 8], class_color(1)) == 0


@pytest.mark.parametrize("count", [0, 1, 3, 60])
def test_a_timeline_of_many_actors_is_no_higher_than_one_can_see(count: int, tmp_path: Path) -> None:
    """Those who are seen first have a row; without any there is one that says so."""
    tubes = [Acting(number + 1, "fight", 1.0, number, number + 1.0) for number in range(count)]
    png = actor_timeline(tubes[::-1], [Stretch(0.0, 60.0, [])], 60.0, ("fight",))
    (tmp_path / "timeline.png").write_bytes(png)
    assert is_timeline(tmp_path / "timeline.png")
    plot = _rows(png)
    red = (np.abs(plot.astype(int) - ImageColor.getrgb(class_color(0))[:3]).max(-1) < 12).mean(0) > 0
    assert red.mean() == pytest.approx(min(count, 40) / 60, abs=0.02)
    assert len(plot) == pytest.approx(44 + 72 * max(1, min(count, 40)), abs=10)


def test_a_timeline_of_actors_takes_any_names_and_scores() -> None:
    names = ("$\\frac{", "drop \udcff", "a" * 200)
    tubes = [Acting(1, name, score, 0.0, 1e7) for name, score in zip(names, (math.inf, -1.0, 0.5), strict=True)]
    for seconds in (0.0, 0.04, 1e7):
        assert Image.open(io.BytesIO(actor_timeline(tubes, [], seconds, names))).format == "PNG"


def test_a_data_url_is_the_picture() -> None:
    picture = np.full((20, 30, 3), (200, 30, 60), np.uint8)
    kind, data = data_url(picture).split(",")
    assert kind == "data:image/jpeg;base64"
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.abs(back.astype(int) - picture).max() < 8

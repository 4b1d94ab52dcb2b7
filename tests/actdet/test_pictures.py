"""Boxes are drawn where they belong, in the colour of their class, on every frame, and the file plays."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from videos import shown_number, write_video

from actdet.data.video import decode_frames, probe
from actdet.pictures import COLOURS, Mark, annotate_video, class_colour, data_url, draw, picture_size

RED = "#ff0000"


def _is(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == colour).all(-1)


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
    assert (drawn[~red] == 50).all()
    assert (picture == 50).all()  # a copy was drawn on


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
    """Its ground has the colour of the box and lies on the picture, wherever the box is."""
    picture = np.zeros((240, 320, 3), np.uint8)
    unlabelled = draw(picture, [Mark(box, "", RED)])
    drawn = draw(picture, [Mark(box, "fight 0.99", RED)])
    ys, xs = np.nonzero((drawn != unlabelled).any(-1))
    widths = []
    for other in (draw(picture, [Mark(None, "fight 0.99", RED)]),):
        red = other.any(-1)
        widths.append((np.ptp(np.nonzero(red)[1]) + 1, np.ptp(np.nonzero(red)[0]) + 1))
    if box == (0.4, 0.4, 0.6, 0.6):
        assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == pytest.approx(widths[0], abs=3)
    assert len(xs) > 0.5 * widths[0][0] * widths[0][1]


def test_labels_without_a_box_do_not_hide_each_other() -> None:
    picture = np.zeros((240, 320, 3), np.uint8)
    drawn = draw(picture, [Mark(None, "one", "#00ff00"), Mark(None, "two", RED)])
    green, red = (np.nonzero(_is(drawn, colour))[0] for colour in ((0, 255, 0), (255, 0, 0)))
    assert green.max() < red.min()


def test_classes_have_colours_that_differ() -> None:
    assert len({class_colour(i) for i in range(len(COLOURS))}) == len(COLOURS) >= 2
    assert class_colour(len(COLOURS)) == class_colour(0)


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
    codec, name = ("libx264", "v.mp4") if rotation else ("mjpeg", "v.mkv")
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
        y, x = round(0.75 * height), round(0.5 * width)
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


def test_the_file_plays_everywhere(tmp_path: Path) -> None:
    """H.264 or VP9 in MP4 with 4:2:0 colour: what browsers play."""
    source = probe(write_video(tmp_path / "v.mkv", "mjpeg", frames=4))
    annotate_video(source, [[]] * 4, tmp_path / "o.mp4")
    with av.open(str(tmp_path / "o.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in {"h264", "vp9", "libvpx-vp9", "libdav1d"}
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate or 0) == pytest.approx(25, rel=0.02)


def test_a_data_url_is_the_picture() -> None:
    picture = np.full((20, 30, 3), (200, 30, 60), np.uint8)
    kind, data = data_url(picture).split(",")
    assert kind == "data:image/jpeg;base64"
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.abs(back.astype(int) - picture).max() < 8

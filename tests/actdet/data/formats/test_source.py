"""Tubes are cut to the video that they are of, and what is cut off is counted."""

from __future__ import annotations

import numpy as np
import pytest

from actdet.data.formats.source import ClassMap, LeftOut, fit_tube, last_part
from actdet.detections import Tube
from tests.actdet.data.formats.sources import facts, plain


def test_reasons_are_counted_and_the_first_place_is_named() -> None:
    left_out = LeftOut()
    left_out.add("boxes", "b", 2)
    left_out.add("frames", "c", 0)
    left_out.add("videos", "c")
    left_out.add("spans", "c", 1)
    left_out.add("boxes", "a")
    assert left_out.lines() == ["boxes: 3 (first in b)", "spans: 1 (first in c)", "videos: 1 (first in c)"]


def test_classes_that_nobody_asked_for_are_counted() -> None:
    left_out = LeftOut()
    classes = ClassMap(["a", "b"], left_out)
    assert [classes.label(name, "v") for name in ("b", "a", "c", "c")] == [1, 0, None, None]
    assert left_out.lines() == ["actions of class 'c', which is not among the class names: 2 (first in v)"]


def test_a_tube_inside_the_video_stays_as_it_is() -> None:
    left_out = LeftOut()
    tube = Tube(1, np.array([5, 3, 39]), np.array([[0, 0, 320, 240], [1, 2, 3, 4.5], [2, 2, 3, 3]], np.float32))
    fitted = fit_tube(tube, facts(), "v", left_out)
    assert fitted is not None
    assert plain(fitted) == (1, [3, 5, 39], [[1, 2, 3, 4.5], [0, 0, 320, 240], [2, 2, 3, 3]])
    assert left_out.lines() == []


@pytest.mark.parametrize(
    ("frame", "box", "expected", "line"),
    [
        (3, [-1, -1, 321, 241], [0, 0, 320, 240], None),
        (3, [-5, 10, 50, 60], [0, 10, 50, 60], "parts of boxes that reached out of the picture"),
        (3, [10, 10, 500, 60], [10, 10, 320, 60], "parts of boxes that reached out of the picture"),
        (3, [400, 10, 500, 60], None, "boxes outside the picture, or without an area"),
        (3, [-50, 10, -20, 60], None, "boxes outside the picture, or without an area"),
        (3, [10, 10, 10, 60], None, "boxes outside the picture, or without an area"),
        (3, [30, 10, 10, 60], None, "boxes outside the picture, or without an area"),
        (3, [0, 0, 1, 0.5], None, "boxes outside the picture, or without an area"),
        (3, [10, np.nan, 20, 60], None, "boxes that are not finite numbers"),
        (3, [10, 10, np.inf, 60], None, "boxes that are not finite numbers"),
        (40, [10, 10, 20, 60], None, "frames that the video does not have"),
        (-1, [10, 10, 20, 60], None, "frames that the video does not have"),
        (7, [10, 10, 20, 60], None, "frames that come twice in a track"),
    ],
)
def test_what_is_outside_is_cut_off(
    frame: int, box: list[float], expected: list[float] | None, line: str | None
) -> None:
    left_out = LeftOut()
    good = [50, 60, 70, 80]
    fitted = fit_tube(Tube(0, np.array([7, frame]), np.array([good, box], np.float32)), facts(), "v", left_out)
    assert fitted is not None
    boxes = dict(zip(fitted.frames.tolist(), fitted.boxes.tolist(), strict=True))
    assert boxes.pop(7) == good
    assert boxes == ({} if expected is None else {frame: expected})
    assert left_out.lines() == ([] if line is None else [f"{line}: 1 (first in v)"])


def test_a_tube_of_which_nothing_is_left_is_none() -> None:
    left_out = LeftOut()
    no_boxes = np.zeros((0, 4), np.float32)
    outside = np.array([[400, 10, 500, 60]], np.float32)
    assert fit_tube(Tube(0, np.array([3]), outside), facts(), "v", left_out) is None
    assert fit_tube(Tube(0, np.array([40]), outside), facts(), "v", left_out) is None
    assert fit_tube(Tube(0, np.array([-1, 40]), no_boxes), facts(), "v", left_out) is None
    assert fit_tube(Tube(0, np.array([], np.int64), no_boxes), facts(), "v", left_out) is None


def test_a_tube_without_boxes_keeps_its_frames() -> None:
    tube = fit_tube(Tube(2, np.array([38, 39, 40]), np.zeros((0, 4), np.float32)), facts(), "v", LeftOut())
    assert tube is not None
    assert plain(tube) == (2, [38, 39], [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("door.mp4", "door"),
        ("a/b/door.tar.AVI", "door.tar"),
        ("C:\\films\\door.mp4", "door"),
        ("Biking/v_Biking_g01_c01", "v_Biking_g01_c01"),
        ("frames/v_1/", "v_1"),
        ("name.with.dots", "name.with.dots"),
        ("../..", ".."),
        ("", ""),
    ],
)
def test_the_last_part_of_a_name(name: str, expected: str) -> None:
    assert last_part(name) == expected

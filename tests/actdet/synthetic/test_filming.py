"""Boxes and visibility of figures that are squares, for which both can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from actdet.synthetic.figures import Shapes
from actdet.synthetic.filming import Lens, box_of, boxes_in_picture, film, visible_shares
from actdet.synthetic.painting import MARGIN, OVERSAMPLING, Layer

SIZE = (160, 100)
RED = (255, 0, 0)
GREEN = (0, 255, 0)


def figure(x: float, y: float, distance: float, side: float = 20.0, color: tuple[int, int, int] = RED) -> Shapes:
    """A square with its upper left corner at x and y, in pixels, for one frame."""
    corners = np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)]) / SIZE[1]
    return Shapes(corners[None, None], np.array([[distance]]), [color], np.array([[0.0, 0.0, 0.01, 0.01]]))


def lens(mirrored: bool = False) -> Lens:
    return Lens(np.array([[0.0, 0.0, 1.0]]), (1.0, 1.0, 1.0), 0.0, 0.0, 0.0, mirrored)


def layer(x: int, y: int, side: int, distance: float) -> Layer:
    """A blue square, in pixels of the picture."""
    margin = round(MARGIN * SIZE[1] * OVERSAMPLING)
    corner = (x * OVERSAMPLING + margin, y * OVERSAMPLING + margin)
    square = (side * OVERSAMPLING, side * OVERSAMPLING)
    return Layer(Image.new("RGB", square, (0, 0, 255)), Image.new("L", square, 255), corner, distance)


@pytest.mark.parametrize(
    ("others", "layers", "share"),
    [
        ([], [], 1.0),
        ([figure(50, 40, 3)], [], 0.5),
        ([figure(50, 40, 5)], [], 1.0),
        ([figure(50, 50, 3)], [], 0.75),
        ([figure(90, 40, 3)], [], 1.0),
        ([], [layer(40, 40, 10, 3.0)], 0.75),
        ([], [layer(40, 40, 10, 5.0)], 1.0),
        ([], [layer(0, 0, 90, 3.0)], 0.0),
        ([figure(50, 40, 3)], [layer(40, 40, 10, 3.5)], 0.25),
        ([figure(50, 40, 3), figure(40, 40, 3.2, 10)], [layer(40, 50, 10, 1.0)], 0.0),
    ],
)
def test_what_is_nearer_hides_a_figure(others: list[Shapes], layers: list[Layer], share: float) -> None:
    for which in range(len(others) + 1):
        figures = [*others[:which], figure(40, 40, 4), *others[which:]]
        shares = visible_shares(figures, which, np.array([0]), lens(), SIZE, layers)
        np.testing.assert_allclose(shares, share, atol=0.06)


@pytest.mark.parametrize(
    ("x", "y", "box", "share"),
    [
        (40, 40, (40, 40, 60, 60), 1.0),
        (-10, 40, (0, 40, 10, 60), 0.5),
        (150, 90, (150, 90, 160, 100), 0.25),
        (-19, 40, (0, 40, 1, 60), 0.05),
        (-21, 40, None, 0.0),
        (170, -30, None, 0.0),
    ],
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_what_is_out_of_the_picture_counts_as_hidden(
    x: float, y: float, box: tuple[float, ...] | None, share: float, mirrored: bool
) -> None:
    figures = [figure(x, y, 4)]
    found = boxes_in_picture(figures[0], lens(mirrored), SIZE)
    if box is None:
        assert np.isnan(found).all()
    else:
        left, top, right, bottom = box
        expected = (160 - right, top, 160 - left, bottom) if mirrored else box
        np.testing.assert_allclose(found, [expected], atol=1e-9)
    np.testing.assert_allclose(visible_shares(figures, 0, np.array([0]), lens(mirrored), SIZE), share, atol=0.06)


def test_a_box_holds_only_what_is_in_the_picture() -> None:
    # A rhombus whose left half is out of the picture: what is left is highest at the edge.
    corners = np.array([(-20.0, 50.0), (10.0, 20.0), (40.0, 50.0), (10.0, 80.0)]) - (20, 0)
    shapes = Shapes(corners[None, None] / 100, np.ones((1, 1)), [RED], np.zeros((1, 4)))
    np.testing.assert_allclose(boxes_in_picture(shapes, lens(), SIZE), [(0, 30, 20, 70)], atol=1e-9)
    assert box_of([shapes], lens(), SIZE) == (0, 20, 20, 80)


def test_layers_are_drawn_between_the_figures() -> None:
    margin = 2 * round(MARGIN * SIZE[1] * OVERSAMPLING)
    canvas = Image.new("RGB", (SIZE[0] * OVERSAMPLING + margin, SIZE[1] * OVERSAMPLING + margin))
    figures = [figure(40, 40, 2), figure(40, 40, 4, side=40, color=GREEN)]
    layers = [layer(30, 30, 40, 3.0), layer(0, 0, 160, 9.0), layer(50, 50, 5, 1.0)]
    (picture,) = film(canvas, figures, lens(), SIZE, np.random.default_rng(0), layers)
    blue = (0, 0, 255)
    for x, y, color in ((45, 45, RED), (65, 65, blue), (75, 75, GREEN), (10, 90, blue), (52, 52, blue), (57, 57, RED)):
        np.testing.assert_allclose(picture[y, x], color, atol=2)

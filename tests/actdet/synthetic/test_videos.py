"""Untrimmed videos: boxes fit the right person, hidden or not; actions last as long as their motion; nobody pops up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actdet.data.index import survey
from actdet.data.tubes import read_tubes
from actdet.detections import Tube
from actdet.synthetic.config import RenderConfig
from actdet.synthetic.figures import Shapes
from actdet.synthetic.filming import Lens, corners_in_pixels, film
from actdet.synthetic.painting import MARGIN, OVERSAMPLING, Layer, paint_layers
from actdet.synthetic.rendered import render_dataset
from actdet.synthetic.videos import KINDS, Actor, Video, stage_video, tubes_of
from actdet.video.info import probe

CONFIG = RenderConfig(seed=11, tubes=True)
SIZE = (CONFIG.width, CONFIG.height)
FPS = CONFIG.fps

WHITE = (255, 255, 255)
BLACK = (0, 0, 0)


@pytest.fixture(scope="module")
def staged() -> list[Video]:
    return [stage_video(CONFIG, i) for i in range(32)]


@pytest.fixture(scope="module")
def truth(staged: list[Video]) -> list[list[tuple[Actor, Tube]]]:
    """The tubes of each video, and whose they are."""
    pairs = []
    for video in staged:
        each = [(actor, tubes_of(replace(video, actors=[actor]), SIZE, layers_of(video))) for actor in video.actors]
        pairs.append([(actor, tubes[0]) for actor, tubes in each])
    return pairs


def layers_of(video: Video) -> list[Layer]:
    things = [prop for prop in video.props if prop.kind != "mat"]
    return paint_layers(things, video.camera, SIZE[1], np.random.default_rng(0))


def whitened(figures: list[Shapes], lens: Lens, frames: np.ndarray, white: int, layers: list[Layer]) -> np.ndarray:
    """Film some frames with one figure in white and everything else in black: (T, height, width), from 0 to 1."""
    colors = [WHITE if i == white else BLACK for i in range(len(figures))]
    figures = [
        Shapes(f.polygons[frames], f.distance[frames], [color] * len(f.colors), f.shadow[frames])
        for f, color in zip(figures, colors, strict=True)
    ]
    lens = replace(lens, views=lens.views[frames], gain=(1.0, 1.0, 1.0), offset=0.0, noise=0.0, blur=0.0)
    black = [replace(layer, image=Image.new("RGB", layer.image.size)) for layer in layers]
    margin = 2 * round(MARGIN * SIZE[1] * OVERSAMPLING)
    canvas = Image.new("RGB", (SIZE[0] * OVERSAMPLING + margin, SIZE[1] * OVERSAMPLING + margin))
    pictures = film(canvas, figures, lens, SIZE, np.random.default_rng(0), black)
    return np.stack([picture[..., 0] for picture in pictures]) / 255


def in_the_middle(figure: Shapes) -> Shapes:
    """Move a figure to where all of it is in the picture, in every frame."""
    low = figure.polygons.min((1, 2), keepdims=True)
    high = figure.polygons.max((1, 2), keepdims=True)
    middle = np.array((SIZE[0] / SIZE[1] / 2, 0.5))
    return replace(figure, polygons=figure.polygons - (low + high) / 2 + middle)


def mask_box(mask: np.ndarray) -> np.ndarray:
    ys, xs = np.nonzero(mask)
    return np.array((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))


def edge_bounds(own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest box of what is drawn: without and with what only touches the edges."""
    inside = np.zeros_like(own, bool)
    inside[1:-1, 1:-1] = own[1:-1, 1:-1] > 0.4
    small = mask_box(inside)
    large = mask_box(own > 0.02)
    return np.minimum(small, large), np.maximum(small, large)


def test_boxes_and_visibility_are_those_of_the_filmed_pixels(
    staged: list[Video], truth: list[list[tuple[Actor, Tube]]]
) -> None:
    met = Counter()
    errors = []
    for video, pairs in zip(staged, truth, strict=True):
        layers = layers_of(video)
        for actor, tube in pairs:
            # All frames would take too long. Hard are those that were left out, their neighbors, and those at edges.
            left_out = np.setdiff1d(actor.frames, tube.frames)
            near = np.concatenate([left_out - 1, left_out, left_out + 1])
            at_edge = ((tube.boxes[:, :2] == 0) | (tube.boxes[:, 2:] == SIZE)).any(1)
            near = np.concatenate([near, tube.frames[at_edge][::3]])
            frames = np.union1d(actor.frames[::7], np.intersect1d(near, actor.frames))
            figure = video.figures[actor.figure]
            alone = whitened([figure], video.lens, frames, 0, [])
            seen = whitened(video.figures, video.lens, frames, actor.figure, layers)
            whole = whitened([in_the_middle(figure)], video.lens, frames, 0, [])
            for frame, own, visible, full in zip(frames, alone, seen, whole, strict=True):
                share = visible.sum() / full.sum()
                if frame not in tube.frames:
                    assert share < 0.13, (video.name, frame, share)
                    met["left out"] += 1
                    continue

                assert share > 0.07, (video.name, frame, share)
                drawn = mask_box(own > 0.4)
                box = tube.boxes[np.searchsorted(tube.frames, frame)]
                is_at_edge = bool((box[:2] == 0).any() or (box[2:] == SIZE).any())
                if is_at_edge:
                    # A limb that ends within a pixel of the edge may be drawn or not.
                    drawn = np.clip(box, *edge_bounds(own))
                np.testing.assert_allclose(box, drawn, atol=1.6, err_msg=f"{video.name}, frame {frame}")
                met["compared"] += 1
                errors.append(np.abs(box - drawn).max())
                met["hidden"] += visible.sum() < 0.8 * own.sum()
                met["out of the picture"] += own.sum() < 0.9 * full.sum()
                met["at an edge"] += is_at_edge
    # A hand that is thinner than a pixel hardly shows.
    assert np.mean(np.array(errors) < 1) > 0.98
    assert met["compared"] > 200
    assert min(met["hidden"], met["out of the picture"], met["at an edge"]) > 10, met
    assert met["left out"] > 2, met


def extents(figure: Shapes, lens: Lens) -> np.ndarray:
    """Return the box (T, 4) around all of a figure, even out of the picture."""
    corners = corners_in_pixels(figure, lens, SIZE)
    return np.concatenate([corners.min((1, 2)), corners.max((1, 2))], 1)


def still(lens: Lens) -> Lens:
    return replace(lens, views=np.tile([0.0, 0.0, 1.0], (len(lens.views), 1)))


def test_a_collapse_lasts_from_losing_balance_until_lying_still(staged: list[Video]) -> None:
    for video in staged:
        for actor in video.actors:
            if actor.label != 1:
                continue
            boxes = extents(video.figures[actor.figure], still(video.lens))
            high = boxes[:, 3] - boxes[:, 1]
            begin = actor.frames[0]
            end = actor.frames[-1]
            # In walking away from the camera people get smaller.
            tall = high * video.figures[actor.figure].distance.mean(1)
            assert (tall[max(begin - FPS, 0) : begin + 1] > 0.85 * tall[begin]).all(), video.name
            assert (tall[end:] < 0.75 * tall[begin]).all(), video.name

            # Before the end the body moves by several pixels in a frame; behind it, by less than half of one.
            steps = np.abs(np.diff(boxes, axis=0)).max(1)
            assert steps[begin:end].max() > 3, video.name
            assert steps[end:].max(initial=0) < 0.5, video.name
            assert 1 < len(actor.frames) / FPS < 2.2, video.name


def gaps(video: Video, one: Actor, other: Actor) -> np.ndarray:
    """Return how far two people are apart, in meters, by the middles of what is drawn of them."""
    a, b = (video.figures[actor.figure] for actor in (one, other))
    meter = video.camera.focal / a.distance.mean(1)
    return np.linalg.norm(a.polygons.mean((1, 2)) - b.polygons.mean((1, 2)), axis=-1) / meter


def test_a_fight_lasts_from_the_first_blow_until_they_part(staged: list[Video]) -> None:
    parted = 0
    for video in staged:
        fighters = [actor for actor in video.actors if actor.label == 0]
        assert len(fighters) % 2 == 0, video.name
        for one, other in zip(fighters[::2], fighters[1::2], strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
            gap = gaps(video, one, other)
            assert gap[one.frames].mean() < 0.95, video.name
            assert gap[one.frames[-1]] < 1.1, video.name

            # They part within the next second, if the video lasts so long.
            end = one.frames[-1] + FPS
            if end < len(gap):
                assert gap[end] > gap[one.frames[-1]], video.name
                assert gap[end] > 0.7, video.name
                parted += 1
            assert len(one.frames) / FPS > 1.1, video.name
    assert parted > 5


def test_actions_begin_and_end_within_the_video(staged: list[Video]) -> None:
    at_once = 0
    in_turn = 0
    of_two_classes = 0
    for video in staged:
        for actor in video.actors:
            assert actor.frames[0] > 0, video.name
            assert actor.frames[-1] < len(video.lens.views) - 1, video.name
            assert (np.diff(actor.frames) == 1).all()
        spans = {(actor.frames[0], actor.frames[-1]) for actor in video.actors}
        if len(spans) > 1:
            (_, end), (begin, _) = sorted(spans)[:2]
            at_once += begin <= end
            in_turn += begin > end
            of_two_classes += len({actor.label for actor in video.actors}) == 2
    assert min(at_once, in_turn, of_two_classes) >= 1


def test_each_kind_of_video_shows_what_it_is_called(staged: list[Video]) -> None:
    for i, video in enumerate(staged):
        kind = KINDS[i % 4]
        assert video.name == f"{kind}_{i:04d}"
        labels = sorted(actor.label for actor in video.actors)
        if kind == "several":
            assert len(labels) >= 2
            assert labels != [0, 0]
        else:
            assert labels == {"fight": [0, 0], "collapse": [1], "none": []}[kind]

        assert 2 <= len(video.figures) <= 5
        assert len({actor.figure for actor in video.actors}) == len(labels)
        assert 64 <= len(video.lens.views) <= 128
    assert {len(video.figures) for video in staged} == {2, 3, 4, 5}


def test_nobody_pops_up_or_leaps(staged: list[Video]) -> None:
    walked = 0
    for video in staged[::2]:
        for figure in video.figures:
            distance = figure.distance.mean(1)
            meter = video.camera.focal / distance
            steps = np.linalg.norm(np.diff(figure.polygons.mean((1, 2)), axis=0), axis=1) / meter[1:]
            assert steps.max() * FPS < 8, video.name
            boxes = extents(figure, video.lens)
            in_view = (boxes[:, 2] > 0) & (boxes[:, 0] < SIZE[0])
            assert (distance < video.back)[in_view].all(), video.name
            assert distance.min() > 1, video.name

            # Walking at most 1.5 m/s on average; only a fall is faster.
            assert np.median(steps) * FPS < 1.6, video.name
            walked += np.median(steps) * FPS > 0.6
    assert walked > 5


def test_the_same_seed_gives_the_same_data_set_for_any_number_of_workers(tmp_path: Path) -> None:
    config = RenderConfig(clips=4, seed=7, width=96, height=64, frames=40, fps=8, tubes=True, workers=1)
    render_dataset(tmp_path / "a", config)
    render_dataset(tmp_path / "b", replace(config, clips=2, workers=2))
    tables = sorted((tmp_path / "a" / "annotations").iterdir())
    assert [path.stem for path in tables] == ["collapse_0001", "fight_0000", "none_0003", "several_0002"]
    for path in tables[:2]:
        assert path.read_text() == (tmp_path / "b" / "annotations" / path.name).read_text()

    found = survey(tmp_path / "a", None, decode=True)
    assert not found.problems
    assert found.class_names == ("fight", "collapse")

    # The files say what was staged.
    for i in range(4):
        video = stage_video(config, i)
        pictures = probe(tmp_path / "a" / "videos" / f"{video.name}.webm")
        assert len(pictures.pts) == len(video.lens.views)
        tubes, problems = read_tubes(tmp_path / "a" / "annotations" / f"{video.name}.csv", pictures, found.class_names)
        assert not problems
        assert len(tubes) <= len(video.actors)
        for tube in tubes:
            assert any(tube.label == a.label and np.isin(tube.frames, a.frames).all() for a in video.actors)

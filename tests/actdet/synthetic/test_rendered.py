"""The rendered data set has its format, follows from the seed alone, and has boxes that fit what is drawn."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from actdet.data.annotations import read_annotations
from actdet.errors import ActdetError, DataError
from actdet.synthetic import rendered
from actdet.synthetic.clips import StagedClip, stage_clip
from actdet.synthetic.figures import Shapes
from actdet.synthetic.filming import Lens, box_of, film
from actdet.synthetic.painting import MARGIN, OVERSAMPLING
from actdet.synthetic.places import paint_place
from actdet.synthetic.rendered import RenderConfig, render_dataset
from actdet.synthetic.stage import world

SMALL = RenderConfig(clips=6, seed=7, width=96, height=64, frames=24, workers=1)
SIZE = (160, 120)


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def videos(folder: Path) -> list[Path]:
    return sorted((folder / "videos").iterdir())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rendered")
    render_dataset(out, SMALL)
    return out


@pytest.fixture(scope="module")
def staged() -> list[StagedClip]:
    return [stage_clip(RenderConfig(seed=11), i) for i in range(90)]


def silhouettes(people: list[Shapes], lens: Lens, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return where the people are seen (T, height, width), by filming them alone, in white on a black background."""
    white = [replace(person, colors=[(255, 255, 255)] * len(person.colors)) for person in people]
    lens = replace(lens, gain=(1.0, 1.0, 1.0), offset=0.0, noise=0.0, blur=0.0)
    margin = 2 * round(MARGIN * size[1] * OVERSAMPLING)
    black = Image.new("RGB", (size[0] * OVERSAMPLING + margin, size[1] * OVERSAMPLING + margin))
    frames = film(black, white, lens, size, np.random.default_rng(0))
    return np.stack([frame[..., 0] > 100 for frame in frames])


def extent(masks: np.ndarray) -> np.ndarray:
    """Return the box around all that is set in (..., height, width)."""
    *_, ys, xs = np.nonzero(masks)
    return np.array((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))


def test_clips_are_named_after_their_class_in_turn(small: Path) -> None:
    names = sorted((path.stem for path in videos(small)), key=lambda name: name[-4:])
    patterns = [
        "fight_0000",
        "collapse_0001",
        r"none_[a-z]+_0002",
        "fight_0003",
        "collapse_0004",
        r"none_[a-z]+_0005",
    ]
    for name, pattern in zip(names, patterns, strict=True):
        assert re.fullmatch(pattern, name)
    assert {path.stem for path in (small / "annotations").iterdir()} == set(names)


def test_videos_and_annotations_have_the_projects_format(small: Path) -> None:
    for path in videos(small):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.codec.canonical_name == "vp9"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate == SMALL.fps
        frames = decode(path)
        assert 20 <= len(frames) <= 28
        assert frames.shape[1:] == (64, 96, 3)
        actions = read_annotations(small / "annotations" / f"{path.stem}.txt", 96, 64, ["fight", "collapse"])
        expected = {"fight": [0], "collapse": [1], "none": []}[path.stem.split("_")[0]]
        assert [action.label for action in actions] == expected
        for action in actions:
            x1, y1, x2, y2 = action.box
            assert 0 <= x1 < x2 <= 96
            assert 0 <= y1 < y2 <= 64


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_seed_gives_the_same_pixels_for_any_number_of_workers(
    small: Path, tmp_path: Path, workers: int
) -> None:
    render_dataset(tmp_path, replace(SMALL, clips=4, workers=workers))
    again = videos(tmp_path)
    assert len(again) == 4
    for path in again:
        np.testing.assert_array_equal(decode(path), decode(small / "videos" / path.name))
        label = f"annotations/{path.stem}.txt"
        assert (tmp_path / label).read_text() == (small / label).read_text()


def test_another_seed_has_other_people_in_other_places() -> None:
    people_a, places_a = world(0)
    people_b, places_b = world(1)
    looks = [str(sorted(person.colors.items())) for person in people_a + people_b]
    assert len(set(looks)) == len(looks)
    clip = stage_clip(RenderConfig(), 0)
    pictures = [
        paint_place(place, clip.camera, 64, clip.back, [], np.random.default_rng(0)).tobytes()
        for place in places_a + places_b
    ]
    assert len(set(pictures)) == len(pictures)


def test_a_place_looks_the_same_in_every_clip() -> None:
    clip = stage_clip(RenderConfig(), 0)
    _, places = world(0)
    first, second = (
        paint_place(places[0], clip.camera, 64, clip.back, [], np.random.default_rng(i)).tobytes() for i in range(2)
    )
    assert first == second


def test_every_kind_of_clip_occurs(staged: list[StagedClip]) -> None:
    kinds = Counter(clip.name.rpartition("_")[0] for clip in staged)
    assert (kinds["fight"], kinds["collapse"]) == (30, 30)
    everyday = {f"none_{kind}" for kind in ("pass", "hug", "talk", "sit", "pickup", "lie", "walk")}
    assert set(kinds) == {"fight", "collapse"} | everyday


def test_nothing_but_the_action_tells_the_class(staged: list[StagedClip]) -> None:
    for kind in ("fight", "collapse", "none"):
        clips = [clip for clip in staged if clip.name.startswith(kind)]
        assert {len(clip.bystanders) for clip in clips} == {0, 1, 2}
        assert {clip.place.outdoor for clip in clips} == {False, True}
        assert {"chair", "mat", "parcel"} <= {prop.kind for clip in clips for prop in clip.props}
        lengths = [len(clip.lens.views) for clip in clips]
        assert min(lengths) >= 40
        assert max(lengths) <= 56
        assert 45 < np.mean(lengths) < 51


def test_boxes_fit_the_actors_that_are_drawn(staged: list[StagedClip]) -> None:
    shaken = 0
    for clip in staged[:36]:
        seen = extent(silhouettes(clip.actors, clip.lens))
        np.testing.assert_allclose(box_of(clip.actors, clip.lens, SIZE), seen, atol=1.6, err_msg=clip.name)
        shaken += np.ptp(clip.lens.views[:, 0]) * SIZE[1] > 1
    assert shaken > 5


def test_labels_hold_the_actors_and_no_bystander(small: Path) -> None:
    outside = 0
    for i in range(SMALL.clips):
        clip = stage_clip(SMALL, i)
        size = (SMALL.width, SMALL.height)
        label = (small / "annotations" / f"{clip.name}.txt").read_text().split()
        if i % 3 == 2:
            assert label == []
            continue
        box = np.array([float(edge) for edge in label[1:]])
        np.testing.assert_allclose(box, extent(silhouettes(clip.actors, clip.lens, size)), atol=1.6)
        others = [extent(silhouettes([b], clip.lens, size)) for b in clip.bystanders]
        outside += any(b[0] < box[0] - 2 or b[2] > box[2] + 2 for b in others)
    assert outside


def test_collapses_end_in_lying_after_a_fast_fall(staged: list[StagedClip]) -> None:
    shapes = []
    for clip in staged[1::3]:
        boxes = np.array([extent(mask) for mask in silhouettes(clip.actors, clip.lens)])
        wide = boxes[:, 2] - boxes[:, 0]
        high = boxes[:, 3] - boxes[:, 1]
        lying = slice(-int(0.33 * len(boxes)), None)
        assert high[lying].max() < 0.75 * high.max(), clip.name
        assert np.ptp(high[lying]) <= 6, clip.name
        upright = high > 0.8 * high.max()
        assert upright[0], clip.name
        shapes.append(np.median(wide[lying] / high[lying]))
    assert np.mean(np.array(shapes) > 1.2) > 0.8


def test_lying_down_takes_longer_than_collapsing(staged: list[StagedClip]) -> None:
    def seconds(clip: StagedClip) -> float:
        # How far the head is from the upper edge of the picture.
        low = np.array([extent(mask)[1] for mask in silhouettes(clip.actors, clip.lens)])
        way = (low - low[0]) / (low[-1] - low[0])
        return float((way > 0.9).argmax() - (way > 0.25).argmax()) / 16

    lying = [seconds(clip) for clip in staged if "_lie_" in clip.name]
    falling = [seconds(clip) for clip in staged if "collapse" in clip.name]
    assert min(lying) > 0.6
    assert max(falling) < 0.8
    assert np.median(lying) > 2 * np.median(falling)


def test_the_scene_does_not_depend_on_the_resolution() -> None:
    one, two = (stage_clip(RenderConfig(width=w, height=h), 4) for w, h in ((160, 120), (320, 240)))
    small = box_of(one.actors, one.lens, (160, 120))
    large = box_of(two.actors, two.lens, (320, 240))
    np.testing.assert_allclose(2 * np.array(small), large, atol=0.2)


@pytest.mark.parametrize(
    ("seed", "index", "name", "frames", "box"),
    [
        (0, 0, "fight_0000", 27, (30.7, 16.3, 113.8, 85.1)),
        (0, 4, "collapse_0004", 24, (0.0, 28.0, 76.3, 93.0)),
        (0, 5, "none_talk_0005", 26, (36.0, 7.5, 80.8, 82.4)),
        (1_000_000, 1, "collapse_0001", 20, (27.7, 34.7, 69.4, 87.7)),
        (1_000_000, 2, "none_hug_0002", 20, (30.1, 0.9, 119.6, 85.9)),
        (1_000_000, 3, "fight_0003", 22, (17.9, 24.1, 69.1, 82.0)),
    ],
)
def test_the_clips_of_the_demo_stay_as_they_were_measured(
    seed: int, index: int, name: str, frames: int, box: tuple[float, ...]
) -> None:
    # The figures in README belong to these clips. A single random number more would change what happens in them.
    clip = stage_clip(RenderConfig(seed=seed, width=128, height=96, frames=24, fps=8), index)
    assert (clip.name, len(clip.lens.views)) == (name, frames)
    np.testing.assert_allclose(box_of(clip.actors, clip.lens, (128, 96)), box, atol=0.11)


def test_progress_is_told_after_each_clip(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    render_dataset(tmp_path, replace(SMALL, clips=3), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_an_interrupted_render_leaves_only_whole_videos(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_dataset(tmp_path, replace(SMALL, clips=60), progress=stop)
    left = videos(tmp_path)
    assert 1 <= len(left) < 60
    for path in left:
        assert path.suffix == ".webm"
        assert len(decode(path)) >= 20
        assert (tmp_path / "annotations" / f"{path.stem}.txt").exists()


def test_a_failed_encoding_leaves_no_video(tmp_path: Path) -> None:
    def frames():
        yield from [np.zeros((64, 96, 3), np.uint8)] * 50
        raise OSError("disk full")

    with pytest.raises(DataError, match="disk full"):
        rendered._write_video(tmp_path / "a.webm", frames(), SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"width": 97}, "width must be even, got 97"),
        ({"height": 62}, "height must be in [64, 4096], got 62"),
        ({"frames": 7}, "frames must be in [8, 10000], got 7"),
        ({"clips": 0}, "clips must be in [1, 100000], got 0"),
        ({"fps": 0}, "fps must be in [1, 240], got 0"),
        ({"workers": -1}, "workers must be in [0, 1024], got -1"),
        ({"seed": -1}, "seed must be in [0, 4294967295], got -1"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, change: dict[str, int], text: str) -> None:
    with pytest.raises(ActdetError, match=f"^{re.escape(text)}$"):
        render_dataset(tmp_path / "out", replace(SMALL, **change))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_videos_is_refused(small: Path) -> None:
    with pytest.raises(ActdetError, match="videos is not empty and was not rendered with these settings"):
        render_dataset(small, replace(SMALL, seed=SMALL.seed + 1))


def test_the_least_settings_work(tmp_path: Path) -> None:
    render_dataset(tmp_path, RenderConfig(clips=3, width=64, height=64, frames=8, fps=16, workers=1))
    assert [decode(path).shape[1:] for path in videos(tmp_path)] == [(64, 64, 3)] * 3

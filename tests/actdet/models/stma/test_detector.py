"""STMA's network: every option gives maps and learns, clips do not see each other, and files hold what it computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actdet.data.augment import normalize
from actdet.errors import SettingError
from actdet.models.checkpoints import CheckpointInfo, load_model, save_checkpoint
from actdet.models.stma.config import StmaConfig, StmaLoss
from actdet.models.stma.detector import StmaDetector
from actdet.models.stma.maps import SnippetMaps, snippet_starts
from actdet.prediction.export import export_model
from tests.actdet.models.stma.scenes import actors

SMALL = StmaConfig(image_size=32, frames=8, snippet=3)

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "ResNet-18": {"picture_backbone": "resnet-18"},
    "DLA-34": {"picture_backbone": "dla-34"},
    "DLA-34, plain": {"picture_backbone": "dla-34-plain"},
    "R(2+1)D-18": {"clip_backbone": "r2plus1d-18"},
    "the middle snippet": {"snippets": "middle"},
    "the last snippet and frame": {"snippets": "last", "key": "last"},
    "one frame": {"snippet": 1},
    "sides in the key frame": {"moving_sizes": False},
    "no motion": {"motion_excitation": False},
    "no clip": {"aggregation": False},
    "a map for each class": {"class_agnostic": False, "motion_excitation": False, "aggregation": False},
    "one class": {"class_names": ("one",)},
}
# The paper's own, of 67 million weights.
PAPER = {"picture_backbone": "dla-34", "clip_backbone": "resnext-101", "frames": 16, "snippet": 5}
ALL_OPTIONS = pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(replace(SMALL, **each), id=name) for name, each in OPTIONS.items()),
        pytest.param(replace(SMALL, **PAPER), id="the paper's", marks=pytest.mark.slow),
    ],
)


def make(config: StmaConfig) -> StmaDetector:
    torch.manual_seed(0)
    return StmaDetector(config)


def noise(batch: int, config: StmaConfig, seed: int = 0) -> Tensor:
    shape = (batch, 3, config.frames, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@ALL_OPTIONS
def test_every_option_gives_maps_of_all_snippets_and_learns(config: StmaConfig) -> None:
    detector = make(config)
    maps = detector(noise(2, config))
    count = len(snippet_starts(config))
    classes = len(config.class_names)
    assert maps.centers.shape == (2, count, 1 if config.class_agnostic else classes, 8, 8)
    assert maps.movement.shape == (2, count, config.snippet, 2, 8, 8)
    assert maps.sizes.shape == (2, count, config.snippet, 4, 8, 8)
    assert maps.classes.shape[:3] == (2, count, classes if config.class_agnostic else 1)
    assert all(each.dtype == torch.float32 for each in maps)
    assert all(each.isfinite().all() for each in maps)
    # Before training, a center is improbable everywhere, and sides are of two pixels.
    assert maps.centers.sigmoid().mean().item() == pytest.approx(0.1, abs=0.03)
    if config.moving_sizes:
        assert maps.sizes.min() > 0
    assert maps.sizes.mean().item() == pytest.approx(2, abs=0.3)

    detector.losses(maps, actors(config, (2, 1)), StmaLoss())["total"].backward()
    learning = {name for name, weight in detector.named_parameters() if weight.grad is not None and weight.grad.any()}
    for part in ("backbone.pictures", "backbone.clips", "center_head", "movement_head", "size_head", "class_head"):
        of_part = {name for name, _ in detector.named_parameters() if name.startswith(part)}
        # What a network of one class says of it costs nothing.
        is_known = len(config.class_names) == 1 and part in ("backbone.clips", "class_head")
        assert bool(learning & of_part) == (bool(of_part) and not is_known), part
        if part.endswith("head") and not is_known:
            # One frame has no motion.
            still = {name for name in of_part if "motion" in name and config.snippet == 1}
            assert of_part - still <= learning


@torch.no_grad()
def test_a_frame_counts_in_the_snippets_that_have_it() -> None:
    """Without features of the clip, nothing else can see it."""
    config = replace(SMALL, aggregation=False)
    detector = make(config).eval()
    given = noise(1, config)
    changed = given.clone()
    changed[:, :, 4] += 1
    before, after = detector(given), detector(changed)
    for number, start in enumerate(snippet_starts(config)):
        has_it = start <= 4 < start + config.snippet
        for name in ("centers", "movement", "classes"):
            one, other = getattr(before, name)[0, number], getattr(after, name)[0, number]
            assert torch.equal(one, other) != has_it, (name, number)
        # Sides are those of each frame by itself.
        for frame in range(config.snippet):
            same = torch.equal(before.sizes[0, number, frame], after.sizes[0, number, frame])
            assert same != (start + frame == 4)


@torch.no_grad()
def test_the_features_of_the_clip_reach_the_classes_alone() -> None:
    detector = make(SMALL).eval()
    assert detector.class_head is not None
    given = noise(1, SMALL)
    features = detector.backbone(given)
    assert features.clip is not None
    other = detector.detect(features._replace(clip=features.clip + 1))
    same = detector.detect(features)
    assert torch.equal(other.centers, same.centers)
    assert torch.equal(other.movement, same.movement)
    assert torch.equal(other.sizes, same.sizes)
    assert not torch.allclose(other.classes, same.classes)


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other() -> None:
    detector = make(SMALL).eval()
    batch = noise(3, SMALL)
    together = detector(batch)
    for number in (0, 2):
        alone = detector(batch[number : number + 1])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[number : number + 1], other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_smaller_pictures_of_the_first_epochs_pass() -> None:
    detector = make(SMALL).eval()
    maps = detector.detect(detector.backbone(noise(2, SMALL)[..., :23, :23]))
    assert maps.centers.shape[-2:] == (6, 6)
    assert all(each.isfinite().all() for each in maps)


@torch.no_grad()
def test_outputs_are_float32_under_autocast() -> None:
    detector = make(SMALL).eval()
    full = detector(noise(2, SMALL))
    with torch.autocast("cpu", torch.bfloat16):
        low = detector(noise(2, SMALL))
    for one, other in zip(full, low, strict=True):
        assert other.dtype == torch.float32
        assert (one - other).abs().max() < 0.1 * one.abs().max() + 0.05


@pytest.mark.parametrize("shape", [(2, 3, 8, 32, 48), (2, 3, 16, 32, 32), (2, 8, 32, 32, 3), (3, 8, 32, 32)])
def test_other_shapes_are_refused_with_the_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"clips must be \(B, 3, 8, 32, 32\), got \(") as caught:
        make(SMALL)(torch.zeros(shape))
    assert str(caught.value).endswith(f"got {shape}")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"snippet": 9}, "snippet must be at most the 8 frames of a clip, got 9"),
        ({"class_agnostic": False}, "motion_excitation is for centers whatever the class is"),
        ({"class_agnostic": False, "motion_excitation": False}, "aggregation is for centers whatever the class is"),
        ({"aggregation": False, "clip_backbone": "r2plus1d-18"}, "clip_backbone is of no use without aggregation"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        replace(SMALL, **settings)


def saved(detector: StmaDetector, folder: Path) -> Path:
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    path = folder / "model.safetensors"
    save_checkpoint(path, tensors, CheckpointInfo(detector.config, "pyav", 2.0, StmaLoss(cls_weight=0.5)))
    return path


@torch.no_grad()
def test_a_checkpoint_holds_the_detector(tmp_path: Path) -> None:
    config = replace(SMALL, snippets="middle", key="last")
    detector = make(config).eval()
    path = saved(detector, tmp_path)
    loaded, info = load_model(path)
    assert isinstance(loaded, StmaDetector)
    assert info.model == config
    assert info.loss == StmaLoss(cls_weight=0.5)
    given = noise(1, config)
    got: SnippetMaps = loaded.eval()(given)
    for one, other in zip(got, detector(given), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("format", "changes"),
    [
        ("pt2", {}),
        pytest.param("onnx", {}, marks=pytest.mark.slow),
        pytest.param("onnx", {"picture_backbone": "dla-34-plain"}, marks=pytest.mark.slow),
        pytest.param("onnx", OPTIONS["a map for each class"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_exported_files_compute_what_the_detector_computes(
    format: Any, changes: dict[str, Any], rendered: Path, tmp_path: Path
) -> None:
    """By operators that every runtime has, for any number of clips."""
    detector = make(replace(SMALL, **changes)).eval()
    video = min((rendered / "videos").iterdir())
    path = export_model(saved(detector, tmp_path), format=format, video=video).path

    clips = torch.randint(0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = detector(normalize(clips))
        if format == "pt2":
            found = torch.export.load(path).module()(clips)
        else:
            onnxruntime = pytest.importorskip("onnxruntime")
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            values = session.run(names, {"clips": clips.numpy()})
            found = {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
    assert list(found) == list(SnippetMaps._fields)
    for name, value in found.items():
        torch.testing.assert_close(value, getattr(wanted, name), rtol=1e-3, atol=1e-3)

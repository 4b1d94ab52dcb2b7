"""The tubelet detector: what its slots start from, that every option trains, and that files hold what it computes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from actdet.data.augment import normalize
from actdet.data.truth import TubeTargets, centered_targets
from actdet.models.checkpoints import CheckpointInfo, load_model, save_checkpoint
from actdet.models.tubelet.config import TubeletConfig, TubeletLoss
from actdet.models.tubelet.decision import detections
from actdet.models.tubelet.detector import TubeletDetector
from actdet.models.tubelet.features import FrameFeatures
from actdet.models.tubelet.losses import tubelet_losses
from actdet.models.tubelet.slots import Slots
from actdet.prediction.export import export_model

pytestmark = pytest.mark.usefixtures("tiny_backbone")

SMALL = TubeletConfig(image_size=32, frames=8, slots=4, decoder_layers=2)
SIDE = 32

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "free queries": {"query_form": "free"},
    "plain attention": {"attention": "plain"},
    "the last stage": {"pyramid": False},
    "the last stage plainly": {"pyramid": False, "attention": "plain"},
    "all frames": {"all_frames": True},
    "all frames plainly": {"all_frames": True, "attention": "plain"},
    "every stage has all frames": {"temporal_strides": 0},
    "pictures": {"backbone": "efficientnet-lite0"},
    "several labels": {"multi_label": True},
    "dropout": {"dropout": 0.3},
    "no copies": {"denoising_groups": 0},
    "one of each": {"slots": 1, "decoder_layers": 1, "denoising_groups": 1, "class_names": ("one",)},
    "all others": {
        "query_form": "free",
        "attention": "plain",
        "pyramid": False,
        "temporal_strides": 1,
        "all_frames": True,
        "multi_label": True,
        "denoising_groups": 3,
        "frames": 16,
        "slots": 5,
    },
}
ALL_OPTIONS = pytest.mark.parametrize("config", [replace(SMALL, **each) for each in OPTIONS.values()], ids=[*OPTIONS])


def make(config: TubeletConfig) -> TubeletDetector:
    torch.manual_seed(0)
    return TubeletDetector(config)


def trained(config: TubeletConfig) -> TubeletDetector:
    """A detector as training leaves one: no weight at its start of zero or one."""
    detector = make(config).eval()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return detector


def noise(batch: int, config: TubeletConfig, seed: int = 0) -> Tensor:
    shape = (batch, 3, config.frames, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scene(frames: int = 8) -> tuple[Tensor, TubeTargets]:
    """Two clips: two actors, one of whom comes later and leaves before the end; and one who moves up.

    Returns:
        (2, T, 32, 32, 3) uint8, and the actors.
    """
    clips = torch.full((2, frames, SIDE, SIDE, 3), 40, dtype=torch.uint8)
    boxes = torch.zeros(2, 2, frames, 4)
    visible = torch.zeros(2, 2, frames, dtype=torch.bool)

    def put(clip: int, actor: int, time: int, box: tuple[int, int, int, int], color: int) -> None:
        x1, y1, x2, y2 = box
        clips[clip, time, y1:y2, x1:x2, color] = 250
        boxes[clip, actor, time] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) / SIDE
        visible[clip, actor, time] = True

    for time in range(frames):
        moved = round(14 * time / (frames - 1))
        put(0, 0, time, (2 + moved, 4, 10 + moved, 16), 0)
        put(1, 0, time, (12, 18 - moved, 24, 28 - moved), 1)
        if frames // 4 <= time < frames - frames // 4:
            put(0, 1, time, (18, 20, 28, 30), 2)
    counts = torch.tensor([2, 1], dtype=torch.int32)
    return clips, TubeTargets(torch.tensor([[0, 1], [1, 0]]), boxes, counts, visible, visible[:, 0, :0])


def training_step(detector: TubeletDetector, clips: Tensor, targets: TubeTargets) -> dict[str, Tensor]:
    """The losses of a training step."""
    outputs = detector.detect(detector.backbone(clips), detector.hints(targets))
    return detector.losses(outputs, targets, TubeletLoss())


# What comes out


@ALL_OPTIONS
def test_every_option_gives_slots_in_every_frame(config: TubeletConfig) -> None:
    detector = trained(config)
    with torch.no_grad():
        got = detector(noise(2, config))
    classes = len(config.class_names) + (not config.multi_label)
    assert got.logits.shape == (config.decoder_layers, 2, config.slots, config.frames, classes)
    assert got.boxes.shape == (config.decoder_layers, 2, config.slots, config.frames, 4)
    assert got.noisy == ()
    assert all(tensor.isfinite().all() for tensor in got[:2])
    assert 0 <= got.boxes.min() < got.boxes.max() <= 1
    final = got.final()
    assert torch.equal(final.logits, got.logits[-1])
    assert torch.equal(final.boxes, got.boxes[-1])
    # It answers differently to another clip.
    assert not torch.allclose(final.logits[0], final.logits[1], atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 8, 32, 48), (2, 3, 16, 32, 32), (2, 8, 32, 32, 3), (3, 8, 32, 32)])
def test_other_shapes_are_refused_with_the_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"clips must be \(B, 3, 8, 32, 32\), got \(") as caught:
        make(SMALL)(torch.zeros(shape))
    assert str(caught.value).endswith(f"got {shape}")


@ALL_OPTIONS
@torch.no_grad()
def test_smaller_pictures_of_the_first_epochs_pass(config: TubeletConfig) -> None:
    detector = trained(config)
    small = noise(2, replace(config, image_size=32))[..., :23, :23]
    got = detector.detect(detector.backbone(small))
    assert got.logits.isfinite().all()
    assert got.boxes.shape[2:4] == (config.slots, config.frames)


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other() -> None:
    detector = trained(SMALL)
    batch = noise(3, SMALL)
    together = detector(batch)
    for number in (0, 2):
        alone = detector(batch[number : number + 1])
        torch.testing.assert_close(together.logits[:, number : number + 1], alone.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.boxes[:, number : number + 1], alone.boxes, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_outputs_are_float32_under_autocast() -> None:
    detector = trained(SMALL)
    full = detector(noise(2, SMALL))
    with torch.autocast("cpu", torch.bfloat16):
        low = detector(noise(2, SMALL))
    assert low.logits.dtype == low.boxes.dtype == torch.float32
    assert (low.boxes - full.boxes).abs().max() < 0.05
    # A box that went through bfloat16 would have no more than 8 bits.
    assert not torch.equal(low.boxes, low.boxes.bfloat16().float())


# What it starts from


@pytest.mark.parametrize("slots", [1, 2, 4, 10, 100])
@torch.no_grad()
def test_new_slots_look_at_different_places_all_over_the_picture(slots: int) -> None:
    config = replace(SMALL, slots=slots, decoder_layers=1)
    boxes = make(config)(noise(1, config)).boxes[0, 0]
    assert (boxes == boxes[:, :1]).all()
    torch.testing.assert_close(boxes[:, 0, 2:], torch.tensor([0.25, 0.5]).expand(slots, 2))
    centers = boxes[:, 0, :2]
    assert ((centers > 0) & (centers < 1)).all()
    assert len({tuple(center) for center in centers.tolist()}) == slots

    # They are in rows. Each row, and each slot within its row, is as far from the edge as from half-way to the next.
    rows = centers[:, 1].unique()
    across = [centers[centers[:, 1] == row, 0].sort().values for row in rows]
    for places in (rows, *across):
        wanted = (torch.arange(len(places)) + 0.5) / len(places)
        torch.testing.assert_close(places, wanted, rtol=1e-4, atol=1e-4)

    # The picture is cut about as often in both directions, and only the last row may have fewer slots.
    columns = len(across[0])
    assert columns - len(rows) in (0, 1)
    assert all(len(places) == columns for places in across[:-1])
    assert 1 <= len(across[-1]) <= columns


def identities_of(detector: TubeletDetector) -> Tensor:
    """(B, S, T, 256), what the first layer of the decoder knows of each query, which itself begins as nothing."""
    seen: dict[str, tuple[Tensor, ...]] = {}

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen["arguments"] = arguments

    with torch.no_grad():
        detector.decoder[0].register_forward_pre_hook(note)
        detector(noise(2, detector.config))
    queries, identity, *_ = seen["arguments"]
    assert queries.shape == identity.shape
    assert not queries.any()
    return identity


def test_a_query_is_the_sum_of_one_for_the_slot_and_one_for_the_frame() -> None:
    detector = make(SMALL)
    queries = identities_of(detector)
    assert queries.shape == (2, 4, 8, 256)
    assert detector.frame_queries is not None
    for slot, frame in np.ndindex(4, 8):
        wanted = detector.slot_queries[slot, 0] + detector.frame_queries[frame]
        assert torch.equal(queries[:, slot, frame], wanted.expand(2, -1))
    assert detector.slot_queries.numel() + detector.frame_queries.numel() == (4 + 8) * 256


def test_free_queries_are_each_their_own() -> None:
    detector = make(replace(SMALL, query_form="free"))
    assert "frame_queries" not in detector.state_dict()
    assert detector.slot_queries.shape == (4, 8, 256)
    assert detector.first_boxes.shape == (4, 8, 4)
    queries = identities_of(detector)
    assert torch.equal(queries, detector.slot_queries.expand(2, -1, -1, -1))
    # No sum of a number for the slot and one for the frame gives them.
    mixed = queries[0] - queries[0].mean(0, keepdim=True) - queries[0].mean(1, keepdim=True) + queries[0].mean((0, 1))
    assert mixed.abs().mean() > 0.1


def test_a_layer_refines_the_boxes_of_the_one_before() -> None:
    """It looks about them, but it does not teach the layer before where to put them."""
    detector = trained(SMALL)
    last = detector.box_heads[-1]
    with torch.no_grad():
        for parameter in last.get_submodule("2").parameters():
            parameter.zero_()
    boxes = detector(noise(1, SMALL)).boxes
    assert not torch.allclose(boxes[0, 0, :, 0], detector.first_boxes[:, 0].sigmoid(), atol=1e-3)
    torch.testing.assert_close(boxes[1], boxes[0])

    with torch.no_grad():
        last.get_parameter("2.bias").copy_(torch.tensor([1.0, 0.0, 0.0, -1.0]))
    moved = detector(noise(1, SMALL)).boxes
    torch.testing.assert_close(moved[1], (boxes[0].logit() + torch.tensor([1.0, 0.0, 0.0, -1.0])).sigmoid())
    (gradient,) = torch.autograd.grad(moved[1].sum(), detector.box_heads[0].get_parameter("2.bias"), allow_unused=True)
    assert gradient is None or not gradient.any()


def test_several_labels_start_improbable() -> None:
    config = replace(SMALL, multi_label=True)
    with torch.no_grad():
        logits = make(config)(noise(2, config)).logits
    assert logits.sigmoid().median() < 0.03


# Training


@ALL_OPTIONS
def test_a_gradient_reaches_every_parameter(config: TubeletConfig) -> None:
    """With the loss of a training step, as several processes need it; not zero where weights are not at their start."""
    detector = trained(config).train()
    targets = centered_targets("tubelet", 2, config.frames)
    assert isinstance(targets, TubeTargets)
    outputs = detector.detect(detector.backbone(noise(2, config)), detector.hints(targets))
    losses = detector.losses(outputs, targets, TubeletLoss())
    assert tuple(losses) == detector.loss_names
    assert (losses["denoising"] > 0) == (config.denoising_groups > 0)
    losses["total"].backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # What a copy says of its class is one of few.
            assert parameter.grad.any(), name
    still = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert still == (set() if config.denoising_groups else {"label_queries"})


def test_without_actors_a_gradient_reaches_every_parameter_that_several_processes_wait_for() -> None:
    clips, targets = scene()
    none = targets._replace(counts=torch.zeros_like(targets.counts), visible=torch.zeros_like(targets.visible))
    detector = make(SMALL).train()
    training_step(detector, normalize(clips), none)["total"].backward()
    missing = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize("matching", ["tubelet", pytest.param("frame", marks=pytest.mark.slow)])
def test_training_finds_the_actors_of_a_batch(matching: Any) -> None:
    """When each comes and leaves, what he does, and where he is in every frame."""
    config = replace(SMALL, decoder_layers=1, temporal_strides=0)
    weights = TubeletLoss(matching=matching)
    detector = make(config).train()
    frames, targets = scene()
    clips = normalize(frames)
    head = detector.auxiliary_head()
    optimizer = torch.optim.AdamW([*detector.parameters(), *head.parameters()], lr=1e-3)
    losses = []
    for _ in range(30):
        features = detector.backbone(clips)
        outputs = detector.detect(features, detector.hints(targets))
        found = detector.losses(outputs, targets, weights, auxiliary_output=head(features), auxiliary_weight=1.0)
        optimizer.zero_grad()
        found["total"].backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        losses.append({name: value.item() for name, value in found.items()})
    for name, first in losses[0].items():
        # Copies are made anew in each step.
        assert losses[-1][name] < (0.7 if name == "denoising" else 0.5) * first, name

    with torch.no_grad():
        outputs = detector(clips)
    truth = box_convert(targets.boxes, "cxcywh", "xyxy")
    (tracks,) = detector.detections(outputs.final(), weights).tracks
    for clip, count in enumerate(targets.counts.tolist()):
        for actor in range(count):
            likely = tracks.scores[clip, :, :, targets.labels[clip, actor]]
            shown = targets.visible[clip, actor]
            # An actor has one slot if slots follow actors, and else one in each frame.
            slots = likely.argmax(0)
            if matching == "tubelet":
                slots = likely[:, shown].mean(1).argmax().expand(config.frames)
            score = likely[slots, torch.arange(config.frames)]
            assert score[shown].min() > 0.5
            assert shown.all() or score[~shown].max() < score[shown].min()
            boxes = tracks.boxes[clip, slots, torch.arange(config.frames)]
            assert box_iou(boxes[shown], truth[clip, actor, shown]).diagonal().mean() > 0.6


def test_training_finds_all_that_an_actor_does_at_once() -> None:
    """One actor does something else, too, in the second half of the clip: one slot says both."""
    config = replace(SMALL, decoder_layers=1, temporal_strides=0, multi_label=True)
    detector = make(config).train()
    assert detector.truth == "actor"
    frames, targets = scene()
    labels = torch.full((*targets.visible.shape, 2), -1)
    labels[..., 0] = torch.where(targets.visible, targets.labels[..., None], -1)
    labels[1, 0, 4:] = torch.tensor([0, 1])
    targets = targets._replace(labels=labels)
    hints = detector.hints(targets)
    assert hints is not None
    assert hints.boxes.shape[1] == 2 * 2 * 2

    # The square becomes brighter meanwhile.
    frames[1, 4:] = torch.where(frames[1, 4:] == 40, 40, 255)
    frames[1, 4:, :, :, 0] = torch.where(frames[1, 4:, :, :, 1] == 255, 180, frames[1, 4:, :, :, 0])
    clips = normalize(frames)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    for _ in range(60):
        found = training_step(detector, clips, targets)
        optimizer.zero_grad()
        found["total"].backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()

    with torch.no_grad():
        final = detector(clips).final()
    (tracks,) = detector.detections(final, TubeletLoss()).tracks
    slot = tracks.scores[1, :, :, 1].mean(1).argmax()
    of_slot = tracks.scores[1, slot]
    assert of_slot[:, 1].min() > 0.5
    assert of_slot[4:, 0].min() > 0.5 > of_slot[:4, 0].max()

    # An assessment has a row for each action, and the same slot for those of one actor.
    assessment = detector.assess(final, targets, TubeletLoss())
    assert assessment.targets.labels[1, :2].tolist() == [0, 1]
    assert assessment.targets.counts.tolist() == [2, 2]
    assert assessment.matched[1, :2].tolist() == [slot, slot]


# Hints


def test_hints_are_noisy_copies_and_come_from_torchs_generator() -> None:
    """So a training step draws the same again from the same seed."""
    _, targets = scene()
    detector = make(replace(SMALL, denoising_groups=3))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(detector.hints(targets))
    one, same, other = drawn
    assert one is not None
    assert all(map(torch.equal, one, same))
    assert not torch.equal(one.boxes, other.boxes)
    assert one.boxes.shape == (2, 3 * 2 * 2, 8, 4)
    near = one.boxes.unflatten(1, (3, 2, 2))[:, :, 0]
    seen = targets.visible[:, None].expand(-1, 3, -1, -1)
    assert (near - targets.boxes[:, None])[seen].abs().max() < 0.25
    assert make(replace(SMALL, denoising_groups=0)).hints(targets) is None

    # A copy is of a class, or of none.
    assert set(one.labels.flatten().tolist()) == {0, 1, 2}
    assert detector.label_queries.shape == (3, 256)


@ALL_OPTIONS
@torch.no_grad()
def test_slots_know_nothing_of_the_hints(config: TubeletConfig) -> None:
    """Or they would learn to look at the answer."""
    if not config.denoising_groups:
        pytest.skip("there are none")
    detector = trained(config)
    targets = centered_targets("tubelet", 2, config.frames)
    assert isinstance(targets, TubeTargets)
    features = detector.backbone(noise(2, config))
    alone = detector.detect(features)
    hinted = detector.detect(features, detector.hints(targets))
    torch.testing.assert_close(hinted.logits, alone.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hinted.boxes, alone.boxes, rtol=1e-4, atol=1e-4)
    logits, boxes, matched = hinted.noisy
    copies = 2 * config.denoising_groups
    assert logits.shape[:4] == boxes.shape[:4] == (config.decoder_layers, 2, copies, config.frames)
    assert matched.tolist() == [[0], [0]]


# The contract of a family


def test_its_losses_and_detections_are_those_of_its_outputs() -> None:
    """Their parts have tests of their own."""
    weights = TubeletLoss(no_object_weight=0.3)
    detector = trained(SMALL)
    _, targets = scene()
    with torch.no_grad():
        outputs = detector(noise(2, SMALL))
    assert detector.losses(outputs, targets, weights) == tubelet_losses(outputs, targets, weights, multi_label=False)

    found = detector.detections(outputs.final(), weights, threshold=0.2)
    wanted = detections(outputs.final(), weights, multi_label=False, threshold=0.2)
    assert found.actions == wanted.actions
    (tracks,) = found.tracks
    (wanted_tracks,) = wanted.tracks
    assert torch.equal(tracks.scores, wanted_tracks.scores)
    assert torch.equal(tracks.boxes, wanted_tracks.boxes)
    assessment = detector.assess(outputs.final(), targets, weights)
    assert assessment.detections.actions == detector.detections(outputs.final(), weights).actions
    assert detector.truth == "tubelet"
    assert detector.config.max_actions() == 4


@pytest.mark.parametrize("name", ["defaults", "all others"])
@torch.no_grad()
def test_a_checkpoint_gives_the_same_detector(name: str, tmp_path: Path) -> None:
    config = replace(SMALL, **OPTIONS[name])
    detector = trained(config)
    info = CheckpointInfo(config, "pyav", 2.5, TubeletLoss(matching="frame", cls_weight=1.0), ("held out",), window=3.0)
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    save_checkpoint(tmp_path / "model.safetensors", tensors, info)
    loaded, read = load_model(tmp_path / "model.safetensors")
    assert read == info
    assert isinstance(loaded, TubeletDetector)
    assert not loaded.training
    for got, wanted in zip(loaded(noise(1, config)), detector(noise(1, config)), strict=True):
        assert all(map(torch.equal, got, wanted))


def test_settings_of_training_change_no_weight() -> None:
    """A detector may be trained on with others."""
    state = make(SMALL).state_dict()
    for changes in ({"dropout": 0.5}, {"denoising_groups": 0}, {"denoising_groups": 7}):
        other = make(replace(SMALL, **changes))
        assert set(changes) <= set(TubeletConfig.of_training)
        other.load_state_dict(state)
    with pytest.raises(RuntimeError):
        make(replace(SMALL, query_form="free")).load_state_dict(state)


def test_a_copy_is_a_detector_of_its_own() -> None:
    detector = trained(SMALL)
    with torch.no_grad():
        wanted = detector(noise(1, SMALL))
        copied = deepcopy(detector)
        copied.slot_queries.add_(1)
        got: Slots = detector(noise(1, SMALL))
        assert torch.equal(got.logits, wanted.logits)
        assert not torch.equal(copied(noise(1, SMALL)).logits, wanted.logits)


# Exported files


@torch.no_grad()
def test_what_reads_the_features_is_recorded_in_operators_of_pytorch() -> None:
    """For any number of clips; the whole detector takes long to record."""
    reading = trained(SMALL).decoder[0].get_submodule("reading")

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reading = reading

        def forward(self, queries: Tensor, boxes: Tensor, pixels: Tensor) -> Tensor:
            return self.reading(queries, boxes, FrameFeatures(pixels, None, [(4, 5), (2, 3), (1, 1)]))

    generator = torch.Generator().manual_seed(0)
    given = [torch.rand(3, 8, count, width, generator=generator) for count, width in ((4, 256), (4, 4), (27, 256))]
    clips = torch.export.Dim("clips", min=1)
    program = torch.export.export(Reading(), tuple(each[:2] for each in given), dynamic_shapes=({0: clips},) * 3)
    assert not any("actdet" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*given), Reading()(*given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("format", "changes"),
    [
        pytest.param("pt2", {}, marks=pytest.mark.slow),
        pytest.param("pt2", {"attention": "plain", "all_frames": True}, marks=pytest.mark.slow),
        pytest.param("onnx", {}, marks=pytest.mark.slow),
        pytest.param("onnx", {"attention": "plain"}, marks=pytest.mark.slow),
        pytest.param("pt2", {"backbone": "efficientnet-lite0"}, marks=pytest.mark.slow),
        pytest.param("onnx", {"backbone": "efficientnet-lite0"}, marks=pytest.mark.slow),
        pytest.param("onnx", {"all_frames": True, "multi_label": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_exported_files_compute_what_the_detector_computes(
    format: Any, changes: dict[str, Any], rendered: Path, tmp_path: Path
) -> None:
    """By operators that every runtime has, for any number of clips."""
    config = replace(SMALL, decoder_layers=1, **changes)
    detector = trained(config)
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    save_checkpoint(tmp_path / "model.safetensors", tensors, CheckpointInfo(config, "pyav", 2.5, TubeletLoss()))
    video = min((rendered / "videos").iterdir())
    path = export_model(tmp_path / "model.safetensors", format=format, video=video).path

    clips = torch.randint(0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = detector(normalize(clips)).final()
        if format == "pt2":
            program = torch.export.load(path)
            assert not any("actdet" in str(node.target) for node in program.graph.nodes)
            found = program.module()(clips)
        else:
            onnxruntime = pytest.importorskip("onnxruntime")
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            values = session.run(names, {"clips": clips.numpy()})
            found = {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
    assert list(found) == ["logits", "boxes"]
    for name, value in found.items():
        torch.testing.assert_close(value, getattr(wanted, name), rtol=1e-3, atol=1e-4)

"""The settings of the demonstration that `make demo` runs: render clips, train on them, evaluate on others, report."""

from __future__ import annotations

from dataclasses import dataclass, replace

from actdet.data.config import AugmentConfig
from actdet.models.detr.config import ModelConfig
from actdet.synthetic.rendered import RenderConfig
from actdet.training.config import TrainConfig

# No person, place or camera of one seed is in clips of the other.
TRAIN_SEED = 0
TEST_SEED = 1_000_000


@dataclass(frozen=True)
class Demo:
    """The settings of a demonstration."""

    train_clips: RenderConfig
    test_clips: RenderConfig
    model: ModelConfig
    config: TrainConfig


def demo_for(device_type: str, clips: int | None = None, epochs: int | None = None) -> Demo:
    """Return the demonstration for a kind of device.

    On a GPU it has the report's network and its 16 frames of 224 x 224, from scratch; on a CPU what two cores train
    within minutes, from weights for ImageNet that are in a package.

    Args:
        device_type: cuda or cpu.
        clips: Number of training clips; by default the device's own.
        epochs: Passes over them; by default the device's own.
    """
    if device_type == "cuda":
        return _gpu_demo(clips or 600, epochs or 20)
    return _cpu_demo(clips or 1500, epochs or 5)


def _gpu_demo(clips: int, epochs: int) -> Demo:
    render = RenderConfig(width=320, height=240)
    config = TrainConfig(
        epochs=epochs,
        batch_size=16,
        lr=3e-4,
        warmup=0.5,
        workers=4,
        auxiliary_weight=2.0,
        eval_every=1000,
        backbone_weights="none",
    )
    return Demo(
        train_clips=replace(render, clips=clips, seed=TRAIN_SEED),
        test_clips=replace(render, clips=60, seed=TEST_SEED),
        model=ModelConfig(deep_supervision=True, dropout=0.0),
        config=config,
    )


def _cpu_demo(clips: int, epochs: int) -> Demo:
    render = RenderConfig(width=128, height=96, frames=24, fps=8)
    config = TrainConfig(
        epochs=epochs,
        batch_size=8,
        lr=5e-4,
        warmup=0.5,
        auxiliary_weight=2.0,
        # An eighth less time and, as far as 600 clips tell, the same figures (docs/LOG.md).
        small_epochs=2,
        # Its convolutions of single channels are slower in bf16, even where the CPU has units for that.
        precision="fp32",
        workers=1,
        eval_every=1000,
        backbone_weights="imagenet",
        # With only 8 frames, jitter would hide how fast somebody falls.
        augment=AugmentConfig(crop=0.15, color=0.2, jitter=False),
    )
    return Demo(
        train_clips=replace(render, clips=clips, seed=TRAIN_SEED),
        test_clips=replace(render, clips=60, seed=TEST_SEED),
        model=ModelConfig(image_size=64, frames=8, deep_supervision=True, dropout=0.0, backbone="efficientnet-lite0"),
        config=config,
    )

"""The demonstration that `make demo` runs: render clips, train on them, evaluate on others, report."""

from __future__ import annotations

from dataclasses import dataclass

from actdet.data.config import AugmentConfig
from actdet.models.detr.config import ModelConfig
from actdet.synthetic.rendered import RenderConfig
from actdet.training.config import TrainConfig

TRAIN_SEED, TEST_SEED = 0, 1_000_000  # two worlds: no person, place or camera of one is in the other


@dataclass(frozen=True)
class Demo:
    """The settings of a demonstration."""

    train_clips: RenderConfig
    test_clips: RenderConfig
    model: ModelConfig
    config: TrainConfig


def demo_for(device_type: str, clips: int | None = None, epochs: int | None = None) -> Demo:
    """On a GPU the report's 16 frames of 224 x 224; on a CPU what two cores train from scratch within minutes.

    clips, epochs: other numbers of training clips and of passes over them than the device's own.
    """
    if device_type == "cuda":
        video = RenderConfig(clips=clips or 600, seed=TRAIN_SEED, width=320, height=240)
        test = RenderConfig(clips=60, seed=TEST_SEED, width=320, height=240)
        model = ModelConfig(deep_supervision=True, dropout=0.0)
        config = TrainConfig(
            epochs=epochs or 20,
            batch_size=16,
            lr=3e-4,
            warmup=0.5,
            workers=4,
            auxiliary_weight=2.0,
            eval_every=1000,
            backbone_weights="none",
        )
        return Demo(video, test, model, config)
    small = {"width": 128, "height": 96, "frames": 24, "fps": 8}
    video = RenderConfig(clips=clips or 600, seed=TRAIN_SEED, **small)
    test = RenderConfig(clips=60, seed=TEST_SEED, **small)
    model = ModelConfig(image_size=48, frames=8, deep_supervision=True, dropout=0.0)
    epochs = epochs or 6
    config = TrainConfig(
        epochs=epochs,
        shallow_epochs=2 * epochs // 3,
        batch_size=8,
        lr=7e-4,
        warmup=0.5,
        auxiliary_weight=2.0,
        workers=1,
        eval_every=1000,
        backbone_weights="none",
        augment=AugmentConfig(crop=0.15, colour=0.2, jitter=False),  # 8 frames: jitter would hide how fast one falls
    )
    return Demo(video, test, model, config)

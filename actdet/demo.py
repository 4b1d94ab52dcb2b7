"""The demonstration: render clips, train on them, evaluate on others, report. What `make demo` runs.

The test clips are rendered from another seed: other people, other places, other camera noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from actdet.config import AugmentConfig, ModelConfig, TrainConfig
from actdet.data.rendered import RenderConfig


@dataclass(frozen=True)
class Demo:
    """The settings of a demonstration."""

    train_clips: RenderConfig
    test_clips: RenderConfig
    model: ModelConfig
    config: TrainConfig


def demo_for(device_type: str) -> Demo:
    """On a GPU the report's 16 frames of 224 x 224; on a CPU what two cores can train from scratch in minutes."""
    raise NotImplementedError

"""The settings of the rendered data set. The command line shows them, with the text under a field as its help."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RenderConfig:
    """What to render."""

    clips: int = 300
    """How many; fights, collapses and clips without either take turns, with --tubes also videos of several actions."""
    seed: int = 0
    """Determines people, places and all that happens; another seed has other people in other places."""
    width: int = 160
    """Width of the videos in pixels (even)."""
    height: int = 120
    """Height of the videos in pixels (even)."""
    frames: int | None = None
    """Average length in frames, by default 48 (with --tubes 96); each up to a sixth (with --tubes a third) off."""
    fps: int = 16
    """Frames per second of the videos."""
    workers: int = 0
    """Processes to render with; 0 starts one per CPU core. The result does not depend on it."""
    tubes: bool = False
    """Render untrimmed videos of several people instead, with a box in every frame for each actor of an action."""

    @property
    def average_frames(self) -> int:
        """The average length of a clip or a video, in frames."""
        if self.frames is not None:
            return self.frames
        return 96 if self.tubes else 48

"""Who does what from when to when: the tubes of a video, from the windows in which a detector follows actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actdet.data.tubes import frame_times
from actdet.evaluation.tracks import ActorTrack, TrackLinker, VideoTracks, cut_tubes
from actdet.video.info import VideoInfo


@dataclass(frozen=True)
class FoundTube:
    """One action of one actor."""

    actor: int
    """Actors are numbered from 1, in the order in which they are first seen in the video."""
    action: str
    score: float
    """How sure the detector is of it, in [0, 1]."""
    start: float
    """When the first of its frames begins to show, in seconds from the video's first frame."""
    end: float
    """When the last of its frames gives way to the next one."""
    first_frame: int
    """The number of its first frame. It has all frames from there on."""
    boxes: np.ndarray
    """(n, 4) float32, x1 y1 x2 y2 in pixels of the video as displayed, in each of its frames."""

    def facts(self) -> dict[str, Any]:
        """Return it as JSON has it; boxes to a tenth of a pixel."""
        facts = dict(vars(self))
        facts["boxes"] = [[round(edge, 1) for edge in box] for box in self.boxes.tolist()]
        return facts


class ActorLinker:
    """Links the windows of a video, or their parts, one after the other, and cuts the tracks of actors into tubes.

    Args:
        video: The video.
        class_names: The classes, in the order of their numbers.
        threshold: The lowest score at which an action counts.
    """

    def __init__(self, video: VideoInfo, class_names: Sequence[str], threshold: float) -> None:
        self._video = video
        self._class_names = class_names
        self._threshold = threshold
        self._linker = TrackLinker()
        self._starts = frame_times(video)

    def add(self, part: VideoTracks) -> list[FoundTube]:
        """Add the next window, or the next part of a window, and return the tubes that have ended."""
        return self._tubes(self._linker.add(part))

    def finish(self) -> list[FoundTube]:
        """Return the tubes that have not ended before the video does."""
        return self._tubes(self._linker.finish())

    def _tubes(self, actors: Sequence[ActorTrack]) -> list[FoundTube]:
        return [tube for actor in actors for tube in self._tubes_of(actor)]

    def _tubes_of(self, actor: ActorTrack) -> list[FoundTube]:
        cut = cut_tubes(0, actor.track)
        found = []
        for row in np.flatnonzero(cut.scores >= self._threshold).tolist():
            inside = slice(cut.offsets[row], cut.offsets[row + 1])
            first = int(cut.first[row])
            last = int(cut.last[row])
            is_end = last + 1 == len(self._starts)
            found.append(
                FoundTube(
                    actor=actor.number + 1,
                    action=self._class_names[int(cut.labels[row])],
                    score=float(cut.scores[row]),
                    start=float(self._starts[first]),
                    end=self._video.seconds if is_end else float(self._starts[last + 1]),
                    first_frame=first,
                    boxes=cut.boxes[inside].astype(np.float32),
                )
            )
        return found

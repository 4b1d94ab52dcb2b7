"""Actions in one's own videos: a trained detector slid over a file, window by window, in constant memory.

    for window in Predictor("runs/demo/model.safetensors").windows("video.mp4"):
        print(window.start, window.end, window.action, window.score, window.box)

A clip of the training data was shown to the detector whole, so a window is as long as the median training clip.
A video of up to one and a half windows is one window; a longer one is cut into windows that overlap by half.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from actdet.checkpoints import load_detector
from actdet.data.augment import normalise
from actdet.data.video import VideoInfo, probe, sample_frames, stream_frames
from actdet.device import choose_device, choose_precision
from actdet.errors import ActdetError
from actdet.evaluation import predict_batch
from actdet.models.decision import THRESHOLD, decide
from actdet.pictures import Mark, annotate_video, class_colour

BATCH_SIZE = 4  # windows that go through the network together


@dataclass(frozen=True)
class Window:
    """What the detector says of one stretch of a video."""

    start: float
    """Seconds from the video's first frame."""
    end: float
    action: str | None
    """The window's action by the rule in `actdet.models.decision`, None for no action."""
    score: float
    """How sure the detector is of the likeliest action, whether it passed the threshold or not."""
    box: tuple[float, float, float, float] | None
    """x1, y1, x2, y2 in pixels of the video as displayed; None where there is no action."""


class Predictor:
    """A detector from a checkpoint, ready to look at video files.

    threshold: the least probability at which an action counts.
    Raises DataError where the checkpoint is not one, ActdetError for a threshold that is no probability.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        threshold: float = THRESHOLD,
        device: torch.device | str | None = None,
        precision: str = "auto",
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ActdetError(f"threshold is a probability, got {threshold}")
        self.device = choose_device() if device is None else torch.device(device)
        self.dtype, _ = choose_precision(precision, self.device)
        self.detector, self.about = load_detector(Path(checkpoint), self.device)
        self.detector.to(memory_format=torch.channels_last_3d)
        self.threshold = threshold

    def spans(self, video: VideoInfo) -> list[tuple[int, int]]:
        """The windows of a video, as (start, end) in ticks of its time base."""
        start, end = int(video.pts[0]), video.end
        length = max(round(self.about.clip_seconds / video.time_base), 1)
        if end - start <= length * 3 // 2:
            return [(start, end)]
        starts = range(start, end - length, max(length // 2, 1))
        return [*((s, s + length) for s in starts), (end - length, end)]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.detector.config.class_names

    def windows(self, video: str | os.PathLike[str] | VideoInfo) -> Iterator[Window]:
        """What the detector says of a video, by its path or probed, window by window, in order of time.

        Raises DataError where the file cannot be read; windows before a damaged place have come out by then.
        """
        video = video if isinstance(video, VideoInfo) else probe(video)
        spans = self.spans(video)
        clips = self._clips(video, spans)
        for first in range(0, len(spans), BATCH_SIZE):
            part = spans[first : first + BATCH_SIZE]
            pixels = torch.from_numpy(np.stack([next(clips) for _ in part])).to(self.device)
            yield from self._decide(video, part, pixels)

    def _clips(self, video: VideoInfo, spans: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        """uint8 (T, S, S, 3) of each window, decoding the file once and keeping the frames of open windows only."""
        config = self.detector.config
        wanted = [sample_frames(video, config.frames, start=start, end=end) for start, end in spans]
        frames = stream_frames(video, np.unique(np.concatenate(wanted)), (config.image_size, config.image_size))
        kept: dict[int, np.ndarray] = {}
        for indices in wanted:
            kept = {index: pixels for index, pixels in kept.items() if index >= indices[0]}
            while indices[-1] not in kept:
                index, pixels = next(frames)
                kept[index] = pixels
            yield np.stack([kept[index] for index in indices])

    def _decide(self, video: VideoInfo, spans: list[tuple[int, int]], pixels: torch.Tensor) -> Iterator[Window]:
        predictions = predict_batch(self.detector, normalise(pixels), self.dtype).final()
        decision = decide(*predictions, no_object_weight=self.about.loss.no_object_weight, threshold=self.threshold)
        names = self.class_names
        for (start, end), label, score, box in zip(spans, *(field.tolist() for field in decision), strict=True):
            action = names[label] if label < len(names) else None
            yield Window(
                start=float((start - int(video.pts[0])) * video.time_base),
                end=float((end - int(video.pts[0])) * video.time_base),
                action=action,
                score=score,
                box=pixel_box(box, video.width, video.height) if action else None,
            )


def annotate_prediction(video: VideoInfo, windows: Sequence[Window], class_names: Sequence[str], out: Path) -> None:
    """Write `video` to `out` (.mp4) with, on every frame, what the window whose middle is nearest said."""
    middles = np.array([(window.start + window.end) / 2 for window in windows])
    nearest = [int(np.abs(middles - float(t * video.time_base)).argmin()) for t in (video.pts - video.pts[0]).tolist()]
    marks = [_marks(window, video, class_names) for window in windows]
    annotate_video(video, [marks[window] for window in nearest], out)


def _marks(window: Window, video: VideoInfo, class_names: Sequence[str]) -> list[Mark]:
    if window.action is None or window.box is None:
        return []
    sides = (video.width, video.height, video.width, video.height)
    x1, y1, x2, y2 = (pixel / side for pixel, side in zip(window.box, sides, strict=True))
    colour = class_colour(class_names.index(window.action))
    return [Mark((x1, y1, x2, y2), f"{window.action} {window.score:.2f}", colour)]


def pixel_box(box: list[float], width: int, height: int) -> tuple[float, float, float, float]:
    """cxcywh in [0, 1] to x1, y1, x2, y2 in pixels, within the picture."""
    x, y, w, h = box
    sides = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    limits = (width, height, width, height)
    x1, y1, x2, y2 = (round(min(max(side, 0.0), limit), 1) for side, limit in zip(sides, limits, strict=True))
    return x1, y1, x2, y2

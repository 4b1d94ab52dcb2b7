"""Actions in one's own videos: a trained detector slid over a file, window by window, in constant memory.

    for window in Predictor("runs/demo/model.safetensors").windows("video.mp4"):
        print(window.start, window.end, window.action, window.score, window.box)

A clip of the training data was shown to the detector whole, so a window is as long as the median training clip.
A video of up to one and a half windows is one window; a longer one is cut into windows that overlap by half.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch

from actdet.checkpoints import load_detector
from actdet.data.ahead import ahead
from actdet.data.augment import normalise
from actdet.data.video import VideoInfo, probe, sample_frames, stream_frames
from actdet.device import choose_device, choose_precision, memory_for
from actdet.errors import ActdetError, DataError
from actdet.evaluation import predict_batch
from actdet.models.decision import THRESHOLD, decide
from actdet.pictures import Mark, annotate_video, class_colour, no_action_mark

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

    def windows(self, video: str | os.PathLike[str] | VideoInfo) -> Generator[Window, None, None]:
        """What the detector says of a video, by its path or probed, window by window, in order of time.

        A thread decodes ahead of the network; it ends with the last window, an error, or when the result is closed.
        Raises DataError where the file cannot be read; windows before a damaged place have come out by then. Raises
        ActdetError where there is too little memory.
        """
        video = video if isinstance(video, VideoInfo) else probe(video)
        spans, problem = self.spans(video), None
        with closing(self._clips(video, spans)) as clips:
            for first in range(0, len(spans), BATCH_SIZE):
                batch = []
                try:
                    for clip in islice(clips, BATCH_SIZE):
                        batch.append(clip)
                except DataError as error:
                    problem = error
                if batch:
                    with memory_for(f"windows of {' x '.join(map(str, batch[0].shape[:3]))}"):
                        pixels = torch.from_numpy(np.stack(batch)).to(self.device)
                        found = list(self._decide(video, spans[first : first + len(batch)], pixels))
                    yield from found
                if problem:
                    raise problem

    def _clips(self, video: VideoInfo, spans: list[tuple[int, int]]) -> Generator[np.ndarray, None, None]:
        """uint8 (T, S, S, 3) of each window: the file is decoded once, in a thread that runs one batch ahead.

        In memory are the frames of open windows and those decoded ahead.
        """
        config = self.detector.config
        size = (config.image_size, config.image_size)
        wanted = np.stack([sample_frames(video, config.frames, start=start, end=end) for start, end in spans])
        decoded = stream_frames(video, np.unique(wanted), size, threads=0)
        kept: dict[int, np.ndarray] = {}
        with closing(ahead(decoded, BATCH_SIZE * config.frames)) as frames:
            for row in wanted:
                indices = row.tolist()
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


def annotate_prediction(
    video: VideoInfo,
    windows: Sequence[Window],
    class_names: Sequence[str],
    out: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `video` to `out` (.mp4) with, on every frame, what the window whose middle is nearest said.

    `windows` are in order of time; `progress(done, total)` is called after each frame.
    """
    marks = [_marks(window, video, class_names) for window in windows]
    middles = [(window.start + window.end) / 2 for window in windows]
    borders = [(before + after) / 2 for before, after in pairwise(middles)]
    times = (float((int(t) - int(video.pts[0])) * video.time_base) for t in video.pts)
    annotate_video(video, (marks[bisect_left(borders, time)] for time in times), out, progress=progress)


def _marks(window: Window, video: VideoInfo, class_names: Sequence[str]) -> list[Mark]:
    if window.action is None or window.box is None:
        return [no_action_mark(window.score)]
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

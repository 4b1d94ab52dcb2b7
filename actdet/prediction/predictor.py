"""Actions in one's own videos: a trained detector slid over a file, window by window, in constant memory.

    for window in Predictor("runs/demo/model.safetensors").windows("video.mp4"):
        print(window.start, window.end, window.action, window.score, window.box)

A clip of the training data was shown to the detector whole, so a window is as long as the median training clip.
A video of up to one and a half windows is one window; a longer one is cut into windows that overlap by half.
Where no frame begins for longer than a window there is none, nor where frames are lost by damage: these are gaps.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch

from actdet.data.augment import normalise
from actdet.device import choose_device, choose_precision, memory_for
from actdet.errors import ActdetError, DataError
from actdet.evaluation.clips import predict_batch
from actdet.models.checkpoints import load_detector
from actdet.models.detr.decision import THRESHOLD, actions, decide
from actdet.pictures import TRUTH, Mark, annotate_video, class_colour, no_action_mark
from actdet.prediction.cuts import has_cut
from actdet.video.decoding import VideoInfo, probe, sample_frames, stream_past_damage
from actdet.video.prefetch import ahead

BATCH_SIZE = 4  # windows that go through the network together


@dataclass(frozen=True)
class FoundAction:
    """An action in a window."""

    action: str
    score: float
    """How sure the detector is of it, in [0, 1]."""
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the video as displayed."""


@dataclass(frozen=True)
class Window:
    """What the detector says of one stretch of a video."""

    start: float
    """Seconds from the video's first frame."""
    end: float
    action: str | None
    """The window's surest action by the rule in `actdet.models.detr.decision`, None for no action."""
    score: float
    """How sure the detector is of the likeliest action, whether it passed the threshold or not."""
    box: tuple[float, float, float, float] | None
    """x1, y1, x2, y2 in pixels of the video as displayed; None where there is no action."""
    actions: tuple[FoundAction, ...] = ()
    """All that was found, the surest first."""
    cut: bool = False
    """Whether the picture changes to another scene within: no training clip does, so the score is not to be trusted."""


@dataclass(frozen=True)
class Gap:
    """A stretch of a video in which there is nothing to look at."""

    start: float
    """Seconds from the video's first frame."""
    end: float
    damaged: bool
    """Whether frames are lost; otherwise none begins there, as when a clock was set or a camera paused."""


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
        length = self._length(video)
        spans: list[tuple[int, int]] = []
        for start, end in _stretches(video, length):
            if end - start <= length * 3 // 2:
                spans.append((start, end))
                continue
            starts = range(start, end - length, max(length // 2, 1))
            spans += [*((s, s + length) for s in starts), (end - length, end)]
        return spans

    def _length(self, video: VideoInfo) -> int:
        """Of a window, in ticks."""
        return max(round(self.about.clip_seconds / video.time_base), 1)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.detector.config.class_names

    def windows(self, video: str | os.PathLike[str] | VideoInfo) -> Generator[Window, None, None]:
        """What the detector says of a video, by its path or probed, window by window, in order of time.

        A thread decodes ahead of the network; it ends with the last window, an error, or when the result is closed.
        Raises DataError where the file cannot be read; of a damaged one after all windows of sound frames have come
        out. Raises ActdetError where there is too little memory.
        """
        video = video if isinstance(video, VideoInfo) else probe(video)
        damage = []
        with closing(self.findings(video)) as findings:
            for finding in findings:
                if isinstance(finding, Window):
                    yield finding
                elif finding.damaged:
                    damage.append(finding)
        if damage:
            raise damage_error(video, damage)

    def findings(self, video: VideoInfo) -> Generator[Window | Gap, None, None]:
        """As `windows`, and the gaps between them; damage is no error here, but a gap."""
        covered = skipped = int(video.pts[0])  # where the last window ends, and the last one that was left out
        lost: list[int] = []
        with closing(self._looked_at(video, self.spans(video), lost)) as looked_at:
            for (start, end), window in looked_at:
                if window is None:
                    skipped = end
                    continue
                yield from self._gaps(video, covered, skipped, lost, start)
                covered = max(covered, end)
                yield window
        yield from self._gaps(video, covered, skipped, lost, video.end)

    def _gaps(self, video: VideoInfo, covered: int, skipped: int, lost: list[int], until: int) -> Iterator[Gap]:
        """What lies between the last window, which ends at `covered`, and `until`: the next one, or the video's end.

        skipped: where the last window ends that was left out. lost: frames that are lost; those told of are removed.
        """
        longest = self._length(video)
        damaged: list[tuple[int, int]] = []
        while lost and video.pts[lost[0]] < until:
            count = next((n for n, (a, b) in enumerate(pairwise(lost), 1) if b > a + 1), len(lost))
            first, last = lost[0], lost[count - 1]
            del lost[:count]
            ends = int(video.pts[last + 1]) if last + 1 < len(video.pts) else video.end
            damaged.append((int(video.pts[first]), min(ends, int(video.pts[last]) + longest)))

        # Sound frames of windows that were left out are not looked at, either, unless another window has them.
        unseen = min(skipped, until)
        if unseen > covered:
            damaged.append((covered, unseen))

        damaged.sort()
        while damaged:
            start, end = damaged.pop(0)
            while damaged and damaged[0][0] <= end:
                end = max(end, damaged.pop(0)[1])
            yield Gap(_seconds(video, start), _seconds(video, end), damaged=True)
            covered = max(covered, end)
        if until > covered:
            yield Gap(_seconds(video, covered), _seconds(video, until), damaged=False)

    def _looked_at(
        self, video: VideoInfo, spans: list[tuple[int, int]], lost: list[int]
    ) -> Generator[tuple[tuple[int, int], Window | None], None, None]:
        """Each span with its window, None where a frame of it is lost; lost frames are added to `lost`."""
        before: np.ndarray | None = None
        window: Window | None = None
        with closing(self._clips(video, spans, lost)) as clips:
            for first in range(0, len(spans), BATCH_SIZE):
                batch = dict(zip(spans[first : first + BATCH_SIZE], islice(clips, BATCH_SIZE), strict=True))

                # A camera that froze, or one slower than the windows, shows several windows the same pictures.
                fresh: dict[tuple[int, int], np.ndarray] = {}
                for span, clip in batch.items():
                    if clip is not None and (before is None or not np.array_equal(before, clip)):
                        fresh[span] = before = clip
                found = self._windows_of(video, fresh)

                for span, clip in batch.items():
                    window = found.get(span, window)
                    if clip is None or window is None:
                        yield span, None
                    else:
                        yield span, replace(window, start=_seconds(video, span[0]), end=_seconds(video, span[1]))

    def _clips(
        self, video: VideoInfo, spans: list[tuple[int, int]], lost: list[int]
    ) -> Generator[np.ndarray | None, None, None]:
        """uint8 (T, S, S, 3) of each window: the file is decoded once, in a thread that runs one batch ahead.

        In memory are the frames of open windows and those decoded ahead. A window with a lost frame has no clip; lost
        frames are added to `lost`.
        """
        config = self.detector.config
        size = (config.image_size, config.image_size)
        wanted = np.stack([sample_frames(video, config.frames, start=start, end=end) for start, end in spans])
        decoded = stream_past_damage(video, np.unique(wanted), size, threads=0)
        kept: dict[int, np.ndarray] = {}
        reached = -1
        with closing(ahead(decoded, BATCH_SIZE * config.frames)) as frames:
            for row in wanted:
                indices = row.tolist()
                kept = {index: pixels for index, pixels in kept.items() if index >= indices[0]}
                while reached < indices[-1]:
                    reached, pixels = next(frames)
                    if pixels is None:
                        lost.append(reached)
                    else:
                        kept[reached] = pixels
                whole = kept.keys() >= set(indices)
                yield np.stack([kept[index] for index in indices]) if whole else None

    def _windows_of(self, video: VideoInfo, clips: dict[tuple[int, int], np.ndarray]) -> dict[tuple[int, int], Window]:
        """What the network says of clips (T, S, S, 3), by their spans."""
        if not clips:
            return {}
        shape = next(iter(clips.values())).shape[:3]
        with memory_for(f"windows of {' x '.join(map(str, shape))}"):
            return dict(zip(clips, self._decide(video, list(clips), np.stack(list(clips.values()))), strict=True))

    def _decide(self, video: VideoInfo, spans: list[tuple[int, int]], clips: np.ndarray) -> Iterator[Window]:
        pixels = torch.from_numpy(clips).to(self.device)
        logits, boxes = predict_batch(self.detector, normalise(pixels), self.dtype).final()
        rule = {"no_object_weight": self.about.loss.no_object_weight, "threshold": self.threshold}
        likeliest = decide(logits, boxes, **rule).score.tolist()
        answers = zip(spans, likeliest, actions(logits, boxes, **rule), clips, strict=True)
        for (start, end), score, found, clip in answers:
            said = tuple(
                FoundAction(self.class_names[action.label], action.score, _in_pixels(action.box, video))
                for action in found
            )
            yield Window(
                start=_seconds(video, start),
                end=_seconds(video, end),
                action=said[0].action if said else None,
                score=said[0].score if said else score,
                box=said[0].box if said else None,
                actions=said,
                cut=has_cut(clip),
            )


def _seconds(video: VideoInfo, ticks: int) -> float:
    return float((ticks - int(video.pts[0])) * video.time_base)


def _stretches(video: VideoInfo, longest: int) -> Iterator[tuple[int, int]]:
    """The parts of a video, as (start, end) in ticks, in which no frame shows for more than `longest` ticks.

    A frame that shows for longer ends its part, as if it showed as long as frames of this video usually do.
    """
    steps = np.diff(video.pts)
    usual = min(int(np.median(steps)), longest) if len(steps) else longest
    first = 0
    for last in (*np.flatnonzero(steps > longest).tolist(), len(video.pts) - 1):
        begins = int(video.pts[last])
        ends = int(video.pts[last + 1]) if last + 1 < len(video.pts) else video.end
        yield int(video.pts[first]), ends if ends - begins <= longest else begins + usual
        first = last + 1


def damage_error(video: VideoInfo, damage: Sequence[Gap]) -> DataError:
    """Says what of a damaged video was not looked at."""
    first, others = damage[0], len(damage) - 1
    more = f" and {others} more stretch{'es' * (others > 1)}" if others else ""
    what = f"is damaged: {first.start:.2f} to {first.end:.2f} s{more} could not be looked at"
    return DataError(video.path, f"{what}; copy or convert it again")


def annotate_prediction(
    video: VideoInfo,
    windows: Sequence[Window],
    class_names: Sequence[str],
    out: Path,
    *,
    gaps: Sequence[Gap] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Gap]:
    """Write `video` to `out` (.mp4) with, on every frame, what the window whose middle is nearest said.

    `windows`, of which there is at least one, and `gaps` are in order of time. `progress(done, total)` is called after
    each frame.

    Returns:
        What is lost by damage, for which still pictures stand.
    """
    marks = [_marks(window, video, class_names) for window in windows]
    middles = [(window.start + window.end) / 2 for window in windows]
    borders = [(before + after) / 2 for before, after in pairwise(middles)]
    starts = [gap.start for gap in gaps]

    def marks_at(time: float) -> list[Mark]:
        place = bisect_right(starts, time) - 1
        if place >= 0 and time < gaps[place].end:
            return [Mark(None, "not looked at", TRUTH)]
        return marks[bisect_left(borders, time)]

    times = [*(_seconds(video, int(t)) for t in video.pts), _seconds(video, video.end)]
    lost = annotate_video(video, map(marks_at, times[:-1]), out, past_damage=True, progress=progress)
    firsts = [frame for before, frame in pairwise([-2, *lost]) if frame > before + 1]
    lasts = [frame for frame, after in pairwise([*lost, len(times) + 1]) if after > frame + 1]
    return [Gap(times[first], times[last + 1], damaged=True) for first, last in zip(firsts, lasts, strict=True)]


def _marks(window: Window, video: VideoInfo, class_names: Sequence[str]) -> list[Mark]:
    if not window.actions:
        return [no_action_mark(window.score)]

    sides = (video.width, video.height, video.width, video.height)
    marks = []
    for found in window.actions:
        x1, y1, x2, y2 = (pixel / side for pixel, side in zip(found.box, sides, strict=True))
        colour = class_colour(class_names.index(found.action))
        marks.append(Mark((x1, y1, x2, y2), f"{found.action} {found.score:.2f}", colour))
    return marks


def _in_pixels(box: tuple[float, float, float, float], video: VideoInfo) -> tuple[float, float, float, float]:
    """Shares of the picture in pixels of the video as displayed."""
    x1, y1, x2, y2 = box
    width, height = video.width, video.height
    return round(x1 * width, 1), round(y1 * height, 1), round(x2 * width, 1), round(y2 * height, 1)

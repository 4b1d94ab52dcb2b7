"""Actions in one's own videos: a trained detector slides over a file, window by window, in constant memory.

    for window in Predictor("runs/demo/model.safetensors").windows("video.mp4"):
        print(window.start, window.end, window.action, window.score, window.box)

In training the detector saw whole clips, so a window is as long as the median training clip. A video of up to one and a
half windows is one window; a longer one is cut into windows that overlap by half. Some stretches have no window: those
in which no frame begins for longer than a window lasts, and those whose frames are lost by damage. They are gaps.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, pairwise, starmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from actdet.bounds import check_bounds
from actdet.data.augment import normalize
from actdet.detections import THRESHOLD, Action
from actdet.device import choose_device, choose_precision, lay_channels_last, memory_for
from actdet.errors import DataError
from actdet.evaluation.clips import check_finite, predict_batch
from actdet.evaluation.tracks import ClipTracks, VideoTracks, fill_window, take_clip
from actdet.models.checkpoints import load_model
from actdet.pictures import CUT, NOT_LOOKED_AT, Mark, annotate_video, class_color, no_action_mark
from actdet.prediction.actors import FoundTube
from actdet.video.cuts import has_cut
from actdet.video.damage import stream_past_damage
from actdet.video.info import VideoInfo, probe
from actdet.video.prefetch import prefetch
from actdet.video.sampling import sample_frames

# So many windows go through the network together.
BATCH_SIZE = 4


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
    """Seconds from the video's first frame."""
    action: str | None
    """The window's surest action, by the rule of the detector's family; None for no action."""
    score: float
    """How sure the detector is of the most likely action, whether it passed the threshold or not."""
    box: tuple[float, float, float, float] | None
    """x1, y1, x2, y2 in pixels of the video as displayed; None if there is no action."""
    actions: tuple[FoundAction, ...] = ()
    """All actions that were found, the surest first."""
    cut: bool = False
    """Whether the picture changes to another scene in the window. No training clip does, so do not trust the score."""
    tracks: tuple[VideoTracks, ...] = field(default=(), repr=False, compare=False)
    """Who is where in each frame of the window, and what they do, if the detector follows actors: through the whole
    window, or through parts of it, in order of time, each with actors of its own."""


@dataclass(frozen=True)
class Gap:
    """A stretch of a video that no window covers."""

    start: float
    """Seconds from the video's first frame."""
    end: float
    """Seconds from the video's first frame."""
    damaged: bool
    """Whether frames are lost. Otherwise no frame begins there, because a clock was set or a camera paused."""


class Predictor:
    """A detector from a checkpoint, ready to look at video files.

    Args:
        checkpoint: The model.safetensors (or last.safetensors) of a training run.
        threshold: An action counts if its probability is at least this.
        device: Where the network runs: auto (the first GPU if there is one), cpu, cuda, cuda:N, or a torch.device.
        precision: Arithmetic of the network: auto, fp32, bf16 or fp16.

    Raises:
        DataError: If the file is not a checkpoint.
        ActdetError: If the threshold is not a probability, or the device or the precision is not available.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        threshold: float = THRESHOLD,
        device: torch.device | str = "auto",
        precision: str = "auto",
    ) -> None:
        check_bounds({"threshold": threshold})
        self.device = choose_device(device) if isinstance(device, str) else device
        self.dtype, _ = choose_precision(precision, self.device)
        self.detector, self.info = load_model(Path(checkpoint), self.device)
        lay_channels_last(self.detector)
        self.threshold = threshold

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the action classes, in the order of their numbers."""
        return self.detector.config.class_names

    def spans(self, video: VideoInfo) -> list[tuple[int, int]]:
        """The windows of a video, as (start, end) in ticks of its time base, in order."""
        length = self._length(video)
        spans: list[tuple[int, int]] = []
        for start, end in _stretches(video, length):
            if end - start <= length * 3 // 2:
                spans.append((start, end))
                continue
            starts = range(start, end - length, max(length // 2, 1))
            spans += [(begin, begin + length) for begin in starts]
            # The last window ends with the stretch, so it may overlap the one before it by more than half.
            spans.append((end - length, end))
        return spans

    def _length(self, video: VideoInfo) -> int:
        """The length of a window in ticks of the video's time base."""
        return max(round(self.info.clip_seconds / video.time_base), 1)

    def windows(self, video: str | os.PathLike[str] | VideoInfo) -> Generator[Window, None, None]:
        """What the detector says of a video, window by window, in order of time.

        A thread decodes ahead of the network; it ends with the last window, with an error, or when the generator is
        closed.

        Args:
            video: The path of a video, or what `actdet.video.info.probe` returned for it.

        Yields:
            The windows. Of a damaged video all windows whose frames are good come first, then the error.

        Raises:
            DataError: If the file cannot be read, or is damaged.
            ActdetError: If there is too little memory, or the detector's output is not finite.
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
        """The windows of a video and the gaps between them, in order of time; damage is a gap here, not an error."""
        # Where the last window ends, and where the last one ends that was left out because of lost frames.
        covered = int(video.pts[0])
        skipped = int(video.pts[0])

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
        """The gaps between the last window and the next one, or the video's end. All times are in ticks.

        Args:
            video: The video.
            covered: Where the last window ends.
            skipped: Where the last window ends that was left out because of lost frames.
            lost: Numbers of the frames known to be lost, ascending; those of the gaps found here are removed.
            until: Where the next window begins, or the video ends.
        """
        runs = [(first, last) for first, last in _runs(lost) if video.pts[first] < until]
        del lost[: sum(last - first + 1 for first, last in runs)]
        longest = self._length(video)
        damaged = [
            (int(video.pts[first]), min(_frame_end(video, last), int(video.pts[last]) + longest))
            for first, last in runs
        ]

        # A window that was left out has good frames, too. If no other window covers them, they belong to the gap.
        unseen = min(skipped, until)
        if unseen > covered:
            damaged.append((covered, unseen))

        for start, end in _merged(damaged):
            yield Gap(_seconds(video, start), _seconds(video, end), damaged=True)
            covered = max(covered, end)
        if until > covered:
            yield Gap(_seconds(video, covered), _seconds(video, until), damaged=False)

    def _looked_at(
        self, video: VideoInfo, spans: list[tuple[int, int]], lost: list[int]
    ) -> Generator[tuple[tuple[int, int], Window | None], None, None]:
        """Each span with its window, or with None if a frame of it is lost; lost frames are appended to `lost`."""
        before: np.ndarray | None = None
        answer: _Answer | None = None
        with closing(self._clips(video, spans, lost)) as clips:
            for first in range(0, len(spans), BATCH_SIZE):
                batch = dict(zip(spans[first : first + BATCH_SIZE], islice(clips, BATCH_SIZE), strict=True))

                # A frozen camera, or one slower than the windows, shows several windows the same pictures: they get
                # the answer of the first one without another run of the network.
                fresh: dict[tuple[int, int], np.ndarray] = {}
                for span, clip in batch.items():
                    if clip is not None and (before is None or not np.array_equal(before, clip)):
                        fresh[span] = clip
                        before = clip
                found = self._answers(fresh)

                for span, clip in batch.items():
                    answer = found.get(span, answer)
                    if clip is None or answer is None:
                        yield span, None
                    else:
                        yield span, self._window(video, span, answer)

    def _clips(
        self, video: VideoInfo, spans: list[tuple[int, int]], lost: list[int]
    ) -> Generator[np.ndarray | None, None, None]:
        """The clip of each window, (T, S, S, 3) uint8, or None if one of its frames is lost.

        The file is decoded once, in a thread that is one batch ahead. Only the frames of the current window and those
        decoded ahead are in memory. Lost frames are appended to `lost`.
        """
        config = self.detector.config
        size = (config.image_size, config.image_size)
        wanted = np.stack([sample_frames(video, config.frames, start=start, end=end) for start, end in spans])
        decoded = stream_past_damage(video, np.unique(wanted), size, threads=0)

        kept: dict[int, np.ndarray] = {}
        reached = -1
        with closing(prefetch(decoded, BATCH_SIZE * config.frames)) as frames:
            for row in wanted:
                indices = row.tolist()
                kept = {index: pixels for index, pixels in kept.items() if index >= indices[0]}
                while reached < indices[-1]:
                    reached, pixels = next(frames)
                    if pixels is None:
                        lost.append(reached)
                    else:
                        kept[reached] = pixels

                is_whole = kept.keys() >= set(indices)
                yield np.stack([kept[index] for index in indices]) if is_whole else None

    def _answers(self, clips: dict[tuple[int, int], np.ndarray]) -> dict[tuple[int, int], _Answer]:
        """What the network says of clips, (T, S, S, 3) uint8 each, by their spans."""
        if not clips:
            return {}
        shape = next(iter(clips.values())).shape[:3]
        with memory_for(f"windows of {' x '.join(map(str, shape))}"):
            return dict(zip(clips, self._decide(np.stack(list(clips.values()))), strict=True))

    def _decide(self, clips: np.ndarray) -> Iterator[_Answer]:
        """What the network says of clips (B, T, S, S, 3) uint8."""
        pixels = torch.from_numpy(clips).to(self.device)
        outputs = predict_batch(self.detector, normalize(pixels), self.dtype)
        check_finite(outputs)
        decision, found, tracks = self.detector.detections(outputs, self.info.loss, threshold=self.threshold)
        tracks = [part._replace(scores=part.scores.float().cpu(), boxes=part.boxes.float().cpu()) for part in tracks]
        for row, (score, actions, clip) in enumerate(zip(decision.score.tolist(), found, clips, strict=True)):
            yield _Answer(score, actions, has_cut(clip), take_clip(tracks, row))

    def _window(self, video: VideoInfo, span: tuple[int, int], answer: _Answer) -> Window:
        """The answer to a clip, as that to the span of the video which it shows."""
        found = tuple(
            FoundAction(self.class_names[action.label], action.score, _in_pixels(action.box, video))
            for action in answer.actions
        )
        return Window(
            start=_seconds(video, span[0]),
            end=_seconds(video, span[1]),
            action=found[0].action if found else None,
            score=found[0].score if found else answer.score,
            box=found[0].box if found else None,
            actions=found,
            cut=answer.cut,
            tracks=self._every_frame(video, span, answer.tracks) if answer.tracks else (),
        )

    def _every_frame(
        self, video: VideoInfo, span: tuple[int, int], tracks: Sequence[ClipTracks]
    ) -> tuple[VideoTracks, ...]:
        """What the network says of a clip, in all frames that begin to show in its span, and the one before them."""
        seen = sample_frames(video, self.detector.config.frames, start=span[0], end=span[1])
        stop = int(np.searchsorted(video.pts, span[1]))
        first = min(int(np.searchsorted(video.pts, span[0])), int(seen[0]))
        size = (video.width, video.height)
        return fill_window(range(first, stop), seen, tracks, video.pts, size)


class _Answer(NamedTuple):
    """What the network says of a clip."""

    score: float
    """Of the most likely action."""
    actions: tuple[Action, ...]
    cut: bool
    """Whether the picture changes to another scene in it."""
    tracks: tuple[ClipTracks, ...]


def _seconds(video: VideoInfo, ticks: int) -> float:
    """Seconds from the video's first frame to a time in ticks."""
    return float((ticks - int(video.pts[0])) * video.time_base)


def _frame_end(video: VideoInfo, frame: int) -> int:
    """When frame number `frame` gives way to the next one, in ticks."""
    return int(video.pts[frame + 1]) if frame + 1 < len(video.pts) else video.end


def _stretches(video: VideoInfo, longest: int) -> Iterator[tuple[int, int]]:
    """The parts of a video, as (start, end) in ticks, in which no frame is shown for more than `longest` ticks.

    A frame that is shown for longer ends its part, as if it were shown for the usual time of this video's frames.
    """
    steps = np.diff(video.pts)
    usual = min(int(np.median(steps)), longest) if len(steps) else longest
    first = 0
    for last in (*np.flatnonzero(steps > longest).tolist(), len(video.pts) - 1):
        begins = int(video.pts[last])
        ends = _frame_end(video, last)
        yield int(video.pts[first]), ends if ends - begins <= longest else begins + usual
        first = last + 1


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The (first, last) of each run of consecutive integers among ascending `numbers`: 2, 3, 7 gives (2, 3), (7, 7)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The fewest (start, end) that cover the same as `spans`, in order."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def damage_error(video: VideoInfo, damage: Sequence[Gap]) -> DataError:
    """The error that says which parts of a damaged video could not be looked at; `damage` has at least one."""
    others = len(damage) - 1
    more = ""
    if others == 1:
        more = " and one more stretch"
    elif others > 1:
        more = f" and {others} more stretches"
    where = f"{damage[0].start:.2f} to {damage[0].end:.2f} s{more}"
    return DataError(video.path, f"is damaged: {where} could not be looked at; copy or convert the file again")


def annotate_prediction(
    video: VideoInfo,
    windows: Sequence[Window],
    class_names: Sequence[str],
    out: Path,
    *,
    tubes: Sequence[FoundTube] | None = None,
    gaps: Sequence[Gap] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Gap]:
    """Write `video` to `out` with the answer of the nearest window on every frame.

    Args:
        video: The video.
        windows: One or more windows, in order of time. A frame shows the answer of the window whose middle is nearest.
        class_names: The classes, in the order of their numbers, which give the colors.
        out: Path of the MP4 file.
        tubes: If the detector follows actors, what it has found: then each frame shows the boxes in it, and which actor
            they are of, in place of the windows' answers.
        gaps: Stretches whose frames are marked as not looked at, in order of time.
        progress: Called with (frames done, frames in all) after each frame.

    Returns:
        The stretches that are lost by damage and shown as still pictures.
    """
    marks = [_marks(window, video, class_names) for window in windows]
    of_frames = None if tubes is None else _tube_marks(tubes, video, class_names)
    middles = [(window.start + window.end) / 2 for window in windows]
    borders = [(before + after) / 2 for before, after in pairwise(middles)]
    starts = [gap.start for gap in gaps]

    def marks_at(frame: int, time: float) -> list[Mark]:
        place = bisect_right(starts, time) - 1
        if place >= 0 and time < gaps[place].end:
            return [NOT_LOOKED_AT]
        nearest = bisect_left(borders, time)
        if of_frames is not None:
            cut = [CUT] if windows[nearest].cut else []
            return cut + of_frames.get(frame, [])
        return marks[nearest]

    times = [_seconds(video, int(ticks)) for ticks in video.pts]
    lost = annotate_video(video, starmap(marks_at, enumerate(times)), out, past_damage=True, progress=progress)
    return [Gap(times[first], _seconds(video, _frame_end(video, last)), damaged=True) for first, last in _runs(lost)]


def _marks(window: Window, video: VideoInfo, class_names: Sequence[str]) -> list[Mark]:
    """The marks on the frames of a window: a box for each of its actions, or a note that there is none."""
    marks = [CUT] if window.cut else []
    if not window.actions:
        marks.append(no_action_mark(window.score))
    for found in window.actions:
        x1, y1, x2, y2 = found.box
        box = (x1 / video.width, y1 / video.height, x2 / video.width, y2 / video.height)
        color = class_color(class_names.index(found.action))
        marks.append(Mark(box, f"{found.action} {found.score:.2f}", color))
    return marks


def _tube_marks(tubes: Sequence[FoundTube], video: VideoInfo, class_names: Sequence[str]) -> dict[int, list[Mark]]:
    """The marks on each frame in which an actor does something, by the frame's number."""
    marks: dict[int, list[Mark]] = {}
    sides = (video.width, video.height, video.width, video.height)
    for tube in tubes:
        label = f"{tube.actor}: {tube.action} {tube.score:.2f}"
        color = class_color(class_names.index(tube.action))
        for frame, (x1, y1, x2, y2) in enumerate((tube.boxes / sides).tolist(), start=tube.first_frame):
            marks.setdefault(frame, []).append(Mark((x1, y1, x2, y2), label, color))
    return marks


def _in_pixels(box: tuple[float, float, float, float], video: VideoInfo) -> tuple[float, float, float, float]:
    """A box in shares of the picture as one in pixels of the video as displayed, to a tenth of a pixel."""
    x1, y1, x2, y2 = box
    width = video.width
    height = video.height
    return round(x1 * width, 1), round(y1 * height, 1), round(x2 * width, 1), round(y2 * height, 1)

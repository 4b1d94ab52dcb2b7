"""From what a network says of a few frames of each window to tubes in every frame of a video.

    network's tracks of a window, or of parts of it -> every frame of it (`fill_window`)
    -> linked over parts and windows (`TrackLinker`)
    -> cut into tubes, each with a class, a start and an end (`cut_tubes`)

A track is one actor, whatever he does; a tube is one action of one actor. Boxes are x1 y1 x2 y2 in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from actdet.data.clips import Clip
from actdet.evaluation.arrays import FrameBoxes, TubeBoxes, join_tubes, to_offsets
from actdet.evaluation.boxes import box_iou
from actdet.models.family import Tracks

# A track in which no action ever has this probability is of nobody, and is left out.
_LEAST_SCORE = 0.05

# Boxes of less probable actions change no figure.
_LEAST_BOX_SCORE = 0.01

# An action goes on after so many frames in which it is not seen, as a tube of ACT does.
_LONGEST_GAP = 5

# Tracks of two windows, or parts of windows, are of one actor if their boxes overlap by this mean IoU.
_SAME_ACTOR = 0.3


@dataclass(frozen=True)
class VideoTracks:
    """S tracks over F frames of a video."""

    frames: np.ndarray
    """(F,) int64, consecutive numbers of frames."""
    scores: np.ndarray
    """(S, F, C) float32, the probability that an actor does each action."""
    boxes: np.ndarray
    """(S, F, 4) float32."""

    def take(self, tracks: np.ndarray | list[int]) -> VideoTracks:
        """Select tracks, by index or by mask."""
        return VideoTracks(self.frames, self.scores[tracks], self.boxes[tracks])

    def between(self, first: int, stop: int) -> VideoTracks:
        """Select the frames from `first` to `stop`, without `stop`, all of which it must have."""
        inside = slice(first - int(self.frames[0]), stop - int(self.frames[0]))
        return VideoTracks(self.frames[inside], self.scores[:, inside], self.boxes[:, inside])


class ClipTracks(NamedTuple):
    """Who is where in K neighboring ones of the T frames of a clip that the network saw, and what they do."""

    scores: np.ndarray
    """(S, K, C), the probability that an actor does each action."""
    boxes: np.ndarray
    """(S, K, 4), as shares of the picture's sides."""
    first: int
    """Which of the T frames is the first of the K."""


def fill_frames(
    frames: range, seen: np.ndarray, scores: np.ndarray, boxes: np.ndarray, pts: np.ndarray, size: tuple[int, int]
) -> VideoTracks:
    """Interpolate what a network says of some frames to all frames between them, linearly in time.

    Frames before the first one seen are as that one, and those after the last one as that one.

    Args:
        frames: All frames of the window.
        seen: (T,) int64, which frames the network saw, in ascending order; they may repeat.
        scores: (S, T, C).
        boxes: (S, T, 4), as shares of the picture's sides.
        pts: (frames of the video,) int64, when each frame begins to show.
        size: Width and height of the picture in pixels.

    Returns:
        The tracks in which some action is probable enough to be of use.
    """
    seen, first = np.unique(seen, return_index=True)
    numbers = np.arange(frames.start, frames.stop)
    after = np.clip(np.searchsorted(seen, numbers), 1, max(len(seen) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(seen) - 1)
    span = np.maximum(pts[seen[after]] - pts[seen[before]], 1)
    share = np.clip((pts[numbers] - pts[seen[before]]) / span, 0, 1)[:, None].astype(np.float32)

    used = scores.max((1, 2)) >= _LEAST_SCORE
    scores = scores[used][:, first]
    boxes = boxes[used][:, first] * np.array([*size, *size], np.float32)
    return VideoTracks(
        numbers,
        scores[:, before] * (1 - share) + scores[:, after] * share,
        boxes[:, before] * (1 - share) + boxes[:, after] * share,
    )


def fill_window(
    frames: range, seen: np.ndarray, parts: Sequence[ClipTracks], pts: np.ndarray, size: tuple[int, int]
) -> tuple[VideoTracks, ...]:
    """Interpolate what a network says of parts of a window to all frames of the window, as `fill_frames` does.

    A part has all frames from its first one seen to its last one. If the next part begins later than that, it also has
    those until there, for nothing else is said of them; so the first part has those from the window's beginning, and
    the last part those to its end.

    Args:
        frames: All frames of the window.
        seen: (T,) int64, which frames the network saw, in ascending order; they may repeat.
        parts: What it says of some of them, in order of time. One part may be all there is.
        pts: (frames of the video,) int64, when each frame begins to show.
        size: Width and height of the picture in pixels.

    Returns:
        The tracks of each part, in their order. Together they have every frame of the window.
    """
    of_parts = [seen[part.first : part.first + part.scores.shape[1]] for part in parts]
    starts = [frames.start, *(int(own[0]) for own in of_parts[1:])]
    stops = [max(int(own[-1]) + 1, start) for own, start in zip(of_parts, starts[1:], strict=False)]
    stops.append(frames.stop)
    return tuple(
        fill_frames(range(start, stop), own, part.scores, part.boxes, pts, size)
        for start, stop, own, part in zip(starts, stops, of_parts, parts, strict=True)
    )


def take_clip(tracks: Sequence[Tracks], row: int) -> tuple[ClipTracks, ...]:
    """Select one clip.

    Args:
        tracks: What a network says of several clips, or of parts of them, on the CPU, in float32.
        row: Which of the clips it is.
    """
    return tuple(ClipTracks(part.scores[row].numpy(), part.boxes[row].numpy(), part.first) for part in tracks)


def tracks_of_clip(clip: Clip, tracks: Sequence[Tracks], row: int, count: int) -> tuple[VideoTracks, ...]:
    """Return what a network says of a clip in each of its frames, from its unchanged sample.

    Args:
        clip: The clip.
        tracks: Of several clips, or of parts of them, on the CPU, in float32.
        row: Which of them it is.
        count: T, how many frames of a clip the network sees.
    """
    size = (clip.video.width, clip.video.height)
    return fill_window(clip.frames, clip.sample(count), take_clip(tracks, row), clip.video.pts, size)


class ActorTrack(NamedTuple):
    """The track of one actor."""

    number: int
    """Actors are numbered from 0, in the order in which they are first seen."""
    track: VideoTracks
    """A table of one track."""


class TrackLinker:
    """Links the tracks of one video, window by window or part by part, without ever looking ahead.

    A track of the next part goes on with the one that it overlaps most, by the mean IoU in the frames of both, or, if
    the one begins where the other ends, of the last box and the first one; the sum over all pairs is the largest that
    can be. In the frames of both, it moves from what the one says to what the other says.

    If windows overlap, the parts of a window may end before those of the window before it. A track ends when a part
    that sees at least its last frame does not go on with it.
    """

    def __init__(self) -> None:
        self._open: list[ActorTrack] = []
        self._begun = 0

    def add(self, part: VideoTracks) -> list[ActorTrack]:
        """Add the next window, or the next part of a window.

        Parts come in order of time, and all parts of a window before those of the next one.

        Returns:
            The tracks that have ended.
        """
        # This import takes a while, and most videos have no second window.
        from scipy.optimize import linear_sum_assignment

        new = [part.take([row]) for row in range(len(part.scores))]
        overlap = np.array([[_overlap(old.track, each) for each in new] for old in self._open])
        overlap = overlap.reshape(len(self._open), len(new))
        pairs = zip(*linear_sum_assignment(np.where(overlap >= _SAME_ACTOR, overlap, 0.0), maximize=True), strict=True)
        continued = {int(left): int(right) for left, right in pairs if overlap[left, right] >= _SAME_ACTOR}

        others = [old for number, old in enumerate(self._open) if number not in continued]
        closed = [old for old in others if old.track.frames[-1] <= part.frames[-1]]
        waiting = [old for old in others if old.track.frames[-1] > part.frames[-1]]
        taken = set(continued.values())
        self._open = waiting + [
            ActorTrack(self._open[left].number, _join(self._open[left].track, new[right]))
            for left, right in continued.items()
        ]
        for number, each in enumerate(new):
            if number not in taken:
                self._open.append(ActorTrack(self._begun, each))
                self._begun += 1
        return closed

    def finish(self) -> list[ActorTrack]:
        """Return the tracks that are still open."""
        closed = self._open
        self._open = []
        return closed


def link_tracks(parts: Iterable[VideoTracks]) -> list[VideoTracks]:
    """Link the windows of one video, or the parts of its windows, in order; each track is a table of one."""
    linker = TrackLinker()
    closed = []
    for part in parts:
        closed += linker.add(part)
    return [actor.track for actor in closed + linker.finish()]


def _common(old: VideoTracks, new: VideoTracks) -> tuple[int, int]:
    """The first frame that both have and the end of those; the end comes first if there are frames between them."""
    return max(int(old.frames[0]), int(new.frames[0])), min(int(old.frames[-1]), int(new.frames[-1])) + 1


def _overlap(old: VideoTracks, new: VideoTracks) -> float:
    """The mean IoU of two tracks, each a table of one; 0 if there are frames between them."""
    first, stop = _common(old, new)
    if first > stop:
        return 0.0
    if first < stop:
        both = (old.between(first, stop), new.between(first, stop))
    elif old.frames[0] < new.frames[0]:
        both = (old.between(stop - 1, stop), new.between(first, first + 1))
    else:
        both = (old.between(first, first + 1), new.between(stop - 1, stop))
    return float(box_iou(both[0].boxes[0], both[1].boxes[0], inclusive=False).mean())


def _join(old: VideoTracks, new: VideoTracks) -> VideoTracks:
    """Make one track of two."""
    first, stop = _common(old, new)
    before = old if old.frames[0] <= new.frames[0] else new
    after = old if old.frames[-1] > new.frames[-1] else new

    # The weight of the new one in the frames of both is small beside frames that only the old one has, so that boxes do
    # not jump there.
    rising = ((np.arange(stop - first) + 1) / (stop - first + 1)).astype(np.float32)[:, None]
    share = np.ones_like(rising)
    if before is old:
        share = rising
    if after is old:
        share = np.minimum(share, rising[::-1])
    one = old.between(first, stop)
    other = new.between(first, stop)
    both = VideoTracks(
        one.frames,
        one.scores * (1 - share) + other.scores * share,
        one.boxes * (1 - share) + other.boxes * share,
    )

    pieces = [
        before.between(int(before.frames[0]), first),
        both,
        after.between(stop, int(after.frames[-1]) + 1),
    ]
    return VideoTracks(
        np.concatenate([piece.frames for piece in pieces]),
        np.concatenate([piece.scores for piece in pieces], 1),
        np.concatenate([piece.boxes for piece in pieces], 1),
    )


def cut_tubes(video: int, tracks: VideoTracks) -> TubeBoxes:
    """Cut tracks into tubes: where each action of each actor begins and ends.

    An action lasts for the frames about a peak of its probability in which that is at least half of the peak. As long
    as that is for `_LONGEST_GAP` frames less, for instance since somebody is in the way, the action goes on. Its score
    is the mean probability in its time. A track may hold several actions, also of one class, one after the other.

    Args:
        video: The number of the video.
        tracks: Its tracks.
    """
    tubes = []
    for scores, boxes in zip(tracks.scores, tracks.boxes, strict=True):
        for label in np.flatnonzero(scores.max(0) >= _LEAST_SCORE).tolist():
            for first, stop in _peaks(scores[:, label]):
                tubes.append(
                    TubeBoxes(
                        np.array([video]),
                        np.array([label]),
                        np.array([scores[first:stop, label].mean(dtype=np.float64)]),
                        to_offsets(np.array([stop - first])),
                        tracks.frames[first:stop],
                        boxes[first:stop],
                    )
                )
    return join_tubes(tubes)


def _peaks(scores: np.ndarray) -> list[tuple[int, int]]:
    """Return the first and the end of each run of frames about a peak of `scores`, (F,)."""
    left = scores.copy()
    taken = np.zeros(len(scores), bool)
    found = []
    while left.max() >= _LEAST_SCORE:
        peak = int(left.argmax())
        height = left[peak]

        # An action does not go on behind the frames about a higher peak.
        inside = np.flatnonzero(left >= height / 2)
        is_parted = (np.diff(inside) > _LONGEST_GAP + 1) | np.diff(taken.cumsum()[inside]).astype(bool)
        groups = np.split(inside, np.flatnonzero(is_parted) + 1)
        about = next(group for group in groups if group[-1] >= peak)
        first = int(about[0])
        stop = int(about[-1]) + 1

        # Next to a higher peak that was found before, this is no peak but the slope of that one.
        beside = [scores[edge] for edge in (first - 1, stop) if 0 <= edge < len(scores)]
        if max(beside, default=0) <= height:
            found.append((first, stop))
        left[first:stop] = 0
        taken[first:stop] = True
    return found


def frame_boxes(video: int, tracks: VideoTracks) -> FrameBoxes:
    """Return the boxes of tracks as answers of single frames, for each action that is probable enough to be of use.

    Args:
        video: The number of the video.
        tracks: Its tracks.
    """
    row, frame, label = np.nonzero(tracks.scores >= _LEAST_BOX_SCORE)
    return FrameBoxes(
        np.full(len(row), video, np.int64),
        tracks.frames[frame],
        label.astype(np.int64),
        tracks.boxes[row, frame],
        tracks.scores[row, frame, label],
    )

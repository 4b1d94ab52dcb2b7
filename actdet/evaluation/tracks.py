"""From what a network says of a few frames of each window to tubes in every frame of a video.

    network's tracks of a window -> every frame of it (`fill_frames`) -> linked over windows (`TrackLinker`)
    -> cut into tubes, each with a class, a start and an end (`cut_tubes`)

A track is one actor, whatever he does; a tube is one action of one actor. Boxes are x1 y1 x2 y2 in pixels.
"""

from __future__ import annotations

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

# Tracks of two windows are of one actor if their boxes overlap by this mean IoU.
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


def tracks_of_clip(clip: Clip, tracks: Tracks, row: int) -> VideoTracks:
    """Return what a network says of a clip in each of its frames, from its unchanged sample.

    Args:
        clip: The clip.
        tracks: Of several clips, on the CPU.
        row: Which of them it is.
    """
    return fill_frames(
        clip.frames,
        clip.sample(tracks.boxes.shape[2]),
        tracks.scores[row].numpy(),
        tracks.boxes[row].numpy(),
        clip.video.pts,
        (clip.video.width, clip.video.height),
    )


class ActorTrack(NamedTuple):
    """The track of one actor."""

    number: int
    """Actors are numbered from 0, in the order in which they are first seen."""
    track: VideoTracks
    """A table of one track."""


class TrackLinker:
    """Links the tracks of one video, window by window, without ever looking ahead.

    A track of the next window goes on with the one that it overlaps most, by the mean IoU in the frames of both, or, if
    the windows do not overlap, of the last box and the first one; the sum over all pairs is the largest that can be.
    In the frames of both, it moves from what the one says to what the other says.
    """

    def __init__(self) -> None:
        self._open: list[ActorTrack] = []
        self._begun = 0

    def add(self, window: VideoTracks) -> list[ActorTrack]:
        """Add the next window, which ends later than those before.

        Returns:
            The tracks that have ended.
        """
        # This import takes a while, and most videos have no second window.
        from scipy.optimize import linear_sum_assignment

        new = [window.take([row]) for row in range(len(window.scores))]
        overlap = np.array([[_overlap(old.track, each) for each in new] for old in self._open])
        overlap = overlap.reshape(len(self._open), len(new))
        pairs = zip(*linear_sum_assignment(np.where(overlap >= _SAME_ACTOR, overlap, 0.0), maximize=True), strict=True)
        continued = {int(left): int(right) for left, right in pairs if overlap[left, right] >= _SAME_ACTOR}

        closed = [old for number, old in enumerate(self._open) if number not in continued]
        taken = set(continued.values())
        self._open = [
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


def _common(old: VideoTracks, new: VideoTracks) -> int:
    """How many frames the end of one and the beginning of the other have in common."""
    return max(min(int(old.frames[-1]) + 1 - int(new.frames[0]), len(old.frames), len(new.frames)), 0)


def _overlap(old: VideoTracks, new: VideoTracks) -> float:
    """The mean IoU of two tracks, each a table of one; 0 if there are frames between them."""
    if new.frames[0] > old.frames[-1] + 1:
        return 0.0
    common = _common(old, new)
    if not common:
        return float(box_iou(old.boxes[0, -1:], new.boxes[0, :1], inclusive=False)[0])
    return float(box_iou(old.boxes[0, -common:], new.boxes[0, :common], inclusive=False).mean())


def _join(old: VideoTracks, new: VideoTracks) -> VideoTracks:
    """Make one track of two."""
    common = _common(old, new)
    share = ((np.arange(common) + 1) / (common + 1)).astype(np.float32)[:, None]
    kept = len(old.frames) - common

    def blend(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        mixed = first[:, kept:] * (1 - share) + second[:, :common] * share
        return np.concatenate([first[:, :kept], mixed, second[:, common:]], 1)

    frames = np.concatenate([old.frames[:kept], new.frames])
    return VideoTracks(frames, blend(old.scores, new.scores), blend(old.boxes, new.boxes))


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

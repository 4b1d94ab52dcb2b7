"""How well tubes are found: frame-mAP, video-mAP and switches of identity, for detectors that follow actors.

The averages are those of ACT's protocol (Kalogeiton et al., ICCV 2017), in all frames, but nothing is suppressed: a
detector that predicts a set says itself which answers are one. Boxes are edges here, so that x2 is not a pixel of the
box; ACT's scripts count it as one. A switch of identity is counted as in CLEAR MOT (Bernardin and Stiefelhagen 2008):
in each frame, tracks are assigned to the true boxes that they overlap by an IoU of 0.5 or more, first of all to those
that they had the last time, and whoever gets another track than that counts one. Of a video with key frames alone, all
of this is in its key frames: what is found in frames that nobody has annotated is neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actdet.data.clips import Clip, ClipIndex
from actdet.evaluation.arrays import FrameBoxes, TubeBoxes, join_frames, join_tubes, to_offsets
from actdet.evaluation.average_precision import ClassPrecision
from actdet.evaluation.boxes import box_iou
from actdet.evaluation.frame_map import FrameMap
from actdet.evaluation.protocols import ACT, AVERAGED_THRESHOLDS, VIDEO_THRESHOLDS
from actdet.evaluation.tracks import VideoTracks, cut_tubes, frame_boxes, link_tracks, tracks_of_clip
from actdet.evaluation.tubes import tubes_of
from actdet.evaluation.video_map import VideoMap
from actdet.models.family import Tracks

PROTOCOL = replace(ACT, suppression=None, link=None, tube_threshold=1.0, inclusive=False)

# The least IoU of a box in a frame that counts as found.
FRAME_IOU = 0.5

# In a frame in which no action of a track is so probable, it cannot stand for an actor.
_PRESENT = 0.3


@dataclass(frozen=True)
class TubeMetrics:
    """What `measure_tubes` finds over some videos; a figure is None if no class has truth."""

    frame_map: float | None
    """Mean average precision of boxes in all frames, at IoU 0.5."""
    video_map: dict[str, float | None]
    """Mean average precision of tubes, by the least overlap in space and time: 0.2, 0.5, 0.75, and 0.5:0.95, the mean
    over ten of them."""
    classes: dict[str, dict[str, float | None]]
    """The average precision of each class: "frame" in frames at IoU 0.5, "video" of tubes at 0.5."""
    tubes: int
    """How many true tubes there are."""
    switches: int
    """How often an actor is taken for another one."""

    def describe(self) -> list[str]:
        """The figures as lines for people."""
        of_tubes = ", ".join(f"{_figure(value)} at {overlap}" for overlap, value in self.video_map.items())
        return [
            f"{self.tubes} tubes: frame-mAP {_figure(self.frame_map)} at IoU 0.5; video-mAP {of_tubes}",
            f"identities: {self.switches} switches",
        ]


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def measure_tubes(index: ClipIndex, clips: Sequence[int], tracks: Sequence[Tracks], count: int) -> TubeMetrics:
    """Compare what a network says of every frame with the truth.

    Args:
        index: The data set.
        clips: The n clips, by their numbers in the index, at whose unchanged frames the network looked.
        tracks: What it says of them, or of parts of them.
        count: T, how many frames of a clip it sees.
    """
    windows: dict[str, list[tuple[Clip, tuple[VideoTracks, ...]]]] = {}
    for row, number in enumerate(clips):
        clip = index.clips[number]
        windows.setdefault(clip.video_name, []).append((clip, tracks_of_clip(clip, tracks, row, count)))

    class_names = index.class_names
    frame_map = FrameMap(len(class_names), PROTOCOL, FRAME_IOU)
    truth = []
    found = []
    switches = 0
    for video, of_windows in enumerate(windows.values()):
        in_order = sorted(of_windows, key=lambda window: window[0].frames.start)
        of_video = link_tracks(part for _, parts in in_order for part in parts)
        seen = [clip for clip, _ in of_windows]
        true_tubes = _true_tubes(video, seen)
        boxes = join_frames([frame_boxes(video, each) for each in of_video])
        tubes = join_tubes([cut_tubes(video, each) for each in of_video])
        if seen[0].has_key_frames_alone:
            boxes = boxes.take(np.isin(boxes.frames, true_tubes.frames))
            tubes = _within(tubes, true_tubes.frames)
        frame_map.add(true_tubes.as_frames(), boxes)
        switches += count_switches(true_tubes, of_video)
        truth.append(true_tubes)
        found.append(tubes)

    all_truth = join_tubes(truth)
    video_map = VideoMap(all_truth, join_tubes(found), len(class_names), PROTOCOL)
    in_frames = frame_map.precision("all")
    in_videos = {f"{threshold:g}": video_map.precision(threshold) for threshold in VIDEO_THRESHOLDS}
    averaged = video_map.mean_precision(AVERAGED_THRESHOLDS)
    means = {overlap: precision.mean for overlap, precision in in_videos.items()}
    return TubeMetrics(
        frame_map=in_frames.mean,
        video_map={**means, f"{AVERAGED_THRESHOLDS[0]:g}:{AVERAGED_THRESHOLDS[-1]:g}": averaged.mean},
        classes={
            name: {"frame": _of_class(in_frames, label), "video": _of_class(in_videos["0.5"], label)}
            for label, name in enumerate(class_names)
        },
        tubes=len(all_truth),
        switches=switches,
    )


def _of_class(precision: ClassPrecision, label: int) -> float | None:
    value = float(precision.ap[label])
    return None if np.isnan(value) else value


def _true_tubes(video: int, windows: Sequence[Clip]) -> TubeBoxes:
    """Return the tubes of a video, as far as they are in the windows that the network has seen."""
    clip = windows[0]
    seen = np.concatenate([np.arange(window.frames.start, window.frames.stop) for window in windows])
    labels = []
    tracks = []
    for tube in clip.video_tubes:
        inside = np.isin(tube.frames, seen)
        if inside.any():
            boxes = tube.boxes[inside] if len(tube.boxes) else _whole_pictures(clip, int(inside.sum()))
            labels.append(tube.label)
            tracks.append(np.column_stack([tube.frames[inside], boxes]))
    return tubes_of([video] * len(labels), labels, [1.0] * len(labels), tracks)


def _within(tubes: TubeBoxes, frames: np.ndarray) -> TubeBoxes:
    """Return what tubes have in these frames, without those that have nothing there."""
    inside = np.isin(tubes.frames, frames)
    owner = np.repeat(np.arange(len(tubes)), tubes.counts)
    counts = np.bincount(owner[inside], minlength=len(tubes))
    kept = counts > 0
    return TubeBoxes(
        tubes.videos[kept],
        tubes.labels[kept],
        tubes.scores[kept],
        to_offsets(counts[kept]),
        tubes.frames[inside],
        tubes.boxes[inside],
    )


def _whole_pictures(clip: Clip, count: int) -> np.ndarray:
    """Return the boxes of a tube without boxes, whose action is somewhere in the picture."""
    return np.tile(np.array([0.0, 0.0, clip.video.width, clip.video.height]), (count, 1))


def count_switches(truth: TubeBoxes, tracks: Sequence[VideoTracks]) -> int:
    """Count how often a true actor is taken for another one.

    Args:
        truth: The tubes of a video.
        tracks: What was found in it, each a table of one.
    """
    # This import takes a while, and prediction does not need it.
    from scipy.optimize import linear_sum_assignment

    boxes = truth.as_frames()
    owner = np.repeat(np.arange(len(truth)), truth.counts)
    last: dict[int, int] = {}
    switches = 0
    for frame in np.unique(boxes.frames).tolist():
        rows = np.flatnonzero(boxes.frames == frame)
        here = [(number, _box_at(track, frame)) for number, track in enumerate(tracks)]
        present = [(number, box) for number, box in here if box is not None]
        if not present:
            continue
        overlap = np.stack([_overlaps(boxes, rows, box) for _, box in present], 1)
        # A pair that has been one outweighs what two other pairs can have.
        had = np.array([[last.get(actor) == number for number, _ in present] for actor in owner[rows].tolist()])
        good = np.where(overlap >= FRAME_IOU, overlap + 2.0 * had, 0.0)
        for row, column in zip(*linear_sum_assignment(good, maximize=True), strict=True):
            if good[row, column] > 0:
                actor = int(owner[rows[row]])
                number = present[column][0]
                switches += last.get(actor, number) != number
                last[actor] = number
    return switches


def _box_at(track: VideoTracks, frame: int) -> np.ndarray | None:
    """Return the box (4,) of a track, a table of one, in a frame, if it may stand for an actor there."""
    place = frame - int(track.frames[0])
    if not 0 <= place < len(track.frames) or track.scores[0, place].max() < _PRESENT:
        return None
    return track.boxes[0, place]


def _overlaps(boxes: FrameBoxes, rows: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the IoU of some boxes with one."""
    return box_iou(boxes.boxes[rows], np.broadcast_to(box, (len(rows), 4)), inclusive=False)

"""What is true of the clips in a batch, as each kind of detector learns it.

    clip_box    one box for each action of a clip: `ClipTruth` gives `Targets` of the kernels
    tubelet     of each action a box in each frame that a sample shows: `TubeTruth` gives `TubeTargets`
    actor       the same of each actor, who may do several things at once

A family says by the name which kind it wants (`actdet.models.family.FamilyNetwork.truth`), and `open_truth` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from actdet_kernels import Targets, Tubelets
from torch import Tensor

from actdet.data.boxes import to_centers
from actdet.data.clips import Clip, ClipIndex
from actdet.detections import Tube

TruthKind = Literal["clip_box", "tubelet", "actor", "keyframe_box", "label"]
"""What a family learns from: a box per clip, a box in every frame of it for each action or for each actor, boxes of its
key frame, or its label alone."""

OF_TUBES: tuple[TruthKind, ...] = ("tubelet", "actor")
"""Those that are `TubeTargets`."""


class TubeTargets(NamedTuple):
    """The actions or the actors in B samples of T frames each, padded to M rows."""

    labels: Tensor
    """(B, M) int64, the class of each action that any of the frames shows. Or (B, M, T, K), all that each actor does in
    each frame: the classes, and -1 behind the last one."""
    boxes: Tensor
    """(B, M, T, 4) float32, cxcywh in [0, 1]."""
    counts: Tensor
    """(B,) int32, how many rows of each sample are real."""
    visible: Tensor
    """(B, M, T) bool, in which frames each actor does the action and has a box; only annotated ones."""
    annotated: Tensor
    """(B, T) bool, in which frames anything is known. An actor who is not visible in such a frame does nothing there;
    of other frames nobody has said what happens. Or (B, 0) if no clip of the data set has such other frames."""

    def to(self, device: torch.device | str) -> TubeTargets:
        """Return the same targets on `device`."""
        return TubeTargets(*(field.to(device) for field in self))

    @property
    def is_sparse(self) -> bool:
        """Whether there may be frames that are not annotated."""
        return self.annotated.shape[1] > 0

    @property
    def valid(self) -> Tensor:
        """(B, M) bool: the rows that are real."""
        return self.tubelets.valid

    @property
    def tubelets(self) -> Tubelets:
        """The same as the kernels take it, which know nothing of frames that nobody has annotated."""
        return Tubelets(self.labels, self.boxes, self.counts, self.visible)

    @property
    def first_labels(self) -> Tensor:
        """(B, M) int64, one class of each action or actor: of actors the first in the first frame that shows them."""
        if self.labels.ndim == 2:
            return self.labels
        first = self.visible.to(torch.uint8).argmax(2)[..., None]
        return self.labels[..., 0].gather(2, first)[..., 0].clamp(min=0)

    def by_action(self) -> tuple[TubeTargets, Tensor]:
        """Give each action of an actor a row of its own, in the order of the actors and their classes.

        The targets must be on the CPU.

        Returns:
            Targets with labels (B, M'), and (B, M') int64, which row here each of their rows is from.
        """
        batch, rows = self.labels.shape[:2]
        if self.labels.ndim == 2:
            return self, torch.arange(rows).expand(batch, rows)

        found = []
        for sample, count in enumerate(self.counts.tolist()):
            of_actors = [self.labels[sample, row][self.visible[sample, row]].unique() for row in range(count)]
            found.append(
                [(row, label) for row, labels in enumerate(of_actors) for label in labels.tolist() if label >= 0]
            )

        size = max([1, *map(len, found)])
        padded = torch.tensor([each + [(0, 0)] * (size - len(each)) for each in found]).reshape(batch, size, 2)
        row, label = padded.unbind(-1)
        counts = torch.tensor([len(each) for each in found], dtype=torch.int32)
        samples = torch.arange(batch)[:, None]
        does = (self.labels[samples, row] == label[..., None, None]).any(-1)
        visible = self.visible[samples, row] & does & (torch.arange(size) < counts[:, None])[..., None]
        boxes = torch.where(visible[..., None], self.boxes[samples, row], 0)
        return TubeTargets(label, boxes, counts, visible, self.annotated), row

    @property
    def clip_boxes(self) -> Targets:
        """What a detector of whole clips would learn from the frames shown: the box around all boxes of an action.

        The labels must be those of actions, (B, M).
        """
        low = self.boxes[..., :2] - self.boxes[..., 2:] / 2
        high = self.boxes[..., :2] + self.boxes[..., 2:] / 2
        shown = self.visible[..., None]
        low = torch.where(shown, low, 1.0).amin(2)
        high = torch.where(shown, high, 0.0).amax(2)
        high = torch.maximum(low, high)
        return Targets(self.labels, torch.cat([(low + high) / 2, high - low], -1), self.counts)


AnyTargets = Targets | TubeTargets
"""What the truths of all kinds give for a batch."""


def centered_targets(kind: TruthKind, clips: int, frames: int) -> AnyTargets:
    """Return targets for a trial: one action of class 0 in the middle of each clip, all the time."""
    labels = torch.zeros(clips, 1, dtype=torch.int64)
    boxes = torch.full((clips, 1, 4), 0.5)
    counts = torch.ones(clips, dtype=torch.int32)
    if kind not in OF_TUBES:
        return Targets(labels, boxes, counts)
    visible = torch.ones(clips, 1, frames, dtype=torch.bool)
    return TubeTargets(labels, boxes[:, :, None].repeat(1, 1, frames, 1), counts, visible, visible[:, 0, :0])


class Truth(Protocol):
    """Cuts what is true of samples out of the annotations of their clips."""

    positive: np.ndarray
    """(clips,) bool, which clips of the index have an action."""

    def of(self, clips: np.ndarray, frames: np.ndarray, to_device: Callable[[np.ndarray], Tensor]) -> AnyTargets:
        """Return what is true of B samples.

        Args:
            clips: (B,) int64, the clip that each sample shows, by its number in the index.
            frames: (B, T) int64, which frames of the clip's video it shows.
            to_device: Copies an array to the device of the result.
        """
        ...


def open_truth(kind: TruthKind, index: ClipIndex, device: torch.device) -> Truth:
    """Make what cuts the truth of this kind out of the annotations of `index`, for batches on `device`."""
    return TubeTruth(index, by_actor=kind == "actor") if kind in OF_TUBES else ClipTruth(index, device)


class ClipTruth:
    """The box of each action of a clip. All are tables on the device, so no batch has to copy a list of boxes."""

    def __init__(self, index: ClipIndex, device: torch.device) -> None:
        targets = Targets(*map(torch.from_numpy, index.targets()))
        self.positive = targets.counts.numpy() > 0
        self._targets = targets.to(device)

    def of(self, clips: np.ndarray, frames: np.ndarray, to_device: Callable[[np.ndarray], Tensor]) -> Targets:
        rows = to_device(clips)
        return Targets(*(field[rows] for field in self._targets))


class TubeTruth:
    """The boxes of each action, or of each actor, in the frames that a sample shows.

    Two tubes are of one actor if they have frames in common, and the same box in each of those. If no actor of the data
    set does several things, there is nothing to tell them from actions.

    A frame of the video between or beside those of a tube says that the actor does nothing there. But of a video with
    key frames alone, what such a frame says counts for the sample's frame that is nearest to it, and nothing is known
    of the other frames.
    """

    def __init__(self, index: ClipIndex, *, by_actor: bool = False) -> None:
        self._clips = [_ClipTubes(clip, by_actor) for clip in index.clips]
        self._rows = max([1, *(len(clip.actors) for clip in self._clips)])
        self._most = max([1, *(len(actor) for clip in self._clips for actor in clip.actors)])
        self._is_sparse = any(clip.is_sparse for clip in self._clips)
        self.positive = np.array([len(clip.labels) > 0 for clip in self._clips], dtype=bool)

    def of(self, clips: np.ndarray, frames: np.ndarray, to_device: Callable[[np.ndarray], Tensor]) -> TubeTargets:
        samples, count = frames.shape
        labels = np.zeros((samples, self._rows), np.int64)
        if self._most > 1:
            labels = np.full((samples, self._rows, count, self._most), -1, np.int64)
        boxes = np.zeros((samples, self._rows, count, 4), np.float32)
        counts = np.zeros(samples, np.int32)
        visible = np.zeros((samples, self._rows, count), bool)
        annotated = np.ones((samples, count if self._is_sparse else 0), bool)

        for sample, clip in enumerate(clips.tolist()):
            tubes = self._clips[clip]
            shown = frames[sample]
            if tubes.is_sparse:
                shown = tubes.nearest_key_frames(shown)
                annotated[sample] = shown >= 0

            # Whoever is in none of the frames is not to be found in them.
            of_clip = tubes.cut(shown) if self._most == 1 else tubes.cut_actors(shown, self._most)
            seen = np.flatnonzero(of_clip.visible.any(1))
            counts[sample] = len(seen)
            labels[sample, : len(seen)] = of_clip.labels[seen]
            boxes[sample, : len(seen)] = of_clip.boxes[seen]
            visible[sample, : len(seen)] = of_clip.visible[seen]
        return TubeTargets(*map(to_device, (labels, boxes, counts, visible, annotated)))


def actors_of(tubes: Sequence[Tube]) -> list[list[Tube]]:
    """Group the tubes of a video by their actors, each of whom has another class in each of them.

    Two tubes are of one actor if they have frames in common, and the same box in each of those. The order of the tubes
    changes nothing.
    """
    actors: list[list[Tube]] = []
    for tube in _in_order(tubes):
        for actor in actors:
            meetings = [_same_boxes(tube, other) for other in actor]
            is_new = all(tube.label != other.label for other in actor)
            if is_new and True in meetings and False not in meetings:
                actor.append(tube)
                break
        else:
            actors.append([tube])
    return actors


def _in_order(tubes: Sequence[Tube]) -> list[Tube]:
    """Sort tubes by class, so that their order in a file changes nothing."""
    return sorted(tubes, key=lambda tube: (tube.label, tube.frames.tolist(), tube.boxes.tolist()))


def _same_boxes(one: Tube, other: Tube) -> bool | None:
    """Return whether the boxes of two tubes are the same in all frames in common; None if there is no such frame."""
    _, mine, theirs = np.intersect1d(one.frames, other.frames, assume_unique=True, return_indices=True)
    if not len(mine):
        return None
    if not (len(one.boxes) and len(other.boxes)):
        return len(one.boxes) == len(other.boxes)
    return np.array_equal(one.boxes[mine], other.boxes[theirs])


class _Shown(NamedTuple):
    """What m tubes or actors have in T frames."""

    labels: np.ndarray
    """(m,) int64, or (m, T, K) for all that each actor does, with -1 behind the last class."""
    boxes: np.ndarray
    """(m, T, 4) float32, cxcywh in [0, 1]; 0 where there is none."""
    visible: np.ndarray
    """(m, T) bool, where there is one."""


class _ClipTubes:
    """The tubes of one clip, sorted by class, so that their order in its file changes nothing.

    Attributes:
        labels: (m,) int64.
        actors: Which tubes each actor has; each tube is an actor unless they are told apart.
        is_sparse: Whether only key frames are annotated.
    """

    def __init__(self, clip: Clip, by_actor: bool) -> None:
        tubes = _in_order(clip.tubes)
        self.labels = np.array([tube.label for tube in tubes], np.int64)
        places = {id(tube): place for place, tube in enumerate(tubes)}
        actors = actors_of(tubes) if by_actor else [[tube] for tube in tubes]
        self.actors = [[places[id(tube)] for tube in actor] for actor in actors]
        self._frames = [tube.frames for tube in tubes]
        # The action of a tube without boxes is somewhere in the picture.
        picture = np.array([[0, 0, clip.video.width, clip.video.height]])
        boxes = [tube.boxes if len(tube.boxes) else picture.repeat(len(tube.frames), 0) for tube in tubes]
        self._boxes = [to_centers(of_tube, clip.video.width, clip.video.height) for of_tube in boxes]
        self._pts = clip.video.pts
        self.is_sparse = clip.has_key_frames_alone

    def nearest_key_frames(self, frames: np.ndarray) -> np.ndarray:
        """Return which annotated frame each of these frames (T,) stands for; -1 for none."""
        stands_for = np.full(len(frames), -1, np.int64)
        distance = np.full(len(frames), np.iinfo(np.int64).max)
        for key in sorted({key for of_tube in self._frames for key in of_tube.tolist()}):
            away = np.abs(self._pts[frames] - self._pts[key])
            nearest = int(away.argmin())
            if away[nearest] < distance[nearest]:
                distance[nearest] = away[nearest]
                stands_for[nearest] = key
        return stands_for

    def cut(self, frames: np.ndarray) -> _Shown:
        """Return what the tubes have in these frames (T,)."""
        boxes = np.zeros((len(self.labels), len(frames), 4), np.float32)
        visible = np.zeros((len(self.labels), len(frames)), bool)
        for row, (of_tube, of_frame) in enumerate(zip(self._frames, self._boxes, strict=True)):
            places = np.minimum(np.searchsorted(of_tube, frames), len(of_tube) - 1)
            visible[row] = of_tube[places] == frames
            boxes[row] = np.where(visible[row][:, None], of_frame[places], 0)
        return _Shown(self.labels, boxes, visible)

    def cut_actors(self, frames: np.ndarray, most: int) -> _Shown:
        """Return what the actors have in these frames (T,), who do at most so many things."""
        tubes = self.cut(frames)
        count = len(self.actors)
        labels = np.full((count, len(frames), most), -1, np.int64)
        boxes = np.zeros((count, len(frames), 4), np.float32)
        visible = np.zeros((count, len(frames)), bool)
        for row, actor in enumerate(self.actors):
            does = tubes.visible[actor]
            which, frame = np.nonzero(does)
            place = does.cumsum(0)[which, frame] - 1
            labels[row, frame, place] = self.labels[actor][which]
            boxes[row, frame] = tubes.boxes[actor][which, frame]
            visible[row] = does.any(0)
        return _Shown(labels, boxes, visible)

"""Linking detections to tubes as frames come in, without ever looking ahead.

The rule is that of `linking.py`, with classes in place of chains. What is known after a frame depends on that frame
and those before it alone: a detection's tube is final once it is told.

    linker = OnlineLinker(ACT_LINK)
    for frame, (labels, boxes, scores) in enumerate(stream):
        tube_numbers = linker.update(frame, Detections(labels, boxes, scores))
        for tube in linker.take_closed(): ...
    tubes = linker.finish()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from actdet.errors import ActdetError
from actdet.evaluation.arrays import TubeBoxes, TubeletBoxes, empty_tubes, join_tubelets
from actdet.evaluation.linking import OpenTubes, best_tubelets, build_tubes
from actdet.evaluation.protocols import ACT_LINK, LinkRules


class Detections(NamedTuple):
    """What a detector sees in one frame, or in the K frames that begin there."""

    labels: np.ndarray
    """(n,) int, classes."""
    boxes: np.ndarray
    """(n, 4) or (n, K, 4) float, x1 y1 x2 y2."""
    scores: np.ndarray
    """(n,) float."""


class OpenTube(NamedTuple):
    """A tube that may still grow."""

    number: int
    """Tubes are numbered from 0 in the order in which they begin."""
    label: int
    last_frame: int
    """The frame of its last detection."""
    box: np.ndarray
    """(4,) float64, its last box."""
    score: float
    """The mean score of its detections."""


class LinkedTubes(NamedTuple):
    """Tubes at their end."""

    tubes: TubeBoxes
    """Of video 0, sorted by class and number."""
    numbers: np.ndarray
    """(n,) int64, the number of each tube, as `update` has told it."""


class OnlineLinker:
    """Links the detections of one video, frame by frame.

    Args:
        rules: The numbers of a protocol, `ACT_LINK` or `MOC_LINK`, or your own.
        length: K, how many boxes a detection has.
        inclusive: Whether x2 and y2 are the last pixel inside a box; see `box_iou`.
    """

    def __init__(self, rules: LinkRules = ACT_LINK, length: int = 1, *, inclusive: bool = True) -> None:
        self._rules = rules
        self._length = length
        self._inclusive = inclusive
        self._open = OpenTubes(rules, length, inclusive=inclusive)
        self._last_frame = -1
        self._members: list[TubeletBoxes] = []
        self._ids: list[np.ndarray] = []

    def update(self, frame: int, detections: Detections) -> np.ndarray:
        """Add the detections of the next frame.

        Args:
            frame: Later than the frames before. Frames without detections may be left out.
            detections: Those that begin in it.

        Returns:
            (n,) int64, the number of the tube that each detection now belongs to; -1 if it was suppressed.

        Raises:
            ActdetError: The frame is not later, or something is not finite.
        """
        if frame <= self._last_frame:
            raise ActdetError(f"frame {frame} comes after frame {self._last_frame}; frames must ascend")
        self._last_frame = frame

        count = len(detections.labels)
        given = TubeletBoxes(
            np.zeros(count, dtype=np.int64),
            np.full(count, frame, dtype=np.int64),
            np.asarray(detections.labels, dtype=np.int64),
            np.asarray(detections.boxes, dtype=np.float64).reshape(count, self._length, 4),
            np.asarray(detections.scores, dtype=np.float64),
        )
        kept, rows = best_tubelets(given, self._rules, inclusive=self._inclusive)
        ids = self._open.step(frame, kept.labels, kept.boxes, kept.scores)
        self._members.append(kept)
        self._ids.append(ids)

        numbers = np.full(count, -1, dtype=np.int64)
        numbers[rows] = ids
        return numbers

    @property
    def open_tubes(self) -> list[OpenTube]:
        """The tubes that may still grow after the last frame, by number."""
        tubes = self._open.tubes
        order = np.argsort(tubes.ids)
        return [
            OpenTube(
                int(tubes.ids[i]),
                int(tubes.chains[i]),
                int(tubes.last_frames[i]),
                tubes.last_boxes[i, -1].copy(),
                float(tubes.totals[i] / tubes.counts[i]),
            )
            for i in order
        ]

    def take_closed(self) -> LinkedTubes:
        """Hand over the tubes that can no longer grow, and forget them, so that endless video needs bounded memory.

        Tubes that are too short or of too low a score are dropped, as in `finish`.
        """
        self._open.close_before(self._last_frame + 1)
        return self._hand_over(lambda ids: ~np.isin(ids, self._open.tubes.ids))

    def finish(self) -> LinkedTubes:
        """Close all tubes and hand over those that were not taken yet. Nothing can be added after that."""
        return self._hand_over(lambda ids: np.ones(len(ids), dtype=bool))

    def _hand_over(self, choose: Callable[[np.ndarray], np.ndarray]) -> LinkedTubes:
        if not self._members:
            return LinkedTubes(empty_tubes(), np.zeros(0, dtype=np.int64))

        members = join_tubelets(self._members)
        ids = np.concatenate(self._ids)
        chosen = choose(ids)
        self._members = [members.take(~chosen)]
        self._ids = [ids[~chosen]]
        return LinkedTubes(*build_tubes(members.take(chosen), ids[chosen], self._rules))

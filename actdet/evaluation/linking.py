"""Linking tubelets to tubes by the rule of the ACT scripts (`BuildTubes`), in all videos and classes at once.

Frame by frame and class by class: the tubelets that start in the frame are suppressed, and the best ten stay. Open
tubes, by falling mean score, each take the best of these that overlaps their last tubelet well enough and is still
free. The tubelets that are left begin new tubes. A tube that has found none for too long is closed. At the end, a box
of a tube is the mean of the boxes that its tubelets have in that frame, and its score is their mean score.

The rule never looks ahead, so that `online.py` runs the same steps on live video. All videos and classes ("chains")
take each step together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actdet.evaluation.arrays import (
    MOST_VIDEOS,
    TubeBoxes,
    TubeletBoxes,
    class_keys,
    empty_tubes,
    frame_keys,
    spans,
    to_offsets,
)
from actdet.evaluation.boxes import box_iou
from actdet.evaluation.matching import Pairs, join_pairs, match, pairs_of_equal_keys
from actdet.evaluation.protocols import LinkRules
from actdet.evaluation.suppression import soften, suppress


def link_tubelets(tubelets: TubeletBoxes, rules: LinkRules, *, inclusive: bool = True) -> TubeBoxes:
    """Link tubelets to tubes.

    Args:
        tubelets: All tubelets of some videos.
        rules: The protocol's numbers.
        inclusive: See `box_iou`.

    Returns:
        The tubes of each video and class, in the order in which they began.
    """
    candidates, _ = best_tubelets(tubelets, rules, inclusive=inclusive)
    state = OpenTubes(rules, candidates.length, inclusive=inclusive)
    # Small numbers for pairs of a video and a class.
    chains = candidates.videos - candidates.videos.min(initial=MOST_VIDEOS)
    chains = chains * (candidates.labels.max(initial=0) + 1) + candidates.labels

    tubes = np.zeros(len(candidates), dtype=np.int64)
    starts, begins = np.unique(candidates.starts, return_index=True)
    bounds = np.append(begins, len(candidates))
    for start, begin, end in zip(starts.tolist(), bounds[:-1], bounds[1:], strict=True):
        now = slice(begin, end)
        tubes[now] = state.step(start, chains[now], candidates.boxes[now], candidates.scores[now])
    return build_tubes(candidates, tubes, rules)[0]


def best_tubelets(
    tubelets: TubeletBoxes, rules: LinkRules, *, inclusive: bool = True
) -> tuple[TubeletBoxes, np.ndarray]:
    """Suppress tubelets that overlap a better one of their class that starts in the same frame, and keep the best.

    Returns:
        Those that are left, and which rows they were, sorted by start. If suppression is soft, their scores are lower.
    """
    length = tubelets.length
    groups = class_keys(frame_keys(tubelets.videos, tubelets.starts), tubelets.labels)

    def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        # Added one after another, as the scripts do it.
        total = np.zeros(len(first))
        for k in range(length):
            total += box_iou(tubelets.boxes[first, k], tubelets.boxes[second, k], inclusive=inclusive)
        return total

    keep, overlaps = suppress(groups, tubelets.scores, overlap, rules.suppression.threshold * length)
    if rules.suppression.soft:
        keep[:] = True
        scores = soften(tubelets.scores, overlaps)
        tubelets = TubeletBoxes(tubelets.videos, tubelets.starts, tubelets.labels, tubelets.boxes, scores)

    rows = np.flatnonzero(keep)
    rows = rows[_best_of_groups(groups[rows], tubelets.scores[rows], rules.most)]
    rows = rows[np.argsort(tubelets.starts[rows], kind="stable")]
    return tubelets.take(rows), rows


@dataclass(frozen=True)
class _Tubes:
    """Open tubes, in the order in which they began."""

    chains: np.ndarray
    """(n,) int64."""
    ids: np.ndarray
    """(n,) int64, ascending."""
    last_frames: np.ndarray
    """(n,) int64, the start of each tube's last tubelet."""
    last_boxes: np.ndarray
    """(n, K, 4) float64, the boxes of that."""
    totals: np.ndarray
    """(n,) float64, the sum of the scores."""
    counts: np.ndarray
    """(n,) int64, how many tubelets each tube has."""

    def take(self, rows: np.ndarray) -> _Tubes:
        return _Tubes(*(column[rows] for column in vars(self).values()))

    def join(self, other: _Tubes) -> _Tubes:
        columns = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Tubes(*(np.concatenate(pair) for pair in columns))


class OpenTubes:
    """The tubes that may still grow, of many chains, and the step that lets them grow by a frame.

    Args:
        rules: The protocol's numbers.
        length: K, how many boxes a tubelet has.
        inclusive: See `box_iou`.
    """

    def __init__(self, rules: LinkRules, length: int, *, inclusive: bool = True) -> None:
        none = np.zeros(0, dtype=np.int64)
        self.tubes = _Tubes(none, none, none, np.zeros((0, length, 4)), np.zeros(0), none)
        self._overlap = rules.overlap
        self._gap = length if rules.gap is None else rules.gap
        self._length = length
        self._inclusive = inclusive
        self._begun = 0
        self._next_frame = 0

    def step(self, frame: int, chains: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Give the tubelets that start in a frame to tubes.

        Args:
            frame: Later than all frames before. Frames in which nothing starts may be left out.
            chains: (m,) int64.
            boxes: (m, K, 4) float.
            scores: (m,) float.

        Returns:
            (m,) int64, the number of the tube that each tubelet now belongs to.
        """
        if frame > self._next_frame:
            self.close_before(frame)
        self._next_frame = frame + 1
        tubes = self.tubes
        boxes = np.asarray(boxes, dtype=np.float64)
        scores = np.asarray(scores, dtype=np.float64)

        pairs = self._good_pairs(frame, chains, boxes, scores)
        growing, taken = match(pairs, tubes.totals / np.maximum(tubes.counts, 1), "best unmatched")
        tubes.last_frames[growing] = frame
        tubes.last_boxes[growing] = boxes[taken]
        tubes.totals[growing] += scores[taken]
        tubes.counts[growing] += 1

        ids = np.full(len(chains), -1, dtype=np.int64)
        ids[taken] = tubes.ids[growing]
        new = np.flatnonzero(ids < 0)
        ids[new] = self._begun + np.arange(len(new))
        self._begun += len(new)
        begun = _Tubes(
            chains[new],
            ids[new],
            np.full(len(new), frame, dtype=np.int64),
            boxes[new],
            scores[new],
            np.ones(len(new), dtype=np.int64),
        )
        self.close_before(frame + 1)
        self.tubes = self.tubes.join(begun)
        return ids

    def close_before(self, frame: int) -> None:
        """Drop the tubes that no tubelet of `frame` may join any more."""
        # A tube that found nothing `gap` frames after its last tubelet ended there.
        open_still = frame - self.tubes.last_frames <= self._gap
        if not open_still.all():
            self.tubes = self.tubes.take(np.flatnonzero(open_still))

    def _good_pairs(self, frame: int, chains: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> Pairs:
        """Pairs of an open tube with a tubelet that it may take; the value is the tubelet's score."""
        tubes = self.tubes
        parts = []
        for left, right in pairs_of_equal_keys(tubes.chains, chains):
            common = np.maximum(self._length - (frame - tubes.last_frames[left]), 0)
            values = np.zeros(len(left))
            for frames in range(self._length):
                rows = np.flatnonzero(common == frames)
                values[rows] = self._mean_iou(tubes.last_boxes[left[rows]], boxes[right[rows]], frames)
            good = np.flatnonzero(values >= self._overlap)
            parts.append(Pairs(left[good], right[good], scores[right[good]]))
        return join_pairs(parts)

    def _mean_iou(self, last: np.ndarray, new: np.ndarray, common: int) -> np.ndarray:
        """Compare tubelets over the frames that both have, or the last box with the first one if there are none.

        Args:
            last: (p, K, 4) float64.
            new: (p, K, 4) float64, of tubelets that start later.
            common: How many frames both have.
        """
        if common == 0:
            return box_iou(last[:, -1], new[:, 0], inclusive=self._inclusive)

        # Added one after another, as the scripts do it, so that a value on the threshold falls on the same side.
        total = np.zeros(len(last))
        for k in range(common):
            total += box_iou(last[:, self._length - common + k], new[:, k], inclusive=self._inclusive)
        return total / common


def build_tubes(tubelets: TubeletBoxes, ids: np.ndarray, rules: LinkRules) -> tuple[TubeBoxes, np.ndarray]:
    """Make tubes of linked tubelets, without those that are too short or of too low a score.

    Args:
        tubelets: (n) tubelets, by ascending start.
        ids: (n,) int64, the tube that each belongs to; a tube lies in one video and has one class.
        rules: The protocol's numbers.

    Returns:
        The tubes, and the number of each, sorted by video, class and number. Where tubelets leave a gap, which the
        scripts' own numbers rule out, boxes are interpolated.
    """
    if not len(tubelets):
        return empty_tubes(), np.zeros(0, dtype=np.int64)

    order = np.argsort(ids, kind="stable")
    tubelets = tubelets.take(order)
    begins = np.flatnonzero(np.diff(ids[order], prepend=-1))
    counts = np.diff(begins, append=len(tubelets))
    which = np.repeat(np.arange(len(begins)), counts)

    first = tubelets.starts[begins]
    lengths = tubelets.starts[begins + counts - 1] + tubelets.length - first
    scores = np.bincount(which, tubelets.scores) / counts
    keep = (scores >= rules.least_score) & (lengths >= rules.least_length)

    numbers = ids[order][begins][keep]
    tubelets = tubelets.take(keep[which])
    which = (np.cumsum(keep) - 1)[which[keep[which]]]
    begins = np.searchsorted(which, np.arange(len(numbers)))

    first = first[keep]
    lengths = lengths[keep]
    offsets = to_offsets(lengths)
    places = offsets[which] + tubelets.starts - first[which]
    tubes = TubeBoxes(
        videos=tubelets.videos[begins],
        labels=tubelets.labels[begins],
        scores=scores[keep],
        offsets=offsets,
        frames=spans(first, lengths),
        boxes=_mean_boxes(tubelets, places, int(offsets[-1])),
    )
    order = np.lexsort((numbers, tubes.labels, tubes.videos))
    return tubes.take(order), numbers[order]


def _mean_boxes(tubelets: TubeletBoxes, places: np.ndarray, rows: int) -> np.ndarray:
    """(rows, 4): the mean of the boxes that lie in each row; `places`: the row of each tubelet's first box."""
    inside = (places[:, None] + np.arange(tubelets.length)).reshape(-1)
    flat = tubelets.boxes.reshape(-1, 4)
    counts = np.bincount(inside, minlength=rows)
    sums = np.stack([np.bincount(inside, flat[:, i], minlength=rows) for i in range(4)], axis=1)
    boxes = sums / np.maximum(counts, 1)[:, None]

    # The first and the last row of a tube are always covered, so both neighbors belong to the same tube.
    bare = np.flatnonzero(counts == 0)
    if len(bare):
        covered = np.flatnonzero(counts)
        after = np.searchsorted(covered, bare)
        before = covered[after - 1]
        after = covered[after]
        share = ((bare - before) / (after - before))[:, None]
        boxes[bare] = boxes[before] + share * (boxes[after] - boxes[before])
    return boxes


def _best_of_groups(groups: np.ndarray, scores: np.ndarray, most: int) -> np.ndarray:
    """(n,) bool, which rows are among the best of their group. Among equal scores the earlier row is better."""
    best = np.ones(len(groups), dtype=bool)
    ordered = np.sort(groups, kind="stable")
    if not (ordered[most:] == ordered[:-most]).any():
        return best

    order = np.lexsort((-scores, groups))
    best[order[most:]] = groups[order[most:]] != groups[order[:-most]]
    return best

"""The protocols as plain loops over Python lists: slow, and written from their descriptions, not from the program.

Truth and detections are lists of the tuples below. Among equal scores, and equal overlaps, the first in the list wins.
"""

from __future__ import annotations

from typing import NamedTuple

Box = tuple[float, float, float, float]
Boxes = dict[int, Box]


class Tubelet(NamedTuple):
    """K boxes in the frames start, start + 1, ...; a box of a single frame has K = 1."""

    video: int
    start: int
    label: int
    boxes: tuple[Box, ...]
    score: float


class FrameBox(NamedTuple):
    video: int
    frame: int
    label: int
    box: Box
    score: float = 1.0


class Track(NamedTuple):
    """A tube: a box for each of its frames."""

    video: int
    label: int
    boxes: Boxes
    score: float = 1.0


def box_iou(a: Box, b: Box, inclusive: bool) -> float:
    extra = 1.0 if inclusive else 0.0
    width = min(a[2], b[2]) + extra - max(a[0], b[0])
    height = min(a[3], b[3]) + extra - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    area_a = max(a[2] - a[0] + extra, 0.0) * max(a[3] - a[1] + extra, 0.0)
    area_b = max(b[2] - b[0] + extra, 0.0) * max(b[3] - b[1] + extra, 0.0)
    covered = area_a + area_b - shared
    return shared / covered if covered > 0 else 0.0


def spatial_iou(a: Boxes, b: Boxes) -> float:
    """Mean IoU over the common frames."""
    common = [frame for frame in sorted(a) if frame in b]
    total = 0.0
    for frame in common:
        total += box_iou(a[frame], b[frame], inclusive=True)
    return total / len(common) if common else 0.0


def tube_iou(a: Boxes, b: Boxes, least_common: int = 1) -> float:
    common = [frame for frame in a if frame in b]
    if len(common) < least_common:
        return 0.0
    either = set(a) | set(b)
    return spatial_iou(a, b) * (len(common) / len(either))


# Average precision


def curve(hits: list[bool], truths: int) -> list[tuple[float, float]]:
    """Precision and recall after each detection."""
    points = []
    found = 0
    for i, hit in enumerate(hits):
        if hit:
            found += 1
        points.append((found / (i + 1), found / truths))
    return points


def raw_ap(hits: list[bool], truths: int) -> float:
    area = 0.0
    precision, recall = 1.0, 0.0
    for next_precision, next_recall in curve(hits, truths):
        area += (next_recall - recall) * (next_precision + precision) / 2
        precision, recall = next_precision, next_recall
    return area


def envelope_ap(hits: list[bool], truths: int) -> float:
    points = curve(hits, truths)
    area = 0.0
    recall = 0.0
    for i, (_, next_recall) in enumerate(points):
        if next_recall != recall:
            area += (next_recall - recall) * max(precision for precision, _ in points[i:])
        recall = next_recall
    return area


def ap_of(hits: list[bool], truths: int, which: str) -> float | None:
    if truths == 0:
        return None
    return raw_ap(hits, truths) if which == "raw" else envelope_ap(hits, truths)


# Frames


def by_score(items: list) -> list:
    return sorted(items, key=lambda item: -item.score)


def frame_hits(
    truth: list[FrameBox], detections: list[FrameBox], label: int, iou: float, rule: str, inclusive: bool
) -> list[bool]:
    """Whether each detection of a class is right, by falling score."""
    free: dict[tuple[int, int], list[Box]] = {}
    for item in truth:
        if item.label == label:
            free.setdefault((item.video, item.frame), []).append(item.box)
    every = {key: list(boxes) for key, boxes in free.items()}
    taken: dict[tuple[int, int], set[int]] = {key: set() for key in free}

    hits = []
    for item in by_score([item for item in detections if item.label == label]):
        key = (item.video, item.frame)
        hit = False
        if rule == "best unmatched":
            boxes = free.get(key, [])
            if boxes:
                values = [box_iou(item.box, box, inclusive) for box in boxes]
                best = values.index(max(values))
                if values[best] >= iou:
                    hit = True
                    del boxes[best]
        else:
            boxes = every.get(key, [])
            if boxes:
                values = [box_iou(item.box, box, inclusive) for box in boxes]
                best = values.index(max(values))
                if values[best] >= iou and best not in taken[key]:
                    hit = True
                    taken[key].add(best)
        hits.append(hit)
    return hits


def frame_ap(
    truth: list[FrameBox],
    detections: list[FrameBox],
    label: int,
    iou: float = 0.5,
    rule: str = "best unmatched",
    inclusive: bool = True,
    which: str = "raw",
    annotated_only: bool = False,
) -> float | None:
    if annotated_only:
        annotated = {(item.video, item.frame) for item in truth}
        detections = [item for item in detections if (item.video, item.frame) in annotated]
    hits = frame_hits(truth, detections, label, iou, rule, inclusive)
    return ap_of(hits, sum(item.label == label for item in truth), which)


def frame_errors(truth: list[FrameBox], detections: list[FrameBox], label: int, iou: float) -> dict[str, float]:
    """The split of ACT's protocol."""
    own = {(item.video, item.frame) for item in truth if item.label == label}
    other: dict[tuple[int, int], list[Box]] = {}
    for item in truth:
        if item.label != label:
            other.setdefault((item.video, item.frame), []).append(item.box)
    videos = {item.video for item in truth if item.label == label}

    hits = frame_hits(truth, detections, label, iou, "best unmatched", inclusive=True)
    outcomes = []
    for item, hit in zip(by_score([item for item in detections if item.label == label]), hits, strict=True):
        key = (item.video, item.frame)
        if hit:
            outcomes.append("right")
        elif key in own:
            outcomes.append("localization")
        elif key in other:
            best = max(box_iou(item.box, box, inclusive=True) for box in other[key])
            outcomes.append("classification" if best >= iou else "other")
        elif item.video in videos:
            outcomes.append("time")
        else:
            outcomes.append("other")
    return integrate(outcomes, sum(item.label == label for item in truth))


def integrate(outcomes: list[str], truths: int) -> dict[str, float]:
    """The area of each outcome's share over recall, and what is missed."""
    parts = {}
    for name in ("right", "localization", "classification", "time", "other"):
        area = 0.0
        share, recall = (1.0 if name == "right" else 0.0), 0.0
        count = found = 0
        for i, outcome in enumerate(outcomes):
            count += outcome == name
            found += outcome == "right"
            area += (found / truths - recall) * (count / (i + 1) + share) / 2
            share, recall = count / (i + 1), found / truths
        parts[name] = area
    parts["missed"] = 1 - sum(outcome == "right" for outcome in outcomes) / truths
    return parts


# Suppression


def suppress(scores: list[float], overlap, threshold: float) -> list[float | None]:
    """For each item the overlap with the one that suppressed it; None if it is kept."""
    left = sorted(range(len(scores)), key=lambda i: -scores[i])
    hit: list[float | None] = [None] * len(scores)
    while left:
        leader = left.pop(0)
        rest = []
        for i in left:
            value = overlap(leader, i)
            if value > threshold:
                hit[i] = value
            else:
                rest.append(i)
        left = rest
    return hit


def pool(tubelets: list[Tubelet], threshold: float | None, soft: bool) -> list[FrameBox]:
    """All boxes of all tubelets in their frames, suppressed class by class."""
    boxes = []
    for item in tubelets:
        for k, box in enumerate(item.boxes):
            boxes.append(FrameBox(item.video, item.start + k, item.label, box, item.score))
    if threshold is None:
        return boxes

    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, item in enumerate(boxes):
        groups.setdefault((item.video, item.frame, item.label), []).append(i)
    result: dict[int, FrameBox] = {}
    for members in groups.values():
        group = [boxes[i] for i in members]
        hit = suppress(
            [item.score for item in group], lambda a, b, g=group: box_iou(g[a].box, g[b].box, inclusive=True), threshold
        )
        for i, item, value in zip(members, group, hit, strict=True):
            if value is None:
                result[i] = item
            elif soft:
                result[i] = item._replace(score=item.score * (1 - value))
    return [result[i] for i in sorted(result)]


def summed_iou(a: Tubelet, b: Tubelet) -> float:
    total = 0.0
    for box_a, box_b in zip(a.boxes, b.boxes, strict=True):
        total += box_iou(box_a, box_b, inclusive=True)
    return total


def best_tubelets(tubelets: list[Tubelet], threshold: float, soft: bool, most: int) -> list[Tubelet]:
    """Those of one class that start in one frame, suppressed, the best of them, in their order."""
    length = len(tubelets[0].boxes) if tubelets else 0
    hit = suppress(
        [item.score for item in tubelets], lambda a, b: summed_iou(tubelets[a], tubelets[b]), threshold * length
    )
    left = []
    for item, value in zip(tubelets, hit, strict=True):
        if value is None:
            left.append(item)
        elif soft:
            left.append(item._replace(score=item.score * (1 - value)))
    best = by_score(left)[:most]
    return [item for item in left if any(item is other for other in best)]


def suppress_tracks(tracks: list[Track], threshold: float, least_common: int = 1) -> list[Track]:
    """Class by class and video by video."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, track in enumerate(tracks):
        groups.setdefault((track.video, track.label), []).append(i)
    kept = []
    for members in groups.values():
        group = [tracks[i] for i in members]
        hit = suppress(
            [track.score for track in group],
            lambda a, b, g=group: tube_iou(g[a].boxes, g[b].boxes, least_common),
            threshold,
        )
        kept += [i for i, value in zip(members, hit, strict=True) if value is None]
    return [tracks[i] for i in sorted(kept)]


# Linking


class Growing:
    """A tube that is being linked; its number tells which of two tubes began first."""

    def __init__(self, tubelet: Tubelet, number: int) -> None:
        self.tubelets = [tubelet]
        self.number = number

    def score(self) -> float:
        total = 0.0
        for tubelet in self.tubelets:
            total += tubelet.score
        return total / len(self.tubelets)


def link_overlap(last: Tubelet, new: Tubelet) -> float:
    length = len(last.boxes)
    offset = new.start - last.start
    if offset >= length:
        return box_iou(last.boxes[-1], new.boxes[0], inclusive=True)
    total = 0.0
    for k in range(length - offset):
        total += box_iou(last.boxes[k + offset], new.boxes[k], inclusive=True)
    return total / (length - offset)


def link(
    tubelets: list[Tubelet],
    frames: int,
    *,
    threshold: float,
    soft: bool,
    overlap: float,
    gap: int,
    most: int = 10,
) -> list[Growing]:
    """Link the tubelets of one video and class; all tubes in the order in which they began."""
    every: list[Growing] = []
    open_tubes: list[Growing] = []
    for frame in range(frames):
        candidates = best_tubelets([item for item in tubelets if item.start == frame], threshold, soft, most)
        open_tubes.sort(key=lambda tube: (-tube.score(), tube.number))
        still_open = []
        for tube in open_tubes:
            last = tube.tubelets[-1]
            valid = [item for item in candidates if link_overlap(last, item) >= overlap]
            if valid:
                best = by_score(valid)[0]
                tube.tubelets.append(best)
                candidates = [item for item in candidates if item is not best]
                still_open.append(tube)
            elif frame - last.start < gap:
                still_open.append(tube)
        open_tubes = still_open
        for item in candidates:
            tube = Growing(item, len(every))
            every.append(tube)
            open_tubes.append(tube)
    return every


def track_of(tube: Growing) -> Track:
    """The mean box of each frame; frames that no tubelet covers lie on the straight line between their neighbors."""
    first = tube.tubelets[0]
    covering: dict[int, list[Box]] = {}
    for tubelet in tube.tubelets:
        for k, box in enumerate(tubelet.boxes):
            covering.setdefault(tubelet.start + k, []).append(box)

    boxes: Boxes = {}
    for frame, members in covering.items():
        sums = [0.0, 0.0, 0.0, 0.0]
        for box in members:
            for i in range(4):
                sums[i] += box[i]
        boxes[frame] = (
            sums[0] / len(members),
            sums[1] / len(members),
            sums[2] / len(members),
            sums[3] / len(members),
        )
    for frame in range(min(covering), max(covering) + 1):
        if frame not in covering:
            before = max(other for other in covering if other < frame)
            after = min(other for other in covering if other > frame)
            share = (frame - before) / (after - before)
            a, b, c, d = (boxes[before][i] + share * (boxes[after][i] - boxes[before][i]) for i in range(4))
            boxes[frame] = (a, b, c, d)
    return Track(first.video, first.label, dict(sorted(boxes.items())), tube.score())


def link_all(tubelets: list[Tubelet], frames: int, least_score: float, least_length: int = 15, **rules) -> list[Track]:
    """The tubes of all videos and classes."""
    tracks = []
    for video, label in sorted({(item.video, item.label) for item in tubelets}):
        chain = [item for item in tubelets if (item.video, item.label) == (video, label)]
        for tube in link(chain, frames, **rules):
            track = track_of(tube)
            if track.score >= least_score and len(track.boxes) >= least_length:
                tracks.append(track)
    return tracks


def link_yowo(boxes: list[FrameBox], lengths: list[int]) -> list[Track]:
    """Up to three best paths through all frames, for each video and class with a box."""
    tracks = []
    for video, label in sorted({(item.video, item.label) for item in boxes}):
        frames: list[list[tuple[Box, float]]] = [[] for _ in range(lengths[video])]
        for item in boxes:
            if (item.video, item.label) == (video, label):
                frames[item.frame].append((item.box, item.score))

        filled = [i for i, frame in enumerate(frames) if frame]
        complete = []
        for i, frame in enumerate(frames):
            nearest = min(filled, key=lambda j, i=i: (abs(j - i), j))
            complete.append(list(frame or frames[nearest]))
        for _ in range(3):
            if not all(complete):
                break
            path = best_path(complete)
            chosen = [complete[i].pop(j) for i, j in enumerate(path)]
            total = 0.0
            for _, score in chosen:
                total += score
            tracks.append(Track(video, label, {i: box for i, (box, _) in enumerate(chosen)}, total / len(chosen)))
    return tracks


def best_path(frames: list[list[tuple[Box, float]]]) -> list[int]:
    values = [0.0] * len(frames[-1])
    following: list[list[int]] = []
    for i in range(len(frames) - 2, -1, -1):
        new_values = []
        steps = []
        for box, score in frames[i]:
            worth = []
            for j, (next_box, next_score) in enumerate(frames[i + 1]):
                edge = box_iou(box, next_box, inclusive=False) + (score + next_score) + 0.5 * (score * next_score)
                worth.append(edge + values[j])
            steps.append(worth.index(max(worth)))
            new_values.append(max(worth))
        following.insert(0, steps)
        values = new_values
    path = [values.index(max(values))]
    for steps in following:
        path.append(steps[path[-1]])
    return path


# Videos


def video_hits(truth: list[Track], tracks: list[Track], label: int, threshold: float, least_common: int) -> list[bool]:
    free: dict[int, list[Track]] = {}
    for track in truth:
        if track.label == label:
            free.setdefault(track.video, []).append(track)
    hits = []
    for track in by_score([track for track in tracks if track.label == label]):
        candidates = free.get(track.video, [])
        values = [tube_iou(track.boxes, other.boxes, least_common) for other in candidates]
        hit = bool(values) and max(values) >= threshold
        if hit:
            del candidates[values.index(max(values))]
        hits.append(hit)
    return hits


def video_ap(
    truth: list[Track],
    tracks: list[Track],
    label: int,
    threshold: float,
    which: str = "raw",
    least_common: int = 1,
) -> float | None:
    hits = video_hits(truth, tracks, label, threshold, least_common)
    return ap_of(hits, sum(track.label == label for track in truth), which)


def video_errors(truth: list[Track], tracks: list[Track], label: int, threshold: float) -> dict[str, float]:
    hits = video_hits(truth, tracks, label, threshold, 1)
    outcomes = []
    for track, hit in zip(by_score([track for track in tracks if track.label == label]), hits, strict=True):
        in_video = [other for other in truth if other.video == track.video]
        own = [other for other in in_video if other.label == label]
        meeting = [other for other in own if set(other.boxes) & set(track.boxes)]
        if hit:
            outcomes.append("right")
        elif meeting:
            in_place = any(spatial_iou(track.boxes, other.boxes) >= threshold for other in meeting)
            overlapping = any(tube_iou(track.boxes, other.boxes) >= threshold for other in meeting)
            outcomes.append("time" if in_place and not overlapping else "localization")
        elif any(tube_iou(track.boxes, other.boxes) >= threshold for other in in_video if other.label != label):
            outcomes.append("classification")
        elif own:
            outcomes.append("time")
        else:
            outcomes.append("other")
    return integrate(outcomes, sum(track.label == label for track in truth))

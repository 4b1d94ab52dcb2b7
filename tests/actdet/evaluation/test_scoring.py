"""All figures of a protocol, from files to numbers, against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actdet.evaluation import scoring
from actdet.evaluation.files import read_detections, read_truth
from actdet.evaluation.protocols import ACT, AVERAGED_THRESHOLDS, MOC, YOWO, LinkRules, Protocol
from actdet.evaluation.scoring import score_found
from tests.actdet.evaluation import loops
from tests.actdet.evaluation.loops import FrameBox, Track
from tests.actdet.evaluation.pickles import truth_content, write_folder, write_pickle
from tests.actdet.evaluation.scenes import CLASSES, FRAMES, Scene, frames_of, random_scene

PROTOCOLS = pytest.mark.parametrize("protocol", [ACT, MOC, YOWO], ids=lambda protocol: protocol.name)
LABELS = ("dive", "golf", "kick", "run")


def single(scene: Scene) -> Scene:
    """The same with numbers that single precision holds exactly."""
    tubelets = [item._replace(score=float(np.float32(item.score))) for item in scene.tubelets]
    return scene._replace(tubelets=tubelets)


def mean(values: list[float | None]) -> float | None:
    counted = [value for value in values if value is not None]
    return sum(counted) / len(counted) if counted else None


def tracks_by_loops(scene: Scene, pooled: list[FrameBox], protocol: Protocol, length: int) -> list[Track]:
    rules = protocol.link
    if rules is None:
        return loops.link_yowo(pooled, [FRAMES] * scene.videos)
    assert isinstance(rules, LinkRules)
    return loops.link_all(
        scene.tubelets,
        FRAMES,
        rules.least_score,
        rules.least_length,
        threshold=rules.suppression.threshold,
        soft=rules.suppression.soft,
        overlap=rules.overlap,
        gap=length if rules.gap is None else rules.gap,
    )


def figures_by_loops(scene: Scene, protocol: Protocol, length: int) -> list[float | None]:
    """frame-mAP in all and in annotated frames; video-mAP at 0.2, 0.5, 0.75 and over ten thresholds."""
    truth = frames_of(scene.truth)
    suppression = protocol.suppression
    pooled = loops.pool(
        scene.tubelets, suppression.threshold if suppression else None, suppression is not None and suppression.soft
    )
    values = []
    for annotated in (False, True):
        aps = [
            loops.frame_ap(truth, pooled, label, 0.5, protocol.rule, True, protocol.curve, annotated)
            for label in range(CLASSES)
        ]
        values.append(mean(aps))

    tracks = tracks_by_loops(scene, pooled, protocol, length)
    tracks = loops.suppress_tracks(tracks, 0.3, protocol.least_common)

    def video_map(threshold: float) -> float | None:
        return mean(
            [
                loops.video_ap(scene.truth, tracks, label, threshold, protocol.curve, protocol.least_common)
                for label in range(CLASSES)
            ]
        )

    values += [video_map(threshold) for threshold in (0.2, 0.5, 0.75)]
    return [*values, mean([video_map(threshold) for threshold in AVERAGED_THRESHOLDS])]


@PROTOCOLS
@pytest.mark.parametrize("most", [1, 2**20])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_files_of_the_act_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, length: int, most: int, protocol: Protocol
) -> None:
    """Pickles of truth and of tubelets, worked on video by video or all at once."""
    monkeypatch.setattr(scoring, "_MOST_BOXES", most)
    scene = single(random_scene(seed, length))
    names = [f"{LABELS[i]}/v_{i}" for i in range(scene.videos)]
    truth_path = write_pickle(tmp_path / "GT.pkl", truth_content(scene.truth, LABELS, names, FRAMES))
    folder = write_folder(tmp_path / "found", scene.tubelets, names, FRAMES, length, CLASSES)

    truth = read_truth(truth_path)
    found = read_detections(folder, truth, truth_path)
    done = []
    figures = score_found(truth, found, protocol, ["all", "annotated"], lambda *pair: done.append(pair))
    assert [(figure.name, figure.iou) for figure in figures] == [
        ("frame-mAP", "0.5"),
        ("frame-mAP", "0.5"),
        ("video-mAP", "0.2"),
        ("video-mAP", "0.5"),
        ("video-mAP", "0.75"),
        ("video-mAP", "0.5:0.95"),
    ]
    # Files hold labels in ascending order within a start frame, so equal scores come in that order.
    ordered = scene._replace(tubelets=sorted(scene.tubelets, key=lambda item: (item.video, item.start, item.label)))
    # Soft scores are rounded to single precision, which changes the order of few and only nearly equal ones.
    expected = figures_by_loops(ordered, protocol, length)
    tolerance = 0.02 if protocol is MOC else 1e-6
    assert [figure.precision.mean for figure in figures] == pytest.approx(expected, abs=tolerance)
    assert done[-1] == (scene.videos, scene.videos)
    assert len(done) == (scene.videos if most == 1 else 1)


def test_a_video_without_detections_still_has_its_truth(tmp_path: Path) -> None:
    """The second of two videos is missed in both kinds of figures."""
    box = (0.0, 0.0, 9.0, 9.0)
    truth = [Track(video, 0, dict.fromkeys(range(20), box)) for video in (0, 1)]
    truth_path = write_pickle(tmp_path / "GT.pkl", truth_content(truth, LABELS, ["a", "b"], 20))
    line = '{"video": "a", "frame": %d, "class": "dive", "score": 0.5, "box": [0, 0, 9, 9]}\n'
    lines = "".join(line % frame for frame in range(20))
    (tmp_path / "d.jsonl").write_text(lines)
    loaded = read_truth(truth_path)
    figures = score_found(loaded, read_detections(tmp_path / "d.jsonl", loaded, truth_path), ACT, ["all"])
    assert [figure.precision.mean for figure in figures] == pytest.approx([0.5] * 5)
    for figure in figures:
        assert figure.precision.truths[0] == (40 if figure.name == "frame-mAP" else 2)
        if figure.errors is not None:
            assert figure.errors.means()["missed"] == pytest.approx(0.5)


def test_perfect_detections_are_perfect_by_every_protocol(tmp_path: Path) -> None:
    """Truth fills its videos, as YOWO's tubes always do."""
    box = (0.0, 0.0, 9.0, 9.0)
    truth = [Track(i, i, dict.fromkeys(range(20), box)) for i in range(4)]
    truth_path = write_pickle(tmp_path / "GT.pkl", truth_content(truth, LABELS, list("abcd"), 20))
    lines = "".join(
        f'{{"video": "{name}", "frame": {frame}, "class": {i}, "score": 0.5, "box": [0, 0, 9, 9]}}\n'
        for i, name in enumerate("abcd")
        for frame in range(20)
    )
    (tmp_path / "d.jsonl").write_text(lines)
    loaded = read_truth(truth_path)
    for protocol in (ACT, MOC, YOWO):
        found = read_detections(tmp_path / "d.jsonl", loaded, truth_path)
        figures = score_found(loaded, found, protocol, ["all", "annotated"])
        assert [figure.precision.mean for figure in figures] == pytest.approx([1.0] * 6)


@pytest.mark.parametrize(("truth_kind", "found_kind", "names"), [
    ("tube", "tube", {"video-mAP"}),
    ("box", "box", {"frame-mAP"}),
    ("tube", "box", {"frame-mAP", "video-mAP"}),
    ("box", "tube", set()),
])  # fmt: skip
def test_what_can_be_computed(tmp_path: Path, truth_kind: str, found_kind: str, names: set[str]) -> None:
    lines = {
        "tube": '{"video": "a", "class": "x", "score": 1, "frames": [0, 1], "boxes": [[0, 0, 9, 9], [0, 0, 9, 9]]}\n',
        "box": '{"video": "a", "class": "x", "score": 1, "frame": 0, "box": [0, 0, 9, 9]}\n',
    }
    (tmp_path / "t").write_text(lines[truth_kind])
    (tmp_path / "d").write_text(lines[found_kind])
    truth = read_truth(tmp_path / "t")
    found = read_detections(tmp_path / "d", truth, tmp_path / "t")
    assert {figure.name for figure in score_found(truth, found, ACT, ["all"])} == names

"""Files as the ACT scripts and MOC write them, made from lists of tubes and tubelets."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.actdet.evaluation.loops import Track, Tubelet


def truth_content(
    truth: Sequence[Track], labels: Sequence[str], videos: Sequence[str], frames: int, train: Sequence[str] = ()
) -> dict[str, Any]:
    """What such a pickle holds: frames count from 1."""
    tubes: dict[str, dict[int, list[np.ndarray]]] = {}
    for track in truth:
        rows = np.array([(frame + 1, *box) for frame, box in track.boxes.items()], dtype=np.float32)
        tubes.setdefault(videos[track.video], {}).setdefault(track.label, []).append(rows)
    return {
        "labels": list(labels),
        "train_videos": [list(train)],
        "test_videos": [list(videos)],
        "nframes": dict.fromkeys([*videos, *train], frames),
        "resolution": dict.fromkeys([*videos, *train], (240, 320)),
        "gttubes": tubes,
    }


def write_pickle(path: Path, content: object, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_folder(
    folder: Path, tubelets: Sequence[Tubelet], videos: Sequence[str], frames: int, length: int, classes: int
) -> Path:
    """A pickle for each start frame of each video: label from 1 to (N, 4 K + 1)."""
    for video, name in enumerate(videos):
        for start in range(frames - length + 1):
            content = {}
            for label in range(classes):
                rows = [
                    [*(value for box in item.boxes for value in box), item.score]
                    for item in tubelets
                    if (item.video, item.start, item.label) == (video, start, label)
                ]
                content[label + 1] = np.array(rows, dtype=np.float32).reshape(-1, 4 * length + 1)
            write_pickle(folder / name / f"{start + 1:05d}.pkl", content)
    return folder

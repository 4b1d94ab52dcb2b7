"""The ablation of the tubelet detector trains each variant with each seed once, and its table is made of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import tubelet_ablation
from bench.tubelet_ablation import VARIANTS, main, table


def metrics(frame_map: float, switches: int) -> dict[str, Any]:
    tubes = {"frame_map": frame_map, "video_map": {"0.2": 0.5, "0.5": 0.25}, "switches": switches, "tubes": 9}
    return {"tubes": tubes, "clips": 4}


class Commands:
    """Stands for the command `actdet`: each detector is better than the one before."""

    def __init__(self, stop_after: int = 99) -> None:
        self.trained: list[list[str]] = []
        self.stop_after = stop_after

    def __call__(self, *words: object) -> None:
        command, *rest = map(str, words)
        if command == "train":
            if len(self.trained) == self.stop_after:
                raise KeyboardInterrupt
            self.trained.append(rest)
            out = Path(rest[rest.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            (out / "model.safetensors").touch()
            return
        assert command == "evaluate"
        assert Path(rest[0]).exists()
        out = Path(rest[rest.index("--out") + 1])
        out.mkdir(parents=True)
        count = len(self.trained)
        (out / "metrics.json").write_text(json.dumps(metrics(count / 100, count)))


def test_each_variant_is_trained_with_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = Commands()
    monkeypatch.setattr(tubelet_ablation, "actdet", commands)
    main(["train", "test", "--out", str(tmp_path), "--seeds", "2", "--", "--epochs", "1"])
    assert len(commands.trained) == 2 * len(VARIANTS)
    for number, words in enumerate(commands.trained):
        assert words[0] == "train"
        assert words[words.index("--seed") + 1] == str(number // len(VARIANTS))
        assert words[words.index("--epochs") + 1] == "1"
        changed = list(VARIANTS.values())[number % len(VARIANTS)]
        assert words[len(words) - len(changed) :] == list(changed)

    rows = json.loads((tmp_path / "ablation.json").read_text())
    assert [row["frame_map"] for row in rows] == [(number + 1) / 100 for number in range(10)]
    assert all({"device", "versions", "commit", "date"} <= row.keys() for row in rows)
    assert "| as it is | 0.035 (0.010 to 0.060) | 0.500 (0.500 to 0.500) |" in capsys.readouterr().out


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "test", "--out", str(tmp_path), "--seeds", "1"]
    first = Commands(stop_after=3)
    monkeypatch.setattr(tubelet_ablation, "actdet", first)
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert len(json.loads((tmp_path / "ablation.json").read_text())) == 3

    # The fourth was stopped in its training, and the fifth in its evaluation.
    stopped, evaluated = (tmp_path / f"{name}_0" / "run" for name in ("the_last_stage_alone", "plain_attention"))
    for folder, file in ((stopped, "last.safetensors"), (evaluated, "model.safetensors")):
        folder.mkdir(parents=True)
        (folder / file).touch()
    second = Commands()
    monkeypatch.setattr(tubelet_ablation, "actdet", second)
    main(words)
    (resumed,) = second.trained
    assert resumed[resumed.index("--out") + 1] == str(stopped)
    assert resumed[-1] == "--resume"
    rows = json.loads((tmp_path / "ablation.json").read_text())
    assert [row["name"] for row in rows] == list(VARIANTS)


def test_the_table_has_means_and_ranges() -> None:
    rows = [
        {"name": name, "frame_map": value, "video_map_20": 0.5, "video_map_50": value / 2, "switches": switches}
        for name, value, switches in (("as it is", 0.2, 3), ("other", 0.1, 9), ("as it is", 0.4, 6))
    ]
    assert table(rows).splitlines()[2:] == [
        "| as it is | 0.300 (0.200 to 0.400) | 0.500 (0.500 to 0.500) | 0.150 (0.100 to 0.200) | 4 (3 to 6) |",
        "| other | 0.100 (0.100 to 0.100) | 0.500 (0.500 to 0.500) | 0.050 (0.050 to 0.050) | 9 (9 to 9) |",
    ]

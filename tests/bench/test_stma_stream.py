"""The benchmark of a stream measures all ways on the same frames, and counts less arithmetic where more is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.stma_stream import INTERVALS, main


def test_a_row_for_each_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--image-size", "32", "--frames", "4", "--results", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    names = [f"kept, clip every {interval}" for interval in INTERVALS]
    assert [row["name"] for row in rows] == ["computed anew", *names]
    flops = [row["gflop"] for row in rows]
    assert flops == sorted(flops, reverse=True)
    # The picture backbone alone is most of what is not computed again.
    assert flops[1] < 0.6 * flops[0]
    printed = capsys.readouterr().out
    for row in rows:
        assert min(row["median_ms"], row["mean_ms"]) > 0
        assert row.keys() >= {"device", "versions", "commit", "date"}
        assert f"| {row['name']} | {row['mean_ms']:.1f} |" in printed

"""The share of training that waits for clips, as read from a log."""

from __future__ import annotations

from typing import Any

import pytest

from bench.stall import epochs_of


def line(epoch: float, clips_per_second: float, data_share: float) -> dict[str, Any]:
    return {"epoch": epoch, "speed": {"clips_per_second": clips_per_second, "data_share": data_share}}


def test_lines_count_by_the_time_that_they_tell_of() -> None:
    """60 clips in 6 s, of which 3 are waited for, and 20 in 4 s, of which 1: 4 of 10 s."""
    log = [
        line(0.75, 10, 0.5),
        line(1.0, 5, 0.25),
        {"epoch": 1, "validation": {}},
        line(1.5, 20, 0),
        line(2.0, 40, 0.1),
    ]
    first, second = epochs_of(log, clips=80)
    assert first == pytest.approx({"data_share": 0.4, "clips_per_s": 8})
    assert second == pytest.approx({"data_share": 0.1 / 3, "clips_per_s": 80 / 3})


def test_a_log_without_the_share_is_no_log_of_ours() -> None:
    with pytest.raises(KeyError, match="data_share"):
        epochs_of([{"epoch": 1.0, "speed": {"clips_per_second": 3.0}}], clips=8)

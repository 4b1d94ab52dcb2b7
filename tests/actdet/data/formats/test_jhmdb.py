"""JHMDB: its pickle, of which UCF101-24's is the twin, with three splits."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from actdet.data.formats.jhmdb import read_jhmdb
from actdet.data.formats.source import Split
from actdet.errors import DataError
from tests.actdet.data.formats.sources import tubes_of
from tests.actdet.data.formats.test_ucf101_24 import write_pickle

CATCH = "catch/Ball_catch_u_nm_np1_fr_goo_0"
JUMP = "jump/Boys_jump_f_cm_np1_ri_med_3"


def test_the_pickle_is_read(tmp_path: Path) -> None:
    rows = np.array([[1, 10, 20, 30, 40], [2, 11, 20, 31, 40]], np.float32)
    content = {
        "labels": ["catch", "jump"],
        "gttubes": {CATCH: {0: [rows]}, JUMP: {1: [rows[:1]]}},
        "nframes": {CATCH: 40, JUMP: 33},
        "train_videos": [[CATCH], [JUMP], [CATCH]],
        "test_videos": [[JUMP], [CATCH], [JUMP]],
        "resolution": {CATCH: (240, 320), JUMP: (240, 320)},
    }
    source = read_jhmdb(write_pickle(tmp_path / "JHMDB-GT.pkl", content), None)
    assert source.class_names == ("catch", "jump")
    assert tubes_of(source, CATCH) == [(0, [0, 1], [[10, 20, 30, 40], [11, 20, 31, 40]])]
    assert tubes_of(source, JUMP) == [(1, [0], [[10, 20, 30, 40]])]
    assert source.splits == [Split({CATCH}, {JUMP}), Split({JUMP}, {CATCH}), Split({CATCH}, {JUMP})]
    assert {video.rate for video in source.videos} == {Fraction(30)}
    assert {video.group for video in source.videos} == {None}


def test_a_folder_without_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no annotation; expected JHMDB-GT\.pkl"):
        read_jhmdb(tmp_path, None)

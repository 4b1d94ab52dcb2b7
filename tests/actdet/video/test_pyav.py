"""The processes that decode give what this one does, are reported if they die or hang, and never outlive their work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from actdet.errors import ActdetError
from actdet.video import pyav
from actdet.video.decoding import decode_frames
from actdet.video.info import VideoInfo
from actdet.video.pyav import PyAVReader
from tests.actdet.video.clips import SIZE, check_answers, requests_of


def test_processes_give_exactly_what_this_one_does(clips: list[VideoInfo]) -> None:
    requests = requests_of(clips)
    with PyAVReader(SIZE, workers=2) as reader:
        for (info, indices), clip in zip(requests, reader.read(requests), strict=True):
            assert isinstance(clip, torch.Tensor)
            np.testing.assert_array_equal(clip.numpy(), decode_frames(info, indices, SIZE))


def test_a_dead_process_is_reported_and_not_waited_for(clips: list[VideoInfo]) -> None:
    requests = requests_of(clips) * 4
    with PyAVReader(SIZE, workers=2) as reader:
        answers = reader.read(requests)
        next(answers)
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGKILL)
        with pytest.raises(ActdetError, match=r"the process that decoded it died \(exit code -9\)") as caught:
            list(answers)
        assert str(caught.value).partition(": ")[0] in {request.video.path for request in requests}


def test_a_process_that_no_longer_works_is_reported(clips: list[VideoInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a network drive has gone. One that only takes long goes on."""
    monkeypatch.setattr(pyav, "PATIENCE", 2.0)
    requests = requests_of(clips)
    with PyAVReader(SIZE, workers=1) as reader:
        check_answers(requests, list(reader.read(requests)))
        (process,) = multiprocessing.active_children()
        os.kill(process.pid or 0, signal.SIGSTOP)
        with pytest.raises(ActdetError, match=f"{clips[0].path}: no progress in decoding it for 2 s"):
            list(reader.read(requests))
    assert multiprocessing.active_children() == []


def test_processes_live_from_pass_to_pass_until_closed(clips: list[VideoInfo]) -> None:
    reader = PyAVReader(SIZE, workers=1)
    assert multiprocessing.active_children() == []
    list(reader.read(requests_of(clips)))
    first = [process.pid for process in multiprocessing.active_children()]
    list(reader.read(requests_of(clips)))
    assert [process.pid for process in multiprocessing.active_children()] == first

    # Ctrl-C on the terminal reaches every process of the group.
    os.kill(first[0] or 0, signal.SIGINT)
    check_answers(requests_of(clips), list(reader.read(requests_of(clips))))
    reader.close()
    assert multiprocessing.active_children() == []


SCRIPT = """
import sys
import numpy as np
from actdet.video.decoding import ClipRequest
from actdet.video.info import probe
from actdet.video.pyav import PyAVReader
if __name__ == "__main__":
    reader = PyAVReader((8, 8), workers=2)
    print(len(list(reader.read([ClipRequest(probe(sys.argv[1]), np.arange(3))] * 4))))
"""


def run_script(clip: VideoInfo, temporary: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that reads a clip and does not close its reader, with a folder for temporary files."""
    command = [sys.executable, "-c", SCRIPT, clip.path]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_a_script_ends_with_a_reader_that_nobody_closed(clips: list[VideoInfo], tmp_path: Path) -> None:
    done = run_script(clips[0], tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("4\n", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_what_keeps_a_process_from_answering_is_reported(clips: list[VideoInfo], tmp_path: Path) -> None:
    # This is longer than the path of a socket may be.
    long = tmp_path / ("n" * 100)
    long.mkdir()
    last = run_script(clips[0], long).stderr.splitlines()[-1]
    assert f"ReadError: {clips[0].path}: decoded, but not handed over (AF_UNIX path too long)" in last

"""All readers give the right frames in the right order, agree with each other, and fail in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from actdet.errors import DataError
from actdet.video.decoding import ClipRequest
from actdet.video.info import VideoInfo, probe
from actdet.video.readers import Reader, choose_reader, open_reader
from tests.actdet.video.clips import SIZE, check_answers, needs_dali, needs_gpu, requests_of
from tests.actdet.video.videos import corrupt, write_video

READERS = [
    pytest.param(("pyav", 0), id="in this process"),
    pytest.param(("pyav", 1), id="one process"),
    pytest.param(("pyav", 2), id="two processes"),
    pytest.param(("dali-cpu", 2), id="DALI on the CPU", marks=needs_dali),
    pytest.param(("dali-gpu", 2), id="DALI on the GPU", marks=[needs_dali, *needs_gpu]),
]


@pytest.fixture(scope="module", params=READERS)
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    name, workers = request.param
    with open_reader(name, SIZE, workers=workers) as opened:
        yield opened


@pytest.mark.parametrize("prefetch", [1, 3, 8, 100])
def test_clips_come_in_order_with_the_right_frames(reader: Reader, clips: list[VideoInfo], prefetch: int) -> None:
    requests = requests_of(clips)
    check_answers(requests, list(reader.read(iter(requests), prefetch)))
    assert list(reader.read([], prefetch)) == []


def test_indices_may_repeat_and_go_backwards(reader: Reader, clips: list[VideoInfo]) -> None:
    requests = [ClipRequest(clips[0], np.array([39, 0, 0, 17, 39, 3]))]
    check_answers(requests, list(reader.read(requests)))


def test_a_pass_given_up_leaves_nothing_behind(reader: Reader, clips: list[VideoInfo]) -> None:
    requests = [ClipRequest(clips[0], np.array([n])) for n in range(12)]
    for taken in (1, 5, 11):
        abandoned = reader.read(requests)
        for _ in range(taken):
            next(abandoned)
        check_answers(requests, list(reader.read(requests)))


def test_damaged_and_missing_files_come_as_errors_among_the_others(
    reader: Reader, clips: list[VideoInfo], tmp_path: Path
) -> None:
    damaged = probe(corrupt(write_video(tmp_path / "bad.webm", "libvpx-vp9"), range(20, 24)))
    gone = probe(write_video(tmp_path / "gone.webm", "libvpx-vp9", frames=5))
    Path(gone.path).unlink()
    good = requests_of(clips)
    bad = {
        4: ClipRequest(damaged, np.arange(40)),
        5: ClipRequest(gone, np.arange(5)),
        12: ClipRequest(gone, np.arange(2)),
    }
    requests = list(good)
    for place, request in bad.items():
        requests.insert(place, request)

    # The reader goes on after the errors, in the same pass and in the next.
    for _ in range(2):
        answers = list(reader.read(requests))
        check_answers(good, [answer for place, answer in enumerate(answers) if place not in bad])
        for place, request in bad.items():
            error = answers[place]
            assert isinstance(error, DataError)
            assert error.path == request.video.path
            assert "\n" not in str(error)
        assert "of its 40 frames decode" in str(answers[4])


@needs_dali
def test_the_readers_agree_on_natural_pictures(tmp_path: Path) -> None:
    """On VP9, measured: resized, 0.20 of 255 on average, 1 at the 99th percentile, 3 at most; otherwise equal."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    base = image.fromarray(rng.integers(40, 215, (9, 12, 3), dtype=np.uint8)).resize((360, 270), 3)
    pictures = np.stack([np.asarray(base)[i : i + 240, 2 * i : 2 * i + 320] for i in range(16)])
    info = probe(write_video(tmp_path / "clip.webm", "libvpx-vp9", 16, (320, 240), pictures=pictures))
    request = ClipRequest(info, np.arange(16))

    for size, mean, percentile in (((112, 112), 0.25, 1), ((240, 320), 0, 0)):
        with open_reader("pyav", size) as pyav, open_reader("dali-cpu", size) as dali:
            (ours,) = pyav.read([request])
            (theirs,) = dali.read([request])
        difference = np.abs(np.asarray(ours, int) - np.asarray(theirs))
        assert difference.mean() <= mean
        assert np.percentile(difference, 99) <= percentile


def test_the_choice_and_its_reason(clips: list[VideoInfo]) -> None:
    assert choose_reader("auto", torch.device("cpu"), clips) == ("pyav", "DALI decodes few codecs on a CPU")
    assert choose_reader("pyav", torch.device("cuda"), clips) == ("pyav", "asked for")


def test_without_dali_its_package_is_named() -> None:
    """In a process of its own, in which the import of DALI is made to fail."""
    code = """
import importlib.util, sys, torch
sys.modules["nvidia.dali"] = None
real = importlib.util.find_spec
from actdet.errors import ActdetError
from actdet.video import readers
readers.find_spec = lambda name: None if name == "nvidia.dali" else real(name)
print(*readers.choose_reader("auto", torch.device("cuda")))
choose = lambda: readers.choose_reader("dali", torch.device("cpu"))
for call in (choose, lambda: readers.open_reader("dali-cpu", (8, 8))):
    try:
        call()
    except ActdetError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("pyav DALI is not installed")
    package = f"nvidia-dali-cuda{(torch.version.cuda or '13').split('.')[0]}0"
    assert all(f"pip install {package}" in line for line in lines)
    assert all("pyav" in line for line in lines)

"""Both readers give the right frames in the right order, agree with each other, and fail in one line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from videos import corrupt, shown_number, trim, write_video

from actdet.data.readers import PyAVReader, Reader, choose_reader, open_reader
from actdet.data.video import ClipRequest, VideoInfo, decode_frames, probe, sample_frames
from actdet.errors import ActdetError, DataError

SIZE = (40, 56)

needs_dali = pytest.mark.skipif(
    choose_reader("auto", torch.device("cuda"))[0] != "dali-gpu", reason="DALI is not installed"
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[VideoInfo]:
    """Files that both readers decode, of different sizes, lengths, containers and rotations."""
    folder = tmp_path_factory.mktemp("clips")
    vp9, vp8 = "libvpx-vp9", "libvpx"
    uneven = [40 * i + 13 * (i % 2) for i in range(24)]
    paths = [
        write_video(folder / "a.webm", vp9, frames=40),
        write_video(folder / "b.webm", vp9, frames=9, size=(97, 55)),
        write_video(folder / "c.mp4", vp9, frames=30, size=(80, 120), rotation=90),
        write_video(folder / "d.mkv", vp9, frames=24, size=(96, 64), rotation=180, pts=uneven),
        write_video(folder / "e.mkv", vp8, frames=20, size=(64, 64), options={"deadline": "realtime"}),
        write_video(folder / "f.avi", "mjpeg", frames=12, rotation=0),
        write_video(folder / "g.webm", vp9, frames=1),
    ]
    return [probe(path) for path in paths]


needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
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


def numbers(info: VideoInfo, clip: torch.Tensor) -> list[int]:
    """The numbers that the frames show: those of rotated videos lie as they were coded."""
    return [shown_number(np.rot90(picture, -info.rotation // 90)) for picture in clip.cpu().numpy()]


def batches_of(clips: list[VideoInfo]) -> list[list[ClipRequest]]:
    """All clips at once, the same backwards, and a last batch that is not full."""
    requests = [ClipRequest(info, sample_frames(info, 16)) for info in clips]
    return [requests, requests[::-1], requests[2:4]]


def test_batches_come_in_order_with_the_right_frames(reader: Reader, clips: list[VideoInfo]) -> None:
    batches = batches_of(clips)
    got = list(reader.read(iter(batches)))
    assert [tuple(batch.shape) for batch in got] == [(len(batch), 16, *SIZE, 3) for batch in batches]
    for batch, tensor in zip(batches, got, strict=True):
        assert tensor.dtype == torch.uint8
        assert tensor.is_contiguous()
        for (info, indices), clip in zip(batch, tensor, strict=True):
            assert numbers(info, clip) == indices.tolist()


def test_indices_may_repeat_and_go_backwards(reader: Reader, clips: list[VideoInfo]) -> None:
    wanted = np.array([39, 0, 0, 17, 39, 3])
    (batch,) = reader.read([[ClipRequest(clips[0], wanted)]])
    assert numbers(clips[0], batch[0]) == wanted.tolist()


def test_a_pass_given_up_leaves_nothing_behind(reader: Reader, clips: list[VideoInfo]) -> None:
    batches = [[ClipRequest(clips[0], np.array([n]))] for n in range(12)]
    abandoned = reader.read(batches)
    next(abandoned)
    again = [numbers(clips[0], batch[0])[0] for batch in reader.read(batches)]
    assert again == list(range(12))
    assert list(reader.read([])) == []


def test_a_damaged_file_arrives_as_its_data_error(reader: Reader, clips: list[VideoInfo], tmp_path: Path) -> None:
    bad = probe(corrupt(write_video(tmp_path / "bad.webm", "libvpx-vp9"), range(20, 24)))
    batch = [ClipRequest(info, np.full(4, len(info.pts) - 1)) for info in (clips[0], bad)]
    with pytest.raises(DataError, match="of its 40 frames decode") as caught:
        list(reader.read([batch]))
    assert caught.value.path == bad.path
    assert "\n" not in str(caught.value)
    # The reader goes on after it.
    assert len(list(reader.read(batches_of(clips)))) == 3


def test_processes_give_exactly_what_this_one_does(clips: list[VideoInfo]) -> None:
    batches = batches_of(clips)
    with PyAVReader(SIZE, workers=1) as spawned:
        for batch, tensor in zip(batches, spawned.read(batches), strict=True):
            for (info, indices), clip in zip(batch, tensor, strict=True):
                np.testing.assert_array_equal(clip.numpy(), decode_frames(info, indices, SIZE))


def test_a_dead_process_is_told_and_not_waited_for(clips: list[VideoInfo]) -> None:
    with PyAVReader(SIZE, workers=2) as reader:
        pass_ = reader.read(batches_of(clips) * 4)
        next(pass_)
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGKILL)
        with pytest.raises(ActdetError, match=r"a decoding process died \(exit code -9\)"):
            list(pass_)


def test_processes_live_from_pass_to_pass_until_closed(clips: list[VideoInfo]) -> None:
    reader = PyAVReader(SIZE, workers=1)
    assert multiprocessing.active_children() == []
    list(reader.read(batches_of(clips)))
    first = [process.pid for process in multiprocessing.active_children()]
    list(reader.read(batches_of(clips)))
    assert [process.pid for process in multiprocessing.active_children()] == first
    # Ctrl-C on the terminal reaches every process of the group.
    os.kill(first[0] or 0, signal.SIGINT)
    assert len(list(reader.read(batches_of(clips)))) == 3
    reader.close()
    assert multiprocessing.active_children() == []


@needs_dali
def test_the_readers_agree_on_natural_pictures(tmp_path: Path) -> None:
    """On VP9, measured: resized 0.20 of 255 on average, 1 at the 99th percentile, 3 at most; else equal."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    base = image.fromarray(rng.integers(40, 215, (9, 12, 3), dtype=np.uint8)).resize((360, 270), 3)
    pictures = np.stack([np.asarray(base)[i : i + 240, 2 * i : 2 * i + 320] for i in range(16)])
    info = probe(write_video(tmp_path / "clip.webm", "libvpx-vp9", 16, (320, 240), pictures=pictures))
    request = ClipRequest(info, np.arange(16))
    for size, mean, percentile in (((112, 112), 0.25, 1), ((240, 320), 0, 0)):
        (ours,), (theirs,) = (open_reader(name, size).read([[request]]) for name in ("pyav", "dali-cpu"))
        difference = np.abs(ours.numpy().astype(int) - theirs.numpy())
        assert difference.mean() <= mean
        assert np.percentile(difference, 99) <= percentile


@needs_dali
def test_dali_on_a_cpu_refuses_a_codec_it_lacks(clips: list[VideoInfo], tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "phone.mp4"))
    with pytest.raises(ActdetError, match=r"only mjpeg, vp8, vp9, and .*phone.mp4 is h264; use reader pyav"):
        choose_reader("dali", torch.device("cpu"), [*clips, info])
    with (
        open_reader("dali-cpu", SIZE) as reader,
        pytest.raises(ActdetError, match=r"DALI cannot decode one of .*phone.mp4.*use reader pyav") as caught,
    ):
        list(reader.read([[ClipRequest(info, np.arange(4))]]))
    assert "\n" not in str(caught.value)


def test_the_choice_and_its_reason(clips: list[VideoInfo]) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_reader("auto", cpu, clips) == ("pyav", "DALI decodes few codecs on a CPU")
    assert choose_reader("pyav", cuda, clips) == ("pyav", "asked for")


@needs_dali
def test_the_choice_where_dali_is_installed(clips: list[VideoInfo], tmp_path: Path) -> None:
    cuda = torch.device("cuda")
    assert choose_reader("dali", torch.device("cpu"), clips) == ("dali-cpu", "asked for")
    assert choose_reader("auto", cuda, clips) == ("dali-gpu", "decodes on the GPU")
    other = probe(write_video(tmp_path / "old.avi", "msmpeg4v2"))
    name, reason = choose_reader("auto", cuda, [*clips, other])
    assert name == "pyav"
    assert "old.avi is msmpeg4v2" in reason


@needs_dali
def test_dali_is_not_given_what_it_would_misnumber(tmp_path: Path) -> None:
    trimmed = trim(write_video(tmp_path / "trimmed.mp4", options={"bf": "2"}), seconds=0.8)
    untimed = write_video(tmp_path / "untimed.avi", "mpeg4")
    for path, problem in ((trimmed, r"has \d+ packets without a frame"), (untimed, "has no timestamps")):
        with pytest.raises(ActdetError, match=f"reader dali cannot be used: {path} {problem}.*; use reader pyav"):
            choose_reader("dali", torch.device("cuda"), [probe(path)])
        assert choose_reader("auto", torch.device("cuda"), [probe(path)])[0] == "pyav"


def test_without_dali_its_extra_is_named() -> None:
    """In a process of its own, where the import of DALI is made to fail."""
    code = """
import importlib.util, sys, torch
sys.modules["nvidia.dali"] = None
real = importlib.util.find_spec
from actdet.data import readers
readers.find_spec = lambda name: None if name == "nvidia.dali" else real(name)
print(*readers.choose_reader("auto", torch.device("cuda")))
choose = lambda: readers.choose_reader("dali", torch.device("cpu"))
for call in (choose, lambda: readers.open_reader("dali-cpu", (8, 8))):
    try:
        call()
    except readers.ActdetError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("pyav DALI is not installed")
    assert all("pip install 'actdet[cuda13]'" in line for line in lines)
    assert all("pyav" in line for line in lines)

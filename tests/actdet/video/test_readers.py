"""Both readers give the right frames in the right order, agree with each other, and fail in one line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from actdet.errors import ActdetError, DataError
from actdet.video import readers
from actdet.video.decoding import ClipRequest, VideoInfo, decode_frames, probe, sample_frames
from actdet.video.readers import PyAVReader, Reader, choose_reader, open_reader
from tests.actdet.video.videos import corrupt, shown_number, trim, write_video

SIZE = (40, 56)

HAS_DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="needs DALI")


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


def requests_of(clips: list[VideoInfo]) -> list[ClipRequest]:
    """All clips, some again, of 16 frames, of all their frames, and of one."""
    spread = [ClipRequest(info, sample_frames(info, 16)) for info in clips]
    whole = [ClipRequest(info, np.arange(len(info.pts))) for info in clips[::-1]]
    return [*spread, *whole, ClipRequest(clips[0], np.array([39])), *spread[2:4]]


def check(requests: list[ClipRequest], answers: list[torch.Tensor | DataError]) -> None:
    assert len(answers) == len(requests)
    for (info, indices), clip in zip(requests, answers, strict=True):
        assert isinstance(clip, torch.Tensor), clip
        assert clip.shape == (len(indices), *SIZE, 3)
        assert clip.dtype == torch.uint8
        assert clip.is_contiguous()
        assert numbers(info, clip) == indices.tolist()


@pytest.mark.parametrize("ahead", [1, 3, 8, 100])
def test_clips_come_in_order_with_the_right_frames(reader: Reader, clips: list[VideoInfo], ahead: int) -> None:
    requests = requests_of(clips)
    check(requests, list(reader.read(iter(requests), ahead)))
    assert list(reader.read([], ahead)) == []


def test_indices_may_repeat_and_go_backwards(reader: Reader, clips: list[VideoInfo]) -> None:
    requests = [ClipRequest(clips[0], np.array([39, 0, 0, 17, 39, 3]))]
    check(requests, list(reader.read(requests)))


def test_a_pass_given_up_leaves_nothing_behind(reader: Reader, clips: list[VideoInfo]) -> None:
    requests = [ClipRequest(clips[0], np.array([n])) for n in range(12)]
    for taken in (1, 5, 11):
        abandoned = reader.read(requests)
        for _ in range(taken):
            next(abandoned)
        check(requests, list(reader.read(requests)))


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
    for _ in range(2):  # the reader goes on after it
        answers = list(reader.read(requests))
        check(good, [answer for place, answer in enumerate(answers) if place not in bad])
        for place, request in bad.items():
            error = answers[place]
            assert isinstance(error, DataError)
            assert error.path == request.video.path
            assert "\n" not in str(error)
        assert "of its 40 frames decode" in str(answers[4])


@needs_dali
def test_a_file_that_was_made_shorter_gives_no_black_frames(clips: list[VideoInfo], tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "clip.webm", "libvpx-vp9", frames=40))
    write_video(tmp_path / "clip.webm", "libvpx-vp9", frames=20)
    with open_reader("dali-cpu", SIZE) as reader:
        good, error = reader.read([ClipRequest(clips[0], np.arange(3)), ClipRequest(info, np.arange(30, 40))])
    check([ClipRequest(clips[0], np.arange(3))], [good])
    assert isinstance(error, DataError)
    assert f"had {info.bytes} bytes when it was indexed" in str(error)


@needs_dali
def test_a_long_clip_is_decoded_in_pieces(clips: list[VideoInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven frames each, as if pictures were large."""
    from actdet.video import dali

    monkeypatch.setattr(dali, "_MOST_BYTES", 7 * 64 * 48 * 3 + 5)
    requests = requests_of(clips)
    with open_reader("dali-cpu", SIZE) as reader:
        check(requests, list(reader.read(requests)))


def test_processes_give_exactly_what_this_one_does(clips: list[VideoInfo]) -> None:
    requests = requests_of(clips)
    with PyAVReader(SIZE, workers=2) as spawned:
        for (info, indices), clip in zip(requests, spawned.read(requests), strict=True):
            assert isinstance(clip, torch.Tensor)
            np.testing.assert_array_equal(clip.numpy(), decode_frames(info, indices, SIZE))


def test_a_dead_process_is_told_and_not_waited_for(clips: list[VideoInfo]) -> None:
    requests = requests_of(clips) * 4
    with PyAVReader(SIZE, workers=2) as reader:
        pass_ = reader.read(requests)
        next(pass_)
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGKILL)
        with pytest.raises(ActdetError, match=r"the process that decoded it died \(exit code -9\)") as caught:
            list(pass_)
        assert str(caught.value).partition(": ")[0] in {request.video.path for request in requests}


def test_a_process_that_does_nothing_any_more_is_told(clips: list[VideoInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a network drive has gone; one that only takes long goes on."""
    monkeypatch.setattr(readers, "PATIENCE", 2.0)
    requests = requests_of(clips)
    with PyAVReader(SIZE, workers=1) as reader:
        check(requests, list(reader.read(requests)))
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
    check(requests_of(clips), list(reader.read(requests_of(clips))))
    reader.close()
    assert multiprocessing.active_children() == []


SCRIPT = """
import sys
import numpy as np
from actdet.video.readers import PyAVReader
from actdet.video.decoding import ClipRequest, probe
if __name__ == "__main__":
    reader = PyAVReader((8, 8), workers=2)
    print(len(list(reader.read([ClipRequest(probe(sys.argv[1]), np.arange(3))] * 4))))
"""


def run_script(clip: VideoInfo, temporary: Path) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-c", SCRIPT, clip.path], {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_a_script_ends_with_a_reader_that_nobody_closed(clips: list[VideoInfo], tmp_path: Path) -> None:
    done = run_script(clips[0], tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("4\n", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_what_keeps_a_process_from_answering_is_told(clips: list[VideoInfo], tmp_path: Path) -> None:
    long = tmp_path / ("n" * 100)  # longer than the path of a socket may be
    long.mkdir()
    last = run_script(clips[0], long).stderr.splitlines()[-1]
    assert f"ReadError: {clips[0].path}: decoded, but not handed over (AF_UNIX path too long)" in last


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
        with open_reader("pyav", size) as pyav, open_reader("dali-cpu", size) as dali:
            (ours,), (theirs,) = pyav.read([request]), dali.read([request])
        difference = np.abs(np.asarray(ours, int) - np.asarray(theirs))
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
        list(reader.read([ClipRequest(info, np.arange(4))]))
    assert "\n" not in str(caught.value)


def test_the_choice_and_its_reason(clips: list[VideoInfo]) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_reader("auto", cpu, clips) == ("pyav", "DALI decodes few codecs on a CPU")
    assert choose_reader("pyav", cuda, clips) == ("pyav", "asked for")


@pytest.fixture
def video_decoder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of the GPU's: decodes what DALI does on the CPU. Gives the files that are tried."""
    from actdet.video import dali

    monkeypatch.setattr(readers, "_has_video_decoder", lambda: True)
    monkeypatch.setattr(dali, "_tried", {})
    tried: list[str] = []
    refusal = dali._refusal

    def on_the_cpu(name: str, video: VideoInfo) -> str:
        tried.append(Path(video.path).name)
        return refusal("dali-cpu", video)

    monkeypatch.setattr(dali, "_refusal", on_the_cpu)
    return tried


@needs_dali
def test_what_the_gpu_refuses_is_found_once_and_read_by_pyav(
    clips: list[VideoInfo], tmp_path: Path, video_decoder: list[str]
) -> None:
    """AV1 on older cards, 10 bits, 4:2:2 and sizes: here H.264, which DALI decodes on a GPU alone."""
    cuda = torch.device("cuda")
    phone = probe(write_video(tmp_path / "phone.mp4", rotation=90))
    for _ in range(2):
        assert choose_reader("auto", cuda, [*clips, phone]) == (
            "pyav",
            f"{phone.path} (h264, yuv420p, 64 x 48) is not decoded here: Assert on "
            '"frames_decoders_[s]->IsValid()" failed: Failed to create video decoder for "memory file"',
        )
    with pytest.raises(ActdetError, match=r"^reader dali cannot be used: .*phone.mp4 \(h264.*; use reader pyav$"):
        choose_reader("dali", cuda, [phone])
    assert video_decoder.count("phone.mp4") == 1
    assert choose_reader("auto", cuda, clips) == ("dali-gpu", "decodes on the GPU")


@needs_dali
def test_of_each_kind_of_video_the_extreme_sizes_are_tried(
    clips: list[VideoInfo], tmp_path: Path, video_decoder: list[str]
) -> None:
    """VP9 of 64 x 48, 97 x 55, 80 x 120 and 96 x 64, and as if of 10 bits; one of VP8, one of MJPEG."""
    assert [clip.pixel_format for clip in clips] == [*["yuv420p"] * 5, "yuvj420p", "yuv420p"]
    copy = tmp_path / "z.webm"
    copy.write_bytes(Path(clips[0].path).read_bytes())
    deep = replace(clips[0], path=str(copy), pixel_format="yuv420p10le")
    choose_reader("auto", torch.device("cuda"), [*clips, deep] * 2)
    assert sorted(video_decoder) == ["a.webm", "b.webm", "c.mp4", "e.mkv", "f.avi", "z.webm"]


@needs_dali
def test_a_damaged_file_is_no_reason_for_another_reader(tmp_path: Path, video_decoder: list[str]) -> None:
    path = write_video(tmp_path / "a.webm", "libvpx-vp9")
    info = probe(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert choose_reader("auto", torch.device("cuda"), [info])[0] == "dali-gpu"
    assert video_decoder == ["a.webm"]


@needs_dali
def test_without_the_drivers_decoder_pyav_reads(clips: list[VideoInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that were started for computing only."""

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(readers.ctypes, "CDLL", missing)
    for videos in (clips, []):
        name, reason = choose_reader("auto", torch.device("cuda"), videos)
        assert name == "pyav"
        assert reason.startswith("the driver's video decoder, libnvcuvid.so.1, is not found (in a container")


@needs_dali
def test_decoding_threads_are_tied_to_no_cores(clips: list[VideoInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all processes of a job would share the same few."""
    from actdet.video import dali

    asked = []
    decode = dali.fn.decoders.video
    monkeypatch.setattr(
        dali.fn.decoders, "video", lambda *given, **options: asked.append(options) or decode(*given, **options)
    )
    with open_reader("dali-cpu", SIZE) as reader:
        (frames,) = reader.read([ClipRequest(clips[0], np.arange(3))])
    assert isinstance(frames, torch.Tensor)
    assert [options["affine"] for options in asked] == [False]


@needs_dali
def test_the_choice_where_dali_is_installed(clips: list[VideoInfo], tmp_path: Path, video_decoder: list[str]) -> None:
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
from actdet.video import readers
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

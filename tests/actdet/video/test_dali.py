"""DALI is given only what it decodes as PyAV does, and what it cannot decode is found beforehand or reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actdet.errors import ActdetError, DataError
from actdet.video import readers
from actdet.video.decoding import ClipRequest
from actdet.video.info import VideoInfo, probe
from actdet.video.readers import choose_reader, open_reader
from tests.actdet.video.clips import HAS_DALI, SIZE, check_answers, requests_of
from tests.actdet.video.videos import trim, write_video

pytestmark = pytest.mark.skipif(not HAS_DALI, reason="needs DALI")

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def test_a_file_that_was_made_shorter_gives_no_black_frames(clips: list[VideoInfo], tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "clip.webm", "libvpx-vp9", frames=40))
    write_video(tmp_path / "clip.webm", "libvpx-vp9", frames=20)
    requests = [ClipRequest(clips[0], np.arange(3)), ClipRequest(info, np.arange(30, 40))]
    with open_reader("dali-cpu", SIZE) as reader:
        good, error = reader.read(requests)
    check_answers(requests[:1], [good])
    assert isinstance(error, DataError)
    assert f"had {info.bytes} bytes when it was indexed" in str(error)


def test_a_long_clip_is_decoded_in_pieces(clips: list[VideoInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven frames each, as if the pictures were large."""
    from actdet.video import dali

    monkeypatch.setattr(dali, "_MOST_BYTES", 7 * 64 * 48 * 3 + 5)
    requests = requests_of(clips)
    with open_reader("dali-cpu", SIZE) as reader:
        check_answers(requests, list(reader.read(requests)))


def test_on_a_cpu_a_codec_that_is_missing_is_refused(clips: list[VideoInfo], tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "phone.mp4"))
    with pytest.raises(ActdetError, match=r"only mjpeg, vp8, vp9, and .*phone.mp4 is h264; use reader pyav"):
        choose_reader("dali", CPU, [*clips, info])
    with (
        open_reader("dali-cpu", SIZE) as reader,
        pytest.raises(ActdetError, match=r"DALI cannot decode one of .*phone.mp4.*use reader pyav") as caught,
    ):
        list(reader.read([ClipRequest(info, np.arange(4))]))
    assert "\n" not in str(caught.value)


@pytest.fixture
def video_decoder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the GPU's decoder by one that decodes what DALI does on the CPU. Gives the files that are tried."""
    from actdet.video import dali

    monkeypatch.setattr(readers, "_has_video_decoder", lambda: True)
    monkeypatch.setattr(dali, "_refusals", {})
    tried: list[str] = []
    refusal = dali._refusal

    def on_the_cpu(name: str, video: VideoInfo) -> str:
        tried.append(Path(video.path).name)
        return refusal("dali-cpu", video)

    monkeypatch.setattr(dali, "_refusal", on_the_cpu)
    return tried


def test_what_the_gpu_refuses_is_found_once_and_read_by_pyav(
    clips: list[VideoInfo], tmp_path: Path, video_decoder: list[str]
) -> None:
    """AV1 on older cards, 10 bits, 4:2:2 and sizes; here H.264 stands for them, which DALI decodes on a GPU alone."""
    phone = probe(write_video(tmp_path / "phone.mp4", rotation=90))
    for _ in range(2):
        assert choose_reader("auto", CUDA, [*clips, phone]) == (
            "pyav",
            f"{phone.path} (h264, yuv420p, 64 x 48) cannot be decoded here: Assert on "
            '"frames_decoders_[s]->IsValid()" failed: Failed to create video decoder for "memory file"',
        )
    with pytest.raises(ActdetError, match=r"^reader dali cannot be used: .*phone.mp4 \(h264.*; use reader pyav$"):
        choose_reader("dali", CUDA, [phone])
    assert video_decoder.count("phone.mp4") == 1
    assert choose_reader("auto", CUDA, clips) == ("dali-gpu", "decodes on the GPU")


def test_of_each_kind_of_video_the_extreme_sizes_are_tried(
    clips: list[VideoInfo], tmp_path: Path, video_decoder: list[str]
) -> None:
    """VP9 of 64 x 48, 97 x 55, 80 x 120 and 96 x 64, and as if of 10 bits; one of VP8, one of MJPEG."""
    assert [clip.pixel_format for clip in clips] == [*["yuv420p"] * 5, "yuvj420p", "yuv420p"]
    copy = tmp_path / "z.webm"
    copy.write_bytes(Path(clips[0].path).read_bytes())
    deep = replace(clips[0], path=str(copy), pixel_format="yuv420p10le")
    choose_reader("auto", CUDA, [*clips, deep] * 2)
    assert sorted(video_decoder) == ["a.webm", "b.webm", "c.mp4", "e.mkv", "f.avi", "z.webm"]


def test_a_damaged_file_is_no_reason_for_another_reader(tmp_path: Path, video_decoder: list[str]) -> None:
    path = write_video(tmp_path / "a.webm", "libvpx-vp9")
    info = probe(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert choose_reader("auto", CUDA, [info])[0] == "dali-gpu"
    assert video_decoder == ["a.webm"]


def test_without_the_drivers_decoder_pyav_reads(clips: list[VideoInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that were started for computing only."""

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(readers.ctypes, "CDLL", missing)
    for videos in (clips, []):
        name, reason = choose_reader("auto", CUDA, videos)
        assert name == "pyav"
        assert reason.startswith("the driver's video decoder, libnvcuvid.so.1, is not found (in a container")


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


def test_the_choice_if_dali_is_installed(clips: list[VideoInfo], tmp_path: Path, video_decoder: list[str]) -> None:
    assert choose_reader("dali", CPU, clips) == ("dali-cpu", "asked for")
    assert choose_reader("auto", CUDA, clips) == ("dali-gpu", "decodes on the GPU")
    other = probe(write_video(tmp_path / "old.avi", "msmpeg4v2"))
    name, reason = choose_reader("auto", CUDA, [*clips, other])
    assert name == "pyav"
    assert "old.avi is msmpeg4v2" in reason


def test_dali_is_not_given_what_it_would_misnumber(tmp_path: Path) -> None:
    trimmed = trim(write_video(tmp_path / "trimmed.mp4", options={"bf": "2"}), seconds=0.8)
    untimed = write_video(tmp_path / "untimed.avi", "mpeg4")
    for path, problem in ((trimmed, r"has \d+ packets without a frame"), (untimed, "has no timestamps")):
        with pytest.raises(ActdetError, match=f"reader dali cannot be used: {path} {problem}.*; use reader pyav"):
            choose_reader("dali", CUDA, [probe(path)])
        assert choose_reader("auto", CUDA, [probe(path)])[0] == "pyav"

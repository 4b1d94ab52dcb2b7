"""A written video shows its frames exactly when it should, or no file is left."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from actdet.errors import DataError
from actdet.video import encoding
from actdet.video.decoding import decode_frames
from actdet.video.encoding import QUICK, Encoder, write_video
from actdet.video.info import probe
from tests.actdet.command import small_disk
from tests.actdet.video.videos import numbered_frame, shown_numbers

# Options with which the encoders keep when the last frame ends.
KEPT_END: dict[Encoder, dict[str, str]] = {"libx264": {"bf": "0"}, "libvpx-vp9": {"lag-in-frames": "0"}}

# When frames begin to show in ticks, the tick in seconds, and when the last frame ends.
TIMES = {
    "steady": (range(0, 20), Fraction(1, 25), 20),
    "NTSC": (range(0, 20), Fraction(1001, 30000), 20),
    "uneven": ([0, 7, 9, 1000, 1001, 90000], Fraction(1, 90000), 91234),
    "a long last frame": ([0, 40, 80], Fraction(1, 1000), 5000),
    "late": ([5000, 5040, 5081], Fraction(1, 1000), 5100),
    "one": ([0], Fraction(1, 90000), 3003),
    "hours apart": ([0, 5 * 3600 * 90], Fraction(1, 90), 6 * 3600 * 90),
}


def _frames(count: int, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    return [numbered_frame(number, *size) for number in range(count)]


@pytest.mark.parametrize("encoder", KEPT_END)
def test_what_is_quick_is_nearly_as_good(tmp_path: Path, encoder: Encoder) -> None:
    frames = np.stack([np.roll(numbered_frame(number, 320, 240), number, axis=1) for number in range(20)])
    errors = []
    sizes = []
    for options in (None, QUICK[encoder]):
        out = tmp_path / "v.mp4"
        write_video(out, frames, np.arange(20), Fraction(1, 25), encoder=encoder, options=options)
        errors.append(np.abs(decode_frames(probe(out), range(20)).astype(int) - frames).mean())
        sizes.append(out.stat().st_size)
    assert errors[1] < 1.25 * errors[0] + 1

    # Options that an encoder does not know would change nothing.
    assert sizes[0] != sizes[1] < 4 * sizes[0]


@pytest.mark.parametrize("encoder", KEPT_END)
@pytest.mark.parametrize("name", TIMES)
def test_frames_are_shown_when_they_should_be(tmp_path: Path, name: str, encoder: Encoder) -> None:
    times, base, end = TIMES[name]
    pts = np.array(times, np.int64)
    out = tmp_path / "new folder" / "50%: ü.mp4"
    write_video(out, _frames(len(pts)), pts, base, end=end, encoder=encoder, options=KEPT_END[encoder], comment="it is")
    video = probe(out)
    assert [(int(t) - int(video.pts[0])) * video.time_base for t in video.pts] == [(t - times[0]) * base for t in times]
    if encoder == "libx264" or name in ("steady", "NTSC", "one"):
        assert (video.end - int(video.pts[0])) * video.time_base == (end - times[0]) * base
    assert shown_numbers(decode_frames(video, range(len(pts)))) == list(range(len(pts)))
    with av.open(str(out)) as container:
        assert container.metadata["comment"] == "it is"


def test_times_are_exact_with_reordered_frames(tmp_path: Path) -> None:
    pts = np.array([0, 7, 9, 1000, 1001, 4000, 90000])
    write_video(tmp_path / "v.mp4", _frames(7), pts, Fraction(1, 90000), encoder="libx264", options={"bf": "3"})
    video = probe(tmp_path / "v.mp4")
    assert [Fraction(int(t - video.pts[0])) * video.time_base for t in video.pts] == [Fraction(t, 90000) for t in pts]


def _noise() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(20)]


# Not x264, whose files beside busy processes have now and then some more bytes or less, even on one thread.
STEADY: Any = "mpeg4"


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.99, 0.999])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, share: float) -> None:
    out = tmp_path / "v.mp4"
    write_video(out, _noise(), np.arange(20), Fraction(1, 25), encoder=STEADY)
    size = out.stat().st_size
    out.write_text("before")
    with small_disk(int(size * share)), pytest.raises(DataError, match="cannot be written: ") as caught:
        write_video(out, _noise(), np.arange(20), Fraction(1, 25), encoder=STEADY)
    assert str(caught.value).startswith(f"{out}: ")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    assert out.read_text() == "before"
    with small_disk(int(size * 1.01)):
        write_video(out, _noise(), np.arange(20), Fraction(1, 25), encoder=STEADY)
    assert len(probe(out).pts) == 20


@pytest.mark.parametrize("encoder", KEPT_END)
@pytest.mark.parametrize(
    ("pts", "base"),
    [([0, 2**33], Fraction(1, 90000)), ([0, 6 * 10**9], Fraction(1, 10**9)), ([0, 2**40, 2**41], Fraction(1))],
)
def test_times_that_mp4_cannot_hold_are_reported(
    tmp_path: Path, pts: list[int], base: Fraction, encoder: Encoder
) -> None:
    with pytest.raises(DataError, match=r"cannot be (encoded|written): ") as caught:
        write_video(tmp_path / "v.mp4", _frames(len(pts)), np.array(pts), base, encoder=encoder)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_shows_its_frames_at_other_times_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encoding._packets

    def late(*arguments: Any) -> Iterator[av.Packet]:
        for packet in real(*arguments):
            packet.pts = (packet.pts or 0) + ((packet.pts or 0) > 3)
            yield packet

    monkeypatch.setattr(encoding, "_packets", late)
    with pytest.raises(DataError, match="MP4 cannot hold its timestamps in ticks of 1/25 s"):
        write_video(tmp_path / "v.mp4", _frames(9), np.arange(9), Fraction(1, 25))
    assert not list(tmp_path.iterdir())


def test_a_size_that_the_encoder_refuses_is_reported(tmp_path: Path) -> None:
    wide = np.zeros((2, 40000, 3), np.uint8)
    with pytest.raises(DataError, match="cannot be encoded: ") as caught:
        write_video(tmp_path / "v.mp4", [wide], np.array([0]), Fraction(1, 25))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "o.mp4"
    with pytest.raises(DataError, match=f"^{out}: cannot be written: ") as caught:
        write_video(out, _frames(1), np.array([0]), Fraction(1, 25))
    assert "\n" not in str(caught.value)


def test_an_error_in_the_frames_leaves_no_file(tmp_path: Path) -> None:
    def frames():
        yield from _frames(5)
        raise KeyError("frame 5")

    with pytest.raises(KeyError, match="frame 5"):
        write_video(tmp_path / "v.mp4", frames(), np.arange(9), Fraction(1, 25))
    assert not list(tmp_path.iterdir())

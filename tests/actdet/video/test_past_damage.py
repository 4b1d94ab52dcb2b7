"""What of a damaged video decodes, bit for bit as in the whole one: all but what lies up to the next keyframe."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from actdet.errors import DataError
from actdet.video.decoding import decode_frames, probe, stream_frames, stream_past_damage
from tests.actdet.video.videos import corrupt, write_video

FRAMES = 60
B_FRAMES = {"g": "12", "bf": "3", "sc_threshold": "0"}
OPEN_GOPS = {**B_FRAMES, "x264-params": "open-gop=1"}


def _packets(path: Path, pts: np.ndarray) -> list[tuple[int, bool]]:
    """Of each packet the frame that it gives, and whether it is a keyframe."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        places = [packet.pts for packet in packets]
        order = sorted(places) if None not in places else []
        return [(order.index(p.pts) if order else n, p.is_keyframe) for n, p in enumerate(packets)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("places", [[5], [13], [22], [35], [59], [7, 8, 40]])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("plain.mp4", "libx264", {"g": "12", "sc_threshold": "0"}),
        ("b-frames.mp4", "libx264", B_FRAMES),
        ("open.mkv", "libx264", OPEN_GOPS),
        ("one.mp4", "libx264", {"g": "300", "sc_threshold": "0"}),
        ("clip.webm", "libvpx-vp9", {"g": "12"}),
        ("clip.avi", "mpeg4", {"g": "12", "sc_threshold": "1000000000"}),
        ("clip.mkv", "mjpeg", {}),
    ],
)
def test_what_is_lost_ends_at_the_next_keyframe(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], places: list[int], threads: int
) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (FRAMES, 32, 48, 3), dtype=np.uint8)
    path = write_video(tmp_path / name, codec, FRAMES, (48, 32), options=options, pictures=pictures)
    info = probe(path)
    whole = decode_frames(info, range(FRAMES))
    packets = _packets(path, info.pts)
    keyframes = [frame for frame, key in packets if key]
    for place in places:
        corrupt(path, range(place, place + 1))

    got = list(stream_past_damage(info, range(FRAMES), threads=threads))
    assert [index for index, _ in got] == list(range(FRAMES))
    lost = {index for index, picture in got if picture is None}
    if not lost:  # noise that happens to be a picture
        assert len(list(stream_frames(info, range(FRAMES)))) == FRAMES
        return
    may_be_lost = set() if info.timed else {FRAMES - 1}  # a file without times tells what a decoder drops at its end
    for place in places:
        damaged = packets[place][0]
        # What was reordered around the damaged frame may refer to it.
        behind = [key for key in keyframes if key > damaged]
        assert damaged in lost or not info.timed
        may_be_lost |= set(range(max(damaged - 4, 0), min(behind, default=FRAMES)))
    assert lost <= may_be_lost
    for index, picture in got:
        if picture is not None and info.timed:
            np.testing.assert_array_equal(picture, whole[index])


@pytest.mark.parametrize("wanted", [[0, 3], [0, 30], [31, 32, 59], [10, 20, 21, 50], [5, 21], []])
def test_of_some_frames_those_that_are_lost_are_told_and_the_rest_given(tmp_path: Path, wanted: list[int]) -> None:
    path = corrupt(write_video(tmp_path / "v.mkv", "mjpeg", FRAMES), range(20, 23))
    got = dict(stream_past_damage(probe(path), wanted))
    assert [index for index, picture in got.items() if picture is not None] == [
        index for index in wanted if index not in (20, 21, 22)
    ]
    lost = [index for index, picture in got.items() if picture is None]
    assert lost == [index for index in (20, 21, 22) if wanted and index <= wanted[-1]]


def test_a_whole_file_is_given_as_ever(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "v.mp4", frames=30, options=B_FRAMES))
    got = [picture for _, picture in stream_past_damage(info, [2, 9, 25], (24, 32), threads=0)]
    np.testing.assert_array_equal(
        np.stack([p for p in got if p is not None]), decode_frames(info, [2, 9, 25], (24, 32))
    )


def test_a_file_that_is_gone_is_no_damage(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "v.mp4", frames=5))
    Path(info.path).unlink()
    with pytest.raises(DataError, match="no such file"):
        list(stream_past_damage(info, [1]))

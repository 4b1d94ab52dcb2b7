"""What of a damaged video decodes is, bit for bit, as in the intact one: all but what lies up to the next keyframe."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from actdet.errors import DataError
from actdet.video.damage import stream_past_damage
from actdet.video.decoding import decode_frames, stream_frames
from actdet.video.info import probe
from tests.actdet.video.videos import corrupt, packet_places, write_video

FRAMES = 60
B_FRAMES = {"g": "12", "bf": "3", "sc_threshold": "0"}
OPEN_GOPS = {**B_FRAMES, "x264-params": "open-gop=1"}


def _packets(path: Path) -> list[tuple[int, bool]]:
    """Find for each packet the frame that it gives, and whether it is a keyframe."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        times = [packet.pts for packet in packets]

    # Without timestamps, frames are shown in the order of the file.
    if None in times:
        return [(number, packet.is_keyframe) for number, packet in enumerate(packets)]
    order = sorted(time for time in times if time is not None)
    return [(order.index(packet.pts or 0), packet.is_keyframe) for packet in packets]


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
    intact = decode_frames(info, range(FRAMES))
    packets = _packets(path)
    keyframes = [frame for frame, is_key in packets if is_key]
    for place in places:
        corrupt(path, range(place, place + 1))

    got = list(stream_past_damage(info, range(FRAMES), threads=threads))
    assert [index for index, _ in got] == list(range(FRAMES))
    lost = {index for index, picture in got if picture is None}
    if not lost:
        # The noise happens to be a picture.
        assert len(list(stream_frames(info, range(FRAMES)))) == FRAMES
        return

    # In a file without timestamps, a frame that the decoder leaves out is only missed at the end.
    may_be_lost = set() if info.has_timestamps else {FRAMES - 1}
    for place in places:
        damaged = packets[place][0]
        behind = [key for key in keyframes if key > damaged]
        assert damaged in lost or not info.has_timestamps
        # Frames that were reordered around the damaged one may refer to it.
        may_be_lost |= set(range(max(damaged - 4, 0), min(behind, default=FRAMES)))
    assert lost <= may_be_lost

    for index, picture in got:
        if picture is not None and info.has_timestamps:
            np.testing.assert_array_equal(picture, intact[index])


@pytest.mark.parametrize("threads", [1, 2])
def test_no_frame_is_given_that_refers_to_a_lost_one(tmp_path: Path, threads: int) -> None:
    """Such a frame may be shown before the one that it refers to, and look intact."""
    pictures = np.random.default_rng(0).integers(0, 255, (FRAMES, 32, 48, 3), dtype=np.uint8)
    path = write_video(
        tmp_path / "v.mp4", "libx264", FRAMES, (48, 32), options={**B_FRAMES, "threads": "1"}, pictures=pictures
    )
    info = probe(path)
    intact = decode_frames(info, range(FRAMES))
    data = path.read_bytes()

    # Most noise is a picture, too, for this codec.
    noticed = 0
    for place in packet_places(path)[1:]:
        begin = place.start + (place.stop - place.start) * 3 // 10
        noise = np.random.default_rng(place.start).bytes(place.stop - begin)
        path.write_bytes(data[:begin] + noise + data[place.stop :])
        got = list(stream_past_damage(info, range(FRAMES), threads=threads))
        if any(picture is None for _, picture in got):
            noticed += 1
            for index, picture in got:
                if picture is not None:
                    np.testing.assert_array_equal(picture, intact[index])
    assert noticed


@pytest.mark.parametrize("wanted", [[0, 3], [0, 30], [31, 32, 59], [10, 20, 21, 50], [5, 21], []])
def test_of_some_frames_the_lost_ones_are_reported_and_the_rest_is_given(tmp_path: Path, wanted: list[int]) -> None:
    path = corrupt(write_video(tmp_path / "v.mkv", "mjpeg", FRAMES), range(20, 23))
    got = dict(stream_past_damage(probe(path), wanted))
    given = [index for index, picture in got.items() if picture is not None]
    assert given == [index for index in wanted if index not in (20, 21, 22)]
    lost = [index for index, picture in got.items() if picture is None]
    assert lost == [index for index in (20, 21, 22) if wanted and index <= wanted[-1]]


def test_an_intact_file_is_given_as_ever(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "v.mp4", frames=30, options=B_FRAMES))
    got = [picture for _, picture in stream_past_damage(info, [2, 9, 25], (24, 32), threads=0)]
    pictures = np.stack([picture for picture in got if picture is not None])
    np.testing.assert_array_equal(pictures, decode_frames(info, [2, 9, 25], (24, 32)))


def test_a_file_that_is_gone_is_no_damage(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "v.mp4", frames=5))
    Path(info.path).unlink()
    with pytest.raises(DataError, match="file not found"):
        list(stream_past_damage(info, [1]))

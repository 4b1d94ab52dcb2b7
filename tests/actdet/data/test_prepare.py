"""A prepared data set shows the same frames at the same times with the same actions, but small and quick to reach."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from actdet.data import prepare
from actdet.data.annotations import read_annotations
from actdet.data.clips import ClipIndex
from actdet.data.index import find_problems, load_index
from actdet.data.prepare import PrepareConfig, prepare_dataset, prepared_size
from actdet.detections import Tube
from actdet.errors import ActdetError, DataError
from actdet.video.decoding import decode_frames
from actdet.video.info import VideoInfo, probe
from actdet.video.sampling import sample_frames
from tests.actdet.command import small_disk
from tests.actdet.video.videos import corrupt, join, set_matrix, shown_number, trim, write_video

SMALL = PrepareConfig(short_side=32, gop=5, workers=1)
UNEVEN = [500 + 40 * i + 37 * (i % 2) + (1500 if i > 25 else 0) for i in range(40)]
B_FRAMES = {"bf": "3", "b_strategy": "0", "g": "30"}

Dataset = Callable[..., ClipIndex]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Makes the data set tmp_path/set from functions that write its videos and the texts of its annotation files."""

    def make(videos: dict[str, Callable[[Path], object]], texts: dict[str, str] | None = None) -> ClipIndex:
        root = tmp_path / "set"
        for folder in ("videos", "annotations"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name, write in videos.items():
            write(root / "videos" / name)
        for name, text in (texts or {}).items():
            (root / "annotations" / f"{name}.txt").write_text(text)
        return load_index(root)

    return make


def _video(**settings: Any) -> Callable[[Path], object]:
    return lambda path: write_video(path, **settings)


def _joined(path: Path) -> Path:
    parts = [write_video(path.with_name(f".{i}.ts"), frames=9, size=(96, 64), options=B_FRAMES) for i in range(2)]
    return join(path, *parts)


def _phone(path: Path) -> Path:
    return set_matrix(write_video(path, frames=12, size=(96, 64)), 0, 1, -1, 0)


UGLY: dict[str, Callable[[Path], object]] = {
    "bframes.mp4": _video(size=(96, 64), options=B_FRAMES, sound=True),
    "uneven.mkv": _video(size=(96, 64), options=B_FRAMES, pts=UNEVEN),
    "uneven vp9.webm": _video(codec="libvpx-vp9", size=(96, 64), pts=UNEVEN),
    "stream.ts": _video(size=(64, 96), options=B_FRAMES),
    "joined.ts": _joined,
    "raw.h264": _video(size=(96, 64), options={"bf": "0"}),
    "untimed.avi": _video(codec="mpeg4", size=(96, 64), options={"bf": "2"}),
    "odd.mkv": _video(codec="mjpeg", frames=9, size=(97, 55)),
    "small odd.mkv": _video(codec="mjpeg", frames=9, size=(31, 17)),
    "phone.mp4": _phone,
    "one.webm": _video(codec="libvpx-vp9", frames=1, size=(96, 64)),
    "trimmed.mp4": lambda path: trim(write_video(path, size=(96, 64), options={"g": "5", "bf": "2"}), 0.8),
    "tall.mkv": _video(codec="mjpeg", frames=3, size=(16, 400)),
    "dots. & (ü) %d.mkv": _video(codec="mjpeg", frames=3, size=(96, 64)),
}


def _times(video: VideoInfo) -> list[Fraction]:
    return [(int(t) - int(video.pts[0])) * video.time_base for t in [*video.pts, video.end]]


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_frames_and_times_stay_and_keyframes_are_frequent(dataset: Dataset, tmp_path: Path, codec: Any) -> None:
    source = dataset(UGLY)
    prepared = prepare_dataset(source, tmp_path / "out", replace(SMALL, codec=codec))
    assert prepared.encoded == len(UGLY)
    assert find_problems(tmp_path / "out") == []
    assert [clip.name for clip in prepared.index.clips] == [clip.name for clip in source.clips]
    for before, after in zip(source.clips, prepared.index.clips, strict=True):
        old = before.video
        new = after.video
        assert (new.width, new.height) == prepared_size(old.width, old.height, 32)
        assert (new.rotation, new.skipped, new.has_timestamps, new.codec) == (0, 0, True, codec)
        times = _times(new)
        expected = _times(old)
        if codec == "vp9":
            # FFmpeg takes the last frame of such a file to be as long as the others on average.
            del times[-1], expected[-1]
        else:
            np.testing.assert_array_equal(sample_frames(new, 16), sample_frames(old, 16))
        assert times == expected, before.name

        everything = range(len(old.pts))
        shown = [shown_number(picture) for picture in decode_frames(old, everything)]
        if min(new.width, new.height) > 16:
            assert [shown_number(picture) for picture in decode_frames(new, everything)] == shown

        with av.open(new.path) as container:
            assert [stream.type for stream in container.streams] == ["video"]
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
            packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == list(range(0, len(packets), 5))
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets]


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_each_group_of_pictures_decodes_by_itself(dataset: Dataset, tmp_path: Path, codec: Any) -> None:
    """The groups are closed: the packets from one keyframe to the next give their frames without any other packet."""
    source = dataset({"a.mp4": _video(size=(96, 64), options=B_FRAMES)})
    video = prepare_dataset(source, tmp_path / "out", replace(SMALL, codec=codec)).index.clips[0].video
    whole = decode_frames(video, range(40))
    with av.open(video.path) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        for first in range(0, 40, 5):
            stream.codec_context.flush_buffers()
            frames = [frame for packet in packets[first : first + 5] for frame in stream.codec_context.decode(packet)]
            frames += stream.codec_context.decode(None)
            assert len(frames) == 5
            for frame, picture in zip(frames, whole[first : first + 5], strict=True):
                assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - picture).mean() < 2


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((1920, 1080), 256, (456, 256)),
        ((1080, 1920), 256, (256, 456)),
        ((640, 480), 256, (342, 256)),
        ((320, 240), 256, (320, 240)),
        ((97, 55), 256, (96, 54)),
        ((97, 55), 32, (56, 32)),
        ((256, 257), 256, (256, 256)),
        ((257, 10_001), 256, (256, 9962)),
        ((3, 1), 256, (2, 2)),
    ],
)
def test_sizes_are_even_and_never_grow(size: tuple[int, int], short_side: int, expected: tuple[int, int]) -> None:
    assert prepared_size(*size, short_side) == expected


@pytest.mark.parametrize(("codec", "least_psnr", "most_difference"), [("h264", 37.5, 2.5), ("vp9", 38.0, 2.4)])
def test_quality_does_no_harm(
    dataset: Dataset, tmp_path: Path, codec: Any, least_psnr: float, most_difference: float
) -> None:
    """A panning scene of gray texture of all sizes, softer color and noise is compared with PIL's reduction of it.

    Measured: 38.5 dB and 2.34 for H.264, 39.1 dB and 2.18 for VP9, including what the encoding of the source loses.
    """
    rng = np.random.default_rng(0)
    scene = np.full((320, 480, 3), 128.0)
    for cells in (2, 5, 10, 20, 40, 80):
        for strength, channels in ((40, 1), (12, 3)):
            noise = rng.normal(0, strength * 2 / cells**0.7, (2 * cells, 3 * cells, channels)).astype(np.float32)
            layers = [
                Image.fromarray(noise[..., c]).resize((480, 320), Image.Resampling.BICUBIC) for c in range(channels)
            ]
            scene += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    drawn = np.stack([scene[3 * t : 3 * t + 240, 5 * t : 5 * t + 320] for t in range(24)])
    drawn = (drawn + rng.normal(0, 2, (24, 240, 320, 1))).clip(0, 255).astype(np.uint8)
    lossless = {"crf": "1", "preset": "ultrafast"}
    source = dataset({"a.mp4": _video(frames=24, size=(320, 240), pictures=drawn, options=lossless)})
    config = PrepareConfig(short_side=120, workers=1, codec=codec)
    video = prepare_dataset(source, tmp_path / "out", config).index.clips[0].video
    reduced = [np.asarray(Image.fromarray(picture).resize((160, 120), Image.Resampling.BILINEAR)) for picture in drawn]
    difference = decode_frames(video, range(24)).astype(float) - np.stack(reduced)
    psnr = 10 * np.log10(255**2 / (difference**2).mean())
    print(f"{codec}: PSNR {psnr:.2f} dB, mean difference {np.abs(difference).mean():.2f}")
    assert psnr > least_psnr
    assert np.abs(difference).mean() < most_difference

    # No color shifts.
    assert np.abs(difference.mean((0, 1, 2))).max() < 0.7


def test_boxes_move_with_the_pixels(dataset: Dataset, tmp_path: Path) -> None:
    texts = {
        "a": "1 12.345678901 8 48.6 63.9\n\n0 -0.5 -1 97 64.7  \n",
        "b": "\n \n",
        "phone": "0 10 20 60 90",
        "odd": "1 0 0 97 55\n",
    }
    videos = {
        "a.mp4": _video(frames=3, size=(96, 64)),
        "b.mp4": _video(frames=3),
        "c.mp4": _video(frames=3),
        "phone.mp4": _phone,
        "odd.mkv": _video(codec="mjpeg", frames=2, size=(97, 55)),
    }
    source = dataset(videos, texts)
    index = prepare_dataset(source, tmp_path / "out", SMALL).index
    for before, after in zip(source.targets(), index.targets(), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-7)
    assert [clip.annotations[0].label for clip in index.clips if clip.annotations] == [1, 1, 0]
    found = read_annotations(tmp_path / "out" / "annotations" / "a.txt", 48, 32, index.class_names)
    assert found[0].box == pytest.approx((12.345678901 / 2, 4, 24.3, 31.95), abs=1e-9)
    assert found[1].box == (0, 0, 48, 32)
    assert {path.name for path in (tmp_path / "out" / "annotations").iterdir()} == {
        "a.txt",
        "b.txt",
        "phone.txt",
        "odd.txt",
    }
    assert (tmp_path / "out" / "annotations" / "b.txt").read_text() == ""


def _table(index: ClipIndex, name: str) -> tuple[Tube, ...]:
    (table,) = (clip.table for clip in index.clips if clip.name == name)
    assert table is not None
    return table


def test_tubes_move_with_the_pixels(dataset: Dataset, tmp_path: Path) -> None:
    source = dataset({"a.mp4": _video(frames=6, size=(96, 64)), "b.mp4": _video(frames=3)}, {"b": "0 1 1 20 20\n"})
    table = source.root / "annotations" / "a.csv"
    table.write_text(
        "second,track,class,x1,y1,x2,y2,interpolate\n0,1,fight,12,8,48.5,63,1\n0.16,1,fight,20,8,96,64,\n"
        "0.04,2,collapse,,,,,1\n0.2,2,collapse,,,,,\n"
    )
    source = load_index(source.root)
    index = prepare_dataset(source, tmp_path / "out", SMALL).index

    assert sorted(path.name for path in (tmp_path / "out" / "annotations").iterdir()) == ["a.csv", "b.txt"]
    before, after = (_table(each, "a") for each in (source, index))
    assert [tube.label for tube in after] == [0, 1]
    for old, new in zip(before, after, strict=True):
        assert new.frames.tolist() == old.frames.tolist()
        np.testing.assert_allclose(new.boxes, old.boxes / 2, atol=1e-5)

    # Lines take the place of the table, and a table that of lines; without either nothing stays.
    table.unlink()
    (source.root / "annotations" / "a.txt").write_text("1 2 2 40 40\n")
    (source.root / "annotations" / "b.txt").rename(source.root / "annotations" / "b.csv")
    (source.root / "annotations" / "b.csv").write_text("frame,track,class\n1,1,fight\n")
    prepare_dataset(load_index(source.root), tmp_path / "out", SMALL)
    assert sorted(path.name for path in (tmp_path / "out" / "annotations").iterdir()) == ["a.txt", "b.csv"]
    for path in (source.root / "annotations").iterdir():
        path.unlink()
    write_lines = (source.root / "annotations" / "a.txt").write_text
    write_lines("1 2 2 40 40\n")
    prepare_dataset(load_index(source.root), tmp_path / "out", SMALL)
    assert [path.name for path in (tmp_path / "out" / "annotations").iterdir()] == ["a.txt"]


def test_a_tube_of_less_than_a_pixel_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    source = dataset({"a.mp4": _video(frames=2, size=(96, 64))})
    table = source.root / "annotations" / "a.csv"
    table.write_text("frame,track,class,x1,y1,x2,y2\n0,1,fight,2,2,9,9\n1,1,fight,0,1.1,1.5,1.9\n")
    with pytest.raises(DataError, match=r"the box 0 1\.1 1\.5 1\.9 would be smaller than a pixel at 48x32") as caught:
        prepare_dataset(load_index(source.root), tmp_path / "out", SMALL)
    assert caught.value.path == str(table)
    assert not (tmp_path / "out").exists()


def test_a_foreign_table_is_not_replaced(dataset: Dataset, tmp_path: Path) -> None:
    """A person's annotation of a video that is not prepared yet."""
    source = dataset({"a.mp4": _video(frames=2)}, {"a": "0 1 1 20 20\n"})
    foreign = tmp_path / "out" / "annotations" / "a.csv"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("frame,track,class\n")
    with pytest.raises(ActdetError, match="would be replaced"):
        prepare_dataset(source, tmp_path / "out", SMALL)
    assert foreign.read_text() == "frame,track,class\n"


@pytest.mark.parametrize("box", ["0.1 0.1 2 2", "0 1.1 1.5 1.9"])
def test_a_box_of_less_than_a_pixel_is_refused(dataset: Dataset, tmp_path: Path, box: str) -> None:
    source = dataset({"a.mp4": _video(frames=2, size=(96, 64))}, {"a": f"0 {box}\n"})
    with pytest.raises(DataError, match=r"would be smaller than a pixel at 48x32: .*--short-side") as caught:
        prepare_dataset(source, tmp_path / "out", SMALL)
    assert caught.value.path == str(source.root / "annotations" / "a.txt")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def four(dataset: Dataset) -> ClipIndex:
    videos = {f"{name}.mp4": _video(frames=30 - 4 * i, size=(96, 64)) for i, name in enumerate("abcd")}
    return dataset(videos, dict.fromkeys("abc", "0 10 20 60 50\n"))


def _state(out: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(path for path in out.rglob("*.*4"))
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("workers", [1, 2, 0])
def test_what_is_there_is_not_done_again(four: ClipIndex, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    assert prepare_dataset(four, out, SMALL).encoded == 4
    before = _state(out)
    (out / "videos" / "b.mp4").unlink()
    (four.root / "annotations" / "a.txt").unlink()
    (four.root / "annotations" / "d.txt").write_text("1 10 20 60 50\n")
    write_video(four.root / "videos" / "c.mp4", frames=11, size=(96, 64))
    calls: list[tuple[int, int]] = []
    prepared = prepare_dataset(
        load_index(four.root), out, replace(SMALL, workers=workers), progress=lambda *call: calls.append(call)
    )
    assert prepared.encoded == 2
    assert calls == [(2, 4), (3, 4), (4, 4)]
    after = _state(out)
    assert before["a.mp4"] == after["a.mp4"]
    assert before["d.mp4"] == after["d.mp4"]
    assert before["b.mp4"][1] == after["b.mp4"][1]
    assert [len(clip.video.pts) for clip in prepared.index.clips] == [30, 26, 11, 18]
    assert [len(clip.annotations) for clip in prepared.index.clips] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"short_side": 48}, r"found short side 32, GOP 5, libx264.*requested short side 48, GOP 5"),
        ({"gop": 6}, r"found short side 32, GOP 5, libx264.*requested short side 32, GOP 6"),
        ({"codec": "vp9"}, "requested .*libvpx-vp9"),
    ],
)
def test_other_settings_are_refused(four: ClipIndex, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    prepare_dataset(four, tmp_path / "out", SMALL)
    before = _state(tmp_path / "out")
    with pytest.raises(ActdetError, match=words) as caught:
        prepare_dataset(four, tmp_path / "out", replace(SMALL, **change))
    assert "\n" not in str(caught.value)
    assert _state(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("videos/z.mp4", "no such clip"),
        ("videos/a.mkv", "no such clip"),
        ("videos/a.mp4", "was not prepared by this command"),
        ("annotations/z.txt", "no such clip"),
        ("videos/notes.txt", "no such clip"),
    ],
)
def test_what_belongs_to_others_is_refused_and_kept(four: ClipIndex, tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    if path.suffix == ".txt":
        path.write_text("mine\n")
    else:
        write_video(path, frames=2)
    before = path.read_bytes()
    with pytest.raises(ActdetError, match=words) as caught:
        prepare_dataset(four, tmp_path / "out", SMALL)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [path]


def test_a_pipe_in_the_new_folder_does_not_block(four: ClipIndex, tmp_path: Path) -> None:
    path = tmp_path / "out" / "videos" / "a.mp4"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(ActdetError, match="was not prepared by this command"):
        prepare_dataset(four, tmp_path / "out", SMALL)


@pytest.mark.parametrize("place", ["set", "set/out", "set/videos", "set/videos/out", "link", "link/out", "far", "."])
def test_the_data_set_itself_is_never_written_to(four: ClipIndex, tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(four.root)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "videos").symlink_to(four.root / "videos")
    before = sorted(four.root.rglob("*"))
    if place == ".":
        (tmp_path / "videos").symlink_to(four.root / "annotations")
    with pytest.raises(ActdetError, match="within the data set"):
        prepare_dataset(four, tmp_path / place, SMALL)
    assert sorted(four.root.rglob("*")) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_video_is_named_and_the_others_are_kept(dataset: Dataset, tmp_path: Path, workers: int) -> None:
    source = dataset({"a.mp4": _video(frames=30, size=(96, 64)), "b.mkv": _broken}, {"b": "0 10 20 60 50\n"})
    out = tmp_path / "out"
    config = replace(SMALL, workers=workers)
    with pytest.raises(DataError, match="only the first 12 of its 20 frames decode") as caught:
        prepare_dataset(source, out, config)
    assert caught.value.path == source.clips[1].video.path
    assert {path.name for path in (out / "videos").iterdir()} <= {"a.mp4"}
    assert str(out / "annotations" / "b.txt") in [problem.path for problem in find_problems(out)]

    write_video(source.root / "videos" / "b.mkv", frames=4, size=(96, 64))
    assert len(prepare_dataset(load_index(source.root), out, config).index.clips) == 2
    assert find_problems(out) == []


@pytest.mark.parametrize("size", [0, 1500])
def test_after_a_full_disk_the_next_run_goes_on(four: ClipIndex, tmp_path: Path, size: int) -> None:
    out = tmp_path / "out"
    with small_disk(size), pytest.raises(DataError, match="cannot be written: ") as caught:
        prepare_dataset(four, out, SMALL)
    assert str(caught.value).startswith(f"{out}/")
    assert "\n" not in str(caught.value)
    assert not [path for path in out.rglob("*") if path.suffix == ".mp4" or "partial" in path.name]
    assert prepare_dataset(four, out, SMALL).encoded == 4


def test_an_interruption_leaves_no_partial_file(dataset: Dataset, tmp_path: Path) -> None:
    """The caller is interrupted when one clip is done."""
    source = dataset({f"{n}.mp4": _video(frames=n, size=(96, 64)) for n in (3, 4)})
    out = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(source, out, SMALL, progress=stop)
    files = list(out.rglob("*.mp4"))
    assert len(files) <= 2
    assert not [path for path in files if "partial" in path.name]
    prepared = prepare_dataset(source, out, SMALL)
    assert prepared.encoded == 2 - len(files)
    assert [len(clip.video.pts) for clip in prepared.index.clips] == [3, 4]


def _workers() -> list[int]:
    """Return the process ids of the workers that this process has spawned."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that takes seconds to encode."""
    pictures = np.random.default_rng(0).integers(0, 255, (120, 480, 640, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("noise") / "noise.mkv"
    return write_video(path, "mjpeg", frames=120, size=(640, 480), pictures=pictures)


@pytest.mark.parametrize("killed", [1, 2])
def test_a_process_that_dies_is_an_error(dataset: Dataset, noise: Path, tmp_path: Path, killed: int) -> None:
    """The system may kill one if memory runs out; neither the other one nor the caller must then wait forever."""
    source = dataset(dict.fromkeys(("a.mkv", "b.mkv"), lambda path: shutil.copy(noise, path)))
    out = tmp_path / "out"

    def kill() -> None:
        while len(list(out.glob("videos/.*.partial.mp4"))) < 2:
            time.sleep(0.01)
        for pid in _workers()[:killed]:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ActdetError, match="a process died: if memory ran out"):
        prepare_dataset(source, out, replace(SMALL, short_side=480, workers=2))
    killer.join()
    assert not list((out / "videos").iterdir())
    assert multiprocessing.active_children() == []


def test_what_a_killed_run_left_is_removed(four: ClipIndex, tmp_path: Path) -> None:
    left = tmp_path / "out" / "videos" / ".a.123.partial.mp4"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    prepare_dataset(four, tmp_path / "out", SMALL)
    assert not left.exists()


def test_figures_are_those_of_the_files(four: ClipIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.cumsum([0, 9, 1, 5, 1, 1, 1, 3, 0, 2, 1, 8, 1, 4, 1, 1]).tolist())
    monkeypatch.setattr(prepare.time, "perf_counter", lambda: next(clock))
    prepared = prepare_dataset(four, tmp_path / "out", SMALL)
    assert prepared.bytes_before == sum(path.stat().st_size for path in (four.root / "videos").iterdir())
    assert prepared.bytes_after == sum(path.stat().st_size for path in (tmp_path / "out" / "videos").iterdir())
    assert (prepared.seconds_before, prepared.seconds_after, prepared.measured) == (4, 3, 4)


def test_a_read_only_source_is_enough(four: ClipIndex, tmp_path: Path) -> None:
    shutil.copytree(four.root, tmp_path / "copy")
    for path in [tmp_path / "copy", *(tmp_path / "copy").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert prepare_dataset(load_index(tmp_path / "copy"), tmp_path / "out", SMALL).encoded == 4
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o755)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"short_side": 255}, "short_side must be even, got 255"),
        ({"short_side": 14}, r"short_side must be in \[16, 4096\], got 14"),
        ({"gop": 0}, r"gop must be in \[1, 10000\], got 0"),
        ({"workers": -1}, r"workers must be in \[0, 1024\], got -1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, int], problem: str) -> None:
    with pytest.raises(ActdetError, match=f"^{problem}$"):
        PrepareConfig(**settings)  # pyright: ignore[reportArgumentType]


def test_without_libx264_h264_becomes_vp9(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    assert prepare.choose_encoder("h264") == "libvpx-vp9"
    assert "libvpx-vp9" in prepare._settings(PrepareConfig())


def test_one_frame_a_group_is_all_keyframes(dataset: Dataset, tmp_path: Path) -> None:
    source = dataset({"a.mp4": _video(frames=7)})
    video = prepare_dataset(source, tmp_path / "out", replace(SMALL, gop=1)).index.clips[0].video
    with av.open(video.path) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert len(probe(video.path).pts) == 7


def _broken(path: Path) -> Path:
    return corrupt(write_video(path, "mjpeg", frames=20, size=(96, 64)), range(12, 16))


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_files_are_left_out_and_listed(dataset: Dataset, tmp_path: Path, workers: int) -> None:
    """One that the index left out, one that does not decode, and one with a box too small for the new size."""
    good = _video(frames=5, size=(96, 64))
    videos: dict[str, Callable[[Path], object]] = {"a.mp4": good, "b.mkv": _broken, "c.mp4": good, "d.mp4": good}
    root = dataset(videos, {"b": "0 10 20 60 50\n", "c": "0 0.1 0.1 2 2\n", "d": "1 10 20 60 50\n"}).root
    (root / "videos" / "e.mp4").touch()
    source = load_index(root, bad_files="skip")
    out = tmp_path / "out"
    config = replace(SMALL, workers=workers)
    for encoded in (2, 0):
        prepared = prepare_dataset(source, out, config, bad_files="skip")
        paths = [root / "videos" / "e.mp4", root / "annotations" / "c.txt", root / "videos" / "b.mkv"]
        assert [problem.path for problem in prepared.left_out] == list(map(str, paths))
        assert [clip.name for clip in prepared.index.clips] == ["a", "d"]
        assert prepared.encoded == encoded
        assert prepared.bytes_before == sum((root / "videos" / name).stat().st_size for name in ("a.mp4", "d.mp4"))
    assert find_problems(out) == []
    with pytest.raises(DataError, match="smaller than a pixel"):
        prepare_dataset(source, out, config)


def test_if_no_clip_is_left_the_error_says_why(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ActdetError, match=r"none of the clips of .* can be prepared: .*b\.mkv: only the first 12"):
        prepare_dataset(dataset({"b.mkv": _broken}), tmp_path / "out", SMALL, bad_files="skip")


def test_a_full_disk_is_no_bad_file(four: ClipIndex, tmp_path: Path) -> None:
    with small_disk(1500), pytest.raises(DataError, match="cannot be written: "):
        prepare_dataset(four, tmp_path / "out", SMALL, bad_files="skip")


def test_class_names_are_copied(dataset: Dataset, tmp_path: Path) -> None:
    root = dataset({"a.mp4": _video(frames=3, size=(96, 64))}, {"a": "1 10 20 60 50\n"}).root
    (root / "classes.txt").write_text("collapse\nfight\n")
    prepared = prepare_dataset(load_index(root), tmp_path / "out", SMALL)
    assert prepared.index.class_names == load_index(tmp_path / "out").class_names == ("collapse", "fight")
    (root / "classes.txt").write_text("fight\ncollapse\n")
    with pytest.raises(DataError, match=r"are 0 = collapse, 1 = fight, but .* 0 = fight, 1 = collapse") as caught:
        prepare_dataset(load_index(root), tmp_path / "out", SMALL)
    assert caught.value.path == str(tmp_path / "out" / "classes.txt")


def test_what_a_file_manager_left_is_passed_over(four: ClipIndex, tmp_path: Path) -> None:
    prepare_dataset(four, tmp_path / "out", SMALL)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "out" / "videos" / name).write_text("x")
    assert prepare_dataset(four, tmp_path / "out", SMALL).encoded == 0

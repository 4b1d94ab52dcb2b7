"""Re-encodes a data set so that single frames are cheap to read: small pictures, a keyframe every few frames.

A frame is reached from the keyframe before it. In a video as cameras and platforms write it that is seconds and
hundreds of large pictures away, here at most `gop` small ones. Frames, their times and the actions stay the same.

Each video is written whole or not at all, and says in its metadata what it was made of: a run that was stopped goes
on where it was. The annotations are written first, so that a data set with videos missing is not taken for a whole one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from actdet.bounds import BOUNDS, check_bounds
from actdet.data.classes import class_names_of, write_class_names
from actdet.data.index import SYSTEM_FILES, BadFiles, Clip, ClipIndex, Progress, load_index
from actdet.errors import ActdetError, DataError
from actdet.files import any_within, check_own, remove_abandoned, sole_writer, write_bytes
from actdet.video.decoding import VideoInfo, decode_frames, sample_frames, stream_frames
from actdet.video.encoding import choose_encoder, read_comment, write_video
from actdet.workers import run_all, while_wanted

# What is lost is far below what training's colour jitter adds: on 30 real clips 39.8 dB of PSNR, 1.9 of 255 off on
# average, of which 4:2:0 colour alone is 0.6 (VP9: 40.2 dB, 1.8). B-frames would make the files 15 % smaller, and the
# time at which the last frame ends inexact. Without CABAC and deblocking (fastdecode) a frame decodes in half the
# time, for 12 % more bytes.
_OPTIONS = {
    "libx264": {"preset": "veryfast", "tune": "fastdecode", "crf": "16", "bf": "0", "sc_threshold": "0"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "6", "crf": "20", "b:v": "0", "lag-in-frames": "0"},
}

# The number of these options: files that were made with those of another number are refused.
_VERSION = 2

_MEASURED_CLIPS, _MEASURED_FRAMES, _MEASURED_SIZE = 8, 16, (224, 224)


@dataclass(frozen=True)
class PrepareConfig:
    """How to re-encode a data set."""

    short_side: int = 256
    """The shorter side of the videos in pixels (even); smaller videos keep their size."""
    gop: int = 16
    """Frames from one keyframe to the next: fewer are quicker to read and take more space."""
    codec: Literal["h264", "vp9"] = "h264"
    """h264 is decoded fastest; vp9 is what DALI decodes on a CPU, too."""
    workers: int = 0
    """Processes to encode with; 0 takes one per CPU core. The result does not depend on it."""

    def __post_init__(self) -> None:
        check_bounds(vars(self), BOUNDS | {"short_side": "[16, 4096]", "gop": "[1, 10000]"})
        if self.short_side % 2:
            raise ActdetError(f"short_side must be even, got {self.short_side}")


@dataclass(frozen=True, eq=False)
class Prepared:
    """What `prepare_dataset` made, and what it saves."""

    index: ClipIndex
    """The prepared data set."""
    encoded: int
    """Clips that were encoded now; the others were there already."""
    bytes_before: int
    bytes_after: int
    """Size of all videos."""
    seconds_before: float
    seconds_after: float
    """Median time to read 16 frames of a clip, spread evenly and scaled to 224 x 224, on one thread."""
    measured: int
    """How many clips that median is of."""
    left_out: tuple[DataError, ...] = ()
    """What is wrong with the files that were left out."""


def prepare_dataset(
    source: ClipIndex,
    out: str | os.PathLike[str],
    config: PrepareConfig,
    *,
    bad_files: BadFiles = "stop",
    progress: Progress | None = None,
) -> Prepared:
    """Write the clips of `source` to `out` anew, upright, small and with a keyframe every `config.gop` frames.

    Clips that an earlier run with the same settings has made of the same files are kept; annotations and class names
    are always written. With `bad_files` "skip" a clip that does not decode is left out. `progress(done, total)` is
    called after each clip. The processes are spawned: a script that calls this keeps its own start under
    `if __name__ == "__main__":`.

    Raises DataError for a video that does not decode or a file that cannot be written, ActdetError where `out` is
    within the data set, or holds anything but clips of `source` prepared with the same settings, or another process
    writes to it.
    """
    out = Path(out)
    _check_apart(source.root, out)
    with sole_writer(out):
        return _prepare(source, out, config, bad_files, progress)


def _prepare(
    source: ClipIndex, out: Path, config: PrepareConfig, bad_files: BadFiles, progress: Progress | None
) -> Prepared:
    class_names_of(out, source.class_names)
    left_out = list(source.left_out)
    texts: dict[str, str | None] = {}
    for clip in source.clips:
        try:
            texts[clip.name] = _scaled_annotations(clip, source.root, config.short_side)
        except DataError as problem:
            if bad_files == "stop":
                raise
            left_out.append(problem)
    clips = [clip for clip in source.clips if clip.name in texts]
    stamps = {clip.name: _stamp(clip, config) for clip in clips}
    done = _find_prepared(out, source, config, stamps)
    _check_annotations(out, texts)
    for folder in ("videos", "annotations"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_class_names(out, source.class_names)
    for name, text in texts.items():
        path = out / "annotations" / f"{name}.txt"
        if text is None:
            path.unlink(missing_ok=True)
        else:
            write_bytes(path, text.encode())
    jobs = [(clip.video, _target(out, clip.name), config, stamps[clip.name]) for clip in clips]
    bad = _encode_all(
        [job for job in jobs if job[1].stem not in done], out, config.workers, len(jobs), bad_files, progress
    )
    unreadable = {problem.path for problem in bad}
    for clip in clips:
        if clip.video.path in unreadable:
            (out / "annotations" / f"{clip.name}.txt").unlink(missing_ok=True)
            _target(out, clip.name).unlink(missing_ok=True)
    clips = [clip for clip in clips if clip.video.path not in unreadable]
    left_out += bad
    if not clips:
        raise ActdetError(f"none of the clips of {source.root} can be prepared: {left_out[0]}")

    index = load_index(out, source.class_names)
    sample = np.unique(np.linspace(0, len(clips) - 1, _MEASURED_CLIPS).round().astype(int)).tolist()
    return Prepared(
        index=index,
        encoded=len(clips) - len(done),
        bytes_before=_bytes(clips),
        bytes_after=_bytes(index.clips),
        seconds_before=_reading_seconds([clips[i].video for i in sample]),
        seconds_after=_reading_seconds([index.clips[i].video for i in sample]),
        measured=len(sample),
        left_out=tuple(left_out),
    )


def prepared_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height), both even, that a video of `width` x `height` is scaled down to; never larger than it is."""
    share = min(Fraction(1), Fraction(short_side, min(width, height)))
    width, height = (max(2, min(round(side * share / 2), side // 2) * 2) for side in (width, height))
    return width, height


def _check_annotations(out: Path, texts: dict[str, str | None]) -> None:
    """ActdetError for an annotation file in `out` that is neither this command's nor says what it would write."""

    def is_own(path: Path) -> bool:
        text = texts[path.stem]
        # A video that is there was made by this command, and so was what lies beside it.
        return _target(out, path.stem).exists() or (text is not None and path.read_bytes() == text.encode())

    check_own((out / "annotations" / f"{name}.txt" for name in texts), is_own)


def _target(out: Path, name: str) -> Path:
    return out / "videos" / f"{name}.mp4"


def _check_apart(source: Path, out: Path) -> None:
    """Raises if writing to `out` would write into `source`, symbolic links seen through."""
    folders = ((root, root / "videos", root / "annotations") for root in (out, source))
    if any_within(*folders):
        raise ActdetError(f"{out} is within the data set {source}: give another folder")


def _scaled_annotations(clip: Clip, root: Path, short_side: int) -> str | None:
    """What the clip's annotation file will hold; None where there is none."""
    path = root / "annotations" / f"{clip.name}.txt"
    if not path.exists():
        return None
    width, height = prepared_size(clip.video.width, clip.video.height, short_side)
    across, down = width / clip.video.width, height / clip.video.height
    lines = []
    for label, (x1, y1, x2, y2) in clip.annotations:
        box = left, top, right, bottom = (x1 * across, y1 * down, min(x2 * across, width), min(y2 * down, height))
        if not (left < right and top < bottom) or max(right, bottom) <= 1:
            what = f"the box {x1:g} {y1:g} {x2:g} {y2:g} is less than a pixel of {width}x{height}"
            raise DataError(path, f"{what}: correct it, or take a larger --short-side")
        lines.append(" ".join(map(str, (label, *box))) + "\n")
    return "".join(lines)


def _settings(config: PrepareConfig) -> str:
    encoder = choose_encoder(config.codec)
    return f"short side {config.short_side}, GOP {config.gop}, {encoder}, version {_VERSION}"


def _stamp(clip: Clip, config: PrepareConfig) -> str:
    """What a prepared video says of itself: with which settings it was made, and of which file."""
    facts = os.stat(clip.video.path)
    return f"actdet prepare: {_settings(config)}; of {facts.st_size} bytes changed at {facts.st_mtime_ns} ns"


def _find_prepared(out: Path, source: ClipIndex, config: PrepareConfig, stamps: dict[str, str]) -> set[str]:
    """The clips that are in `out` already; an ActdetError for anything that does not belong there."""
    done = set()
    for folder, suffix in ((out / "videos", ".mp4"), (out / "annotations", ".txt")):
        if not folder.exists():
            continue
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name.lower() in SYSTEM_FILES:
                continue
            if path.suffix != suffix or path.stem not in stamps:
                raise ActdetError(f"{path}: {source.root} has no such clip; remove it, or give a new folder")
            if suffix == ".txt":
                continue
            stamp = read_comment(path)
            settings, _, _ = stamp.removeprefix("actdet prepare: ").partition(";")
            if settings != _settings(config):
                found = settings if settings != stamp else "not by this command"
                raise ActdetError(f"{path} was made otherwise ({found}; asked for: {_settings(config)}): new folder")
            if stamp == stamps[path.stem]:
                done.add(path.stem)
    return done


_Job = tuple[VideoInfo, Path, PrepareConfig, str]


def _encode_all(
    jobs: Sequence[_Job], out: Path, workers: int, total: int, bad_files: BadFiles, progress: Progress | None
) -> list[DataError]:
    """Do the jobs in processes, the longest first, and leave nothing half-made, however it ends.

    Returns what is wrong with the videos that do not decode, where those are left out.
    """

    def show(done: int) -> None:
        if progress:
            progress(total - len(jobs) + done, total)

    show(0)
    if not jobs:
        return []
    videos = out / "videos"
    remove_abandoned(videos)
    try:
        longest_first = sorted(jobs, key=lambda job: -len(job[0].pts))
        problems = run_all(_encode, [(*job, bad_files) for job in longest_first], workers, show)
        return [problem for problem in problems if problem is not None]
    finally:
        # Of a process that was killed.
        remove_abandoned(videos)


def _encode(video: VideoInfo, target: Path, config: PrepareConfig, stamp: str, bad_files: BadFiles) -> DataError | None:
    """Runs in a worker: writes one clip, or returns what is wrong with its video, where such are left out."""
    try:
        _write(video, target, config, stamp)
    except DataError as problem:
        if bad_files == "stop" or problem.path != video.path:
            raise
        return problem
    return None


def _write(video: VideoInfo, target: Path, config: PrepareConfig, stamp: str) -> None:
    width, height = prepared_size(video.width, video.height, config.short_side)
    encoder = choose_encoder(config.codec)
    write_video(
        target,
        (picture for _, picture in while_wanted(stream_frames(video, range(len(video.pts)), (height, width)))),
        video.pts - video.pts[0],
        video.time_base,
        end=video.end - int(video.pts[0]),
        encoder=encoder,
        options=_OPTIONS[encoder] | {"g": str(config.gop), "keyint_min": str(config.gop)},
        threads=1,
        comment=stamp,
    )


def _bytes(clips: Iterable[Clip]) -> int:
    return sum(os.path.getsize(clip.video.path) for clip in clips)


def _reading_seconds(videos: Iterable[VideoInfo]) -> float:
    times = []
    for video in videos:
        start = time.perf_counter()
        decode_frames(video, sample_frames(video, _MEASURED_FRAMES), _MEASURED_SIZE)
        times.append(time.perf_counter() - start)
    return float(np.median(times))

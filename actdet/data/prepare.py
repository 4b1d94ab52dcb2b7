"""Re-encode a data set so that single frames are cheap to read: small pictures, a keyframe every few frames.

A frame is reached from the keyframe before it. In a video as cameras and platforms write it, that keyframe is seconds
and hundreds of large pictures away; in a prepared one it is at most `gop` small pictures away. The frames, their times
and the actions stay the same.

Each video is written completely or not at all, and its metadata say what it was made of, so a run that was stopped can
go on where it was. The annotations are written first, so that a data set whose videos are not all there yet is not
mistaken for a complete one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from actdet.bounds import BOUNDS, check_bounds
from actdet.data.classes import class_names_of, write_class_names
from actdet.data.clips import Clip, ClipIndex
from actdet.data.division import DIVISION_FILES, without_clips
from actdet.data.index import BadFiles, Progress, load_index
from actdet.data.layout import SYSTEM_FILES, annotation_file
from actdet.data.tubes import tube_file
from actdet.detections import Tube
from actdet.errors import ActdetError, DataError
from actdet.files import any_within, check_own, remove_abandoned, sole_writer, write_bytes
from actdet.video.decoding import decode_frames, stream_frames
from actdet.video.encoding import choose_encoder, read_comment, write_video
from actdet.video.info import VideoInfo
from actdet.video.sampling import sample_frames
from actdet.workers import run_all, while_wanted

# The loss of quality is far below the changes of color in training: on 30 real clips the PSNR is 39.8 dB and the mean
# difference 1.9 of 255, of which 4:2:0 color alone accounts for 0.6 (VP9: 40.2 dB, 1.8). B-frames would make the files
# 15 % smaller, but the end of the last frame inexact. Without CABAC and deblocking (fastdecode) a frame decodes in half
# the time, for 12 % more bytes.
_OPTIONS = {
    "libx264": {"preset": "veryfast", "tune": "fastdecode", "crf": "16", "bf": "0", "sc_threshold": "0"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "6", "crf": "20", "b:v": "0", "lag-in-frames": "0"},
}

# The version of these options; files that were made with another version are refused.
_VERSION = 2

# On how many clips reading is timed, and what is read of each.
_MEASURED_CLIPS = 8
_MEASURED_FRAMES = 16
_MEASURED_SIZE = (224, 224)


@dataclass(frozen=True)
class PrepareConfig:
    """How to re-encode a data set."""

    short_side: int = 256
    """The shorter side of the videos in pixels (even); smaller videos keep their size."""
    gop: int = 16
    """Frames from one keyframe to the next: fewer are quicker to read and take more space."""
    codec: Literal["h264", "vp9"] = "h264"
    """h264 decodes fastest; vp9 can also be decoded by DALI on a CPU."""
    workers: int = 0
    """Processes to encode with; 0 starts one per CPU core. The result does not depend on it."""

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
    """Size of all videos as they were."""
    bytes_after: int
    """Size of all prepared videos."""
    seconds_before: float
    """Median time to read 16 frames of a clip as it was, evenly spread and scaled to 224 x 224, on one thread."""
    seconds_after: float
    """The same of the prepared clips."""
    measured: int
    """Number of clips that were read to find the median."""
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
    """Write a data set anew: its videos upright, small, and with a keyframe every `config.gop` frames.

    Clips that an earlier run made of the same files with the same settings are kept; annotations, class names, groups
    and lists of clips are always written. The worker processes are spawned, so a script that calls this must keep its
    own start under `if __name__ == "__main__":`.

    Args:
        source: The data set.
        out: Folder of the prepared data set.
        config: How to encode.
        bad_files: "skip" leaves out the clips that do not decode; "stop" raises what is wrong with the first of them.
        progress: Called with (clips done, clips in all) after each clip.

    Raises:
        DataError: If a video does not decode, or a file cannot be written.
        ActdetError: If `out` is within the data set, if it contains anything other than clips of `source` prepared with
            the same settings, or if another process is writing to it.
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
    texts: dict[str, _AnnotationFile | None] = {}
    for clip in source.clips:
        try:
            texts[clip.name] = _scaled_annotations(clip, source, out, config.short_side)
        except DataError as problem:
            if bad_files == "stop":
                raise
            left_out.append(problem)

    # Everything is checked before the first file is written.
    clips = [clip for clip in source.clips if clip.name in texts]
    stamps = {clip.name: _stamp(clip, config) for clip in clips}
    done = _find_prepared(out, source, config, stamps)
    _check_annotations(out, texts)
    _check_division_files(source.root, out, texts)

    for folder in ("videos", "annotations"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_class_names(out, source.class_names)
    for name, file in texts.items():
        # What the source had before may have been of the other kind, or may be gone.
        for path in _annotation_files(out, name):
            if file is None or path != file.path:
                path.unlink(missing_ok=True)
        if file is not None:
            write_bytes(file.path, file.content)

    jobs = [(clip.video, _target(out, clip.name), config, stamps[clip.name]) for clip in clips if clip.name not in done]
    bad = _encode_all(jobs, out, config.workers, len(clips), bad_files, progress)
    left_out += bad

    # A clip that does not decode must not stay as an annotation without its video.
    unreadable = {problem.path for problem in bad}
    for clip in clips:
        if clip.video.path in unreadable:
            for path in (*_annotation_files(out, clip.name), _target(out, clip.name)):
                path.unlink(missing_ok=True)
    clips = [clip for clip in clips if clip.video.path not in unreadable]
    if not clips:
        raise ActdetError(f"none of the clips of {source.root} can be prepared: {left_out[0]}")

    _copy_division_files(source, out, clips)
    index = load_index(out, source.class_names)
    measured = np.unique(np.linspace(0, len(clips) - 1, _MEASURED_CLIPS).round().astype(int)).tolist()
    return Prepared(
        index=index,
        encoded=len(clips) - len(done),
        bytes_before=_bytes(clips),
        bytes_after=_bytes(index.clips),
        seconds_before=_reading_seconds([clips[i].video for i in measured]),
        seconds_after=_reading_seconds([index.clips[i].video for i in measured]),
        measured=len(measured),
        left_out=tuple(left_out),
    )


def prepared_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the width and height, both even, to which a video is scaled down; it is never enlarged."""
    scale = min(Fraction(1), Fraction(short_side, min(width, height)))
    width, height = (max(2, min(round(side * scale / 2), side // 2) * 2) for side in (width, height))
    return width, height


class _AnnotationFile(NamedTuple):
    """A file to write."""

    path: Path
    content: bytes


def _check_annotations(out: Path, texts: dict[str, _AnnotationFile | None]) -> None:
    """Raise ActdetError for an annotation file that would be replaced though this command did not write it."""

    def is_own(path: Path) -> bool:
        # A video that is there has been found to be this command's, and so is the file that belongs to it.
        file = texts[path.stem]
        is_same = file is not None and path == file.path and path.read_bytes() == file.content
        return is_same or _target(out, path.stem).exists()

    check_own((path for name in texts for path in _annotation_files(out, name)), is_own)


def _check_division_files(source: Path, out: Path, names: Iterable[str]) -> None:
    """Raise ActdetError for a groups.txt or a list that would be replaced though this command did not write it."""
    # As with the annotations: prepared clips are this command's own, and so are the files that tell of them.
    has_clips = any(_target(out, name).exists() for name in names)
    texts = {out / name: without_clips(source / name, ()) for name in DIVISION_FILES if (source / name).exists()}
    check_own(texts, lambda path: has_clips or path.read_bytes() == texts[path].encode())


def _copy_division_files(source: ClipIndex, out: Path, clips: Iterable[Clip]) -> None:
    """Copy groups.txt and the lists of clips, without those that were left out."""
    left_out = {Path(problem.path).stem for problem in source.left_out}
    left_out.update(clip.name for clip in source.clips)
    left_out.difference_update(clip.name for clip in clips)
    for name in DIVISION_FILES:
        if (source.root / name).exists():
            write_bytes(out / name, without_clips(source.root / name, left_out).encode())


def _target(out: Path, name: str) -> Path:
    return out / "videos" / f"{name}.mp4"


def _annotation_files(root: Path, name: str) -> tuple[Path, Path]:
    """The names that a video's annotation file may have."""
    folder = root / "annotations"
    return folder / f"{name}.txt", folder / f"{name}.csv"


def _check_apart(source: Path, out: Path) -> None:
    """Raise ActdetError if writing to `out` would write into `source`, even through symbolic links."""
    folders = ((root, root / "videos", root / "annotations") for root in (out, source))
    if any_within(*folders):
        raise ActdetError(f"{out} is within the data set {source}; choose a folder outside of it")


def _scaled_annotations(clip: Clip, source: ClipIndex, out: Path, short_side: int) -> _AnnotationFile | None:
    """Return the annotation file that the clip will have; None if it has none.

    Raises:
        DataError: If a box would be smaller than a pixel.
    """
    if not clip.annotated:
        return None
    path = annotation_file(source.root, clip.name)
    target = out / "annotations" / path.name

    width, height = prepared_size(clip.video.width, clip.video.height, short_side)
    scale = np.array([width / clip.video.width, height / clip.video.height] * 2)
    limit = np.array([width, height] * 2)

    def scaled(boxes: np.ndarray) -> np.ndarray:
        """Return boxes (n, 4) in pixels of the small pictures, float64."""
        small = np.minimum(boxes * scale, limit)
        is_gone = ~(small[:, :2] < small[:, 2:]).all(1) | (small[:, 2:].max(1) <= 1)
        if is_gone.any():
            box = " ".join(f"{side:g}" for side in boxes[is_gone][0].tolist())
            problem = f"the box {box} would be smaller than a pixel at {width}x{height}"
            raise DataError(path, f"{problem}: correct it, or use a larger --short-side")
        return small

    if clip.table is not None:
        tubes = [Tube(tube.label, tube.frames, scaled(tube.boxes).astype(np.float32)) for tube in clip.table]
        return _AnnotationFile(target, tube_file(target, tubes, source.class_names))

    boxes = np.array([box for _, box in clip.annotations], np.float64).reshape(-1, 4)
    rows = zip(clip.annotations, scaled(boxes).tolist(), strict=True)
    lines = [" ".join(map(str, (annotation.label, *box))) + "\n" for annotation, box in rows]
    return _AnnotationFile(target, "".join(lines).encode())


def _settings(config: PrepareConfig) -> str:
    """Return the settings as they stand in the metadata of a prepared video."""
    encoder = choose_encoder(config.codec)
    return f"short side {config.short_side}, GOP {config.gop}, {encoder}, version {_VERSION}"


def _stamp(clip: Clip, config: PrepareConfig) -> str:
    """Return what the metadata of a prepared video say: its settings, and from which file it was made."""
    facts = os.stat(clip.video.path)
    return f"actdet prepare: {_settings(config)}; of {facts.st_size} bytes changed at {facts.st_mtime_ns} ns"


def _find_prepared(out: Path, source: ClipIndex, config: PrepareConfig, stamps: dict[str, str]) -> set[str]:
    """Return the names of the clips that are in `out` already.

    Raises:
        ActdetError: For a file that does not belong there.
    """
    done = set()
    for folder, suffixes in ((out / "videos", (".mp4",)), (out / "annotations", (".txt", ".csv"))):
        if not folder.exists():
            continue
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name.lower() in SYSTEM_FILES:
                continue
            if path.suffix not in suffixes or path.stem not in stamps:
                raise ActdetError(
                    f"{path}: {source.root} has no such clip; remove the file, or choose a new output folder"
                )
            if path.suffix == ".mp4" and _is_current(path, config, stamps[path.stem]):
                done.add(path.stem)
    return done


def _is_current(path: Path, config: PrepareConfig, stamp: str) -> bool:
    """Return whether a prepared video was made of its source as that is now.

    Raises:
        ActdetError: If it was made with other settings, or not by this command.
    """
    found = read_comment(path)
    if not found.startswith("actdet prepare: "):
        raise ActdetError(f"{path} was not prepared by this command; choose a new output folder")

    settings, _, _ = found.removeprefix("actdet prepare: ").partition(";")
    if settings != _settings(config):
        raise ActdetError(
            f"{path} was prepared with other settings (found {settings}, requested {_settings(config)}); "
            "choose a new output folder"
        )
    return found == stamp


# The arguments of `_write`: the video, the file to write, how to encode it, and its stamp.
_Job = tuple[VideoInfo, Path, PrepareConfig, str]


def _encode_all(
    jobs: Sequence[_Job], out: Path, workers: int, total: int, bad_files: BadFiles, progress: Progress | None
) -> list[DataError]:
    """Encode videos in worker processes, the longest first, and leave no half-written file, however it ends.

    Args:
        jobs: What to encode.
        out: Folder of the prepared data set.
        workers: Number of processes; 0 starts one per CPU core.
        total: Number of clips in all, with those that are done already.
        bad_files: See `prepare_dataset`.
        progress: See `prepare_dataset`.

    Returns:
        What is wrong with the videos that do not decode, if they are left out.
    """

    def show(done: int) -> None:
        if progress:
            progress(total - len(jobs) + done, total)

    show(0)
    if not jobs:
        return []

    try:
        longest_first = sorted(jobs, key=lambda job: -len(job[0].pts))
        problems = run_all(_encode, [(*job, bad_files) for job in longest_first], workers, show)
        return [problem for problem in problems if problem is not None]
    finally:
        # A worker that was killed has left the file that it was writing.
        remove_abandoned(out / "videos")


def _encode(video: VideoInfo, target: Path, config: PrepareConfig, stamp: str, bad_files: BadFiles) -> DataError | None:
    """Write one video, in a worker process; return what is wrong with it if it does not decode and is left out."""
    try:
        _write(video, target, config, stamp)
    except DataError as problem:
        # A full disk, for instance, is an error about another file, and not a reason to leave out the clip.
        if bad_files == "stop" or problem.path != video.path:
            raise
        return problem
    return None


def _write(video: VideoInfo, target: Path, config: PrepareConfig, stamp: str) -> None:
    width, height = prepared_size(video.width, video.height, config.short_side)
    frames = while_wanted(stream_frames(video, range(len(video.pts)), (height, width)))
    encoder = choose_encoder(config.codec)
    gop = str(config.gop)
    write_video(
        target,
        (picture for _, picture in frames),
        video.pts - video.pts[0],
        video.time_base,
        end=video.end - int(video.pts[0]),
        encoder=encoder,
        options=_OPTIONS[encoder] | {"g": gop, "keyint_min": gop},
        threads=1,
        comment=stamp,
    )


def _bytes(clips: Iterable[Clip]) -> int:
    return sum(os.path.getsize(clip.video.path) for clip in clips)


def _reading_seconds(videos: Iterable[VideoInfo]) -> float:
    """Return the median time to read a few frames of a video."""
    times = []
    for video in videos:
        start = time.perf_counter()
        decode_frames(video, sample_frames(video, _MEASURED_FRAMES), _MEASURED_SIZE)
        times.append(time.perf_counter() - start)
    return float(np.median(times))

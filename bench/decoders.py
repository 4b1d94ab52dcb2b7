"""The readers of video that are compared: each gives the frames of a clip as RGB of the size asked for.

Those in `READERS` read one clip on one thread, opening its file. They are written as their documentation would have it,
at their fastest: no codec threads beside the one, and where a library resizes by itself, it does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from actdet.errors import DataError
from actdet.video.decoding import ClipRequest, decode_frames
from actdet.video.info import VideoInfo
from actdet.video.readers import Reader, choose_reader, open_reader
from bench.numbered import number_of

Size = tuple[int, int]  # height and width
Clip = Any  # uint8 (T, height, width, 3), an array or a tensor
OURS = "actdet"
DALI = {"DALI": torch.device("cpu")} | ({"DALI on the GPU": torch.device("cuda")} if torch.cuda.is_available() else {})
# Mean over pixels, of 255, from PyAV's: between 1 and 2 are due to how each resizes and converts colors.
MOST_DIFFERENCE = 3.0


class Unavailable(Exception):
    """Why a reader cannot be had here."""


@contextmanager
def open_decoder(
    name: str, video: VideoInfo, size: Size, cores: int
) -> Iterator[Callable[[Sequence[ClipRequest]], list[Clip]]]:
    """A function that reads clips of files like `video`: one after another, or with a reader for each of `cores`.

    actdet then has a process for each, DALI a thread, and all others a Python thread: they release the GIL.
    """
    if name in DALI:
        chosen, _ = choose_reader("dali", DALI[name], [video])
        with open_reader(chosen, size, workers=cores) as reader:
            yield lambda clips: read_all(reader, clips)
    elif cores == 1:
        yield lambda clips: [READERS[name](clip, size) for clip in clips]
    elif name == OURS:
        with open_reader("pyav", size, workers=cores) as reader:
            yield lambda clips: read_all(reader, clips)
    else:
        with ThreadPoolExecutor(cores) as pool:
            yield lambda clips: list(pool.map(lambda clip: READERS[name](clip, size), clips))


def read_all(reader: Reader, requests: Sequence[ClipRequest]) -> list[Clip]:
    clips = []
    for clip in reader.read(requests, prefetch=len(requests)):
        if isinstance(clip, DataError):
            raise clip
        clips.append(clip)
    if clips[0].is_cuda:
        torch.cuda.synchronize()
    return clips


def fault_of(clip: Clip, indices: np.ndarray, reference: np.ndarray) -> str | None:
    """What is wrong with the frames of one of `numbered`: other frames than those of `indices`, or other pixels."""
    pictures = array_of(clip)
    if pictures.shape != reference.shape or pictures.dtype != np.uint8:
        return f"gives {pictures.dtype} {pictures.shape}, not uint8 {reference.shape}"
    numbers = np.array([number_of(picture) for picture in pictures])
    wrong = np.flatnonzero(numbers != indices)
    if len(wrong):
        first = wrong[0]
        what = f"{len(wrong)} of {len(indices)}, the first {numbers[first]} for {indices[first]}"
        return f"gives wrong frames: {what}"
    difference = difference_of(clip, reference)
    return f"differs from PyAV by {difference:.1f} of 255 on average" if difference > MOST_DIFFERENCE else None


def difference_of(clip: Clip, reference: np.ndarray) -> float:
    return float(np.abs(array_of(clip).astype(np.int16) - reference).mean())


def array_of(clip: Clip) -> np.ndarray:
    return clip.cpu().numpy() if isinstance(clip, torch.Tensor) else clip


def actdet(clip: ClipRequest, size: Size) -> Clip:
    return decode_frames(clip.video, clip.indices, size)


def pyav(clip: ClipRequest, size: Size) -> Clip:
    """Every frame from the first to the last wanted, counted."""
    resized, wanted = resizer(size), set(clip.indices.tolist())
    with av.open(clip.video.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        pictures = []
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pictures.append(resized(frame))
                if len(pictures) == len(wanted):
                    break
    return np.stack(pictures)


def pyav_seeking(clip: ClipRequest, size: Size) -> Clip:
    """For each frame a seek to the keyframe before its time, which is its number over the frame rate."""
    resized, pictures = resizer(size), []
    with av.open(clip.video.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index in clip.indices.tolist():
            time = int(index / stream.average_rate / stream.time_base)
            container.seek(time, stream=stream)
            frames = container.decode(stream)
            pictures.append(resized(next(frame for frame in frames if frame.pts is not None and frame.pts >= time)))
    return np.stack(pictures)


def resizer(size: Size) -> Callable[[VideoFrame], np.ndarray]:
    """PyAV's own bilinear resizing, whose tables are made once."""
    reformatter, (height, width) = VideoReformatter(), size
    return lambda frame: reformatter.reformat(frame, width, height, "rgb24").to_ndarray()


def torchcodec_exact(clip: ClipRequest, size: Size) -> Clip:
    """Scans the file when it opens it."""
    return torchcodec_frames(clip, size, seek_mode="exact")


def torchcodec_mapped(clip: ClipRequest, size: Size) -> Clip:
    """Knows every frame's time beforehand, as actdet does."""
    return torchcodec_frames(clip, size, custom_frame_mappings=frame_mappings(os.path.realpath(clip.video.path)))


def torchcodec_frames(clip: ClipRequest, size: Size, **options: Any) -> Clip:
    resize = import_module("torchcodec.transforms").Resize(size)
    decoder = open_torchcodec(clip.video.path, dimension_order="NHWC", transforms=[resize], **options)
    return decoder.get_frames_at(clip.indices.tolist()).data


def open_torchcodec(path: str, **options: Any) -> Any:
    decoders = import_module("torchcodec.decoders")
    try:
        return decoders.VideoDecoder(path, num_ffmpeg_threads=1, **options)
    except RuntimeError as error:
        if "load libtorchcodec" not in str(error):
            raise
        raise Unavailable("finds no libraries of FFmpeg (make bench gives it PyAV's)") from None


@cache
def frame_mappings(path: str) -> str:
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    frames = [{"pts": p.pts, "duration": p.duration, "key_frame": int(p.is_keyframe)} for p in packets]
    return json.dumps({"frames": sorted(frames, key=lambda frame: frame["pts"])})


def opencv(clip: ClipRequest, size: Size) -> Clip:
    """Grabs every frame to the last wanted; retrieves the wanted ones."""
    return opencv_frames(clip, size, opencv_grabbed)


def opencv_seeking(clip: ClipRequest, size: Size) -> Clip:
    return opencv_frames(clip, size, opencv_sought)


def opencv_frames(clip: ClipRequest, size: Size, choose: Callable[[Any, Sequence[int]], Iterable[np.ndarray]]) -> Clip:
    """Area interpolation, the only one of OpenCV's that is antialiased."""
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(clip.video.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    small = (cv2.resize(p, size[::-1], interpolation=cv2.INTER_AREA) for p in choose(capture, clip.indices.tolist()))
    pictures = np.stack([cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) for picture in small])
    capture.release()
    return pictures


def opencv_grabbed(capture: Any, indices: Sequence[int]) -> Iterator[np.ndarray]:
    wanted = set(indices)
    for number in range(indices[-1] + 1):
        capture.grab()
        if number in wanted:
            yield capture.retrieve()[1]


def opencv_sought(capture: Any, indices: Sequence[int]) -> Iterator[np.ndarray]:
    cv2 = import_module("cv2")
    for index in indices:
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        yield capture.read()[1]


READERS: dict[str, Callable[[ClipRequest, Size], Clip]] = {
    OURS: actdet,
    "PyAV": pyav,
    "PyAV, seeking": pyav_seeking,
    "torchcodec": torchcodec_exact,
    "torchcodec, mapped": torchcodec_mapped,
    "OpenCV": opencv,
    "OpenCV, seeking": opencv_seeking,
}
NAMES = (*READERS, *DALI)

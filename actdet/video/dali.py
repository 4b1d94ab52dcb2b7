"""Reads clips with NVIDIA DALI, on a CPU or with the GPU's video decoder. Nothing else needs DALI.

DALI decodes and resizes, uint8, on its device; augmentation and normalisation are the same for all readers (`augment`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from actdet.errors import ActdetError, DataError
from actdet.video.decoding import ClipRequest, VideoInfo, decode_frames

try:
    from nvidia.dali import fn
    from nvidia.dali.pipeline import pipeline_def
    from nvidia.dali.plugin.pytorch import feed_ndarray  # pyright: ignore[reportPrivateImportUsage]
    from nvidia.dali.types import DALIDataType, DALIInterpType
except ImportError as error:
    raise ActdetError(f"DALI cannot be used ({error}): pip install 'actdet[cuda13]', or use reader pyav") from None

# Batches that DALI decodes ahead.
_AHEAD = 2

# What one of its batches holds at most: pieces of clips, and bytes at the videos' own size.
_MOST_PIECES, _MOST_BYTES = 16, 2**29


class _Piece(NamedTuple):
    """Frames of a clip that are decoded at once; those of a long clip take several."""

    clip: int
    video: VideoInfo
    indices: np.ndarray


class DALIReader:
    """Decodes with DALI, as `dali-cpu` or `dali-gpu`; the tensors it gives lie on that device."""

    def __init__(self, name: str, size: tuple[int, int], threads: int) -> None:
        self.name = name
        self._size = size
        self._threads = threads
        self._gpu = name == "dali-gpu"

    def read(self, requests: Iterable[ClipRequest], ahead: int = 8) -> Iterator[torch.Tensor | DataError]:
        todo: list[ClipRequest | DataError] = list(requests)
        while todo:
            if isinstance(first := todo[0], DataError):
                yield first
                del todo[0]
                continue
            part = list(_leading_requests(todo))
            done = 0
            try:
                for clip in self._clips(part, ahead):
                    yield clip
                    done += 1
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, DataError) as error:
                # DALI does not say which file it failed on, only that it is one of those that it had begun.
                begun = part[done : done + 1 + (1 + _AHEAD) * _MOST_PIECES]
                problems = (_problem(request, self._size) for request in begun)
                place, problem = next(((i, p) for i, p in enumerate(problems) if p), (0, None))
                if problem is None:
                    raise _unexplained(begun, error) from None
                todo[done + place] = problem
            del todo[:done]

    def _clips(self, requests: Sequence[ClipRequest], ahead: int) -> Iterator[torch.Tensor]:
        pieces = [
            _Piece(number, video, indices[first : first + most])
            for number, (video, indices) in enumerate(requests)
            for most in [max(1, _MOST_BYTES // (video.width * video.height * 3))]
            for first in range(0, len(indices), most)
        ]
        for _, parts in groupby(self._decode(pieces, min(ahead, _MOST_PIECES)), key=lambda part: part[0]):
            yield torch.cat([frames for _, frames in parts])

    def _decode(self, pieces: list[_Piece], most: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The frames of each piece, with the number of its clip."""
        if not pieces:
            return
        batches = _batches(pieces, most)
        # A pipeline is built in milliseconds; a new one for each pass has nothing left over from the last.
        pipeline: Any = _pipeline(
            self._inputs(batches),
            "mixed" if self._gpu else "cpu",
            batch_size=max(map(len, batches)),
            num_threads=self._threads,
            device_id=torch.cuda.current_device() if self._gpu else None,
            prefetch_queue_depth=_AHEAD,
        )
        for batch in batches:
            (clips,) = pipeline.run()
            for piece, clip in zip(batch, clips, strict=True):
                yield piece.clip, self._upright(clip, piece.video.rotation)

    def _inputs(self, batches: list[list[_Piece]]) -> Iterator[tuple[list[np.ndarray], ...]]:
        """What the pipeline takes for each batch: files, frame indices, and sizes before rotation."""
        for batch in batches:
            sizes = [self._size[::-1] if piece.video.rotation % 180 else self._size for piece in batch]
            yield (
                [_bytes(piece.video) for piece in batch],
                [np.asarray(piece.indices, np.int32) for piece in batch],
                [np.array(size, np.float32) for size in sizes],
            )

    def _upright(self, clip: Any, rotation: int) -> torch.Tensor:
        """A copy of DALI's (T, H, W, 3) that outlives its buffer, turned as the video's metadata say."""
        stream = torch.cuda.current_stream() if self._gpu else None
        copy = torch.empty(clip.shape(), dtype=torch.uint8, device="cuda" if self._gpu else "cpu")
        feed_ndarray(clip, copy, cuda_stream=stream)
        return torch.rot90(copy, rotation // 90, (1, 2))

    def close(self) -> None:
        """Nothing outlives a pass."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@pipeline_def
def _pipeline(inputs: Iterator[tuple[list[np.ndarray], ...]], decoder: str) -> Any:
    encoded, frames, size = fn.external_source(
        inputs, num_outputs=3, dtype=[DALIDataType.UINT8, DALIDataType.INT32, DALIDataType.FLOAT], ndim=1
    )
    # Unless it is told otherwise, it ties its threads to cores, the same ones in every process of a job.
    clips = fn.decoders.video(encoded, frames=frames, device=decoder, affine=False)
    # Of DALI's filters this is the triangle that also PyAV's bilinear shrinks with.
    return fn.resize(clips, size=size, interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)


def _leading_requests(todo: Iterable[ClipRequest | DataError]) -> Iterator[ClipRequest]:
    for request in todo:
        if not isinstance(request, ClipRequest):
            return
        yield request


def _batches(pieces: list[_Piece], most: int) -> list[list[_Piece]]:
    """The pieces in their order, as many at once as the limits allow."""
    batches: list[list[_Piece]] = []
    room = 0
    for piece in pieces:
        bytes_ = len(piece.indices) * piece.video.width * piece.video.height * 3
        if not batches or len(batches[-1]) == most or bytes_ > room:
            batches.append([])
            room = _MOST_BYTES
        batches[-1].append(piece)
        room -= bytes_
    return batches


def _bytes(video: VideoInfo) -> np.ndarray:
    try:
        content = np.fromfile(video.path, np.uint8)
    except OSError as error:
        raise DataError(video.path, f"cannot be read: {error.strerror}") from None
    if len(content) != video.bytes:  # DALI gives black pictures for frames that are not there
        raise DataError(video.path, f"had {video.bytes} bytes when it was indexed, now {len(content)}: start again")
    return content


def _problem(request: ClipRequest, size: tuple[int, int]) -> DataError | None:
    """What is wrong with a file, if anything is."""
    try:
        _bytes(request.video)
        decode_frames(request.video, np.arange(len(request.video.pts)), size)
    except DataError as problem:
        return problem
    return None


def _unexplained(requests: list[ClipRequest], error: Exception) -> ActdetError:
    files = ", ".join(dict.fromkeys(request.video.path for request in requests))
    return ActdetError(f"DALI cannot decode one of {files} ({_reason(error)}); use reader pyav")


def _reason(error: Exception) -> str:
    """The line of DALI's error that says what went wrong in the operator."""
    lines = str(error).partition("encountered:")[2].splitlines()
    return next((line.strip() for line in lines if line.strip()), "no reason given")


def refused(name: str, videos: Iterable[VideoInfo]) -> str:
    """Which of `videos` the reader `name` does not decode on this machine, and why; empty where there is none.

    What a GPU decodes depends on codec, pixel format and sides, each within limits: of each codec and format the
    videos with the longest and the shortest sides and with most pixels are tried, each kind once in a process.
    """
    for video in _extremes(videos):
        kind = (name, video.codec, video.pixel_format, *_coded_size(video))
        if kind not in _tried:
            _tried[kind] = _refusal(name, video)
        if _tried[kind]:
            size = "{} x {}".format(*_coded_size(video))
            return f"{video.path} ({video.codec}, {video.pixel_format}, {size}) is not decoded here: {_tried[kind]}"
    return ""


_tried: dict[tuple[str | int, ...], str] = {}


def _coded_size(video: VideoInfo) -> tuple[int, int]:
    """Width and height before rotation."""
    return (video.height, video.width) if video.rotation % 180 else (video.width, video.height)


def _extremes(videos: Iterable[VideoInfo]) -> list[VideoInfo]:
    kinds: dict[tuple[str, str], list[VideoInfo]] = {}
    for video in videos:
        kinds.setdefault((video.codec, video.pixel_format), []).append(video)
    found: dict[str, VideoInfo] = {}
    for kind in kinds.values():
        for side in (0, 1):
            for choose in (max, min):
                video = choose(kind, key=lambda each, side=side: _coded_size(each)[side])
                found[video.path] = video
        largest = max(kind, key=lambda each: each.width * each.height)
        found[largest.path] = largest
    return list(found.values())


def _refusal(name: str, video: VideoInfo) -> str:
    """Why DALI does not decode the first frame of a video; empty where it does, or where the file is at fault."""
    request = ClipRequest(video, np.zeros(1, np.int64))
    size = (16, 16)
    try:
        for _ in DALIReader(name, size, threads=1)._clips([request], 1):
            pass
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, DataError) as error:
        # A damaged file is told of when it is read.
        return "" if _problem(request, size) else _reason(error)
    return ""

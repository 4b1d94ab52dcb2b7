"""Reads clips with NVIDIA DALI, on a CPU or with the GPU's video decoder. Nothing else needs DALI.

DALI decodes and resizes, in uint8, on its device. Augmentation and normalization are the same for all readers
(`data/augment.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.plugin.pytorch import feed_ndarray  # pyright: ignore[reportPrivateImportUsage]
from nvidia.dali.types import DALIDataType, DALIInterpType

from actdet.errors import ActdetError, DataError
from actdet.video.decoding import ClipRequest, decode_frames
from actdet.video.info import VideoInfo

# How many batches DALI decodes before they are asked for.
_PREFETCHED = 2

# What a batch holds at most: so many pieces of clips, and so many bytes of frames at the videos' own size.
_MOST_PIECES = 16
_MOST_BYTES = 2**29


class _Piece(NamedTuple):
    """Frames of a clip that are decoded together. A long clip takes several pieces."""

    clip: int
    """The number of the clip among the requests."""
    video: VideoInfo
    indices: np.ndarray


class DALIReader:
    """Decodes with DALI. The tensors that it gives lie on its device.

    Args:
        name: `dali-cpu` or `dali-gpu`.
        size: Height and width of the clips.
        threads: Number of DALI's threads.
    """

    def __init__(self, name: str, size: tuple[int, int], threads: int) -> None:
        self.name = name
        self._size = size
        self._threads = threads
        self._gpu = name == "dali-gpu"

    def read(self, requests: Iterable[ClipRequest], prefetch: int = 8) -> Iterator[torch.Tensor | DataError]:
        """Decode clips in the order of their requests; see `Reader.read`."""
        todo: list[ClipRequest | DataError] = list(requests)
        while todo:
            if isinstance(first := todo[0], DataError):
                yield first
                del todo[0]
                continue

            part = list(_leading_requests(todo))
            done = 0
            try:
                for clip in self._clips(part, prefetch):
                    yield clip
                    done += 1
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, DataError) as error:
                # DALI does not say which file it failed on, only that it is one of those that it had begun. PyAV finds
                # it, its request is replaced by the problem, and the pass goes on from the clip that comes next.
                begun = part[done : done + 1 + (1 + _PREFETCHED) * _MOST_PIECES]
                place, problem = _first_problem(begun, self._size)
                if problem is None:
                    raise _unexplained(begun, error) from None
                todo[done + place] = problem
            del todo[:done]

    def _clips(self, requests: Sequence[ClipRequest], prefetch: int) -> Iterator[torch.Tensor]:
        """Decode clips that are all expected to be good."""
        pieces = []
        for number, (video, indices) in enumerate(requests):
            most = max(1, _MOST_BYTES // (video.width * video.height * 3))
            for first in range(0, len(indices), most):
                pieces.append(_Piece(number, video, indices[first : first + most]))

        decoded = self._decode(pieces, min(prefetch, _MOST_PIECES))
        for _, parts in groupby(decoded, key=lambda part: part[0]):
            yield torch.cat([frames for _, frames in parts])

    def _decode(self, pieces: list[_Piece], most: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Give the frames of each piece, with the number of its clip.

        Args:
            pieces: What to decode.
            most: How many pieces to decode at once.
        """
        if not pieces:
            return
        batches = _batches(pieces, most)

        # A pipeline is built in milliseconds, and a new one for each pass has nothing left over from the last.
        pipeline: Any = _pipeline(
            self._inputs(batches),
            "mixed" if self._gpu else "cpu",
            batch_size=max(map(len, batches)),
            num_threads=self._threads,
            device_id=torch.cuda.current_device() if self._gpu else None,
            prefetch_queue_depth=_PREFETCHED,
        )
        for batch in batches:
            (clips,) = pipeline.run()
            for piece, clip in zip(batch, clips, strict=True):
                yield piece.clip, self._upright(clip, piece.video.rotation)

    def _inputs(self, batches: list[list[_Piece]]) -> Iterator[tuple[list[np.ndarray], ...]]:
        """Give what the pipeline takes for each batch: files, frame indices, and sizes before rotation."""
        for batch in batches:
            sizes = [self._size[::-1] if piece.video.rotation % 180 else self._size for piece in batch]
            yield (
                [_bytes(piece.video) for piece in batch],
                [np.asarray(piece.indices, np.int32) for piece in batch],
                [np.array(size, np.float32) for size in sizes],
            )

    def _upright(self, clip: Any, rotation: int) -> torch.Tensor:
        """Copy DALI's (T, H, W, 3) clip, whose buffer will be used again, and turn it as the video's metadata say."""
        stream = torch.cuda.current_stream() if self._gpu else None
        copy = torch.empty(clip.shape(), dtype=torch.uint8, device="cuda" if self._gpu else "cpu")
        feed_ndarray(clip, copy, cuda_stream=stream)
        return torch.rot90(copy, rotation // 90, (1, 2))

    def close(self) -> None:
        """Do nothing: a pipeline ends with its pass."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@pipeline_def
def _pipeline(inputs: Iterator[tuple[list[np.ndarray], ...]], decoder: str) -> Any:
    """Build the pipeline that decodes and resizes: uint8 (T, H, W, 3) for each piece of a batch."""
    encoded, frames, size = fn.external_source(
        inputs, num_outputs=3, dtype=[DALIDataType.UINT8, DALIDataType.INT32, DALIDataType.FLOAT], ndim=1
    )

    # Without `affine=False` DALI ties its threads to cores, to the same ones in every process of a job.
    clips = fn.decoders.video(encoded, frames=frames, device=decoder, affine=False)

    # Of DALI's filters, this is the triangle with which PyAV's bilinear shrinks as well.
    return fn.resize(clips, size=size, interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)


def _leading_requests(todo: Iterable[ClipRequest | DataError]) -> Iterator[ClipRequest]:
    """Give the requests up to the first one that is already known to fail."""
    for request in todo:
        if not isinstance(request, ClipRequest):
            return
        yield request


def _batches(pieces: list[_Piece], most: int) -> list[list[_Piece]]:
    """Divide the pieces, in their order, into batches as large as the limits allow."""
    batches: list[list[_Piece]] = []
    room = 0
    for piece in pieces:
        size = len(piece.indices) * piece.video.width * piece.video.height * 3
        if not batches or len(batches[-1]) == most or size > room:
            batches.append([])
            room = _MOST_BYTES
        batches[-1].append(piece)
        room -= size
    return batches


def _bytes(video: VideoInfo) -> np.ndarray:
    """Read a video file, (bytes,) uint8.

    Raises:
        DataError: If it cannot be read, or if its size has changed since it was indexed.
    """
    try:
        content = np.fromfile(video.path, np.uint8)
    except OSError as error:
        raise DataError(video.path, f"cannot be read: {error.strerror}") from None

    # DALI gives black pictures for frames that are not there.
    if len(content) != video.bytes:
        problem = f"had {video.bytes} bytes when it was indexed and has {len(content)} now: run the command again"
        raise DataError(video.path, problem)
    return content


def _first_problem(requests: Sequence[ClipRequest], size: tuple[int, int]) -> tuple[int, DataError | None]:
    """Find the first request whose file is at fault: its place and the problem, or None if no file is."""
    for place, request in enumerate(requests):
        problem = _problem(request, size)
        if problem is not None:
            return place, problem
    return 0, None


def _problem(request: ClipRequest, size: tuple[int, int]) -> DataError | None:
    """Say what is wrong with a file, if anything is; PyAV tells."""
    try:
        _bytes(request.video)
        decode_frames(request.video, np.arange(len(request.video.pts)), size)
    except DataError as problem:
        return problem
    return None


def _unexplained(requests: list[ClipRequest], error: Exception) -> ActdetError:
    """Make the error for files that PyAV can decode and DALI cannot."""
    files = ", ".join(dict.fromkeys(request.video.path for request in requests))
    return ActdetError(f"DALI cannot decode one of {files} ({_reason(error)}); use reader pyav")


def _reason(error: Exception) -> str:
    """Find the line of DALI's error that says what went wrong in the operator."""
    lines = str(error).partition("encountered:")[2].splitlines()
    return next((line.strip() for line in lines if line.strip()), "no reason given")


def find_refusal(name: str, videos: Iterable[VideoInfo]) -> str:
    """Find a video that DALI does not decode on this machine.

    What a GPU decodes depends on codec, pixel format and sides, each within limits. Of each codec and format, the
    videos with the longest and the shortest sides and the one with most pixels are tried, each kind once in a process.

    Args:
        name: `dali-cpu` or `dali-gpu`.
        videos: What is to be decoded.

    Returns:
        Which video it is and why; empty if DALI decodes all of them.
    """
    for video in _extremes(videos):
        width, height = _coded_size(video)
        kind = (name, video.codec, video.pixel_format, width, height)
        if kind not in _refusals:
            _refusals[kind] = _refusal(name, video)
        if _refusals[kind]:
            what = f"{video.path} ({video.codec}, {video.pixel_format}, {width} x {height})"
            return f"{what} cannot be decoded here: {_refusals[kind]}"
    return ""


# The kinds of videos that were tried in this process, and why DALI refused them; empty if it did not.
_refusals: dict[tuple[str | int, ...], str] = {}


def _coded_size(video: VideoInfo) -> tuple[int, int]:
    """Width and height before rotation."""
    if video.rotation % 180:
        return video.height, video.width
    return video.width, video.height


def _extremes(videos: Iterable[VideoInfo]) -> list[VideoInfo]:
    """Choose the videos of extreme size of each codec and pixel format."""
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
    """Say why DALI does not decode the first frame of a video; empty if it does, or if the file is at fault."""
    request = ClipRequest(video, np.zeros(1, np.int64))
    size = (16, 16)
    try:
        for _ in DALIReader(name, size, threads=1)._clips([request], 1):
            pass
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, DataError) as error:
        # Damage is reported when the file is read.
        return "" if _problem(request, size) else _reason(error)
    return ""

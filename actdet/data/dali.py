"""Reads clips with NVIDIA DALI, on a CPU or with the GPU's video decoder. Nothing else needs DALI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch

from actdet.data.video import ClipRequest, decode_frames
from actdet.errors import ActdetError, DataError

try:
    from nvidia.dali import fn
    from nvidia.dali.pipeline import pipeline_def
    from nvidia.dali.plugin.pytorch import feed_ndarray  # pyright: ignore[reportPrivateImportUsage]
    from nvidia.dali.types import DALIDataType, DALIInterpType
except ImportError as error:
    raise ActdetError(f"DALI cannot be used ({error}): pip install 'actdet[cuda13]', or use reader pyav") from None

# Batches that DALI decodes ahead.
_AHEAD = 2


class DALIReader:
    """Decodes with DALI, as `dali-cpu` or `dali-gpu`; the tensors it gives lie on that device."""

    def __init__(self, name: str, size: tuple[int, int], threads: int) -> None:
        self.name = name
        self._size = size
        self._threads = threads
        self._gpu = name == "dali-gpu"

    def read(self, batches: Iterable[Sequence[ClipRequest]]) -> Iterator[torch.Tensor]:
        todo = [list(batch) for batch in batches]
        if not todo:
            return
        # A pipeline is built in milliseconds; a new one for each pass has nothing left over from the last.
        pipeline: Any = _pipeline(
            self._inputs(todo),
            "mixed" if self._gpu else "cpu",
            batch_size=max(map(len, todo)),
            num_threads=self._threads,
            device_id=torch.cuda.current_device() if self._gpu else None,
            prefetch_queue_depth=_AHEAD,
        )
        for number, batch in enumerate(todo):
            try:
                (clips,) = pipeline.run()
            except RuntimeError as error:
                raise _explain(todo[number : number + 1 + _AHEAD], self._size, error) from None
            yield torch.stack(
                [self._upright(clip, video.rotation) for clip, (video, _) in zip(clips, batch, strict=True)]
            )

    def _inputs(self, batches: list[list[ClipRequest]]) -> Iterator[tuple[list[np.ndarray], ...]]:
        """What the pipeline takes for each batch: files, frame indices, and sizes before rotation."""
        for batch in batches:
            sizes = [self._size[::-1] if video.rotation % 180 else self._size for video, _ in batch]
            yield (
                [_bytes(video.path) for video, _ in batch],
                [np.asarray(indices, np.int32) for _, indices in batch],
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
    clips = fn.decoders.video(encoded, frames=frames, device=decoder)
    # Of DALI's filters this is the triangle that also PyAV's bilinear shrinks with.
    return fn.resize(clips, size=size, interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)


def _bytes(path: str) -> np.ndarray:
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None


def _explain(batches: list[list[ClipRequest]], size: tuple[int, int], error: RuntimeError) -> ActdetError:
    """DALI does not say which file it failed on: PyAV does, if that is damaged."""
    videos = {}
    for video, indices in (clip for batch in batches for clip in batch):
        videos[video.path] = None
        try:
            decode_frames(video, indices, size)
        except DataError as problem:
            return problem
    reason = next((line for line in str(error).splitlines() if line.startswith("Assert")), "no reason given")
    return ActdetError(f"DALI cannot decode one of {', '.join(videos)} ({reason}); use reader pyav")

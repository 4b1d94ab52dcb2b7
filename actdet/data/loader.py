"""From an index of clips to batches on the training device.

    which clips (`sampler`) -> which of their frames (`Clip.sample`) -> decoded by a reader, or kept from before
    (`cache`) -> augmented on the device (`augment`)

What is true of a batch comes from `truth`, in the form from which the detector learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from actdet_kernels import frame_levels, gather_clips
from torch import Tensor

from actdet.data.augment import Batch, augment, draw_params, halve_pixels
from actdet.data.cache import FrameCache
from actdet.data.clips import ClipIndex
from actdet.data.config import AugmentConfig, ClipSize
from actdet.data.sampler import balanced_batches
from actdet.data.truth import TruthKind, open_truth
from actdet.distributed import ALONE, Processes
from actdet.errors import ActdetError, DataError
from actdet.video.decoding import ClipRequest, decode_frames
from actdet.video.readers import Reader


class _Sample(NamedTuple):
    """A clip, by its number in the index, and which of its frames to show."""

    clip: int
    indices: np.ndarray


class _Shown(NamedTuple):
    """What the places of a batch show.

    frames: (F, S, S, 3) uint8.
    rows: (B, T) int64, the number in `frames` of each frame of each place.
    clips: (B,) int64, the clip in each place.
    indices: (B, T) int64, which frames of that clip's video these are.
    """

    frames: Tensor
    rows: np.ndarray
    clips: np.ndarray
    indices: np.ndarray


class _Found(NamedTuple):
    """What was read of a batch.

    frames: (F, S, S, 3) uint8.
    rows: (B, T) int64, the number in `frames` of each frame of each sample; -1 for a sample that could not be read.
    """

    frames: Tensor
    rows: np.ndarray


class ClipLoader:
    """Batches of the clips of a data set, which are named by their numbers in the index.

    Attributes:
        index: The data set.
        reader: What decodes the clips.
        cache: Where decoded clips are kept, if they are.
        left_out: What is wrong with each clip that could not be read and was left out.
    """

    def __init__(
        self,
        index: ClipIndex,
        size: ClipSize,
        reader: Reader,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        cache: FrameCache | None = None,
        bad_files: str = "stop",
        truth: TruthKind = "clip_box",
    ) -> None:
        """Prepare what is true of all clips.

        Args:
            index: The data set.
            size: Of the clips in a batch.
            reader: What decodes the clips, in pictures of this size.
            device: Where the batches are made.
            dtype: Of the clips in a batch.
            cache: Where decoded clips are kept.
            bad_files: "stop" raises the DataError of a clip that cannot be read; "skip" notes it in `left_out` and
                goes on without the clip.
            truth: What the detector learns from.
        """
        self.index = index
        self.reader = reader
        self.cache = cache
        self.left_out: dict[int, DataError] = {}
        self._size = size
        self._device = device
        self._dtype = dtype
        self._skip = bad_files == "skip"

        self._truth = open_truth(truth, index, device)

    @property
    def all_left_out(self) -> list[DataError]:
        """What is wrong with all files that were left out, by the index or by the loader."""
        return [*self.index.left_out, *self.left_out.values()]

    def train_batches(
        self,
        ids: Sequence[int],
        batch_size: int,
        augmentation: AugmentConfig,
        *,
        seed: int,
        epoch: int,
        skip: int = 0,
        half_pixels: bool = False,
        processes: Processes = ALONE,
    ) -> Iterator[Batch]:
        """Yield the augmented batches of one epoch.

        The same arguments give the same batches, regardless of `skip` and of how many processes share a batch; except
        that mixup blends only clips of one process. If a clip cannot be read and is left out, another clip of its batch
        takes its place, so that batches keep their sizes; if none of its batch can be read, any other clip does.

        Args:
            ids: The clips.
            batch_size: Clips in a batch, of all processes together.
            augmentation: How the clips are changed.
            seed: With the number of the epoch and of the batch, determines everything random.
            epoch: Number of the epoch.
            skip: How many batches to leave out at the beginning, because they were trained on before.
            half_pixels: Whether to show pictures of half as many pixels.
            processes: The processes that share each batch; the share of this one is yielded.
        """
        clips = np.asarray(ids)
        batches = balanced_batches(self._truth.positive[clips], batch_size, seed=seed, epoch=epoch)

        # All that is random is drawn for the whole batch, in a fixed order, before the processes share it.
        samples = []
        params = []
        for number, batch in enumerate(batches[skip:], start=skip):
            rng = np.random.default_rng([seed, epoch, number])
            whole = [self._sample(clip, rng if augmentation.jitter else None) for clip in clips[batch].tolist()]
            samples.append(processes.share(whole))
            params.append(processes.share(draw_params(len(batch), augmentation, rng)))

        for batch, drawn, found in zip(samples, params, self._read(samples), strict=True):
            shown = self._fill_gaps(batch, found, clips.tolist())
            augmented = augment(
                shown.frames,
                self._to_device(shown.rows),
                self._truth.of(shown.clips, shown.indices, self._to_device),
                drawn,
                frame_means=self._frame_means(shown.frames) if drawn.color is not None else None,
                dtype=self._dtype,
            )
            yield halve_pixels(augmented) if half_pixels else augmented

    def eval_batches(self, ids: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Yield the clips `ids` once, unchanged and in their order, `batch_size` at a time.

        Clips that cannot be read are missing. After the last batch they are all in `left_out`.
        """
        starts = range(0, len(ids), batch_size)
        samples = [[self._sample(clip, None) for clip in ids[start : start + batch_size]] for start in starts]
        for batch, (frames, rows) in zip(samples, self._read(samples), strict=True):
            good = rows[:, 0] >= 0
            if good.any():
                shown = np.array([sample.clip for sample in batch])[good]
                indices = np.stack([sample.indices for sample in batch])[good]
                clips = gather_clips(frames, self._to_device(rows[good]), dtype=self._dtype)
                yield Batch(clips, self._truth.of(shown, indices, self._to_device))

    def _sample(self, clip: int, rng: np.random.Generator | None) -> _Sample:
        """Choose the frames of a clip: at random times if there is an `rng`."""
        return _Sample(clip, self.index.clips[clip].sample(self._size.frames, rng))

    def _request(self, sample: _Sample) -> ClipRequest:
        return ClipRequest(self.index.clips[sample.clip].video, sample.indices)

    def _read(self, batches: Sequence[Sequence[_Sample]]) -> Iterator[_Found]:
        """Yield what is found of each batch, decoding ahead of time what is neither kept nor left out."""
        cache = self.cache
        requests = []

        # For each sample of each batch, whether one of the requests is for it.
        requested: list[list[bool]] = []
        done = set(self.left_out)
        for batch in batches:
            requested.append([])
            for sample in batch:
                is_new = sample.clip not in done and (cache is None or sample.clip not in cache)
                requested[-1].append(is_new)
                if is_new and cache is not None:
                    # The cache keeps all that will ever be asked for, so the clip is requested only once.
                    requests.append(cache.request(sample.clip))
                    done.add(sample.clip)
                elif is_new:
                    requests.append(self._request(sample))
        answers = self.reader.read(requests, prefetch=2 * max(map(len, batches), default=1))

        for batch, flags in zip(batches, requested, strict=True):
            new = [sample.clip for sample, is_new in zip(batch, flags, strict=True) if is_new]
            taken = [self._take(clip, next(answers)) for clip in new]
            decoded = [frames for frames in taken if frames is not None]

            if cache is not None:
                rows = [cache.rows(*sample) if sample.clip in cache else None for sample in batch]
                yield _Found(cache.pool, self._stack(rows))
            elif decoded:
                places = iter(np.arange(len(decoded) * self._size.frames).reshape(len(decoded), -1))
                rows = [None if sample.clip in self.left_out else next(places) for sample in batch]
                yield _Found(self._to_device(torch.cat(decoded)), self._stack(rows))
            else:
                yield _Found(torch.empty(0), self._stack([None] * len(batch)))

    def _stack(self, rows: Sequence[np.ndarray | None]) -> np.ndarray:
        """Return the rows of `_Found`; None stands for a sample that could not be read."""
        missing = np.full(self._size.frames, -1)
        return np.stack([missing if row is None else row for row in rows])

    def _take(self, clip: int, answer: Tensor | DataError) -> Tensor | None:
        """Return the frames that were read of a clip, and keep them in the cache; None if the clip is left out."""
        if clip in self.left_out:
            return None
        if isinstance(answer, DataError):
            if not self._skip:
                raise answer
            self.left_out[clip] = answer
            return None
        if self.cache is not None:
            self.cache.fill(clip, self._to_device(answer))
        return answer

    def _fill_gaps(self, batch: Sequence[_Sample], found: _Found, ids: Sequence[int]) -> _Shown:
        """Give the places of clips that could not be read to others: of the batch, or else to one of `ids`."""
        frames, rows = found
        clips = np.array([sample.clip for sample in batch])
        indices = np.stack([sample.indices for sample in batch])
        bad = rows[:, 0] < 0
        if bad.all():
            frames, sample = self._any_clip(ids)
            rows = np.tile(np.arange(len(frames)), (len(batch), 1))
            clips = np.full_like(clips, sample.clip)
            indices = np.tile(sample.indices, (len(batch), 1))
        elif bad.any():
            others = np.resize(np.flatnonzero(~bad), bad.sum())
            for array in (rows, clips, indices):
                array[bad] = array[others]
        return _Shown(frames, rows, clips, indices)

    def _any_clip(self, ids: Sequence[int]) -> tuple[Tensor, _Sample]:
        """Return the frames and the sample of the first of these clips that can be read.

        It is rarely needed, so it is decoded here and not by the reader.
        """
        side = self._size.image_size
        for clip in ids:
            if clip not in self.left_out:
                try:
                    sample = self._sample(clip, None)
                    frames = decode_frames(*self._request(sample), (side, side))
                    return self._to_device(frames), sample
                except DataError as error:
                    self.left_out[clip] = error
        raise ActdetError(f"none of the {len(ids)} clips can be read: {self.left_out[ids[0]]}")

    def _frame_means(self, frames: Tensor) -> Tensor:
        if self.cache is not None and frames is self.cache.pool:
            return self.cache.frame_means
        return frame_levels(frames)

    def _to_device(self, array: Tensor | np.ndarray) -> Tensor:
        """Copy to the device. A GPU is not waited for: the copy goes through pinned memory."""
        tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
        if self._device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

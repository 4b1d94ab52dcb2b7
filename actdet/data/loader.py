"""From an index of clips to batches on the training device.

    which clips (`sampler`) -> which of their frames (`video.sample_frames`) -> decoded by a reader, or kept from before
    (`cache`) -> augmented on the device (`augment`)

Targets come from tables that lie on the device from the start: behind the loader there is no list of boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from actdet_kernels import Targets, frame_levels, gather_clips
from torch import Tensor

from actdet.data.augment import Batch, augment, draw_changes, halve_pixels
from actdet.data.cache import FrameCache
from actdet.data.index import ClipIndex
from actdet.data.sampler import balanced_batches
from actdet.distributed import ALONE, Processes
from actdet.errors import ActdetError, DataError
from actdet.models.detr.config import ModelConfig
from actdet.training.config import TrainConfig
from actdet.video.decoding import decode_frames, sample_frames
from actdet.video.readers import ClipRequest, Reader


class _Sample(NamedTuple):
    """A clip, by its number in the index, and which of its frames to show."""

    clip: int
    indices: np.ndarray


class _Found(NamedTuple):
    """What was read of a batch: sample i is `rows[i]` of `frames`, -1 where it could not be read."""

    frames: Tensor
    rows: np.ndarray


class ClipLoader:
    """Batches of the clips of `index`, decoded by `reader`, on `device`; a clip is named by its number in the index.

    dtype: of the clips. cache: where decoded clips are kept. bad_files: `stop` raises the DataError of a clip that
    cannot be read, `skip` notes it in `left_out` and does without.
    """

    def __init__(
        self,
        index: ClipIndex,
        model: ModelConfig,
        reader: Reader,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        cache: FrameCache | None = None,
        bad_files: str = "stop",
    ) -> None:
        self.index, self.model, self.reader, self.device = index, model, reader, device
        self.cache = cache
        self.left_out: dict[int, DataError] = {}
        self._dtype, self._skip = dtype, bad_files == "skip"
        targets = Targets(*map(torch.from_numpy, index.targets()))
        self._positive = targets.counts.numpy() > 0
        self._targets = targets.to(device)

    @property
    def all_left_out(self) -> list[DataError]:
        """What is wrong with all files that were left out, by the index or here."""
        return [*self.index.left_out, *self.left_out.values()]

    def train_batches(
        self, ids: Sequence[int], config: TrainConfig, epoch: int, skip: int = 0, processes: Processes = ALONE
    ) -> Iterator[Batch]:
        """The augmented batches of one epoch over `ids`, from number `skip` on; of each, this process's share.

        The same (config, epoch) gives the same batches, whatever was skipped, and however many processes share them;
        but mixup blends clips of one process. A clip that cannot be read, and is left out, has its place taken by
        another one of its batch (of all, where it has none), so that batches keep their sizes.
        """
        clips = np.asarray(ids)
        batches = balanced_batches(self._positive[clips], config.batch_size, seed=config.seed, epoch=epoch)
        samples, changes = [], []
        for number, batch in enumerate(batches[skip:], start=skip):
            rng = np.random.default_rng([config.seed, epoch, number])
            drawn = [self._sample(clip, rng if config.augment.jitter else None) for clip in clips[batch].tolist()]
            samples.append(processes.share(drawn))
            changes.append(processes.share(draw_changes(len(batch), config.augment, rng)))
        for batch, drawn, found in zip(samples, changes, self._read(samples), strict=True):
            (frames, rows), shown = found, np.array([sample.clip for sample in batch])
            bad = rows[:, 0] < 0
            if bad.all():
                frames, clip = self._any_clip(clips.tolist())
                rows, shown = np.tile(np.arange(len(frames)), (len(batch), 1)), np.full_like(shown, clip)
            elif bad.any():
                others = np.resize(np.flatnonzero(~bad), bad.sum())
                rows[bad], shown[bad] = rows[others], shown[others]
            augmented = augment(
                frames,
                self._to_device(rows),
                self._targets_of(shown),
                drawn,
                levels=self._levels(frames) if drawn.colour is not None else None,
                dtype=self._dtype,
            )
            yield halve_pixels(augmented) if epoch < config.small_epochs else augmented

    def eval_batches(self, ids: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """All `ids` once, in their order, as they are; without those that are in `left_out` when the last has come."""
        starts = range(0, len(ids), batch_size)
        samples = [[self._sample(clip, None) for clip in ids[start : start + batch_size]] for start in starts]
        for batch, (frames, rows) in zip(samples, self._read(samples), strict=True):
            good = rows[:, 0] >= 0
            if good.any():
                chosen = np.array([sample.clip for sample in batch])[good]
                clips = gather_clips(frames, self._to_device(rows[good]), dtype=self._dtype)
                yield Batch(clips, self._targets_of(chosen))

    def _sample(self, clip: int, rng: np.random.Generator | None) -> _Sample:
        return _Sample(clip, sample_frames(self.index.clips[clip].video, self.model.frames, rng=rng))

    def _request(self, sample: _Sample) -> ClipRequest:
        return ClipRequest(self.index.clips[sample.clip].video, sample.indices)

    def _read(self, batches: Sequence[Sequence[_Sample]]) -> Iterator[_Found]:
        """Decode what is neither kept nor left out, ahead of time."""
        cache, requests = self.cache, []
        done = set(self.left_out)
        asked: list[list[bool]] = []  # of each sample, whether one of the requests is for it
        for batch in batches:
            asked.append([])
            for sample in batch:
                new = sample.clip not in done and (cache is None or sample.clip not in cache)
                asked[-1].append(new)
                if new and cache is not None:
                    requests.append(cache.request(sample.clip))
                    done.add(sample.clip)
                elif new:
                    requests.append(self._request(sample))
        answers = self.reader.read(requests, ahead=2 * max(map(len, batches), default=1))
        for batch, new in zip(batches, asked, strict=True):
            clips = [sample.clip for sample, is_new in zip(batch, new, strict=True) if is_new]
            decoded = [self._take(clip, next(answers)) for clip in clips]
            frames = [clip for clip in decoded if clip is not None]
            if cache is not None:
                kept = [cache.rows(*sample) if sample.clip in cache else None for sample in batch]
                yield _Found(cache.pool, self._rows(kept))
            elif frames:
                places = iter(np.arange(len(frames) * self.model.frames).reshape(len(frames), -1))
                kept = [None if sample.clip in self.left_out else next(places) for sample in batch]
                yield _Found(self._to_device(torch.cat(frames)), self._rows(kept))
            else:
                yield _Found(torch.empty(0), self._rows([None] * len(batch)))

    def _rows(self, kept: Sequence[np.ndarray | None]) -> np.ndarray:
        missing = np.full(self.model.frames, -1)
        return np.stack([missing if rows is None else rows for rows in kept])

    def _take(self, clip: int, answer: Tensor | DataError) -> Tensor | None:
        """The frames that were read of a clip, which the cache keeps; None where it is left out."""
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

    def _any_clip(self, ids: Sequence[int]) -> tuple[Tensor, int]:
        """The frames of the first of these clips that can be read, and its number; decoded here, since that is rare."""
        side = self.model.image_size
        for clip in ids:
            if clip not in self.left_out:
                try:
                    frames = decode_frames(*self._request(self._sample(clip, None)), (side, side))
                    return self._to_device(frames), clip
                except DataError as error:
                    self.left_out[clip] = error
        raise ActdetError(f"none of the {len(ids)} clips can be read: {self.left_out[ids[0]]}")

    def _levels(self, frames: Tensor) -> Tensor:
        if self.cache is not None and frames is self.cache.pool:
            return self.cache.levels
        return frame_levels(frames)

    def _to_device(self, array: Tensor | np.ndarray) -> Tensor:
        """Without waiting for the device: what is copied to a GPU goes through pinned memory."""
        tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _targets_of(self, clips: np.ndarray) -> Targets:
        rows = self._to_device(clips)
        return Targets(*(field[rows] for field in self._targets))

"""From an index of clips to batches on the training device.

Which clips (`sampler`), which of their frames (`video.sample_frames`), decoded by a reader, augmented on the
device. Targets come from tables that lie on the device from the start: behind the loader there is no list of boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from actdet_kernels import Targets

from actdet.config import ModelConfig, TrainConfig
from actdet.data.augment import Batch, augment, draw_changes, normalise
from actdet.data.index import ClipIndex
from actdet.data.readers import ClipRequest, Reader
from actdet.data.sampler import balanced_batches
from actdet.data.video import sample_frames
from actdet.distributed import ALONE, Processes


class ClipLoader:
    """Batches of the clips of `index`, decoded by `reader`, on `device`; a clip is named by its number in the index."""

    def __init__(self, index: ClipIndex, model: ModelConfig, reader: Reader, device: torch.device) -> None:
        self.index, self.model, self.reader, self.device = index, model, reader, device
        targets = Targets(*map(torch.from_numpy, index.targets()))
        self._positive = targets.counts.numpy() > 0
        self._targets = targets.to(device)

    def train_batches(
        self, ids: Sequence[int], config: TrainConfig, epoch: int, skip: int = 0, processes: Processes = ALONE
    ) -> Iterator[Batch]:
        """The augmented batches of one epoch over `ids`, from number `skip` on; of each, this process's share.

        The same (config, epoch) gives the same batches, whatever was skipped, and however many processes share them;
        but mixup blends clips of one process.
        """
        clips = np.asarray(ids)
        batches = balanced_batches(self._positive[clips], config.batch_size, seed=config.seed, epoch=epoch)
        requests, chosen, changes = [], [], []
        for number, batch in enumerate(batches[skip:], start=skip):
            rng = np.random.default_rng([config.seed, epoch, number])
            asked = [self._request(clip, rng if config.augment.jitter else None) for clip in clips[batch]]
            requests.append(processes.share(asked))
            chosen.append(processes.share(clips[batch]))
            changes.append(processes.share(draw_changes(len(batch), config.augment, rng)))
        for batch, drawn, pixels in zip(chosen, changes, self.reader.read(requests), strict=True):
            yield augment(self._to_device(pixels), self._targets_of(batch), drawn)

    def eval_batches(self, ids: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """All `ids` once, in their order, as they are."""
        chosen = [np.asarray(ids[start : start + batch_size]) for start in range(0, len(ids), batch_size)]
        requests = [[self._request(clip, None) for clip in batch] for batch in chosen]
        for batch, pixels in zip(chosen, self.reader.read(requests), strict=True):
            yield Batch(normalise(self._to_device(pixels)), self._targets_of(batch))

    def _request(self, clip: int, rng: np.random.Generator | None) -> ClipRequest:
        video = self.index.clips[clip].video
        return ClipRequest(video, sample_frames(video, self.model.frames, rng=rng))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Without waiting for the device: what is copied to a GPU goes through pinned memory."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _targets_of(self, batch: np.ndarray) -> Targets:
        rows = self._to_device(torch.from_numpy(batch))
        return Targets(*(field[rows] for field in self._targets))

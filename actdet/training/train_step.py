"""One training step, all of it on the device: where there is one process, nothing in it is read back by the host.

    clips, targets -> detector -> match -> set loss -> gradients -> clip -> AdamW -> running average
                                                                         (sections 3.3 and 3.4 of the report)

With `auxiliary_weight` the averaged features of the backbone must also say, by one linear layer, what happens in the
clip and where. A backbone without pretrained weights learns by that in half the time.

There are three ways to launch it. eager: operator by operator. compile: the network and its losses by torch.compile.
graph: the whole step is captured as one CUDA graph, for each shape of batch after WARM_UP steps, and replayed. All
three draw the same dropout. An eager step and a graph never hold the activations of a batch at the same time: while a
shape, such as that of an epoch's last batch, warms up, there are no graphs, and the others are captured again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, cast

import torch
from actdet_kernels import MatchWeights, SetLoss, Targets, match, set_loss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from actdet.data.augment import Batch
from actdet.distributed import ALONE, Processes, synchronise_batch_norm
from actdet.errors import ActdetError
from actdet.models.backbones.convolution import fuse_norms
from actdet.models.backbones.r2plus1d import FEATURES
from actdet.models.detr.detector import ActionDetector
from actdet.training.config import TrainConfig

LOSSES = (*SetLoss._fields, "auxiliary")
AUXILIARY_WEIGHTS = MatchWeights(8.0, 5.0, 2.0)  # classes are slower to learn than boxes: docs/LOG.md
WARM_UP = 3  # steps of a shape before its capture: what libraries set up when they are first called must be done


# The option of DistributedDataParallel that sends the buffers before every step. Newer PyTorch deprecates the old name.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


class TrainStep:
    """What a step reads and writes, and the step: `step.run(batch, lr=..., seed=..., number=...)`.

    detector: trained in place, on `device`, its video convolutions channels-last.
    dtype: of the network's arithmetic; parameters, losses and averages are float32.
    mode: "eager", "compile" or "graph", as `choose_step` gives it.
    losses: (5,) sums of the values of LOSSES over the steps since they were last set to zero, on the device; of this
        process's share, so that their mean over the processes is that of the whole batch.
    """

    def __init__(
        self,
        detector: ActionDetector,
        config: TrainConfig,
        device: torch.device,
        dtype: torch.dtype,
        mode: str,
        processes: Processes = ALONE,
    ) -> None:
        self.config, self.device, self.dtype, self.mode, self.processes = config, device, dtype, mode, processes
        detector = detector.to(device).to(memory_format=torch.channels_last_3d)
        detector.backbone.requires_grad_(not config.freeze_backbone)
        detector.backbone.checkpointing = config.checkpointing
        self.clip_head = nn.Linear(FEATURES, len(detector.config.class_names) + 1 + 4).to(device)
        self.clip_head.requires_grad_(config.auxiliary_weight > 0)
        if processes.count > 1:
            detector = cast(ActionDetector, synchronise_batch_norm(detector, device))
        self.detector = detector
        network = _Network(detector, self.clip_head, dtype)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self._network = network
        if processes.count > 1:
            # Strides of sides of one element differ, which costs a copy of a small gradient.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            # The buffers are statistics over the clips of all processes, so every process has the same already.
            sync_buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
            self._network = DistributedDataParallel(
                network,
                gradient_as_bucket_view=True,
                find_unused_parameters=config.shallow_epochs > 0,
                **sync_buffers,
            )
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(config.lr, device=device),
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
            capturable=mode == "graph",
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.losses = torch.zeros(len(LOSSES), device=device)
        self.average = {k: v.clone() for k, v in self.live().items()} if config.ema_decay else {}
        self._average_weight = torch.ones((), device=device)
        self._compiled = None
        if mode == "compile":
            self._compiled = torch.compile(self._losses_of, options={"fallback_random": True})
        self._graphs: dict[tuple[bool | torch.Size, ...], _Graph] = {}
        if mode == "graph":
            fuse_norms(detector.backbone)
            # Memory for all shapes: nothing in it outlives a step but gradients, which the next step computes again.
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def run(self, batch: Batch, *, lr: float, seed: int, number: int) -> None:
        """One step on this process's share of a batch; `number` counts the steps before it."""
        self.detector.train()
        if self.config.freeze_backbone:
            self.detector.backbone.eval()
        torch.manual_seed(seed)  # dropout
        self.optimizer.param_groups[0]["lr"].fill_(lr)
        self._average_weight.fill_(1 - min(self.config.ema_decay, (1 + number) / (10 + number)))
        if self.mode != "graph":
            self._step(batch)
            return
        kind = (self.detector.backbone.shallow, *(tensor.shape for tensor in (batch.clips, *batch.targets)))
        if kind not in self._graphs:
            own = batch._replace(clips=batch.clips.to(self.dtype))
            self._graphs[kind] = _Graph(self._step, own, self._stream)
        graph = self._graphs[kind]
        if graph.warms_up:
            self._release_graphs()
        graph.run(batch, self._pool)

    def _release_graphs(self) -> None:
        """Give back the memory of all graphs, which are captured again when they are needed."""
        if not any(graph.is_captured for graph in self._graphs.values()):
            return
        torch.cuda.synchronize()
        self.optimizer.zero_grad(set_to_none=True)
        for graph in self._graphs.values():
            graph.release()
        # A pool that no graph uses any more cannot be used again.
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    def _step(self, batch: Batch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        losses = (self._compiled or self._losses_of)(batch.clips, batch.targets)
        self.scaler.scale(losses[0]).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses += losses.detach()
        if self.average:
            live = self.live()
            move = _move_by_foreach if self.device.type == "cuda" else _move_by_lerp
            move(list(self.average.values()), [live[name] for name in self.average], self._average_weight)

    def _losses_of(self, clips: Tensor, targets: Targets) -> Tensor:
        """(5,) the values of LOSSES for a batch; the first is what is minimised."""
        logits, boxes, said = self._network(clips)
        loss = self.config.loss
        total, cls, l1, giou = self._set_loss(logits, boxes, targets, loss.match_weights, loss.no_object_weight)
        auxiliary = torch.zeros_like(total)
        if self.config.auxiliary_weight:  # the set loss of a set of one, class and box
            one = said[..., :-4], said[..., -4:].sigmoid()
            auxiliary, *_ = self._set_loss(*one, targets, AUXILIARY_WEIGHTS, no_object_weight=1.0)
        return torch.stack([total + self.config.auxiliary_weight * auxiliary, cls, l1, giou, auxiliary])

    def _set_loss(
        self, logits: Tensor, boxes: Tensor, targets: Targets, weights: MatchWeights, no_object_weight: float
    ) -> SetLoss:
        matched = match(logits, boxes, targets, weights=weights)
        losses = set_loss(logits, boxes, targets, matched, weights=weights, no_object_weight=no_object_weight)
        if self.processes.count == 1:
            return losses
        # Each process divides by its own sums; what counts are those of all, and that gradients are averaged.
        queries = logits.shape[-2]
        pairs = targets.counts.clamp(max=queries).sum()
        weight = pairs + no_object_weight * (len(targets.counts) * queries - pairs)
        own = torch.stack([weight, targets.counts.sum().clamp(min=1).to(weight.dtype)])
        every = self.processes.sum(torch.stack([weight, targets.counts.sum().to(weight.dtype)]))
        cls, box = (own / every.clamp(min=1e-9) * self.processes.count).unbind()
        cls, l1, giou = losses.cls * cls, losses.l1 * box, losses.giou * box
        return SetLoss(weights.cls * cls + weights.l1 * l1 + weights.giou * giou, cls, l1, giou)

    def live(self) -> dict[str, Tensor]:
        """The detector's parameters and statistics, by name; without the counters, which are no average."""
        named = (*self.detector.named_parameters(), *self.detector.named_buffers())
        return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within: the detector holds the running average, where there is one."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        live = self.live()
        for name, average in self.average.items():
            kept = live[name].clone()
            live[name].copy_(average)
            average.copy_(kept)


class _Network(nn.Module):
    """All that has gradients, as one module: clips to logits, boxes, and what the averaged features say."""

    def __init__(self, detector: ActionDetector, clip_head: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.detector, self.clip_head, self.dtype = detector, clip_head, dtype

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(clips.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.detector.backbone(clips)
            logits, boxes = self.detector.detect(features)
        said = self.clip_head(features.float().mean((2, 3, 4)))[:, None]  # (B, 1, C + 4)
        return logits, boxes, said


def _move_by_lerp(averages: list[Tensor], targets: list[Tensor], weight: Tensor) -> None:
    """Move each average, in place, by the share `weight`, a 0-d tensor, of its way to its target."""
    for average, target in zip(averages, targets, strict=True):
        average.lerp_(target, weight)


def _move_by_foreach(averages: list[Tensor], targets: list[Tensor], weight: Tensor) -> None:
    """The same in a few launches for all tensors. A lerp of lists would want a weight of each tensor's own shape."""
    ways = torch._foreach_sub(targets, averages)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_mul_(ways, weight)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(averages, ways)  # pyright: ignore[reportPrivateImportUsage]


class _Graph:
    """The step for batches of one shape: eager at first, then captured, then replayed on copies of the batch."""

    def __init__(self, step: Callable[[Batch], None], batch: Batch, stream: torch.cuda.Stream) -> None:
        self._step, self._stream = step, stream
        self._batch = Batch(batch.clips.clone(), Targets(*(field.clone() for field in batch.targets)))
        self._graph: torch.cuda.CUDAGraph | None = None
        self._runs = 0

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    @property
    def warms_up(self) -> bool:
        """Whether the next run launches operator by operator."""
        return self._runs < WARM_UP

    def release(self) -> None:
        """Give back the memory of what was captured; the next run captures it again."""
        if self._graph is not None:
            self._graph.reset()
            self._graph = None

    def run(self, batch: Batch, pool: Any) -> None:
        """One step. pool: the handle of the memory for a capture."""
        for own, given in zip((self._batch.clips, *self._batch.targets), (batch.clips, *batch.targets), strict=True):
            own.copy_(given)
        if self.warms_up:
            self._runs += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step(self._batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            try:
                # Only this thread must not wait for the device meanwhile: those of a reader may.
                with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                    self._step(self._batch)
            except RuntimeError as error:
                # The end of a capture that failed raises a second error.
                first = error.__context__ or error
                if isinstance(first, torch.OutOfMemoryError) or "out of memory" in str(first):
                    raise torch.OutOfMemoryError(str(first)) from error
                reason = str(first).partition("\n")[0]
                raise ActdetError(f"the step cannot be captured ({reason}): use --step eager") from error
            self._graph = graph
        self._graph.replay()

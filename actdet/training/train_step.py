"""One training step, all of it on the device: with a single process, the host reads nothing of it back.

    clips, targets -> detector -> its losses -> gradients -> clip -> AdamW -> running average (the report's section 3.4)

With `auxiliary_weight`, a layer that only training has must also tell from the backbone's features what happens in the
clip and where. This teaches a backbone without pretrained weights in half the time.

There are three ways to launch a step. eager: operator by operator. compile: the network and its losses by
torch.compile. graph: for each shape of batch, the whole step is captured as one CUDA graph after a few eager steps, and
replayed. All three draw the same dropout. An eager step and a graph never hold the activations of a batch at the same
time: while a shape, such as that of an epoch's last batch, warms up, there are no graphs, and the others are captured
again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from actdet.data.augment import Batch
from actdet.data.truth import AnyTargets
from actdet.device import lay_channels_last
from actdet.distributed import ALONE, Processes, synchronize_batch_norm
from actdet.models.backbones.convolution import fuse_norms
from actdet.models.family import FamilyNetwork
from actdet.training.config import TrainConfig
from actdet.training.graph import StepGraph

# The option of DistributedDataParallel that sends the buffers before every step. Newer PyTorch deprecates the old name.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


class TrainStep:
    """What a step reads and writes, and the step: `step.run(batch, lr=..., seed=..., number=...)`.

    Args:
        detector: Trained in place. It is moved to `device`, and its video convolutions become channels-last.
        config: The training's settings.
        device: Where the step runs.
        dtype: The network's arithmetic; parameters, losses and averages are float32.
        mode: How the step is launched: "eager", "compile" or "graph".
        processes: The processes that share each batch.

    Attributes:
        losses: float32 on the device, the values of the detector's `loss_names` summed over the steps since it was last
            set to zero. They are of this process's share of each batch; their mean over the processes is that of the
            whole batch.
        average: The running average of `live()`, by name; empty if the settings ask for none.
        auxiliary_head: The layer of the auxiliary loss, which is not part of the detector; None if it has no such loss.
        parameters: What is trained, in the order of the optimizer.
    """

    def __init__(
        self,
        detector: FamilyNetwork,
        config: TrainConfig,
        device: torch.device,
        dtype: torch.dtype,
        mode: str,
        processes: Processes = ALONE,
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.mode = mode
        self.processes = processes

        detector = detector.to(device)
        lay_channels_last(detector)
        detector.backbone.requires_grad_(not config.freeze_backbone)
        detector.backbone.checkpointing = config.checkpointing
        self.auxiliary_head = detector.auxiliary_head()
        if self.auxiliary_head is not None:
            self.auxiliary_head.to(device).requires_grad_(config.auxiliary_weight > 0)
        if processes.count > 1:
            detector = cast(FamilyNetwork, synchronize_batch_norm(detector, device))
        self.detector = detector

        # A head without weight in the loss is kept, so that a state holds the same whatever the weight is.
        network = _Network(detector, self.auxiliary_head if config.auxiliary_weight else None, dtype)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self._network = network if processes.count == 1 else _distributed(network, config)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(config.lr, device=device),
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
            capturable=mode == "graph",
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.losses = torch.zeros(len(detector.loss_names), device=device)
        self.average = {k: v.clone() for k, v in self.live().items()} if config.ema_decay else {}
        self._average_weight = torch.ones((), device=device)

        self._compiled = None
        if mode == "compile":
            self._compiled = torch.compile(self._losses_of, options={"fallback_random": True})
        self._graphs: dict[tuple[bool | torch.Size, ...], StepGraph] = {}
        if mode == "graph":
            fuse_norms(detector.backbone)
            # All shapes share this memory: nothing in it outlives a step except gradients, which the next step computes
            # again.
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()

    def run(self, batch: Batch, *, lr: float, seed: int, number: int) -> None:
        """Do one step.

        Args:
            batch: This process's share of the batch.
            lr: The learning rate.
            seed: Decides what dropout and the detector's hints draw.
            number: How many steps came before this one.
        """
        self.detector.train()
        if self.config.freeze_backbone:
            self.detector.backbone.eval()
        # Only dropout and hints draw from this generator.
        torch.manual_seed(seed)
        self.optimizer.param_groups[0]["lr"].fill_(lr)
        # At first the average is that of all steps so far, so that it forgets the start.
        self._average_weight.fill_(1 - min(self.config.ema_decay, (1 + number) / (10 + number)))

        if self.mode != "graph":
            self._step(batch)
            return
        shape = (self.detector.backbone.shallow, *(tensor.shape for tensor in (batch.clips, *batch.targets)))
        if shape not in self._graphs:
            own = batch._replace(clips=batch.clips.to(self.dtype))
            self._graphs[shape] = StepGraph(self._step, own, self._stream)
        graph = self._graphs[shape]
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

    def _losses_of(self, clips: Tensor, targets: AnyTargets) -> Tensor:
        """The values of the detector's `loss_names` for this process's share of a batch."""
        outputs, auxiliary_output = self._network(clips, self.detector.hints(targets))
        losses = self.detector.losses(
            outputs,
            targets,
            self.config.loss,
            auxiliary_output=auxiliary_output,
            auxiliary_weight=self.config.auxiliary_weight,
            processes=self.processes,
        )
        return torch.stack([losses[name] for name in self.detector.loss_names])

    def live(self) -> dict[str, Tensor]:
        """Return the detector's parameters and statistics by name, without the counters, which have no average."""
        named = (*self.detector.named_parameters(), *self.detector.named_buffers())
        return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While active, the detector holds the running average, if there is one."""
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
    """Everything that has gradients, as one module."""

    def __init__(self, detector: FamilyNetwork, auxiliary_head: nn.Module | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.detector = detector
        self.auxiliary_head = auxiliary_head
        self.dtype = dtype

    def forward(self, clips: Tensor, hints: Any) -> tuple[Any, Tensor | None]:
        """Clips to the detector's outputs, and to that of the auxiliary head, if there is one."""
        with torch.autocast(clips.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.detector.backbone(clips)
            outputs = self.detector.detect(features, hints)
        return outputs, None if self.auxiliary_head is None else self.auxiliary_head(features)


def _distributed(network: _Network, config: TrainConfig) -> DistributedDataParallel:
    """Wrap the network so that the processes average their gradients."""
    # The buffers are statistics over the clips of all processes, so every process has the same already.
    sync_buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(
        network,
        gradient_as_bucket_view=True,
        find_unused_parameters=config.shallow_epochs > 0,
        **sync_buffers,
    )


def _move_by_lerp(averages: list[Tensor], targets: list[Tensor], weight: Tensor) -> None:
    """Move each average, in place, by the share `weight`, a 0-d tensor, of its way to its target."""
    for average, target in zip(averages, targets, strict=True):
        average.lerp_(target, weight)


def _move_by_foreach(averages: list[Tensor], targets: list[Tensor], weight: Tensor) -> None:
    """Do the same in a few launches for all tensors. A lerp of lists would need a weight of each tensor's own shape."""
    ways = torch._foreach_sub(targets, averages)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_mul_(ways, weight)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(averages, ways)  # pyright: ignore[reportPrivateImportUsage]

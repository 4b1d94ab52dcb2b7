"""Training by several processes, one a device, as torchrun starts them:

    torchrun --nproc-per-node 2 -m actdet train data/mine

Every process takes its share of each batch. Sums over the batch (the losses' denominators, BatchNorm's statistics, the
gradients) are taken over all processes, so the steps are those of one process with the whole batch, but for dropout,
which each process draws for itself, and mixup, which blends clips of the same process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from actdet.errors import ActdetError


@dataclass(frozen=True)
class Processes:
    """Which process of a job this is, and what it can ask of the others."""

    rank: int = 0
    count: int = 1

    def share(self, items: Any) -> Any:
        """What of `items`, a batch or a list of clips, is for this process."""
        return items[self.rank :: self.count]

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor`, in place, plus those of the other processes."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process."""
        return any(self.gather(flag))

    def gather(self, value: Any) -> list[Any]:
        """The `value` of each process, by rank."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values


ALONE = Processes()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Within: the processes that torchrun started, or this one alone.

    Raises ActdetError where this one has no GPU of its own, though there are some, or does not find the others.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if not dist.is_torchelastic_launched() or count == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        own, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= found:
            raise ActdetError(f"there are {found} GPUs for more processes: use torchrun --nproc-per-node {found}")
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except RuntimeError as error:
        meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).partition("\n")[0]
        raise ActdetError(
            f"the processes of this job do not meet at {meeting} ({reason}): give torchrun a host that all reach by "
            "--master-addr, and a free --master-port"
        ) from error
    yield Processes(dist.get_rank(), count)
    dist.destroy_process_group()  # not after an error, when the others may not answer any more


def is_lost_process(error: RuntimeError) -> bool:
    """Whether `error` says that another process of the job does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every BatchNorm taking mean and variance over the clips of all processes."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.__class__ = _GlobalBatchNorm
    return module


class _GlobalBatchNorm(nn.BatchNorm3d):
    """nn.SyncBatchNorm for a CPU, which that one refuses."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        running = self.running_mean, self.running_var, self.momentum
        return cast(Tensor, _Normalise.apply(input, self.weight, self.bias, *running, self.eps))


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) weight + bias, with mean and var over the values of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        dims = [0, *range(2, input.ndim)]
        own_var, own_mean = torch.var_mean(input.float(), dims, correction=0)
        number = torch.full_like(own_mean, input.numel() // input.shape[1])
        every = torch.zeros(dist.get_world_size(), 3, len(own_mean))
        every[dist.get_rank()] = torch.stack([number, own_mean, own_var])
        dist.all_reduce(every)
        number, means, variances = every.unbind(1)
        total = number.sum(0)
        mean = (number * means).sum(0) / total
        var = (number * (variances + (means - mean) ** 2)).sum(0) / total
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * total / (total - 1).clamp(min=1), momentum)
        ctx.save_for_backward(input, weight, mean, (var + eps).rsqrt(), total)
        return F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        input, weight, mean, scale, total = ctx.saved_tensors
        dims, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
        whitened = (input.float() - mean.view(shape)) * scale.view(shape)
        own = torch.stack([gradient.float().sum(dims), (gradient.float() * whitened).sum(dims)])
        every = own.clone()
        dist.all_reduce(every)
        shift, slope = (every / total).unbind()
        back = gradient.float() - shift.view(shape) - whitened * slope.view(shape)
        back = back * (weight * scale).view(shape)
        return back.to(input.dtype), own[1], own[0], None, None, None, None

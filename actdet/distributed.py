"""Training by several processes, one for each device, as torchrun starts them:

    torchrun --nproc-per-node 2 -m actdet train data/mine

Every process takes its share of each batch. Sums over the batch (the losses' denominators, BatchNorm's statistics and
the gradients) are taken over all processes, so the steps are those of one process with the whole batch. There are two
exceptions: each process draws its own dropout, and mixup blends only clips of the same process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from actdet.errors import ActdetError


@dataclass(frozen=True)
class Processes:
    """Which process of a job this is, and what it can ask of the others."""

    rank: int = 0
    """This process's number, from 0; the first one writes the files."""
    count: int = 1
    """How many processes there are."""

    def share(self, items: Any) -> Any:
        """Return this process's part of `items`, such as a batch or a list of clips."""
        return items[self.rank :: self.count]

    def sum(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all processes to `tensor`, in place, and return it."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        return any(self.gather(flag))

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values


ALONE = Processes()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """While active, this process can talk to the others that torchrun started; without torchrun it is alone.

    Raises:
        ActdetError: If the machine has GPUs but too few for this process to have its own, or if the other processes
            cannot be reached.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if not dist.is_torchelastic_launched() or count == 1:
        yield ALONE
        return

    if torch.cuda.is_available():
        own = int(os.environ["LOCAL_RANK"])
        found = torch.cuda.device_count()
        if own >= found:
            here = os.environ.get("LOCAL_WORLD_SIZE", count)
            gpus = "1 GPU" if found == 1 else f"{found} GPUs"
            raise ActdetError(f"only {gpus} for {here} processes: use torchrun --nproc-per-node {found}")
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except RuntimeError as error:
        meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).partition("\n")[0]
        raise ActdetError(
            f"processes could not connect at {meeting} ({reason}); pass torchrun a --master-addr that every host can "
            "reach, and a free --master-port"
        ) from error

    # A side of one element may have different strides in a gradient and in DistributedDataParallel's bucket. All that
    # costs is a copy of a small gradient, so the warning is of no use.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    yield Processes(dist.get_rank(), count)
    # After an error this would wait for the others, which may not answer any more.
    dist.destroy_process_group()


def is_lost_process(error: RuntimeError) -> bool:
    """Return whether `error` says that another process of the job does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Have every BatchNorm take mean and variance over the clips of all processes.

    Args:
        module: The network.
        device: Where it runs.

    Returns:
        The same network with new BatchNorm modules in place of its own, which share their parameters and statistics.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm):
        return _GlobalBatchNorm.like(module)
    for name, child in module.named_children():
        module.add_module(name, synchronize_batch_norm(child, device))
    return module


class _GlobalBatchNorm(nn.BatchNorm3d):
    """What nn.SyncBatchNorm does, for a CPU, on which that one refuses to run."""

    @classmethod
    def like(cls, norm: _BatchNorm) -> _GlobalBatchNorm:
        """Make one with the parameters, statistics and settings of `norm`."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made.weight = norm.weight
        made.bias = norm.bias
        made.running_mean = norm.running_mean
        made.running_var = norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept video and pictures: both have their channels in the second dimension."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        running = self.running_mean, self.running_var, self.momentum
        return cast(Tensor, _Normalize.apply(input, self.weight, self.bias, *running, self.eps))


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with mean and var over the values of all processes.

    The running statistics move in place, as nn.BatchNorm3d moves them: the variance without its bias.
    """

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

        # (processes, 3, C): every process fills in its own row, and the sum is everybody's.
        every = torch.zeros(dist.get_world_size(), 3, len(own_mean))
        every[dist.get_rank()] = torch.stack([number, own_mean, own_var])
        dist.all_reduce(every)
        number, means, variances = every.unbind(1)
        total = number.sum(0)

        # The variance of all is the mean of the variances, plus the variance of the means.
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
        dims = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        whitened = (input.float() - mean.view(shape)) * scale.view(shape)

        # The gradients of bias and weight are those of this process's clips: DistributedDataParallel averages them with
        # the others'. The input's takes the means over all values, through which every value moves every other one.
        own = torch.stack([gradient.float().sum(dims), (gradient.float() * whitened).sum(dims)])
        every = own.clone()
        dist.all_reduce(every)
        shift, slope = (every / total).unbind()
        back = gradient.float() - shift.view(shape) - whitened * slope.view(shape)
        back = back * (weight * scale).view(shape)
        return back.to(input.dtype), own[1], own[0], None, None, None, None

"""Counts, without a GPU, what a call would launch on one and how often it would wait for it.

Tensors of the problem, and all that is computed from them, pass for tensors on a device. An operator on one of them is
one launch at least (views launch nothing), so the launches are a lower bound. Copies from the host are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

from actdet_kernels import backend
from actdet_kernels.triton import launch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.opponents import tensors_of

READS = {"cpu", "tolist", "numpy", "__array__"}  # methods that bring a tensor to the host
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}  # operators that do


class Count(NamedTuple):
    launches: int
    reads: int


def count(function: Callable[[Any], Any], problem: Any) -> Count:
    """Of function(problem), the problem's tensors being on the CPU."""
    on_device = _OnDevice(tensors_of(problem))
    launched = []

    def record(kernel: Any, programs: int, **arguments: Any) -> None:
        launched.append(kernel)
        on_device.add([value for value in arguments.values() if isinstance(value, Tensor)])

    def kernels(chosen: str, *rest: Any) -> str:
        return "triton" if chosen == "auto" else chosen

    with (
        mock.patch.object(backend, "choose_backend", kernels),
        mock.patch.object(launch, "launch", record),
        mock.patch.object(launch, "capability", return_value=(9, 0)),
        _Reads(on_device) as reads,
        _Operators(on_device) as operators,
    ):
        function(problem)
    return Count(len(launched) + operators.launches, reads.count + operators.waits)


class _OnDevice:
    """Which memory passes for a device's. What is freed stays known by a weak reference, so that no address returns."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.storages: dict[int, StorageWeakRef] = {}
        self.copying = False  # to the host: that is a read, and no launch
        self.add(tensors)

    def add(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.storages[storage._cdata] = StorageWeakRef(storage)

    def holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self.storages


class _Operators(TorchDispatchMode):
    def __init__(self, on_device: _OnDevice) -> None:
        super().__init__()
        self.on_device, self.launches, self.waits = on_device, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = tree_leaves((args, kwargs))
        if self.on_device.copying or not any(self.on_device.holds(value) for value in inputs):
            return result
        name = func.overloadpacket.__name__
        self.waits += name in WAITS
        silent = func.is_view or name in ("detach", "_unsafe_view", "lift_fresh") or func.namespace != "aten"
        self.launches += not silent
        self.on_device.add([value for value in tree_leaves(result) if isinstance(value, Tensor)])
        return result


class _Reads(TorchFunctionMode):
    def __init__(self, on_device: _OnDevice) -> None:
        super().__init__()
        self.on_device, self.count = on_device, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        to_host = name in READS or (name == "to" and "cpu" in args[1:])
        if not (to_host and self.on_device.holds(args[0])):
            return func(*args, **(kwargs or {}))
        self.count += 1
        self.on_device.copying = True
        host = args[0].detach().clone()
        self.on_device.copying = False
        return func(host, *args[1:], **(kwargs or {}))

"""The one place that decides which implementation of an operation runs: Triton kernels, C++ kernels or the reference.

`implementation` is what operations call, `choose_backend` decides, and `explain_backend` says why. An obstacle is the
reason why kernels cannot run, as a text for people.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any, Literal

import torch

Backend = Literal["auto", "triton", "cpu", "reference"]
Chosen = Literal["triton", "cpu", "reference"]

# The least compute capability for which Triton compiles.
LEAST_CAPABILITY = (6, 0)

# The compiled C++ module.
NATIVE = "actdet_kernels.cpu.native"


def implementation(
    backend: Backend,
    device: torch.device,
    *,
    kernels: Callable[..., Any] | None,
    reference: Callable[..., Any],
    obstacle: str | None = None,
    cpu_obstacle: str | None = None,
) -> Callable[..., Any]:
    """Return the function that computes an operation. Every operation chooses here, and nowhere else.

    Args:
        backend: The backend that was asked for.
        device: The device of the tensors.
        kernels: Computes the operation by kernels. Its first argument is which ones, "triton" or "cpu". None for an
            operation without kernels.
        reference: Computes it in PyTorch and SciPy, from the other arguments of `kernels`.
        obstacle: Why the Triton kernels cannot compute what is asked for on any device, or None if they can.
        cpu_obstacle: The same for the C++ kernels.

    Returns:
        One of the two functions. That of the kernels has its first argument already.

    Raises:
        RuntimeError: Kernels were asked for by name, and cannot run.
        ValueError: There is no such backend.
    """
    if kernels is None:
        obstacle = cpu_obstacle = "no kernel computes this operation yet"
    chosen = choose_backend(backend, device, obstacle, cpu_obstacle)
    return reference if kernels is None or chosen == "reference" else partial(kernels, chosen)


def choose_backend(
    backend: Backend, device: torch.device, obstacle: str | None = None, cpu_obstacle: str | None = None
) -> Chosen:
    """Return the implementation that `backend` means for tensors on `device`.

    "auto" takes Triton on a CUDA device, and C++ on a CPU or if Triton cannot run. If neither can run, and on devices
    of other kinds, it takes the reference. "cpu" copies tensors from another device, and the results back to it.

    Args:
        backend: The backend that was asked for.
        device: The device of the tensors.
        obstacle: Why the Triton kernels cannot compute what is asked for on any device, or None if they can.
        cpu_obstacle: The same for the C++ kernels.

    Raises:
        RuntimeError: "triton" or "cpu" was asked for, and cannot run. There is no silent fallback from either.
        ValueError: There is no such backend.
    """
    if backend not in ("auto", "triton", "cpu", "reference"):
        raise ValueError(f"backend must be 'auto', 'triton', 'cpu' or 'reference', got {backend!r}")
    kind = device.type
    if backend == "reference" or (backend == "auto" and kind not in ("cuda", "cpu")):
        return "reference"

    if backend == "triton" or (backend == "auto" and kind == "cuda"):
        obstacle = obstacle or _obstacle(device, os.environ.get("TRITON_INTERPRET") == "1")
        if obstacle is None:
            return "triton"
        if backend == "triton":
            raise RuntimeError(f"backend 'triton' cannot run on {device}: {obstacle}")

    cpu_obstacle = cpu_obstacle or _cpu_obstacle()
    if cpu_obstacle is None:
        return "cpu"
    if backend == "cpu":
        raise RuntimeError(f"backend 'cpu' cannot run: {cpu_obstacle}")
    return "reference"


# The choice is a constant to torch.compile, which does not trace it. This is what
# torch.compiler.assume_constant_result sets, without importing the compiler, which takes long.
choose_backend.__dict__["_dynamo_marked_constant"] = True


@cache
def kernel_module(chosen: str, name: str) -> ModuleType:
    """Return the module of an operation's kernels. It is imported only here, because Triton may be missing."""
    return importlib.import_module(f"actdet_kernels.{chosen}.{name}")


def explain_backend(device: torch.device) -> str:
    """Return a line for people that says which backend "auto" takes on `device`, and why.

    Every operation takes `backend="auto"`, or one by name: "triton" for the Triton kernels on a CUDA device, "cpu" for
    the C++ kernels, and "reference" for PyTorch and SciPy on any device. "auto" takes Triton on a CUDA device, and C++
    on a CPU or if Triton cannot run; otherwise it takes the reference. A backend that is asked for by name and cannot
    run raises RuntimeError.

    Args:
        device: The device of the tensors.

    Returns:
        The backend's name, a colon, and the GPU's name, the CPU's instruction set or the reasons.
    """
    if device.type not in ("cuda", "cpu"):
        return f"reference: kernels are for CUDA devices and CPUs, but this is {device}"

    reasons = []
    if device.type == "cuda":
        obstacle = _obstacle(device, os.environ.get("TRITON_INTERPRET") == "1")
        if obstacle is None:
            return f"triton: {torch.cuda.get_device_name(device)}"
        reasons.append(obstacle)

    obstacle = _cpu_obstacle()
    if obstacle is None:
        reasons.insert(0, f"C++ kernels, {importlib.import_module(NATIVE).isa}")
        return f"cpu: {'; '.join(reasons)}"
    return f"reference: {'; '.join([*reasons, obstacle])}"


@cache
def _obstacle(device: torch.device, interpreted: bool) -> str | None:
    """Return why the Triton kernels cannot run on `device`, or None if they can.

    Any error while Triton is imported is an obstacle, because a broken installation must not stop "auto".
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            return f"its compute capability is {capability[0]}.{capability[1]}, but kernels need 6.0"
    elif device.type != "cpu":
        return "kernels run on CUDA devices"
    elif not interpreted:
        return "kernels run on CUDA devices, and on a CPU under TRITON_INTERPRET=1, for tests"

    try:
        importlib.import_module("actdet_kernels.triton.loss")
    except Exception as error:
        return f"Triton cannot be imported ({type(error).__name__}: {error})".replace("\n", " ")
    return None


@cache
def _cpu_obstacle() -> str | None:
    """Return why the C++ kernels cannot run, or None if they can."""
    try:
        importlib.import_module(NATIVE)
    except ImportError as error:
        if error.name == NATIVE:
            return "the C++ kernels were not built, which takes a C++ compiler when this package is installed"
        return f"the C++ kernels cannot be loaded ({error})".replace("\n", " ")
    return None

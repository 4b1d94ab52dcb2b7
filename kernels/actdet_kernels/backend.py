"""The one place that decides which implementation of an operation runs: Triton kernels, C++ ones or the reference."""

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

LEAST_CAPABILITY = (6, 0)
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
    """The function that computes an operation. Every operation chooses here, and nowhere else.

    Args:
        backend: what was asked for.
        device: where the tensors are.
        kernels: computes it by the kernels whose backend, "triton" or "cpu", is its first argument. None for an
            operation that has none.
        reference: computes it in PyTorch and SciPy, from the same arguments, but for that first one.
        obstacle: why the Triton kernels cannot compute what is asked for, on whatever device.
        cpu_obstacle: the same of the C++ kernels.

    Returns:
        One of the two functions, and that of the kernels with its first argument.

    Raises:
        RuntimeError: the kernels were asked for by name, and cannot run.
        ValueError: there is no such backend.
    """
    if kernels is None:
        obstacle = cpu_obstacle = "no kernel computes this operation yet"
    chosen = choose_backend(backend, device, obstacle, cpu_obstacle)
    return reference if kernels is None or chosen == "reference" else partial(kernels, chosen)


def choose_backend(
    backend: Backend, device: torch.device, obstacle: str | None = None, cpu_obstacle: str | None = None
) -> Chosen:
    """The implementation that `backend` means for tensors on `device`.

    "auto" takes Triton on a CUDA device; where that cannot run, and on a CPU, C++; and the reference where neither can,
    or on another device. "reference" always runs; "triton" and "cpu" raise RuntimeError where they cannot run, rather
    than falling back in silence. "cpu" copies what is on another device, there and back.
    obstacle, cpu_obstacle: why these kernels cannot compute what is asked for, on whatever device.
    """
    if backend not in ("auto", "triton", "cpu", "reference"):
        raise ValueError(f"backend must be 'auto', 'triton', 'cpu' or 'reference', got {backend!r}")
    if backend == "reference" or (backend == "auto" and device.type not in ("cuda", "cpu")):
        return "reference"
    if backend == "triton" or (backend == "auto" and device.type == "cuda"):
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


# Tracing need not look inside: what torch.compiler.assume_constant_result sets, without importing the compiler.
choose_backend.__dict__["_dynamo_marked_constant"] = True


@cache
def kernel_module(chosen: str, name: str) -> ModuleType:
    """The file of an operation's kernels, which is not imported before it is used."""
    return importlib.import_module(f"actdet_kernels.{chosen}.{name}")


def explain_backend(device: torch.device) -> str:
    """One line for people: what "auto" takes on `device`, and why."""
    if device.type not in ("cuda", "cpu"):
        return f"reference: kernels are for CUDA devices and CPUs, this is {device}"
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
    """Why kernels cannot run on `device`, or None. Whatever keeps Triton from being imported is an obstacle."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            return f"its compute capability is {capability[0]}.{capability[1]}, kernels need 6.0"
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
    """Why the C++ kernels cannot run, or None."""
    try:
        importlib.import_module(NATIVE)
    except ImportError as error:
        if error.name == NATIVE:
            return "the C++ kernels were not built, which takes a C++ compiler when this package is installed"
        return f"the C++ kernels cannot be loaded ({error})".replace("\n", " ")
    return None

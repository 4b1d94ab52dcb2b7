"""The one place that decides which implementation of an operation runs: Triton kernels or the reference."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch

Backend = Literal["auto", "triton", "reference"]

LEAST_CAPABILITY = (6, 0)


def implementation(
    backend: Backend,
    device: torch.device,
    *,
    kernels: Callable[..., Any] | None,
    reference: Callable[..., Any],
    obstacle: str | None = None,
) -> Callable[..., Any]:
    """The function that computes an operation. Every operation chooses here, and nowhere else.

    Args:
        backend: what was asked for.
        device: where the tensors are.
        kernels: computes it by Triton kernels. None for an operation that has none.
        reference: computes it in PyTorch and SciPy, from the same arguments.
        obstacle: why the kernels cannot compute what is asked for, on whatever device.

    Returns:
        One of the two functions.

    Raises:
        RuntimeError: the kernels were asked for by name, and cannot run.
        ValueError: there is no such backend.
    """
    if kernels is None:
        obstacle = "no kernel computes this operation yet"
    chosen = choose_backend(backend, device, obstacle)
    return reference if kernels is None or chosen == "reference" else kernels


def choose_backend(
    backend: Backend, device: torch.device, obstacle: str | None = None
) -> Literal["triton", "reference"]:
    """The implementation that `backend` means for tensors on `device`.

    "auto" takes Triton on a CUDA device and the reference elsewhere; "reference" always runs; "triton" raises
    RuntimeError where it cannot run, rather than falling back in silence.
    obstacle: why the kernels cannot compute what is asked for, on whatever device.
    """
    if backend not in ("auto", "triton", "reference"):
        raise ValueError(f"backend must be 'auto', 'triton' or 'reference', got {backend!r}")
    if backend == "reference" or (backend == "auto" and device.type != "cuda"):
        return "reference"
    obstacle = obstacle or _obstacle(device, os.environ.get("TRITON_INTERPRET") == "1")
    if obstacle is None:
        return "triton"
    if backend == "triton":
        raise RuntimeError(f"backend 'triton' cannot run on {device}: {obstacle}")
    return "reference"


# Tracing need not look inside: what torch.compiler.assume_constant_result sets, without importing the compiler.
choose_backend.__dict__["_dynamo_marked_constant"] = True


def explain_backend(device: torch.device) -> str:
    """One line for people: what "auto" takes on `device`, and why."""
    if device.type != "cuda":
        return f"reference: Triton kernels are for CUDA devices, this is {device}"
    obstacle = _obstacle(device, os.environ.get("TRITON_INTERPRET") == "1")
    if obstacle is not None:
        return f"reference: {obstacle}"
    return f"triton: {torch.cuda.get_device_name(device)}"


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

"""The one place that decides which implementation of an operation runs: Triton kernels or the reference."""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "reference"]

LEAST_CAPABILITY = (6, 0)
REDUX_CAPABILITY = (8, 0)


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


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where a kernel writes. Tests replace this by memory full of NaN or -7, which shows what nobody wrote."""
    return torch.empty(shape, dtype=dtype, device=device)


def has_redux(device: torch.device) -> bool:
    """Whether a warp of that GPU reduces 32-bit integers in one instruction, for which a kernel is compiled."""
    return capability(device) >= REDUX_CAPABILITY


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU, and for other devices, as the interpreter's, that of the newest GPUs.

    Gates and tests replace this by the architecture that they compile for.
    """
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (12, 0)


def launch(kernel: Any, programs: int, tensor: Tensor, *arguments: Any, **options: Any) -> None:
    """Run a kernel of one-dimensional grid on the device of its first argument, unless there is nothing to do."""
    if programs > 0:
        with torch.cuda.device_of(tensor):
            kernel[(programs,)](tensor, *arguments, **options)


@cache
def _obstacle(device: torch.device, interpreted: bool) -> str | None:
    """Why kernels cannot run on `device`, or None. Whatever keeps Triton from being imported is an obstacle."""
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        if found < LEAST_CAPABILITY:
            return f"its compute capability is {found[0]}.{found[1]}, kernels need 6.0"
    elif device.type != "cpu":
        return "kernels run on CUDA devices"
    elif not interpreted:
        return "kernels run on CUDA devices, and on a CPU under TRITON_INTERPRET=1, for tests"
    try:
        importlib.import_module("actdet_kernels.triton.loss")
    except Exception as error:
        return f"Triton cannot be imported ({type(error).__name__}: {error})".replace("\n", " ")
    return None

"""The one place that decides which implementation of an operation runs: Triton kernels or the reference."""

from __future__ import annotations

from typing import Literal

import torch

Backend = Literal["auto", "triton", "reference"]


def choose_backend(backend: Backend, device: torch.device) -> Literal["reference"]:
    """The implementation that `backend` means for tensors on `device`.

    "auto" takes the fastest that can run there; "reference" always runs; "triton" raises RuntimeError
    where it cannot run, rather than falling back in silence.
    """
    if backend not in ("auto", "triton", "reference"):
        raise ValueError(f"backend must be 'auto', 'triton' or 'reference', got {backend!r}")
    if backend == "triton":
        raise RuntimeError(f"backend 'triton' cannot run on {device}: {_NO_KERNELS}")
    return "reference"


def explain_backend(device: torch.device) -> str:
    """One line for people: what "auto" takes on `device`, and why."""
    return f"{choose_backend('auto', device)}: {_NO_KERNELS}"


_NO_KERNELS = "this version of actdet_kernels has no Triton kernels, only the PyTorch and SciPy reference"

"""Harsher surroundings than a GPU's, for every test of kernels; where they run is said in `device.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.device import HAS_TRITON

CPU = torch.device("cpu")
GUARD = 64  # elements before and after what a kernel writes: keeps the alignment of what lies between them


@pytest.fixture
def allocated() -> Iterator[list[tuple[int, ...]]]:
    """Kernels write into memory full of NaN or -7, which shows what nobody wrote, between guards of the same, which
    show who wrote past an end. Gives the shapes asked for.
    """
    shapes, guards = [], []

    def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
        shapes.append(tuple(shape))
        size = math.prod(shape)
        poison = math.nan if dtype.is_floating_point else -7
        room = torch.full((GUARD + size + GUARD,), poison, dtype=dtype, device=device)
        guards.extend([room[:GUARD], room[GUARD + size :]])
        return room[GUARD : GUARD + size].view(shape)

    def poisoned_like(tensor: Tensor) -> Tensor:
        return poisoned((tensor.numel(),), tensor.dtype, tensor.device).as_strided(tensor.shape, tensor.stride())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actdet_kernels.triton.launch.empty", poisoned)
        patch.setattr("actdet_kernels.triton.launch.empty_like", poisoned_like)
        patch.setattr("actdet_kernels.cpu.arguments.empty", poisoned)
        yield shapes
    assert all((guard.isnan() if guard.is_floating_point() else guard == -7).all() for guard in guards)


@pytest.fixture(autouse=True, scope="session")
def interpreter() -> Iterator[None]:
    """Triton's interpreter, quicker, with garbage behind a load's false mask, as on a GPU, where it has zeros."""
    if not HAS_TRITON or torch.cuda.is_available():
        yield
        return
    import numpy as np
    from triton.runtime import interpreter

    from bench.interpreter import quick_interpreter

    load = interpreter.InterpreterBuilder.create_masked_load

    def garbage(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        if other is None:
            kind = pointers.get_element_ty()
            values = np.full(pointers.data.shape, -7 if kind.is_int() else math.nan).astype(
                interpreter._get_np_dtype(kind)
            )
            if kind.is_bf16():  # in integers, as NumPy has no such type
                values[...] = 0x7FFF
            other = interpreter.TensorHandle(values, kind)
        return load(self, pointers, mask, other, *rest)

    with pytest.MonkeyPatch.context() as patch, quick_interpreter():
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_load", garbage)
        yield

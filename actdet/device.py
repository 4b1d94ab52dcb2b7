"""Chooses the device, the precision of the arithmetic and the way to launch a training step, and says why.

Also: what the device is called, how much memory is free, an error of one line when there is too little, and settings
that make training fast.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from actdet.errors import ActdetError

# Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def choose_device(name: str = "auto") -> torch.device:
    """Choose the device that `name` means.

    The GPU with a number becomes the current one of this process, which "cuda" then means everywhere.

    Args:
        name: `auto` for the first GPU if there is one and the CPU otherwise, `cpu`, `cuda`, or `cuda:N`.

    Raises:
        ActdetError: For any other name, and for a GPU that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name)
    if match is None:
        raise ActdetError(f"device must be auto, cpu, cuda or cuda:N, got {name}")

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = None if match[1] is None else int(match[1])
    if found <= (number or 0):
        numbers = {0: "no GPU", 1: "one GPU, cuda:0"}.get(found, f"{found} GPUs, cuda:0 to cuda:{found - 1}")
        raise ActdetError(f"device {name} not found: PyTorch sees {numbers}")
    if number is not None:
        torch.cuda.set_device(number)
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    """Return what people call the device: the GPU's name, or how many threads the CPU has."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def describe_device(device: torch.device, reader: str) -> str:
    """Say in one line of a report where a detector ran, and what decoded its clips."""
    return f"{device_name(device)}, torch {torch.__version__}, reader {reader}."


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Choose the dtype of the network's arithmetic.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        device: Where the network runs.

    Returns:
        The dtype, and the reason in a few words.

    Raises:
        ActdetError: If the device cannot compute in the precision that was asked for by name.
    """
    if precision == "fp32":
        return torch.float32, "asked for"

    if device.type == "cuda":
        native_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        if precision == "auto" and native_bf16:
            return torch.bfloat16, "the GPU has bf16 units"
        if precision == "auto":
            return torch.float16, "the GPU has no bf16 units"
        if precision == "bf16" and not native_bf16:
            raise ActdetError("precision bf16 needs a GPU of compute capability 8.0 or newer: use auto, fp16 or fp32")
    elif precision == "auto":
        if _cpu_has_bf16():
            return torch.bfloat16, "the CPU has bf16 units"
        return torch.float32, "no bf16 units here"
    elif precision == "fp16":
        raise ActdetError("precision fp16 needs a GPU: use auto, bf16 or fp32 on a CPU")

    return {"bf16": torch.bfloat16, "fp16": torch.float16}[precision], "asked for"


def _cpu_has_bf16() -> bool:
    """Whether the CPU has units for bf16 that PyTorch and oneDNN may use."""
    # Both can be told to do without newer instructions, and then compute in bf16 slowly.
    masked_for_torch = torch.backends.cpu.get_cpu_capability() == "AVX2"
    masked_for_onednn = "AVX2" in os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if masked_for_torch or masked_for_onednn:
        return False

    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags


def choose_step(step: str, device: torch.device, *, processes: int = 1, checkpointing: bool = False) -> tuple[str, str]:
    """Choose how a training step is launched.

    Args:
        step: `auto`, `graph`, `eager` or `compile`.
        device: Where the training runs.
        processes: How many processes train together.
        checkpointing: Whether activations are computed again in the backward pass.

    Returns:
        `graph`, `eager` or `compile`, and the reason in a few words.

    Raises:
        ActdetError: If the way that was asked for by name is not possible.
    """
    if step == "graph" and device.type != "cuda":
        raise ActdetError("step graph needs a GPU: use auto, eager or compile")
    if step in ("graph", "compile") and processes > 1:
        raise ActdetError(f"step {step} supports one process only: use auto or eager")
    if step == "compile":
        _check_compile(device, checkpointing)
    if step != "auto":
        return step, "asked for"

    if device.type != "cuda":
        return "eager", "a CPU has no CUDA graphs"
    if processes > 1:
        return "eager", f"{processes} processes"
    return "graph", "one CUDA graph a step"


def _check_compile(device: torch.device, checkpointing: bool) -> None:
    """Raise ActdetError if torch.compile cannot run the training step."""
    if checkpointing:
        raise ActdetError("--step compile does its own recomputation and cannot be combined with --checkpointing")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        raise ActdetError("step compile needs a GPU of compute capability 7.0 or newer: use auto, eager or graph")
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ActdetError("step compile needs a C++ compiler on a CPU, but g++ is not found: use auto or eager")


def free_memory(device: torch.device) -> int:
    """Count the bytes that are still available on `device`; on a CPU within the limit of this control group, too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]

    # What Linux calls available includes caches that it would give up; the pages are the fallback of other systems.
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))

    # A control group without a limit has the word "max" in place of a number, which is a ValueError.
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        free = min(free, limit - used)
    return free


def lay_channels_last(module: nn.Module) -> None:
    """Lay out the weights of convolutions over pictures and videos channels-last in memory, as clips are."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim in formats:
            tensor.data = tensor.data.to(memory_format=formats[tensor.ndim])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that there is too little memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Context manager: turns an error about too little memory into an ActdetError that says it was for `what`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if isinstance(error, torch.OutOfMemoryError):
            place = "GPU"
            advice = "close other programs that use it, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        else:
            place = "CPU"
            advice = "close other programs that use it"
        raise ActdetError(f"the {place} has too little free memory for {what}: {advice}") from error


def prepare_device(device: torch.device) -> None:
    """Make the libraries fast at steps that all have the same shapes, as those of a training have.

    On a GPU, cuDNN tries its algorithms and keeps the fastest. On a CPU, glibc keeps the memory that a step frees for
    the next one; otherwise it would give large blocks back to the system, which maps and clears them again for every
    step (bench/README.md has figures).

    The settings hold for the whole process, so this is called when a training begins, and never when a module is
    imported or an object is made.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    elif sys.platform == "linux":
        # Other C libraries, such as musl, have no mallopt.
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, -1)

"""What this machine offers: the device, and the arithmetic and the way to launch a step that are fast on it."""

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

from actdet.errors import ActdetError


def choose_device(name: str = "auto") -> torch.device:
    """The device that `name` means: auto takes the first GPU where there is one, else the CPU; cpu; cuda or cuda:N.

    The GPU with a number becomes the current one of this process, which "cuda" then means everywhere.
    Raises ActdetError for any other name, and for a GPU that is not there.
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
        raise ActdetError(f"device {name} is not there: PyTorch finds {numbers}")
    if number is not None:
        torch.cuda.set_device(number)
    return torch.device("cuda")


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the network's arithmetic for `precision` (auto, fp32, bf16 or fp16), and why in a few words.

    Raises ActdetError where it is asked for by name and the device cannot do it.
    """
    if precision == "fp32":
        return torch.float32, "asked for"
    if device.type == "cuda":
        native_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        if precision == "auto":
            dtype = torch.bfloat16 if native_bf16 else torch.float16
            return dtype, f"the GPU has {'' if native_bf16 else 'no '}bf16 units"
        if precision == "bf16" and not native_bf16:
            raise ActdetError("precision bf16 needs a GPU of compute capability 8.0 or newer: use auto, fp16 or fp32")
    elif precision == "auto":
        return (torch.bfloat16, "the CPU has bf16 units") if _cpu_has_bf16() else (torch.float32, "no bf16 units here")
    elif precision == "fp16":
        raise ActdetError("precision fp16 needs a GPU: use auto, bf16 or fp32 on a CPU")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[precision], "asked for"


def _cpu_has_bf16() -> bool:
    """Whether the CPU has units for bf16 that nobody masked for PyTorch or for oneDNN, which then does without."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2" or "AVX2" in os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper():
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags


def choose_step(step: str, device: torch.device, *, processes: int = 1, checkpointing: bool = False) -> tuple[str, str]:
    """How a training step is launched for `step` (auto, graph, eager or compile), and why in a few words.

    Raises ActdetError where it is asked for by name and cannot be had.
    """
    if step == "graph" and device.type != "cuda":
        raise ActdetError("step graph needs a GPU: use auto, eager or compile")
    if step in ("graph", "compile") and processes > 1:
        raise ActdetError(f"step {step} is for one process: use auto or eager")
    if step == "compile":
        if checkpointing:
            raise ActdetError(
                "step compile decides itself what to compute twice: use eager or graph, or no checkpointing"
            )
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
            raise ActdetError("step compile needs a GPU of compute capability 7.0 or newer: use auto, eager or graph")
        if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise ActdetError("step compile needs a C++ compiler on a CPU, and g++ is not found: use auto or eager")
    if step != "auto":
        return step, "asked for"
    if device.type != "cuda":
        return "eager", "a CPU has no CUDA graphs"
    return ("graph", "one CUDA graph a step") if processes == 1 else ("eager", f"{processes} processes")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on `device`; on a CPU within the limit of this process's control group, too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that there is too little memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Within: too little memory is an ActdetError that says it was for `what`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        of_gpu = isinstance(error, torch.OutOfMemoryError)
        advice = ", or set CUDA_VISIBLE_DEVICES= to run on the CPU" * of_gpu
        problem = f"the {'GPU' if of_gpu else 'CPU'} has too little free memory for {what}"
        raise ActdetError(f"{problem}: end other programs that take it{advice}") from error


def prepare_device(device: torch.device) -> None:
    """Settings of the libraries that make steps of one shape fast. They hold for the whole process.

    On a GPU cuDNN tries its algorithms and keeps the fastest. On a CPU glibc keeps the memory that a step frees for the
    next one, where it would give large blocks back to the system, to be mapped and cleared again (bench/README.md).
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, -1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

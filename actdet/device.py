"""What this machine offers: the device, and the arithmetic that is fast on it."""

from __future__ import annotations

from pathlib import Path

import torch

from actdet.errors import ActdetError


def choose_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags

"""What was found on this machine, and which paths actdet will take on it and why."""

from __future__ import annotations

import platform

import torch
from actdet_kernels import explain_backend

from actdet.cli.parsing import NOT_INSTALLED, version_of
from actdet.data.cache import most_kept
from actdet.device import choose_device, choose_precision
from actdet.video.disk_cache import cache_folder
from actdet.video.readers import choose_reader

_PACKAGES = ("actdet", "torch", "torchvision", "triton", "numpy", "scipy", "av")
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def describe_environment() -> list[tuple[str, str]]:
    """Pairs (what, finding) in the order in which a person reads them."""
    device = choose_device()
    dtype, precision_reason = choose_precision("auto", device)
    reader, reader_reason = choose_reader("auto", device)
    found = [("python", platform.python_version())]
    found += [(name, version_of(name)) for name in _PACKAGES]
    found.append(("torch built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"))
    dali = next((f"{version_of(name)} ({name})" for name in _DALI if version_of(name) != NOT_INSTALLED), NOT_INSTALLED)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    else:
        name = f"CPU, {torch.get_num_threads()} threads: torch finds no CUDA device"
    return [
        *found,
        ("dali", dali),
        ("device", name),
        ("precision", f"{str(dtype).removeprefix('torch.')}: {precision_reason}"),
        ("reader", f"{reader}: {reader_reason}"),
        (
            "decoded clips",
            f"up to {most_kept(device) / 2**30:.1f} GiB in memory; with --disk-cache in {cache_folder()}",
        ),
        ("matching and loss", explain_backend(device)),
    ]

"""`actdet env`: what was found on this machine, and which paths actdet takes on it and why."""

from __future__ import annotations

import platform

from actdet.cli.parsing import NOT_INSTALLED, version_of
from actdet.cli.terminal import print_line

_PACKAGES = ("actdet", "torch", "torchvision", "triton", "numpy", "scipy", "av")

# NVIDIA publishes DALI under one name for each version of CUDA.
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def env() -> None:
    """Say what was found on this machine, which paths are taken on it, and why.

    For instance: actdet env
    """
    for what, finding in describe_environment():
        print_line(f"{what:18} {finding}")


def describe_environment() -> list[tuple[str, str]]:
    """Pairs (what, finding) in the order in which a person reads them."""
    import torch
    from actdet_kernels import explain_backend

    from actdet.data.cache import most_kept
    from actdet.device import choose_device, choose_precision
    from actdet.video.disk_cache import cache_folder
    from actdet.video.readers import choose_reader

    device = choose_device()
    dtype, precision_reason = choose_precision("auto", device)
    reader, reader_reason = choose_reader("auto", device)

    found = [("python", platform.python_version())]
    found += [(name, version_of(name)) for name in _PACKAGES]
    found.append(("torch built for", f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"))
    found.append(("dali", _dali_version()))

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    else:
        name = f"CPU, {torch.get_num_threads()} threads: torch finds no CUDA device"
    found.append(("device", name))

    found.append(("precision", f"{str(dtype).removeprefix('torch.')}: {precision_reason}"))
    found.append(("reader", f"{reader}: {reader_reason}"))
    gigabytes = most_kept(device) / 2**30
    found.append(("decoded clips", f"up to {gigabytes:.1f} GiB in memory; with --disk-cache in {cache_folder()}"))
    found.append(("matching and loss", explain_backend(device)))
    return found


def _dali_version() -> str:
    for name in _DALI:
        version = version_of(name)
        if version != NOT_INSTALLED:
            return f"{version} ({name})"
    return NOT_INSTALLED

"""Which kernels the tests run, and where: Triton's on a GPU, or else in its interpreter, which is slow."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from actdet_kernels.backend import Backend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HAS_TRITON = sys.platform == "linux"  # a dependency there: a kernel that cannot be imported fails its tests

NEEDS_TRITON = pytest.mark.skipif(not HAS_TRITON, reason="there is no Triton for this platform")
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
NEEDS_KERNELS = [
    NEEDS_TRITON,
    # NumPy's, within the interpreter: on NaN and infinity, and on the way in which Triton 3.3 reads a scalar
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Conversion of an array:DeprecationWarning"),
]
POISONED = [*NEEDS_KERNELS, pytest.mark.usefixtures("allocated")]

# Releases besides the one that came with PyTorch: `make test-all` installs each in a folder of its own.
TESTED_TRITONS = ("3.6.0", "3.9.0")

# What holds of one implementation holds of all. (Whether the C++ one must be there, `test_backend.py` says.)
HAS_CPP = importlib.util.find_spec("actdet_kernels.cpu.native") is not None
KERNELS: list[Backend] = ["triton", "cpu"] if HAS_CPP else ["triton"]
KINDS: list[Backend] = [*KERNELS, "reference"]
EACH_KERNEL = pytest.mark.parametrize("kernels", KERNELS)


def folder_of_triton(version: str) -> Path:
    """What must be on PYTHONPATH, before all else. If that release is not installed, the test is skipped."""
    folder = Path(__file__).parents[2] / ".tritons" / version
    if not (folder / "triton").is_dir():
        pytest.skip(f"no Triton {version} in {folder}: make test-all and make gates install it there")
    return folder

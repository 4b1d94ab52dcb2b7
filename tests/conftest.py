"""What must be settled before PyTorch and Triton are imported.

Without a GPU, Triton's kernels run in its interpreter, which must be asked for before Triton is imported. Nothing
outside tests/kernels uses them: "auto" takes the reference on a CPU, whatever the interpreter.

The cache of PyTorch's compiler does not know of an instruction set that ATEN_CPU_CAPABILITY hides. What it compiled for
another one ends the process, so each has a folder of its own.
"""

import getpass
import os
import tempfile
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "ATEN_CPU_CAPABILITY" in os.environ:
    folder = f"torchinductor_{getpass.getuser()}_{os.environ['ATEN_CPU_CAPABILITY']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / folder))

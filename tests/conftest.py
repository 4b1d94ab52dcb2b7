"""Without a GPU, Triton's kernels run in its interpreter, which must be asked for before Triton is imported.

Nothing outside tests/kernels uses them: "auto" takes the reference on a CPU, whatever the interpreter.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

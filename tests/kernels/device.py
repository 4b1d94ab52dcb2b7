"""Where the tests run the kernels: on a GPU, or else in Triton's interpreter, which is slow."""

from __future__ import annotations

import os

import pytest
import torch
from actdet_kernels import backend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OBSTACLE = backend._obstacle(DEVICE, os.environ.get("TRITON_INTERPRET") == "1")

NEEDS_KERNELS = [
    pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE)),
    # NumPy's, within the interpreter: on NaN and infinity, and on the way in which Triton 3.3 reads a scalar
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Conversion of an array:DeprecationWarning"),
]
POISONED = [*NEEDS_KERNELS, pytest.mark.usefixtures("allocated")]

"""Where the tests run the kernels: on a GPU, or else in Triton's interpreter, which is slow."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HAS_TRITON = find_spec("triton") is not None  # where it is, kernels that cannot be imported fail and are not skipped

NEEDS_TRITON = pytest.mark.skipif(not HAS_TRITON, reason="there is no Triton for this platform")
NEEDS_KERNELS = [
    NEEDS_TRITON,
    # NumPy's, within the interpreter: on NaN and infinity, and on the way in which Triton 3.3 reads a scalar
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Conversion of an array:DeprecationWarning"),
]
POISONED = [*NEEDS_KERNELS, pytest.mark.usefixtures("allocated")]
